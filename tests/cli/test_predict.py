"""The command on files: what is written for each kind of input, what is skipped, set aside or refused, and that it runs as a process."""

import csv
import errno
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from threading import Timer

import jax
import jax.numpy as jnp
import nibabel as nib
import numpy as np
import pytest

from brainseg_jax.cli.predict import main
from brainseg_jax.config.resolve import with_sources
from brainseg_jax.core.files import SEAL
from brainseg_jax.data import case_files
from brainseg_jax.data.case_files import Case
from brainseg_jax.data.labels import read_table, table_text
from brainseg_jax.data.manifest import Row
from brainseg_jax.data.nifti import read_labels
from brainseg_jax.data.nifti_write import write
from brainseg_jax.data.preprocess import spec
from brainseg_jax.inference import input_checks, segmentation, sliding_window
from brainseg_jax.inference import predictor as predictors
from brainseg_jax.inference.batch import prefetch
from brainseg_jax.inference.predictor import Predictor
from brainseg_jax.models import encoders
from brainseg_jax.pretrained import DEFAULT, NETWORKS
from brainseg_jax.qc import findings
from brainseg_jax.qc.report import read_case_records
from brainseg_jax.training.run_records import as_json
from brainseg_jax.weights import checkpoint

SPEC = spec("default", 4.0, (48, 48, 48))
AFFINE = np.array([[0, 0, 4, -74.5], [-4, 0, 0, 116.25], [0, 4, 0, -86], [0, 0, 0, 1.0]])
SHAPE = (40, 40, 40)


def head(seed=0):
    rng = np.random.default_rng(seed)
    at = (np.indices(SHAPE).reshape(3, -1).T - 19.5) / (15, 17, 14)
    radius = np.sqrt(np.sum(at**2, axis=1)).reshape(SHAPE)
    brain = np.where(radius < 0.6, 220, 80)
    return np.where(radius < 1, rng.normal(brain, 6), rng.normal(5, 1, SHAPE)).clip(0).astype(np.float32), radius < 0.6


@pytest.fixture
def networks(monkeypatch):
    """In place of checkpoints and networks: bright voxels are class 2 of the table, dim ones class 1."""
    four = read_table("seg4")._replace(name="four")
    state = {"by": Predictor((), SPEC, four, four, 0.5, "gaussian", ()), "asked": [], "segmented": 0}

    def predictor(checkpoints):
        state["asked"].append(list(checkpoints))
        return state["by"]

    def segment(models, volume, *, overlap, blend, flip, each):
        state["segmented"] += 1
        v = np.asarray(volume)[..., 0]
        classes = np.where(v > 0.7, 2, np.where(v > 0.15, 1, 0))
        probabilities = jax.nn.one_hot(classes, len(state["by"].table.structures) + 1) * 0.8 + 0.04
        each(slice(0, len(v)), probabilities)
        return sliding_window.Segmentation(classes.astype(np.uint8), np.asarray(probabilities.sum((0, 1, 2)), np.float64))

    monkeypatch.setattr(predictors, "predictor", predictor)
    monkeypatch.setattr(sliding_window, "segment", segment)
    return state


@pytest.fixture
def run(networks, tmp_path, capsys):
    """`run("--i={f}/x", …)`: exit code and what was printed to both streams; {f} is the test's folder, which has a checkpoint, net."""
    (tmp_path / "net").mkdir()
    (tmp_path / "net" / SEAL).write_text("{}")

    def run(*flags, checkpoint=str(tmp_path / "net")):
        code = main([*(flag.replace("{f}", str(tmp_path)) for flag in flags), *[f"--checkpoint={checkpoint}"] * bool(checkpoint)])
        printed = capsys.readouterr()
        return code, printed.out, printed.err

    return run


@pytest.fixture
def scans(tmp_path):
    """A folder of three scans, one of them deeper, one .mgz."""
    folder = tmp_path / "scans"
    write(folder / "a.nii.gz", head(0)[0], AFFINE)
    write(folder / "b.mgz", head(1)[0], AFFINE)
    write(folder / "deep" / "c.nii", head(2)[0], AFFINE)
    return folder


def files(folder):
    return sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())


def table(file):
    with file.open(newline="") as stream:
        return list(csv.DictReader(stream, delimiter="," if file.suffix == ".csv" else "\t"))


# ---- what is written


def test_one_scan_to_one_file(run, networks, tmp_path):
    voxels, brain = head()
    write(tmp_path / "a.nii.gz", voxels, AFFINE)
    code, out, err = run("--i={f}/a.nii.gz", "--o={f}/out/seg.nii.gz", "--vol={f}/v.csv", checkpoint="one,two")
    assert (code, err) == (0, "") and out.endswith(f"out/seg.nii.gz: 1 segmented\n{tmp_path}/v.csv: volumes of 1\n")
    assert networks["asked"] == [["one", "two"]]
    assert files(tmp_path / "out") == ["seg.json", "seg.nii.gz", "seg.tsv"]
    scan, labels = nib.load(tmp_path / "a.nii.gz"), nib.load(tmp_path / "out" / "seg.nii.gz")
    assert labels.affine.tobytes() == scan.affine.tobytes() and labels.shape == scan.shape and labels.get_data_dtype() == np.uint8
    found = np.asarray(labels.dataobj)
    assert 2 * ((found == 2) & brain).sum() / ((found == 2).sum() + brain.sum()) > 0.97
    rows = table(tmp_path / "v.csv")
    assert list(rows[0]) == ["subject", "session", "scan", "structure", "id", "voxel_ml", "soft_ml"]
    assert [(r["subject"], r["session"], r["scan"], r["structure"], r["id"]) for r in rows] == [
        ("a", "", "a.nii.gz", s.name, str(s.id)) for s in read_table("seg4").structures
    ]
    # Voxels of 64 mm³; of each class's voxels 0.84 belong to it, and 0.04 of all others.
    counts = np.bincount(found.ravel(), minlength=5)[1:]
    np.testing.assert_allclose([float(r["voxel_ml"]) for r in rows], counts * 0.064, rtol=1e-6)
    inside = 0.8 * counts * 0.064 + 0.04 * 48**3 * 0.064
    np.testing.assert_allclose([float(r["soft_ml"]) for r in rows], inside, rtol=0.02)
    names = table(tmp_path / "out" / "seg.tsv")
    assert list(names[0]) == ["index", "name", "abbreviation", "color"] and names[1]["index"] == "2" and names[0]["color"] == "#cd3e4e"


def test_what_there_is_to_say_of_a_scan_is_said_and_kept(run, tmp_path):
    """And a scan in microns, whose s-form leads to a template, has the volumes of the head, on its own grid."""
    voxels, _ = head()
    write(tmp_path / "plain.nii.gz", voxels, AFFINE)
    stretched = np.diag([1120, 1160, 1200, 1]) @ AFFINE
    image = nib.Nifti1Image(np.where(np.indices(SHAPE)[0] < 2, np.nan, voxels), stretched)
    image.set_qform(np.diag([1000, 1000, 1000, 1]) @ AFFINE, 1)
    image.set_sform(stretched, 4)
    image.header.set_xyzt_units("micron")
    nib.save(image, tmp_path / "odd.nii.gz")
    assert run("--i={f}/plain.nii.gz", "--o={f}/out")[0] == 0
    for times in ("", "once more, from the sidecar"):
        code, out, err = run("--i={f}/odd.nii.gz", "--o={f}/out")
        assert (code, err) == (0, "") and out.count("warning: ") == 2, times
        assert f"warning: {tmp_path}/odd.nii.gz: its s-form (code 4) leads to a template" in out and "5% of its voxels are NaN" in out
    plain, odd = (json.loads((tmp_path / "out" / f"{name}_seg.json").read_text()) for name in ("plain", "odd"))
    assert plain["Remarks"] == [] and len(odd["Remarks"]) == 2
    assert [v["voxel_ml"] for v in odd["Volumes"]] == pytest.approx([v["voxel_ml"] for v in plain["Volumes"]], rel=1e-2)
    labels, scan = nib.load(tmp_path / "out" / "odd_seg.nii.gz"), nib.load(tmp_path / "odd.nii.gz")
    assert labels.affine.tobytes() == scan.affine.tobytes() and labels.get_qform().tobytes() == scan.get_qform().tobytes()
    assert labels.header.get_xyzt_units()[0] == "micron"


def test_a_folder(run, networks, scans, tmp_path):
    code, out, _ = run("--i={f}/scans", "--o={f}/out", "--vol={f}/out/v.tsv", "--ids=table")
    assert code == 0 and "segmenting scans: 3/3" in out and "out: 3 segmented\n" in out
    assert files(tmp_path / "out") == [
        *("a_seg.json", "a_seg.nii.gz", "b_seg.json", "b_seg.mgz", "deep/c_seg.json", "deep/c_seg.nii.gz", "seg_labels.tsv", "v.tsv")
    ]
    assert [row["scan"] for row in table(tmp_path / "out" / "v.tsv")[::4]] == ["a.nii.gz", "b.mgz", "c.nii"]
    for scan, labels in (("b.mgz", "b_seg.mgz"), ("deep/c.nii", "deep/c_seg.nii.gz")):
        ours, theirs = nib.load(tmp_path / "out" / labels), nib.load(scans / scan)
        assert ours.affine.tobytes() == theirs.affine.tobytes() and ours.shape == theirs.shape


def test_what_stands_beside_the_scans_is_not_segmented_again(run, networks, scans):
    for _ in range(2):
        assert run("--i={f}/scans", "--o={f}/scans", "--post")[0] == 0
    assert networks["segmented"] == 3 and "a_seg_seg.nii.gz" not in files(scans)


def test_soft_maps(run, scans, tmp_path):
    assert run("--i={f}/scans/a.nii.gz", "--o={f}/out", "--post")[0] == 0
    soft, labels = nib.load(tmp_path / "out" / "a_post.nii.gz"), nib.load(tmp_path / "out" / "a_seg.nii.gz")
    assert soft.shape == (*SHAPE, 5) and soft.affine.tobytes() == labels.affine.tobytes()
    np.testing.assert_allclose(soft.get_fdata().sum(-1), 1, atol=5 * 1.5 / 255)
    assert (soft.get_fdata().argmax(-1) == np.asarray(labels.dataobj)).mean() > 0.999
    assert json.loads((tmp_path / "out" / "a_post.json").read_text())["LabelMap"] == ["BG", "Ctx", "SGM", "WM", "CSF"]


def test_bids(run, scans, tmp_path):
    raw = tmp_path / "raw"
    for name in ("sub-1/ses-a/anat/sub-1_ses-a_run-1_T1w", "sub-2/anat/sub-2_T1w"):
        (raw / name).parent.mkdir(parents=True)
        shutil.copy(scans / "a.nii.gz", raw / f"{name}.nii.gz")
    code, *_ = run("--i={f}/raw", "--o={f}/raw/derivatives/us", "--post", "--vol={f}/raw/derivatives/us/volumes.tsv")
    out = raw / "derivatives" / "us"
    one, two = "sub-1/ses-a/anat/sub-1_ses-a_run-1_seg-four", "sub-2/anat/sub-2_seg-four"
    ends = ("dseg.json", "dseg.nii.gz", "dseg.tsv", "probseg.json", "probseg.nii.gz")
    assert code == 0
    assert files(out) == ["dataset_description.json", *(f"{name}_{end}" for name in (one, two) for end in ends), "volumes.tsv"]
    described = json.loads((out / "dataset_description.json").read_text())
    assert described["DatasetType"] == "derivative" and described["GeneratedBy"][0]["Name"] == "brainseg_jax"
    assert described["DatasetLinks"] == {"raw": "../.."} and described["BIDSVersion"]
    about = json.loads((out / f"{one}_dseg.json").read_text())
    assert about["SpatialReference"] == "bids:raw:sub-1/ses-a/anat/sub-1_ses-a_run-1_T1w.nii.gz" and about["Sources"] == [
        about["SpatialReference"]
    ]
    assert [row["index"] for row in table(out / f"{two}_dseg.tsv")] == ["1", "2", "3", "4"]
    assert {(row["subject"], row["session"]) for row in table(out / "volumes.tsv")} == {("sub-1", "ses-a"), ("sub-2", "")}
    (out / "dataset_description.json").write_text('{"Name": "theirs"}')
    assert run("--i={f}/raw", "--o={f}/raw/derivatives/us")[0] == 0
    assert json.loads((out / "dataset_description.json").read_text()) == {"Name": "theirs"}


def test_a_bids_data_set_with_odd_scans(run, scans, tmp_path):
    """One as .nii and as .nii.gz, one after a contrast agent, a link whose content was not fetched: the others are segmented."""
    for name in ("1/anat/sub-1_T1w.nii.gz", "1/anat/sub-1_ce-gd_T1w.nii.gz", "2/anat/sub-2_T1w.nii", "2/anat/sub-2_T1w.nii.gz"):
        (tmp_path / f"raw/sub-{name}").parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(scans / ("a.nii.gz" if name.endswith(".gz") else "deep/c.nii"), tmp_path / f"raw/sub-{name}")
    (tmp_path / "raw/sub-3/anat").mkdir(parents=True)
    (tmp_path / "raw/sub-3/anat/sub-3_T1w.nii.gz").symlink_to("/nowhere/sub-3_T1w.nii.gz")
    code, out, _ = run("--i={f}/raw", "--o={f}/out")
    assert code == 3 and "1 segmented\ncontrast-enhanced scans left out: 1; --contrast-enhanced takes them too\n" in out
    reasons = [(row["subject"], row["reason"].partition(": ")[2]) for row in table(tmp_path / "out" / "failures.csv")]
    same = "would have the same label map; rename or remove one of the two"
    assert reasons == [
        ("sub-2", f"{tmp_path}/raw/sub-2/anat/sub-2_T1w.nii.gz {same}"),
        ("sub-2", f"{tmp_path}/raw/sub-2/anat/sub-2_T1w.nii {same}"),
        ("sub-3", "its content was not fetched, it is a link to nothing; get it, e.g. with datalad get"),
    ]
    code, out, _ = run("--i={f}/raw", "--o={f}/out", "--contrast-enhanced")
    assert code == 3 and "1 segmented, 1 were done before\n" in out and "left out" not in out
    assert len([name for name in files(tmp_path / "out") if name.endswith(".nii.gz")]) == 2


@pytest.mark.parametrize(
    ("flags", "what"),
    [
        (("--vol={f}/out/failures.csv",), "why scans could not be segmented"),
        (("--vol={f}/out/../out/failures.csv",), "why scans could not be segmented"),
        (("--vol={f}/out/failures.csv", "--part=1/2"), "why scans could not be segmented"),
        (("--vol={f}/out/failures_part-2-of-2.csv",), "why scans could not be segmented"),
        (("--vol={f}/out/seg_labels.tsv",), "the names of structures"),
    ],
)
def test_volumes_are_not_written_over_another_table_of_the_run(run, scans, tmp_path, flags, what):
    code, _, err = run("--i={f}/scans", "--o={f}/out", *flags)
    assert code == 2 and err.count("\n") == 1 and f"is the file that says {what}; give another name, e.g. " in err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["sub-1/anat/sub-1_seg-four_dseg.tsv", "sub-1/anat/../anat/sub-1_seg-four_dseg.tsv"])
def test_volumes_are_not_written_over_names_of_a_bids_data_set(run, scans, tmp_path, name):
    (tmp_path / "raw/sub-1/anat").mkdir(parents=True)
    shutil.copy(scans / "a.nii.gz", tmp_path / "raw/sub-1/anat/sub-1_T1w.nii.gz")
    code, _, err = run("--i={f}/raw", "--o={f}/out", f"--vol={{f}}/out/{name}")
    assert code == 2 and err.count("\n") == 1 and "is the file that says the names of structures; give another name" in err
    assert not (tmp_path / "out").exists()


def test_a_table_of_volumes_elsewhere_may_have_any_name(run, scans, tmp_path):
    assert run("--i={f}/scans", "--o={f}/out", "--vol={f}/failures.csv")[0] == 0
    assert (tmp_path / "failures.csv").read_text().startswith("subject,session,scan,structure")


def test_what_is_no_file_or_can_be_none_does_not_end_a_list(run, scans, tmp_path):
    os.mkfifo(tmp_path / "pipe.nii")
    lines = ["subject,image", f"{'x' * 300},scans/a.nii.gz", f"b,scans/{'y' * 300}.nii", "c,scans/deep/c.nii", "d,pipe.nii"]
    (tmp_path / "list.csv").write_text("\n".join(lines))
    code, out, err = run("--i={f}/list.csv", "--o={f}/out")
    assert code == 3 and "2 segmented" in out and "2 of 4 scans could not be segmented" in err and "File name too long" in err
    assert "pipe.nii: is a pipe or device" in err


def test_ids(run, networks, scans, tmp_path):
    networks["by"] = networks["by"]._replace(table=read_table("seg33"))
    for ids, value in (([], 3), (["--ids=freesurfer"], 3), (["--ids=table"], 2)):
        assert run("--i={f}/scans/a.nii.gz", "--o={f}/out", *ids)[0] == 0
        assert set(np.unique(read_labels(tmp_path / "out" / "a_seg.nii.gz").voxels)) == {0, 2 if value == 3 else 1, value}
    networks["by"] = networks["by"]._replace(table=read_table("seg4"))
    code, _, err = run("--i={f}/scans/a.nii.gz", "--o={f}/out", "--ids=freesurfer")
    assert code == 2 and err.count("\n") == 1 and "has 2 FreeSurfer ids, not one; write the table's own ids" in err


# ---- several images a subject


@pytest.fixture
def two(networks, scans, tmp_path):
    """Networks of two images, and a folder with the second of each of the three scans."""
    networks["by"] = networks["by"]._replace(channels=2, called=("T1w", "FLAIR"))
    shutil.copytree(scans, tmp_path / "flair")
    return tmp_path


def test_a_folder_beside_a_folder_and_a_change_in_it(run, networks, two):
    flags = ("--i={f}/scans", "--also={f}/flair", "--o={f}/out")
    assert run(*flags)[0] == 0 and networks["segmented"] == 3
    told = json.loads((two / "out" / "deep" / "c_seg.json").read_text())
    assert told["Sources"] == [str(two / "scans" / "deep" / "c.nii"), str(two / "flair" / "deep" / "c.nii")]
    assert told["SpatialReference"] == told["Sources"][0]
    assert "3 were done before" in run(*flags)[1]
    os.utime(two / "flair" / "deep" / "c.nii", ns=(1, 1))
    assert "1 segmented, 2 were done before" in run(*flags)[1] and networks["segmented"] == 4


def test_a_second_image_that_is_missing_or_elsewhere_is_one_bad_scan(run, two):
    (two / "flair" / "b.mgz").unlink()
    away = AFFINE.copy()
    away[:3, 3] += 400
    write(two / "flair" / "a.nii.gz", head(0)[0], away)
    code, out, err = run("--i={f}/scans", "--also={f}/flair", "--o={f}/out")
    assert code == 3 and "1 segmented" in out
    assert "flair/b.mgz: no such file" in err
    assert "flair/a.nii.gz: shares only 0% of its field of view" in err and "register the two first" in err


@pytest.mark.parametrize(
    ("flags", "channels", "message"),
    [
        (
            (),
            2,
            r"the network was trained on 2 images a subject \(T1w, FLAIR, in this order\), and 1 is given; give the others with --also",
        ),
        (("--also={f}/flair",), 1, r"the network was trained on one image a subject, and 2 are given; leave the others out"),
        (("--also={f}/flair", "--also={f}/scans/deep"), 2, "and 3 are given; leave the others out"),
        (("--also={f}/none",), 2, "--also .*none: no such folder"),
    ],
)
def test_another_number_of_images_than_the_networks_is_one_line(run, networks, two, flags, channels, message):
    networks["by"] = networks["by"]._replace(channels=channels, called=networks["by"].called * (channels > 1))
    code, _, err = run("--i={f}/scans", *flags, "--o={f}/out")
    assert code == 2 and re.search(message, err) and err.count("\n") == 1 and not (two / "out").exists()


# ---- what is done, and what is not


def test_what_is_done_is_skipped_and_still_in_the_table(run, networks, scans, tmp_path):
    flags = ("--i={f}/scans", "--o={f}/out", "--vol={f}/v.tsv")
    run(*flags)
    before = (tmp_path / "v.tsv").read_bytes()
    (tmp_path / "v.tsv").unlink()
    assert "out: 0 segmented, 3 were done before\n" in run(*flags)[1]
    assert networks["segmented"] == 3 and (tmp_path / "v.tsv").read_bytes() == before
    assert "out: 3 segmented\n" in run(*flags, "--overwrite")[1]


def rewrite(file, old, new):
    file.write_text(file.read_text().replace(old, new))


@pytest.mark.parametrize(
    ("change", "again"),
    [
        (lambda run, scans, out, networks: os.utime(scans / "a.nii.gz", (1, 1)), 1),
        (lambda run, scans, out, networks: write(scans / "a.nii.gz", head(5)[0], AFFINE), 1),
        (lambda run, scans, out, networks: (out / "b_seg.mgz").unlink(), 1),
        (lambda run, scans, out, networks: (out / "b_seg.json").write_text("{"), 1),
        (lambda run, scans, out, networks: rewrite(out / "b_seg.json", '"Score"', '"Scope"'), 1),
        (lambda run, scans, out, networks: rewrite(out / "b_seg.json", '"voxel_ml"', '"voxel"'), 1),
        (lambda run, scans, out, networks: (out.parent / "net" / SEAL).write_text("[]"), 3),
        (lambda run, scans, out, networks: None, 0),
    ],
    ids=["touched", "another scan", "output removed", "sidecar damaged", "no score", "no volume", "other checkpoint", "nothing"],
)
def test_what_was_made_otherwise_is_made_again(run, networks, scans, tmp_path, change, again):
    flags = ("--i={f}/scans", "--o={f}/out")
    run(*flags)
    change(run, scans, tmp_path / "out", networks)
    assert run(*flags)[0] == 0
    assert networks["segmented"] == 3 + again


def test_soft_maps_that_are_missing_are_made(run, networks, scans, tmp_path):
    run("--i={f}/scans", "--o={f}/out")
    run("--i={f}/scans", "--o={f}/out", "--post")
    assert networks["segmented"] == 6 and (tmp_path / "out" / "deep" / "c_post.nii.gz").exists()
    run("--i={f}/scans", "--o={f}/out")
    run("--i={f}/scans", "--o={f}/out", "--tta")
    assert networks["segmented"] == 9


@pytest.mark.parametrize("qc", [False, True])
@pytest.mark.parametrize("harm", [lambda b: b"", lambda b: b[:-9], lambda b: b[:40] + bytes([b[40] ^ 1]) + b[41:], lambda b: b"text"])
def test_a_label_map_that_was_damaged_afterwards_is_noticed(run, networks, scans, tmp_path, harm, qc):
    """And is left as it is: part of it may be somebody's work."""
    flags = QC if qc else QC[:2]
    run(*flags)
    file = tmp_path / "out" / "a_seg.nii.gz"
    harmed = harm(file.read_bytes())
    file.write_bytes(harmed)
    code, out, err = run(*flags)
    assert (
        code == 3 and "1 of 3 scans could not be segmented" in err and f"\n{file}: " in err and err.endswith("; delete it and run again\n")
    )
    assert "dcm2niix" not in err and "0 segmented, 2 were done before" in out and networks["segmented"] == 3
    assert file.read_bytes() == harmed
    file.unlink()
    assert run(*flags)[0] == 0 and networks["segmented"] == 4


@pytest.mark.parametrize("harm", [lambda file: file.unlink(), lambda file: file.write_text(file.read_text()[:30])], ids=["gone", "cut off"])
def test_a_table_of_names_that_was_lost_is_written_again(run, networks, scans, tmp_path, harm):
    run(*QC[:2])
    names = tmp_path / "out" / "seg_labels.tsv"
    before = names.read_text()
    harm(names)
    assert run(*QC[:2])[0] == 0 and names.read_text() == before and networks["segmented"] == 3


def test_soft_maps_that_were_damaged_afterwards_are_noticed(run, networks, scans, tmp_path):
    flags = ("--i={f}/scans/a.nii.gz", "--o={f}/out", "--post")
    run(*flags)
    assert run(*flags)[0] == 0 and networks["segmented"] == 1
    (tmp_path / "out" / "a_post.nii.gz").write_bytes(b"")
    code, _, err = run(*flags)
    assert code == 3 and err.endswith("a_post.nii.gz: is not as it was written; delete it and run again\n")
    assert run(*flags[:2])[0] == 0 and run(*flags, "--overwrite")[0] == 0


def test_somebody_elses_file_is_not_overwritten(run, scans, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "a_seg.nii.gz").write_text("by hand")
    os.utime(tmp_path / "out" / "a_seg.nii.gz", (0, 0))
    code, _, err = run("--i={f}/scans", "--o={f}/out")
    said = "a_seg.nii.gz: exists, and without a_seg.json is not from this command; move it away, or add --overwrite"
    assert code == 3 and said in err
    assert (tmp_path / "out" / "a_seg.nii.gz").read_text() == "by hand" and (tmp_path / "out" / "b_seg.mgz").exists()
    assert run("--i={f}/scans", "--o={f}/out", "--overwrite")[0] == 0


def test_what_another_process_is_about_to_finish_is_nobody_elses(run, scans, tmp_path):
    """Label maps are written before their sidecars, which are waited for."""
    flags = ("--i={f}/scans/a.nii.gz", "--o={f}/out")
    run(*flags)
    sidecar, labels = tmp_path / "out" / "a_seg.json", tmp_path / "out" / "a_seg.nii.gz"
    sidecar.rename(tmp_path / "written")
    os.utime(labels)
    Timer(0.5, lambda: (tmp_path / "written").rename(sidecar)).start()
    assert run(*flags)[0] == 0 and sidecar.exists()


def test_one_bad_scan_does_not_lose_the_others(run, networks, scans, tmp_path):
    nib.save(nib.Nifti1Image(np.stack([head()[0]] * 2, -1), AFFINE), scans / "series.nii.gz")
    write(scans / "noise.nii.gz", np.random.default_rng(0).random(SHAPE), AFFINE)
    write(scans / "ct.nii.gz", np.where(head()[1], 40, -1000).astype(np.int16), AFFINE)
    write(scans / "tiny.nii.gz", head()[0][:10], AFFINE)
    (scans / "damaged.nii.gz").write_bytes((scans / "a.nii.gz").read_bytes()[:-50])
    expected = {"series": "series of volumes", "noise": "noise", "ct": "CT", "tiny": "too little", "damaged": "damaged"}
    code, _, err = run("--i={f}/scans", "--o={f}/out", "--vol={f}/v.tsv")
    reasons = {row["subject"]: row["reason"] for row in table(tmp_path / "out" / "failures.csv")}
    assert code == 3 and set(reasons) == set(expected)
    for subject, words in expected.items():
        assert words in reasons[subject] and "\n" not in reasons[subject] and str(scans / subject) in reasons[subject]
    assert not [name for name in files(tmp_path / "out") if name.split("_")[0] in reasons]
    assert [row["subject"] for row in table(tmp_path / "v.tsv")[::4]] == ["a", "b", "c"]
    assert f"5 of 8 scans could not be segmented, reasons in {tmp_path}/out/failures.csv:\n" in err
    for name in reasons:
        (scans / f"{name}.nii.gz").unlink()
    assert run("--i={f}/scans", "--o={f}/out")[1].endswith("out: 0 segmented, 3 were done before\n")
    assert not (tmp_path / "out" / "failures.csv").exists()


def test_a_scan_without_a_brain_leaves_nothing(run, networks, scans, tmp_path, monkeypatch):
    monkeypatch.setattr(input_checks, "LEAST_ML", 1e6)
    code, _, err = run("--i={f}/scans/a.nii.gz", "--o={f}/out", "--post")
    assert code == 3 and "no brain was found in it" in err and files(tmp_path / "out") == ["failures.csv"]


def test_a_list_with_a_missing_file(run, scans, tmp_path):
    (tmp_path / "list.csv").write_text("subject,session,image\np1,s1,scans/a.nii.gz\np2,s1,scans/none.nii.gz\n")
    code, _, err = run("--i={f}/list.csv", "--o={f}/out")
    assert code == 3 and "none.nii.gz: no such file" in err and "p1_s1_a_seg.nii.gz" in files(tmp_path / "out")


def test_hostile_names_are_text_in_every_table(run, scans, tmp_path):
    """No cell is a formula, and a file name whose bytes are no text is no reason to stop."""
    (tmp_path / "list.csv").write_text("subject,image\n=1+1,scans/a.nii.gz\n@x,scans/none.nii.gz\n-7,scans/b.mgz\n")
    assert run("--i={f}/list.csv", "--o={f}/out", "--vol={f}/v.csv")[0] == 3
    assert [row["subject"] for row in table(tmp_path / "v.csv")[::4]] == ["'=1+1", "-7"]
    assert [row["subject"] for row in table(tmp_path / "out" / "failures.csv")] == ["'@x"]
    name = os.fsdecode(b"caf\xe9.nii.gz")
    (tmp_path / "bytes").mkdir()
    shutil.copy(scans / "a.nii.gz", tmp_path / "bytes" / name)
    (tmp_path / "bytes" / f"x{name}").write_bytes(b"no scan")
    code, _, err = run("--i={f}/bytes", "--o={f}/o", "--vol={f}/w.csv", "--qc={f}/o/qc.html")
    assert code == 3 and "UnicodeEncodeError" not in err
    assert [row["scan"] for row in table(tmp_path / "w.csv")[::4]] == ["caf\\udce9.nii.gz"]


def test_what_nobody_expected_is_set_aside_too(run, scans, tmp_path, monkeypatch):
    def fails(scan, *_):
        raise ValueError("a\nb")

    monkeypatch.setattr(segmentation, "prepare", fails)
    code, _, err = run("--i={f}/scans", "--o={f}/out")
    assert code == 3 and "a.nii.gz: unexpected ValueError: a b; please report it" in err


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (OSError(errno.ENAMETOOLONG, "File name too long", "x" * 300), "xx: File name too long; check the place"),
        (PermissionError(errno.EACCES, "Permission denied", "x"), "b.mgz: x: Permission denied; check the place and its permissions"),
        (RuntimeError("RESOURCE_EXHAUSTED: out of memory"), "b.mgz: not enough memory; close other programs"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_one_scan_that_cannot_be_written_does_not_lose_the_others(run, scans, tmp_path, monkeypatch, error, words):
    from brainseg_jax.data import nifti_write

    write_like = nifti_write.write_like

    def fails(path, *others):
        if path.name == "b_seg.mgz":
            raise error
        write_like(path, *others)

    monkeypatch.setattr(nifti_write, "write_like", fails)
    code, out, err = run(*QC, "--vol={f}/v.tsv")
    assert code == 3 and words in err and "volumes of 2\n" in out
    assert [row["subject"] for row in table(tmp_path / "v.tsv")[::4]] == ["a", "c"]
    assert page(tmp_path / "out" / "qc.html")[0] == ["a_seg.nii.gz", "deep/c_seg.nii.gz"]


def test_a_subject_of_300_letters_has_a_label_map_too(run, scans, tmp_path):
    (tmp_path / "list.csv").write_text(f"subject,image\n{300 * 'x'},scans/a.nii.gz\ny,scans/b.mgz\n")
    code, out, err = run("--i={f}/list.csv", "--o={f}/out", "--vol={f}/v.tsv", "--qc={f}/out/qc.html", "--post")
    assert (code, err) == (0, "") and "out: 2 segmented\n" in out
    assert [row["subject"] for row in table(tmp_path / "v.tsv")[::4]] == [300 * "x", "y"] and len(
        page(tmp_path / "out" / "qc.html")[0]
    ) == 2


def test_a_name_that_no_file_can_have_is_one_bad_scan(run, scans, tmp_path, monkeypatch):
    place = case_files.output_places

    def long(*given):
        first, second, third = place(*given)
        return first, second._replace(labels=second.labels.with_name(300 * "x" + ".nii.gz")), third

    monkeypatch.setattr(case_files, "output_places", long)
    code, out, err = run(*QC)
    assert code == 3 and "out: 2 segmented\n" in out and err.count("\n") == 2 and "File name too long" in err


def test_a_full_disk_ends_the_run_and_leaves_no_part_of_a_file(run, scans, tmp_path, monkeypatch):
    from brainseg_jax.core.files import atomic_write
    from brainseg_jax.data import nifti_write

    def full(path, *_):
        with atomic_write(path) as part:
            part.write_text("half")
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(nifti_write, "write_like", full)
    code, _, err = run("--i={f}/scans", "--o={f}/out")
    said = re.fullmatch(r"error: (.*\.nii\.gz): No space left on device; check the place, its permissions and room\n", err)
    assert code == 2 and Path(said[1]).is_relative_to(tmp_path / "out")
    assert files(tmp_path / "out") == ["seg_labels.tsv"]


def test_a_disk_that_fills_up_before_the_sidecar_leaves_no_label_map_without_one(run, scans, tmp_path, monkeypatch):
    from brainseg_jax.inference import batch

    def full(path, _):
        raise OSError(28, "No space left on device", str(path))

    with monkeypatch.context() as patched:
        patched.setattr(batch, "write_json", full)
        assert run("--i={f}/scans/a.nii.gz", "--o={f}/out")[0] == 2
    assert files(tmp_path / "out") == ["seg_labels.tsv"]
    assert run("--i={f}/scans/a.nii.gz", "--o={f}/out")[0] == 0


# ---- parts


def test_parts_share_a_folder(run, networks, tmp_path):
    for i in range(8):
        write(tmp_path / "scans" / f"s{i}.nii.gz", head(i)[0], AFFINE)
    write(tmp_path / "scans" / "bad.nii.gz", head()[0][:10], AFFINE)
    codes = {run("--i={f}/scans", "--o={f}/out", "--vol={f}/out/v.tsv", f"--part={i}/3")[0] for i in (1, 2, 3)}
    assert codes == {0, 3} and networks["segmented"] == 8
    names = files(tmp_path / "out")
    assert [name for name in names if name.startswith("v")] == [f"v_part-{i}-of-3.tsv" for i in (1, 2, 3)]
    assert len([name for name in names if name.startswith("failures_part-")]) == 1
    parts = [row for i in (1, 2, 3) for row in table(tmp_path / "out" / f"v_part-{i}-of-3.tsv")]
    # The same command without --part makes the one table, and segments nothing.
    assert run("--i={f}/scans", "--o={f}/out", "--vol={f}/out/v.tsv")[0] == 3
    assert networks["segmented"] == 8
    assert sorted(map(str, parts)) == sorted(map(str, table(tmp_path / "out" / "v.tsv")))


# ---- the page


QC = ("--i={f}/scans", "--o={f}/out", "--qc={f}/out/qc.html")


def page(file):
    """The names of a page's cases, worst first, and its notes."""
    html = file.read_text()
    data = json.loads(re.search('<script type="application/json" id="data">(.*?)</script>', html, re.S)[1])
    return [case["name"] for case in data["cases"]], re.findall("<p class=note>(.*?)</p>", html)


def records(folder):
    return {record["name"]: record for record in read_case_records(sorted((folder / "qc").rglob("*.json")))}


def test_a_page(run, scans, tmp_path):
    code, out, err = run(*QC)
    assert (code, err) == (0, "") and out.endswith("out: 3 segmented\n" + f"{tmp_path}/out/qc.html: 3 cases, 3 with flags\n")
    assert [f for f in files(tmp_path / "out") if "qc" in f] == ["qc.html", "qc/a_seg_qc.json", "qc/b_seg_qc.json", "qc/deep/c_seg_qc.json"]
    names, (note,) = page(tmp_path / "out" / "qc.html")
    assert sorted(names) == ["a_seg.nii.gz", "b_seg.mgz", "deep/c_seg.nii.gz"]
    versions = rf"brainseg_jax [\d.]+, JAX {re.escape(jax.__version__)}"
    assert re.fullmatch(
        rf"4 structures \(four\) by {tmp_path}/net; {versions}: 3 cases, no cohort is known, so no volume has a z-score.", note
    )
    shown, told = records(tmp_path / "out")["deep/c_seg.nii.gz"], json.loads((tmp_path / "out" / "deep" / "c_seg.json").read_text())
    assert (shown["subject"], shown["session"]) == ("c", "")
    for values, volume in zip(shown["values"][1:], told["Volumes"], strict=True):
        assert [values[0], values[3]] == pytest.approx([volume["voxel_ml"], volume["soft_ml"]], rel=1e-3) and values[1:3] == [None, None]
    # Of each voxel the probabilities are 0.84 and four times 0.04.
    assert told["Entropy"] == pytest.approx(-0.84 * np.log(0.84) - 0.16 * np.log(0.04), abs=1e-4)
    assert {(kind, structure) for kind, structure, *_ in shown["flags"]} == {
        *(("absent", name) for name in ("White matter", "CSF")),
        ("entropy", "All structures"),
    }


def test_of_what_was_done_without_a_page_no_network_is_asked(run, networks, scans, tmp_path):
    """And its record is the same as if it had been made at once."""
    assert run(*QC)[0] == 0
    at_once = records(tmp_path / "out")
    shutil.rmtree(tmp_path / "out")
    assert run(*QC[:2])[0] == 0 and not (tmp_path / "out" / "qc").exists()
    assert networks["segmented"] == 6
    code, out, _ = run(*QC)
    assert code == 0 and networks["segmented"] == 6 and records(tmp_path / "out") == at_once
    assert out.startswith("label maps that are there already and are taken as they are for the QC report: 3\n")
    assert "out: 0 segmented, 3 were done before\n" in out


def test_a_label_map_that_was_corrected_is_shown_as_it_is_now(run, networks, scans, tmp_path):
    flags = (*QC, "--vol={f}/v.tsv")
    assert run(*flags)[0] == 0
    file = tmp_path / "out" / "a_seg.nii.gz"
    labels = read_labels(file)
    labels.voxels[20:] = 0
    write(file, labels.voxels.astype(np.uint8), labels.affine)
    assert run(*flags)[0] == 0 and networks["segmented"] == 3
    ml = np.bincount(labels.voxels.ravel(), minlength=3)[1:3] * 0.064
    assert [values[0] for values in records(tmp_path / "out")["a_seg.nii.gz"]["values"][1:3]] == pytest.approx(ml, rel=1e-3)
    assert [float(row["voxel_ml"]) for row in table(tmp_path / "v.tsv")[:2]] == pytest.approx(ml, rel=1e-3)
    labels.voxels[0, 0, 0] = 99
    write(file, labels.voxels.astype(np.uint8), labels.affine)
    write(tmp_path / "out" / "b_seg.mgz", labels.voxels[1:].astype(np.uint8), labels.affine)
    code, _, err = run(*QC)
    assert code == 3 and "a_seg.nii.gz: label table four does not have 99 (1 voxel)" in err
    assert "b_seg.mgz: lies on another grid than its scan; delete it, and it is made again" in err
    names, notes = page(tmp_path / "out" / "qc.html")
    assert names == ["deep/c_seg.nii.gz"] and notes[1].startswith("Not here, since they could not be segmented: 2 cases; failures*.csv")


def test_a_page_is_made_of_what_could_be_segmented(run, scans, tmp_path):
    write(scans / "tiny.nii.gz", head()[0][:10], AFFINE)
    assert run(*QC)[0] == 3
    names, notes = page(tmp_path / "out" / "qc.html")
    assert len(names) == 3 and len(notes) == 2 and notes[1].startswith("Not here, since they could not be segmented: 1 case;")
    shutil.copy(tmp_path / "out" / "failures.csv", tmp_path / "out" / "failures_part-1-of-2.csv")  # the same scan is counted once
    assert run(*QC)[0] == 3 and page(tmp_path / "out" / "qc.html") == (names, notes)
    for name in ("a.nii.gz", "b.mgz", "deep/c.nii"):
        (scans / name).unlink()
    assert run("--i={f}/scans", "--o={f}/none", "--qc={f}/none/qc.html")[0] == 3
    assert page(tmp_path / "none" / "qc.html") == ([], notes[1:])


def test_a_page_shows_no_label_map_that_is_no_longer_there(run, networks, scans, tmp_path):
    assert run(*QC)[0] == 0
    (tmp_path / "net" / SEAL).write_text("[]")
    assert run("--i={f}/scans/a.nii.gz", "--o={f}/out")[0] == 0
    assert run("--i={f}/scans/b.mgz", *QC[1:])[0] == 0
    names, notes = page(tmp_path / "out" / "qc.html")
    assert sorted(names) == ["b_seg.mgz", "deep/c_seg.nii.gz"] and "made since without --qc: 1 case." in notes[-1]
    assert networks["segmented"] == 5
    (tmp_path / "out" / "qc" / "b_seg_qc.json").write_text("{")
    assert run(*QC)[0] == 0 and len(page(tmp_path / "out" / "qc.html")[0]) == 3
    assert networks["segmented"] == 6  # c by the other checkpoint; of a and b the label maps are there


def test_cases_of_another_label_table_are_not_on_the_page(run, networks, scans, tmp_path):
    assert run(*QC)[0] == 0
    networks["by"] = networks["by"]._replace(table=read_table("seg33"))
    (tmp_path / "net" / SEAL).write_text("[]")
    assert run("--i={f}/scans/b.mgz", *QC[1:])[0] == 0
    names, notes = page(tmp_path / "out" / "qc.html")
    assert names == ["b_seg.mgz"] and "other structures" in notes[-1] and notes[-1].endswith("2 cases.")


def test_the_card_s_cohort(run, networks, scans, tmp_path):
    cohort = {s.name: [300.0, 30.0, 40] for s in read_table("seg4").structures[:2]}
    networks["by"] = networks["by"]._replace(cards=({}, {"cohort": {"four": cohort}}))
    assert run(*QC)[0] == 0
    shown = records(tmp_path / "out")["a_seg.nii.gz"]
    assert all(z is not None for *_, z, _ in shown["values"][:3]) and ("absent", "CSF") not in {tuple(f[:2]) for f in shown["flags"]}
    assert page(tmp_path / "out" / "qc.html")[1][0].endswith("3 cases, compared with a cohort of 40 people.")
    networks["by"] = networks["by"]._replace(cards=({"cohort": {"four": {name: [300.0, 30.0, 9] for name in cohort}}},))
    assert run(*QC, "--overwrite")[0] == 0
    assert "cohort of 9 people, too few for z-scores (20 are needed)." in page(tmp_path / "out" / "qc.html")[1][0]


def test_one_scan_and_bids_have_a_page_too(run, networks, scans, tmp_path):
    raw = tmp_path / "raw" / "sub-1" / "ses-a" / "anat" / "sub-1_ses-a_T1w.nii.gz"
    raw.parent.mkdir(parents=True)
    shutil.copy(scans / "a.nii.gz", raw)
    assert run("--i={f}/scans/a.nii.gz", "--o={f}/one/mine.nii.gz", "--qc={f}/one.html")[0] == 0
    assert page(tmp_path / "one.html")[0] == ["mine.nii.gz"] and (tmp_path / "one" / "qc" / "mine_qc.json").exists()
    for _ in range(2):
        assert run("--i={f}/raw", "--o={f}/bids", "--qc={f}/bids.html")[0] == 0
        assert page(tmp_path / "bids.html")[0] == ["sub-1/ses-a/anat/sub-1_ses-a_seg-four_dseg.nii.gz"]
    assert networks["segmented"] == 2 and len(networks["asked"]) == 2  # the second time the checkpoint is not even loaded
    assert [(r["subject"], r["session"]) for r in records(tmp_path / "bids").values()] == [("sub-1", "ses-a")]


def test_parts_share_a_page(run, networks, tmp_path):
    for i in range(5):
        write(tmp_path / "scans" / f"s{i}.nii.gz", head(i)[0], AFFINE)
    shown = []
    for i in (1, 2):
        assert run(*QC, f"--part={i}/2")[0] == 0
        shown.append(len(page(tmp_path / "out" / "qc.html")[0]))
    assert 0 < shown[0] < shown[1] == 5


def test_where_all_is_done_no_jax_is_imported(run, networks, scans, tmp_path):
    flags = [flag.replace("{f}", str(tmp_path)) for flag in (*QC, "--checkpoint={f}/net", "--vol={f}/v.tsv")]
    assert main(flags) == 0
    before = (tmp_path / "v.tsv").read_bytes(), page(tmp_path / "out" / "qc.html")
    (tmp_path / "v.tsv").unlink()
    (tmp_path / "out" / "qc.html").unlink()
    code = f"import sys; from brainseg_jax.cli.predict import main; assert main({flags!r}) == 0; assert 'jax' not in sys.modules"
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, ""), done.stderr
    assert "out: 0 segmented, 3 were done before\n" in done.stdout
    assert before == ((tmp_path / "v.tsv").read_bytes(), page(tmp_path / "out" / "qc.html"))


# ---- refusals


@pytest.mark.parametrize(
    ("flags", "reason"),
    [
        (("--o={f}/o",), "the following arguments are required: --i; see brainseg predict --help"),
        (("--i={f}/none", "--o={f}/o"), "none: no such file or folder; check the path"),
        (("--i={f}/scans", "--o={f}/o.nii"), "is the name of one file, and --i may hold many scans"),
        (("--i={f}/scans", "--o={f}/o", "--part=3/2"), "argument --part: 3/2 is no part; give i/N with i from 1 to N"),
        (("--i={f}/scans", "--o={f}/o", "--part=2"), "argument --part: 2 is no part; give i/N"),
        (("--i={f}/scans", "--o={f}/o", "--contrast-enhanced"), "--contrast-enhanced: tells scans of a BIDS data set apart by their names"),
        (("--i={f}/scans", "--o={f}/o", "--threads=0"), "argument --threads: 0 is no number of cores"),
        (("--i={f}/scans", "--o={f}/o", "--vol=v.txt"), "argument --vol: v.txt does not end in .tsv or .csv"),
        (("--i={f}/scans", "--o={f}/o", "--vol={f}/mine.tsv"), "mine.tsv: exists, and is no table of this command; move it away"),
        (("--i={f}/scans", "--o={f}/o", "--vol={f}/mine.html/v.tsv"), "mine.html is a file, and nothing can be written below it"),
        (("--i={f}/scans", "--o={f}/mine.html/o"), "mine.html is a file, and nothing can be written below it"),
        (("--i={f}/scans", "--o={f}/o", "--qc={f}/qc.htm"), "qc.htm does not end in .html, as a QC report does"),
        (("--i={f}/scans", "--o={f}/o", "--qc={f}/none/qc.html"), "there is no folder"),
        (("--i={f}/scans", "--o={f}/o", "--qc={f}/mine.html"), "mine.html: exists, and is no QC report of this command; move it away"),
        (("--i={f}/scans", "--o={f}/o", "--ids=mine"), "argument --ids: invalid choice: 'mine'"),
        (("--i={f}/scans", "--o={f}/o", "--task=fuor"), "--task 'fuor' is unknown (did you mean 'four'?)"),
    ],
)
def test_refused_in_one_line(run, scans, tmp_path, flags, reason):
    (tmp_path / "mine.html").write_text("<!doctype html>")
    (tmp_path / "mine.tsv").write_text("image\tlabels\n")
    code, out, err = run(*flags, checkpoint="net")
    assert (code, out, err.count("\n")) == (2, "", 1) and err.startswith("error: ") and reason in err
    assert not (tmp_path / "o").exists()


def test_nobody_elses_table_of_names_is_written_over(run, networks, scans, tmp_path):
    (tmp_path / "seg.tsv").write_text("my notes")
    os.utime(tmp_path / "seg.tsv", (0, 0))
    code, _, err = run("--i={f}/scans/a.nii.gz", "--o={f}/seg.nii.gz")
    assert code == 3 and "seg.tsv: exists, and without seg.json is not from this command; move it away, or add --overwrite" in err
    assert (tmp_path / "seg.tsv").read_text() == "my notes" and not (tmp_path / "seg.nii.gz").exists()
    assert run("--i={f}/scans/a.nii.gz", "--o={f}/seg.nii.gz", "--overwrite")[0] == 0


def test_what_looks_wrong_is_named_even_without_a_page(run, scans, tmp_path, monkeypatch):
    flags = ("--i={f}/scans", "--o={f}/out")
    assert "looks wrong" not in run(*flags)[1]
    told = json.loads((tmp_path / "out" / "a_seg.json").read_text())
    assert "White matter is absent." in told["Flags"] and 0 < told["Score"] < findings.SERIOUS
    monkeypatch.setattr(findings, "SERIOUS", 0.0)
    out = run(*flags)[1]
    assert f"looks wrong, or is of another kind than the network knows: {tmp_path}/out/a_seg.nii.gz, " in out and "--qc shows why" in out


def test_without_a_checkpoint_it_is_the_package_s_network(run, networks, scans, tmp_path):
    assert run("--i={f}/scans", "--o={f}/o", checkpoint="")[0] == 0
    assert networks["asked"] == [[str(DEFAULT)]] and "any.safetensors" in (tmp_path / "o" / "a_seg.json").read_text()


def test_a_network_of_the_package_is_asked_by_its_name(run, networks, scans, tmp_path):
    assert run("--i={f}/scans", "--o={f}/o", "--network=t1", checkpoint="")[0] == 0
    assert networks["asked"] == [[str(NETWORKS["t1"])]] and "t1.safetensors" in (tmp_path / "o" / "a_seg.json").read_text()
    code, _, err = run("--i={f}/scans", "--o={f}/p", "--network=any", "--checkpoint=mine", checkpoint="")
    assert code == 2 and "--network any and --checkpoint mine: two networks are named; leave one out" in err


def test_a_name_stands_for_a_network_wherever_it_is_given_and_its_maps_are_no_others(run, networks, scans, tmp_path, monkeypatch):
    for name in ("t1", "any"):
        assert run("--i={f}/scans", "--o={f}/o", checkpoint=name)[0] in (0, 3) and networks["asked"][-1] == [str(NETWORKS[name])]
    monkeypatch.chdir(tmp_path)
    (tmp_path / "t1").mkdir()  # a checkpoint of one's own that has the name
    (tmp_path / "t1" / SEAL).write_text("{}")
    run("--i={f}/scans", "--o={f}/p", checkpoint="t1")
    assert networks["asked"][-1] == ["t1"]


def test_only_one_scan_is_read_ahead():
    """Of many large scans two are in memory at most, in their order, and what fails is told where it is used."""
    log, used = [], []

    def read(case):
        log.append(case.row.subject)
        if case.row.subject == "2":
            raise ValueError("two")
        return 10 * case.row.subject

    cases = [Case(Row(str(n), "", Path(), (), (), "", ""), Path(), Path(), Path()) for n in range(5)]
    for n, (case, coming) in enumerate(prefetch(read, cases)):
        try:
            used.append((case.row.subject, coming.result()))
        except ValueError as error:
            used.append((case.row.subject, str(error)))
        assert len(log) <= n + 2
    assert used == [("0", 10 * "0"), ("1", 10 * "1"), ("2", "two"), ("3", 10 * "3"), ("4", 10 * "4")] and log == list("01234")
    assert list(prefetch(read, [])) == []


# ---- as a process, with a network


@pytest.fixture(scope="module")
def checkpoints(small, tmp_path_factory):
    """Two checkpoints of small networks that say the same class everywhere, each surer than the other of its own."""
    folder = tmp_path_factory.mktemp("checkpoints")
    config = small(
        **{"objective": "segmentation", "decoder": "unetr", "data.crop": (32, 32, 32), "classes": 5, "data.labels": "seg4"}
        | {"vit.patch": 16, "vit.depth": 4, "vit.features": (0, 1, 2), "unetr.width": 4, "data.size": SPEC.size}
    )
    shapes = jax.eval_shape(encoders.segmenter(config).init, jax.random.key(0), jnp.zeros((1, 32, 32, 32, 1)))["params"]
    card = {"config": with_sources(config, set(), "test.py"), "spec": as_json(SPEC), "labels": table_text(read_table("seg4"))}
    for name, bias in (("one", [0, 3.0, 0, 0, 0]), ("two", [0, 0, 0, 4.0, 0])):
        params = jax.tree.map(lambda s: np.zeros(s.shape, s.dtype), shapes)
        params["head"]["bias"][:] = bias
        checkpoint.write(folder / name, params, card)
    return folder


def process(*flags, **environment):
    command = [sys.executable, "-W", "error::RuntimeWarning", "-m", "brainseg_jax.predict", *map(str, flags)]
    return subprocess.run(command, capture_output=True, text=True, env=os.environ | environment)


@pytest.mark.slow
def test_as_a_process(checkpoints, scans, tmp_path):
    both = f"{checkpoints / 'one'},{checkpoints / 'two'}"
    flags = ("--checkpoint", both, "--vol", tmp_path / "v.tsv", "--qc", tmp_path / "qc.html", "--cpu", "--threads", 1, "--tta")
    done = process("--i", scans, "--o", tmp_path / "out", *flags)
    assert (done.returncode, done.stderr) == (0, ""), done.stderr
    assert done.stdout.splitlines()[0] == "segmenting scans: 0/3" and done.stdout.endswith("qc.html: 3 cases, 3 with flags\n")
    assert set(np.unique(read_labels(tmp_path / "out" / "b_seg.mgz").voxels)) == {3}  # the second is surer
    # softmax of 3 among five classes, and of 4; the mean of both
    p = [(np.exp(3) / (np.exp(3) + 4) + 1 / (np.exp(4) + 4)) / 2, (1 / (np.exp(3) + 4) + np.exp(4) / (np.exp(4) + 4)) / 2]
    rows = {row["structure"]: float(row["soft_ml"]) for row in table(tmp_path / "v.tsv")[:4]}
    assert [rows["Cortex"], rows["White matter"]] == pytest.approx([share * 48**3 * 0.064 for share in p], rel=1e-4)
    p += [(1 - sum(p)) / 3] * 3
    told = json.loads((tmp_path / "out" / "b_seg.json").read_text())
    assert told["Entropy"] == pytest.approx(-sum(share * np.log(share) for share in p), abs=1e-4)
    assert f"4 structures (four) by {both}, left-right flips too; brainseg_jax" in page(tmp_path / "qc.html")[1][0]


@pytest.mark.slow
def test_no_checkpoint_in_one_line(scans, tmp_path):
    done = process("--i", scans, "--o", tmp_path / "o", "--checkpoint", tmp_path / "none")
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and "none: no such file or folder" in done.stderr


def test_help_starts_at_once():
    """And without a word about the module being there twice."""
    done = process("--help")
    assert (done.returncode, done.stderr) == (0, "") and "--checkpoint FOLDERS" in done.stdout
