"""The loop that trains any objective: build, place, restore, then evaluate → save → next batch → step. Checkpoint i is the state before batch i."""

import json
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from brainseg_jax import checkpoint, optim, record, report, sharding
from brainseg_jax.config import c_get, check, differing
from brainseg_jax.data import dataset
from brainseg_jax.data.augment import prepare_eval, prepare_train
from brainseg_jax.data.pipeline import Share, eval_batches, train_batches
from brainseg_jax.errors import InputError
from brainseg_jax.objectives import OBJECTIVES
from brainseg_jax.step import Batch, Metrics, init_params, init_state, make_eval_step, make_train_step
from brainseg_jax.trees import count
from brainseg_jax.writer import Writer


def train(config: ConfigDict, resolved: dict[str, dict[str, Any]], folder: Path) -> None:
    """Runs, or goes on with, the experiment in `folder`. `resolved` is the config with sources, as written to config.json.

    Raises InputError for whatever the user can mend; nothing that was saved is lost then.
    """
    check(config)
    same_experiment(folder, resolved)
    folder.mkdir(parents=True, exist_ok=True)
    mesh = sharding.make_mesh(config.mesh.data, config.mesh.fsdp, jax.devices())
    sharding.check_batch(config.data.batch, config.optim.accumulate, mesh)
    share = Share(jax.process_index(), jax.process_count())
    say = print if share.index == 0 else lambda _: None

    data = dataset.prepare(config.data, folder, say, record.progress)
    files = [entry.file for entry in data.train]
    held_out = [entry.file for entry in data.val][: config.eval_volumes]
    steps = config.steps or round(config.epochs * len(files) * config.data.crops_per_volume / config.data.batch)
    if steps < 1:
        raise InputError(f"epochs {config.epochs} of {len(files)} volumes is less than one step of {config.data.batch} crops; use more epochs")
    card = {"config": resolved, "spec": record.as_json(data.spec), "subjects": data.subjects(), "steps": steps}

    objective = OBJECTIVES[config.objective](config)
    one_crop = {"image": jnp.zeros((1, *config.data.crop, 1))}
    params = jax.eval_shape(lambda: init_params(objective, one_crop, config.seed))
    optimizer = optim.optimizer(config.optim, steps, params)
    init = lambda: init_state(init_params(objective, one_crop, config.seed), optimizer)  # noqa: E731
    abstract = jax.eval_shape(init)
    placed = sharding.state_sharding(mesh, abstract)
    like = jax.tree.map(lambda a, s: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=s), abstract, placed)

    with checkpoint.Checkpoints(folder / "checkpoints", config.best) as checkpoints, stop_requests() as stopped:
        state = checkpoints.restore_latest(like, say)
        start = int(state.step) if state else 0
        record.write(folder, resolved, config, data, mesh, params, start)
        if start >= steps:
            say(finished(folder, steps, config))
            return
        if state is None:
            state = jax.jit(init, out_shardings=placed)()
        else:
            say(f"going on from step {start}")

        began = time.perf_counter()
        compiled = compile_steps(objective, optimizer, config, mesh, like)
        say(
            f"{config.objective}, {config.encoder}: {count(params):,} parameters (encoder {count(params['encoder']):,}), {len(files)} training "
            f"and {len(held_out)} held-out volumes, {steps} steps of {config.data.batch} crops {config.data.crop}, {config.dtype}, "
            f"{mesh.size} × {mesh.devices.flat[0].device_kind}; compiled in {time.perf_counter() - began:.1f} s"
        )
        writer = Writer(folder, steps, start)
        try:
            state = loop(state, start, steps, compiled, config, mesh, share, files, held_out, data, card, folder, writer, checkpoints, stopped)
        finally:
            writer.close()
        checkpoints.wait()
        step = int(state.step)
        say(finished(folder, steps, config) if step == steps else f"stopped at step {step}, saved; the same command goes on from there")


def loop(state, start, steps, compiled, config, mesh, share, files, held_out, data, card, folder, writer, checkpoints, stopped):
    """Steps `start` to `steps`, and the state after the last."""
    train_step, eval_step, pictures = compiled
    batches = train_batches(
        files,
        crop=config.data.crop,
        crops_per_volume=config.data.crops_per_volume,
        batch=config.data.batch,
        seed=config.seed,
        start=start,
        share=share,
        threads=config.data.threads,
        workers=config.data.workers,
    )
    batches = ahead(to_devices(batches, mesh))
    rate = optim.schedule(config.optim, steps)
    every = max(1, round(config.eval_every * steps)) if config.eval_every else steps
    waited, since, pending = 0.0, time.perf_counter(), []
    began, first = since, start
    for step in range(start, steps + 1):
        due = step % every == 0 or step == steps
        if (due and step > start) or step == 0:
            values = evaluate(eval_step, state.params, held_out, config, mesh, share)
            writer.scalars(step, "eval", values)
            writer.say(f"step {step}: held-out " + ", ".join(f"{name} {value:.5g}" for name, value in values.items()))
            draw(pictures, state.params, held_out, config, data, folder / "pictures" / f"step_{step:06d}.png", step, writer)
            if step:
                checkpoints.save(step, state, card, values)
            # What an evaluation takes is not charged to the steps around it.
            paused = time.perf_counter()
            since, began = paused, began + (paused - since) if pending == [] else began
        elif step > start and config.save_every and step % config.save_every == 0:
            checkpoints.save(step, state, card)
        if step == steps or stopped():
            break
        asked = time.perf_counter()
        batch = next(batches)
        waited += time.perf_counter() - asked
        state, metrics = train_step(state, batch)
        pending.append(metrics)
        if (step + 1) % config.log_every == 0 or step + 1 == steps:
            values = averaged(pending)
            if not np.isfinite(values["loss"]):
                raise InputError(
                    f"{folder}: the loss is {values['loss']} at step {step + 1}; lower optim.peak or set optim.clip, and start again in a new "
                    f"--workdir, or from the last checkpoint {folder / 'checkpoints'}"
                )
            now = time.perf_counter()
            seconds = now - since
            values |= {
                "learning_rate": float(rate(step)),
                "crops_per_second": len(pending) * config.data.batch / seconds,
                "input_wait": waited / seconds,
            }
            writer.scalars(step + 1, "train", values)
            line = f"loss {values['loss']:.4f}  {values['crops_per_second']:.2f} crops/s  input wait {100 * values['input_wait']:.0f} %"
            writer.progress(step + 1, line, (now - began) / (step + 1 - first) * (steps - step - 1))
            waited, since, pending = 0.0, now, []
    if int(state.step) > start:
        checkpoints.save(int(state.step), state, card)
    return state


def compile_steps(objective: Any, optimizer: Any, config: ConfigDict, mesh: Any, like: Any) -> tuple[Callable, Callable, Callable]:
    """The train, evaluation and picture steps, the first two compiled ahead for the shapes and places of this run."""
    rows, everywhere = sharding.batch_sharding(mesh), sharding.replicated(mesh)
    image = jax.ShapeDtypeStruct((config.data.batch, *config.data.crop, 1), jnp.dtype(config.data.dtype), sharding=rows)
    weight = jax.ShapeDtypeStruct((config.data.batch,), jnp.float32, sharding=rows)
    index = jax.ShapeDtypeStruct((), jnp.int32, sharding=everywhere)
    placed = jax.tree.map(lambda leaf: leaf.sharding, like)
    train_step = make_train_step(objective, optimizer, prepare_train(config), config.seed, config.optim.accumulate)
    train_step = jax.jit(train_step, donate_argnums=0, out_shardings=(placed, everywhere)).lower(like, {"image": image}).compile()
    eval_step = jax.jit(make_eval_step(objective, prepare_eval, config.seed), out_shardings=everywhere)
    eval_step = eval_step.lower(like.params, {"image": image, "weight": weight}, index).compile()

    @jax.jit
    def pictures(params: Any, batch: Batch) -> tuple[jax.Array, ...]:
        key = jax.random.key(config.seed)
        rngs = dict.fromkeys(objective.streams, key)
        return objective.apply({"params": params}, prepare_eval(key, batch), method="pictures", rngs=rngs)

    def draw(params: Any, batch: Batch) -> dict[str, jax.Array]:
        return dict(zip(objective.picture_names, pictures(params, batch), strict=True))

    return train_step, eval_step, draw


def evaluate(eval_step: Callable, params: Any, files: list[Path], config: ConfigDict, mesh: Any, share: Share) -> dict[str, float]:
    """Every metric's mean over the central crops of the held-out volumes."""
    batches = to_devices(eval_batches(files, crop=config.data.crop, batch=config.data.batch, share=share), mesh)
    return averaged([eval_step(params, batch, jnp.int32(i)) for i, batch in enumerate(batches)])


def draw(
    pictures: Callable, params: Any, files: list[Path], config: ConfigDict, data: dataset.Dataset, file: Path, step: int, writer: Writer
) -> None:
    """A PNG of what the objective shows of the first held-out volume."""
    if not report.available():
        if step == 0:
            writer.say('no pictures: matplotlib is missing; pip install "brainseg_jax[view]"')
        return
    batch = next(eval_batches(files[:1], crop=config.data.crop, batch=1))
    shown = jax.device_get(pictures(params, {"image": jnp.asarray(batch["image"])}))
    if jax.process_index() == 0:
        volumes = {name: report.to_ras(volume[0, ..., 0], data.spec.orientation) for name, volume in shown.items()}
        report.slices(file, volumes, f"{config.objective}, {config.encoder}: held-out volume after {step} steps")


def averaged(metrics: list[Metrics]) -> dict[str, float]:
    """sum / count of each metric over a list of steps; the one place where the loop waits for the device."""
    fetched = jax.device_get(metrics)
    sums = jax.tree.map(lambda *parts: float(np.sum(parts)), *fetched)
    return {name: total / number if number else float("nan") for name, (total, number) in sums.items()}


def to_devices(batches: Iterator[dict[str, np.ndarray]], mesh: Any) -> Iterator[Batch]:
    """Each process's rows become its part of one global array; stored types travel, and become floats on the device."""
    rows = sharding.batch_sharding(mesh)
    for batch in batches:
        yield {name: jax.make_array_from_process_local_data(rows, array) for name, array in batch.items()}


def ahead(batches: Iterator[Batch]) -> Iterator[Batch]:
    """One batch is already on its way to the devices while the one before it is used."""
    waiting = next(batches)
    for batch in batches:
        yield waiting
        waiting = batch
    yield waiting


@contextmanager
def stop_requests() -> Iterator[Callable[[], bool]]:
    """Whether the run has been asked to stop: Ctrl-C, SIGTERM, or SIGUSR1, which many clusters send before the time limit."""
    asked = []
    handlers = {number: signal.signal(number, lambda n, _: asked.append(n)) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)}
    try:
        yield lambda: bool(asked)
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)


def same_experiment(folder: Path, resolved: dict[str, dict[str, Any]]) -> None:
    """Raises InputError, naming the keys, if the folder holds a run of another experiment."""
    file = folder / "config.json"
    if file.exists() and (differences := differing(json.loads(file.read_text()), resolved)):
        raise InputError(f"{folder} holds another experiment ({'; '.join(differences[:3])}); give another --workdir, or the same config")


def finished(folder: Path, steps: int, config: ConfigDict) -> str:
    """Where everything is, and what to do next."""
    picture = folder / "pictures" / f"step_{steps:06d}.png"
    lines = [f"finished: {steps} steps, in {folder}", f"  checkpoint  {folder / 'checkpoints' / str(steps)}"]
    if picture.exists():
        lines.append(f"  picture     {picture}")
    lines.append(f"  curves      tensorboard --logdir {folder}")
    if not c_get(config, "data.manifest"):
        lines.append("next, with your own scans:")
        lines.append("  python scripts/prepare_data.py manifest folder YOUR_SCANS --out people.tsv")
    return "\n".join(lines)
