"""What an encoder says of itself: all that the config, layer-wise decay, transfer, `parameters` and recipes ask of it, without JAX."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from ml_collections import ConfigDict

from brainseg_jax.core.key import Group, flatten

Row = tuple[str, int, str]  # network, parameters, what is counted


@dataclass(frozen=True)
class EncoderSpec:
    """An encoder, with the decoders that take its maps. Networks are imported when they are built, and not before.

    `name`: config.encoder. `title`: in a sentence. `keys`: groups of config keys that it and its decoders have; those with part="encoder"
    or "decoder" say which network it is. `check`: raises InputError for a config it cannot work with. `build`, `decoders`: the module of a
    config, and those that take its maps, by config.decoder. `multiple`: what axes of a crop are multiples of. `width`: the key of its size.
    `rows`: of (config, the shapes of its segmentation network, a function that gives those of its pretraining) what `parameters` lists.

    `pretraining`: the objective that is made for it. `fixed_size`: whether it takes images of its crop's size only. `attends`: whether
    config.attention is for it. `blocks`: its blocks' paths, a regular expression: either of blocks that are stacked, one along each leaf's
    first axis, or with groups stage, block and, for what comes before a stage's first block, early. `followed`: whether a layer follows
    them. `image_kernels`: paths of kernels that meet the image. `recipes`: by a recipe's name, what it changes for this encoder.
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
        """Names of the config keys that say what these parts of the network are."""
        return [name for name, key in flatten(self.keys).items() if key.part in parts]


def nearest(crop: Sequence[int], multiple: int) -> tuple[int, ...]:
    """The largest crop of multiples that is not larger, or one multiple."""
    return tuple(max(1, n // multiple) * multiple for n in crop)
