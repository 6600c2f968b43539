"""The training loop of all objectives: build, shard, restore; then evaluate → save → next batch → step.

Checkpoint i is the state before batch i, so a resumed run repeats no batch and skips none.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from brainseg_jax.config.checks import check, check_idle
from brainseg_jax.config.resolve import FORMAT
from brainseg_jax.core import progress
from brainseg_jax.core.errors import InputError
from brainseg_jax.core.pytree import count
from brainseg_jax.core.runtime import trim_memory
from brainseg_jax.data import dataset, labels
from brainseg_jax.data.augment.prepare import enlarged_crop
from brainseg_jax.data.loader import ProcessShare, release_shared, train_batches
from brainseg_jax.objectives import OBJECTIVES
from brainseg_jax.parallel import sharding, signals, sync
from brainseg_jax.qc import figures
from brainseg_jax.training import optim, run_records
from brainseg_jax.training.memory import check_room
from brainseg_jax.training.metrics_log import Writer
from brainseg_jax.training.program import experiment, program, shapes
from brainseg_jax.training.run import Run, evaluated_metric, is_evaluation_step, is_finished, out_of_patience, report_end, stopped_at
from brainseg_jax.training.run_lock import check_same_experiment, exclusive_run_dir, has_checkpoint
from brainseg_jax.training.step import Batch, Metrics, Totals, TrainState, means, totals
from brainseg_jax.training.throughput import Clock
from brainseg_jax.training.validation import Validation, validation_of
from brainseg_jax.weights import checkpoint
from brainseg_jax.weights.transfer import load_parts, merge_parameters, subjects_before

Step = Callable[[TrainState, Batch], tuple[TrainState, Metrics]]


def train(config: ConfigDict, resolved: dict[str, dict[str, Any]], folder: Path) -> None:
    """Starts or resumes the experiment in `folder`. `resolved` is the config with the source of each value, as in config.json.

    Every process of a run calls this. Raises InputError for user errors, and KeyboardInterrupt for Ctrl-C after the current step is saved.
    """
    with sync.barrier():
        check(config)
        check_idle(config)
        if config.best not in (metrics := OBJECTIVES[config.objective](config).metrics):
            raise InputError(f"best is {config.best!r}; evaluation gives {', '.join(metrics)}")
        check_same_experiment(folder, resolved)
        share = ProcessShare(jax.process_index(), jax.process_count())
        mesh = sharding.make_mesh(config.mesh.data, config.mesh.fsdp, jax.devices())
        sharding.check_batch(config.data.batch, config.optim.accumulate, mesh, config.data.crops_per_volume)
    with exclusive_run_dir(folder, share):
        run_training(config, resolved, folder, mesh, share)


def run_training(config: ConfigDict, resolved: dict[str, dict[str, Any]], folder: Path, mesh: Mesh, share: ProcessShare) -> None:
    """Data, network, state and loop of a run that holds its folder, which is not changed before all checks have passed."""
    say = print if share.index == 0 else lambda _: None
    what, resumes = experiment(config), has_checkpoint(folder)
    heads = labels.read_table(labels.HEAD) if what.generator else None
    if config.init.checkpoint and not resumes:
        with sync.barrier():  # before scans are standardised, which may take hours
            load_parts(shapes(config, what.objective, mesh), config, lambda _: None)
    failures = None if resumes or share.index else folder / dataset.FAILURES
    data = sync.run_once_per_host(
        lambda: dataset.prepare(config.data, what.target, say, progress.progress, config.channels, failures, heads)
    )
    same = {"the manifest": data.manifest_sha256, "the split": data.split_sha256, "the usable scans": data.volumes_sha256}
    sync.assert_same_on_all(same | {"synth.prior.table": what.prior})
    with sync.barrier():
        if resumes:
            run_records.check_same_data(folder, data, what.prior)
    steps = num_steps(config, len(data.train))
    built = program(config, what, mesh, steps)
    params = built.like.params

    with checkpoint.Checkpoints(folder / "checkpoints", config.best) as checkpoints:
        state = checkpoints.restore_latest(built.like, say)
        start = int(state.step) if state else 0
        # On resuming, the checkpoint of config.init may be gone: the run's own checkpoints say what is needed.
        before = checkpoint.card(checkpoints.folder / str(start)).get("subjects_before", ()) if state else subjects_before(config)
        run = Run(config, resolved, folder, data, mesh, share, steps, tuple(before), what.prior)
        with sync.barrier():
            if state and share.index == 0:
                dataset.repair_split(data, folder, run_records.read(folder / run_records.RUN)["data"].get("split_sha256", ""), say)
        if state and is_finished(run, start):
            report_end(run, start, done=True)
            return
        with sync.barrier():
            parts = {} if state else load_parts(params, config, say)
        say("compiling the training step")
        began = time.perf_counter()
        validation = validation_of(what.objective, config, data, mesh, share, params, what.generator)
        train_step = built.lower().compile()
        check_room(train_step, mesh.local_devices[0])
        if share.index == 0:
            dataset.write_down(data, folder, begun=start > 0)
            if data.failures:
                say(f"scans that were set aside, each with its reason: {folder / dataset.FAILURES}")
        run_records.write(folder, resolved, config, data, mesh, params, start, what.prior)
        trim_memory()
        say(
            f"{config.objective}, {config.encoder}: {count(params):,} parameters (encoder {count(params['encoder']):,}); "
            f"{len(data.train)} training and {min(len(data.val), config.eval_volumes)} validation volumes; "
            f"{run.steps} steps of {config.data.batch} crops {config.data.crop} in {config.dtype} on "
            f"{mesh.size} × {mesh.devices.flat[0].device_kind}{idle_devices(mesh)}; compiled in {time.perf_counter() - began:.1f} s"
            + (f"; going on from step {start}" if state else "")
        )
        if not state:
            state = jax.jit(built.init, out_shardings=built.places)()
            state = state._replace(params=merge_parameters(state.params, parts))
        del parts
        writer = Writer(folder, run.steps, start)
        try:
            batches = sharding.put_batches(training_batches(run, start), mesh)
            with signals.stop_requests(start) as (stopped, interrupted), closing(batches):
                last = loop(run, train_step, validation, state, batches, checkpoints, writer, stopped)
                checkpoints.wait()
        finally:
            writer.close()
            release_shared()
        done = is_finished(run, last)
        if not done and sync.any_process(interrupted()):
            raise KeyboardInterrupt(stopped_at(last))  # or the caller would continue as after a finished run
        report_end(run, last, done)


def idle_devices(mesh: Mesh) -> str:
    """Words on the devices that are not in the mesh, or ""."""
    idle = jax.device_count() - mesh.size
    return f", {idle} left idle by mesh.data={mesh.shape['data']} and mesh.fsdp={mesh.shape['fsdp']}" if idle else ""


def num_steps(config: ConfigDict, volumes: int) -> int:
    """The number of steps of a run, from config.steps or config.epochs."""
    steps = config.steps or round(config.epochs * volumes * config.data.crops_per_volume / config.data.batch)
    if steps < 1:
        raise InputError(f"epochs {config.epochs} of {volumes} volumes is less than one step of {config.data.batch} crops; use more epochs")
    return steps


def loop(
    run: Run,
    train_step: Step,
    validation: Validation,
    state: TrainState,
    batches: Iterator[Batch],
    checkpoints: checkpoint.Checkpoints,
    writer: Writer,
    stopped: Callable[[int], bool],
) -> int:
    """Trains from `state` to the end or to a request to stop. Returns the last step, which is saved."""
    config, start = run.config, int(state.step)
    batch = next(batches)
    rate = optim.schedule(config.optim, run.steps)
    clock = Clock(config.data.batch)
    pending: list[Metrics] = []
    window: Totals = checkpoints.carried.get("window", {})  # since the last logged line, also of steps before an interruption
    evaluated = evaluated_metric(run, start)

    def save(step: int, values: dict[str, float] | None = None) -> None:
        nonlocal window, pending
        window, pending = totals(pending, window), []
        # No diverged state is saved: metrics since the last logged line are checked first.
        check_finite(run, step, means(window))
        checkpoints.save(step, state, card(run), values, {"window": window})

    for step in range(start, run.steps + 1):
        if is_evaluation_step(config, run.steps, step) and (step > start or step == 0):
            jax.block_until_ready(state)  # pending steps are not charged to the evaluation
            with clock.paused():
                values = validation.evaluate(state.params)
                check_finite(run, step, values)
                writer.scalars(step, "eval", values)
                shown = [f"{name} {value:.5g}" for name, value in values.items() if "/" not in name]
                writer.say(f"step {step}: validation " + ", ".join(shown))
                evaluated.append(values[config.best])
                write_pictures(run, validation, state.params, step, writer)
                if step:
                    save(step, values)
        elif step > start and config.save_every and step % config.save_every == 0:
            save(step)
        if step == run.steps or stopped(step) or out_of_patience(evaluated, config.patience):
            break
        state, metrics = train_step(state, batch)
        pending.append(metrics)
        # Fetched while the step runs.
        with clock.waiting():
            batch = next(batches)
        if (step + 1) % config.log_every == 0 or step + 1 == run.steps:
            values = means(totals(pending, window))
            check_finite(run, step + 1, values)
            values |= {"learning_rate": float(rate(step))} | clock.read()
            window, pending = {}, []
            writer.scalars(step + 1, "train", values)
            line = f"loss {values['loss']:.4f}  {values['crops_per_second']:.2f} crops/s  input wait {100 * values['input_wait']:.0f} %"
            writer.progress(step + 1, line, clock.per_step() * (run.steps - step - 1))
    last = int(state.step)
    if last > start:
        save(last)
    return last


def check_finite(run: Run, step: int, values: dict[str, float]) -> None:
    """Raises InputError if a metric is not finite; earlier checkpoints are kept."""
    for name in sorted(values, key=lambda name: name != "loss"):
        if not np.isfinite(values[name]):
            remedy = "lower optim.lr, or set optim.clip=1, and start again with another --workdir"
            raise InputError(f"{run.folder}: the {name} is {values[name]} at step {step}; {remedy}")


def training_batches(run: Run, start: int) -> Iterator[dict[str, np.ndarray]]:
    """This process's share of the batches, from step `start` on."""
    config, entries = run.config, run.data.train
    settings = {key: config.data[key] for key in ("crop", "crops_per_volume", "batch", "threads", "workers")}
    settings |= {"patch": enlarged_crop(config), "labels_only": [e.row.labels_only for e in entries] if config.synth.share else ()}
    return train_batches([entry.file for entry in entries], seed=config.seed, start=start, share=run.share, **settings)


def write_pictures(run: Run, validation: Validation, params: Any, step: int, writer: Writer) -> None:
    """Writes a PNG of the objective's pictures of the first validation volume."""
    if not sync.broadcast_from_first(figures.available):
        if step == 0:
            writer.say('no pictures: matplotlib is missing; pip install "brainseg_jax[view]"')
        return
    volumes = validation.draw(params)
    if run.share.index == 0:
        volumes = {name: figures.to_ras(volume, run.data.spec.orientation) for name, volume in volumes.items()}
        figures.slices(run.picture(step), volumes, f"{run.config.objective}, {run.config.encoder}: a validation volume after {step} steps")


def card(run: Run) -> dict[str, Any]:
    """The checkpoint's card: all that prediction and fine-tuning need besides the weights."""
    facts = {"format": FORMAT, "config": run.resolved, "spec": run_records.as_json(run.data.spec)}
    facts |= {"subjects": run.data.subjects(), "steps": run.steps}
    if run.prior:
        facts["prior_sha256"] = run.prior
    if run.data.target:
        facts |= {"labels": labels.table_text(run.data.target), "subjects_before": run.subjects_before}
    return facts
