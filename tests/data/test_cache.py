"""The cache: made once, goes on where it stopped, notices damage, sets bad scans aside with reasons, and stops when there are many."""

import ast
import csv
import hashlib
import json
import os
import zipfile

import numpy as np
import pytest

from brainseg_jax.core.errors import InputError
from brainseg_jax.data import cache
from brainseg_jax.data.labels import lookup, read_table
from brainseg_jax.data.manifest import Row
from brainseg_jax.data.nifti import Scan, read, read_labels, reorient
from brainseg_jax.data.nifti_write import write
from brainseg_jax.data.preprocess import spec, standardize, standardize_labels

SPEC = spec("default", 4.0, (16, 16, 16))
FREESURFER, HEADS = read_table("freesurfer"), read_table("head")


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


def build(rows, tmp_path, max_failures=0.0, workers=1, spec=SPEC, target=FREESURFER, **how):
    return cache.build(rows, spec, tmp_path / "volumes", max_failures=max_failures, workers=workers, target=target, **how)


def name(row, spec=SPEC, target=FREESURFER):
    return cache.file_names(row, spec, target)[-1]


def test_what_there_is_to_say_of_a_scan_is_kept_with_it(rows, tmp_path):
    scan = read(rows[1].image)
    scan.voxels[:, :, 0] = np.inf
    write(rows[1].image, scan.voxels, scan.affine)
    for _ in range(2):  # made, and found
        lines = cache.remarks(build(rows, tmp_path)[0], "people.tsv")
        assert [
            line for line in lines if "4.2% of its voxels are NaN or infinite" in line and line.startswith(f"{rows[1].image}: ")
        ] == lines
        assert len(lines) == 1


def test_holds_what_standardisation_gives(rows, tmp_path):
    entries, failures = build(rows, tmp_path)
    assert [entry.row for entry in entries] == list(rows) and failures == ()
    expected = standardize(read(rows[2].image), SPEC)
    arrays = cache.load(entries[2].file)
    assert set(arrays) == {"image", "label"} and arrays["image"].dtype == np.uint8
    np.testing.assert_array_equal(arrays["image"], expected.image[..., None])
    labels = standardize_labels(read_labels(rows[2].labels[0]), expected.record)
    np.testing.assert_array_equal(arrays["label"], lookup(labels, FREESURFER, FREESURFER))
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


def test_images_of_a_subject_become_channels_in_their_order(rows, tmp_path):
    two = [rows[0]._replace(also=(rows[1].image,)), rows[0]._replace(image=rows[1].image, also=(rows[0].image,), labels=(), scheme=())]
    (entry, swapped), _ = build(two, tmp_path)
    image = cache.load(entry.file)["image"]
    assert image.shape == (16, 16, 16, 2)
    np.testing.assert_array_equal(image[..., 0], standardize(read(rows[0].image), SPEC).image)
    alone = cache.load(build(rows[:2], tmp_path)[0][1].file)["image"]
    assert image[..., 1].std() > 10 and entry.file != swapped.file
    np.testing.assert_array_equal(cache.load(swapped.file)["image"][..., 0], alone[..., 0])
    assert list(cache.contents(entry)) == [rows[0].image, rows[1].image, rows[0].labels[0]]


def test_an_image_that_is_missing_or_elsewhere_is_named(rows, tmp_path):
    far = tmp_path / "far.nii.gz"
    affine = np.diag([4.0, 4.0, 4.0, 1.0])
    affine[0, 3] = 80
    write(far, read(rows[1].image).voxels, affine)
    _, failures = build([rows[0]._replace(also=(tmp_path / "none.nii",)), rows[1]._replace(also=(far,))], tmp_path, max_failures=1.0)
    assert [failure.reason.partition("; ")[0] for failure in failures] == [
        f"{tmp_path / 'none.nii'}: no such file",
        f"{far}: shares only 17% of its field of view with {rows[1].image}",
    ]


@pytest.mark.slow
def test_processes_make_the_same(rows, tmp_path):
    alone, _ = build(rows, tmp_path / "a")
    together, _ = build(rows, tmp_path / "b", workers=2)
    assert [entry.row for entry in together] == list(rows)
    assert [entry.file.read_bytes() for entry in together] == [entry.file.read_bytes() for entry in alone]


def test_an_image_is_there_once_for_whatever_labels(rows, tmp_path, monkeypatch):
    (whole,), _ = build(rows[:1], tmp_path)
    made = []
    monkeypatch.setattr(cache, "standardize_all", lambda *scans: made.append(scans))
    (mask,), _ = build(rows[:1], tmp_path, target=read_table("brain"))
    (bare,), _ = build(rows[:1], tmp_path, target=None)
    assert made == [] and len(list((tmp_path / "volumes").iterdir())) == 3 == len({whole.file, mask.file, bare.file})
    images = [cache.load(entry.file)["image"] for entry in (whole, mask, bare)]
    assert all((image == images[0]).all() for image in images) and "label" not in cache.load(bare.file)
    assert cache.load(whole.file)["label"].max() > cache.load(mask.file)["label"].max() == 1
    assert cache.record(whole.file) == cache.record(bare.file)


def test_an_entry_knows_the_bytes_it_was_made_from_without_reading_them_again(rows, tmp_path, monkeypatch):
    sha256 = lambda path: hashlib.sha256(path.read_bytes()).hexdigest()  # noqa: E731
    row = rows[0]
    expected = {path: sha256(path) for path in (row.image, row.labels[0])}
    (entry,), _ = build(rows[:1], tmp_path)
    assert cache.contents(entry) == expected and list(cache.contents(entry)) == [row.image, row.labels[0]]
    assert cache.contents(build(rows[:1], tmp_path, target=None)[0][0]) == {row.image: expected[row.image]}
    for replaced, by in ((row.image, rows[1].image), (row.labels[0], rows[1].labels[0])):
        replaced.write_bytes(by.read_bytes())
        expected[replaced] = sha256(by)
        assert cache.contents(build(rows[:1], tmp_path)[0][0]) == expected
    # A copy with times of its own is another entry of equal content; what is there already is not hashed again.
    os.utime(row.image)
    assert cache.contents(build(rows[:1], tmp_path)[0][0]) == expected
    monkeypatch.setattr(cache, "_sha256", None)
    assert cache.contents(build(rows[:1], tmp_path)[0][0]) == expected


def test_the_same_voxels_on_two_sides_are_refused_whatever_the_files_are_called(rows, tmp_path):
    scan = read(rows[0].image)
    turned = reorient(scan, "LIP")
    write(tmp_path / "scans" / "twin.nii", turned.voxels, turned.affine)  # of other bytes, in another order
    twin = rows[1]._replace(image=tmp_path / "scans" / "twin.nii")
    entries, _ = build([rows[0], twin, rows[2]], tmp_path, target=None)
    (line,) = cache.remarks(entries, "people.tsv")
    assert line.startswith(f"people.tsv: the same image stands in 2 rows: {rows[0].image} (p0, train), {twin.image} (p1, train); keep")
    entries, _ = build([rows[0], twin._replace(split="val"), rows[2]], tmp_path, target=None)
    with pytest.raises(
        InputError, match=r"people\.tsv: the same image is on two sides of the split: .*0\.nii\.gz \(p0, train\), .*twin\.nii"
    ):
        cache.remarks(entries, "people.tsv")


def test_odd_labels_are_told_every_time(rows, tmp_path, monkeypatch):
    labels = read_labels(rows[1].labels[0])
    write(rows[1].labels[0], np.roll(labels.voxels, 12, axis=0), labels.affine)
    entries, _ = build(rows, tmp_path)
    told = cache.remarks(entries, "people.tsv")
    assert len(told) >= 1 and all(line.startswith(f"{rows[1].labels[0]}: ") for line in told) and any("on air" in line for line in told)
    monkeypatch.setattr(cache, "check_label_map", None)
    assert cache.remarks(build(rows, tmp_path)[0], "people.tsv") == told


def test_a_damaged_image_is_made_anew_for_other_labels(rows, tmp_path):
    (bare,), _ = build(rows[:1], tmp_path, target=None)
    image = cache.load(bare.file)["image"]
    bare.file.write_bytes(bare.file.read_bytes()[:-100])
    (entry,), failures = build(rows[:1], tmp_path)
    assert failures == () and (cache.load(entry.file)["image"] == image).all()


@pytest.mark.parametrize(("member", "reader"), [("image", cache.load), ("label", cache.load), ("record", cache.record)])
def test_a_flipped_bit_is_refused_by_file_name(rows, tmp_path, member, reader):
    file = build(rows[:1], tmp_path)[0][0].file
    if member != "label":
        file = build(rows[:1], tmp_path, target=None)[0][0].file
    with zipfile.ZipFile(file) as archive:
        info = archive.getinfo(f"{member}.npy")
    data = bytearray(file.read_bytes())
    data[info.header_offset + 200 + info.file_size // 2] ^= 1
    file.write_bytes(data)
    with pytest.raises(InputError, match=rf"{file.name}.*remove it"):
        reader(file)


@pytest.mark.parametrize("content", [b"", b"PK", b"not a zip"])
def test_a_broken_file_is_refused_by_file_name(tmp_path, content):
    file = tmp_path / "x.npz"
    file.write_bytes(content)
    with pytest.raises(InputError, match=r"x\.npz.*remove it"):
        cache.load(file)
    with pytest.raises(InputError, match=r"x\.npz"):
        cache.load(tmp_path / "gone" / "x.npz")


def test_whatever_bit_is_flipped_it_is_noticed_or_does_no_harm(rows, tmp_path, rng):
    file = build(rows[:1], tmp_path, target=None)[0][0].file
    sound, whole = cache.load(file), file.read_bytes()
    # The zip file's own headers, where a bit asks for a password or another method, and the arrays' headers: all of them.
    ends = [*range(200), *range(len(whole) - 300, len(whole))]
    refused = 0
    for at in ends:
        damaged = bytearray(whole)
        damaged[at] ^= 1 << int(rng.integers(8))
        file.write_bytes(damaged)
        try:
            np.testing.assert_array_equal(cache.load(file)["image"], sound["image"])
        except InputError as refusal:
            refused += 1
            assert str(refusal).startswith(f"{file}: ") and "\n" not in str(refusal)
    assert refused > 150


def test_a_truncated_file_is_refused(rows, tmp_path):
    file = build(rows[:1], tmp_path)[0][0].file
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(InputError, match="damaged"):
        cache.load(file)


def test_what_another_thread_did_to_python_s_parser_is_no_damage(rows, tmp_path, monkeypatch):
    """Python 3.11's parser tells a thread of a mismatch that others caused. Once in a while that is nothing, each time it is."""
    file, parse, calls = build(rows[:1], tmp_path)[0][0].file, ast.literal_eval, []

    def interrupted(text):
        calls.append(text)
        if len(calls) < failing:
            raise SystemError("AST constructor recursion depth mismatch (before=51, after=62)")
        return parse(text)

    sound = cache.load(file)
    monkeypatch.setattr(ast, "literal_eval", interrupted)
    failing = 3
    np.testing.assert_array_equal(cache.load(file)["image"], sound["image"])
    failing = np.inf
    with pytest.raises(InputError, match="depth mismatch"):
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


def test_what_nobody_expected_of_a_scan_sets_it_aside_alone(rows, tmp_path, monkeypatch):
    def odd(path):
        if path == rows[1].image:
            raise ZeroDivisionError("of\ntwo lines")
        return read(path)

    monkeypatch.setattr(cache, "read", odd)
    entries, failures = build(rows, tmp_path, max_failures=0.5)
    assert len(entries) == 3 and [failure.reason for failure in failures] == [
        f"{rows[1].image}: unexpected ZeroDivisionError: of two lines; please report it"
    ]


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
    first = name(row)
    assert first == name(row) and first.startswith("p0_a_") and first.endswith(".npz")
    others = {
        name(row, spec("paper", 4.0, (16, 16, 16))),
        name(row, spec("default", 4.0, (16, 16, 17))),
        name(row, spec("default", 4.0, (16, 16, 16), "float16")),
        name(row._replace(scheme=("seg35",))),
        name(row._replace(labels=())),
        name(row, target=read_table("brain")),
        name(row._replace(image=rows[1].image)),
        name(row._replace(labels=rows[1].labels)),
    }
    for path in (row.image, row.labels[0]):
        status = path.stat()
        os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns + 1_000_000_000))
        others.add(name(row))
    monkeypatch.setattr(cache, "VERSION", cache.VERSION + 1)
    others.add(name(row))
    assert len(others) == 11 and first not in others


@pytest.mark.parametrize("letter", ["x", "é", "脳"])
def test_a_name_is_a_plain_file_name(rows, letter):
    one, other = (name(rows[0]._replace(subject="../é b:" + letter * n)) for n in (300, 301))
    assert not set("/: ") & set(one) and len(one.encode()) < 120 and one != other


def test_content_that_was_not_fetched_is_named(rows, tmp_path):
    (tmp_path / "link.nii").symlink_to(tmp_path / ".git" / "annex" / "none.nii")
    _, failures = build([rows[0]._replace(image=tmp_path / "link.nii"), rows[1]._replace(labels=(tmp_path / "link.nii",))], tmp_path, 1.0)
    assert [failure.reason for failure in failures] == [
        f"{tmp_path}/link.nii: its content was not fetched, it is a link to nothing; get it, e.g. with datalad get"
    ] * 2


def test_what_is_no_file_is_set_aside_and_not_waited_for(rows, tmp_path):
    os.mkfifo(tmp_path / "pipe.nii")
    odd = [row._replace(image=image) for row, image in zip(rows[:2], (tmp_path / "pipe.nii", tmp_path / "scans"), strict=True)]
    odd.append(rows[2]._replace(labels=(tmp_path / "pipe.nii",)))
    entries, failures = build([*odd, rows[3]], tmp_path, max_failures=1.0)
    assert [entry.row.subject for entry in entries] == ["p3"] and len(failures) == 3
    assert [failure.reason for failure in failures] == [
        f"{tmp_path}/pipe.nii: is a pipe or device and no file; give a scan",
        f"{tmp_path}/scans: cannot be read (Is a directory); check the path and its permissions",
        f"{tmp_path}/pipe.nii: is a pipe or device and no file; give a scan",
    ]


def only_labels(path, voxels, scheme="head", split="train", affine=np.diag([4.0, 4.0, 4.0, 1.0])):  # noqa: B008
    """A row of labels without an image."""
    write(path, voxels, affine)
    return Row(path.name.partition(".")[0], "", path, (path,), (scheme,), "made", split, (), True)


def of_a_head(n=24):
    """Ids of the table "head": a brain of two structures on either side, in skin."""
    at = np.indices((n, n, n)) - (n - 1) / 2
    radius, left = np.sqrt((at**2).sum(0)) * 24 / n, at[0] < 0
    ids = np.where(radius < 4, np.where(left, 2, 41), np.where(radius < 7, np.where(left, 3, 42), np.where(radius < 9, 604, 0)))
    return ids.astype(np.uint16)


def ids_of(entry, table=HEADS):
    """The labels of an entry as ids of a table."""
    return np.array([0, *(s.id for s in table.structures)])[cache.load(entry.file)["label"]]


def test_of_labels_only_the_image_is_white_where_they_are_and_the_classes_are_a_heads(tmp_path):
    labels = of_a_head()
    (entry,), failures = build([only_labels(tmp_path / "a.nii.gz", labels)], tmp_path, target=read_table("seg33"), heads=HEADS)
    arrays, ids = cache.load(entry.file), ids_of(entry)
    assert failures == () and set(np.unique(arrays["image"])) == {0, 255}
    np.testing.assert_array_equal(arrays["image"][..., 0] == 255, ids > 0)
    values, counts = np.unique(ids[ids > 0], return_counts=True)
    assert values.tolist() == [2, 3, 41, 42, 604]
    there = [(labels == id).sum() for id in values]  # but for what of the head lies outside the volume
    assert (counts <= there).all() and counts.sum() > 0.6 * sum(there)
    assert cache.remarks([entry], "people.tsv") == [] and list(cache.contents(entry)) == [entry.row.image]


def test_labels_only_of_finer_voxels_in_another_order_are_the_same(tmp_path):
    fine = of_a_head(96)
    turned = reorient(Scan(fine, np.diag([1.0, 1.0, 1.0, 1.0])), "LIP")
    rows = [
        only_labels(tmp_path / "a.nii.gz", fine, affine=np.eye(4)),
        only_labels(tmp_path / "b.nii.gz", turned.voxels, affine=turned.affine),
    ]
    entries, failures = build(rows, tmp_path, heads=HEADS)
    assert failures == ()
    one, other = map(ids_of, entries)
    assert (one > 0).any() and (one == other).mean() > 0.999
    left, right = (np.argwhere(one == id)[:, 0] for id in (2, 41))
    assert len(left) and len(right) and left.max() < right.min()


@pytest.mark.parametrize(
    ("voxels", "message"),
    [
        (np.full((24, 24, 24), 3, np.uint8) - np.eye(24, dtype=np.uint8), "has no background, so where the head ends is unknown; give"),
        ((of_a_head() == 2).astype(np.uint8) * 2, "has one label, of which no scan can be made; give label maps of many structures"),
        (np.zeros((24, 24, 24), np.uint8), "the image is empty, every voxel is 0"),
        (np.where(of_a_head() > 0, of_a_head() % 2 + 900, 0).astype(np.uint16), "label table head does not have 900"),
    ],
)
def test_labels_of_which_no_scan_can_be_made_are_set_aside(tmp_path, voxels, message):
    _, (failure,) = build([only_labels(tmp_path / "a.nii.gz", voxels)], tmp_path, heads=HEADS, max_failures=1.0)
    assert f"{tmp_path / 'a.nii.gz'}: " in failure.reason and message in failure.reason and "\n" not in failure.reason


def test_a_label_map_that_was_taken_for_an_image_is_not_found_as_one(tmp_path):
    row = only_labels(tmp_path / "a.nii.gz", of_a_head())
    (wrong,), _ = build([row._replace(labels_only=False, labels=(), scheme=())], tmp_path, target=None)
    (right,), _ = build([row], tmp_path, heads=HEADS)
    assert len(np.unique(cache.load(wrong.file)["image"])) > 2 == len(np.unique(cache.load(right.file)["image"]))


def test_training_scans_have_a_heads_classes_and_held_out_ones_the_targets(tmp_path):
    """Side by side in one cache, and the labels of one scan once with an image and once without."""
    labels, rng = of_a_head(), np.random.default_rng(0)
    (tmp_path / "t1").mkdir()
    target, affine, rows = read_table("seg33"), np.diag([4.0, 4.0, 4.0, 1.0]), []
    for name, split in (("a", "train"), ("b", "val")):
        brain = only_labels(tmp_path / f"{name}.nii.gz", np.where(labels > 600, 0, labels), "freesurfer", split)
        image = tmp_path / "t1" / f"{name}.nii.gz"
        write(image, (labels > 0) * 100 + 50.0 * (labels > 600) * (np.indices(labels.shape)[1] > 12) + rng.random(labels.shape), affine)
        rows += [brain._replace(image=image, labels_only=False), brain]
    entries, failures = build(rows, tmp_path, target=target, heads=HEADS)
    assert failures == () and [entry.row for entry in entries] == rows and len({entry.file for entry in entries}) == 4
    train, train_alone, val, val_alone = (ids_of(entry, HEADS if i != 2 else target) for i, entry in enumerate(entries))
    outside = set(range(601, 607))
    assert set(np.unique(train)) - outside == {0, 2, 3, 41, 42} and len(set(np.unique(train)) & outside) > 1
    assert train[0, 0, 0] == 0
    for other in (train_alone, val_alone):
        assert set(np.unique(other)) == {0, 2, 3, 41, 42}
    assert not set(np.unique(val)) & outside
    names = {s.id: s.name for s in target.structures}
    assert {names[id] for id in np.unique(val) if id} == {s.name for s in target.structures if set(s.freesurfer) & {2, 3, 41, 42}}
    # Without made scans the first is what it was.
    (plain,), _ = build(rows[:1], tmp_path, target=target)
    assert plain.file != entries[0].file and set(np.unique(cache.load(plain.file)["label"])) == set(
        np.unique(cache.load(entries[2].file)["label"])
    )


def test_a_head_without_a_brain_is_no_head_to_make_scans_of(rows, tmp_path):
    write(rows[1].labels[0], np.zeros((24, 24, 24), np.int32), np.diag([4.0, 4.0, 4.0, 1.0]))
    _, failures = build(rows, tmp_path, max_failures=1.0, heads=HEADS)
    assert [failure.row.subject for failure in failures] == ["p1"] and "has no structure of head" in failures[0].reason
