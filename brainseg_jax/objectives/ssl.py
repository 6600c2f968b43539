"""Self-supervised pretraining of a 3-D Swin: inpainting, rotation and contrast (Tang et al. 2022; the paper, section III-A).

Two views of each crop are rotated by a multiple of 90° and partly overwritten, inside the compiled step. The network reconstructs the
rotated crop, classifies the rotation, and finds the other view of the same crop among those of the whole batch: over all devices, where
implementations with a process per GPU contrast the few of each GPU. Cut-out and heads are as published, or ours, by config.
"""

from collections.abc import Callable, Sequence
from functools import partial
from math import ceil, prod, sqrt
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float, Int

from brainseg_jax.models.blocks import activated_norm
from brainseg_jax.models.conv import UpConv, conv3, he_normal
from brainseg_jax.models.layers import Linear
from brainseg_jax.models.swin import Swin
from brainseg_jax.parallel.sharding import gather_batch, per_device

Volume = Float[jax.Array, "b x y z c"]
PerSample = Float[jax.Array, "b"]
Inside = Bool[jax.Array, "i j k"]
Held = Int[jax.Array, "i j k"]

# The content of a view's voxel: the image, noise, or another sample.
OWN, NOISE, OTHER = 0, 1, 2
# The similarity of excluded pairs; finite, so that a padding row's loss, which has weight 0, is finite.
NEVER = -1e9


def rotate(image: Float[jax.Array, "b x y y c"], k: Int[jax.Array, "b"]) -> Float[jax.Array, "b x y y c"]:
    """np.rot90(sample, k, axes=(1, 2)) of each sample, with its own k: from y towards z, by a conditional transpose and two flips."""
    k = (k % 4)[:, None, None, None, None]
    image = jnp.where(k % 2 == 1, image.swapaxes(2, 3), image)
    image = jnp.where((k == 1) | (k == 2), image[:, :, ::-1], image)
    return jnp.where(k >= 2, image[:, :, :, ::-1], image)


# ---- cut-out


def sides(n: int) -> tuple[int, int]:
    """The minimum side of a box along an axis of n voxels, and the exclusive maximum: 5 % and a quarter of it, as published."""
    return max(1, n // 20), n // 4


def max_boxes(size: Sequence[int], voxels: float) -> int:
    """The number of boxes with `voxels` voxels in total, but for one time in a billion: a margin of six standard deviations of the sum."""
    mean = square = 1.0
    for n in size:
        least, most = sides(n)
        clipped = np.minimum(np.arange(least, most)[:, None], n - np.arange(n - least))
        mean, square = mean * clipped.mean(), square * np.mean(clipped**2.0)
    slack = 6 * sqrt(square - mean**2)
    return ceil(((slack + sqrt(slack**2 + 4 * mean * voxels)) / (2 * mean)) ** 2)


def every(inside: Inside, before: Held) -> Inside:
    """The voxels a box counts for as published: all of them, overlaps repeatedly."""
    return inside


def newly_covered(inside: Inside, before: Held) -> Inside:
    """The voxels a box adds to the true share: those in no earlier box."""
    return inside & (before == OWN)


def cutout_boxes(
    key: jax.Array, image: Volume, target: PerSample, other: PerSample, n: int, counted: Callable[[Inside, Held], Inside]
) -> tuple[Volume, Int[jax.Array, "b x y z"]]:
    """Overwrites each sample by boxes until `target` voxels are `counted`; a box holds another sample's content with chance `other`.

    Returns the samples with Gaussian noise, rescaled to [0, 1] in each box, in the boxes of noise, and the content of every voxel (OWN,
    NOISE or OTHER); later boxes cover earlier ones. `n` boxes are always drawn, for fixed shapes; those after the target have no effect.
    """
    b, *size, c = image.shape
    shape = jnp.array(size)[None]
    least, most = (jnp.array(limits)[None] for limits in zip(*map(sides, size), strict=True))
    # A box is the corner of a window of the largest box's size; padding at the end keeps every window inside.
    window = tuple(sides(m)[1] - 1 for m in size)
    padding = [(0, w) for w in window]
    i, j, k = jnp.indices(window, sparse=True)

    def overwrite(key: jax.Array, image: jax.Array, target: jax.Array, other: jax.Array) -> tuple[jax.Array, jax.Array]:
        start_key, extent_key, kind_key, noise_key = jax.random.split(key, 4)
        start = jax.random.randint(start_key, (n, 3), 0, shape - least)
        extent = jnp.minimum(jax.random.randint(extent_key, (n, 3), least, most), shape - start)
        kinds = jnp.where(jax.random.bernoulli(kind_key, other, (n,)), OTHER, NOISE).astype(jnp.int8)

        def put_box(carry: tuple, box: tuple) -> tuple[tuple, None]:
            image, content, total = carry
            (x, y, z), (nx, ny, nz), kind, key = box
            old, before = jax.lax.dynamic_slice(image, (x, y, z, 0), (*window, c)), jax.lax.dynamic_slice(content, (x, y, z), window)
            inside = (i < nx) & (j < ny) & (k < nz) & (total < target)
            noise, where = jax.random.normal(key, (*window, c)), inside[..., None]
            low, high = jnp.min(noise, where=where, initial=jnp.inf), jnp.max(noise, where=where, initial=-jnp.inf)
            scaled = jnp.clip((noise - low) / jnp.maximum(high - low, 1e-6), 0, 1)  # rounding may leave the range
            new = jnp.where(where & (kind == NOISE), scaled, old)
            image = jax.lax.dynamic_update_slice(image, new.astype(image.dtype), (x, y, z, 0))
            content = jax.lax.dynamic_update_slice(content, jnp.where(inside, kind, before), (x, y, z))
            return (image, content, total + jnp.sum(counted(inside, before), dtype=jnp.int32)), None

        carry = jnp.pad(image, [*padding, (0, 0)]), jnp.pad(jnp.zeros(size, jnp.int8), padding), jnp.int32(0)
        (image, content, _), _ = jax.lax.scan(put_box, carry, (start, extent, kinds, jax.random.split(noise_key, n)))
        nx, ny, nz = size
        return image[:nx, :ny, :nz], content[:nx, :ny, :nz]

    return per_device(jax.vmap(overwrite))(jax.random.split(key, b), image, target, other)


def donor_crops(key: jax.Array, weight: PerSample, own: float) -> tuple[Int[jax.Array, "b"], Bool[jax.Array, "b"]]:
    """The donor of each sample, a random one of the batch without padding, and whether it is another; `own` = 0 excludes itself."""
    b = len(weight)
    score = jax.random.uniform(key, (b, b)) * weight[None] * jnp.where(jnp.eye(b, dtype=bool), own, 1.0)
    donor = jnp.argmax(score, axis=1)
    return donor, (donor != jnp.arange(b)) & (jnp.max(score, axis=1) > 0)


def cutout_share(key: jax.Array, image: Volume, weight: PerSample, share: float) -> Volume:
    """Samples with `share` of the voxels overwritten by boxes of noise or, with chance ½ each, of another sample's content."""
    b, *size, _ = image.shape
    donor_key, box_key = jax.random.split(key)
    donor, has_donor = donor_crops(donor_key, weight, own=0.0)
    # Boxes with a total of v volumes cover about 1 − exp(−v), which is less than v; share / (1 − share) is more than enough.
    n = max_boxes(size, prod(size) * share / (1 - share))
    noised, content = cutout_boxes(box_key, image, jnp.full(b, share * prod(size)), 0.5 * has_donor, n, newly_covered)
    return jnp.where(content[..., None] == OTHER, image[donor], noised)


def cutout_paper(key: jax.Array, image: Volume, weight: PerSample, share: float) -> Volume:
    """Samples overwritten as published: by boxes of noise, then by boxes of a sample drawn from the batch, unless that is the same one.

    Each until the boxes' volumes, overlaps counted again, reach U(0, `share`) of the whole: up to twice the budget that the paper names.
    """
    b, *size, _ = image.shape
    donor_key, amount_key, noise_key, paste_key = jax.random.split(key, 4)
    donor, has_donor = donor_crops(donor_key, weight, own=1.0)
    n = max_boxes(size, prod(size) * share)
    targets = jax.random.uniform(amount_key, (2, b)) * (share * prod(size))
    noised, _ = cutout_boxes(noise_key, image, targets[0], jnp.zeros(b), n, every)
    _, content = cutout_boxes(paste_key, image, targets[1], jnp.ones(b), n, every)
    pasted = (content == OTHER) & has_donor[:, None, None, None]

    def paste(image: Volume, noised: Volume, pasted: Bool[jax.Array, "b x y z"], donor: Int[jax.Array, "b"]) -> Volume:
        def next_sample(i: Any, done: Volume) -> Volume:
            # In sequence, as published: content from an earlier sample is already overwritten, from a later one not yet.
            return done.at[i].set(jnp.where(pasted[i][..., None], done[donor[i]], noised[i]))

        return jax.lax.fori_loop(0, b, next_sample, image)

    return gather_batch(paste)(image, noised, pasted, donor)


CUTOUTS = {"share": cutout_share, "paper": cutout_paper}


def view(key: jax.Array, image: Volume, weight: PerSample, cutout: str, share: float) -> tuple[Volume, Volume, Int[jax.Array, "b"]]:
    """A random view of each sample: (rotated, rotated with parts overwritten, number of quarter turns)."""
    rotation_key, cutout_key = jax.random.split(key)
    k = jax.random.randint(rotation_key, weight.shape, 0, 4)
    rotated = per_device(rotate)(image, k)
    return rotated, CUTOUTS[cutout](cutout_key, rotated, weight, share), k


# ---- losses and heads


def nt_xent(
    z: Float[jax.Array, "n e"], weight: Float[jax.Array, "n"], temperature: float
) -> tuple[Float[jax.Array, "n"], Bool[jax.Array, "n"]]:
    """The NT-Xent loss of each row, and whether its nearest row is its partner (Chen et al. 2020); rows 2i and 2i + 1 are two views of one
    sample. Other rows with weight > 0 are candidates. A single sample has no negatives: loss 0, and its partner is always the nearest."""
    row = jnp.arange(len(z))
    z = z * jax.lax.rsqrt(jnp.maximum(jnp.sum(z * z, axis=1, keepdims=True), 1e-16))
    candidate = (row[:, None] != row[None]) & (weight > 0)[None]
    similarity = jnp.where(candidate, jnp.matmul(z, z.T, precision="highest") / temperature, NEVER)
    partner = row ^ 1
    positive = jnp.take_along_axis(similarity, partner[:, None], axis=1)[:, 0]
    return jax.nn.logsumexp(similarity, axis=1) - positive, jnp.argmax(similarity, axis=1) == partner


def double(x: Volume) -> Float[jax.Array, "b x2 y2 z2 c"]:
    """Trilinear upsampling by 2 with the border repeated: PyTorch's align_corners=False."""
    b, nx, ny, nz, c = x.shape
    return jax.image.resize(x, (b, 2 * nx, 2 * ny, 2 * nz, c), "trilinear")


class Conv(nn.Module):
    """A 3³ convolution before an instance norm. Published weights have a bias, which the norm cancels, so it is a parameter without use."""

    features: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Volume) -> Float[jax.Array, "b x y z o"]:
        self.param("bias", nn.initializers.zeros, (self.features,))
        kernel = self.param("kernel", he_normal, (3, 3, 3, x.shape[-1], self.features))
        return conv3(x.astype(self.dtype), kernel.astype(self.dtype))


class Interpolated(nn.Module):
    """The published decoder "vae": convolution, norm, leaky ReLU and interpolation for each doubling, then a 1³ convolution."""

    features: tuple[int, ...]
    channels: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Volume) -> Float[jax.Array, "b x2 y2 z2 o"]:
        for i, features in enumerate(self.features):
            x = activated_norm(Conv(features, self.dtype, name=f"conv{i}")(double(x) if i else x))
        # The last interpolation and the 1³ convolution commute, and the image has far fewer channels.
        return double(Linear(self.channels, self.dtype, name="out")(x))


class Transposed(nn.Module):
    """The published decoder "deconv" with a norm and leaky ReLU after each transposed convolution; the published one is a linear map."""

    features: tuple[int, ...]
    channels: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Volume) -> Float[jax.Array, "b x2 y2 z2 o"]:
        for i, features in enumerate(self.features):
            x = activated_norm(UpConv(features, self.dtype, name=f"deconv{i}")(x))
        return Linear(self.channels, self.dtype, name="out")(x)


DECODERS = {"vae": Interpolated, "deconv": Transposed}


class SSL(nn.Module):
    """Objective: `batch["image"] [b x y y c]` → (weighted sum of rotation, contrast and reconstruction losses, metrics).

    `heads`: rotation and contrast read the "pooled" deepest map, or its first and its second of "tokens" (published). Needs the random
    stream `views`, and `drop_path` where the encoder has it.
    """

    encoder: Swin
    channels: int = 1
    cutout: str = "share"
    share: float = 0.3
    heads: str = "pooled"
    decoder: str = "vae"
    embedding: int = 512
    temperature: float = 0.5
    weights: tuple[float, float, float] = (1.0, 1.0, 1.0)

    labels = False
    metrics = ("loss", "rotation", "contrast", "reconstruction", "rotation_accuracy", "contrast_top1")
    streams = ("views", "drop_path")
    picture_names = ("original", "cut out", "reconstructed")

    def setup(self) -> None:
        swin = self.encoder
        self.rotation = Linear(4, swin.dtype)
        self.contrast = Linear(self.embedding, swin.dtype)
        features = (*(swin.width * 2**i for i in reversed(range(len(swin.depths)))), swin.width)
        self.reconstruct = DECODERS[self.decoder](features, self.channels, swin.dtype)

    def _views(
        self, image: Volume, weight: PerSample
    ) -> tuple[Float[jax.Array, "n x y z c"], Float[jax.Array, "n x y z c"], Int[jax.Array, "n"]]:
        """Two views of each sample in adjacent rows, which keeps them on its device."""
        two_views = jax.vmap(partial(view, cutout=self.cutout, share=self.share), in_axes=(0, None, None), out_axes=1)
        pairs = two_views(jax.random.split(self.make_rng("views")), image, weight)
        return tuple(a.reshape(-1, *a.shape[2:]) for a in pairs)

    def _predict(self, image: Volume, train: bool) -> tuple[Float[jax.Array, "b 4"], Float[jax.Array, "b e"], Volume]:
        """Rotation logits, embeddings and reconstructions, in float32 at least."""
        deepest = self.encoder(image, train)[-1]
        tokens = deepest.reshape(len(image), -1, deepest.shape[-1])
        first, second = (tokens[:, 0], tokens[:, 1]) if self.heads == "tokens" else (jnp.mean(tokens, axis=1),) * 2
        predicted = self.rotation(first), self.contrast(second), self.reconstruct(deepest)
        return tuple(p.astype(jnp.promote_types(p.dtype, jnp.float32)) for p in predicted)

    def __call__(self, batch: dict[str, jax.Array], train: bool = False) -> tuple[jax.Array, dict[str, tuple[jax.Array, jax.Array]]]:
        image = batch["image"]
        weight = batch.get("weight", jnp.ones(len(image)))
        rotated, cut, k = self._views(image, weight)
        logits, z, reconstructed = self._predict(cut, train)
        weight = jnp.repeat(weight, 2)
        contrast, top1 = nt_xent(z, weight, self.temperature)
        losses = {
            "rotation": -jnp.take_along_axis(jax.nn.log_softmax(logits), k[:, None], axis=1)[:, 0],
            "contrast": contrast,
            "reconstruction": jnp.mean(jnp.abs(reconstructed - rotated), axis=(1, 2, 3, 4)),
        }
        rows = {"loss": sum(w * loss for w, loss in zip(self.weights, losses.values(), strict=True))} | losses
        rows |= {"rotation_accuracy": jnp.argmax(logits, axis=1) == k, "contrast_top1": top1}
        count = jnp.sum(weight)
        metrics = {name: (jnp.sum(row * weight), count) for name, row in rows.items()}
        return metrics["loss"][0] / jnp.maximum(count, 1), metrics

    def pictures(self, batch: dict[str, jax.Array]) -> tuple[Volume, ...]:
        """Volumes for display, in the order of `picture_names`: the first view of each sample, rotated back."""
        image = batch["image"]
        rotated, cut, k = self._views(image, jnp.ones(len(image)))
        reconstructed = self._predict(cut, False)[2]
        return tuple(rotate(volume[::2], -k[::2]) for volume in (rotated, cut, reconstructed))
