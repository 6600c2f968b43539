"""Fine-tuning takes whole parts of a checkpoint or says, in one line, why it cannot."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from brainseg_jax.config.keys import base
from brainseg_jax.config.resolve import with_sources
from brainseg_jax.core.errors import InputError
from brainseg_jax.weights import checkpoint
from brainseg_jax.weights.transfer import load_parts, merge_parameters


def swin(**changes):
    config = base()
    network = {"objective": "segmentation", "encoder": "swin", "decoder": "swin_unetr", "data.labels": "seg4"}
    config.update_from_flattened_dict(network | changes)
    return config


def unet(**changes):
    config = base()
    sizes = {"unet.features": (4, 8), "unet.blocks": (1, 1), "unet.decoder_blocks": (1,)}
    config.update_from_flattened_dict(
        {"objective": "segmentation", "encoder": "resenc", "decoder": "unet", "data.labels": "seg4"} | sizes | changes
    )
    return config


def pretrained(folder, config, encoder, **others):
    checkpoint.write(folder, {"encoder": encoder} | others, {"config": with_sources(config, set(), "test.py")})
    return str(folder)


@pytest.fixture
def encoder():
    return {"patch_embed": {"kernel": np.arange(6, dtype=np.float32).reshape(2, 3)}, "norm": {"scale": np.full(3, 7, np.float32)}}


@pytest.fixture
def params(encoder):
    """New parameters of the same network."""
    return {"encoder": jax.tree.map(jnp.zeros_like, encoder), "decoder": {"kernel": jnp.ones(2)}, "head": {"bias": jnp.ones(5)}}


def test_the_encoder_is_taken_and_the_rest_is_new(tmp_path, encoder, params):
    folder = pretrained(tmp_path / "c", swin(objective="ssl"), encoder, rotation={"bias": np.zeros(4, np.float32)})
    said = []
    out = merge_parameters(params, load_parts(params, swin(**{"init.checkpoint": folder, "swin.drop_path": 0.1}), said.append))
    jax.tree.map(np.testing.assert_array_equal, out["encoder"], encoder)
    assert out["decoder"] is params["decoder"] and out["head"] is params["head"]
    assert said == [f"encoder from {folder}: all 9 numbers; from scratch: decoder, head"]


@pytest.mark.parametrize(
    ("changes", "parts", "refusal"),
    [
        ({"unet.blocks": (1, 2)}, ("encoder",), r"trained with unet\.blocks \(1, 2\).*add '--config\.unet\.blocks=\(1, 2\)'"),
        ({"unet.decoder_blocks": (2,)}, ("encoder",), ""),
        ({"unet.decoder_blocks": (2,)}, ("encoder", "decoder"), r"trained with unet\.decoder_blocks \(2,\)"),
        ({"encoder": "swin"}, ("encoder",), "holds a swin encoder, and this config has resenc"),
    ],
)
def test_of_a_u_net_those_sizes_count_whose_part_is_taken(tmp_path, encoder, params, changes, parts, refusal):
    folder = pretrained(tmp_path / "c", unet(**changes), encoder, decoder={"kernel": np.ones(2, np.float32)})
    ours = unet(**{"init.checkpoint": folder, "init.parts": parts})
    if not refusal:
        jax.tree.map(np.testing.assert_array_equal, load_parts(params, ours, print)["encoder"], encoder)
        return
    with pytest.raises(InputError, match=refusal):
        load_parts(params, ours, print)


def test_another_resolution_is_said(tmp_path, encoder, params):
    folder = pretrained(tmp_path / "c", swin(**{"data.spacing": 2.0}), encoder)
    said = []
    merge_parameters(params, load_parts(params, swin(**{"init.checkpoint": folder}), said.append))
    assert said[0].startswith("note: ") and "data.spacing 2.0, this run has 1.0" in said[0]


@pytest.mark.parametrize(
    ("theirs", "ours", "message"),
    [
        ({"encoder": "vit"}, {}, "holds a vit encoder, and this config has swin"),
        ({"swin.merging": "legacy"}, {}, r"trained with swin\.merging legacy.*add --config\.swin\.merging=legacy"),
        (
            {"swin.width": 12, "swin.depths": (2, 2, 2, 2)},
            {"swin.depths": (1, 1, 1, 1)},
            r"add '--config\.swin\.depths=\(2, 2, 2, 2\)' --config\.swin\.width=12",
        ),
        ({}, {"init.parts": ("encoder", "decoder")}, r"has no decoder; it has encoder: set init\.parts"),
    ],
    ids=["encoder", "merging", "several keys", "part"],
)
def test_another_network_is_refused_by_name(tmp_path, encoder, params, theirs, ours, message):
    folder = pretrained(tmp_path / "c", swin(**theirs), encoder)
    with pytest.raises(InputError, match=message):
        merge_parameters(params, load_parts(params, swin(**{"init.checkpoint": folder} | ours), print))


def test_it_is_refused_before_there_are_parameters(tmp_path, encoder, params):
    """Shapes are enough to tell: nothing has to be compiled for it."""
    config = swin(**{"init.checkpoint": pretrained(tmp_path / "c", swin(), encoder)})
    shapes = jax.eval_shape(lambda: params)
    jax.tree.map(np.testing.assert_array_equal, load_parts(shapes, config, lambda _: None), {"encoder": encoder})
    shapes["encoder"]["norm"]["scale"] = jax.ShapeDtypeStruct((4,), jnp.float32)
    with pytest.raises(InputError, match="do not fit"):
        load_parts(shapes, config, print)
    assert load_parts(shapes, swin(), print) == {}


@pytest.mark.parametrize("fault", ["missing", "surplus", "shape"])
def test_less_than_all_of_a_part_is_refused(tmp_path, encoder, params, fault):
    if fault == "missing":
        del encoder["norm"]
    elif fault == "surplus":
        encoder["cls_token"] = np.zeros(2, np.float32)
    else:
        encoder["norm"]["scale"] = np.zeros(4, np.float32)
    folder = pretrained(tmp_path / "c", swin(), encoder)
    with pytest.raises(InputError, match=r"1 of 2 parameters of its encoder do not fit, e\.g\. encoder/(norm/scale|cls_token) is"):
        merge_parameters(params, load_parts(params, swin(**{"init.checkpoint": folder}), print))


def test_what_is_no_checkpoint_is_refused(tmp_path, params):
    with pytest.raises(InputError, match="is no checkpoint"):
        merge_parameters(params, load_parts(params, swin(**{"init.checkpoint": str(tmp_path)}), print))
