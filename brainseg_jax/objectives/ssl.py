"""Three tasks for a 3-D Swin: paint what was cut out, tell a rotation, know the other view (Tang et al. 2022; the paper, section III-A).

Two views of each crop are turned by a multiple of 90° and partly overwritten, all of it inside the compiled step. The network paints the
turned crop as it was, says how far it was turned, and finds the two views of one crop among those of the whole batch: over all devices,
where implementations with a process per GPU see their own few. Cut-out and heads are as published, or ours, by config.
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

# What a voxel of a view holds: the image, noise, or another sample's content.
OWN, NOISE, OTHER = 0, 1, 2
# The similarity of what must not be chosen; finite, so that a row of padding has a finite loss to multiply with its weight of 0.
NEVER = -1e9


def rotate(image: Float[jax.Array, "b x y y c"], k: Int[jax.Array, "b"]) -> Float[jax.Array, "b x y y c"]:
    """np.rot90(sample, k, axes=(1, 2)) of each sample, by its own k: from y towards z. A transpose and two mirrors, each or not."""
    k = (k % 4)[:, None, None, None, None]
    image = jnp.where(k % 2 == 1, image.swapaxes(2, 3), image)
    image = jnp.where((k == 1) | (k == 2), image[:, :, ::-1], image)
    return jnp.where(k >= 2, image[:, :, :, ::-1], image)


# ---- cut-out


def sides(n: int) -> tuple[int, int]:
    """A box's shortest side along an axis of n voxels, and the first that is too long: 5 % and a quarter of it, as published."""
    return max(1, n // 20), n // 4


def max_boxes(size: Sequence[int], voxels: float) -> int:
    """How many boxes have `voxels` voxels together, all but one time in a billion: six standard deviations of their sum are left over."""
    mean = square = 1.0
    for n in size:
        least, most = sides(n)
        clipped = np.minimum(np.arange(least, most)[:, None], n - np.arange(n - least))
        mean, square = mean * clipped.mean(), square * np.mean(clipped**2.0)
    slack = 6 * sqrt(square - mean**2)
    return ceil(((slack + sqrt(slack**2 + 4 * mean * voxels)) / (2 * mean)) ** 2)


def every(inside: Inside, before: Held) -> Inside:
    """What a box adds as published counts it: all its voxels, overlaps again and again."""
    return inside


def newly_covered(inside: Inside, before: Held) -> Inside:
    """What a box adds to the true share: the voxels that no box had before."""
    return inside & (before == OWN)


def cutout_boxes(
    key: jax.Array, image: Volume, target: PerSample, other: PerSample, n: int, counted: Callable[[Inside, Held], Inside]
) -> tuple[Volume, Int[jax.Array, "b x y z"]]:
    """Overwrites each sample by boxes until `target` voxels are `counted`, each box with chance `other` by another sample's content.

    Returns the samples with the boxes of noise, Gaussian and rescaled to [0, 1] in each box, and what every voxel is to hold; a later box
    goes over an earlier one. Always `n` boxes are drawn, so that shapes are fixed; those after the target change nothing.
    """
    b, *size, c = image.shape
    least, most = (jnp.array(limits)[None] for limits in zip(*map(sides, size), strict=True))
    # A box is the corner of a window as large as the largest box; room at the end lets every window lie inside.
    window = tuple(sides(m)[1] - 1 for m in size)
    room = [(0, w) for w in window]
    i, j, k = jnp.indices(window, sparse=True)

    def one(key: jax.Array, image: jax.Array, target: jax.Array, other: jax.Array) -> tuple[jax.Array, jax.Array]:
        place, length, kind, noise = jax.random.split(key, 4)
        start = jax.random.randint(place, (n, 3), 0, jnp.array(size)[None] - least)
        extent = jnp.minimum(jax.random.randint(length, (n, 3), least, most), jnp.array(size)[None] - start)
        kinds = jnp.where(jax.random.bernoulli(kind, other, (n,)), OTHER, NOISE).astype(jnp.int8)

        def put(carry: tuple, box: tuple) -> tuple[tuple, None]:
            image, held, total = carry
            (x, y, z), (nx, ny, nz), kind, key = box
            old, before = jax.lax.dynamic_slice(image, (x, y, z, 0), (*window, c)), jax.lax.dynamic_slice(held, (x, y, z), window)
            inside = (i < nx) & (j < ny) & (k < nz) & (total < target)
            noise, where = jax.random.normal(key, (*window, c)), inside[..., None]
            low, high = jnp.min(noise, where=where, initial=jnp.inf), jnp.max(noise, where=where, initial=-jnp.inf)
            scaled = jnp.clip((noise - low) / jnp.maximum(high - low, 1e-6), 0, 1)  # rounding may leave the range
            new = jnp.where(where & (kind == NOISE), scaled, old)
            image = jax.lax.dynamic_update_slice(image, new.astype(image.dtype), (x, y, z, 0))
            held = jax.lax.dynamic_update_slice(held, jnp.where(inside, kind, before), (x, y, z))
            return (image, held, total + jnp.sum(counted(inside, before), dtype=jnp.int32)), None

        empty = jnp.pad(image, [*room, (0, 0)]), jnp.pad(jnp.zeros(size, jnp.int8), room), jnp.int32(0)
        (image, held, _), _ = jax.lax.scan(put, empty, (start, extent, kinds, jax.random.split(noise, n)))
        nx, ny, nz = size
        return image[:nx, :ny, :nz], held[:nx, :ny, :nz]

    return per_device(jax.vmap(one))(jax.random.split(key, b), image, target, other)


def donor_crops(key: jax.Array, weight: PerSample, own: float) -> tuple[Int[jax.Array, "b"], Bool[jax.Array, "b"]]:
    """For each sample one of the batch that is no padding, and whether it is another; `own` = 0: not itself where there is another."""
    b = len(weight)
    score = jax.random.uniform(key, (b, b)) * weight[None] * jnp.where(jnp.eye(b, dtype=bool), own, 1.0)
    donor = jnp.argmax(score, axis=1)
    return donor, (donor != jnp.arange(b)) & (jnp.max(score, axis=1) > 0)


def cutout_share(key: jax.Array, image: Volume, weight: PerSample, share: float) -> Volume:
    """Boxes until `share` of the voxels are overwritten, each with noise or, with chance ½, another sample's content."""
    b, *size, _ = image.shape
    pick, place = jax.random.split(key)
    donor, there = donor_crops(pick, weight, own=0.0)
    # Boxes with v volumes together cover about 1 − exp(−v), which is less than v; share / (1 − share) of them are more than enough.
    n = max_boxes(size, prod(size) * share / (1 - share))
    noised, held = cutout_boxes(place, image, jnp.full(b, share * prod(size)), 0.5 * there, n, newly_covered)
    return jnp.where(held[..., None] == OTHER, image[donor], noised)


def cutout_paper(key: jax.Array, image: Volume, weight: PerSample, share: float) -> Volume:
    """As published: boxes of noise, then boxes with content of a sample drawn from the batch, unless that is the same one.

    Each time until their volumes, overlaps counted again, reach U(0, `share`) of the whole: up to twice the budget that the paper names.
    """
    b, *size, _ = image.shape
    pick, amount, noise, content = jax.random.split(key, 4)
    donor, there = donor_crops(pick, weight, own=1.0)
    n = max_boxes(size, prod(size) * share)
    targets = jax.random.uniform(amount, (2, b)) * (share * prod(size))
    noised, _ = cutout_boxes(noise, image, targets[0], jnp.zeros(b), n, every)
    _, held = cutout_boxes(content, image, targets[1], jnp.ones(b), n, every)
    pasted = (held == OTHER) & there[:, None, None, None]

    def paste(image: Volume, noised: Volume, pasted: Bool[jax.Array, "b x y z"], donor: Int[jax.Array, "b"]) -> Volume:
        def next_sample(i: Any, done: Volume) -> Volume:
            # One after the other: what a sample takes from an earlier one has been cut already, from a later one not yet.
            return done.at[i].set(jnp.where(pasted[i][..., None], done[donor[i]], noised[i]))

        return jax.lax.fori_loop(0, b, next_sample, image)

    return gather_batch(paste)(image, noised, pasted, donor)


CUTOUTS = {"share": cutout_share, "paper": cutout_paper}


def view(key: jax.Array, image: Volume, weight: PerSample, cutout: str, share: float) -> tuple[Volume, Volume, Int[jax.Array, "b"]]:
    """(each sample turned, the same with parts overwritten, by how many quarters it was turned)."""
    turning, overwrite = jax.random.split(key)
    k = jax.random.randint(turning, weight.shape, 0, 4)
    turned = per_device(rotate)(image, k)
    return turned, CUTOUTS[cutout](overwrite, turned, weight, share), k


# ---- losses and heads


def nt_xent(
    z: Float[jax.Array, "n e"], weight: Float[jax.Array, "n"], temperature: float
) -> tuple[Float[jax.Array, "n"], Bool[jax.Array, "n"]]:
    """Each row's loss, and whether its nearest is its partner (Chen et al. 2020): rows 2i and 2i + 1 are the views of one sample.

    Every other row of weight > 0 is a candidate. A single sample has no negatives: its loss is 0, and its partner always the nearest.
    """
    row = jnp.arange(len(z))
    z = z * jax.lax.rsqrt(jnp.maximum(jnp.sum(z * z, axis=1, keepdims=True), 1e-16))
    candidate = (row[:, None] != row[None]) & (weight > 0)[None]
    similarity = jnp.where(candidate, jnp.matmul(z, z.T, precision="highest") / temperature, NEVER)
    partner = row ^ 1
    positive = jnp.take_along_axis(similarity, partner[:, None], axis=1)[:, 0]
    return jax.nn.logsumexp(similarity, axis=1) - positive, jnp.argmax(similarity, axis=1) == partner


def double(x: Volume) -> Float[jax.Array, "b x2 y2 z2 c"]:
    """Trilinear, each voxel to eight, the outermost repeated outwards: PyTorch's align_corners=False."""
    b, nx, ny, nz, c = x.shape
    return jax.image.resize(x, (b, 2 * nx, 2 * ny, 2 * nz, c), "trilinear")


class Conv(nn.Module):
    """A 3³ convolution for an instance norm. Published ones have a bias; the norm takes it away again, so it is kept but not added."""

    features: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Volume) -> Float[jax.Array, "b x y z o"]:
        self.param("bias", nn.initializers.zeros, (self.features,))
        kernel = self.param("kernel", he_normal, (3, 3, 3, x.shape[-1], self.features))
        return conv3(x.astype(self.dtype), kernel.astype(self.dtype))


class Interpolated(nn.Module):
    """The published "vae": a convolution, a norm, leaky ReLU and an interpolation for each doubling, then a 1³ convolution."""

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
    """The published "deconv" with what it lacks, a norm and leaky ReLU after each transposed convolution: without, it is one linear map."""

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
        """Two views of each sample, side by side: they stay on its device."""
        two = jax.vmap(partial(view, cutout=self.cutout, share=self.share), in_axes=(0, None, None), out_axes=1)
        pairs = two(jax.random.split(self.make_rng("views")), image, weight)
        return tuple(a.reshape(-1, *a.shape[2:]) for a in pairs)

    def _predict(self, image: Volume, train: bool) -> tuple[Float[jax.Array, "b 4"], Float[jax.Array, "b e"], Volume]:
        """(rotation logits, embeddings, reconstructions), in float32 at least."""
        deepest = self.encoder(image, train)[-1]
        tokens = deepest.reshape(len(image), -1, deepest.shape[-1])
        first, second = (tokens[:, 0], tokens[:, 1]) if self.heads == "tokens" else (jnp.mean(tokens, axis=1),) * 2
        predicted = self.rotation(first), self.contrast(second), self.reconstruct(deepest)
        return tuple(p.astype(jnp.promote_types(p.dtype, jnp.float32)) for p in predicted)

    def __call__(self, batch: dict[str, jax.Array], train: bool = False) -> tuple[jax.Array, dict[str, tuple[jax.Array, jax.Array]]]:
        image = batch["image"]
        weight = batch.get("weight", jnp.ones(len(image)))
        turned, cut, k = self._views(image, weight)
        logits, z, painted = self._predict(cut, train)
        weight = jnp.repeat(weight, 2)
        contrast, first = nt_xent(z, weight, self.temperature)
        losses = {
            "rotation": -jnp.take_along_axis(jax.nn.log_softmax(logits), k[:, None], axis=1)[:, 0],
            "contrast": contrast,
            "reconstruction": jnp.mean(jnp.abs(painted - turned), axis=(1, 2, 3, 4)),
        }
        rows = {"loss": sum(w * loss for w, loss in zip(self.weights, losses.values(), strict=True))} | losses
        rows |= {"rotation_accuracy": jnp.argmax(logits, axis=1) == k, "contrast_top1": first}
        count = jnp.sum(weight)
        metrics = {name: (jnp.sum(row * weight), count) for name, row in rows.items()}
        return metrics["loss"][0] / jnp.maximum(count, 1), metrics

    def pictures(self, batch: dict[str, jax.Array]) -> tuple[Volume, ...]:
        """For looking at, as `picture_names` says: the first view of each sample, turned back."""
        image = batch["image"]
        turned, cut, k = self._views(image, jnp.ones(len(image)))
        painted = self._predict(cut, False)[2]
        return tuple(rotate(volume[::2], -k[::2]) for volume in (turned, cut, painted))
