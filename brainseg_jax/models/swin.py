"""The 3-D Swin transformer encoder (Liu et al. 2021; Swin UNETR's, Hatamizadeh et al. 2022; Tang et al. 2022).

Its values are MONAI's, oddities included: padded voxels are attended to, and a reduced window uses the corner of the full window's biases.
Unlike MONAI's, attention does not save scores for the backward pass (`attend_windows`). Windows are in `windows.py`.
"""

from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from brainseg_jax.core.errors import InputError
from brainseg_jax.models.blocks import ResBlock
from brainseg_jax.models.cpu_attention import window_by_window, window_by_window_gradient
from brainseg_jax.models.layers import MLP, Linear, layer_norm
from brainseg_jax.models.vit import patchify, small_normal
from brainseg_jax.models.windows import APART, Grid, WindowGrid, merge_windows, partition, regions, relative, window_grid

EPS = 1e-5
# Octants (x, y, z offsets) in the order of their concatenation. `legacy` is the order of MONAI 0.9 to 1.4 and of all published weights: two
# octants twice, two never. `merging` is MONAI's default since 1.5, `mergingv2` its other option.
OCTANTS = {
    "legacy": ("000", "100", "010", "001", "101", "010", "001", "111"),
    "merging": ("000", "100", "010", "001", "110", "101", "011", "111"),
    "mergingv2": ("000", "001", "010", "011", "100", "101", "110", "111"),
}


Heads = Float[jax.Array, "w n h e"]


@partial(jax.custom_vjp, nondiff_argnums=(4,))
def attend_windows(q: Heads, k: Heads, v: Heads, bias: Float[jax.Array, "h n n"], c: WindowGrid) -> Heads:
    """softmax(q kᵀ / √e + bias + mask) v in each window; the softmax in float32 whatever the inputs are.

    The scores, by far the largest array of the network (484 MB in the first stage for 96³ voxels), are recomputed in the backward pass. A
    GPU computes all windows at once; a CPU one after the other, so that scores stay in its cache: about four times as fast.
    """
    return _forward(q, k, v, bias, c)[0]


def _forward(q, k, v, bias, c):
    forms = {"cpu": partial(window_by_window, c), "default": partial(_together_and_log_sum, c)}
    out, log_sum = jax.lax.platform_dependent(q, k, v, bias, **forms)
    return out, (q, k, v, bias, out, log_sum)


def _backward(c, saved, gradient):
    forms = {"cpu": partial(window_by_window_gradient, c), "default": partial(_together_gradient, c)}
    return jax.lax.platform_dependent(*saved, gradient, **forms)


attend_windows.defvjp(_forward, _backward)


def _together(c, q, k, v, bias):
    exact = jnp.promote_types(q.dtype, jnp.float32)
    scores = jnp.einsum("wnhe,wmhe->whnm", q, k, preferred_element_type=exact) * q.shape[-1] ** -0.5 + bias.astype(exact)[None]
    if any(c.shift):
        # Compared where it is added, so that the small array of labels is read instead of a mask for every window.
        labels = jnp.asarray(regions(c))
        mask = jnp.where(labels[:, :, None] == labels[:, None, :], 0.0, APART).astype(exact)
        scores = (scores.reshape(-1, len(labels), *scores.shape[1:]) + mask[None, :, None]).reshape(scores.shape)
    return jnp.einsum("whnm,wmhe->wnhe", jax.nn.softmax(scores, axis=-1).astype(v.dtype), v)


def _together_and_log_sum(c, q, k, v, bias):
    # The log-sum is only used on a CPU.
    w, n, h, _ = q.shape
    return _together(c, q, k, v, bias), jnp.zeros((w, h, n, 1), jnp.promote_types(q.dtype, jnp.float32))


def _together_gradient(c, q, k, v, bias, out, log_sum, gradient):
    return jax.vjp(partial(_together, c), q, k, v, bias)[1](gradient)


class WindowAttention(nn.Module):
    """Multi-head attention within windows, with a learned bias for each relative position; qkv laid out as in `layers.Attention`."""

    heads: int
    window: int
    grid: WindowGrid
    qkv_bias: bool = True
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Float[jax.Array, "w n d"]) -> Float[jax.Array, "w n d"]:
        w, n, d = x.shape
        qkv = Linear(3 * d, self.dtype, self.qkv_bias, name="qkv")(x)
        q, k, v = jnp.moveaxis(qkv.reshape(w, n, 3, self.heads, d // self.heads), 2, 0)
        table = self.param("relative_position_bias_table", small_normal, ((2 * self.window - 1) ** 3, self.heads))
        # As in MONAI, a reduced window uses the corner of the full window's index: its biases do not match its own geometry.
        bias = jnp.moveaxis(table[relative(self.window)[:n, :n]], -1, 0)
        out = attend_windows(q, k, v, bias, self.grid).reshape(w, n, d)
        return Linear(d, self.dtype, name="proj")(out)


class Block(nn.Module):
    """x + attention in windows of norm(x), then x + mlp(norm(x)); each branch is dropped for a share `drop_path` of the samples."""

    heads: int
    window: int
    shift: int
    qkv_bias: bool = True
    drop_path: float = 0.0
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Grid) -> Grid:
        b, *grid, d = x.shape
        drop = partial(nn.Dropout, self.drop_path, (1, 2, 3, 4), deterministic=False, rng_collection="drop_path")
        c = window_grid(tuple(grid), self.window, self.shift)
        # Padded after the norm, so that padding is zero before qkv and its bias after.
        windows = partition(layer_norm(EPS, self.dtype, "norm1")(x), c)
        windows = WindowAttention(self.heads, self.window, c, self.qkv_bias, self.dtype, name="attn")(windows)
        x = x + drop()(merge_windows(windows, c, tuple(grid)))
        h = layer_norm(EPS, self.dtype, "norm2")(x).reshape(b, -1, d)
        return x + drop()(MLP(4 * d, self.dtype, name="mlp")(h).reshape(x.shape))


class Merge(nn.Module):
    """Patch merging: the concatenated channels of 2³ voxels, normalised and reduced to twice the channels."""

    octants: tuple[str, ...]
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Grid) -> Float[jax.Array, "b x2 y2 z2 d"]:
        corners = [[int(offset) for offset in octant] for octant in self.octants]
        joined = jnp.concatenate([x[:, i::2, j::2, k::2] for i, j, k in corners], axis=-1)
        h = layer_norm(EPS, self.dtype, "norm")(joined)
        return Linear(2 * x.shape[-1], self.dtype, use_bias=False, name="reduction")(h)


class Stage(nn.Module):
    """Blocks on one grid, every second one shifted by half a window, then patch merging. `drop_path` has a rate for each block."""

    heads: int
    window: int
    octants: tuple[str, ...]
    drop_path: tuple[float, ...]
    qkv_bias: bool = True
    remat: bool = False
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Grid) -> Float[jax.Array, "b x2 y2 z2 d"]:
        block = nn.remat(Block) if self.remat else Block
        for i, rate in enumerate(self.drop_path):
            shift = self.window // 2 * (i % 2)
            x = block(self.heads, self.window, shift, self.qkv_bias, rate, self.dtype, name=f"blocks_{i}")(x)
        return Merge(self.octants, self.dtype, name="downsample")(x)


class Swin(nn.Module):
    """Encoder: `(image [b x y z c], train)` to five maps, at 1/2 with `width` channels, at 1/4 with twice as many, … at 1/32.

    Each map is normalised over its channels, without scale or bias. `merging` is a key of OCTANTS. `v2` adds a residual block of
    convolutions before each stage. `drop_path` is the rate of the last block, rising from 0; training then needs an rng "drop_path".
    """

    width: int = 48
    depths: tuple[int, ...] = (2, 2, 2, 2)
    heads: tuple[int, ...] = (3, 6, 12, 24)
    window: int = 7
    merging: str = "merging"
    v2: bool = False
    qkv_bias: bool = True
    drop_path: float = 0.0
    remat: bool = False
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, image: Grid, train: bool = False) -> tuple[Float[jax.Array, "b _ _ _ _"], ...]:
        b, *size, _ = image.shape
        multiple = 2 ** (len(self.depths) + 1)
        if any(n % multiple for n in size):
            usable = " x ".join(str(-(-n // multiple) * multiple) for n in size)
            given = " x ".join(map(str, size))
            raise InputError(f"an image of {given} voxels: Swin takes multiples of {multiple} on every axis; crop or pad it to {usable}")
        patches = patchify(image, 2).reshape(b, *(n // 2 for n in size), -1)
        x = Linear(self.width, self.dtype, name="patch_embed")(patches)
        rates = np.linspace(0, self.drop_path if train else 0.0, sum(self.depths)).tolist()
        residual = nn.remat(ResBlock) if self.remat else ResBlock
        maps = [self._plain_norm(x)]
        for i, (depth, heads) in enumerate(zip(self.depths, self.heads, strict=True), start=1):
            if self.v2:
                x = residual(x.shape[-1], self.dtype, name=f"layers{i}c")(x)
            stage_rates, rates = tuple(rates[:depth]), rates[depth:]
            octants, options = OCTANTS[self.merging], (self.qkv_bias, self.remat, self.dtype)
            x = Stage(heads, self.window, octants, stage_rates, *options, name=f"layers{i}")(x)
            maps.append(self._plain_norm(x))
        return tuple(maps)

    def _plain_norm(self, x: Grid) -> Grid:
        return nn.LayerNorm(EPS, self.dtype, use_bias=False, use_scale=False, use_fast_variance=False)(x)
