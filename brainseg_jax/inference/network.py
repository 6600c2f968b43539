"""A trained network in Python: `brainseg_jax.load(checkpoint)`, the same for every architecture."""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float
from ml_collections import ConfigDict

from brainseg_jax.config.resolve import of_card
from brainseg_jax.core.errors import InputError
from brainseg_jax.core.pytree import mismatches, paths
from brainseg_jax.inference.sliding_window import Model
from brainseg_jax.models import encoders
from brainseg_jax.pretrained import network_file
from brainseg_jax.weights import checkpoint, single_file

DTYPES = ("auto", "float32", "bfloat16")  # of computation


class Network:
    """A segmentation network with its weights.

    `config`: the experiment's values, a ConfigDict. `params`: a nested dict of arrays, {"encoder": …, "decoder": …, "head": …}.
    `card`: the rest of the checkpoint's metadata.
    """

    def __init__(self, config: ConfigDict, params: Any, card: dict[str, Any]):
        self.config, self.params, self.card = config, params, card
        self._network = encoders.segmenter(config)
        self._compiled = jax.jit(self.apply)

    def logits(self, images: Float[Any, "b x y z c"]) -> Float[jax.Array, "b x y z k"]:
        """Class logits of each voxel, float32, for images standardised as the card says.

        Compiled at the first call for each shape. Raises InputError for a shape that the network cannot take.
        """
        return self._compiled(self.params, self._checked(images))

    def apply(self, params: Any, images: Float[jax.Array, "b x y z c"]) -> Float[jax.Array, "b x y z k"]:
        """`logits` as a pure function of the parameters, to be differentiated, e.g. for fine-tuning."""
        return self._network.apply({"params": params}, self._checked(images))

    def model(self) -> Model:
        """The network for `sliding_window.segment`, with windows of its training crop."""
        return Model(self._network, self.params, tuple(self.config.data.crop))

    def save(self, folder: str | Path, params: Any = None) -> None:
        """Writes a checkpoint with these parameters, or with `params` instead, which `load` and `brainseg convert` read.

        It is a folder, or a single file if the name ends in .safetensors. Raises InputError if it exists, or if `params` are not of this
        network.
        """
        folder, params = Path(folder), self.params if params is None else params
        if folder.exists():
            raise InputError(f"{folder}: exists; give a new name")
        _check_same(folder, params, self.params)
        (single_file if folder.suffix == single_file.SUFFIX else checkpoint).write(folder, params, self.card)

    def _checked(self, images: Any) -> jax.Array:
        shape, channels, crop = tuple(images.shape), self.config.channels, tuple(self.config.data.crop)
        if len(shape) != 5 or shape[-1] != channels:
            raise InputError(f"images of shape {shape}: give [batch, x, y, z, {channels}]")
        if encoders.ENCODERS[self.config.encoder].fixed_size and shape[1:4] != crop:
            raise InputError(f"images of {shape[1:4]} voxels: this network was built for {crop}; crop or pad them to it")
        return jnp.asarray(images)


def load(path: str | Path, dtype: str = "auto") -> Network:
    """The network of a checkpoint: a folder of a run (`runs/NAME/checkpoints/STEP`) or of `brainseg convert`, a file of
    `save`, or the name of a network that comes with the package, "any" or "t1".

    `dtype`: the type of computation, "float32", "bfloat16" or "auto": float32 on a CPU, bfloat16 elsewhere, whatever it was trained in.
    Raises InputError if it is no checkpoint, is damaged, is no segmentation network, or if parameters are missing or not finite.
    """
    if dtype not in DTYPES:
        raise InputError(f"dtype={dtype!r} is unknown; use one of {', '.join(DTYPES)}")
    folder = Path(network_file(path))
    params, card = checkpoint.load(folder)
    with single_file.reading(folder):
        config = of_card(card, folder)
    if config.objective != "segmentation" or "head" not in params:
        kind = config.objective if config.objective != "segmentation" else "encoder"
        raise InputError(f"{folder}: holds the weights of {kind}, which give no logits; fine-tune it first, or load a segmentation")
    # The attention kernel and the dtype were chosen for the machine of the training.
    config.attention = "auto"
    config.dtype = ("float32" if jax.default_backend() == "cpu" else "bfloat16") if dtype == "auto" else dtype
    with single_file.reading(folder):
        image = jax.ShapeDtypeStruct((1, *config.data.crop, config.channels), jnp.float32)
        wanted = jax.eval_shape(encoders.segmenter(config).init, jax.random.key(0), image)["params"]
    _check_same(folder, params, wanted)
    for name, leaf in paths(params).items():
        if not np.isfinite(leaf).all():
            raise InputError(f"{folder}: {name} holds NaN or infinity; use an earlier checkpoint")
    return Network(config, jax.device_put(params), card)


def _check_same(folder: Path, params: Any, wanted: Any) -> None:
    """Raises InputError, naming the first parameter that is missing, surplus or of another shape."""
    if faults := mismatches(params, wanted):
        raise InputError(f"{folder}: {faults[0]}; parameters and config do not belong together")
