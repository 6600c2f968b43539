"""A run: what stays the same while it lasts, when it is evaluated and finished, and its summary."""

import shlex
from pathlib import Path
from typing import Any, NamedTuple

from jax.sharding import Mesh
from ml_collections import ConfigDict

from brainseg_jax.data import dataset
from brainseg_jax.data.loader import ProcessShare
from brainseg_jax.parallel import sync
from brainseg_jax.training.metrics_log import read_metrics


class Run(NamedTuple):
    """The constants of a run."""

    config: ConfigDict
    resolved: dict[str, dict[str, Any]]
    folder: Path
    data: dataset.Dataset
    mesh: Mesh
    share: ProcessShare
    steps: int
    subjects_before: tuple[str, ...] = ()  # training subjects of the checkpoint of config.init
    prior: str = ""  # the SHA-256 of synth.prior.table, "" without one

    def picture(self, step: int) -> Path:
        return self.folder / "pictures" / f"step_{step:06d}.png"


def is_evaluation_step(config: ConfigDict, steps: int, step: int) -> bool:
    """Whether a run of `steps` steps is evaluated at `step`: after every fraction `eval_every` of the run, and at its end."""
    return step == steps or bool(config.eval_every and step % max(1, round(config.eval_every * steps)) == 0)


def evaluated_metric(run: Run, step: int) -> list[float]:
    """The metric `config.best` of every evaluation up to `step`, the same in all processes, so that they stop together.

    A killed run may have logged later steps than that of the checkpoint it resumes from.
    """
    file, best = run.folder / "metrics.jsonl", run.config.best
    return sync.broadcast_from_first(lambda: [row[best] for row in read_metrics(file) if row["kind"] == "eval" and row["step"] <= step])


def out_of_patience(judged: list[float], patience: int) -> bool:
    """Whether none of the last `patience` evaluations improved on the earlier ones; never if `patience` is 0."""
    return 0 < patience < len(judged) and min(judged[-patience:]) >= min(judged[:-patience])


def is_finished(run: Run, step: int) -> bool:
    """Whether the run ends at `step`, by its length or by early stopping."""
    return step >= run.steps or out_of_patience(evaluated_metric(run, step), run.config.patience)


def report_end(run: Run, last: int, done: bool) -> None:
    """Prints, in process 0, how the run ended."""
    if run.share.index == 0:
        print(summary(run, last) if done else stopped_at(last))


def stopped_at(step: int) -> str:
    """The message of a run that was stopped before its end."""
    return f"stopped at step {step}{', saved' if step else ''}; the same command goes on from there"


def summary(run: Run, last: int) -> str:
    """The closing message: files of the run and the next command."""
    early = f", ended early: {run.config.patience} evaluations without a better {run.config.best}" if last < run.steps else ""
    lines = [f"finished: {last} steps{early}, in {run.folder}", f"  checkpoint  {run.folder / 'checkpoints' / str(last)}"]
    evaluated = [row for row in read_metrics(run.folder / "metrics.jsonl") if row["kind"] == "eval" and row["step"]]
    # A run ends with an evaluation, by schedule or by early stopping.
    scheduled = {step for step in range(1, last + 1) if is_evaluation_step(run.config, run.steps, step)}
    complete = {last, *scheduled} <= {row["step"] for row in evaluated}
    best = min(evaluated, key=lambda row: row[run.config.best]) if complete else {"step": last}
    if not complete:
        lines.append(f"  best        unknown: {run.folder / 'metrics.jsonl'} is missing, or has lost evaluations")
    if best["step"] != last:
        lines.append(f"  best        {run.folder / 'checkpoints' / str(best['step'])}, {run.config.best} {best[run.config.best]:.5g}")
    if run.picture(last).exists():
        lines.append(f"  picture     {run.picture(last)}")
    lines.append(f"  curves      tensorboard --logdir {run.folder}")
    if not run.config.data.manifest:
        lines.append("next, with your own scans:")
        lines.append("  brainseg prepare manifest folder YOUR_SCANS --subject-regex '(sub-[^_]+)' --out people.tsv")
    elif run.config.objective == "segmentation":
        folder, manifest = shlex.quote(str(run.folder)), shlex.quote(str(run.config.data.manifest))
        lines.append("next, to score it on the people of split test:")
        lines.append(f"  brainseg evaluate --checkpoint {folder}/checkpoints/{best['step']} --manifest {manifest} "
                     f"--splits {folder}/split.tsv --o {folder}/test.tsv")  # fmt: skip
    return "\n".join(lines)
