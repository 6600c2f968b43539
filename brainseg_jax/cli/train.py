"""`brainseg train --config=configs/pretrain_vit.py` (or `python -m brainseg_jax.main`): flags, process start-up, training.

`--config=FILE.py:VARIANT` picks a variant, `--config.KEY=VALUE` changes a value, `--workdir` names the run folder. The same command
again resumes a run that was stopped. Under `srun`, or with `--coordinator`, `--processes` and `--process`, several processes are one run
(docs/clusters.md).
"""

import os
from pathlib import Path

from absl import flags, logging
from ml_collections import config_flags

import brainseg_jax
from brainseg_jax.cli.config_flags import CONFIG, DEVICES, check_given, run
from brainseg_jax.config.keys import flat
from brainseg_jax.config.resolve import with_sources
from brainseg_jax.core import runtime

flags.declare_key_flag("config")  # or --help leaves it out
flags.declare_key_flag("devices")
WORKDIR = flags.DEFINE_string("workdir", "", "The run folder; by default runs/NAME, after the config.")
COORDINATOR = flags.DEFINE_string("coordinator", "", "HOST:PORT of process 0, for several processes without srun.")
PROCESSES = flags.DEFINE_integer("processes", None, "The number of processes of the run, without srun; 1: only this one, also under srun.")
PROCESS = flags.DEFINE_integer("process", None, "The index of this process, from 0.")


def main(argv: list[str]) -> None:
    """Starts JAX and trains the config."""
    check_given(argv)
    runtime.keep_compiled_programs()
    # Lazily: JAX reads its settings when it is imported, and a mistyped flag is refused without waiting for it.
    import jax

    from brainseg_jax.parallel import launch, sync
    from brainseg_jax.training.loop import train
    from brainseg_jax.training.program import resolve_auto

    logging.set_verbosity(logging.WARNING)  # or Orbax logs every step
    with launch.joined(launch.start_from(COORDINATOR.value, PROCESSES.value, PROCESS.value, os.environ)):
        config = CONFIG.value
        # The cache may be on a local disk of each node. No device has been used so far.
        values = {key: value for key, value in flat(config).items() if key != "data.cache"}
        sync.assert_same_on_all({"jax": jax.__version__, "brainseg_jax": brainseg_jax.__version__, "--workdir": WORKDIR.value} | values)
        launch.check_devices(DEVICES.value)
        path, _, variant = config_flags.get_config_filename(flags.FLAGS["config"]).partition(":")
        resolved = with_sources(config, set(config_flags.get_override_values(flags.FLAGS["config"])), path)
        resolve_auto(config, jax.default_backend() == "cpu", resolved)
        name = Path(path).stem + (f"_{variant.replace(',', '_')}" if variant else "")
        train(config, resolved, Path(WORKDIR.value or f"runs/{name}"))


def command() -> None:
    """Entry point."""
    runtime.with_huge_pages()
    run(main)
