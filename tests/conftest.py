# ruff: noqa: E402 (what has to be set before JAX and the package are imported comes first)
"""Shapes in signatures are checked under pytest; eight CPU devices stand in for a machine's accelerators; tolerances live in one place."""

import os
import signal
from pathlib import Path

# A shell's background job ignores Ctrl-C, and so would all that it starts.
signal.signal(signal.SIGINT, signal.default_int_handler)

# Set before JAX is imported; commands that tests start inherit them, and so share the compile cache.
COMPILED = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "brainseg_jax" / "tests"
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(COMPILED))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "-1")

import jaxtyping

jaxtyping.install_import_hook("brainseg_jax", "beartype.beartype")

from brainseg_jax.core import runtime

# Most of the suite's time went into optimising programs that run for milliseconds: with the second flag, which JAX 0.12 no longer has,
# compiling takes 0.6 of its time. XLA_FLAGS= tests programs as users compile them. Workers of pytest-xdist find the variable set.
if "XLA_FLAGS" not in os.environ:
    flags = runtime.known_flags("--xla_backend_optimization_level=0", "--xla_cpu_use_fusion_emitters=false")
    os.environ["XLA_FLAGS"] = " ".join(flags)

import jax
import numpy as np
import peers
import pytest
from ml_collections import ConfigDict

from brainseg_jax.config.checks import idle_keys
from brainseg_jax.config.keys import KEYS, base
from brainseg_jax.data import cache
from brainseg_jax.data.manifest import Row, read_manifest, write_manifest
from brainseg_jax.data.nifti import read
from brainseg_jax.data.nifti_write import write
from brainseg_jax.data.preprocess import spec

jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_numpy_rank_promotion", "raise")

# Largest difference that is rounding, as a share of the largest value compared.
TOLERANCE = {"float64": 1e-10, "float32": 1e-5, "bfloat16": 2e-2}


WITHOUT_PEERS = 'PyTorch, MONAI or einops is not installed; for the tests against them: pip install -e ".[test,parity]"'


def pytest_collection_modifyitems(items):
    """Tests that compare with PyTorch or MONAI are skipped where these are not installed."""
    for item in items:
        if not peers.INSTALLED and item.get_closest_marker("parity"):
            item.add_marker(pytest.mark.skip(reason=WITHOUT_PEERS))


def pytest_terminal_summary(terminalreporter):
    """How many tests were skipped for it, however quiet the run."""
    skipped = [report for report in terminalreporter.stats.get("skipped", []) if WITHOUT_PEERS in str(report.longrepr)]
    if skipped:
        terminalreporter.write_line(f"{len(skipped)} tests skipped: {WITHOUT_PEERS}")


@pytest.fixture(scope="session")
def close():
    """Asserts that two trees agree leaf by leaf, to the tolerance of a type, relative to each leaf's scale."""

    def check(actual, expected, dtype="float32", times=1.0):
        actual, expected = jax.tree_util.tree_leaves_with_path(actual), jax.tree_util.tree_leaves_with_path(expected)
        assert [keys for keys, _ in actual] == [keys for keys, _ in expected]
        for (path, a), (_, e) in zip(actual, expected, strict=True):
            a, e = np.asarray(a, np.float64), np.asarray(e, np.float64)
            assert a.shape == e.shape, f"{jax.tree_util.keystr(path)}: {a.shape} {e.shape}"
            error, scale = np.max(np.abs(a - e), initial=0), np.max(np.abs(e), initial=1e-30)
            assert error <= times * TOLERANCE[dtype] * scale, f"{jax.tree_util.keystr(path)}: off by {error / scale:.2g} of its scale"

    return check


@pytest.fixture
def x64():
    """JAX in double precision, for this test."""
    with jax.enable_x64(True):
        yield


@pytest.fixture
def rng():
    return np.random.default_rng(0)


@pytest.fixture(scope="session")
def cohort(tmp_path_factory):
    """A manifest of four small heads (ellipsoids with texture, 40³ voxels of 4 mm), three to train on, one held out; cached beside."""
    folder = tmp_path_factory.mktemp("cohort")
    rng = np.random.default_rng(1)
    at = (np.indices((40, 40, 40)).reshape(3, -1).T - 19.5) / (15, 17, 16)
    inside = (np.sum(at**2, axis=1) < 1).reshape(40, 40, 40)
    rows = []
    for i, split in enumerate(("train", "train", "train", "val")):
        voxels = np.where(inside, rng.normal(100 + 10 * i, 15, inside.shape), rng.normal(5, 1, inside.shape)).clip(0)
        image = folder / f"head{i}.nii.gz"
        write(image, voxels.astype(np.float32), np.diag([4.0, 4.0, 4.0, 1.0]))
        rows.append(Row(f"head{i}", "", image, (), (), "made", split))
    write_manifest(folder / "people.tsv", rows)
    cache.build(read_manifest(folder / "people.tsv"), spec("default", 4.0, (32, 32, 32)), folder / "volumes", max_failures=0.0, workers=1)
    return folder / "people.tsv"


@pytest.fixture(scope="session")
def masked(cohort, tmp_path_factory):
    """The same heads with brain masks: where the ellipsoid is bright."""
    folder = tmp_path_factory.mktemp("masked")
    rows = []
    for row in read_manifest(cohort):
        scan = read(row.image)
        write(folder / f"{row.subject}.nii.gz", (scan.voxels > 50).astype(np.uint8), scan.affine)
        rows.append(row._replace(labels=(folder / f"{row.subject}.nii.gz",), scheme=("brain",)))
    write_manifest(folder / "people.tsv", rows)
    return folder / "people.tsv"


@pytest.fixture(scope="session")
def heads(cohort, tmp_path_factory):
    """Of the same heads two have their image and labels of a brain, to train on and held out; of the others there are labels only, of brain
    and head, one to train on and one held out."""
    folder = tmp_path_factory.mktemp("heads")
    at = np.indices((40, 40, 40)) - 19.5
    left, radius = at[0] < 0, np.sqrt((at**2).sum(0))
    brain = np.where(radius < 7, np.where(left, 2, 41), np.where(radius < 11, np.where(left, 3, 42), 0)).astype(np.uint16)
    rows = []
    for row, split in zip(read_manifest(cohort), ("train", "train", "val", "val"), strict=True):
        i, alone = len(rows), row.subject in ("head1", "head2")
        scan, labels = read(row.image), np.roll(brain, i % 2, axis=1)
        labels = np.where(scan.voxels * alone > 50, np.where(labels, labels, 603), labels)
        file = folder / f"{row.subject}.nii.gz"
        write(file, labels, scan.affine)
        images = {"image": file, "labels_only": True} if alone else {}
        rows.append(row._replace(labels=(file,), scheme=("head" if alone else "freesurfer",), split=split, **images))
    write_manifest(folder / "people.tsv", rows)
    return folder / "people.tsv"


SMALL = {
    "steps": 8,
    "data.spacing": 4.0,
    "data.size": (32, 32, 32),
    "data.crop": (16, 16, 16),
    "data.batch": 2,
    "data.threads": 1,
    "vit.patch": 8,
    "vit.width": 24,
    "vit.depth": 2,
    "vit.heads": 2,
    "vit.hidden": 48,
    "mae.mask_ratio": 0.75,
    "mae.width": 12,
    "mae.depth": 1,
    "mae.heads": 2,
    "mesh.data": 1,
    "log_every": 1,
    "eval_every": 0.5,
    "dtype": "float32",
}


@pytest.fixture(scope="session")
def small():
    """A config that trains in seconds: `small(**{"steps": 4})` changes keys of it."""

    def make(**changes) -> ConfigDict:
        config = base()
        config.update_from_flattened_dict(SMALL | changes)
        config.update_from_flattened_dict({key: KEYS[key].default for key in idle_keys(config) if key not in changes})
        return config

    return make


@pytest.fixture(scope="session")
def small_flags(cohort):
    """The same config, and the cohort, as flags of a command."""
    values = SMALL | {"data.manifest": cohort, "data.cache": cohort.parent}
    return [f"--config.{key}={value}" for key, value in values.items()]
