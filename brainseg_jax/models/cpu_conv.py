"""3-D convolutions for a CPU, by planes: XLA's 3-D convolution is five to ten times slower there than its 2-D one.

With stride 1, Winograd's F(2, 3) (Lavin & Gray 2016) along x computes two output planes by four 2-D convolutions instead of six; with few
channels or little to compute, a plane and its neighbours are one 2-D convolution. The gradient of the kernel is a matrix product per plane.
With stride 2, a plane and its neighbours are one 2-D convolution, and the gradient of the image is two, for even and odd planes, four
voxels at a time. `scripts/benchmark.py --mode conv` measures stride 1.
"""

from itertools import pairwise

import jax
import jax.numpy as jnp
import numpy as np

# XLA runs independent operations in parallel only if more than ten are ready: three slabs have twelve convolutions. Slabs and Winograd's
# form take time to compile, which does not pay for small convolutions.
SMALL = 1e9  # operations below which a convolution is small
SLABS = (3, 6)  # minimum and maximum number
OPERATIONS = 4e9  # of a slab, about
FEW = 4  # channels (an image has one) up to which Winograd's sums take longer than the operations they save
COLUMNS = 1.5e6  # maximum bytes of the left factor of a kernel's gradient, to stay in a core's cache


def by_planes(x, kernel):
    """`conv.conv3`: cross-correlation of x [b x y z i] with a kernel [3 3 3 i o], stride 1, zero padding of 1."""
    i, o = kernel.shape[3:]
    operations = 2 * x.size * kernel.size // i
    if i <= FEW or (operations < SMALL and i < o):
        return _gathering(x, kernel)
    if operations < SMALL:
        return _spreading(x, kernel)
    return _by_slabs(x, kernel, int(np.clip(round(operations / OPERATIONS), *SLABS)) if operations > OPERATIONS else 1)


def _gathering(x, kernel):
    """The convolution as one 2-D convolution of each plane and its two neighbours, concatenated as channels."""
    b, nx, ny, nz, i = x.shape
    padded = jnp.pad(x, ((0, 0), (1, 1), *((0, 0),) * 3))
    inputs = jnp.concatenate([padded[:, plane : plane + nx] for plane in range(3)], axis=-1)
    out = _planes(inputs.reshape(-1, ny, nz, 3 * i), kernel.transpose(1, 2, 0, 3, 4).reshape(3, 3, 3 * i, -1))
    return out.reshape(b, nx, ny, nz, -1)


def _spreading(x, kernel):
    """The convolution as one 2-D convolution from each plane to its contributions to itself and its two neighbours, added up."""
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
    """Output planes `start` to `end` (exclusive), an even number, by Winograd's F(2, 3)."""
    b, nx, ny, nz, i = x.shape
    # Padded by slabs, so that padding is fused into the sums below without a padded copy.
    inputs = x[:, max(start - 1, 0) : end + 1]
    outside = (int(start == 0), max(end + 1 - nx, 0))
    inputs = jnp.pad(inputs, ((0, 0), outside, (0, 0), (0, 0), (0, 0))).reshape(b, -1, 2, ny, nz, i)
    p0, p1, p2, p3 = inputs[:, :-1, 0], inputs[:, :-1, 1], inputs[:, 1:, 0], inputs[:, 1:, 1]
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
    # Not in bfloat16, in which a sum over all planes stops growing.
    exact = jnp.promote_types(x.dtype, jnp.float32)

    # A plane of all samples at once: a loop over samples would gather the whole batch on each device of a mesh.
    def add_plane(total, plane):
        padded = jnp.pad(x[:, plane], ((0, 0), (1, 1), (1, 1), (0, 0)))
        # The output planes with this one as an input: the next one, its own and the previous one.
        after = jnp.where(plane + 1 < nx, g[:, jnp.minimum(plane + 1, nx - 1)], 0)
        before = jnp.where(plane > 0, g[:, jnp.maximum(plane - 1, 0)], 0)
        outputs = jnp.concatenate([after, g[:, plane], before], axis=-1)

        def add_rows(total, row):
            # The nine shifts of some rows of the plane.
            around = jax.lax.dynamic_slice_in_dim(padded, row, rows + 2, axis=1)
            columns = jnp.concatenate([around[:, j : j + rows, k : k + nz] for j in range(3) for k in range(3)], axis=-1)
            right = jax.lax.dynamic_slice_in_dim(outputs, row, rows, axis=1)
            return total + jnp.einsum("byzc,byzo->co", columns, right, preferred_element_type=exact), None

        return jax.lax.scan(add_rows, total, jnp.arange(0, ny, rows))[0], None

    total, _ = jax.lax.scan(add_plane, jnp.zeros((9 * i, 3 * o), exact), jnp.arange(nx))
    return total.reshape(3, 3, i, 3, o).transpose(3, 0, 1, 2, 4).astype(x.dtype)


def _even(x):
    """x with odd axes padded by a zero, as the convolution's own padding."""
    return jnp.pad(x, ((0, 0), *((0, n % 2) for n in x.shape[1:4]), (0, 0)))


def _inputs(x, plane):
    """The three input planes of an output plane with stride 2, concatenated as channels."""
    before = jnp.where(plane > 0, x[:, jnp.maximum(2 * plane - 1, 0)], 0)
    return jnp.concatenate([before, x[:, 2 * plane], x[:, 2 * plane + 1]], axis=-1)


def strided_by_planes(x, kernel):
    """`conv.conv3_strided`: cross-correlation with stride 2, ⌈n/2⌉ voxels of n."""
    x = _even(x)
    kernel = kernel.transpose(1, 2, 0, 3, 4).reshape(3, 3, 3 * x.shape[-1], -1)

    # Plane by plane: three concatenated planes stay in a core's cache, a copy of the volume would not.
    def convolve_plane(_, plane):
        numbers = ("NHWC", "HWIO", "NHWC")
        return None, jax.lax.conv_general_dilated(_inputs(x, plane), kernel, (2, 2), ((1, 0), (1, 0)), dimension_numbers=numbers)

    return jnp.moveaxis(jax.lax.scan(convolve_plane, None, jnp.arange(x.shape[1] // 2))[1], 0, 1)


def image_gradient_by_planes(g, kernel, shape):
    """The gradient of `conv.conv3_strided` for its image, of this `shape`."""
    b, nx, ny, nz, _ = g.shape
    i = kernel.shape[3]
    # The kernel's index along y and z by [same output, next output] and [even voxel, odd voxel]; 3: no contribution.
    index = np.array([[1, 2], [3, 0]])
    weights = jnp.pad(kernel, ((0, 0), (0, 1), (0, 1), (0, 0), (0, 0)))[:, index[:, :, None, None], index]
    weights = weights.transpose(0, 1, 3, 6, 2, 4, 5)  # [kernel index along x, y's output, z's output, o, y's voxel, z's voxel, i]

    def four_voxels(planes, kernel):
        kernel, numbers = kernel.reshape(2, 2, -1, 4 * i), ("NHWC", "HWIO", "NHWC")
        planes = planes.reshape(b * nx, ny, nz, -1)
        out = jax.lax.conv_general_dilated(planes, kernel, (1, 1), ((0, 1), (0, 1)), dimension_numbers=numbers)
        return out.reshape(b, nx, ny, nz, 2, 2, i)

    after = jnp.pad(g[:, 1:], ((0, 0), (0, 1), (0, 0), (0, 0), (0, 0)))
    even = four_voxels(g, weights[1])  # along x: by the kernel's middle; odd planes by its end and, from the next output, its beginning
    odd = four_voxels(jnp.concatenate([g, after], axis=-1), jnp.concatenate([weights[2], weights[0]], axis=2))
    both = jnp.stack([even, odd], axis=2).transpose(0, 1, 2, 3, 5, 4, 6, 7)
    return both.reshape(b, 2 * nx, 2 * ny, 2 * nz, i)[:, : shape[1], : shape[2], : shape[3]]


def strided_kernel_gradient_by_planes(x, g):
    """The gradient of `conv.conv3_strided` for its kernel [3 3 3 i o]."""
    i, o = x.shape[-1], g.shape[-1]
    x = _even(x)
    _, nx, ny, nz, _ = g.shape
    exact = jnp.promote_types(x.dtype, jnp.float32)  # as for stride 1

    def add_plane(total, plane):
        padded = jnp.pad(_inputs(x, plane), ((0, 0), (1, 0), (1, 0), (0, 0)))
        columns = [padded[:, j : j + 2 * ny - 1 : 2, k : k + 2 * nz - 1 : 2] for j in range(3) for k in range(3)]
        return total + jnp.einsum("byzc,byzo->co", jnp.concatenate(columns, axis=-1), g[:, plane], preferred_element_type=exact), None

    total, _ = jax.lax.scan(add_plane, jnp.zeros((27 * i, o), exact), jnp.arange(nx))
    return total.reshape(3, 3, 3, i, o).transpose(2, 0, 1, 3, 4).astype(x.dtype)


def up_gradient_by_rows(x, kernel, g):
    """The gradients of `conv.up_conv` for x and kernel, separately for every second row of every second plane, in which z and o lie as in
    the product's outputs: no voxels are moved one by one."""
    b, nx, ny, nz, i = x.shape
    rows = g.reshape(b, nx, 2, ny, 2, nz, -1)
    d_x, d_kernel = 0, []
    for n, part in enumerate(jnp.moveaxis(kernel.reshape(i, 4, -1), 1, 0)):
        d_part = jax.lax.optimization_barrier(rows[:, :, n // 2, :, n % 2])
        d_x += d_part @ part.T
        d_kernel.append(jnp.einsum("bxyzi,bxyzo->io", x, d_part))
    return d_x, jnp.concatenate(d_kernel, axis=-1)
