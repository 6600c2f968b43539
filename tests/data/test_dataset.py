"""From the config to ready volumes: the split is the manifest's, a file's or the rule's; what is missing is refused by name."""

import hashlib
from pathlib import Path

import numpy as np
import pytest

from brainseg_jax.config.keys import base
from brainseg_jax.core.errors import InputError
from brainseg_jax.data import cache, dataset
from brainseg_jax.data.labels import read_table
from brainseg_jax.data.manifest import Row, read_manifest, write_manifest

BRAIN, FOUR = read_table("brain"), read_table("seg4")


def settings(manifest, folder, **changes):
    c = base().data
    c.manifest, c.cache, c.spacing, c.size = str(manifest), str(folder / "cache"), 4.0, (32, 32, 32)
    c.update(changes)
    return c


def prepare(data, run, said=None, target=None):
    """As a run that begins does it in its folder."""
    run.mkdir(exist_ok=True)
    say = (said if said is not None else []).append
    made = dataset.prepare(data, target, say, lambda what: lambda done, total: None, report=run / "failures.csv")
    dataset.write_down(made, run, begun=False)
    return made


@pytest.fixture(autouse=True)
def one_process(monkeypatch):
    """Without worker processes: four small scans are quicker here."""
    build = dataset.cache.build
    monkeypatch.setattr(dataset.cache, "build", lambda *args, **how: build(*args, workers=1, **how))


def without_splits(cohort, folder, **changes):
    rows = [row._replace(split="", **changes) for row in read_manifest(cohort)]
    write_manifest(folder / "people.tsv", rows)
    return folder / "people.tsv"


def test_the_manifests_own_split(cohort, tmp_path):
    data = prepare(settings(cohort, tmp_path), tmp_path / "run")
    assert [e.row.subject for e in data.train] == ["head0", "head1", "head2"] and [e.row.subject for e in data.val] == ["head3"]
    assert all(e.file.exists() and e.file.parent == tmp_path / "cache" / "volumes" for e in (*data.train, *data.val))
    assert data.manifest_sha256 == hashlib.sha256(cohort.read_bytes()).hexdigest()
    assert data.split_sha256 == hashlib.sha256((tmp_path / "run" / "split.tsv").read_bytes()).hexdigest()
    assert not (tmp_path / "run" / "failures.csv").exists()


def test_a_split_is_made_and_can_be_reused(cohort, tmp_path):
    manifest = without_splits(cohort, tmp_path)
    made = prepare(settings(manifest, tmp_path, fractions=(0.5, 0.5, 0.0)), tmp_path / "a")
    assert len(made.train) == len(made.val) == 2
    reused = prepare(settings(manifest, tmp_path, splits=str(tmp_path / "a" / "split.tsv"), split_seed=9), tmp_path / "b")
    assert reused.train == made.train and reused.split_sha256 == made.split_sha256


def test_what_may_leak_is_said_and_what_does_is_refused(cohort, tmp_path):
    rows = list(read_manifest(cohort))
    rows[1] = rows[1]._replace(subject="HEAD03")
    write_manifest(tmp_path / "people.tsv", rows)
    said = []
    prepare(settings(tmp_path / "people.tsv", tmp_path), tmp_path / "run", said)
    assert [line.partition(": ")[0] for line in said] == ["warning"] and "'HEAD03' of 'made' and 'head3' of 'made'" in said[0]
    (tmp_path / "twin.nii.gz").symlink_to(rows[0].image)
    rows.append(rows[0]._replace(subject="twin", image=tmp_path / "twin.nii.gz", split="test"))
    write_manifest(tmp_path / "people.tsv", rows)
    with pytest.raises(InputError, match=r"people\.tsv: the same image is on two sides of the split: .*train\), .*twin, test\)"):
        prepare(settings(tmp_path / "people.tsv", tmp_path), tmp_path / "none")
    assert list((tmp_path / "none").iterdir()) == []


def test_subjects_are_hashes_of_training_people_only(cohort, tmp_path):
    hashes = prepare(settings(cohort, tmp_path), tmp_path / "run").subjects()
    assert hashes == sorted(hashlib.sha256(f"made/head{i}".encode()).hexdigest()[:16] for i in range(3))


def test_bad_scans_are_set_aside_written_down_and_said(cohort, tmp_path):
    rows = list(read_manifest(cohort))
    rows[1] = rows[1]._replace(image=tmp_path / "gone.nii.gz")
    write_manifest(tmp_path / "people.tsv", rows)
    said = []
    data = prepare(settings(tmp_path / "people.tsv", tmp_path, max_failures=0.5), tmp_path / "run", said)
    assert len(data.train) == 2 and len(data.failures) == 1
    assert "gone.nii.gz" in (tmp_path / "run" / "failures.csv").read_text()
    assert any("1 of 4 scans set aside" in line and "gone.nii.gz" in line for line in said)


def test_too_many_bad_scans_stop_the_run_with_the_reasons_on_disk(cohort, tmp_path):
    rows = [row._replace(image=tmp_path / row.image.name) for row in read_manifest(cohort)]
    write_manifest(tmp_path / "people.tsv", rows)
    with pytest.raises(InputError, match=r"4 of 4 scans cannot be used.*failures\.csv\); mend them, or leave them out of .*people\.tsv$"):
        prepare(settings(tmp_path / "people.tsv", tmp_path), tmp_path / "run")
    assert (tmp_path / "run" / "failures.csv").read_text().count("no such file") == 4
    prepare(settings(cohort, tmp_path), tmp_path / "run")
    assert not (tmp_path / "run" / "failures.csv").exists()  # of the try before


def test_people_who_came_later_leave_the_split_of_a_run_that_has_begun_as_it_is(cohort, tmp_path):
    prepare(settings(cohort, tmp_path), tmp_path)
    before = (tmp_path / "split.tsv").read_text()
    rows = [row._replace(split="test") if row.subject == "head0" else row for row in read_manifest(cohort)]
    write_manifest(tmp_path / "people.tsv", rows)
    made = dataset.prepare(settings(tmp_path / "people.tsv", tmp_path), None, print, lambda what: lambda done, total: None)
    assert (tmp_path / "split.tsv").read_text() == before
    dataset.write_down(made, tmp_path, begun=True)
    assert (tmp_path / "split.tsv").read_text() == before
    dataset.write_down(made, tmp_path, begun=False)
    assert (tmp_path / "split.tsv").read_text() == made.split != before


@pytest.mark.parametrize("harm", ["cut", "deleted", "one letter"])
def test_a_damaged_split_of_a_run_that_has_begun_is_written_anew_or_refused(cohort, tmp_path, harm):
    made, file, said = prepare(settings(cohort, tmp_path), tmp_path), tmp_path / "split.tsv", []
    dataset.repair_split(made, tmp_path, made.split_sha256, said.append)
    assert said == []
    file.unlink() if harm == "deleted" else file.write_text(made.split[:50] if harm == "cut" else made.split.replace("train", "trazn", 1))
    with pytest.raises(InputError, match=r"split\.tsv: is damaged, changed or missing; bring it back"):
        dataset.repair_split(made, tmp_path, "0" * 64, said.append)  # of other data than those of now
    dataset.repair_split(made, tmp_path, made.split_sha256, said.append)
    assert file.read_text() == made.split and len(said) == 1 and str(file) in said[0]


def judged(bad, good, untried=0, most=0.1):
    """The refusal of `judge`, for `bad` scans in train, and good ones in train and, the last, in val."""
    (row,) = people(A_train=1)
    failures = [cache.Failure(row._replace(subject=f"p{i}"), f"/p{i}.nii: is empty; copy it again") for i in range(bad)]
    ready = [cache.Entry(row._replace(split="val" if i == good - 1 else "train"), Path("x.npz")) for i in range(good)]
    dataset.check_failures(bad + good + untried, ready, failures, most, Path("run/failures.csv"), Path("people.tsv"))


def test_the_refusal_names_scans_and_reasons_and_ends_in_what_can_be_done():
    with pytest.raises(InputError) as refusal:
        judged(1, 7)
    assert str(refusal.value) == (
        "1 of 8 scans cannot be used, and a run leaves out 10 % at most (data.max_failures=0.1): p0: /p0.nii: is empty; copy it again "
        "(all in run/failures.csv); mend them, or leave them out of people.tsv, or go on without them: --config.data.max_failures=0.2"
    )
    with pytest.raises(
        InputError, match=r"^5 of 20 .*=0\.1\): p0: [^|]* \| p1: [^|]* \| p2: [^|]*again \| … \(all in .*max_failures=0\.3$"
    ):
        judged(5, 15)
    with pytest.raises(InputError, match=r"^20 of 100 scans cannot be used \(70 not tried yet\).*max_failures=1$"):
        judged(20, 10, untried=70)
    with pytest.raises(InputError, match=r"leave them out of people\.tsv$"):  # nobody would be left to train with
        judged(2, 1)


@pytest.mark.parametrize(("bad", "good"), [(1, 7), (3, 5), (2, 8), (3, 7), (7, 3), (6, 14), (21, 9), (13, 187)])
def test_the_value_that_it_names_is_the_smallest_tenth_that_passes(bad, good):
    with pytest.raises(InputError) as refusal:
        judged(bad, good, most=0.0)
    tenth = float(str(refusal.value).rpartition("=")[2])
    judged(bad, good, most=tenth)
    with pytest.raises(InputError):
        judged(bad, good, most=tenth - 0.1)


def test_labels_are_read_only_where_they_are_wanted(cohort, tmp_path):
    rows = [row._replace(labels=(tmp_path / "gone.nii.gz",), scheme=("brain",)) for row in read_manifest(cohort)]
    write_manifest(tmp_path / "people.tsv", rows)
    data = settings(tmp_path / "people.tsv", tmp_path)
    assert len(prepare(data, tmp_path / "a").train) == 3
    with pytest.raises(InputError, match=r"gone\.nii\.gz"):
        prepare(data, tmp_path / "b", target=read_table("brain"))


def test_a_split_without_scans_is_refused_by_name(cohort, tmp_path):
    with pytest.raises(InputError, match=r"no usable scan in split val; .*data\.fractions \(1\.0, 0\.0, 0\.0\)"):
        prepare(settings(without_splits(cohort, tmp_path), tmp_path, fractions=(1.0, 0.0, 0.0)), tmp_path / "run")


def test_masks_that_validation_lacks_are_missed_before_anything_is_standardised(masked, tmp_path):
    rows = [row._replace(labels=(), scheme=()) if row.split == "val" else row for row in read_manifest(masked)]
    write_manifest(tmp_path / "people.tsv", rows)
    with pytest.raises(InputError, match="no usable scan with labels in split val"):
        prepare(settings(tmp_path / "people.tsv", tmp_path), tmp_path / "run", target=BRAIN)
    assert not (tmp_path / "cache").exists()


def test_scans_of_val_that_all_fail_are_missed_afterwards(cohort, tmp_path):
    rows = [row._replace(image=tmp_path / "gone.nii.gz") if row.split == "val" else row for row in read_manifest(cohort)]
    write_manifest(tmp_path / "people.tsv", rows)
    with pytest.raises(InputError, match="no usable scan in split val"):
        prepare(settings(tmp_path / "people.tsv", tmp_path, max_failures=0.5), tmp_path / "run")


def test_a_missing_manifest_is_refused_by_name(tmp_path):
    with pytest.raises(InputError, match=r"nowhere\.tsv: no such file"):
        prepare(settings(tmp_path / "nowhere.tsv", tmp_path), tmp_path / "run")


def test_without_a_manifest_the_sample_cohort_is_made_with_its_notice(cohort, tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(dataset.sample, "make_cohort", lambda place, *how, **also: asked.append((place, how)) or cohort)
    said = []
    prepare(settings("", tmp_path, subjects=5, split_seed=3), tmp_path / "run", said)
    assert asked == [(tmp_path / "cache" / "sample" / "5_3", (5, 3))]
    assert any("ONE anatomy" in line for line in said)


# ---- masks to fine-tune on


def people(**counts):
    """Rows of data sets "A" and "B" with brain masks: `A_train=3` gives three training scans of A."""
    rows = []
    for name, n in counts.items():
        where, split = name.split("_")
        for i in range(n):
            rows.append(Row(f"{split}{i}", "", Path(f"/{name}{i}.nii"), (Path(f"/{name}{i}_mask.nii"),), ("brain",), where, split))
    return rows


def chosen(rows, table=BRAIN, **changes):
    found = dataset.labelled(rows, settings("people.tsv", Path("/"), **changes), table, "people.tsv")
    return [row.key for row in found if row.split == "train"], [row.key for row in found if row.split == "val"]


def test_without_a_target_all_masks_are_used_and_scans_without_one_are_not():
    rows = people(A_train=3, B_train=2, A_val=1)
    bare = rows[0]._replace(labels=(), scheme=())
    train, val = chosen([bare, *rows[1:]])
    assert (len(train), len(val)) == (4, 1) and bare.key not in train


def test_sources_give_all_masks_and_the_target_some():
    rows = people(A_train=5, B_train=6, A_val=2, B_val=3)
    train, val = chosen(rows, num_labelled=2, target="B")
    assert [sum(key[0] == name for key in train) for name in "AB"] == [5, 2]
    assert {key[0] for key in val} == {"B"}  # validation is on the target
    assert {key[0] for key in chosen(rows, num_labelled=0, target="B")[0]} == {"A"}


def test_ten_masks_are_among_twenty_and_the_seed_draws_others():
    rows = people(A_train=40, A_val=1)
    ten, twenty = (set(chosen(rows, num_labelled=n)[0]) for n in (10, 20))
    assert len(ten) == 10 and len(twenty) == 20 and ten < twenty
    assert chosen(rows[::-1], num_labelled=10)[0] == chosen(rows, num_labelled=10)[0][::-1]  # whatever the order
    assert set(chosen(rows, num_labelled=10, split_seed=1)[0]) != ten


def test_labels_only_are_no_scans_and_are_used_but_of_people_whose_scans_are_not():
    rows = people(A_train=3, A_val=1)
    drawn = chosen(rows, num_labelled=1)[0]
    own = [row._replace(image=row.labels[0], session="made", labels_only=True) for row in rows[:3]]
    others = [row._replace(image=row.labels[0], subject=f"x{i}", labels_only=True) for i, row in enumerate(rows[:3])]
    found = chosen([*rows, *own, *others], num_labelled=1)[0]
    assert found == [*drawn, *(row.key for row in own if row.subject == drawn[0][1]), *(row.key for row in others)]
    assert chosen([*rows, *others], num_labelled=0)[0] == [row.key for row in others]
    with pytest.raises(InputError, match=r"data\.num_labelled is 0, and no other data set has masks"):
        chosen([*rows, *own], num_labelled=0)
    with pytest.raises(InputError, match=r"data\.num_labelled is 4, and 3 training scans have labels"):
        chosen([*rows, *others], num_labelled=4)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_labelled": 4}, "data.num_labelled is 4, and 3 training scans have labels"),
        ({"num_labelled": 0}, "data.num_labelled is 0, and no other data set has masks"),
        ({"target": "C"}, "has no data set 'C' in train or val; data.target may be one of A"),
    ],
)
def test_what_is_not_there_is_refused(changes, message):
    rows = people(A_train=3, A_val=1)
    with pytest.raises(InputError, match=message):
        dataset.labelled(rows, settings("people.tsv", Path("/"), **changes), BRAIN, "people.tsv")


def test_labels_that_lack_structures_are_refused_unless_they_count_as_background():
    rows = people(A_train=1, A_val=1)
    with pytest.raises(InputError, match="'Brain' of label table brain does not tell 'Cortex' from"):
        chosen(rows, FOUR)
    fine = [row._replace(labels=(*row.labels, Path("/fine.nii")), scheme=("brain", "seg35")) for row in rows]
    assert dataset.read_for(fine[0], FOUR, "refuse")[3:5] == ((Path("/fine.nii"),), ("seg35",))  # the map that can
    vessels = [row._replace(scheme=("dlmuse",)) for row in rows]
    with pytest.raises(InputError, match=r"labels of dlmuse have no Left vessel.*--config\.data\.missing_labels=background"):
        chosen(vessels, read_table("seg33"))
    assert len(chosen(vessels, read_table("seg33"), missing_labels="background")[0]) == 1


def test_a_remedy_is_one(tmp_path):
    """Background is none for labels that have nothing of the target, and fewer made scans none for what cannot be learned of any."""
    (own := tmp_path / "own.tsv").write_text("id\tname\tpartner\tfreesurfer\n1\tvessel\t1\t30/62\n")
    row = people(A_train=1)[0]
    with pytest.raises(InputError, match=r"train0_mask\.nii: labels of dlmuse have nothing of .*own\.tsv; give labels that"):
        dataset.read_for(row._replace(scheme=("dlmuse",)), read_table(own), "refuse")
    with pytest.raises(InputError, match=r"of seg4; use labels that do, or a coarser target$"):
        dataset.read_for(row, FOUR, "refuse", read_table("head"))
    with pytest.raises(InputError, match=r"of head; give finer labels, leave it out$"):
        dataset.read_for(row._replace(labels_only=True), BRAIN, "refuse", read_table("head"))


def test_what_scans_are_made_from_is_not_learned(masked, tmp_path):
    with pytest.raises(InputError, match=r"label table head is what scans are made from, .*; use another one"):
        prepare(settings(masked, tmp_path), tmp_path / "run", target=read_table("head"))


def test_labels_without_a_scheme_are_refused():
    with pytest.raises(InputError, match="fill in the column scheme"):
        chosen([row._replace(scheme=()) for row in people(A_train=1)])


def test_cached_labels_are_classes_on_the_images_grid(masked, tmp_path):
    """A mask that is bright where the image is; without a task there are other files."""
    data = prepare(settings(masked, tmp_path), tmp_path / "run", target=BRAIN)
    arrays = cache.load(data.train[0].file)
    assert arrays["label"].shape == arrays["image"].shape[:3] and arrays["label"].dtype == np.uint8
    bright, inside = arrays["image"][..., 0] > 120, arrays["label"] == 1
    assert 2 * (bright & inside).sum() / (bright.sum() + inside.sum()) > 0.95
    without = prepare(settings(masked, tmp_path), tmp_path / "b")
    assert data.target == BRAIN and not {e.file for e in data.train} & {e.file for e in without.train}


def test_labels_without_an_image_are_refused_where_no_scans_are_made(heads, tmp_path):
    rows = read_manifest(heads)
    with pytest.raises(
        InputError, match=r"head1\.nii\.gz has no image; add one, leave the line out, or .*--config\.synth\.share=1"
    ) as refusal:
        prepare(settings(heads, tmp_path), tmp_path / "run", target=read_table("seg33"))
    assert str(refusal.value).startswith(f"{heads}: ") and "\n" not in str(refusal.value)
    # What is not read is not in the way.
    moved = [row._replace(split="test" if row.labels_only else row.split) for row in rows]
    write_manifest(tmp_path / "people.tsv", moved)
    data = prepare(settings(tmp_path / "people.tsv", tmp_path), tmp_path / "run", target=read_table("seg33"))
    assert [entry.row.subject for entry in (*data.train, *data.val)] == ["head0", "head3"]


def test_labels_that_may_stand_beside_their_image_to_be_made_a_scan_of_always(heads, tmp_path):
    first, *_, last = read_manifest(heads)
    again = first._replace(session="made", image=first.labels[0], labels_only=True)
    write_manifest(tmp_path / "people.tsv", [first, again, last])
    data, said = settings(tmp_path / "people.tsv", tmp_path), []
    ready = dataset.prepare(data, read_table("seg33"), said.append, lambda what: lambda done, total: None, heads=read_table("head"))
    assert [entry.row.labels_only for entry in ready.train] == [False, True] and said == [] and len(ready.subjects()) == 1
    twice = [first, again, again._replace(subject="x", session="2"), last]
    with pytest.raises(InputError, match=r"head0\.nii\.gz is listed twice; remove one"):
        write_manifest(tmp_path / "twice.tsv", twice)


def test_labels_have_to_tell_apart_what_scans_are_made_from():
    """Of training scans, and of labels only; the map that can is taken."""
    made = read_table("head")
    rows = [row._replace(scheme=("seg4",)) for row in people(A_train=1, A_val=1)]
    with pytest.raises(InputError, match=r"train0_mask\.nii: no scan can be made of it, 'Cortex' of label table seg4 .*synth\.share=0$"):
        dataset.labelled(rows, settings("people.tsv", Path("/")), FOUR, "people.tsv", made)
    fine = rows[0]._replace(labels=(*rows[0].labels, Path("/fine.nii")), scheme=("seg4", "seg35"))
    for row, scheme in ((fine, "seg35"), (fine._replace(split="val"), "seg4"), (fine._replace(split="val", labels_only=True), "seg35")):
        (found, *_) = dataset.labelled([row, rows[1]], settings("people.tsv", Path("/")), FOUR, "people.tsv", made)
        assert found.scheme == (scheme,)


def test_what_made_scans_do_not_have_cannot_be_learned_of_them():
    made, fine = read_table("head"), read_table("synthseg")
    dataset.check_made([], read_table("seg33"), made, "refuse", Path("people.tsv"))
    dataset.check_made([], fine, made, "background", Path("people.tsv"))
    with pytest.raises(InputError, match=r"scans that are made have no Left cortex, .* and \d+ more, which synthseg has; use a coarser"):
        dataset.check_made([], fine, made, "refuse", Path("people.tsv"))
