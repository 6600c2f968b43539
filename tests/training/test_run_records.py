"""A run goes on with the volumes it was started on, or not at all."""

import json
from pathlib import Path

import pytest

from brainseg_jax.core.errors import InputError
from brainseg_jax.data import cache
from brainseg_jax.data.cache import Entry
from brainseg_jax.data.dataset import Dataset
from brainseg_jax.data.manifest import Row
from brainseg_jax.data.preprocess import spec
from brainseg_jax.training import run_records


def dataset(train, val):
    entries = [tuple(Entry(Row(s, "", Path(f"/{s}.nii"), (), (), "D", ""), Path(s)) for s in names) for names in (train, val)]
    return Dataset(*entries, spec("default"), (), "m.tsv", "0", "0")


def started_on(folder, data):
    facts = {"volumes_sha256": data.volumes_sha256, "train": len(data.train), "val": len(data.val)}
    (folder / "run.json").write_text(json.dumps({"starts": [], "data": facts}))


def test_the_same_volumes_are_taken(tmp_path):
    started_on(tmp_path, dataset("abc", "d"))
    run_records.check_same_data(tmp_path, dataset("abc", "d"))


@pytest.mark.parametrize(("train", "val"), [("ab", "d"), ("acb", "d"), ("abd", "c"), ("abcd", ""), ("abc", "de")])
def test_other_volumes_another_order_or_another_side_are_refused(tmp_path, train, val):
    started_on(tmp_path, dataset("abc", "d"))
    with pytest.raises(InputError, match="was trained on 3 volumes and 1 for validation"):
        run_records.check_same_data(tmp_path, dataset(train, val))


def test_what_was_replaced_under_the_same_name_is_named(tmp_path, monkeypatch):
    data = dataset("abc", "d")
    facts = {"volumes_sha256": data.volumes_sha256, "train": 3, "val": 1, "scans": {f"D/{s}//{s}.nii": ["1", "2"] for s in "abcd"}}
    (tmp_path / "run.json").write_text(json.dumps({"starts": [], "data": facts}))
    now = {s: {Path(f"/{s}.nii"): "1", Path(f"/mask_{s}.nii"): "2"} for s in "abcd"}
    monkeypatch.setattr(cache, "contents", lambda entry: now[entry.row.subject])
    run_records.check_same_data(tmp_path, data)
    now["b"][Path("/b.nii")] = now["d"][Path("/mask_d.nii")] = "3"
    with pytest.raises(InputError, match=r"other content of /b\.nii, /mask_d\.nii; bring back what was there, or"):
        run_records.check_same_data(tmp_path, data)


@pytest.mark.parametrize("then", ["", "1"])
def test_another_table_of_what_tissues_look_like_is_named(tmp_path, then):
    data = dataset("abc", "d")
    started_on(tmp_path, data)
    run_records.check_same_data(tmp_path, data, "2")  # old records do not say what it was
    facts = json.loads((tmp_path / "run.json").read_text())
    facts["data"]["prior_sha256"] = then
    (tmp_path / "run.json").write_text(json.dumps(facts))
    run_records.check_same_data(tmp_path, data, then)
    with pytest.raises(InputError, match=r"other content of synth\.prior\.table; bring back what was there, or"):
        run_records.check_same_data(tmp_path, data, "2")


@pytest.mark.parametrize("name", ["run.json", "config.json"])
@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "is missing, and nothing else says"),
        (b"", "is damaged"),
        (b"{", "is damaged"),
        (b"\xff\xfe\x00", "is damaged"),
        (b"[]", r"is damaged \(it is no record"),
        (b'{"format": 99, "starts": [], "data": {}}', "is of format 99"),
    ],
)
def test_a_record_that_cannot_be_read_is_one_line(tmp_path, name, content, message):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=rf"{name}: {message}") as refusal:
        run_records.read(tmp_path / name)
    assert "\n" not in str(refusal.value)
