"""The description of an encoder for configs, layer-wise decay, transfer, `parameters` and recipes; importing it imports no JAX."""

import pkgutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from ml_collections import ConfigDict

from brainseg_jax.core.config_key import Group, flatten

Row = tuple[str, int, str]  # network, parameters, what is counted


@dataclass(frozen=True)
class EncoderSpec:
    """An encoder and the decoders that fit it. Network modules are imported only when a network is built.

    `name`: the value of config.encoder. `title`: the name in messages. `keys`: groups of config keys of it and its decoders. `check`:
    raises InputError for an unusable config. `build`, `decoders`: constructors of the encoder and, by config.decoder, of the decoders.
    `multiple`: the number of voxels that divides the sides of a crop. `width`: the key of its width. `rows`: (config, shapes of the
    segmentation network, function for shapes of the pretraining network) → the rows that `parameters` lists.

    `pretraining`: its pretraining objective. `fixed_size`: whether it takes images of the crop's size only. `attends`: whether
    config.attention applies. `blocks`: a regular expression of the paths of its blocks, either stacked along each leaf's first axis, or
    with groups stage, block and, for layers before a stage's first block, early. `followed`: whether a layer follows the blocks.
    `image_kernels`: paths of the kernels applied to the image. `recipes`: by a recipe's name, its changes for this encoder.
    """

    name: str
    title: str
    keys: dict[str, Group]
    check: Callable[[ConfigDict], None]
    build: Callable[[ConfigDict], Any]
    decoders: dict[str, Callable[[ConfigDict], Any]]
    multiple: Callable[[ConfigDict], int]
    width: str
    rows: Callable[[ConfigDict, Any, Callable[[], Any]], list[Row]]
    blocks: str
    image_kernels: tuple[str, ...]
    pretraining: str = ""
    fixed_size: bool = False
    attends: bool = False
    followed: bool = True
    recipes: dict[str, Callable[[ConfigDict], None]] = field(default_factory=dict)

    def sizes(self, parts: Sequence[str]) -> list[str]:
        """Names of the config keys that determine the architecture of these parts of the network."""
        return [name for name, key in flatten(self.keys).items() if key.part in parts]


def construct(address: str, c: ConfigDict, **fields: Any) -> Any:
    """The Flax module "FILE:CLASS" of models/ with these fields and the config's remat and dtype."""
    import jax.numpy as jnp

    return pkgutil.resolve_name(f"brainseg_jax.models.{address}")(remat=c.remat, dtype=jnp.dtype(c.dtype), **fields)


def nearest(crop: Sequence[int], multiple: int) -> tuple[int, ...]:
    """The crop rounded down to multiples, at least one along each axis."""
    return tuple(max(1, n // multiple) * multiple for n in crop)
