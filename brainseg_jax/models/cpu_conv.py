"""Convolutions as only a CPU needs them, by planes: XLA's own 3-D one is five to ten times slower there than its 2-D one. Same values.

Winograd's F(2, 3) (Lavin & Gray 2016) along x turns two output planes into four 2-D convolutions instead of six, or, of few channels and
where there is little to compute, one does for a plane and its neighbours; and the gradient of the kernel is one matrix product per plane.
With stride 2 each plane and its neighbours are one 2-D convolution, too, and the gradient towards the image is two, of its even planes and
of its odd ones, four voxels at a time. `scripts/benchmark.py --mode conv` measures those of stride 1.
"""

from itertools import pairwise

import jax
import jax.numpy as jnp
import numpy as np

# XLA runs what does not depend on each other side by side only if more than ten operations are ready: three slabs have twelve convolutions.
# Each takes time to compile, as all parts of Winograd's form do, and what is small wins nothing by them.
SMALL = 1e9  # operations


SLABS = (3, 6)  # fewest, most


OPERATIONS = 4e9  # of a slab, about


FEW = 4  # channels (an image has one): of so few Winograd's sums take longer than what they spare


COLUMNS = 1.5e6  # bytes that the left factor of a kernel's gradient may have, to stay in a core's cache


def by_planes(x, kernel):
    """`conv.conv3`: cross-correlation of x [b x y z i] with a kernel [3 3 3 i o], stride 1, one voxel of zeros around."""
    i, o = kernel.shape[3:]
    operations = 2 * x.size * kernel.size // i
    if i <= FEW or (operations < SMALL and i < o):
        return _gathering(x, kernel)
    if operations < SMALL:
        return _spreading(x, kernel)
    return _by_slabs(x, kernel, int(np.clip(round(operations / OPERATIONS), *SLABS)) if operations > OPERATIONS else 1)


def _gathering(x, kernel):
    """What each plane takes from its previous one, itself and its next, laid side by side as channels."""
    b, nx, ny, nz, i = x.shape
    around = jnp.pad(x, ((0, 0), (1, 1), *((0, 0),) * 3))
    seen = jnp.concatenate([around[:, plane : plane + nx] for plane in range(3)], axis=-1)
    out = _planes(seen.reshape(-1, ny, nz, 3 * i), kernel.transpose(1, 2, 0, 3, 4).reshape(3, 3, 3 * i, -1))
    return out.reshape(b, nx, ny, nz, -1)


def _spreading(x, kernel):
    """What each plane gives to its next, itself and its previous one, added up."""
    b, nx, ny, nz, i = x.shape
    o = kernel.shape[-1]
    parts = _planes(x.reshape(-1, ny, nz, i), kernel.transpose(1, 2, 3, 0, 4).reshape(3, 3, i, 3 * o))
    parts = jnp.pad(parts.reshape(b, nx, ny, nz, 3, o), ((0, 0), (1, 1), *((0, 0),) * 4))
    return sum(parts[:, plane : plane + nx, :, :, plane] for plane in range(3))


def _by_slabs(x, kernel, slabs):
    nx = x.shape[1]
    pairs = -(-nx // 2)
    first, middle, last = kernel
    kernels = (first, (first + middle + last) / 2, (first - middle + last) / 2, last)
    ends = np.linspace(0, pairs, min(slabs, pairs) + 1).astype(int)
    parts = [_slab(x, kernels, 2 * start, 2 * end) for start, end in pairwise(ends.tolist())]
    return jnp.concatenate(parts, axis=1)[:, :nx]


def _slab(x, kernels, start, end):
    """Output planes from `start` to before `end`, an even number of them."""
    b, nx, ny, nz, i = x.shape
    # Padded here and not as a whole: this is fused into the sums below, and no padded copy is made.
    seen = x[:, max(start - 1, 0) : end + 1]
    outside = (int(start == 0), max(end + 1 - nx, 0))
    seen = jnp.pad(seen, ((0, 0), outside, (0, 0), (0, 0), (0, 0))).reshape(b, -1, 2, ny, nz, i)
    p0, p1, p2, p3 = seen[:, :-1, 0], seen[:, :-1, 1], seen[:, 1:, 0], seen[:, 1:, 1]
    mixed = (p0 - p2, p1 + p2, p2 - p1, p1 - p3)
    m0, m1, m2, m3 = (_planes(v.reshape(-1, ny, nz, i), k) for v, k in zip(mixed, kernels, strict=True))
    return jnp.stack([m0 + m1 + m2, m1 - m2 - m3], axis=1).reshape(b, end - start, ny, nz, -1)


def _planes(x, kernel):
    return jax.lax.conv_general_dilated(x, kernel, (1, 1), ((1, 1),) * 2, dimension_numbers=("NHWC", "HWIO", "NHWC"))


def kernel_gradient_by_planes(x, g):
    """The gradient of `conv.conv3` for its kernel [3 3 3 i o], from x [b x y z i] and the result's [b x y z o]."""
    b, nx, ny, nz, i = x.shape
    o = g.shape[-1]
    rows = max(n for n in range(1, ny + 1) if ny % n == 0 and (n == 1 or b * n * nz * 9 * i * x.itemsize <= COLUMNS))
    # Not in bfloat16: a sum over all planes would stop growing.
    exact = jnp.promote_types(x.dtype, jnp.float32)

    # A plane of all samples at once: taking samples one by one would bring the whole batch to each device of a mesh.
    def add_plane(total, plane):
        here = jnp.pad(x[:, plane], ((0, 0), (1, 1), (1, 1), (0, 0)))
        # The output planes that saw this one as their next, their own and their previous one.
        after = jnp.where(plane + 1 < nx, g[:, jnp.minimum(plane + 1, nx - 1)], 0)
        before = jnp.where(plane > 0, g[:, jnp.maximum(plane - 1, 0)], 0)
        seen = jnp.concatenate([after, g[:, plane], before], axis=-1)

        def add_rows(total, row):
            # The nine shifts of some rows of the plane.
            around = jax.lax.dynamic_slice_in_dim(here, row, rows + 2, axis=1)
            columns = jnp.concatenate([around[:, j : j + rows, k : k + nz] for j in range(3) for k in range(3)], axis=-1)
            sees = jax.lax.dynamic_slice_in_dim(seen, row, rows, axis=1)
            return total + jnp.einsum("byzc,byzo->co", columns, sees, preferred_element_type=exact), None

        return jax.lax.scan(add_rows, total, jnp.arange(0, ny, rows))[0], None

    total, _ = jax.lax.scan(add_plane, jnp.zeros((9 * i, 3 * o), exact), jnp.arange(nx))
    return total.reshape(3, 3, i, 3, o).transpose(3, 0, 1, 2, 4).astype(x.dtype)


def _even(x):
    """Zeros behind an odd axis: they are what an output there would see anyway."""
    return jnp.pad(x, ((0, 0), *((0, n % 2) for n in x.shape[1:4]), (0, 0)))


def _seen(x, plane):
    """What an output plane sees: two of an even number of planes and the one before them, laid side by side as channels."""
    before = jnp.where(plane > 0, x[:, jnp.maximum(2 * plane - 1, 0)], 0)
    return jnp.concatenate([before, x[:, 2 * plane], x[:, 2 * plane + 1]], axis=-1)


def strided_by_planes(x, kernel):
    """`conv.conv3_strided`: the same with stride 2, ⌈n/2⌉ voxels of n."""
    x = _even(x)
    kernel = kernel.transpose(1, 2, 0, 3, 4).reshape(3, 3, 3 * x.shape[-1], -1)

    # Plane by plane: what three of them make stays in a core's cache, where a copy of the volume would not.
    def plane(_, at):
        numbers = ("NHWC", "HWIO", "NHWC")
        return None, jax.lax.conv_general_dilated(_seen(x, at), kernel, (2, 2), ((1, 0), (1, 0)), dimension_numbers=numbers)

    return jnp.moveaxis(jax.lax.scan(plane, None, jnp.arange(x.shape[1] // 2))[1], 0, 1)


def image_gradient_by_planes(g, kernel, shape):
    """The gradient of `conv.conv3_strided` for its image, which has this `shape`."""
    b, nx, ny, nz, _ = g.shape
    i = kernel.shape[3]
    # Along y and z, [the same output, the next one] by [even voxel, odd voxel]: the place in the kernel through which it was seen, 3: not.
    place = np.array([[1, 2], [3, 0]])
    through = jnp.pad(kernel, ((0, 0), (0, 1), (0, 1), (0, 0), (0, 0)))[:, place[:, :, None, None], place]
    through = through.transpose(0, 1, 3, 6, 2, 4, 5)  # [place along x, y's output, z's output, o, y's voxel, z's voxel, i]

    def four(planes, kernel):
        planes = planes.reshape(b * nx, ny, nz, -1)
        out = jax.lax.conv_general_dilated(
            planes, kernel.reshape(2, 2, -1, 4 * i), (1, 1), ((0, 1), (0, 1)), dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
        return out.reshape(b, nx, ny, nz, 2, 2, i)

    after = jnp.pad(g[:, 1:], ((0, 0), (0, 1), (0, 0), (0, 0), (0, 0)))
    even = four(g, through[1])  # along x: through the kernel's middle, and through its end or, by the next output, its beginning
    odd = four(jnp.concatenate([g, after], axis=-1), jnp.concatenate([through[2], through[0]], axis=2))
    both = jnp.stack([even, odd], axis=2).transpose(0, 1, 2, 3, 5, 4, 6, 7)
    return both.reshape(b, 2 * nx, 2 * ny, 2 * nz, i)[:, : shape[1], : shape[2], : shape[3]]


def strided_kernel_gradient_by_planes(x, g):
    """The gradient of `conv.conv3_strided` for its kernel [3 3 3 i o]."""
    i, o = x.shape[-1], g.shape[-1]
    x = _even(x)
    _, nx, ny, nz, _ = g.shape
    exact = jnp.promote_types(x.dtype, jnp.float32)  # as of stride 1

    def add_plane(total, plane):
        here = jnp.pad(_seen(x, plane), ((0, 0), (1, 0), (1, 0), (0, 0)))
        columns = [here[:, j : j + 2 * ny - 1 : 2, k : k + 2 * nz - 1 : 2] for j in range(3) for k in range(3)]
        return total + jnp.einsum("byzc,byzo->co", jnp.concatenate(columns, axis=-1), g[:, plane], preferred_element_type=exact), None

    total, _ = jax.lax.scan(add_plane, jnp.zeros((27 * i, o), exact), jnp.arange(nx))
    return total.reshape(3, 3, 3, i, o).transpose(2, 0, 1, 3, 4).astype(x.dtype)


def up_gradient_by_rows(x, kernel, g):
    """Of every second row of every second plane for itself, where y and z lie as the product's outputs do: no voxel is moved by itself."""
    b, nx, ny, nz, i = x.shape
    rows = g.reshape(b, nx, 2, ny, 2, nz, -1)
    kernels = jnp.moveaxis(kernel.reshape(i, 4, -1), 1, 0)
    towards_x, towards_kernel = 0, []
    for n, of_rows in enumerate(kernels):
        own = jax.lax.optimization_barrier(rows[:, :, n // 2, :, n % 2])
        towards_x += own @ of_rows.T
        towards_kernel.append(jnp.einsum("bxyzi,bxyzo->io", x, own))
    return towards_x, jnp.concatenate(towards_kernel, axis=-1)
