"""The records of a run: config.json (every value and its source) and run.json (software, hardware, data)."""

import importlib.metadata
import json
import os
import platform
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict

import brainseg_jax
from brainseg_jax.config.resolve import FORMAT, check_format
from brainseg_jax.core.errors import InputError, first_few
from brainseg_jax.core.files import read_text, write_text
from brainseg_jax.core.pytree import count

CONFIG, RUN = "config.json", "run.json"
PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy", "scipy", "nibabel")


def write(
    folder: Path, resolved: dict[str, Any], config: ConfigDict, data: Any, mesh: Any, params: Any, start: int, prior: str = ""
) -> None:
    """Writes config.json and run.json, by process 0; run.json has an entry for each start of the run.

    `prior`: the SHA-256 of the content of synth.prior.table, "" without one.
    """
    if jax.process_index() != 0:
        return
    write_text(folder / CONFIG, json.dumps({"format": FORMAT} | resolved, indent=1) + "\n")
    file = folder / RUN
    earlier = read(file) if file.exists() else {"starts": [], "data": {}}
    facts = {
        "format": FORMAT,
        "starts": [*earlier["starts"], {"step": start, "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"), "command": " ".join(sys.argv)}],
        "seed": config.seed,
        "parameters": {"all": count(params), "encoder": count(params["encoder"])},
        "data": {
            **{key: getattr(data, key) for key in ("manifest", "manifest_sha256", "split_sha256", "volumes_sha256")},
            "prior_sha256": prior,
            "train": len(data.train),
            "val": len(data.val),
            "set_aside": len(data.failures),
            "spec": as_json(data.spec),
            "scans": {scan: list(files.values()) for scan, files in data.contents().items()},
        }
        | (earlier["data"] if start else {}),  # what the first start recorded stays; new keys are added
        "environment": environment() | {"mesh": dict(mesh.shape)},
    }
    write_text(file, json.dumps(facts, indent=1) + "\n")


def read(file: Path) -> dict[str, Any]:
    """The content of run.json or config.json. Raises InputError if it is missing, damaged, or of a later version."""
    remedy = "bring it back from a backup, or give another --workdir"
    try:
        record = json.loads(read_text(file))
    except FileNotFoundError:
        raise InputError(f"{file}: is missing, and nothing else says what was trained there; {remedy}") from None
    except ValueError as error:
        raise InputError(f"{file}: is damaged ({error}); {remedy}") from None
    kinds = {"starts": list, "data": dict} if file.name == RUN else {}
    if not isinstance(record, dict) or not all(isinstance(record.get(key), kind) for key, kind in kinds.items()):
        raise InputError(f"{file}: is damaged (it is no record of a run); {remedy}")
    check_format(record.get("format", FORMAT), str(file))
    return record


def check_same_data(folder: Path, data: Any, prior: str = "") -> None:
    """Raises InputError if the run in `folder` was started on other volumes: their order would change, and training and validation mix.

    Likewise, naming the files, if an image, labels, or the table of `prior` (see `write`) were replaced under the same name. Old records
    have no hashes of files.
    """
    before = read(folder / RUN)["data"]
    if before.get("volumes_sha256") != data.volumes_sha256:
        raise InputError(
            f"{folder}: was trained on {before['train']} volumes and {before['val']} for validation, now there are {len(data.train)} and "
            f"{len(data.val)}, or other ones; bring back the manifest, split and scans, or give another --workdir"
        )
    if before.get("prior_sha256", prior) != prior:
        what = f"{folder}: was trained on other content of synth.prior.table"
        raise InputError(f"{what}; bring back what was there, or give another --workdir")
    if "scans" not in before:
        return
    hashes, contents = before["scans"], data.contents().items()
    changed = [path for scan, files in contents for i, path in enumerate(files) if hashes.get(scan, [])[i : i + 1] != [files[path]]]
    if changed:
        what = f"{folder}: was trained on other content of {first_few(changed)}"
        raise InputError(f"{what}; bring back what was there, or give another --workdir")


def environment() -> dict[str, Any]:
    """Versions, commit and hardware, ready for JSON."""
    devices = jax.devices()
    return {
        "brainseg_jax": brainseg_jax.__version__,
        "commit": _commit(),
        "python": platform.python_version(),
        "packages": {name: importlib.metadata.version(name) for name in PACKAGES},
        "machine": {"system": platform.platform(), "cores": os.cpu_count(), "processor": _processor()},
        "devices": {"count": len(devices), "kind": devices[0].device_kind, "processes": jax.process_count()},
    }


def as_json(spec: Any) -> dict[str, Any]:
    """A dataclass as JSON restores it, with lists for tuples."""
    return json.loads(json.dumps(asdict(spec)))


def _commit() -> str:
    git = ["git", "-C", str(Path(__file__).parent)]
    try:
        commit = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=True).stdout.strip()
        changed = subprocess.run([*git, "status", "--porcelain", "-uno"], capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return commit + (" with changes" if changed else "")


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.processor())
