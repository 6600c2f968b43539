"""The command on files: what its table says, by hand; other schemes, grids and orientations; and what it refuses or leaves out."""

import csv
import re
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from brainseg_jax.cli.evaluate import main, named, seen_in_training
from brainseg_jax.core.errors import InputError
from brainseg_jax.data.labels import read_table
from brainseg_jax.data.manifest import Row
from brainseg_jax.data.nifti import Scan, reorient
from brainseg_jax.data.nifti_write import write
from brainseg_jax.data.preprocess import on_grid
from brainseg_jax.evaluation import scoring
from brainseg_jax.evaluation.metrics import score
from brainseg_jax.evaluation.score_table import write_scores
from brainseg_jax.evaluation.scoring import comparison

AFFINE = np.diag([2.0, 2.0, 3.0, 1.0]) + np.array([[0, 0, 0, -7.0], [0, 0, 0, 11], [0, 0, 0, 2], [0, 0, 0, 0]])
TABLE = "id\tname\tabbreviation\tpartner\n10\tLeft [blob]\tL-B\t20\n20\tRight blob\tR-B\t10\n5\tMiddle\tM\t5\n"


def bars(*ids, shape=(6, 5, 4)):
    """A label map with one plane along x for each id."""
    return np.broadcast_to(np.array(ids, np.int16)[:, None, None], shape).copy()


@pytest.fixture
def folder(tmp_path):
    """Two subjects of a user's table: in `p` what was predicted, in `r` the references."""
    (tmp_path / "mine.tsv").write_text(TABLE)
    for name, labels in {
        "p/a_seg": bars(0, 10, 10, 20, 0, 0),
        "r/a": bars(0, 10, 20, 20, 0, 0),
        "p/b_seg": bars(10, 10, 0, 20, 20, 0),
        "r/b": bars(10, 10, 0, 0, 0, 5),
    }.items():
        write(tmp_path / f"{name}.nii.gz", labels, AFFINE)
    return tmp_path


@pytest.fixture
def run(folder, capsys):
    """`run(*flags)`: exit code, rows of the table by subject and id, and what was printed; {f} in flags is the folder."""

    def run(*flags, schemes=True):
        mine = [f"--{name}={folder / 'mine.tsv'}" for name in ("pred-scheme", "ref-scheme", "labels")] if schemes else []
        code = main([f"--o={folder / 'out.tsv'}", *mine, *(flag.replace("{f}", str(folder)) for flag in flags)])
        rows = {}
        if (folder / "out.tsv").exists():
            with (folder / "out.tsv").open(newline="") as file:
                rows = {(row["subject"], row["id"]): row for row in csv.DictReader(file, delimiter="\t")}
        printed = capsys.readouterr()
        return code, rows, printed.out + printed.err

    return run


BOTH = ("--pred={f}/p", "--ref={f}/r")


def test_the_table_by_hand(run):
    """A plane has 20 voxels of 12 mm³. Subject a: two planes of 10 on one of them; b: 20 is made up and 5 is missed."""
    code, rows, _ = run(*BOTH)
    assert code == 0
    assert list(rows) == [(subject, id) for subject in "ab" for id in ("0", "10", "20", "5")]
    assert list(rows["a", "0"]) == ["subject", "structure", "id", "dice", "hd95", "assd", "nsd", "pred_ml", "ref_ml", "absent"]
    a = rows["a", "10"]
    assert (a["structure"], a["pred_ml"], a["ref_ml"], a["absent"]) == ("Left [blob]", "0.48", "0.24", "")
    assert float(a["dice"]) == pytest.approx(2 / 3, rel=1e-5)
    # Both planes are surface: of 40 voxels 20 are 2 mm from the reference's 20, which all coincide.
    assert (float(a["hd95"]), float(a["assd"]), float(a["nsd"])) == pytest.approx((2, 40 / 60, 40 / 60), rel=1e-5)
    diagonal = np.sqrt((5 * 2) ** 2 + (4 * 2) ** 2 + (3 * 3) ** 2)
    for id, absent in (("20", "reference"), ("5", "prediction")):
        row = rows["b", id]
        assert (row["dice"], row["nsd"], row["absent"]) == ("0", "0", absent)
        assert (float(row["hd95"]), float(row["assd"])) == pytest.approx((diagonal, diagonal), rel=1e-5)
    assert {rows["a", "5"][name] for name in ("dice", "hd95", "assd", "nsd")} == {""}
    assert (rows["a", "5"]["absent"], rows["a", "5"]["pred_ml"]) == ("both", "0")
    assert (rows["a", "0"]["dice"], rows["a", "0"]["hd95"]) == ("1", "")


def test_what_is_printed(run, folder):
    _, _, out = run(*BOTH, "--metrics=nsd,dice", "--tolerance=2.5")
    # n, missed, extra; dice is 2/3 and 1 in the two subjects: mean 0.833, sample deviation 0.236.
    assert re.search(r"Left \[blob\] +2 +0 +0 +0\.833 ± 0\.236 +1\.000 ± 0\.000", out)
    assert re.search(r"Right blob +2 +0 +1 +0\.333 ± 0\.471", out)
    assert re.search(r"Middle +1 +1 +0 +0\.000 +0\.000 *\n", out)
    # Of each subject first: (2/3 + 2/3) / 2 and (1 + 0 + 0) / 3; with the background (1 + 4/3) / 3 and (2/5 + 1) / 4.
    assert re.search(r"mean of 3 structures +0\.500 ± 0\.236", out)
    assert re.search(r"and background +0\.564 ± 0\.302 *\n", out)
    assert "at most 2.5 mm from the other surface" in out and "hd95:" not in out
    assert "absent on both sides is not counted; on one side: Dice and NSD 0" in out
    assert f"{folder / 'out.tsv'}: written, 2 subjects" in out


def test_only_the_metrics_that_are_asked_for(run):
    _, rows, out = run(*BOTH, "--metrics=dice")
    assert list(rows["a", "10"]) == ["subject", "structure", "id", "dice", "pred_ml", "ref_ml", "absent"]
    assert "surface" not in out


def test_structures_can_be_left_out_by_id_name_or_abbreviation(run):
    for exclude in ("20,5", "right blob, m"):
        _, rows, out = run(*BOTH, f"--exclude={exclude}")
        assert [id for subject, id in rows if subject == "a"] == ["0", "10"]
        assert re.search(r"mean of 1 structure +0\.833", out)
        assert "left out: Right blob, Middle;" in out


def test_the_mean_says_of_how_many_structures_it_is(run):
    out = run("--pred={f}/p/a_seg.nii.gz", "--ref={f}/r/a.nii.gz")[2]
    assert re.search(r"Middle +0 +0 +0 +– +–", out)
    assert re.search(r"mean of 2 structures +0\.667 ", out)
    assert "written, 1 subject\n" in out


def test_what_no_prediction_has_is_pointed_at(run):
    out = run(*BOTH)[2]
    assert "note: no prediction has Middle" not in out  # subject a's reference has none either
    out = run("--pred={f}/p/b_seg.nii.gz", "--ref={f}/r/b.nii.gz")[2]
    assert "note: no prediction has Middle; if its tool has none, leave them out with --exclude 5, or correct --pred-scheme" in out
    assert "note: no reference has Right blob;" in out


# ---- pairs


def test_two_files_or_a_list(run, folder):
    _, every, _ = run(*BOTH)
    code, rows, _ = run("--pred={f}/p/a_seg.nii.gz", "--ref={f}/r/a.nii.gz")
    assert code == 0
    assert rows == {key: row for key, row in every.items() if key[0] == "a"}
    (folder / "list.csv").write_text("subject,pred,ref\na,p/a_seg.nii.gz,r/a.nii.gz\nb,p/b_seg.nii.gz,r/b.nii.gz\n")
    assert run("--pairs={f}/list.csv")[:2] == (0, every)


def test_files_without_a_partner_are_refused_or_listed(run, folder):
    (folder / "p" / "b_seg.nii.gz").rename(folder / "p" / "c_seg.nii.gz")
    code, rows, out = run(*BOTH)
    assert (code, rows) == (2, {})
    assert out == f"error: 2 files have no partner: {folder}/p/c_seg.nii.gz, {folder}/r/b.nii.gz; add --partial to leave them out\n"
    code, rows, out = run(*BOTH, "--partial")
    assert (code, {subject for subject, _ in rows}) == (0, {"a"})
    assert f"2 files have no partner and were left out:\n{folder}/p/c_seg.nii.gz\n{folder}/r/b.nii.gz\n" in out


def test_one_bad_pair_does_not_lose_the_others(run, folder):
    damaged = folder / "p" / "b_seg.nii.gz"
    damaged.write_bytes(damaged.read_bytes()[:-20])
    code, rows, out = run(*BOTH)
    assert (code, {subject for subject, _ in rows}) == (3, {"a"})
    assert f"1 of 2 pairs could not be scored:\nb: {damaged}: " in out
    write(folder / "p" / "a_seg.nii.gz", bars(0, 10, 11, 20, 0, 0), AFFINE)
    (folder / "out.tsv").unlink()
    code, rows, out = run(*BOTH)
    assert (code, rows, out.count("\n")) == (2, {}, 1)
    assert "none of 2 pairs could be scored; the first, a: " in out
    assert "does not have 11 (20 voxels)" in out


def test_what_there_is_to_say_of_how_a_file_was_read_is_printed(run, folder, monkeypatch):
    read_labels = scoring.read_labels

    def remarked(path):
        scan = read_labels(path)
        return scan._replace(remarks=("its voxels are micrometres",)) if path.name == "b.nii.gz" else scan

    monkeypatch.setattr(scoring, "read_labels", remarked)
    code, _, out = run(*BOTH)
    assert code == 0 and out.count("micrometres") == 1 and f"warning: {folder}/r/b.nii.gz: its voxels are micrometres\n" in out


def test_a_subject_that_looks_like_a_formula_is_text(run, folder):
    (folder / "list.csv").write_text("subject,pred,ref\n=1+1,p/a_seg.nii.gz,r/a.nii.gz\n-1,p/b_seg.nii.gz,r/b.nii.gz\n")
    code, rows, _ = run("--pairs={f}/list.csv")
    assert (code, {subject for subject, _ in rows}) == (0, {"'=1+1", "-1"})


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (ValueError("a\nb"), "the pair: unexpected ValueError: a b; please report it"),
        (MemoryError(), "the pair: not enough memory; close other programs"),
        (OSError(5, "Input/output error", "x.mgz"), "the pair: x.mgz: Input/output error; check the place"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_nobody_expected_does_not_lose_the_others_either(run, monkeypatch, error, words):
    def fails(predicted, *others):
        if predicted[4, 0, 0]:  # subject b
            raise error
        return score(predicted, *others)

    monkeypatch.setattr(scoring, "score", fails)
    code, rows, out = run(*BOTH)
    assert (code, {subject for subject, _ in rows}) == (3, {"a"})
    assert f"1 of 2 pairs could not be scored:\nb: {words}" in out


def test_what_was_scored_before_ctrl_c_is_written(run, monkeypatch):
    def stopped(predicted, *others):
        if predicted[4, 0, 0]:
            raise KeyboardInterrupt
        return score(predicted, *others)

    monkeypatch.setattr(scoring, "score", stopped)
    code, rows, out = run(*BOTH)
    assert (code, {subject for subject, _ in rows}) == (130, {"a"})
    assert out.endswith("out.tsv holds 1 of 2 pairs\n") and out.count("\n") == 1


# ---- grids


@pytest.mark.parametrize("codes", ["LPS", "SAR", "PIL"])
@pytest.mark.parametrize("degrees", [0, 30, 45])
def test_another_orientation_of_the_same_grid_is_the_same(rng, codes, degrees):
    """However oblique: at 45° two axes are as near to right as to front."""
    c, s = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    turn = np.array([[c, -s, 0, 5.0], [s, c, 0, -3], [0, 0, 1, 2], [0, 0, 0, 1]])
    scan = Scan(rng.integers(0, 9, (5, 6, 7)), AFFINE)
    flipped = reorient(scan, codes)
    assert flipped.voxels.shape != (5, 6, 7) or codes == "LPS"
    found = on_grid(Scan(flipped.voxels, turn @ flipped.affine), scan.voxels.shape, turn @ scan.affine, "x")
    assert np.array_equal(found, scan.voxels)


def shifted(mm):
    moved = AFFINE.copy()
    moved[2, 3] += mm
    return moved


@pytest.mark.parametrize(
    ("shape", "affine", "reason"),
    [
        ((6, 5, 5), AFFINE, r"its \(6, 5, 5\) voxels are not the \(6, 5, 4\) of its reference; resample them by nearest"),
        ((6, 5, 4), shifted(0.33), r"its corners lie up to 0\.11 voxels away from those of its reference; resample"),
        ((6, 5, 4), AFFINE @ np.diag([1.03, 1, 1, 1]), "its corners lie up to 0.15 voxels away"),
    ],
)
def test_another_grid_is_refused(run, folder, shape, affine, reason):
    write(folder / "p" / "a_seg.nii.gz", bars(0, 10, 10, 20, 0, 0, shape=shape), affine)
    code, _, out = run(*BOTH)
    assert code == 3
    assert re.search(f"a: {folder}/p/a_seg.nii.gz: {reason}", out)


def test_headers_may_differ_by_rounding(run, folder):
    _, every, _ = run(*BOTH)
    write(folder / "p" / "a_seg.nii.gz", bars(0, 10, 10, 20, 0, 0), shifted(0.27))
    assert run(*BOTH)[:2] == (0, every)


# ---- label tables


@pytest.fixture
def oasis(rng):
    """A map of all 35 structures, in blocks."""
    return np.kron(rng.permutation(36).reshape(3, 3, 4), np.ones((4, 4, 4), int)).astype(np.int16)


def test_freesurfers_output_is_scored_against_neurites(run, folder, oasis):
    """The ids differ, one is .mgz, a cortex in parcels is the cortex; and every structure agrees."""
    table = read_table("seg35")
    freesurfer = np.array([0, *(s.freesurfer[0] for s in table.structures)])[oasis].astype(np.int32)
    freesurfer[freesurfer == 3] = 1005 + np.arange(np.sum(freesurfer == 3)) % 3
    nib.save(nib.MGHImage(freesurfer, AFFINE), folder / "aparc+aseg.mgz")
    write(folder / "seg35.nii.gz", oasis, AFFINE)
    pair = ("--pred={f}/aparc+aseg.mgz", "--ref={f}/seg35.nii.gz", "--ref-scheme=seg35")
    for labels, n in (("seg35", 35), ("seg33", 33), ("seg4", 4), ("brain", 1)):
        code, rows, _ = run(*pair, f"--labels={labels}", schemes=False)
        assert (code, len(rows)) == (0, n + 1)
        assert {row["dice"] for row in rows.values()} == {"1"} and {row["hd95"] for row in rows.values()} == {"", "0"}


def test_the_papers_comparison_with_synthseg(run, folder, oasis):
    """Its Table IV: 32 channels, the background and 31 structures; SynthSeg has neither vessels nor choroid plexus."""
    freesurfer = np.array([0, *(s.freesurfer[0] for s in read_table("seg35").structures)])[oasis]
    write(folder / "synthseg.nii.gz", np.where(np.isin(freesurfer, (30, 31, 62, 63)), 24, freesurfer).astype(np.int16), AFFINE)
    write(folder / "seg35.nii.gz", oasis, AFFINE)
    flags = ("--pred={f}/synthseg.nii.gz", "--ref={f}/seg35.nii.gz", "--pred-scheme=synthseg", "--ref-scheme=seg35", "--labels=seg35")
    code, rows, out = run(*flags, schemes=False)
    assert (code, rows) == (2, {})
    assert out == (
        "error: --pred-scheme synthseg has no Left vessel, Left choroid plexus, Right vessel, Right choroid plexus; leave out what cannot "
        "be compared with --exclude 18,19,34,35, or choose other --labels\n"
    )
    code, rows, out = run(*flags, "--exclude=18,19,34,35", schemes=False)
    assert (code, len(rows)) == (0, 32)
    # What SynthSeg calls CSF, and the reference vessel and plexus, is background in one and is not erased from the other.
    block = 64
    assert float(rows["seg35", "0"]["dice"]) == pytest.approx(2 * block / (block + 5 * block), rel=1e-5)
    assert {row["dice"] for (_, id), row in rows.items() if id != "0"} == {"1"}
    assert re.search(r"mean of 31 structures +1\.000", out)
    assert re.search(r"and background +0\.979", out)


# ---- arrays that never were files


def test_arrays_in_class_numbers_make_the_same_table(run, folder):
    """What a command that segments and scores in one go needs."""
    run(*BOTH)
    arrays = {"a": (bars(0, 1, 1, 2, 0, 0), bars(0, 1, 2, 2, 0, 0)), "b": (bars(1, 1, 0, 2, 2, 0), bars(1, 1, 0, 0, 0, 3))}
    results = {subject: score(*pair, 4, (2.0, 2.0, 3.0)) for subject, pair in arrays.items()}
    write_scores(folder / "again.tsv", comparison(*[str(folder / "mine.tsv")] * 3), results)
    assert (folder / "again.tsv").read_bytes() == (folder / "out.tsv").read_bytes()


# ---- refusals


@pytest.mark.parametrize(
    ("flags", "reason"),
    [
        (("--pred={f}/p",), "--pred and --ref are both needed, two files or two folders; or a list, --pairs"),
        ((*BOTH, "--pairs=x.csv"), "--pairs: lists both sides; leave --pred and --ref out"),
        (("--pairs={f}/none.csv",), "none.csv: no such file; check the path"),
        ((*BOTH, "--exclude=left blub"), r"has no 'left blub' \(did you mean 'left \[blob\]'\?\); give its ids, names or abbreviations"),
        ((*BOTH, "--exclude=7"), "has no '7'; give its"),
        ((*BOTH, "--exclude=10,20,5"), "nothing is left of label table"),
        ((*BOTH, "--metrics=dice,hd"), "argument --metrics: 'hd' is unknown, known are dice, hd95, assd, nsd; see"),
        ((*BOTH, "--tolerance=0"), "argument --tolerance: '0' is no distance; give millimetres above 0, e.g. 1; see"),
        ((*BOTH, "--tolerance=one"), "argument --tolerance: 'one' is no distance; give millimetres above 0"),
        ((*BOTH, "--labels=seg34"), "label table 'seg34' is unknown"),
        ((*BOTH, "--pred-scheme=seg35"), "has no FreeSurfer ids"),
        ((*BOTH, "--o=out.csv"), "argument --o: out.csv does not end in .tsv"),
        ((*BOTH, "--parts"), "unrecognized arguments: --parts .did you mean '--pairs'..; see brainseg evaluate --help"),
    ],
)
def test_refused_in_one_line(run, folder, flags, reason):
    mine = [f"--{name}={{f}}/mine.tsv" for name in ("pred-scheme", "ref-scheme", "labels")]
    code, rows, out = run(*mine, *flags, schemes=False)
    assert (code, rows, out.count("\n")) == (2, {}, 1)
    assert re.match(f"error: .*{reason}", out)


def test_a_file_of_the_users_is_not_written_over(run, folder):
    mine = (folder / "mine.tsv").read_text()
    code, _, out = run(*BOTH, "--o={f}/mine.tsv")
    assert code == 2 and "exists, and is no table of this command; move it away" in out and out.count("\n") == 1
    assert (folder / "mine.tsv").read_text() == mine
    (folder / "folder.tsv").mkdir()
    assert "is a folder" in run(*BOTH, "--o={f}/folder.tsv")[2]
    assert "is a file, and nothing can be written below it" in run(*BOTH, "--o={f}/mine.tsv/x.tsv")[2]
    assert [run(*BOTH)[0], run(*BOTH)[0]] == [0, 0]  # its own it is


def test_flags_of_the_other_way_are_refused(run):
    _, _, out = run(*BOTH, "--tta", "--split=val", "--manifest=people.tsv")
    assert "--manifest, --split, --tta: of no use without --checkpoint" in out
    _, _, out = run("--checkpoint=c", "--manifest=people.tsv", "--ref={f}/r", "--partial", schemes=False)
    assert "--ref, --partial: of no use with --checkpoint" in out


def test_a_side_that_has_nothing_of_what_is_compared(folder):
    (folder / "other.tsv").write_text("id\tname\tpartner\tfreesurfer\n1\tA\t1\t17\n")
    (folder / "target.tsv").write_text("id\tname\tpartner\tfreesurfer\n1\tB\t1\t18\n")
    with pytest.raises(
        InputError, match=r"the manifest's scheme .*other\.tsv has nothing of what is compared, .*target\.tsv; choose other --labels"
    ):
        comparison(*(str(folder / f"{name}.tsv") for name in ("target", "other", "target")), called=("", "the manifest's scheme"))


def row(dataset, subject, image, session=""):
    return Row(subject, session, Path(image), (), (), dataset, "test")


def test_scans_of_one_name_are_called_in_full():
    rows = [
        row("A", "01", "/a/T1.nii.gz"),
        row("B", "01", "/b/T1.nii.gz"),
        row("A", "02", "/a/scan.v1.nii", "x"),
        row("A", "02", "/a/scan.v2.nii", "x"),
    ]
    assert list(named(rows)) == ["A/01/T1.nii.gz", "B/01/T1.nii.gz", "02_x_scan.v1", "02_x_scan.v2"]
    assert list(named(rows).values()) == rows


def test_people_are_told_apart_by_data_set():
    rows = [row("A", "01", "/a/T1.nii.gz"), row("B", "01", "/b/T1.nii.gz"), row("B", "01", "/b/T1b.nii.gz")]
    assert seen_in_training({rows[0].hashed}, rows).startswith(
        "1 of 2 people were in the training data of the checkpoint or of what it began with: 01 (told by"
    )
    assert seen_in_training({"other"}, rows).startswith("0 of 2 people") and "does not say" in seen_in_training(set(), rows)
