"""Several processes are one run: how they start, what they refuse together, and that they train, evaluate, save and resume as one does."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from brainseg_jax.config.resolve import with_sources
from brainseg_jax.core.errors import InputError
from brainseg_jax.data.manifest import read_manifest, write_manifest
from brainseg_jax.data.nifti import read
from brainseg_jax.parallel.launch import Start, check_devices, first_host, own_gpus, start_from
from brainseg_jax.parallel.sync import all_gather, broadcast_from_first, run_once_per_host
from brainseg_jax.training.loop import train
from brainseg_jax.training.metrics_log import Writer, read_metrics
from brainseg_jax.weights.checkpoint import verify

ROOT = Path(__file__).parents[2]
STEP = {
    "SLURM_JOB_ID": "1234", "SLURM_STEP_ID": "0", "SLURM_STEP_NUM_TASKS": "8", "SLURM_PROCID": "5", "SLURM_STEP_NODELIST": "gpu[03-04]",
    "SLURM_STEP_TASKS_PER_NODE": "4(x2)", "SLURM_NODEID": "1", "SLURM_LOCALID": "1",
}  # fmt: skip

# ---- how a process starts


def test_without_srun_and_flags_a_process_is_alone():
    assert start_from("", None, None, {}) is None
    assert start_from("", None, None, {"SLURM_JOB_ID": "1234", "SLURM_NTASKS": "8", "SLURM_PROCID": "0"}) is None  # a batch script
    assert start_from("", None, None, STEP | {"SLURM_STEP_NUM_TASKS": "1"}) is None
    assert start_from("", 1, None, STEP) is None


def test_flags_go_before_slurm():
    assert start_from("node1:5000", 2, 1, STEP) == Start("node1:5000", 2, 1)


@pytest.mark.parametrize(
    ("given", "hint"),
    [
        (("node1:5000", None, None), "--processes is missing"),
        (("", 2, 0), "--coordinator is missing"),
        (("node1:5000", 2, None), "--process is missing"),
        (("node1", 2, 0), "HOST:PORT|free port"),
        (("node1:5000", 2, 2), "from 0 to 1"),
        (("node1:70000", 2, 0), "HOST:PORT|free port"),
        (("node1:5000", 0, 0), "1 or more"),
    ],
)
def test_flags_that_do_not_go_together_are_refused(given, hint):
    with pytest.raises(InputError, match=hint):
        start_from(*given, {})


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("SLURM_STEP_NUM_TASKS", "two"), ("SLURM_JOB_ID", None), ("SLURM_PROCID", ""), ("SLURM_STEP_NODELIST", None),
        ("SLURM_STEP_TASKS_PER_NODE", "4"), ("SLURM_NODEID", "first"), ("SLURM_GPUS_ON_NODE", "gpu:2"), ("SLURM_LOCALID", None),
    ],
)  # fmt: skip
def test_what_slurm_would_not_say_is_named(name, value):
    environ = {key: said for key, said in (STEP | {"CUDA_VISIBLE_DEVICES": "0,1,2,3"} | {name: value}).items() if said is not None}
    with pytest.raises(InputError, match=rf"^{name} is .*--processes=1"):
        start_from("", None, None, environ)


def test_srun_says_it_all():
    start = start_from("", None, None, STEP | {"CUDA_VISIBLE_DEVICES": "0,1,2,3"})
    host, _, port = start.coordinator.partition(":")
    assert (host, start.processes, start.process, start.devices) == ("gpu03", 8, 5, (1,)) and 61000 <= int(port) < 65536
    others = [start_from("", None, None, STEP | other).coordinator for other in ({"SLURM_JOB_ID": "1235"}, {"SLURM_STEP_ID": "1"})]
    assert len({start.coordinator, *others}) == 3
    assert start_from("", None, None, STEP | {"SLURM_PROCID": "0"}).coordinator == start.coordinator


@pytest.mark.parametrize(
    ("nodes", "host"),
    [("node01", "node01"), ("a,b", "a"), ("gpu[03-04,07],login", "gpu03"), ("n[1,3]-ib", "n1-ib"), ("rack2-n[007-015],x", "rack2-n007")],
)
def test_the_first_host_of_a_list(nodes, host):
    assert first_host(nodes) == host


@pytest.mark.parametrize(
    ("changes", "gpus"),
    [
        ({"CUDA_VISIBLE_DEVICES": "0,1,2,3", "SLURM_STEP_TASKS_PER_NODE": "1(x2)"}, None),  # one process per node
        ({"CUDA_VISIBLE_DEVICES": "0,1,2,3"}, (1,)),
        ({"CUDA_VISIBLE_DEVICES": "4,5,6,7", "SLURM_GPUS_ON_NODE": "4"}, (1,)),  # places in what is seen, not numbers
        ({"CUDA_VISIBLE_DEVICES": "0,1,2,3", "SLURM_STEP_TASKS_PER_NODE": "4,2"}, (2, 3)),
        ({"CUDA_VISIBLE_DEVICES": "0", "SLURM_GPUS_ON_NODE": "4"}, None),  # --gpus-per-task=1: its own already
        ({"CUDA_VISIBLE_DEVICES": "0,1", "SLURM_GPUS_ON_NODE": "8"}, None),
        ({}, None),  # no GPU
    ],
)
def test_each_process_of_a_node_has_its_gpus(changes, gpus):
    assert own_gpus(STEP | changes) == gpus


def test_gpus_that_do_not_divide_over_processes_are_refused():
    with pytest.raises(InputError, match="3 GPUs do not divide over 4 processes"):
        own_gpus(STEP | {"CUDA_VISIBLE_DEVICES": "0,1,2"})


def test_alone_words_are_ones_own():
    assert (all_gather("a"), broadcast_from_first(lambda: (1, 2)), run_once_per_host(lambda: 3)) == (["a"], (1, 2), 3)
    check_devices(8)
    with pytest.raises(InputError, match=r"--devices is 4, and there are 8"):
        check_devices(4)


# ---- two processes

STEPS = 24
CHANGES = {
    "steps": STEPS, "data.batch": 4, "data.crop": (32, 32, 16), "vit.patch": 16, "vit.depth": 4, "vit.features": (0, 1, 2),
    "vit.qkv_bias": False, "mesh.data": 2, "mesh.fsdp": 2,
}  # fmt: skip
ONE = {"mesh.data": 1, "mesh.fsdp": 1}


class Two:
    """Folder, configs and results of two processes of two CPU devices each, over loopback."""

    def __init__(self, folder, configs):
        self.folder, self.configs = folder, configs

    def alone(self, name, run=None, **changes):
        """Trains a config in this process, in the folder `run` or a folder of its own."""
        config = self.configs[name].copy_and_resolve_references()
        config.update_from_flattened_dict(ONE | changes)
        train(config, with_sources(config, set(), "test.py"), self.folder / (run or f"{name} alone"))
        return self.folder / (run or f"{name} alone")

    def start(self):
        """(exit codes, stderr) of the two; the port is free, whatever else this machine does."""
        configs = {name: with_sources(config, set(), "test.py") for name, config in self.configs.items()}
        (self.folder / "configs.json").write_text(json.dumps(configs))
        step = {
            "SLURM_JOB_ID": str(os.getpid()), "SLURM_STEP_ID": "0", "SLURM_STEP_NUM_TASKS": "2", "SLURM_STEP_NODELIST": "localhost",
            "SLURM_STEP_TASKS_PER_NODE": "2", "SLURM_NODEID": "0", "JAX_NUM_CPU_DEVICES": "2", "PYTHONPATH": str(ROOT),
        }  # fmt: skip
        command = [sys.executable, str(ROOT / "tests" / "two_processes.py"), str(self.folder)]
        logs = [(self.folder / f"log{i}").open("w+") for i in range(2)]
        both = [
            subprocess.Popen(command, env=os.environ | step | {"SLURM_PROCID": str(i), "SLURM_LOCALID": str(i)}, stdout=log, stderr=log)
            for i, log in enumerate(logs)
        ]
        try:
            codes = [process.wait(timeout=900) for process in both]
        finally:
            for process, log in zip(both, logs, strict=True):
                process.kill()
                log.close()
        self.ended = time.time()
        self.codes, self.logs = codes, [(self.folder / f"log{i}").read_text() for i in range(2)]
        told = [self.folder / f"told{i}.json" for i in range(2)]
        assert all(file.exists() for file in told), "\n".join(self.logs)
        self.told = [json.loads(file.read_text()) for file in told]
        self.since = max(file.stat().st_mtime for file in told)
        return self


def losses(folder, kind="train", name="loss"):
    return {row["step"]: row[name] for row in read_metrics(folder / "metrics.jsonl") if row["kind"] == kind}


@pytest.fixture(scope="module")
def two(small, masked, cohort, tmp_path_factory):
    """One process begins a run, two go on with it and are told to stop; they fine-tune from it; and then one of them fails."""
    folder = tmp_path_factory.mktemp("two")
    rows = [row._replace(split=split) for row, split in zip(read_manifest(masked), ("train", "train", "val", "val"), strict=True)]
    write_manifest(folder / "people.tsv", rows)
    write_manifest(folder / "fewer.tsv", rows[1:])
    manifest = {"data.manifest": str(folder / "people.tsv"), "data.cache": str(cohort.parent)}
    run = small(**CHANGES | manifest)
    # Cached volumes of process 1's own, one of which is damaged where it is read in a step: what a start reads of it is whole.
    shutil.copytree(cohort.parent / "volumes", folder / "cache" / "volumes")
    for file in (folder / "cache" / "volumes").glob("head0_*.npz"):
        content = bytearray(file.read_bytes())
        content[len(content) // 2] ^= 1
        file.write_bytes(content)
    other = small(**CHANGES | manifest | {"data.manifest": str(folder / "fewer.tsv")})
    tuned = {"objective": "segmentation", "data.labels": "brain", "classes": 2, "unetr.width": 4, "steps": 4, "data.batch": 4}
    damaged = small(**CHANGES | manifest | {"data.cache": str(folder / "cache")})
    two = Two(folder, {"run": run, "other manifest 0": run, "other manifest 1": other, "alone 0": run, "alone 1": damaged})
    with pytest.MonkeyPatch.context() as patch:
        real = Writer.progress

        def progress(self, done, *what):
            real(self, done, *what)
            if done == 3:
                os.kill(os.getpid(), signal.SIGTERM)

        patch.setattr(Writer, "progress", progress)
        two.alone("run", "run")
    assert sorted(losses(folder / "run")) == [1, 2, 3]
    shutil.copytree(folder / "run" / "checkpoints" / "3", folder / "begun")  # the run keeps its latest two only
    two.configs["tuned"] = small(**CHANGES | manifest | tuned | {"init.checkpoint": str(folder / "begun")})
    return two.start()


@pytest.mark.slow
def test_srun_started_two(two):
    assert [(told["processes"], told["devices"], told["here"]) for told in two.told] == [(2, 4, 2)] * 2


@pytest.mark.slow
def test_what_they_tell_one_another(two):
    first, second = (told["words"] for told in two.told)
    assert first["gathered"] == second["gathered"] == ["word of 0", "word of 1"]
    assert first["first"] == second["first"] == {"by": 0}
    assert (first["turns"], second["turns"]) == ("0", "01")
    assert first["agreed"] == second["agreed"] == ""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("what", "hint"),
    [
        ("fault", "no scan here"),
        ("disagreed", "process 1 has data.batch 3 where process 0 has 2"),
        ("devices", "--devices is 5, and there are 4 (2 on "),
        ("mesh", "their product must be 4: use e.g. mesh.data=4 and mesh.fsdp=1"),
        ("batch", "2 processes × 4 crops of a volume; use e.g. 8"),
        ("folder", "is not the same folder in all processes"),
    ],
)
def test_what_one_cannot_do_both_refuse(two, what, hint):
    first, second = (told["words"][what] for told in two.told)
    assert hint in first and hint in second


@pytest.mark.slow
def test_another_manifest_is_refused_in_both(two):
    assert two.told[0]["manifest"] == two.told[1]["manifest"]
    assert "process 1 has the manifest " in two.told[0]["manifest"]
    assert not (two.folder / "refused" / "checkpoints").exists()


@pytest.mark.slow
def test_one_two_and_one_again_are_as_one(two, close):
    """Begun by one process, gone on with by two on another mesh, stopped by Ctrl-C in the second, and ended by one: the same run."""
    run = two.folder / "run"
    stopped = max(losses(run))
    assert 5 <= stopped < STEPS and verify(run / "checkpoints" / str(stopped)) == ""
    assert [told["interrupted"].partition(";")[0] for told in two.told] == [f"stopped at step {stopped}, saved"] * 2
    assert two.alone("run", "run") == run
    whole = two.alone("run")
    for kind in ("train", "eval"):
        assert list(losses(run, kind)) == list(losses(whole, kind))
        close(losses(run, kind), losses(whole, kind), times=10)
    assert [start["step"] for start in json.loads((run / "run.json").read_text())["starts"]] == [0, 3, stopped]


@pytest.mark.slow
def test_two_fine_tune_as_one(two, close):
    """The encoder is taken from a checkpoint; of two held-out volumes each process segments one."""
    tuned, whole = two.folder / "tuned", two.alone("tuned")
    assert "encoder from" in two.logs[0] and "finished: 4 steps" in two.logs[0]
    close(losses(tuned), losses(whole), times=10)
    close(losses(tuned, "eval"), losses(whole, "eval"), times=100)
    # A voxel on the border may go either way, which changes the mean Dice of the two volumes by 1 / brain at most.
    brain = min(int(read(row.labels[0]).voxels.sum()) for row in read_manifest(two.folder / "people.tsv"))
    for name in ("dice", "dice/Brain"):
        here, there = losses(tuned, "eval", name), losses(whole, "eval", name)
        assert here.keys() == there.keys() and max(abs(here[step] - there[step]) for step in here) * brain < 8


@pytest.mark.slow
def test_only_the_first_writes_into_the_run_folder(two):
    first, second = (set(told["written"]) for told in two.told)
    assert {"run/metrics.jsonl", "run/.lock", "tuned/metrics.jsonl", "tuned/.lock"} <= first
    assert [name for name in second if "/checkpoints/" not in name] == []


@pytest.mark.slow
def test_one_that_fails_takes_the_other_along(two):
    assert two.codes[1] in (1, 2) and two.codes[0] != 0
    assert "the cached volume is damaged" in two.logs[1]
    assert two.ended - two.since < 300


@pytest.mark.slow
def test_different_commands_are_one_line(small_flags, tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    flags = [
        sys.executable, "-m", "brainseg_jax.main", "--config=configs/pretrain_vit.py", *small_flags, f"--workdir={tmp_path / 'run'}",
        f"--coordinator=127.0.0.1:{port}", "--processes=2",
    ]  # fmt: skip
    each = [["--process=0"], ["--process=1", "--config.data.batch=4"]]
    both = [subprocess.Popen(flags + own, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for own in each]
    errors = [process.communicate(timeout=300)[1] for process in both]
    assert [process.returncode for process in both] == [2, 2], errors
    assert errors[0].startswith("error: process 1 has data.batch 4 where process 0 has 2; ") and errors[0].count("\n") == 1
    assert errors[1] == "" and not (tmp_path / "run").exists()
