"""Records and the page made of them: what it says, that no name can become markup, and that nothing on it comes from elsewhere.

How it behaves is tested in a browser: test_page_browser.py.
"""

import base64
import hashlib
import json
import re
from html.parser import HTMLParser

import numpy as np
import pytest

from brainseg_jax.core.errors import InputError
from brainseg_jax.data.labels import parse_table
from brainseg_jax.data.nifti import Scan
from brainseg_jax.qc.findings import KINDS, examine
from brainseg_jax.qc.mosaic import mosaic
from brainseg_jax.qc.report import case_record, check_place_of_report, read_case_records, report, write_case_record, write_report

TABLE = parse_table("id\tname\tpartner\tcolour\n4\tLeft <b> & nut\t5\t#ff0000\n5\tRight nut\t4\t#00ff00\n9\tStem\t9\t#0000ff\n", "three")
AFFINE = np.diag([5.0, 5.0, 5.0, 1.0])
HOSTILE = [
    "</script><script>hacked()</script>",
    '"><img src=x onerror=hacked()>',
    "' onclick='hacked()",
    "{{cases}} {{script}} \\1 \\g<0>",
    "<!-- <script>",
    "sub\u202e10-ni\tgo\n\x00\udcff",
]


def record(name="one", stem=True, **given):
    classes = np.zeros((32, 40, 32), np.uint8)
    classes[6:16, 10:30, 8:24], classes[16:26, 10:30, 8:24] = 1, 2
    if stem:
        classes[15:17, 18:22, 4:8] = 3
    scan = Scan(10.0 * classes.astype(np.float32), AFFINE)
    return case_record(name, scan, classes, TABLE, examine(classes, AFFINE, TABLE), **given)


class Parsed(HTMLParser):
    """All elements with their attributes, and the text in each kind of element."""

    def __init__(self, text):
        super().__init__()
        self.elements, self.texts, self.open = [], {}, ""
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))
        self.open = tag

    def handle_endtag(self, tag):
        self.open = ""

    def handle_data(self, text):
        self.texts.setdefault(self.open, []).append(text)

    def all(self, tag):
        return [attributes for name, attributes in self.elements if name == tag]


def data(html):
    return json.loads(re.search('<script type="application/json" id="data">(.*?)</script>', html, re.S)[1])


def test_a_record_says_what_was_found_and_survives_json(tmp_path):
    made = record(subject="sub-01", session="ses-2", soft_ml=np.array([5.0, 1.23456, 2.0, 0.5]))
    assert (made["name"], made["subject"], made["session"]) == ("one", "sub-01", "ses-2")
    assert made["flags"] == []
    assert made["structures"] == [["All structures", ""], ["Left <b> & nut", "#ff0000"], ["Right nut", "#00ff00"], ["Stem", "#0000ff"]]
    ml = 10 * 20 * 16 * 0.125
    assert made["values"][1] == [pytest.approx(ml, rel=1e-3), None, None, 1.235]
    assert made["values"][0][3] == pytest.approx(3.735, abs=0.01)
    assert record(stem=False)["flags"] == [["absent", "Stem", 3.0, "Stem is absent."]]
    write_case_record(tmp_path / "qc" / "one.json", made)
    assert read_case_records([tmp_path / "qc" / "one.json"]) == [made]


def test_a_damaged_record_is_named(tmp_path):
    file = tmp_path / "one.json"
    for text in ("{", "[]", '{"format": 0}'):
        file.write_text(text)
        with pytest.raises(InputError, match=r"one\.json: is no case .* delete it"):
            read_case_records([file])


def test_a_changed_byte_of_a_record_never_gives_another_page(tmp_path, rng):
    made, file = record(), tmp_path / "one.json"
    write_case_record(file, made)
    sound = np.frombuffer(file.read_bytes(), np.uint8)
    places = np.concatenate([np.arange(400), sound.size - 1 - np.arange(400)])  # the middle is pictures
    for at in rng.choice(places, 300, replace=False):
        damaged = sound.copy()
        damaged[at] ^= 1 << rng.integers(8)
        file.write_bytes(damaged.tobytes())
        try:
            assert read_case_records([file]) == [made]
        except InputError as refusal:
            assert str(refusal).startswith(f"{file}: is no case")


def test_the_pictures_are_those_of_the_strip():
    classes = np.zeros((32, 40, 32), np.uint8)
    classes[6:16, 10:30, 8:24] = 1
    scan = Scan(10.0 * classes.astype(np.float32), AFFINE)
    html = report([case_record("one", scan, classes, TABLE, examine(classes, AFFINE, TABLE))], "T", "run")
    images = Parsed(html).all("img")
    expected = [content for picture in mosaic(scan, classes, TABLE) for content in (picture.scan, picture.lines)]
    assert [base64.b64decode(image["src"].partition("base64,")[2]) for image in images] == expected
    assert [image["alt"] for image in images[::2]] == [
        f"one: three {plane} slices of the scan" for plane in ("sagittal", "coronal", "axial")
    ]
    assert {image["alt"] for image in images[1::2]} == {""}
    assert all(int(image["width"]) > 300 and int(image["height"]) > 100 for image in images)


def test_the_worst_comes_first_whatever_the_order():
    records = [record("b"), record("c", stem=False), record("a")]
    for given in (records, records[::-1]):
        html = report(given, "T", "run")
        assert [one["name"] for one in data(html)["cases"]] == ["c", "a", "b"]
        assert [one["data-case"] for one in Parsed(html).all("article")] == ["0", "1", "2"]
    assert data(html)["cases"][0]["flags"] == [["absent", 3]]


def test_no_name_becomes_markup():
    plain = Parsed(report([record(f"n{i}", subject=f"s{i}", session="x") for i in range(len(HOSTILE))], "T", "run", ["note"]))
    hostile = report([record(f"{i}{text}", subject=text, session=text) for i, text in enumerate(HOSTILE)], HOSTILE[0], "run", [HOSTILE[1]])
    parsed = Parsed(hostile)
    assert sorted(tag for tag, _ in parsed.elements) == sorted(tag for tag, _ in plain.elements)
    assert {key for _, a in parsed.elements for key in a} == {key for _, a in plain.elements for key in a}
    assert set(HOSTILE[:5]) <= set(parsed.texts["bdi"])
    assert parsed.texts["title"] == [HOSTILE[0]]
    assert HOSTILE[1] in parsed.texts["p"]
    assert {one["subject"] for one in data(hostile)["cases"]} == {*HOSTILE[:5], "sub\u202e10-ni\ufffdgo\ufffd\ufffd\ufffd"}
    hostile.encode("utf-8")


def test_only_the_page_s_own_script_may_run_and_nothing_is_fetched():
    html = report([record()], "T", "run")
    parsed = Parsed(html)
    (policy,) = (meta["content"] for meta in parsed.all("meta") if "http-equiv" in meta)
    (script,) = re.findall("<script>(.*?)</script>", html, re.S)
    assert f"script-src 'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'" in policy
    assert policy.startswith("default-src 'none'; img-src data:;")
    addresses = [value for _, a in parsed.elements for key, value in a.items() if key in ("src", "href", "srcset", "action", "data")]
    assert addresses
    assert all(address.startswith("data:image/") for address in addresses)
    assert not parsed.all("link")
    assert not re.search(r"https?://|@import|url\(", html)
    assert not [key for _, a in parsed.elements for key in a if key.startswith("on")]


def test_flags_are_told_and_explained():
    classes = np.zeros((32, 40, 32), np.uint8)
    classes[16:26, 10:30, 8:24] = 1
    made = case_record("one", Scan(10.0 * classes.astype(np.float32), AFFINE), classes, TABLE, examine(classes, AFFINE, TABLE))
    html = report([made], "T", "run")
    assert "<li class=worst><b>absent</b> <span>Stem is absent.</span></li>" in html
    assert Parsed(html).texts["dt"] == list(KINDS)
    made["flags"] = [["edge", "Stem", 1.0, f"<{i}>"] for i in range(9)]
    assert "<summary>4 more</summary>" in report([made], "T", "run")


def test_cases_that_do_not_belong_on_one_page():
    with pytest.raises(InputError, match="two cases are called 'one'; give each its own name"):
        report([record(), record()], "T", "run")
    other = record("two")
    other["structures"] = other["structures"][:-1]
    with pytest.raises(InputError, match="two has other structures than one; make a report for each"):
        report([record(), other], "T", "run")


def test_ratings_belong_to_the_run(tmp_path):
    first, again = (data(report([record(name) for name in names], title, "run")) for names, title in ((["a"], "T"), (["a", "b"], "other")))
    assert first["id"] == again["id"] != data(report([record()], "T", "another run"))["id"]


def test_a_page_without_cases(tmp_path):
    write_report(tmp_path / "out" / "qc.html", [], "T", "run", ["3 scans failed"])
    assert "3 scans failed" in (tmp_path / "out" / "qc.html").read_text()


def test_only_a_page_of_ours_is_written_over(tmp_path):
    file, out = tmp_path / "qc.html", tmp_path / "out"
    check_place_of_report(file, out)
    check_place_of_report(out / "qc.html", out)  # the folder of all outputs is made later
    write_report(file, [], "T", "run")
    check_place_of_report(file, out)
    file.write_text("<!doctype html><title>brainseg_jax</title>")
    (tmp_path / "folder.html").mkdir()
    for bad, reason in (
        (file, r"qc\.html: exists, and is no QC report of this command; move it away"),
        (tmp_path / "folder.html", r"folder\.html: is a folder; give the name of a QC report"),
        (tmp_path / "none" / "qc.html", "there is no folder .*none; make it"),
        (file / "qc.html", r"there is no folder .*qc\.html; make it"),
    ):
        with pytest.raises(InputError, match=reason):
            check_place_of_report(bad, out)
    assert not out.exists() and file.read_text().endswith("</title>")


def test_a_folder_that_cannot_be_written_to(tmp_path, monkeypatch):
    def fails(*_, **__):
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr("tempfile.TemporaryFile", fails)
    with pytest.raises(InputError, match=r"Read-only file system\); give another place"):
        check_place_of_report(tmp_path / "qc.html", tmp_path)
