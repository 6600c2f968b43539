"""The loop on a tiny cohort: it learns, leaves what it promises, and goes on from a stop as if nothing had happened."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from contextlib import nullcontext
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from brainseg_jax.cli.evaluate import main as evaluate
from brainseg_jax.config.keys import base
from brainseg_jax.config.resolve import FORMAT, with_sources
from brainseg_jax.core.errors import InputError
from brainseg_jax.core.progress import progress as show_progress
from brainseg_jax.data import cache, dataset
from brainseg_jax.data.loader import ALL
from brainseg_jax.data.manifest import read_manifest, write_manifest
from brainseg_jax.objectives.mae import MAE
from brainseg_jax.parallel.sharding import make_mesh
from brainseg_jax.parallel.signals import stop_requests
from brainseg_jax.training import loop, run_lock, run_records
from brainseg_jax.training.loop import idle_devices, num_steps, train
from brainseg_jax.training.metrics_log import Writer, read_metrics
from brainseg_jax.training.run import Run, is_finished
from brainseg_jax.training.run_lock import check_same_experiment
from brainseg_jax.training.step import averaged, means, totals
from brainseg_jax.weights import checkpoint
from brainseg_jax.weights.checkpoint import load, verify


@pytest.fixture(scope="session")
def run(small, cohort):
    """`run(folder, **changes)` trains the small config on the cohort."""

    def go(folder, **changes):
        config = small(**{"data.manifest": str(cohort), "data.cache": str(cohort.parent)} | changes)
        train(config, with_sources(config, set(), "test.py"), folder)
        return folder

    return go


@pytest.fixture(scope="session")
def whole(run, tmp_path_factory):
    """A run of eight steps, never interrupted."""
    return run(tmp_path_factory.mktemp("whole") / "run")


def contents(folder):
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def losses(folder, kind="train"):
    return {row["step"]: row["loss"] for row in read_metrics(folder / "metrics.jsonl") if row["kind"] == kind}


def same_end(a, b, step="8"):
    """Bit-equal state: parameters and the optimizer's."""
    for part in ("params", "opt_state"):
        jax.tree.map(np.testing.assert_array_equal, load(a / "checkpoints" / step, part)[0], load(b / "checkpoints" / step, part)[0])


@pytest.fixture
def at_step(monkeypatch):
    """Does something once a step has been logged, as a signal or a failure would come."""

    def when(step, act):
        real = Writer.progress

        def progress(self, done, *what):
            real(self, done, *what)
            if done == step:
                act()

        monkeypatch.setattr(Writer, "progress", progress)

    return when


@pytest.mark.slow
def test_it_learns(run, tmp_path):
    rows = losses(run(tmp_path / "run", **{"steps": 60, "optim.lr": 3e-3, "eval_every": 0.5}))
    assert np.mean([rows[s] for s in range(51, 61)]) < 0.7 * np.mean([rows[s] for s in range(1, 6)])


@pytest.mark.slow
def test_what_a_run_leaves(whole):
    files = {str(p.relative_to(whole)) for p in whole.rglob("*") if p.is_file()}
    assert {"config.json", "run.json", "metrics.jsonl", "split.tsv", "pictures/step_000000.png", "pictures/step_000008.png"} <= files
    assert {p.name for p in (whole / "checkpoints").iterdir()} <= {"4", "8"} and verify(whole / "checkpoints" / "8") == ""
    assert list(losses(whole)) == list(range(1, 9)) and list(losses(whole, "eval")) == [0, 4, 8]
    facts = json.loads((whole / "run.json").read_text())
    assert (facts["data"]["train"], facts["data"]["val"], facts["seed"], len(facts["starts"])) == (3, 1, 0, 1)
    config = json.loads((whole / "config.json").read_text())
    assert config["vit.width"] == {"value": 24, "from": "test.py"} and config["optim.b1"]["from"] == "default"
    last = read_metrics(whole / "metrics.jsonl")[-1]
    assert last["kind"] == "eval" and set(last) == {"step", "kind", "time", *MAE.metrics}
    row = read_metrics(whole / "metrics.jsonl")[-2]
    assert {"loss", "gradient_norm", "learning_rate", "crops_per_second", "input_wait"} <= set(row)


@pytest.mark.slow
def test_a_checkpoint_says_what_it_is(whole):
    encoder, card = load(whole / "checkpoints" / "8", "params/encoder")
    assert card["spec"]["size"] == [32, 32, 32] and card["steps"] == 8 and len(card["subjects"]) == 3
    assert {"format": FORMAT} | card["config"] == json.loads((whole / "config.json").read_text())
    assert encoder["blocks"]["attn"]["qkv"]["kernel"].shape == (2, 24, 72)


@pytest.mark.slow
def test_the_same_command_on_a_finished_run_says_so_and_changes_nothing(run, whole, capsys):
    before = contents(whole)
    run(whole)
    assert "finished: 8 steps" in capsys.readouterr().out
    after = contents(whole)
    assert [name for name in before.keys() | after.keys() if before.get(name) != after.get(name)] == []


@pytest.mark.slow
@pytest.mark.parametrize(("number", "step"), [(signal.SIGTERM, 3), (signal.SIGUSR1, 6), (signal.SIGINT, 4)])
def test_stopped_and_gone_on_is_as_never_stopped(run, whole, tmp_path, at_step, monkeypatch, number, step):
    """Ctrl-C ends what called it, too, once all is saved."""
    at_step(step, lambda: os.kill(os.getpid(), number))
    with pytest.raises(KeyboardInterrupt, match="stopped at step 4, saved") if number == signal.SIGINT else nullcontext():
        run(tmp_path / "run")
    assert max(losses(tmp_path / "run")) == step and (tmp_path / "run" / "checkpoints" / str(step)).is_dir()
    monkeypatch.undo()
    run(tmp_path / "run")
    same_end(tmp_path / "run", whole)
    assert losses(tmp_path / "run") == losses(whole) and losses(tmp_path / "run", "eval") == losses(whole, "eval")


@pytest.mark.slow
def test_killed_and_gone_on_is_as_never_killed(run, whole, tmp_path, at_step, monkeypatch):
    """The run dies after step 6, its last checkpoint is of step 4: steps 5 and 6 are done again, and stand once in the metrics."""

    def die():
        raise RuntimeError("pulled the plug")

    at_step(6, die)
    with pytest.raises(RuntimeError, match="pulled the plug"):
        run(tmp_path / "run")
    assert max(losses(tmp_path / "run")) == 6
    monkeypatch.undo()
    run(tmp_path / "run")
    same_end(tmp_path / "run", whole)
    rows = [(row["step"], row["kind"]) for row in read_metrics(tmp_path / "run" / "metrics.jsonl")]
    assert len(rows) == len(set(rows)) and losses(tmp_path / "run") == losses(whole)


UNET = {"encoder": "resenc", "decoder": "unet", "unet.features": (4, 8, 8), "unet.blocks": (1, 1, 2), "unet.decoder_blocks": (1, 1)}
MADE = UNET | {"objective": "segmentation", "data.labels": "seg4", "classes": 5, "synth.share": 0.5, "synth.strip.chance": 0.5}
MADE |= {"steps": 2, "data.crops_per_volume": 2, "data.batch": 4, "augment.affine.chance": 0.5, "augment.mirror.sides": 0.5}


@pytest.mark.slow
def test_scans_are_made_in_training_and_a_stop_changes_nothing(run, heads, tmp_path, at_step, monkeypatch, capsys):
    """Of a scan with its labels and of labels only, to train on and held out, by a table of what tissues look like, which stays the same;
    then the network is scored on what has an image."""
    (prior := tmp_path / "t1.tsv").write_text("id\tmean\tmean_sd\tspread\tspread_sd\n2\t0.8\t0.05\t0.04\t0.01\n")
    changes = MADE | {"data.manifest": str(heads), "data.cache": str(heads.parent), "synth.prior.table": str(prior)}
    whole = run(tmp_path / "whole", **changes)
    assert {row["step"] for row in read_metrics(whole / "metrics.jsonl") if row["kind"] == "eval" and "dice/Cortex" in row} == {0, 1, 2}
    assert all(np.isfinite(loss) for loss in losses(whole).values()) and (whole / "pictures" / "step_000002.png").exists()
    facts = json.loads((whole / "run.json").read_text())["data"]
    assert (facts["train"], facts["val"]) == (2, 2)
    assert facts["prior_sha256"] == checkpoint.card(whole / "checkpoints" / "2")["prior_sha256"] != ""
    at_step(1, lambda: os.kill(os.getpid(), signal.SIGTERM))
    run(tmp_path / "run", **changes)
    assert max(losses(tmp_path / "run")) == 1
    monkeypatch.undo()
    was = prior.read_text()
    prior.write_text(was.replace("0.8", "0.7"))
    with pytest.raises(InputError, match=r"was trained on other content of synth\.prior\.table"):
        run(tmp_path / "run", **changes)
    prior.write_text(was)
    run(tmp_path / "run", **changes)
    same_end(tmp_path / "run", whole, "2")
    assert losses(tmp_path / "run") == losses(whole) and losses(tmp_path / "run", "eval") == losses(whole, "eval")
    capsys.readouterr()
    flags = ["--checkpoint", str(whole / "checkpoints" / "2"), "--split", "val", "--metrics", "dice", "--o", str(tmp_path / "t.tsv")]
    assert evaluate([*flags, "--manifest", str(heads)]) == 0
    assert "left out: 1 label map without an image to segment" in capsys.readouterr().out
    write_manifest(tmp_path / "people.tsv", [row for row in read_manifest(heads) if row.labels_only])
    assert evaluate([*flags, "--manifest", str(tmp_path / "people.tsv")]) == 2
    error = capsys.readouterr().err
    assert "all labels of split 'val' are without an image to segment; choose another --split" in error and error.count("\n") == 1


def test_labels_only_are_refused_where_no_scans_are_made(run, heads, tmp_path):
    for changes in ({}, {name: value for name, value in MADE.items() if not name.startswith("synth.")}):
        with pytest.raises(InputError, match=r"head1\.nii\.gz has no image; add one, leave the line out, or have scans made of it"):
            run(tmp_path / "run", **changes | {"data.manifest": str(heads), "data.cache": str(heads.parent)})


KILLED = """
import json, os, signal, sys
from pathlib import Path
from absl import flags
from brainseg_jax.config.resolve import from_resolved, with_sources
from brainseg_jax.training.loop import train

if __name__ == "__main__":
    folder, moment = sys.argv[1:]

    def kill(event, args):
        if event == "os.rename" and str(args[1]).endswith(moment):
            os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(kill)
    flags.FLAGS.mark_as_parsed()
    config = from_resolved(json.loads(Path("config.json").read_text()))
    train(config, with_sources(config, set(), "test.py"), Path(folder))
"""


def said(folder):
    """The rows of metrics.jsonl, but for what a clock says."""
    clock = ("time", "crops_per_second", "input_wait")
    return [{name: value for name, value in row.items() if name not in clock} for row in read_metrics(folder / "metrics.jsonl")]


def processes_with(mark):
    """Numbers of the processes that inherited this word in their environment."""
    found = []
    for place in Path("/proc").glob("[0-9]*"):
        try:
            found += [place.name] if mark.encode() in (place / "environ").read_bytes() else []
        except OSError:  # another user's, or it has just ended
            continue
    return found


@pytest.mark.slow
def test_killed_in_a_save_nothing_is_lost_or_left(run, small, cohort, tmp_path):
    """Killed when checkpoint 6 is about to take its place. The first line's average goes over steps 1 to 5, four of which were done before
    the checkpoint that the run goes on from. The end is the same, to the bit, and so are all lines."""
    changes = {"data.manifest": str(cohort), "data.cache": str(cohort.parent), "save_every": 3, "log_every": 5, "data.workers": 1}
    (tmp_path / "killed.py").write_text(KILLED)
    (tmp_path / "config.json").write_text(json.dumps(with_sources(small(**changes), set(), "test.py")))
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2]), "JAX_NUM_CPU_DEVICES": "8", "MARK": str(tmp_path)}
    command = [sys.executable, "killed.py", "run", "checkpoints/6"]
    process = subprocess.Popen(command, cwd=tmp_path, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    assert process.wait(timeout=120) == -signal.SIGKILL
    checkpoints = tmp_path / "run" / "checkpoints"
    assert max(int(seal.parent.name) for seal in checkpoints.glob("*/checksums.json")) == 4 and len(list(checkpoints.glob("6.*"))) == 1
    deadline = time.monotonic() + 20
    while processes_with(str(tmp_path)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert processes_with(str(tmp_path)) == [] and not list(Path("/dev/shm").glob(f"brainseg_jax-*-{process.pid}-*"))
    run(tmp_path / "run", **changes | {"data.workers": 0})
    never = run(tmp_path / "never", **changes | {"data.workers": 0})
    same_end(tmp_path / "run", never)
    assert said(tmp_path / "run") == said(never) and {p.name for p in checkpoints.iterdir()} == {"6", "8"}


@pytest.mark.slow
def test_threads_and_mesh_may_change_on_the_way(run, whole, tmp_path, at_step, monkeypatch, close):
    at_step(4, lambda: os.kill(os.getpid(), signal.SIGTERM))
    run(tmp_path / "run")
    monkeypatch.undo()
    run(tmp_path / "run", **{"data.threads": 3, "mesh.data": 2, "log_every": 2})
    ours, theirs = losses(tmp_path / "run", "eval"), losses(whole, "eval")
    close(ours[8], theirs[8], times=10)


@pytest.mark.slow
def test_another_experiment_in_the_folder_is_refused_by_its_keys(run, whole):
    with pytest.raises(InputError, match=r"holds another experiment \(optim\.lr: 0\.0004 → 0\.1\).*--workdir"):
        run(whole, **{"optim.lr": 0.1})


def test_a_run_that_saved_nothing_does_not_hold_its_folder(tmp_path, small):
    first, second = (with_sources(small(**{"optim.lr": peak}), set(), "test.py") for peak in (0.1, 0.2))
    (tmp_path / "config.json").write_text(json.dumps(first))
    (tmp_path / "run.json").write_text(json.dumps({"starts": [], "data": {}}))
    check_same_experiment(tmp_path, second)
    (tmp_path / "checkpoints" / "8").mkdir(parents=True)
    check_same_experiment(tmp_path, first)
    with pytest.raises(InputError, match=r"holds another experiment \(optim\.lr: 0\.1 → 0\.2\)"):
        check_same_experiment(tmp_path, second)


@pytest.fixture
def begun(run, small, cohort, tmp_path, monkeypatch):
    """(folder, changes): a run on a cohort of its own that has begun, as far as a start reads it before it restores anything."""
    images = [row._replace(image=Path(shutil.copy(row.image, tmp_path))) for row in read_manifest(cohort)]
    write_manifest(tmp_path / "people.tsv", images)
    changes = {"data.manifest": str(tmp_path / "people.tsv"), "data.cache": str(tmp_path / "cache")}
    folder = tmp_path / "run"
    build = cache.build
    monkeypatch.setattr(cache, "build", lambda *args, **how: build(*args, workers=1, **how))
    config = small(**changes)
    data = dataset.prepare(config.data, None, print, show_progress)
    (folder / "checkpoints" / "4").mkdir(parents=True)
    dataset.write_down(data, folder, begun=False)
    (folder / "failures.csv").write_text("of then")
    run_records.write(folder, with_sources(config, set(), "test.py"), config, data, make_mesh(1, 1, jax.devices()), {"encoder": {}}, 4)
    return folder, changes


def more_people(folder):
    rows = read_manifest(folder / "people.tsv")
    (folder / "more").mkdir()
    more = [row._replace(subject=row.subject + "more", image=Path(shutil.copy(row.image, folder / "more"))) for row in rows]
    write_manifest(folder / "people.tsv", [*rows, *more])


def another_image(folder):
    shutil.copy(folder / "head1.nii.gz", folder / "head2.nii.gz")


def no_images(folder):
    for image in folder.glob("head*.nii.gz"):
        image.unlink()


def in_the_run(name, content):
    """Puts this into a file of the run, or takes the file away."""
    return lambda folder: (folder / "run" / name).unlink() if content is None else (folder / "run" / name).write_bytes(content)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (in_the_run("config.json", None), r"run/config\.json: is missing"),
        (in_the_run("config.json", b""), r"run/config\.json: is damaged"),
        (in_the_run("run.json", None), r"run/run\.json: is missing"),
        (in_the_run("run.json", b"\xff\x00"), r"run/run\.json: is damaged"),
        (in_the_run("metrics.jsonl", b"\xff\x00\n{}\n"), r"run/metrics\.jsonl: line 1 is damaged"),
        (more_people, "was trained on 3 volumes and 1 for validation, now there are 6 and 2"),
        (another_image, r"was trained on other content of .*/head2\.nii\.gz; bring back"),
        (no_images, r"4 of 4 scans cannot be used.*head0: .*no such file[^(]*;"),
    ],
)
def test_a_refused_start_changes_nothing_in_a_run_that_has_begun(run, begun, tmp_path, change, message):
    folder, changes = begun
    change(tmp_path)
    before = contents(folder)
    with pytest.raises(InputError, match=message):
        run(folder, **changes)
    after = contents(folder)
    assert set(after) - set(before) <= {".lock"} and {name: after[name] for name in before} == before


def test_a_refused_start_of_a_new_run_writes_no_record(run, tmp_path):
    checkpoint.write(tmp_path / "c", {"encoder": {"norm": np.zeros(3, np.float32)}}, {"config": with_sources(base(), set(), "test.py")})
    with pytest.raises(InputError, match="was trained with vit"):
        run(tmp_path / "run", **{"init.checkpoint": str(tmp_path / "c")})
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("checkpoint", ["", "none.safetensors", "c"], ids=["no checkpoint", "no file", "another network"])
def test_what_a_run_begins_with_is_checked_before_scans_are_standardised(run, tmp_path, monkeypatch, checkpoint):
    of_vit = {"encoder": {"norm": np.zeros(3, np.float32)}}
    loop.checkpoint.write(tmp_path / "c", of_vit, {"config": with_sources(base(), set(), "test.py")})
    monkeypatch.setattr(dataset, "prepare", None)
    with pytest.raises(InputError, match=re.escape(str(tmp_path / checkpoint))):
        run(tmp_path / "run", **{"init.checkpoint": str(tmp_path / checkpoint)})


@pytest.mark.slow
def test_a_loss_that_is_not_finite_stops_the_run_with_the_remedy(run, tmp_path):
    with pytest.raises(InputError, match=r"the loss is nan at step \d.*optim\.lr") as refusal:
        run(tmp_path / "run", **{"optim.lr": 1e30, "optim.warmup": 0.0, "optim.clip": 0.0})
    assert "\n" not in str(refusal.value)
    saved = list((tmp_path / "run" / "checkpoints").glob("[0-9]*"))
    assert all(np.isfinite(leaf).all() for p in saved for leaf in jax.tree.leaves(load(p)[0]))


@pytest.mark.parametrize(("key", "value"), [("objective", "clip"), ("encoder", "resnet")])
def test_an_unknown_part_is_refused_by_its_key(run, tmp_path, key, value):
    with pytest.raises(InputError, match=rf"^{key} .*{value}"):
        run(tmp_path / "run", **{key: value})


@pytest.mark.parametrize("best", ["nonsense", "reconstruction"])
def test_an_unknown_best_metric_is_refused_before_anything_is_made(run, tmp_path, best):
    with pytest.raises(InputError, match=f"^best is '{best}'; evaluation gives loss$"):
        run(tmp_path / "run", best=best)
    assert not (tmp_path / "run").exists()


def test_a_batch_that_does_not_divide_over_the_devices_is_refused(run, tmp_path):
    with pytest.raises(InputError, match=r"data\.batch 2 does not divide over 8 devices"):
        run(tmp_path / "run", **{"mesh.data": -1})


def test_length(small):
    assert num_steps(small(steps=7), 100) == 7
    epochs = {"steps": 0, "data.crops_per_volume": 4, "data.batch": 8}
    assert num_steps(small(**epochs, epochs=3.0), 100) == 150  # 3 · 100 · 4 / 8
    with pytest.raises(InputError, match="less than one step"):
        num_steps(small(**epochs, epochs=0.01), 10)


def test_averages_are_over_counts_and_not_over_batches():
    """Two of value 1 and one of value 4: 2, not 2.5."""
    pair = lambda *values: tuple(jnp.float32(v) for v in values)  # noqa: E731
    metrics = [{"loss": pair(2, 2), "none": pair(0, 0)}, {"loss": pair(4, 1), "none": pair(0, 0)}]
    means = averaged(metrics)
    assert means["loss"] == 2.0 and np.isnan(means["none"])


def test_a_window_cut_in_two_is_the_same_to_the_bit(rng):
    steps = [{"loss": (jnp.float32(a), jnp.float32(b))} for a, b in rng.normal(size=(9, 2))]
    whole = totals(steps)
    for cut in range(10):
        kept = json.loads(json.dumps(totals(steps[:cut])))  # as a checkpoint keeps it
        assert means(totals(steps[cut:], kept)) == means(whole)


def test_an_evaluation_whose_checkpoint_was_never_whole_does_not_end_a_run(tmp_path):
    """It was killed while it saved at step 30: of step 20, that it goes on from, nothing is stale."""
    rows = [{"step": step, "kind": "eval", "loss": loss} for step, loss in ((10, 1.0), (20, 0.5), (30, 0.6))]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = base()
    config.patience = 1
    one = Run(config, {}, tmp_path, None, None, ALL, 40)
    assert not is_finished(one, 20) and is_finished(one, 30) and is_finished(one, 40)


def test_handlers_of_signals_are_put_back():
    before = signal.getsignal(signal.SIGTERM)
    with stop_requests(0) as (stopped, interrupted):
        assert not stopped(0)
        os.kill(os.getpid(), signal.SIGTERM)
        assert stopped(0) and not interrupted()
        os.kill(os.getpid(), signal.SIGINT)
        assert interrupted()
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_run_folder_has_one_run(tmp_path):
    with (
        run_lock.exclusive_run_dir(tmp_path, ALL),
        pytest.raises(InputError, match="another run is training in it"),
        run_lock.exclusive_run_dir(tmp_path, ALL),
    ):
        pass
    with run_lock.exclusive_run_dir(tmp_path, ALL):
        pass


@pytest.mark.parametrize("error", [InputError, KeyboardInterrupt])
def test_a_start_that_comes_to_nothing_leaves_nothing(tmp_path, error):
    for folder in (tmp_path / "new" / "run", tmp_path):
        with pytest.raises(error), run_lock.exclusive_run_dir(folder, ALL):
            assert (folder / ".lock").exists()
            raise error
        assert list(tmp_path.iterdir()) == []


def test_a_run_is_no_file_and_lies_in_none(tmp_path):
    (tmp_path / "main.log").write_text("words")
    for folder in (tmp_path / "main.log", tmp_path / "main.log" / "run"):
        fault = re.escape(f"{folder}/run.json: {tmp_path}/main.log is a file, and nothing can be written below it; give another place")
        with pytest.raises(InputError, match=fault), run_lock.exclusive_run_dir(folder, ALL):
            pass
    assert (tmp_path / "main.log").read_text() == "words"


def test_a_start_that_is_refused_leaves_what_others_put_beside_it(tmp_path):
    with pytest.raises(InputError), run_lock.exclusive_run_dir(tmp_path / "new" / "run", ALL):
        (tmp_path / "new" / "notes.txt").touch()
        raise InputError
    assert list((tmp_path / "new").iterdir()) == [tmp_path / "new" / "notes.txt"]
    with pytest.raises(InputError), run_lock.exclusive_run_dir(tmp_path / "run", ALL):
        (tmp_path / "run" / "failures.csv").touch()
        raise InputError
    assert (tmp_path / "run" / "failures.csv").exists()


def test_a_lock_that_another_start_took_away_is_none(tmp_path, monkeypatch):
    real = run_lock.fcntl.flock

    def late(lock, how):
        real(lock, how)
        (tmp_path / ".lock").unlink()

    monkeypatch.setattr(run_lock.fcntl, "flock", late)
    with pytest.raises(InputError, match="another run is training in it"), run_lock.exclusive_run_dir(tmp_path, ALL):
        pass


def test_a_lock_that_is_no_file_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / ".lock")
    with (
        pytest.raises(InputError, match=r"\.lock: is a pipe or device and no file; remove it"),
        run_lock.exclusive_run_dir(tmp_path, ALL),
    ):
        pass


def test_devices_that_are_left_out_are_mentioned():
    devices = jax.devices()
    assert idle_devices(make_mesh(2, 1, devices)) == f", {len(devices) - 2} left idle by mesh.data=2 and mesh.fsdp=1"
    assert idle_devices(make_mesh(-1, 1, devices)) == ""
