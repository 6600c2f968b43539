"""The transformer block that every encoder and decoder here shares (Dosovitskiy et al. 2021; pre-norm).

Leaves carry MONAI's names (qkv, out_proj, linear1, linear2, norm1, norm2), so that a converter is a table.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Float

from brainseg_jax.models.attention import attend

xavier = nn.initializers.xavier_uniform()


def gelu(x: Float[jax.Array, "..."]) -> Float[jax.Array, "..."]:
    """x·Φ(x) by erf: PyTorch's default, not Flax's tanh form. `jax.nn.gelu` takes erfc, which costs a CPU twice the time."""
    return x * (0.5 + 0.5 * jax.lax.erf(x * 0.5**0.5))


class MLP(nn.Module):
    """Linear, exact GELU, linear."""

    hidden: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Float[jax.Array, "b n d"]) -> Float[jax.Array, "b n d"]:
        h = nn.Dense(self.hidden, kernel_init=xavier, dtype=self.dtype, name="linear1")(x)
        return nn.Dense(x.shape[-1], kernel_init=xavier, dtype=self.dtype, name="linear2")(gelu(h))


class Attention(nn.Module):
    """Multi-head self-attention; the qkv outputs are laid out [q | k | v], each head-major, as in timm and MONAI."""

    heads: int
    qkv_bias: bool = True
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Float[jax.Array, "b n d"]) -> Float[jax.Array, "b n d"]:
        b, n, d = x.shape
        qkv = nn.Dense(3 * d, use_bias=self.qkv_bias, kernel_init=xavier, dtype=self.dtype, name="qkv")(x)
        q, k, v = jnp.moveaxis(qkv.reshape(b, n, 3, self.heads, d // self.heads), 2, 0)
        return nn.Dense(d, kernel_init=xavier, dtype=self.dtype, name="out_proj")(attend(q, k, v).reshape(b, n, d))


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
    """`depth` blocks scanned over one stacked set of weights: compiled once, and with `remat` recomputed in the backward pass.

    Called with x and the blocks' chances to be left out, [depth] or None.
    """
    body = nn.remat(Block, prevent_cse=False) if remat else Block
    return nn.scan(body, variable_axes={"params": 0}, split_rngs={"params": True, "drop_path": True}, length=depth)(**block)
