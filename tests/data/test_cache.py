"""The cache: made once, goes on where it stopped, notices damage, sets bad scans aside with reasons, and stops when there are many."""

import csv
import json
import os
import zipfile

import numpy as np
import pytest

from brainseg_jax.data import cache
from brainseg_jax.data.labels import read_table
from brainseg_jax.data.manifest import Row
from brainseg_jax.data.nifti import read, read_labels, write
from brainseg_jax.data.standardize import spec, standardize, standardize_labels
from brainseg_jax.errors import InputError

SPEC = spec("default", 4.0, (16, 16, 16))


def head(path, seed):
    """A small ellipsoid head of 4 mm voxels."""
    rng = np.random.default_rng(seed)
    at = (np.indices((24, 24, 24)).reshape(3, -1).T - 11.5) / (8, 9, 10)
    inside = (np.sum(at**2, axis=1) < 1).reshape(24, 24, 24)
    voxels = np.where(inside, rng.normal(100, 10, inside.shape), 5 * rng.random(inside.shape))
    write(path, voxels.astype(np.float32), np.diag([4.0, 4.0, 4.0, 1.0]))
    return inside


@pytest.fixture
def rows(tmp_path):
    (tmp_path / "scans").mkdir()
    made = []
    for i in range(4):
        inside = head(tmp_path / "scans" / f"{i}.nii.gz", i)
        labels = tmp_path / "scans" / f"{i}_labels.nii.gz"
        write(labels, np.where(inside, 17, 0).astype(np.int32), np.diag([4.0, 4.0, 4.0, 1.0]))
        made.append(Row(f"p{i}", "a", tmp_path / "scans" / f"{i}.nii.gz", (labels,), ("freesurfer",), "made", "train"))
    return tuple(made)


def build(rows, tmp_path, max_failures=0.0, workers=1, spec=SPEC, **how):
    return cache.build(rows, spec, tmp_path / "volumes", max_failures=max_failures, workers=workers, **how)


def test_holds_what_standardisation_gives(rows, tmp_path):
    entries, failures = build(rows, tmp_path)
    assert [entry.row for entry in entries] == list(rows) and failures == ()
    expected = standardize(read(rows[2].image), SPEC)
    arrays = cache.load(entries[2].file)
    assert set(arrays) == {"image", "label/freesurfer"} and arrays["image"].dtype == np.uint8
    np.testing.assert_array_equal(arrays["image"], expected.image)
    np.testing.assert_array_equal(arrays["label/freesurfer"], standardize_labels(read_labels(rows[2].labels[0]), expected.record))
    assert cache.record(entries[2].file) == json.loads(json.dumps(expected.record))


def test_what_is_there_is_not_made_again(rows, tmp_path, monkeypatch):
    entries, _ = build(rows[:3], tmp_path)
    before = [entry.file.stat().st_mtime_ns for entry in entries]
    made = []
    real = cache._make
    monkeypatch.setattr(cache, "_make", lambda job: made.append(job[1].subject) or real(job))
    seen = []
    again, _ = build(rows, tmp_path, progress=lambda done, total: seen.append((done, total)))
    assert made == ["p3"] and [entry.file.stat().st_mtime_ns for entry in again[:3]] == before
    assert seen == [(3, 4), (4, 4)]


@pytest.mark.slow
def test_processes_make_the_same(rows, tmp_path):
    alone, _ = build(rows, tmp_path / "a")
    together, _ = build(rows, tmp_path / "b", workers=2)
    assert [entry.row for entry in together] == list(rows)
    assert [entry.file.read_bytes() for entry in together] == [entry.file.read_bytes() for entry in alone]


@pytest.mark.parametrize(("member", "reader"), [("image", cache.load), ("label/freesurfer", cache.load), ("record", cache.record)])
def test_a_flipped_bit_is_refused_by_file_name(rows, tmp_path, member, reader):
    file = build(rows[:1], tmp_path)[0][0].file
    with zipfile.ZipFile(file) as archive:
        info = archive.getinfo(f"{member}.npy")
    data = bytearray(file.read_bytes())
    data[info.header_offset + 200 + info.file_size // 2] ^= 1
    file.write_bytes(data)
    with pytest.raises(InputError, match=rf"{file.name}.*remove it"):
        reader(file)


@pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")  # NumPy's, of an archive that is none
@pytest.mark.parametrize("content", [b"", b"PK", b"not a zip"])
def test_a_broken_file_is_refused_by_file_name(tmp_path, content):
    file = tmp_path / "x.npz"
    file.write_bytes(content)
    with pytest.raises(InputError, match=r"x\.npz.*remove it"):
        cache.load(file)
    with pytest.raises(InputError, match=r"x\.npz"):
        cache.load(tmp_path / "gone" / "x.npz")


@pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")  # NumPy's, of an archive that is none
def test_a_truncated_file_is_refused(rows, tmp_path):
    file = build(rows[:1], tmp_path)[0][0].file
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(InputError, match="damaged"):
        cache.load(file)


def test_bad_scans_are_set_aside_with_their_reasons(rows, tmp_path):
    rows[1].image.write_bytes(rows[1].image.read_bytes()[:-20])
    rows[3].image.unlink()
    entries, failures = build(rows, tmp_path, max_failures=0.5)
    assert [entry.row.subject for entry in entries] == ["p0", "p2"]
    assert [failure.row.subject for failure in failures] == ["p1", "p3"]
    assert "1.nii.gz" in failures[0].reason and "no such file" in failures[1].reason
    cache.write_failures(tmp_path / "failures.csv", failures)
    with (tmp_path / "failures.csv").open(newline="") as file:
        table = list(csv.DictReader(file))
    assert [(line["subject"], line["session"], line["image"]) for line in table] == [
        ("p1", "a", str(rows[1].image)),
        ("p3", "a", str(rows[3].image)),
    ]
    assert table[0]["reason"] == failures[0].reason


def test_labels_that_do_not_lie_on_their_image_set_the_scan_aside(rows, tmp_path):
    write(rows[0].labels[0], np.ones((24, 24, 24), np.int32), np.diag([5.0, 4.0, 4.0, 1.0]))
    entries, failures = build(rows, tmp_path, max_failures=0.5)
    assert len(entries) == 3 and "0_labels.nii.gz" in failures[0].reason


def test_a_head_without_a_brain_is_set_aside_unless_the_table_is_of_something_else(rows, tmp_path):
    write(rows[1].labels[0], np.zeros((24, 24, 24), np.int32), np.diag([4.0, 4.0, 4.0, 1.0]))
    _, failures = build(rows, tmp_path, max_failures=1.0, target=read_table("brain"))
    assert [failure.row.subject for failure in failures] == ["p1"] and "has no structure of brain" in failures[0].reason
    (tmp_path / "lesions.tsv").write_text("id\tname\tpartner\n17\tLesion\t17\n")
    lesions = [row._replace(scheme=(str(tmp_path / "lesions.tsv"),)) for row in rows]
    assert build(lesions, tmp_path, target=read_table(str(tmp_path / "lesions.tsv")))[1] == ()


def test_many_bad_scans_stop_before_all_are_read(rows, tmp_path, monkeypatch):
    many = [rows[0]._replace(subject=f"q{i}") for i in range(100)]
    tried = []
    monkeypatch.setattr(cache, "_make", lambda job: tried.append(job[0]) or (job[0], "bad"))
    ready, failures = build(many, tmp_path, max_failures=0.05)
    assert (len(ready), len(failures), len(tried)) == (0, cache.SUSPECT, cache.SUSPECT)


def test_no_unfinished_file_stays_when_writing_fails(rows, tmp_path, monkeypatch):
    def full(stream, **arrays):
        stream.write(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(cache.np, "savez", full)
    with pytest.raises((OSError, InputError)):
        build(rows[:1], tmp_path)
    assert list((tmp_path / "volumes").iterdir()) == []


def test_a_full_disk_is_said_and_not_a_traceback(rows, tmp_path, monkeypatch):
    def full(stream, **arrays):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(cache.np, "savez", full)
    with pytest.raises(InputError, match="No space left"):
        build(rows[:1], tmp_path)


def test_the_name_covers_all_that_decides_the_content(rows, monkeypatch):
    row = rows[0]
    name = cache.file_name(row, SPEC)
    assert name == cache.file_name(row, SPEC) and name.startswith("p0_a_") and name.endswith(".npz")
    others = {
        cache.file_name(row, spec("paper", 4.0, (16, 16, 16))),
        cache.file_name(row, spec("default", 4.0, (16, 16, 17))),
        cache.file_name(row, spec("default", 4.0, (16, 16, 16), "float16")),
        cache.file_name(row._replace(scheme=("aseg",)), SPEC),
        cache.file_name(row._replace(labels=()), SPEC),
        cache.file_name(row._replace(image=rows[1].image), SPEC),
    }
    for path in (row.image, row.labels[0]):
        status = path.stat()
        os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns + 1_000_000_000))
        others.add(cache.file_name(row, SPEC))
    monkeypatch.setattr(cache, "VERSION", cache.VERSION + 1)
    others.add(cache.file_name(row, SPEC))
    assert len(others) == 9 and name not in others


def test_a_name_is_a_plain_file_name(rows):
    name = cache.file_name(rows[0]._replace(subject="../é b:" + "x" * 300), SPEC)
    assert "/" not in name and ":" not in name and " " not in name and len(name.encode()) < 255
