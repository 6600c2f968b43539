"""`brainseg probe --checkpoint=runs/pretrain_vit/checkpoints/150`: what a pretrained encoder knows about tissue (evaluation/probe.py)."""

from pathlib import Path

import numpy as np
from absl import flags, logging

from brainseg_jax.cli.config_flags import run
from brainseg_jax.core import runtime
from brainseg_jax.core.errors import InputError

CHECKPOINT = flags.DEFINE_string("checkpoint", "", "The pretrained encoder: a run's checkpoints/STEP, or what converters.convert made.")
MANIFEST = flags.DEFINE_string("manifest", "", "Scans with labels; empty: the manifest that the checkpoint was trained on.")
TABLE = flags.DEFINE_string("labels", "seg4", "The label table whose classes are told apart: a name or a TSV file.")
VOLUMES = flags.DEFINE_integer("volumes", 5, "Labelled training volumes that the classifier is fitted on.")
UNSEEN = flags.DEFINE_integer("validation_volumes", 10, "Volumes of other people that it is scored on, at most.")
flags.DEFINE_alias("held_out", "validation_volumes")


def main(argv: list[str]) -> None:
    """Prints the table."""
    if len(argv) > 1:
        raise InputError(f"{argv[1]!r} is an unrecognised argument; values are given as --flag=value")
    if not CHECKPOINT.value:
        raise InputError("--checkpoint is missing; e.g. --checkpoint=runs/pretrain_vit/checkpoints/150")
    if min(VOLUMES.value, UNSEEN.value) < 1:
        raise InputError("--volumes and --validation_volumes count volumes; use at least 1 of each")
    logging.set_verbosity(logging.WARNING)  # Orbax tells all it does
    runtime.for_prediction()
    from brainseg_jax.evaluation.probe import probe  # JAX reads its settings when it is imported

    rows, structures = probe(Path(CHECKPOINT.value), MANIFEST.value, TABLE.value, VOLUMES.value, UNSEEN.value)
    width = max(map(len, rows))
    print(f"{'':{width}}  recall    Dice   Dice of " + ", ".join(structures))
    for name, (recall, dice) in rows.items():
        each = "  ".join(f"{100 * d:5.1f}" for d in dice[1:])
        print(f"{name:{width}}  {100 * np.nanmean(recall):5.1f} %  {100 * np.nanmean(dice[1:]):4.1f} %  {each}")
    print("recall: mean over classes, background included; Dice: mean over structures; both over drawn voxels of the validation volumes")


def command() -> None:
    """This process as the command."""
    run(main)
