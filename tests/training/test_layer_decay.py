"""Layers by hand, for scanned blocks and for stages; what decay and unfreezing leave of an update."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from brainseg_jax.core.pytree import paths
from brainseg_jax.models.swin import Swin
from brainseg_jax.models.unet import ResEnc
from brainseg_jax.models.vit import ViT
from brainseg_jax.training import layer_decay

OTHERS = {"decoder": {"conv": {"kernel": jnp.ones((2, 2))}}, "head": {"bias": jnp.ones(2)}}


@pytest.fixture(scope="module")
def vit():
    """Parameters of a ViT of three blocks, which are scanned, and of a decoder."""
    encoder = ViT(grid=(1, 1, 2), patch=2, width=12, depth=3, heads=2, hidden=8, features=(0, 1), class_token=True, positions="separable")
    shapes = jax.eval_shape(encoder.init, jax.random.key(0), jnp.zeros((1, 2, 2, 4, 1)))["params"]
    return {"encoder": jax.tree.map(lambda s: jnp.ones(s.shape), shapes), **OTHERS}


@pytest.fixture(scope="module")
def swin():
    """Those of a Swin of two stages with two blocks and one, and convolutions before each (v2)."""
    encoder = Swin(width=12, depths=(2, 1), heads=(1, 1), window=2, v2=True)
    shapes = jax.eval_shape(encoder.init, jax.random.key(0), jnp.zeros((1, 8, 8, 8, 1)))["params"]
    return {"encoder": jax.tree.map(lambda s: jnp.ones(s.shape), shapes), **OTHERS}


def test_scanned_blocks_have_their_layers_along_the_first_axis(vit):
    found = layer_decay.layers(vit)
    of = paths(found.of)
    assert found.top == 4
    assert {int(of[f"encoder/{name}"]) for name in ("patch_embed/kernel", "cls_token", "position/spatial")} == {0}
    kernel = of["encoder/blocks/mlp/linear1/kernel"]
    assert kernel.shape == (3, 1, 1) and kernel.ravel().tolist() == [1, 2, 3]
    assert (int(of["encoder/norm/scale"]), int(of["decoder/conv/kernel"]), int(of["head/bias"])) == (4, 5, 5)


def test_stages_count_their_blocks_through(swin):
    found = layer_decay.layers(swin)
    of = {path: int(layer) for path, layer in paths(found.of).items()}
    assert found.top == 4
    assert of["encoder/patch_embed/kernel"] == 0
    assert [of[f"encoder/layers{s}/blocks_{b}/attn/qkv/kernel"] for s, b in ((1, 0), (1, 1), (2, 0))] == [1, 2, 3]
    assert [of[f"encoder/layers{s}c/conv1/kernel"] for s in (1, 2)] == [1, 3]
    assert [of[f"encoder/layers{s}/downsample/reduction/kernel"] for s in (1, 2)] == [2, 3]
    assert of["head/bias"] == 5


def test_a_residual_encoder_s_blocks_count_from_its_stem_to_the_last():
    """Nothing follows the last block: it is the top layer, and learns by one factor slower than the decoder."""
    shapes = jax.eval_shape(ResEnc((2, 3), (1, 2)).init, jax.random.key(0), jnp.zeros((1, 4, 4, 4, 1)))["params"]
    params = {"encoder": jax.tree.map(lambda s: jnp.ones(s.shape), shapes), **OTHERS}
    found = layer_decay.layers(params)
    of = {path: int(layer) for path, layer in paths(found.of).items()}
    assert found.top == 3
    assert of["encoder/stem/conv/kernel"] == of["encoder/stem/norm/scale"] == 0
    blocks = {path: layer for path, layer in of.items() if path.startswith("encoder/stages_")}
    for path, layer in blocks.items():
        assert layer == {"stages_0/blocks_0": 1, "stages_1/blocks_0": 2, "stages_1/blocks_1": 3}["/".join(path.split("/")[1:3])]
    assert of["encoder/stages_1/blocks_0/skip/conv/kernel"] == 2 and of["head/bias"] == 4
    change = layer_decay.decay(found, 0.5)
    after = paths(change.update(params, change.init(params))[0])
    scales = [float(after[f"encoder/{name}/norm/scale"][0]) for name in ("stem", "stages_0/blocks_0/conv1", "stages_1/blocks_1/conv2")]
    assert scales == [1 / 16, 1 / 8, 1 / 2]


def test_decay_slows_each_layer_by_the_factor(vit):
    change = layer_decay.decay(layer_decay.layers(vit), 0.5)
    out, _ = change.update(vit, change.init(vit))
    of = paths(out)
    assert float(of["head/bias"][0]) == 1 and float(of["encoder/norm/scale"][0]) == 0.5
    np.testing.assert_array_equal(of["encoder/blocks/mlp/linear1/kernel"][:, 0, 0], [1 / 16, 1 / 8, 1 / 4])
    assert float(of["encoder/patch_embed/bias"][0]) == 1 / 32


def test_unfreezing_goes_from_the_deepest_layer_on(vit):
    """Ten steps, frozen for two: then the five layers of the encoder are freed one after the other."""
    change = layer_decay.unfreeze(layer_decay.layers(vit), 10, 0.2)
    state, free = change.init(vit), []
    for _ in range(11):
        out, state = jax.jit(change.update)(vit, state)
        of = paths(out)
        assert float(of["head/bias"][0]) == float(of["decoder/conv/kernel"][0, 0]) == 1
        blocks = of["encoder/blocks/mlp/linear1/kernel"][:, 0, 0]
        free.append([float(of["encoder/patch_embed/bias"][0]), *map(float, blocks), float(of["encoder/norm/scale"][0])])
    counts = [int(sum(layers)) for layers in free]
    assert counts == [0, 0, 0, 1, 2, 2, 3, 4, 4, 5, 5]  # 5 − ⌊5 · (1 − (step − 2) / 8)⌋
    assert all(layers == sorted(layers) for layers in free)
