"""The page in a real browser: a headless Chromium of the system, spoken to through its DevTools pipe. Without one these tests skip."""

import base64
import json
import os
import select
import shutil
import subprocess
import sys
import time

import numpy as np
import pytest

from brainseg_jax.data.labels import lookup, parse_table, read_table
from brainseg_jax.data.nifti import Scan
from brainseg_jax.data.sample import template
from brainseg_jax.qc.findings import examine
from brainseg_jax.qc.report import case_record, write_report

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
PROGRAM = next(filter(None, map(shutil.which, NAMES)), None)
pytestmark = pytest.mark.skipif(PROGRAM is None, reason="no Chromium or Chrome here (Debian's package is chromium)")

TABLE = parse_table("id\tname\tpartner\tcolour\n4\tLeft nut\t5\t#ff0000\n5\tRight nut\t4\t#00ff00\n9\tStem\t9\t#0000ff\n", "three")
AFFINE = np.diag([5.0, 5.0, 5.0, 1.0])
HOSTILE = '"><script>document.title="hacked"</script><img src=x onerror="document.title=\'hacked\'">'
OPENS_WITHIN = 20  # seconds, for 1,000 cases on a machine that is busy; docs say what was measured


class Browser:
    """One tab. Messages are JSON, each ended by a zero byte, on the file descriptors 3 (to the browser) and 4 (from it)."""

    def __init__(self, folder):
        theirs, self.to = os.pipe()
        self.back, ours = os.pipe()
        flags = ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run", "--remote-debugging-pipe")
        start = (
            "import os, sys; r, w = map(os.dup, map(int, sys.argv[1:3])); os.dup2(r, 3); os.dup2(w, 4); "
            "os.set_inheritable(3, True); os.set_inheritable(4, True); os.execv(sys.argv[3], sys.argv[3:])"
        )
        command = [sys.executable, "-c", start, str(theirs), str(ours), PROGRAM, *flags, f"--user-data-dir={folder}"]
        self.process = subprocess.Popen(command, pass_fds=(theirs, ours), stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
        os.close(theirs)
        os.close(ours)
        self.pending, self.events, self.last, self.session = b"", [], 0, None
        target = self.send("Target.createTarget", url="about:blank")["targetId"]
        self.session = self.send("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Network", "Log"):
            self.send(f"{domain}.enable")
        self.size(1400, 1600)

    def close(self):
        self.process.terminate()
        self.process.wait(30)
        os.close(self.to)
        os.close(self.back)

    def message(self, seconds):
        end = time.monotonic() + seconds
        while b"\0" not in self.pending:
            ready, _, _ = select.select([self.back], [], [], max(0, end - time.monotonic()))
            assert ready, f"the browser says nothing for {seconds} s"
            more = os.read(self.back, 1 << 20)
            assert more, "the browser has ended"
            self.pending += more
        text, _, self.pending = self.pending.partition(b"\0")
        return json.loads(text)

    def send(self, method, **given):
        self.last += 1
        session = {"sessionId": self.session} if self.session else {}
        os.write(self.to, json.dumps({"id": self.last, "method": method, "params": given} | session).encode() + b"\0")
        while (got := self.message(60)).get("id") != self.last:
            self.events.append(got)
        assert "error" not in got, got
        return got["result"]

    def wait(self, method, wanted=lambda event: True):
        while True:
            for event in self.events:
                if event.get("method") == method and wanted(event["params"]):
                    self.events.clear()
                    return event["params"]
            self.events.append(self.message(60))

    def run(self, expression):
        got = self.send("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in got, got["exceptionDetails"]
        return got["result"].get("value")

    def open(self, file):
        """Goes to a page; returns what it asked for besides itself, and what was logged or thrown."""
        self.events.clear()
        self.send("Page.navigate", url=file.as_uri())
        seen = []
        while not any(event.get("method") == "Page.loadEventFired" for event in seen):
            seen.append(self.events.pop(0) if self.events else self.message(120))
        asked = [e["params"]["request"]["url"] for e in seen if e.get("method") == "Network.requestWillBeSent"]
        wrong = [e for e in seen if e.get("method") in ("Runtime.exceptionThrown", "Log.entryAdded", "Runtime.consoleAPICalled")]
        return [url for url in asked if not url.startswith("data:") and url != file.as_uri()], wrong

    def key(self, key):
        for kind in ("keyDown", "keyUp"):
            self.send("Input.dispatchKeyEvent", type=kind, key=key, **({"text": key} if kind == "keyDown" and len(key) == 1 else {}))

    def choose(self, id, value):
        self.run(f"{id}.value = {json.dumps(value)}; {id}.dispatchEvent(new Event('change'))")

    def click(self, selector):
        self.run(f"document.querySelector({json.dumps(selector)}).click()")

    def size(self, width, height):
        self.send("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)

    def screenshot(self, file):
        file.write_bytes(base64.b64decode(self.send("Page.captureScreenshot", format="png")["data"]))

    def shown(self):
        """Subjects that can be seen, in their order."""
        return self.run(
            "[...document.querySelectorAll('article')].filter((a) => a.checkVisibility()).map((a) => a.querySelector('h2 bdi').textContent)"
        )


def record(subject, stem=True, size=10, session="", cohort=None):
    classes = np.zeros((32, 40, 32), np.uint8)
    classes[16 - size : 16, 10:30, 8:24], classes[16:26, 10:30, 8:24] = 1, 2
    if stem:
        classes[15:17, 18:22, 4:8] = 3
    scan = Scan(10.0 * classes.astype(np.float32), AFFINE)
    name = f"{subject}_T1w"
    return case_record(name, scan, classes, TABLE, examine(classes, AFFINE, TABLE, cohort), subject=subject, session=session)


COHORT = {"Left nut": [400.0, 30.0, 50], "Right nut": [400.0, 30.0, 50], "Stem": [4.0, 0.4, 50]}


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    started = Browser(tmp_path_factory.mktemp("profile"))
    yield started
    started.close()


@pytest.fixture
def opened(browser, tmp_path):
    """A page of three cases, of an empty memory: one sound, one without a stem, one with a small left side and a hostile name."""
    file = tmp_path / "qc.html"
    records = [record("sub-2"), record("sub-10", stem=False, cohort=COHORT), record(HOSTILE, size=5, session="ses-1", cohort=COHORT)]
    write_report(file, records, "Three <people>", str(tmp_path))
    assert browser.open(file) == ([], [])
    return browser, file


def test_it_opens_and_names_are_only_names(opened):
    browser, _ = opened
    assert browser.shown() == [HOSTILE, "sub-10", "sub-2"]
    assert browser.run("document.title") == "Three <people>"
    assert browser.run(
        "[...document.images].every((image) => image.complete && image.naturalWidth === Number(image.getAttribute('width')))"
    )
    assert browser.run("document.getElementById('tally').textContent") == "3 cases · 2 flagged · 0 good · 0 doubtful · 0 bad · 3 not rated"


def test_filtering(opened):
    browser, _ = opened
    browser.click("#flagged")
    assert browser.shown() == [HOSTILE, "sub-10"]
    browser.choose("kind", "absent")
    assert browser.shown() == ["sub-10"]
    browser.choose("structure", "1")
    assert browser.shown() == []
    browser.choose("kind", "asymmetry")
    assert browser.shown() == [HOSTILE]
    browser.choose("kind", "")
    browser.choose("structure", "")
    browser.click("#flagged")
    browser.run("search.value = 'SUB-'; search.dispatchEvent(new Event('input'))")
    assert browser.shown() == ["sub-10", "sub-2"]
    assert browser.run("tally.textContent").startswith("2 of 3 cases · 2 flagged")
    browser.run("search.value = ''; search.dispatchEvent(new Event('input'))")
    browser.click("article:first-child button[data-rating=bad]")
    browser.choose("rating", "bad")
    assert browser.shown() == [HOSTILE]
    browser.choose("rating", "none")
    assert browser.shown() == ["sub-10", "sub-2"]


def test_sorting(opened):
    browser, _ = opened
    browser.choose("sort", "subject")
    assert browser.shown() == [HOSTILE, "sub-2", "sub-10"]  # numbers as numbers
    browser.choose("sort", "ml/1")
    assert browser.shown()[0] == HOSTILE
    assert browser.run("document.querySelector('article .value').textContent") == "Left nut 200 ml"
    browser.click("#turn")
    assert browser.shown()[-1] == HOSTILE
    browser.choose("sort", "z/1")
    assert browser.shown() == ["sub-10", HOSTILE, "sub-2"]  # largest first, and last what has no z
    browser.click("#turn")
    assert browser.shown() == [HOSTILE, "sub-10", "sub-2"]
    assert browser.run("document.querySelector('article .value').textContent").startswith("Left nut z −")
    browser.choose("sort", "score")
    assert browser.shown() == [HOSTILE, "sub-10", "sub-2"]
    assert browser.run("document.querySelector('article .value').textContent") == ""


def test_keys_rate_what_is_seen(opened):
    browser, _ = opened
    rating = "[...document.querySelectorAll('article')].map((a) => a.dataset.rating || '')"
    browser.key("1")
    assert browser.run(rating) == ["good", "", ""]
    browser.key("j")
    browser.key("3")
    assert browser.run(rating) == ["good", "bad", ""]
    assert browser.run("document.activeElement.querySelector('h2 bdi').textContent") == "sub-10"
    browser.key("k")
    browser.key("0")
    assert browser.run(rating) == ["", "bad", ""]
    browser.click("article:last-child button[data-rating=doubtful]")
    assert browser.run(rating) == ["", "bad", "doubtful"]
    assert browser.run("document.querySelector('article:last-child button[data-rating=doubtful]').ariaPressed") == "true"
    browser.click("article:last-child button[data-rating=doubtful]")
    assert browser.run(rating) == ["", "bad", ""]
    browser.key("/")
    browser.key("1")
    assert browser.run("document.activeElement.value") == "1"  # in a field, keys are text
    assert browser.run(rating) == ["", "bad", ""]


def test_ratings_last_are_saved_and_are_loaded(opened, tmp_path):
    browser, file = opened
    browser.click("article:nth-child(1) button[data-rating=bad]")
    browser.click("article:nth-child(3) button[data-rating=good]")
    browser.key("c")
    for letter in "=a b":
        browser.key(letter)
    browser.key("Escape")
    browser.open(file)
    assert browser.run("[...document.querySelectorAll('article')].map((a) => a.dataset.rating)") == ["bad", None, "good"]

    browser.send("Browser.setDownloadBehavior", behavior="allow", downloadPath=str(tmp_path), eventsEnabled=True)
    browser.click("#save")
    browser.wait("Browser.downloadProgress", lambda event: event["state"] == "completed")
    saved = tmp_path / "Three_people__ratings.tsv"
    lines = [line.split("\t") for line in saved.read_text().split("\n")]
    assert lines == [
        ["name", "subject", "session", "rating", "comment", "score", "flags"],
        [f"{HOSTILE}_T1w", HOSTILE, "ses-1", "bad", "", lines[1][5], "volume,asymmetry"],
        ["sub-10_T1w", "sub-10", "", "", "", "3", "absent"],
        ["sub-2_T1w", "sub-2", "", "good", "'=a b", "0", ""],  # which no spreadsheet computes
        [""],
    ]

    browser.run("localStorage.clear()")
    browser.open(file)
    assert browser.run("ratings.size") == 0
    saved.write_text(saved.read_text() + "sub-77\tsub-77\t\tgood\t\t0\t\nsub-10_T1w\tsub-10\t\tsplendid\t\t0\t\n")
    field = browser.send("DOM.querySelector", nodeId=browser.send("DOM.getDocument")["root"]["nodeId"], selector="#file")["nodeId"]
    browser.send("DOM.setFileInputFiles", files=[str(saved)], nodeId=field)
    browser.run("new Promise((done) => { const look = () => status.value ? done() : setTimeout(look, 20); look(); })")
    assert browser.run("status.value") == "2 ratings loaded, 2 lines fit no case here"
    assert browser.run("[...document.querySelectorAll('article')].map((a) => a.dataset.rating)") == ["bad", None, "good"]
    assert browser.run("document.querySelector('article:last-child input').value") == "=a b"
    browser.open(file)
    assert browser.run("ratings.size") == 2


def test_volumes_unfold_and_outlines_come_off(opened):
    browser, _ = opened
    browser.key("v")
    browser.run("new Promise((done) => { const look = () => document.querySelector('table') ? done() : setTimeout(look, 20); look(); })")
    cells = browser.run("[...document.querySelectorAll('table tr')].map((row) => [...row.cells].map((cell) => cell.textContent))")
    assert cells[0] == ["", "ml", "z", "z, scaled"]
    assert [row[0] for row in cells[1:]] == ["All structures", "Left nut", "Right nut", "Stem"]
    assert cells[2][1] == "200"
    assert float(cells[2][2].replace("−", "-")) < -3
    visible = "getComputedStyle(document.querySelector('.lines')).visibility"
    assert browser.run(visible) == "visible"
    browser.key("o")
    assert browser.run(visible) == "hidden"


def test_it_fits_a_narrow_window(opened):
    browser, _ = opened
    try:
        browser.size(390, 800)
        assert browser.run("document.documentElement.scrollWidth") <= 390
    finally:
        browser.size(1400, 1600)


@pytest.mark.slow
def test_a_thousand_cases_stay_usable(browser, tmp_path):
    """Pictures of a real head, each made another by a byte that decoders ignore, so that the browser cannot share them."""
    image, labels, _ = template()
    table = read_table("seg35")
    classes = lookup(labels.voxels, read_table("freesurfer"), table)
    made = case_record("head", image, classes, table, examine(classes, image.affine, table))
    records = []
    for i in range(1000):
        pictures = [
            picture | {key: base64.b64encode(base64.b64decode(picture[key]) + i.to_bytes(2)).decode() for key in ("scan", "lines")}
            for picture in made["pictures"]
        ]
        flags = made["flags"] if i % 3 else []
        values = [[ml * (1 + i / 1000), z, scaled] for ml, z, scaled in made["values"]]
        records.append(made | {"name": f"sub-{i}", "subject": f"sub-{i}", "pictures": pictures, "flags": flags, "values": values})
    file = tmp_path / "qc.html"
    write_report(file, records, "Many", str(tmp_path))
    browser.send("Network.disable")  # it would tell of 6,000 pictures, each with its content
    start = time.perf_counter()
    assert browser.open(file) == ([], [])
    browser.run("new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")
    took = {"opens": time.perf_counter() - start}
    steps = {
        "sorts": "sort.value = 'ml/3'; sort.dispatchEvent(new Event('change'))",
        "filters": "flagged.click()",
        "rates": "document.querySelector('article:not([hidden]) button[data-rating=good]').click()",
        "goes to the last": "[...document.querySelectorAll('article:not([hidden])')].at(-1).scrollIntoView()",
    }
    for what, step in steps.items():
        start = time.perf_counter()
        browser.run(f"{step}; new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")
        took[what] = time.perf_counter() - start
    print(f"\n{file.stat().st_size / 1e6:.0f} MB", {what: round(seconds, 2) for what, seconds in took.items()})
    assert len(browser.shown()) == 666
    assert took.pop("opens") < OPENS_WITHIN
    assert max(took.values()) < 2
