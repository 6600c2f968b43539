"""Hostile files and names given to the real commands, beside an honest scan that has to come out as ever."""

import csv
import gzip
import os
import re
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
from trials import command, pickles, torchfile, training
from trials.equality import equal
from trials.ledger import LOST, NOTICED, TRACEBACK, WRONG, Verdict

from brainseg_jax.data.manifest import read_manifest, write_manifest
from brainseg_jax.data.nifti import read_labels

SECONDS = 90  # a command may take; the honest scan takes ten of them
PAYLOADS = ("<script>alert(1)</script>", "<img src=x onerror=alert(1)>", "</script><script>alert(1)//", "javascript:alert(1)")
FORMULAS = ("=cmd|' /C calc'!A0", "@SUM(1+1)", "+1+cmd|'x'!A0", "-2+3+cmd|'x'!A0")
NAMES = (
    *PAYLOADS,
    *FORMULAS,
    "x" * 300,
    "..",
    ".",
    "../../escaped",
    "/tmp/escaped",
    "a\0b",
    "a\nb",
    "a\u202eb",
    "\ud83e",
    "a/b",
    "-rf",
    "%s%n",
    "CON",
)


# ---- files, each made at a path that ends in .nii.gz


def fifo(file: Path) -> None:
    os.mkfifo(file)


def folder(file: Path) -> None:
    file.mkdir()


def loop(file: Path) -> None:
    file.symlink_to(file)


def dangling(file: Path) -> None:
    file.symlink_to(file.with_name("nowhere"))


def device(file: Path) -> None:
    file.symlink_to("/dev/zero")


def empty(file: Path) -> None:
    file.touch()


def text(file: Path) -> None:
    file.write_text("version https://git-lfs.github.com/spec/v1\n")


def header(shape: tuple[int, int, int]) -> bytes:
    """A NIfTI header that claims that shape, in bytes, of 1 mm."""
    made = bytearray(352)
    for at, form, values in (
        (0, "<i", (348,)),
        (40, "<8h", (3, *shape, 1, 1, 1, 1)),
        (70, "<2h", (2, 8)),
        (76, "<8f", (1,) * 8),
        (108, "<2f", (352, 1)),
        (254, "<h", (1,)),
        (280, "<12f", (1, 0, 0, 0, 0, 1, 0, 0, 0, 0, 1, 0)),
        (344, "4s", (b"n+1\0",)),
    ):
        struct.pack_into(form, made, at, *values)
    return bytes(made)


def bomb(file: Path) -> None:
    """A megabyte or less that honestly unpacks to half a gigabyte of zeros."""
    with gzip.open(file, "wb", 1) as stream:
        stream.write(header((800, 800, 800)))
        for _ in range(800):
            stream.write(bytes(800 * 800))


def endless(file: Path) -> None:
    """The same claim for a small volume, and far more behind it than it needs."""
    with gzip.open(file, "wb", 1) as stream:
        stream.write(header((40, 40, 40)))
        for _ in range(1000):
            stream.write(bytes(2**20))


def claim(file: Path) -> None:
    """Nothing behind a header that claims 34 TB."""
    with gzip.open(file, "wb") as stream:
        stream.write(header((32767, 32767, 32767)))


def noise(file: Path) -> None:
    file.write_bytes(os.urandom(5000))


FILES: tuple[Callable[[Path], None], ...] = (fifo, folder, loop, dangling, device, empty, text, bomb, endless, claim, noise)


# ---- what is done with them


def trial(material: Path, rng: np.random.Generator, folder: Path) -> Verdict:
    """One command, one hostile thing."""
    act = ACTS[rng.choice(len(ACTS), p=(0.3, 0.25, 0.2, 0.15, 0.1))]
    shared = command.segments_now()
    (folder / "in").mkdir()
    found = command.settled(act(material, rng, folder), folder, shared, (folder,))
    if (folder / "executed").exists():
        found = Verdict(WRONG, "was executed")
    return found._replace(detail=f"{act.__name__.replace('_', ' ')}; {found.detail}")


def a_list_with_a_hostile_name(material: Path, rng: np.random.Generator, folder: Path) -> Verdict:
    name, column = NAMES[rng.integers(len(NAMES))], ("subject", "session", "dataset", "image")[rng.integers(4)]
    scans = material / "heads" / "scans"
    row = {"subject": "other", "session": "", "dataset": "made", "image": scans / "head1.nii.gz"} | {column: name}
    return listed(material, folder, row, f"{column} {name[:40]!r}")


def a_list_with_a_hostile_file(material: Path, rng: np.random.Generator, folder: Path) -> Verdict:
    make, file = FILES[rng.integers(len(FILES))], folder / "in" / "other.nii.gz"
    make(file)
    return listed(material, folder, {"subject": "other", "session": "", "dataset": "made", "image": file}, make.__name__)


def listed(material: Path, folder: Path, other: dict, words: str) -> Verdict:
    """Prediction of a list of the honest scan and another row."""
    honest = {"subject": "head0", "session": "", "dataset": "made", "image": material / "heads" / "scans" / "head0.nii.gz"}
    with (folder / "in" / "list.csv").open("w", newline="", errors="surrogateescape") as stream:
        writer = csv.DictWriter(stream, honest)
        writer.writeheader()
        writer.writerows([honest, {key: str(value).encode("utf-8", "replace").decode() for key, value in other.items()}])
    found = predicted(material, folder, folder / "in" / "list.csv", "made/head0_seg.nii.gz")
    return found._replace(detail=f"{words}; {found.detail}")


def a_folder_with_a_hostile_file(material: Path, rng: np.random.Generator, folder: Path) -> Verdict:
    make = FILES[rng.integers(len(FILES))]
    name = ("other", "<img src=x onerror=alert(1)>", "=1+1", "a\nb", "x" * 240, os.fsdecode(b"\xff\xfe"))[rng.integers(6)]
    (folder / "in" / "head0.nii.gz").write_bytes((material / "heads" / "scans" / "head0.nii.gz").read_bytes())
    make(folder / "in" / f"{name}.nii.gz")
    found = predicted(material, folder, folder / "in", "head0_seg.nii.gz")
    return found._replace(detail=f"{make.__name__} called {name[:40]!r}; {found.detail}")


def predicted(material: Path, folder: Path, scans: Path, honest: str) -> Verdict:
    """The command's exit code and words; the honest scan's labels; nothing written elsewhere; a page and tables that run nothing."""
    before, out = elsewhere(folder), folder / "out"
    ended = command.run(training.predict(material, scans, out), folder, SECONDS, **training.compiled(material))
    if found := command.fault(ended, {0: "segmented", 3: "could not be segmented", 2: "^error: |\nerror: "}):
        return found
    if beyond := elsewhere(folder) - before:
        return Verdict(WRONG, f"wrote outside its folder: {sorted(beyond)[:3]}")
    if ended.code != 2:
        expected = material / "predicted" / "head0_seg.nii.gz"
        if not (out / honest).exists():
            return Verdict(LOST, f"the honest scan has no labels; {command.last(ended)}")
        if not equal(tuple(read_labels(expected)), tuple(read_labels(out / honest))):
            return Verdict(WRONG, "the honest scan has other labels")
        page = (out / "qc.html").read_text(encoding="utf-8")
        if any(payload in page for payload in PAYLOADS[:3]):
            return Verdict(WRONG, "a name stands in the page as it is")
        if cells := formulas(out):
            return Verdict(WRONG, f"a spreadsheet would compute {cells[:2]}")
    return Verdict(NOTICED if ended.code else "held", command.last(ended) if ended.code else "")


def formulas(out: Path) -> list[str]:
    """Cells of the tables that a spreadsheet takes for formulas."""
    cells = []
    for file in (*out.glob("*.csv"), *out.glob("*.tsv")):
        with file.open(newline="", encoding="utf-8") as stream:
            for row in csv.reader(stream, delimiter="," if file.suffix == ".csv" else "\t"):
                cells += [cell for cell in row if cell[:1] in ("=", "+", "@", "-") and not re.fullmatch(r"[-+]?[\d.e+-]+", cell)]
    return cells


def elsewhere(folder: Path) -> set[str]:
    """Files that are in a trial's folder, or beside it, and not in its output."""
    own = {p for p in folder.rglob("*") if not p.is_relative_to(folder / "out") and not p.is_relative_to(folder / "tmp")}
    own = {p for p in own if p.suffix not in (".out", ".err")}
    return {str(p) for p in own | set(folder.parent.glob("*")) | set(Path("/tmp").glob("escaped*"))}


def a_training_with_a_hostile_file(material: Path, rng: np.random.Generator, folder: Path) -> Verdict:
    """A manifest in which one scan is none: it is named, and nothing is trained."""
    make, file = FILES[rng.integers(len(FILES))], folder / "in" / "other.nii.gz"
    make(file)
    rows = read_manifest(material / "heads" / "people.tsv")
    people = folder / "in" / "people.tsv"
    write_manifest(people, (*rows, rows[0]._replace(subject="other", image=file)))
    words = training.train(material, folder / "run", material / "volumes", **{"data.manifest": people, "data.max_failures": 0.0})
    ended = command.run(words, folder, SECONDS, **training.compiled(material))
    found = command.fault(ended, {2: "other"}) or Verdict(NOTICED, command.last(ended))
    return found._replace(detail=f"{make.__name__}; {found.detail}")


def a_conversion_of_a_hostile_file(material: Path, rng: np.random.Generator, folder: Path) -> Verdict:
    """Weights that execute, nest, claim or are none."""
    cases = (*FILES[:7], executing, nested, packed, safetensors)
    make = cases[rng.integers(len(cases))]
    file = folder / "in" / ("w.safetensors" if make is safetensors or rng.integers(3) == 0 else "w.pt")
    make(file)
    ended = command.run(["converters.convert", file, folder / "out"], folder, SECONDS, **training.compiled(material))
    found = command.fault(ended, {2: re.escape(file.name)}) or Verdict(NOTICED, command.last(ended))
    if (folder / "out").exists():
        found = Verdict(TRACEBACK, "leaves an output")
    return found._replace(detail=f"{make.__name__} as {file.name}; {found.detail}")


def executing(file: Path) -> None:
    entry = pickles.calls(np.random.default_rng(0), str(file.parents[1] / "executed"))
    torchfile.write(file, b"\x80\x02}(" + torchfile.text("a") + entry + b"u.", {})


def nested(file: Path) -> None:
    """Five million tuples, one in the other."""
    torchfile.write(file, b"\x80\x02}(" + torchfile.text("a") + b"(" * 5_000_000 + b"t" * 5_000_000 + b"u.", {})


def packed(file: Path) -> None:
    """A storage of 2 GB of zeros, which deflate makes 2 MB."""
    torchfile.write(file, b"\x80\x02}.", {"0": bytes(2**31)}, packed=True)


def safetensors(file: Path) -> None:
    """A header that claims 2^60 bytes."""
    made = b'{"a":{"dtype":"F32","shape":[1073741824,268435456],"data_offsets":[0,1152921504606846976]}}'
    file.write_bytes(struct.pack("<Q", len(made)) + made)


ACTS = (
    a_list_with_a_hostile_name,
    a_list_with_a_hostile_file,
    a_folder_with_a_hostile_file,
    a_conversion_of_a_hostile_file,
    a_training_with_a_hostile_file,
)
