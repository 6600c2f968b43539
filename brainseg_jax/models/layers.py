"""The pre-norm transformer block of ViT and MAE, and its layers (Dosovitskiy et al. 2021).

Parameters have MONAI's names (qkv, out_proj, linear1, linear2, norm1, norm2), so that a converter is a table.
"""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Float

from brainseg_jax.models.attention import ATTENDED, attention

xavier_uniform = nn.initializers.xavier_uniform()

# Saved by `stack` for the backward pass unless whole blocks are recomputed.
PRODUCTS_AND_ATTENTION = jax.checkpoint_policies.save_from_both_policies(
    jax.checkpoint_policies.dots_with_no_batch_dims_saveable, jax.checkpoint_policies.save_only_these_names(ATTENDED)
)

# Number of rows up to which a CPU multiplies faster with a transposed copy of the inputs.
FEW_ROWS = 4096


@jax.custom_vjp
def product(x: Float[jax.Array, "*rows i"], kernel: Float[jax.Array, "i o"]) -> Float[jax.Array, "*rows o"]:
    """x @ kernel, with a faster gradient of the kernel on a CPU, where XLA's product that sums over rows is slow without xᵀ."""
    return x @ kernel


def _product_forward(x, kernel):
    return x @ kernel, (x, kernel)


def _product_backward(saved, g):
    x, kernel = saved
    if x.size // x.shape[-1] <= FEW_ROWS:
        d_kernel = jax.lax.platform_dependent(x, g, cpu=_over_rows_transposed, default=_over_rows)
    else:
        d_kernel = jax.lax.platform_dependent(x, g, cpu=_over_rows_as_they_lie, default=_over_rows)
    return g @ kernel.T, d_kernel


product.defvjp(_product_forward, _product_backward)


def _over_rows(x, g):
    # A CPU copies the first factor transposed, so the narrower one comes first.
    rows = (tuple(range(x.ndim - 1)),) * 2
    return jnp.tensordot(x, g, rows) if x.shape[-1] <= g.shape[-1] else jnp.tensordot(g, x, rows).T


def _over_rows_as_they_lie(x, g):
    # Without the barrier XLA recomputes x into a transposed copy, voxel by voxel.
    return _over_rows(jax.lax.optimization_barrier(x), g)


def _over_rows_transposed(x, g):
    # The barrier keeps XLA from fusing the transpose into the product.
    return jax.lax.optimization_barrier(x.reshape(-1, x.shape[-1]).T) @ g.reshape(-1, g.shape[-1])


@jax.custom_vjp
def shifted(x: Float[jax.Array, "*rows o"], bias: Float[jax.Array, "o"]) -> Float[jax.Array, "*rows o"]:
    """x + bias, with a gradient of the bias summed over contiguous rows: ten times faster on a CPU than through a reshape."""
    return x + jnp.expand_dims(bias, range(x.ndim - 1))


def _shifted_backward(_, g):
    forms = {"cpu": lambda rows: jnp.sum(jax.lax.optimization_barrier(rows), 0), "default": lambda rows: jnp.sum(rows, 0)}
    return g, jax.lax.platform_dependent(g.reshape(-1, g.shape[-1]), **forms)


shifted.defvjp(lambda x, bias: (shifted(x, bias), None), _shifted_backward)


class Linear(nn.Module):
    """A dense layer or 1³ convolution: `nn.Dense` with faster gradients on a CPU."""

    features: int
    dtype: Any
    use_bias: bool = True
    kernel_init: Callable = xavier_uniform

    @nn.compact
    def __call__(self, x: Float[jax.Array, "*rows i"]) -> Float[jax.Array, "*rows o"]:
        kernel = self.param("kernel", self.kernel_init, (x.shape[-1], self.features))
        x = product(x.astype(self.dtype), kernel.astype(self.dtype))
        if self.use_bias:
            x = shifted(x, self.param("bias", nn.initializers.zeros, (self.features,)).astype(self.dtype))
        return x


def gelu(x: Float[jax.Array, "..."]) -> Float[jax.Array, "..."]:
    """x·Φ(x) by erf: PyTorch's default, not Flax's tanh form. `jax.nn.gelu` uses erfc, which takes twice the time on a CPU."""
    return x * (0.5 + 0.5 * jax.lax.erf(x * 0.5**0.5))


class MLP(nn.Module):
    """The MLP of a transformer block: linear, exact GELU, linear."""

    hidden: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Float[jax.Array, "b n d"]) -> Float[jax.Array, "b n d"]:
        h = Linear(self.hidden, self.dtype, name="linear1")(x)
        return Linear(x.shape[-1], self.dtype, name="linear2")(gelu(h))


class Attention(nn.Module):
    """Multi-head self-attention; the qkv outputs are laid out [q | k | v], each head-major, as in timm and MONAI."""

    heads: int
    qkv_bias: bool = True
    kernel: str = "auto"
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Float[jax.Array, "b n d"]) -> Float[jax.Array, "b n d"]:
        b, n, d = x.shape
        qkv = Linear(3 * d, self.dtype, self.qkv_bias, name="qkv")(x)
        q, k, v = jnp.moveaxis(qkv.reshape(b, n, 3, self.heads, d // self.heads), 2, 0)
        return Linear(d, self.dtype, name="out_proj")(attention(self.kernel, q, k, v).reshape(b, n, d))


class Block(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x)). Returns its output twice, for `nn.scan` to carry and to collect.

    `drop` is the chance to drop a branch for a sample (stochastic depth, Huang et al. 2016; rng "drop_path"); None: never.
    """

    heads: int
    hidden: int
    qkv_bias: bool = True
    eps: float = 1e-6
    attention: str = "auto"
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self, x: Float[jax.Array, "b n d"], drop: Float[jax.Array, ""] | None = None
    ) -> tuple[Float[jax.Array, "b n d"], Float[jax.Array, "b n d"]]:
        def drop_path(branch: jax.Array) -> jax.Array:
            if drop is None:
                return branch
            keep = jax.random.bernoulli(self.make_rng("drop_path"), 1 - drop, (x.shape[0], 1, 1))
            return jnp.where(keep, branch / (1 - drop).astype(branch.dtype), 0)

        attend = Attention(self.heads, self.qkv_bias, self.attention, self.dtype, name="attn")
        x = x + drop_path(attend(layer_norm(self.eps, self.dtype, "norm1")(x)))
        x = x + drop_path(MLP(self.hidden, self.dtype, name="mlp")(layer_norm(self.eps, self.dtype, "norm2")(x)))
        return x, x


def layer_norm(eps: float, dtype: Any, name: str | None) -> nn.LayerNorm:
    """Layer norm with an explicit eps (Flax's default is 1e-6, PyTorch's 1e-5) and the variance in two passes, as in PyTorch."""
    return nn.LayerNorm(epsilon=eps, dtype=dtype, use_fast_variance=False, name=name)


def stack(depth: int, remat: bool, **block: Any) -> nn.Module:
    """`depth` blocks as a scan over stacked weights, compiled once; called with x and the blocks' drop-path chances, [depth] or None.

    The backward pass recomputes everything but products and attention, which costs little; with `remat` whole blocks.
    """
    body = nn.remat(Block, prevent_cse=False, policy=None if remat else PRODUCTS_AND_ATTENTION)
    return nn.scan(body, variable_axes={"params": 0}, split_rngs={"params": True, "drop_path": True}, length=depth)(**block)
