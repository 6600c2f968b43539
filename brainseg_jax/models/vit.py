"""The 3-D Vision Transformer encoder (Dosovitskiy et al. 2021; UNETR's, Hatamizadeh et al. 2022), in one file.

Fields select MONAI's variant (full position table, no class token, eps 1e-5) or the paper's (separable positions, a class token, eps 1e-6).
Patches are embedded by a matrix product, not a strided convolution.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int

from brainseg_jax.models.layers import Linear, layer_norm, stack

small_normal = nn.initializers.normal(0.02)


def patchify(image: Float[jax.Array, "b x y z c"], patch: int) -> Float[jax.Array, "b n p"]:
    """The cubes of side `patch` of a volume as tokens in row-major (x, y, z) order, with voxels in (x, y, z, c) order, c fastest."""
    b, x, y, z, c = image.shape
    cubes = image.reshape(b, x // patch, patch, y // patch, patch, z // patch, patch, c)
    return cubes.transpose(0, 1, 3, 5, 2, 4, 6, 7).reshape(b, -1, patch**3 * c)


def unpatchify(patches: Float[jax.Array, "b n p"], grid: tuple[int, int, int], patch: int) -> Float[jax.Array, "b x y z c"]:
    """The volume of patches on a grid of tokens (x, y, z): the inverse of `patchify`."""
    b = patches.shape[0]
    cubes = patches.reshape(b, *grid, patch, patch, patch, -1).transpose(0, 1, 4, 2, 5, 3, 6, 7)
    return cubes.reshape(b, *(g * patch for g in grid), -1)


def gather(tokens: Float[jax.Array, "b n d"], index: Int[jax.Array, "b m"]) -> Float[jax.Array, "b m d"]:
    """The tokens at each sample's indices."""
    return jnp.take_along_axis(tokens, index[:, :, None], axis=1)


def sincos_table(grid: tuple[int, int, int], width: int) -> np.ndarray:
    """Fixed 3-D position embeddings [n d]: a third of the width per axis, sines then cosines, frequencies 10000^(-i/m) (MAE, He et al.
    2022), zeros for the remainder of a width that is not a multiple of six."""
    m = width // 6
    frequency = 10000.0 ** (-np.arange(m) / m)
    axes = np.meshgrid(*(np.arange(g) for g in grid), indexing="ij")
    waves = [f(a.reshape(-1, 1) * frequency) for a in axes for f in (np.sin, np.cos)]
    table = np.concatenate(waves, axis=1)
    return np.pad(table, ((0, 0), (0, width - table.shape[1]))).astype(np.float32)


class Positions(nn.Module):
    """Position embeddings: an [n d] table for the grid, learned or fixed.

    `separable`: one vector per slice of the first axis plus one per place in the slice (Feichtenhofer et al. 2022; the paper's code);
    `table`: one vector per token (MONAI); `sincos`: fixed.
    """

    grid: tuple[int, int, int]
    width: int
    kind: str

    @nn.compact
    def __call__(self) -> Float[jax.Array, "n d"]:
        x, y, z = self.grid
        if self.kind == "separable":
            plane = self.param("spatial", small_normal, (y * z, self.width))
            along = self.param("temporal", small_normal, (x, self.width))
            return (along[:, None] + plane[None]).reshape(-1, self.width)
        if self.kind == "table":
            return self.param("table", small_normal, (x * y * z, self.width))
        return jnp.asarray(sincos_table(self.grid, self.width))


class ViT(nn.Module):
    """Encoder: `(image[b x y z c], train) → (features[b x' y' z' d], …)`, and `tokens` for masked autoencoding.

    `grid` is the number of patches per axis of the crop. `features` are the blocks (0-based) whose outputs are returned beside the last
    one, normalised. `drop_path` is the drop-path chance of the last block, rising from 0; training then needs an rng "drop_path".
    """

    grid: tuple[int, int, int]
    patch: int = 16
    width: int = 768
    depth: int = 12
    heads: int = 12
    hidden: int = 3072
    positions: str = "separable"
    class_token: bool = True
    qkv_bias: bool = True
    eps: float = 1e-6
    features: tuple[int, ...] = ()
    drop_path: float = 0.0
    remat: bool = False
    attention: str = "auto"
    dtype: Any = jnp.float32

    def setup(self) -> None:
        self.patch_embed = Linear(self.width, self.dtype)
        self.position = Positions(self.grid, self.width, self.positions)
        if self.class_token:
            self.cls_token = self.param("cls_token", small_normal, (1, 1, self.width))
            if self.positions == "separable":
                self.cls_position = self.param("cls_position", small_normal, (1, 1, self.width))
        block = {"qkv_bias": self.qkv_bias, "eps": self.eps, "attention": self.attention, "dtype": self.dtype}
        self.blocks = stack(self.depth, self.remat, heads=self.heads, hidden=self.hidden, **block)
        self.norm = layer_norm(self.eps, self.dtype, None)

    def _embed(self, image: Float[jax.Array, "b x y z c"], keep: Int[jax.Array, "b m"] | None) -> Float[jax.Array, "b _ d"]:
        patches = patchify(image, self.patch)
        position = self.position()[None]
        if keep is not None:
            # Gathered before the product, so that masked patches are not embedded.
            patches = gather(patches, keep)
            position = gather(jnp.broadcast_to(position, (keep.shape[0], *position.shape[1:])), keep)
        x = self.patch_embed(patches) + position.astype(self.dtype)
        if self.class_token:
            cls = self.cls_token + (self.cls_position if self.positions == "separable" else 0.0)
            x = jnp.concatenate([jnp.broadcast_to(cls, (x.shape[0], 1, self.width)).astype(x.dtype), x], axis=1)
        return x

    def tokens(self, image: Float[jax.Array, "b x y z c"], keep: Int[jax.Array, "b m"]) -> Float[jax.Array, "b _ d"]:
        """Normalised tokens of the patches `keep`, after the class token if there is one."""
        x, _ = self.blocks(self._embed(image, keep), None)
        return self.norm(x)

    def __call__(self, image: Float[jax.Array, "b x y z c"], train: bool = False) -> tuple[Float[jax.Array, "b x2 y2 z2 d"], ...]:
        drop = jnp.linspace(0.0, self.drop_path, self.depth) if train and self.drop_path else None
        x, hidden = self.blocks(self._embed(image, None), drop)
        maps = [*(hidden[i] for i in self.features), self.norm(x)]
        return tuple(m[:, int(self.class_token) :].reshape(m.shape[0], *self.grid, self.width) for m in maps)
