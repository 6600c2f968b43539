"""scripts/prepare_data.py: a folder becomes a manifest, nothing of the user's is lost, and what is wrong is said at once in one line."""

import hashlib
import shlex
from pathlib import Path

import numpy as np
import pytest

from brainseg_jax.cli.prepare import main
from brainseg_jax.config.keys import base
from brainseg_jax.data import cache, dataset
from brainseg_jax.data.labels import read_table, table_text
from brainseg_jax.data.manifest import read_manifest, write_manifest
from brainseg_jax.data.nifti import read_labels
from brainseg_jax.data.nifti_write import write


def prepare(*args):
    return main([str(arg) for arg in args])


def tree(root, *names):
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    return root


@pytest.fixture
def ten(tmp_path, monkeypatch):
    """Ten people's scans in the folder SCANS and, named after the people only, their masks in MASKS: where a user starts."""
    monkeypatch.chdir(tmp_path)
    tree(tmp_path, *(f"SCANS/sub-{i:02}_T1w.nii.gz" for i in range(10)), *(f"MASKS/sub-{i:02}_seg.nii.gz" for i in range(10)))
    return tmp_path


# As the README has it.
TEN = shlex.split(r"manifest folder SCANS --labels MASKS --scheme freesurfer --subject-regex '(sub-\d+)' --dataset MINE --out people.tsv")


def test_writes_manifest_and_split_and_says_what_is_next(tmp_path, capsys):
    root = tree(tmp_path / "t1", *(f"P{i:02}-x_T1.nii.gz" for i in range(20)))
    labels = tree(tmp_path / "labels", *(f"P{i:02}-x_T1_seg.nii.gz" for i in range(19)))
    out = tmp_path / "people.tsv"
    options = ("--subject-regex", r"(P\d+)", "--scheme", "dlmuse", "--dataset", "D", "--fractions", 0.8, 0.1, 0.1)
    assert prepare("manifest", "folder", root, "--labels", labels, "--out", out, *options) == 0
    rows = read_manifest(out)
    assert [sum(row.split == split for row in rows) for split in ("train", "val", "test")] == [16, 2, 2]
    assert rows[0][:2] + rows[0][3:6] == ("P00", "", (labels / "P00-x_T1_seg.nii.gz",), ("dlmuse",), "D")
    printed = capsys.readouterr().out
    lines = [line.split() for line in printed.splitlines()]
    assert [line[:4] for line in lines[1:4]] == [["D", "train", "16", "16"], ["D", "val", "2", "2"], ["D", "test", "2", "2"]]
    assert sum(int(line[4]) for line in lines[1:4]) == 19
    assert hashlib.sha256((tmp_path / "people_split.tsv").read_bytes()).hexdigest() in printed


def test_ten_masks_named_after_their_people(ten, capsys):
    assert prepare(*TEN) == 0
    rows = read_manifest("people.tsv")
    assert [row.labels for row in rows] == [(ten / f"MASKS/sub-{i:02}_seg.nii.gz",) for i in range(10)]
    printed = capsys.readouterr().out
    assert "without a label" not in printed and "of no scan" not in printed
    assert printed.endswith(
        "\n\nnext: brainseg train --config=configs/finetune_swin_unetr.py:four,full --config.data.manifest=people.tsv\n"
    )


def test_without_a_split(tmp_path):
    assert prepare("manifest", "folder", tree(tmp_path / "t1", "a.nii"), "--out", tmp_path / "a.tsv", "--split", "none") == 0
    assert read_manifest(tmp_path / "a.tsv")[0].split == ""
    assert not (tmp_path / "a_split.tsv").exists()


def test_what_is_there_is_kept_unless_forced(ten, capsys):
    assert prepare(*TEN) == 0
    assert prepare(*TEN) == 0
    assert capsys.readouterr().out.count("was there already, the same") == 2
    for name in ("people.tsv", "people_split.tsv"):
        made = {path: path.read_bytes() for path in (Path("people.tsv"), Path("people_split.tsv"))}
        edited = made[Path(name)].replace(b"\ttrain\n", b"\ttest\n", 1)
        Path(name).write_bytes(edited)
        assert prepare(*TEN) == 2
        error = capsys.readouterr().err
        assert error == f"error: {name}: is there already with other content; write over it with --force, or give another --out\n"
        assert {path: path.read_bytes() for path in made} == made | {Path(name): edited}
        assert prepare(*TEN, "--force") == 0
        assert {path: path.read_bytes() for path in made} == made
    assert sorted(path.name for path in ten.iterdir()) == ["MASKS", "SCANS", "people.tsv", "people_split.tsv"]


def test_what_is_not_paired_is_named(ten, capsys):
    tree(ten, *(f"SCANS/sub-{i}_T1w.nii.gz" for i in range(20, 25)), "MASKS/sub-30_seg.nii.gz", "MASKS/site 2/phantom.nii.gz")
    assert prepare(*TEN) == 0
    printed = capsys.readouterr().out
    names = "sub-20_T1w.nii.gz, sub-21_T1w.nii.gz, sub-22_T1w.nii.gz and 2 more"
    assert f"scans without a label, of use in pretraining only: 5 of 15, {names}\n" in printed
    assert "label files of no scan: 2, site 2/phantom.nii.gz, sub-30_seg.nii.gz\n" in printed


def test_derivatives_that_are_no_label_maps_are_not_called_so(ten, capsys):
    tree(ten / "b", "sub-1/anat/sub-1_T1w.nii.gz", "d/sub-1_dseg.nii.gz", "d/sub-1_desc-preproc_T1w.nii.gz", "d/sub-2_dseg.nii.gz")
    assert prepare("manifest", "bids", "b", "--labels", "b/d", "--scheme", "seg4", "--out", "b.tsv") == 0
    printed = capsys.readouterr().out
    assert "label files of no scan: 1, sub-2_dseg.nii.gz\n" in printed
    assert "no labels in split val, without which there is no fine-tuning: try another --seed, or --fractions\n" in printed


@pytest.mark.parametrize(
    ("scheme", "expected"),
    [("brain", ":skull,full"), ("seg35", ":four,full"), ("my own.tsv", ":four,full --config.data.labels='{}/my own.tsv'")],
)
def test_the_next_command_is_one_that_the_labels_can_do(ten, capsys, scheme, expected):
    Path("my own.tsv").write_text("id\tname\tpartner\n7\tCyst\t7\n")
    args = [*TEN]
    args[args.index("freesurfer")], args[args.index("people.tsv")] = scheme, "new/its people.tsv"
    assert prepare(*args) == 0
    nexts = capsys.readouterr().out.partition("next: ")[2].strip()
    flags = expected.format(ten)
    assert nexts == f"brainseg train --config=configs/finetune_swin_unetr.py{flags} --config.data.manifest='new/its people.tsv'"
    assert {row.scheme for row in read_manifest("new/its people.tsv")} == {(str(ten / scheme) if scheme.endswith(".tsv") else scheme,)}


@pytest.mark.parametrize(
    ("args", "reason"),
    [
        ("cc359 SCANS", "no scans found"),
        ("folder SCANS --fractions 1 1 1", "sum to 1"),
        ("folder SCANS --fractions 1 1", "argument --fractions: "),  # the rest is argparse's, and Python's releases differ in it
        ("folder SCANS --fraction 1 0 0", "; see brainseg prepare --help"),
        ("foldr SCANS", "invalid choice: 'foldr'"),
        ("folder SCANS --lab MASKS", "unrecognized arguments: --lab MASKS"),
        ("folder NOWHERE", "NOWHERE: no such folder; check the path"),
        ("folder SCANS/sub-00_T1w.nii.gz", "is a file, not a folder"),
        ("folder EMPTY", "EMPTY: no scans found; looked for files ending in .nii"),
        ("folder OTHER", "OTHER: no scans found; looked for files ending in .nii"),
        ("folder TWICE", "TWICE: subject 'T1' has two scans called T1.nii in session ''"),
        ("folder SCANS --subject-regex (", "correct the expression"),
        ("folder SCANS --labels EMPTY --scheme seg4", "EMPTY: no labels found for the scans in SCANS"),
        ("folder SCANS --labels MASKS --scheme freesurfr", "unknown (did you mean 'freesurfer'?); use a .tsv file or one of seg35"),
        ("folder SCANS --labels MASKS --scheme none.tsv", "none.tsv: no such file; check the path, or use one of seg35"),
        ("folder SCANS --labels MASKS --scheme OTHER/bad.tsv", "bad.tsv: column 'x' is unknown"),
        ("folder SCANS --labels MASKS", "give --scheme too, one of seg35, seg33"),
        ("bids SCANS --labels MASKS", "give --scheme too, one of seg35, seg33"),
        ("folder SCANS --scheme seg4", "--scheme: says what the values of label maps mean, and is without use alone; give --labels"),
        ("oasis1 SCANS --scheme seg35", "--scheme: the layout oasis1 has no use for it; leave it out"),
        ("oasis1 SCANS --labels MASKS", "--labels: the layout oasis1 has no use for it; leave it out"),
        ("adni SCANS --labels MASKS --scheme malpem", "--scheme: the layout adni has no use for it"),
        ("cc359 SCANS --labels MASKS --scheme brain", "--scheme: the layout cc359 has no use for it"),
        ("bids SCANS --subject-regex x", "--subject-regex: the layout bids has no use for it"),
        ("folder SCANS --split none --seed 1", "--seed: without a split there is no use for it"),
        ("folder SCANS --split none --fractions 1 0 0", "--fractions: without a split there is no use for it"),
        ("folder SCANS --out EMPTY", "--out EMPTY: is a folder; give a file's name in it, e.g. EMPTY/people.tsv"),
        ("folder SCANS --out SCANS/sub-00_T1w.nii.gz --force", "give a name that ends in .tsv"),
        ("folder SCANS --out OTHER/bad.tsv/a.tsv", "bad.tsv is a file, and nothing can be written below it"),
    ],
)
def test_refuses_in_one_line_and_leaves_everything_as_it_was(ten, capsys, args, reason):
    (tree(ten, "OTHER/a.dcm", "OTHER/notes.txt", "TWICE/p1/T1.nii", "TWICE/p2/T1.nii") / "EMPTY").mkdir()
    Path("OTHER/bad.tsv").write_text("id\tx\n")
    before = {path: path.is_file() and path.read_bytes() for path in ten.rglob("*")}
    out = () if "--out" in args else ("--out", "a.tsv")
    assert prepare("manifest", *args.split(), *out) == 2
    printed = capsys.readouterr()
    assert reason in printed.err and printed.err.startswith("error: ") and printed.err.count("\n") == 1 and not printed.out
    assert {path: path.is_file() and path.read_bytes() for path in ten.rglob("*")} == before


def test_what_may_be_one_person_is_told_and_one_image_on_two_sides_refused(ten, capsys):
    (ten / "SCANS" / "sub-04_T1w.nii.gz").write_bytes(b"somebody")
    tree(ten, "SCANS/SUB-004.nii.gz")
    args = ("manifest", "folder", "SCANS", "--subject-regex", r"([sS][uU][bB]-\d+)", "--out")
    assert prepare(*args, "people.tsv") == 0
    assert "warning: SCANS: may be one person each" in (printed := capsys.readouterr().out)
    assert "'SUB-004' of 'SCANS' and 'sub-04' of 'SCANS'; write a person" in printed
    for i in range(10):
        (ten / "SCANS" / f"sub-{i:02}_T1w.nii.gz").write_bytes(b"somebody")
    assert prepare(*args, "other.tsv") == 2
    error = capsys.readouterr().err
    assert "the same image is on two sides of the split" in error and error.count("\n") == 1 and not (ten / "other.tsv").exists()


# ---- cache


def test_the_cache_tells_of_leaks_and_odd_labels(masked, tmp_path, capsys):
    rows = [row._replace(subject=subject) for row, subject in zip(read_manifest(masked), ("1", "01", "2", "3"), strict=True)]
    away = read_labels(rows[2].labels[0])
    write(tmp_path / "away.nii.gz", np.roll(away.voxels, 20, axis=0), away.affine)
    rows[2] = rows[2]._replace(labels=(tmp_path / "away.nii.gz",))
    write_manifest(tmp_path / "people.tsv", rows)
    assert prepare("cache", tmp_path / "people.tsv", "--labels", "brain", "--cache", tmp_path, *SMALL) == 0
    printed = capsys.readouterr().out
    assert f"warning: {tmp_path / 'people.tsv'}: may be one person each" in printed and f"warning: {tmp_path / 'away.nii.gz'}: " in printed


SMALL = ("--spacing", 4, "--size", 32, 32, 32, "--workers", 1)


def test_cached_labels_are_those_that_fine_tuning_reads(masked, tmp_path, capsys, monkeypatch):
    assert prepare("cache", masked, "--labels", "brain", "--cache", tmp_path, *SMALL) == 0
    assert f"4 of 4 scans are ready in {tmp_path}\n" in capsys.readouterr().out
    made = []
    monkeypatch.setattr(cache, "_make", lambda job: made.append(job) or (job[0], "not there"))
    data = base().data
    data.update(manifest=str(masked), cache=str(tmp_path), spacing=4.0, size=(32, 32, 32))
    ready = dataset.prepare(data, read_table("brain"), print, lambda what: lambda done, total: None)
    assert made == [] and len(ready.train) == 3 and "label" in cache.load(ready.train[0].file)


def test_labels_without_an_image_are_left_to_training(heads, tmp_path, capsys):
    assert prepare("cache", heads, "--labels", "seg4", "--cache", tmp_path, *SMALL) == 0
    assert f"2 of 2 scans are ready in {tmp_path}\n" in capsys.readouterr().out


def test_ids_that_the_scheme_does_not_have_are_told_ahead(masked, tmp_path, capsys):
    (tmp_path / "mine.tsv").write_text(table_text(read_table("brain")).replace("\n1\t", "\n2\t").replace("\t1\t#", "\t2\t#"))
    rows = read_manifest(masked)
    odd = [row._replace(scheme=(str(tmp_path / "mine.tsv"),)) if i == 1 else row for i, row in enumerate(rows)]
    write_manifest(tmp_path / "people.tsv", odd)
    assert prepare("cache", tmp_path / "people.tsv", "--labels", "brain", "--cache", tmp_path, *SMALL) == 3
    printed = capsys.readouterr().out
    assert "3 of 4 scans are ready" in printed and f"1 cannot be used, reasons in {tmp_path}/people_failures.csv; the first:\n" in printed
    assert "head1.nii.gz: label table" in printed and "does not have 1 (" in printed
    write_manifest(tmp_path / "people.tsv", [row._replace(split="excluded") if i == 1 else row for i, row in enumerate(odd)])
    assert prepare("cache", tmp_path / "people.tsv", "--labels", "brain", "--cache", tmp_path, *SMALL) == 0
    assert "3 of 3 scans are ready" in capsys.readouterr().out and not (tmp_path / "people_failures.csv").exists()


def test_for_pretraining_labels_are_not_read(masked, tmp_path, capsys):
    rows = [row._replace(labels=(tmp_path / "gone.nii",)) for row in read_manifest(masked)]
    write_manifest(tmp_path / "people.tsv", rows[:1])
    assert prepare("cache", tmp_path / "people.tsv", "--cache", tmp_path, *SMALL) == 0
    assert "1 of 1 scans are ready" in capsys.readouterr().out
    assert prepare("cache", tmp_path / "people.tsv", "--labels", "brain", "--cache", tmp_path, *SMALL) == 2
    assert "none of 1 scans can be used, reasons in" in capsys.readouterr().err


def test_ctrl_c_is_one_line(masked, tmp_path, monkeypatch, capsys):
    def stop(job):
        raise KeyboardInterrupt

    monkeypatch.setattr(cache, "_make", stop)
    assert prepare("cache", masked, "--cache", tmp_path, *SMALL) == 130
    assert capsys.readouterr().err == "stopped; the same command goes on from there\n"


@pytest.mark.parametrize(
    ("args", "reason"),
    [
        ("none.tsv", "none.tsv: no such file; check the path, or make a manifest"),
        (". --labels brain", ".: cannot be read (Is a directory)"),
        ("people.tsv --labels", "argument --labels: expected one argument; see brainseg prepare cache --help"),
        ("people.tsv --labels segg4", "label table 'segg4' is unknown (did you mean 'seg4'?)"),
        ("people.tsv --labels seg4", "does not tell 'Cortex' from"),
        ("people.tsv --lacking background", "--lacking: is about labels; give --labels too"),
        ("people.tsv --size 0 1 1", "size is (0, 1, 1); give three positive numbers"),
        ("people.tsv --spacing nan", "spacing is nan; give a positive number"),
        ("people.tsv --workers 0", "'0' is not a whole number above 0"),
        ("people.tsv --cache people.tsv/c", "people.tsv/c/volumes: Not a directory; check the place"),
        ("excluded.tsv", "excluded.tsv: all 4 scans are of split 'excluded', which is left out; give those to use another one\n"),
        (
            "bare.tsv --labels brain",
            "bare.tsv: --labels standardises scans that have labels, and none of 4 has; fill in its columns labels",
        ),
    ],
)
def test_cache_refuses_in_one_line(masked, tmp_path, monkeypatch, capsys, args, reason):
    monkeypatch.chdir(tmp_path)
    rows = read_manifest(masked)
    write_manifest("people.tsv", rows)
    write_manifest("excluded.tsv", [row._replace(split="excluded") for row in rows])
    write_manifest("bare.tsv", [row._replace(labels=()) for row in rows])
    assert prepare("cache", *args.split(), *(() if "--cache" in args else ("--cache", "c"))) == 2
    error = capsys.readouterr().err
    assert reason in error and error.startswith("error: ") and error.count("\n") == 1
