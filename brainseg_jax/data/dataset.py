"""From the config to volumes that are ready: the manifest or the sample cohort, its split, and the standardised cache."""

import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from ml_collections import ConfigDict

from brainseg_jax.core.errors import InputError, first_few, warnings
from brainseg_jax.core.files import write_text
from brainseg_jax.core.runtime import cache_folder
from brainseg_jax.data import cache, sample
from brainseg_jax.data.labels import HEAD, Table, grouping, missing, read_table
from brainseg_jax.data.leakage import check_leakage
from brainseg_jax.data.manifest import Row, apply_splits, assign_splits, read_manifest, split_table
from brainseg_jax.data.preprocess import Spec, spec

SPLIT, FAILURES = "split.tsv", "failures.csv"  # in a run folder: who is on which side, and which scans were set aside, and why


class Dataset(NamedTuple):
    """Volumes by split, and the hashes that say which they are. `split` is the text of split.tsv: everybody's side, also test's."""

    train: tuple[cache.Entry, ...]
    val: tuple[cache.Entry, ...]
    spec: Spec
    failures: tuple[cache.Failure, ...]
    manifest: str
    manifest_sha256: str
    split: str
    target: Table | None = None

    @property
    def volumes_sha256(self) -> str:
        """Which volumes are trained on and which validate, in their order: what the stream of batches depends on."""
        names = [
            (side, *entry.row.key, *(image.name for image in entry.row.also))
            for side, entries in (("train", self.train), ("val", self.val))
            for entry in entries
        ]
        return hashlib.sha256(json.dumps(names).encode()).hexdigest()

    @property
    def split_sha256(self) -> str:
        return hashlib.sha256(self.split.encode()).hexdigest()

    def contents(self) -> dict[str, dict[Path, str]]:
        """For each scan, by its name and not its place, the SHA-256 of the bytes of its images and then of its labels."""
        return {"/".join(entry.row.key): cache.contents(entry) for entry in (*self.train, *self.val)}

    def subjects(self) -> list[str]:
        """A hash per training person, for a checkpoint to say whether somebody was trained on."""
        return sorted({entry.row.hashed for entry in self.train})


def prepare(
    data: ConfigDict,
    target: Table | None,
    say: Callable[[str], None],
    progress: Callable[[str], Callable[[int, int], None]],
    channels: int = 1,
    report: Path | None = None,
    heads: Table | None = None,
    use: Callable[[Row], bool] = lambda row: True,
) -> Dataset:
    """Everything that has to be on disk before the first batch; what is there already is not made again.

    With a `target` only scans with labels are used, as its classes (see `labelled`). Without one labels are not read: a damaged one is no
    reason to leave its scan out of pretraining. `use` says which rows are used; `progress(what)` gives a callback (done, total). Raises
    InputError where the manifest has not `channels` images a subject, and where too many scans cannot be used; the file `report`, if any,
    then lists them.
    """
    folder = Path(data.cache).expanduser() if data.cache else cache_folder()
    if target:
        check_learned(target)
    if data.manifest:
        manifest = Path(data.manifest).expanduser()
    else:
        say(f"\n!!! {sample.NOTICE}\n")
        place = folder / "sample" / f"{data.subjects}_{data.split_seed}"
        manifest = sample.make_cohort(place, data.subjects, data.split_seed, progress=progress("making the sample cohort"))
    rows = split(read_manifest(manifest), data)
    if (found := len(rows[0].images)) != channels:
        raise InputError(
            f"{manifest}: its column image names {found} image{'s' * (found > 1)} a subject, and the config has channels {channels}; use "
            f"--config.channels={found}, or give each subject {channels}, separated by ';'"
        )
    for line in warnings(check_leakage(rows, manifest)):
        say(line)
    sides = split_table(rows, manifest)
    wanted = [row for row in rows if row.split in ("train", "val") and use(row)]
    check_made(wanted, target, heads, data.missing_labels, manifest)
    wanted = labelled(wanted, data, target, str(manifest), heads) if target else [row._replace(labels=(), scheme=()) for row in wanted]
    check_sides({row.split for row in wanted}, target, data, manifest)
    chosen = spec(data.spec, data.spacing, data.size, data.dtype)
    entries, failures = cache.build(
        wanted,
        chosen,
        folder / cache.VOLUMES,
        target=target,
        heads=heads,
        max_failures=data.max_failures,
        progress=progress("standardising scans"),
    )
    if failures:
        if report and len(failures) > data.max_failures * len(wanted):
            cache.write_failures(report, failures)
        check_failures(len(wanted), entries, failures, data.max_failures, report, manifest)
        say(f"{len(failures)} of {len(wanted)} scans set aside; the first: {failures[0].reason}")
    check_sides({entry.row.split for entry in entries}, target, data, manifest)
    for line in warnings(cache.remarks(entries, manifest)):
        say(line)
    train, val = (tuple(entry for entry in entries if entry.row.split == side) for side in ("train", "val"))
    digest = hashlib.sha256(manifest.read_bytes()).hexdigest()
    return Dataset(train, val, chosen, failures, str(manifest), digest, sides, target)


def write_down(data: Dataset, run: Path, begun: bool) -> None:
    """Writes split.tsv and, where scans were set aside, failures.csv into a run's folder.

    Of a run that has `begun` to learn the split stays as it is: people who came later, to be tested on, change nobody's side.
    """
    if not (begun and (run / SPLIT).exists()):
        write_text(run / SPLIT, data.split)
    (run / FAILURES).unlink(missing_ok=True)  # an earlier try's
    if data.failures:
        cache.write_failures(run / FAILURES, data.failures)


def repair_split(data: Dataset, run: Path, recorded: str, say: Callable[[str], None]) -> None:
    """Writes split.tsv anew, and says so, where it is not what it was when the run began, as its recorded hash tells.

    Raises InputError where the data of now have another split than those of then.
    """
    file = run / SPLIT
    if not recorded or (file.is_file() and hashlib.sha256(file.read_bytes()).hexdigest() == recorded):
        return
    if data.split_sha256 != recorded:
        raise InputError(
            f"{file}: is damaged, changed or missing; bring it back from a backup, or bring back the manifest that the run began with"
        )
    write_text(file, data.split)
    say(f"{file}: was damaged, changed or missing, and is written anew")


def labelled(rows: Sequence[Row], data: ConfigDict, target: Table, manifest: str, heads: Table | None = None) -> list[Row]:
    """The scans to fine-tune on and to validate with, each with the one label map that is read (the paper, section IV-C).

    Of the data set `data.target` (of all, where it is empty) `data.num_labelled` training scans are drawn: those whose hashed names come
    first, so that ten masks are among twenty. Labels only are no scans: they are not counted, and all are used but those of a person whose
    scans are left out. Other data sets are sources and give all their training scans, but none to validate with. Raises InputError for a
    target that is not there, more masks than there are, and labels that do not tell apart what the task does.
    """
    names = sorted({row.dataset for row in rows})
    if data.target and data.target not in names:
        raise InputError(f"{manifest}: has no data set {data.target!r} in train or val; data.target may be one of {', '.join(names)}")
    made = lambda row: heads if row.labels_only or row.split == "train" else None  # noqa: E731
    rows = [read_for(row, target, data.missing_labels, made(row)) for row in rows if row.labels]
    of_target = {row for row in rows if row.dataset == data.target or not data.target}
    train = [row for row in of_target if row.split == "train" and not row.labels_only]
    if data.num_labelled > len(train):
        remedy = "use at most as many" if train else "add some"
        raise InputError(f"{manifest}: data.num_labelled is {data.num_labelled}, and {len(train)} training scans have labels; {remedy}")

    def order(row: Row) -> bytes:
        return hashlib.sha256("\t".join((str(data.split_seed), *row.key)).encode()).digest()

    left_out = set(sorted(train, key=order)[data.num_labelled :]) if data.num_labelled >= 0 else set()
    unseen = {row.person for row in left_out} - {row.person for row in train if row not in left_out}
    left_out |= {row for row in rows if row.labels_only and row.person in unseen}
    if data.num_labelled == 0 and not any(row.split == "train" and row not in left_out for row in rows):
        raise InputError(f"{manifest}: data.num_labelled is 0, and no other data set has masks to train on; use more, or -1 for all")
    return [row for row in rows if row not in left_out and (row.split == "train" or row in of_target)]


def read_for(row: Row, target: Table, lacking: str, heads: Table | None = None) -> Row:
    """The row with the first of its label maps that tells apart what the target does, or, `lacking` "background", as much as any.

    With `heads` it has to tell apart what these do, too.
    """
    if not row.scheme:
        raise InputError(f"{row.labels[0]}: the manifest does not say which label table it follows; fill in the column scheme")
    lacks, faults = {}, []
    for scheme in row.scheme:
        try:
            lacks[scheme] = missing(read_table(scheme), target)
        except InputError as fault:
            faults.append(fault)
    if not lacks:
        raise faults[0]
    for scheme in row.scheme if heads else ():
        try:
            grouping(read_table(scheme), heads)
        except InputError as fault:
            faults.append(fault)
            lacks.pop(scheme, None)
    if not lacks:
        why, other = str(faults[-1]).partition(";")[0], "" if row.labels_only else ", or use synth.share=0"
        raise InputError(f"{row.labels[0]}: no scan can be made of it, {why}; give finer labels, leave it out{other}")
    best = min(lacks, key=lambda scheme: len(lacks[scheme]))
    labels = row.labels[row.scheme.index(best)]
    if lacking == "refuse" and len(lacks[best]) == len(target.structures):
        raise InputError(f"{labels}: labels of {best} have nothing of {target.name}; give labels that have, or use another table")
    if lacking == "refuse" and lacks[best]:
        names = first_few((structure.name for structure in lacks[best]), 4)
        raise InputError(
            f"{labels}: labels of {best} have no {names}, which {target.name} has; use a table without, or "
            "--config.data.missing_labels=background to take them as background"
        )
    return row._replace(labels=(labels,), scheme=(best,))


def check_learned(target: Table) -> None:
    """Raises InputError for the table of what scans are made from: what lies outside the brain is told apart by brightness in it."""
    if target.name == HEAD:
        raise InputError(f"label table {HEAD} is what scans are made from, by brightness too, and not to be learned; use another one")


def check_made(rows: Sequence[Row], target: Table | None, heads: Table | None, lacking: str, manifest: Path) -> None:
    """Raises InputError for rows of labels only where no scans are made, which takes `heads`, and for a target that has more than these."""
    if (alone := [row for row in rows if row.labels_only]) and not heads:
        raise InputError(
            f"{manifest}: {alone[0].image} has no image; add one, leave the line out, or have scans made of it, which fine-tuning does "
            "with --config.synth.share=1"
        )
    if target and heads and (lacks := missing(heads, target)) and lacking == "refuse":
        raise InputError(
            f"scans that are made have no {first_few((structure.name for structure in lacks), 4)}, which {target.name} has; use a coarser "
            "data.labels, synth.share=0, or --config.data.missing_labels=background"
        )


def check_sides(sides: set[str], target: Table | None, data: ConfigDict, manifest: Path) -> None:
    """Raises InputError where nobody is left in train or val, `sides` being the splits of usable scans."""
    for side in ("train", "val"):
        if side not in sides:
            what = "usable scan with labels" if target else "usable scan"
            where = "data.splits" if data.splits else f"its column split or, where that is empty, data.fractions {tuple(data.fractions)}"
            raise InputError(f"{manifest}: no {what} in split {side}; add some, or change {where}")


def check_failures(
    wanted: int, ready: Sequence[cache.Entry], failures: Sequence[cache.Failure], most: float, report: Path | None, manifest: Path
) -> None:
    """Raises InputError, naming the first of them and what can be done, where more than the share `most` of the `wanted` scans failed.

    `report` is the file that lists them all, if there is one.
    """
    if len(failures) <= most * wanted:
        return
    untried = wanted - len(ready) - len(failures)
    first = " | ".join(f"{failure.row.subject}: {failure.reason}" for failure in failures[:3])
    ways = ["mend them", f"leave them out of {manifest}"]
    if untried or {"train", "val"} <= {entry.row.split for entry in ready}:
        # Tenths: a share to type. Of those that were not tried nobody knows.
        share = 1 if untried else next(n / 10 for n in range(11) if len(failures) <= n / 10 * wanted)
        ways.append(f"go on without them: --config.data.max_failures={share:g}")
    counts = f"{len(failures)} of {wanted} scans cannot be used{f' ({untried} not tried yet)' * bool(untried)}"
    more, where = " | …" * (len(failures) > 3), f" (all in {report})" if report else ""
    bound = f"a run leaves out {100 * most:g} % at most (data.max_failures={most:g})"
    raise InputError(f"{counts}, and {bound}: {first}{more}{where}; {', or '.join(ways)}")


def split(rows: tuple[Row, ...], data: ConfigDict) -> tuple[Row, ...]:
    """The rows with a split each: from a split file, as the manifest has it, or made by the config's rule."""
    if data.splits:
        return apply_splits(rows, Path(data.splits).expanduser())
    return assign_splits(rows, seed=data.split_seed, fractions=None if data.split_rule == "paper" else data.fractions, rule=data.split_rule)
