"""Scaled dot-product attention in a form that is fast on the platform: XLA's on a GPU, head by head on a CPU (`cpu_attention.py`).

The form depends on the platform that the program is lowered for, not on the machine it is lowered on. cuDNN's and Pallas' kernels, for GPUs
only, are options.
"""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Float

from brainseg_jax.core.runtime import private_of_jax
from brainseg_jax.models.cpu_attention import head_by_head, head_by_head_gradient
from brainseg_jax.parallel.sharding import per_device

Heads = Float[jax.Array, "b n h e"]
# The name by which a rematerialisation policy saves attention's output.
ATTENDED = "attended"
PALLAS = "jax.experimental.pallas.ops.gpu.attention"


def attention(kind: str, q: Heads, k: Float[jax.Array, "b m h e"], v: Float[jax.Array, "b m h e"]) -> Heads:
    """softmax(q kᵀ / √e) v per head, by a kernel of config.attention: auto, xla, cudnn or pallas."""
    return attend(q, k, v) if kind == "auto" else checkpoint_name(KERNELS[kind](q, k, v), ATTENDED)


@jax.custom_vjp
def attend(q: Heads, k: Float[jax.Array, "b m h e"], v: Float[jax.Array, "b m h e"]) -> Heads:
    """softmax(q kᵀ / √e) v per head; the softmax in float32 whatever the inputs are."""
    return _forward(q, k, v)[0]


def _forward(q, k, v):
    out, log_sum = checkpoint_name(jax.lax.platform_dependent(q, k, v, cpu=head_by_head, default=_fused), ATTENDED)
    return out, (q, k, v, out, log_sum)


def _backward(saved, gradient):
    return jax.lax.platform_dependent(*saved, gradient, cpu=head_by_head_gradient, default=_fused_gradient)


attend.defvjp(_forward, _backward)


def _fused(q, k, v):
    # The log-sum is only used on a CPU.
    return jax.nn.dot_product_attention(q, k, v), jnp.zeros((*q.shape[:-1], 1), jnp.promote_types(q.dtype, jnp.float32))


def _fused_gradient(q, k, v, out, log_sum, gradient):
    return jax.vjp(jax.nn.dot_product_attention, q, k, v)[1](gradient)


def flash(q: Heads, k: Heads, v: Heads, interpret: bool = False) -> Heads:
    """Pallas' flash attention for any equal number of queries and keys; `interpret` runs it on a CPU, slowly. Raises InputError if JAX does
    not have it."""
    mha, block_sizes = (
        private_of_jax(f"{PALLAS}:{name}", "attention is 'pallas' (attention=auto needs none)") for name in ("mha", "BlockSizes")
    )
    # The kernel takes blocks of tokens: the padding behind is another segment, which does not enter any sum.
    n, block = q.shape[1], 64
    q, k, v = (jnp.pad(a, ((0, 0), (0, -n % block), (0, 0), (0, 0))) for a in (q, k, v))
    segments = jnp.broadcast_to((jnp.arange(q.shape[1]) >= n).astype(jnp.int32), q.shape[:2])
    sizes = block_sizes(block, block, block, block, block, block)
    kernel = partial(mha, sm_scale=q.shape[-1] ** -0.5, block_sizes=sizes, interpret=interpret)
    return per_device(kernel)(q, k, v, segments)[:, :n]


def cudnn(q: Heads, k: Heads, v: Heads, implementation: str = "cudnn") -> Heads:
    """cuDNN's attention for any equal number of queries and keys; it trains on even numbers only, so an odd number is padded."""
    b, n = q.shape[:2]
    kernel = partial(jax.nn.dot_product_attention, implementation=implementation)
    if n % 2 == 0:
        return kernel(q, k, v)
    q, k, v = (jnp.pad(a, ((0, 0), (0, 1), (0, 0), (0, 0))) for a in (q, k, v))
    lengths = jnp.full(b, n, jnp.int32)
    return kernel(q, k, v, query_seq_lengths=lengths, key_value_seq_lengths=lengths)[:, :n]


KERNELS: dict[str, Callable] = {"xla": jax.nn.dot_product_attention, "cudnn": cudnn, "pallas": flash}
