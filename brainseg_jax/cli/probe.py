"""`brainseg probe --checkpoint=runs/pretrain_vit/checkpoints/150`: linear probing of a pretrained encoder (evaluation/probe.py)."""

from pathlib import Path

import numpy as np
from absl import flags, logging

from brainseg_jax.cli.config_flags import run
from brainseg_jax.core import runtime
from brainseg_jax.core.errors import InputError

CHECKPOINT = flags.DEFINE_string("checkpoint", "", "The pretrained encoder: a run's checkpoints/STEP, or one of brainseg convert.")
MANIFEST = flags.DEFINE_string("manifest", "", "The manifest of labelled scans; empty: the one that the checkpoint was trained on.")
TABLE = flags.DEFINE_string("labels", "seg4", "The label table of the classes to predict: a name or a TSV file.")
VOLUMES = flags.DEFINE_integer("volumes", 5, "The number of labelled training volumes to fit the classifier on.")
UNSEEN = flags.DEFINE_integer("validation_volumes", 10, "The number of validation volumes to score it on, at most.")
flags.DEFINE_alias("held_out", "validation_volumes")


def main(argv: list[str]) -> None:
    """Prints the table of recall and Dice."""
    if len(argv) > 1:
        raise InputError(f"{argv[1]!r} is an unrecognised argument; values are given as --flag=value")
    if not CHECKPOINT.value:
        raise InputError("--checkpoint is missing; e.g. --checkpoint=runs/pretrain_vit/checkpoints/150")
    if min(VOLUMES.value, UNSEEN.value) < 1:
        raise InputError("--volumes and --validation_volumes count volumes; use at least 1 of each")
    logging.set_verbosity(logging.WARNING)  # or Orbax logs every step
    runtime.for_prediction()
    from brainseg_jax.evaluation.linear_probe import probe  # after what JAX reads when it is imported

    rows, structures = probe(Path(CHECKPOINT.value), MANIFEST.value, TABLE.value, VOLUMES.value, UNSEEN.value)
    width = max(map(len, rows))
    print(f"{'':{width}}  recall    Dice   Dice of " + ", ".join(structures))
    for name, (recall, dice) in rows.items():
        by_structure = "  ".join(f"{100 * d:5.1f}" for d in dice[1:])
        print(f"{name:{width}}  {100 * np.nanmean(recall):5.1f} %  {100 * np.nanmean(dice[1:]):4.1f} %  {by_structure}")
    print("recall: mean over classes, background included; Dice: mean over structures; both over drawn voxels of the validation volumes")


def command() -> None:
    """Entry point."""
    run(main)
