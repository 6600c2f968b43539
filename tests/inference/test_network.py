"""A trained network in Python: it computes in what the machine at hand is good at, unless it is told."""

import jax
import numpy as np
import pytest

from brainseg_jax import load
from brainseg_jax.config.resolve import with_sources
from brainseg_jax.core.errors import InputError
from brainseg_jax.models.encoders import segmenter
from brainseg_jax.weights import single_file


@pytest.fixture
def file(small, tmp_path):
    """A network whose card says that it was trained in bfloat16, as on a GPU."""
    config = small(
        **{"objective": "segmentation", "decoder": "unetr", "data.crop": (32, 32, 32), "classes": 3, "dtype": "bfloat16"}
        | {"vit.patch": 16, "vit.depth": 4, "vit.features": (0, 1, 2), "unetr.width": 4}
    )
    image = jax.ShapeDtypeStruct((1, 32, 32, 32, 1), np.float32)
    shapes = jax.eval_shape(segmenter(config).init, jax.random.key(0), image)["params"]
    params = jax.tree.map(lambda s: np.zeros(s.shape, s.dtype), shapes)
    single_file.write(tmp_path / "net.safetensors", params, {"config": with_sources(config, set(), "test.py")})
    return tmp_path / "net.safetensors"


@pytest.mark.parametrize(
    ("backend", "asked", "used"),
    [
        ("cpu", "auto", "float32"),
        ("gpu", "auto", "bfloat16"),
        ("cpu", "bfloat16", "bfloat16"),
        ("gpu", "float32", "float32"),
    ],
)
def test_what_it_computes_in_is_decided_where_it_is_loaded(file, monkeypatch, backend, asked, used):
    monkeypatch.setattr(jax, "default_backend", lambda: backend)
    network = load(file, dtype=asked)
    assert network.config.dtype == used
    image = jax.ShapeDtypeStruct((1, 32, 32, 32, 1), np.float32)
    assert ("bf16" in str(jax.make_jaxpr(network.apply)(network.params, image))) == (used == "bfloat16")
    # What is written again still says what it was trained in.
    network.save(file.with_name("again.safetensors"))
    assert single_file.read(file.with_name("again.safetensors"))[1]["config"]["dtype"]["value"] == "bfloat16"


def test_another_type_is_refused(file):
    with pytest.raises(InputError, match="dtype='float16' is unknown; use one of auto, float32, bfloat16"):
        load(file, dtype="float16")
