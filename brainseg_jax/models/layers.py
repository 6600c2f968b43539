"""The transformer block that every encoder and decoder here shares (Dosovitskiy et al. 2021; pre-norm).

Leaves carry MONAI's names (qkv, out_proj, linear1, linear2, norm1, norm2), so that a converter is a table.
"""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Float

from brainseg_jax.models.attention import ATTENDED, attend

xavier = nn.initializers.xavier_uniform()

# What `stack` keeps for the backward pass where it does not recompute whole blocks.
PRODUCTS_AND_ATTENTION = jax.checkpoint_policies.save_from_both_policies(
    jax.checkpoint_policies.dots_with_no_batch_dims_saveable, jax.checkpoint_policies.save_only_these_names(ATTENDED)
)

# Up to so many rows a CPU multiplies faster with a transposed copy of the inputs.
FEW_ROWS = 4096


@jax.custom_vjp
def product(x: Float[jax.Array, "*rows i"], kernel: Float[jax.Array, "i o"]) -> Float[jax.Array, "*rows o"]:
    """x @ kernel. XLA leaves the kernel's gradient, whose sum runs over rows, to a slower product on a CPU unless it is handed xᵀ."""
    return x @ kernel


def _product_forward(x, kernel):
    return x @ kernel, (x, kernel)


def _product_backward(saved, g):
    x, kernel = saved
    if x.size // x.shape[-1] <= FEW_ROWS:
        d_kernel = jax.lax.platform_dependent(x, g, cpu=_over_rows_transposed, default=_over_rows)
    else:
        d_kernel = _over_rows(x, g)
    return g @ kernel.T, d_kernel


product.defvjp(_product_forward, _product_backward)


def _over_rows(x, g):
    return jnp.tensordot(x, g, axes=(tuple(range(x.ndim - 1)),) * 2)


def _over_rows_transposed(x, g):
    # The barrier keeps XLA from folding the transpose into the product again.
    return jax.lax.optimization_barrier(x.reshape(-1, x.shape[-1]).T) @ g.reshape(-1, g.shape[-1])


def linear(features: int, dtype: Any, name: str | None = None, use_bias: bool = True, kernel_init: Callable = xavier) -> nn.Dense:
    """A dense layer, or a 1³ convolution, that multiplies by `product`."""
    return nn.Dense(features, use_bias, dtype, kernel_init=kernel_init, dot_general=_dot_general, name=name)


def _dot_general(x, kernel, dimension_numbers, precision):
    """`product` as `nn.Dense` calls it: with dimension numbers that are always those of x @ kernel."""
    return product(x, kernel)


def gelu(x: Float[jax.Array, "..."]) -> Float[jax.Array, "..."]:
    """x·Φ(x) by erf: PyTorch's default, not Flax's tanh form. `jax.nn.gelu` takes erfc, which costs a CPU twice the time."""
    return x * (0.5 + 0.5 * jax.lax.erf(x * 0.5**0.5))


class MLP(nn.Module):
    """Linear, exact GELU, linear."""

    hidden: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Float[jax.Array, "b n d"]) -> Float[jax.Array, "b n d"]:
        h = linear(self.hidden, self.dtype, "linear1")(x)
        return linear(x.shape[-1], self.dtype, "linear2")(gelu(h))


class Attention(nn.Module):
    """Multi-head self-attention; the qkv outputs are laid out [q | k | v], each head-major, as in timm and MONAI."""

    heads: int
    qkv_bias: bool = True
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Float[jax.Array, "b n d"]) -> Float[jax.Array, "b n d"]:
        b, n, d = x.shape
        qkv = linear(3 * d, self.dtype, "qkv", self.qkv_bias)(x)
        q, k, v = jnp.moveaxis(qkv.reshape(b, n, 3, self.heads, d // self.heads), 2, 0)
        return linear(d, self.dtype, "out_proj")(attend(q, k, v).reshape(b, n, d))


class Block(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x)). Returns its output twice, as `nn.scan` wants: carried on, and collected.

    `drop` is the chance that a sample goes without a branch (stochastic depth, Huang et al. 2016; rng "drop_path"); None: never.
    """

    heads: int
    hidden: int
    qkv_bias: bool = True
    eps: float = 1e-6
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self, x: Float[jax.Array, "b n d"], drop: Float[jax.Array, ""] | None = None
    ) -> tuple[Float[jax.Array, "b n d"], Float[jax.Array, "b n d"]]:
        def kept(branch: jax.Array) -> jax.Array:
            if drop is None:
                return branch
            stays = jax.random.bernoulli(self.make_rng("drop_path"), 1 - drop, (x.shape[0], 1, 1))
            return jnp.where(stays, branch / (1 - drop).astype(branch.dtype), 0)

        x = x + kept(Attention(self.heads, self.qkv_bias, self.dtype, name="attn")(layer_norm(self.eps, self.dtype, "norm1")(x)))
        x = x + kept(MLP(self.hidden, self.dtype, name="mlp")(layer_norm(self.eps, self.dtype, "norm2")(x)))
        return x, x


def layer_norm(eps: float, dtype: Any, name: str | None) -> nn.LayerNorm:
    """Flax's default eps is 1e-6 and PyTorch's 1e-5: it is always said. Variance in two passes, as PyTorch computes it."""
    return nn.LayerNorm(epsilon=eps, dtype=dtype, use_fast_variance=False, name=name)


def stack(depth: int, remat: bool, **block: Any) -> nn.Module:
    """`depth` blocks scanned over one stacked set of weights: compiled once.

    The backward pass recomputes what lies between products and attention, which costs little; with `remat` whole blocks.
    Called with x and the blocks' chances to be left out, [depth] or None.
    """
    body = nn.remat(Block, prevent_cse=False, policy=None if remat else PRODUCTS_AND_ATTENTION)
    return nn.scan(body, variable_axes={"params": 0}, split_rngs={"params": True, "drop_path": True}, length=depth)(**block)
