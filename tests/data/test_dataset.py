"""From the config to ready volumes: the split is the manifest's, a file's or the rule's; what is missing is refused by name."""

import hashlib

import pytest

from brainseg_jax.config import base
from brainseg_jax.data import dataset
from brainseg_jax.data.manifest import read_manifest, write_manifest
from brainseg_jax.errors import InputError


def settings(manifest, folder, **changes):
    c = base().data
    c.manifest, c.cache, c.spacing, c.size = str(manifest), str(folder / "cache"), 4.0, (32, 32, 32)
    c.update(changes)
    return c


def prepare(data, run, said=None, labels=False):
    run.mkdir(exist_ok=True)
    return dataset.prepare(data, labels, run, (said if said is not None else []).append, lambda what: lambda done, total: None)


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
    with pytest.raises(InputError, match=r"4 of 4 scans cannot be used.*failures\.csv"):
        prepare(settings(tmp_path / "people.tsv", tmp_path), tmp_path / "run")
    assert (tmp_path / "run" / "failures.csv").read_text().count("no such file") == 4


def test_labels_are_read_only_where_they_are_wanted(cohort, tmp_path):
    rows = [row._replace(labels=(tmp_path / "gone.nii.gz",), scheme=("aseg",)) for row in read_manifest(cohort)]
    write_manifest(tmp_path / "people.tsv", rows)
    data = settings(tmp_path / "people.tsv", tmp_path)
    assert len(prepare(data, tmp_path / "a").train) == 3
    with pytest.raises(InputError, match=r"gone\.nii\.gz"):
        prepare(data, tmp_path / "b", labels=True)


def test_a_split_without_scans_is_refused_by_name(cohort, tmp_path):
    with pytest.raises(InputError, match="no usable scan in split val"):
        prepare(settings(without_splits(cohort, tmp_path), tmp_path, fractions=(1.0, 0.0, 0.0)), tmp_path / "run")


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
