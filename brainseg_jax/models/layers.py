"""The transformer block that every encoder and decoder here shares (Dosovitskiy et al. 2021; pre-norm).

Leaves carry MONAI's names (qkv, out_proj, linear1, linear2, norm1, norm2), so that a converter is a table.
"""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Float

from brainseg_jax.models.attention import ATTENDED, attention

xavier_uniform = nn.initializers.xavier_uniform()

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
        d_kernel = jax.lax.platform_dependent(x, g, cpu=_over_rows_as_they_lie, default=_over_rows)
    return g @ kernel.T, d_kernel


product.defvjp(_product_forward, _product_backward)


def _over_rows(x, g):
    # A CPU copies the first factor transposed: let that be the narrower one.
    rows = (tuple(range(x.ndim - 1)),) * 2
    return jnp.tensordot(x, g, rows) if x.shape[-1] <= g.shape[-1] else jnp.tensordot(g, x, rows).T


def _over_rows_as_they_lie(x, g):
    # Without the barrier what made x is computed again into a transposed copy, voxel by voxel.
    return _over_rows(jax.lax.optimization_barrier(x), g)


def _over_rows_transposed(x, g):
    # The barrier keeps XLA from folding the transpose into the product again.
    return jax.lax.optimization_barrier(x.reshape(-1, x.shape[-1]).T) @ g.reshape(-1, g.shape[-1])


@jax.custom_vjp
def shifted(x: Float[jax.Array, "*rows o"], bias: Float[jax.Array, "o"]) -> Float[jax.Array, "*rows o"]:
    """x + bias. The bias's gradient is summed over rows as they lie: a CPU took ten times as long for a sum through their reshaping."""
    return x + jnp.expand_dims(bias, range(x.ndim - 1))


def _shifted_backward(_, g):
    rows = g.reshape(-1, g.shape[-1])
    return g, jax.lax.platform_dependent(rows, cpu=lambda rows: jnp.sum(jax.lax.optimization_barrier(rows), 0), default=_sum)


def _sum(rows):
    return jnp.sum(rows, 0)


shifted.defvjp(lambda x, bias: (shifted(x, bias), None), _shifted_backward)


class Linear(nn.Module):
    """A dense layer, or a 1³ convolution; `nn.Dense` but for the form of its gradients."""

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
    """x·Φ(x) by erf: PyTorch's default, not Flax's tanh form. `jax.nn.gelu` takes erfc, which costs a CPU twice the time."""
    return x * (0.5 + 0.5 * jax.lax.erf(x * 0.5**0.5))


class MLP(nn.Module):
    """Linear, exact GELU, linear."""

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
    """x + attention(norm(x)), then x + mlp(norm(x)). Returns its output twice, as `nn.scan` wants: carried on, and collected.

    `drop` is the chance that a sample goes without a branch (stochastic depth, Huang et al. 2016; rng "drop_path"); None: never.
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
        def kept(branch: jax.Array) -> jax.Array:
            if drop is None:
                return branch
            stays = jax.random.bernoulli(self.make_rng("drop_path"), 1 - drop, (x.shape[0], 1, 1))
            return jnp.where(stays, branch / (1 - drop).astype(branch.dtype), 0)

        attend = Attention(self.heads, self.qkv_bias, self.attention, self.dtype, name="attn")
        x = x + kept(attend(layer_norm(self.eps, self.dtype, "norm1")(x)))
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
