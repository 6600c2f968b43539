"""Masked autoencoding of brain MRI: reconstruction of the patches hidden from the encoder (He et al. 2022; the paper, section III-A).

The encoder sees the visible patches only; a small transformer decoder sees their encodings and one learned token per masked patch.
The paper's text gives this decoder skip connections; its code has none, and neither has this. Attention does not depend on order, so
tokens are never shuffled back: visible ones come first, masked ones after them, each with its own position. The result is the same,
without a gather and its gradient, and only masked patches are predicted.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Float, Int

from brainseg_jax.models.layers import Linear, layer_norm, stack
from brainseg_jax.models.vit import Positions, ViT, gather, patchify, small_normal, unpatchify


def kept_tokens(n: int, mask_ratio: float) -> int:
    """The number of the `n` patches that the encoder sees: ⌊n·(1 − ratio)⌋, robust to rounding as in 10·(1 − 0.9) = 0.9999999999999998."""
    return int(n * (1 - mask_ratio) + 1e-6)


def random_masks(key: jax.Array, batch: int, n: int, kept: int) -> tuple[Int[jax.Array, "b m"], Int[jax.Array, "b u"]]:
    """Indices of visible and of masked patches, drawn for each sample: the `kept` smallest of n uniform numbers are visible."""
    order = jnp.argsort(jax.random.uniform(key, (batch, n)), axis=1)
    return order[:, :kept], order[:, kept:]


class MAE(nn.Module):
    """Objective: `batch["image"] [b x y z c]` → (mean squared error on masked patches, metrics).

    `normalize_targets` standardises every target patch by its own mean and (unbiased) variance (He et al., "norm_pix_loss").
    Needs the random stream `mask`.
    """

    encoder: ViT
    mask_ratio: float = 0.85
    width: int = 512
    depth: int = 4
    heads: int = 16
    normalize_targets: bool = False
    channels: int = 1

    labels = False
    metrics = ("loss",)
    streams = ("mask",)
    picture_names = ("original", "masked", "reconstructed")

    def setup(self) -> None:
        vit = self.encoder
        self.embed = Linear(self.width, vit.dtype)
        self.mask_token = self.param("mask_token", small_normal, (1, 1, self.width))
        self.position = Positions(vit.grid, self.width, vit.positions)
        if vit.class_token and vit.positions == "separable":
            self.cls_position = self.param("cls_position", small_normal, (1, 1, self.width))
        block = {"qkv_bias": vit.qkv_bias, "eps": vit.eps, "attention": vit.attention, "dtype": vit.dtype}
        self.blocks = stack(self.depth, vit.remat, heads=self.heads, hidden=4 * self.width, **block)
        self.norm = layer_norm(vit.eps, vit.dtype, None)
        self.predict = Linear(vit.patch**3 * self.channels, vit.dtype)

    def _decode(
        self, tokens: Float[jax.Array, "b _ d"], keep: Int[jax.Array, "b m"], masked: Int[jax.Array, "b u"]
    ) -> Float[jax.Array, "b u p"]:
        """Predicted voxels of the masked patches, in the order of `masked`."""
        b, u = masked.shape
        position = jnp.broadcast_to(self.position(), (b, keep.shape[1] + u, self.width))
        seen = self.embed(tokens)
        at = gather(position, keep)
        if self.encoder.class_token:
            cls = self.cls_position if self.encoder.positions == "separable" else jnp.zeros((1, 1, self.width))
            at = jnp.concatenate([jnp.broadcast_to(cls, (b, 1, self.width)), at], axis=1)
        hidden = self.mask_token + gather(position, masked)
        x = jnp.concatenate([seen + at.astype(seen.dtype), hidden.astype(seen.dtype)], axis=1)
        x, _ = self.blocks(x, None)
        predicted = self.predict(self.norm(x[:, -u:]))
        return predicted.astype(jnp.promote_types(predicted.dtype, jnp.float32))

    def _masks(self, image: Float[jax.Array, "b x y z c"]) -> tuple[Int[jax.Array, "b m"], Int[jax.Array, "b u"]]:
        x, y, z = self.encoder.grid
        n = x * y * z
        return random_masks(self.make_rng("mask"), image.shape[0], n, kept_tokens(n, self.mask_ratio))

    def _targets(self, image: Float[jax.Array, "b x y z c"], masked: Int[jax.Array, "b u"]) -> Float[jax.Array, "b u p"]:
        return gather(patchify(image, self.encoder.patch), masked)

    def __call__(self, batch: dict[str, jax.Array], train: bool = False) -> tuple[jax.Array, dict[str, tuple[jax.Array, jax.Array]]]:
        image = batch["image"]
        keep, masked = self._masks(image)
        predicted = self._decode(self.encoder.tokens(image, keep), keep, masked)
        target = self._targets(image, masked)
        if self.normalize_targets:
            mean, spread = patch_statistics(target)
            target = (target - mean) / spread
        error = jnp.mean(jnp.square(predicted - target), axis=(1, 2))
        weight = batch.get("weight", jnp.ones(error.shape))
        total, count = jnp.sum(error * weight), jnp.sum(weight)
        return total / jnp.maximum(count, 1), {"loss": (total, count)}

    def pictures(self, batch: dict[str, jax.Array]) -> tuple[Float[jax.Array, "b x y z c"], ...]:
        """Volumes for display, in the order of `picture_names`: the image, with masked patches NaN, and with masked patches predicted.

        Predictions of normalised targets are denormalised with the statistics of the true patch, as in He et al.'s figures.
        """
        image = batch["image"]
        keep, masked = self._masks(image)
        predicted = self._decode(self.encoder.tokens(image, keep), keep, masked)
        if self.normalize_targets:
            mean, spread = patch_statistics(self._targets(image, masked))
            predicted = predicted * spread + mean
        rows = jnp.arange(image.shape[0])[:, None]
        patches = patchify(image, self.encoder.patch)

        def with_hidden(values: Any) -> Float[jax.Array, "b x y z c"]:
            return unpatchify(patches.at[rows, masked].set(values), self.encoder.grid, self.encoder.patch)

        return image, with_hidden(jnp.nan), with_hidden(predicted)


def patch_statistics(patches: Float[jax.Array, "b n p"]) -> tuple[Float[jax.Array, "b n 1"], Float[jax.Array, "b n 1"]]:
    """Mean and √(unbiased variance + 1e-6) of each patch."""
    mean = jnp.mean(patches, axis=-1, keepdims=True)
    return mean, jnp.sqrt(jnp.var(patches, axis=-1, keepdims=True, ddof=1) + 1e-6)
