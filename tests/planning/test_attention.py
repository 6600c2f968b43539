"""Kernels of attention that a config may ask for: the same numbers, and what a network or a machine cannot take is refused."""

import jax
import jax.numpy as jnp
import pytest

from brainseg_jax.config.checks import check
from brainseg_jax.core.errors import InputError
from brainseg_jax.models.attention import KERNELS, attend, cudnn, flash


def same_as_attend(kernel, rng, close, tokens):
    """A kernel and its gradients, against the attention that every other test holds to its definition."""
    q, k, v, g = (jnp.asarray(rng.normal(size=(2, tokens, 2, 16)), jnp.float32) for _ in range(4))

    def results(f):
        out, back = jax.vjp(f, q, k, v)
        return out, back(g)

    close(results(kernel), results(attend), times=10)


@pytest.mark.slow
@pytest.mark.parametrize("tokens", [70, 128])
def test_pallas_is_attention_for_any_number_of_tokens(rng, close, tokens):
    """Interpreted on a CPU. Tokens that were added to fill a block neither attend nor are attended to."""
    same_as_attend(lambda *qkv: flash(*qkv, interpret=True), rng, close, tokens)


@pytest.mark.parametrize("tokens", [7, 8])
def test_cudnns_odd_numbers_of_tokens_get_company_that_nobody_sees(rng, close, tokens):
    """By XLA's own, which takes the same lengths: the kernel itself is only on GPUs."""
    same_as_attend(lambda *qkv: cudnn(*qkv, implementation="xla"), rng, close, tokens)


def test_every_kernel_of_the_config_is_there(small):
    for name in ("auto", *KERNELS):
        check(small(attention=name, dtype="bfloat16"))


def test_kernels_that_cannot_be_are_refused(small):
    with pytest.raises(InputError, match="attention is 'flash'; use one of auto, xla, cudnn, pallas"):
        check(small(attention="flash"))
    with pytest.raises(InputError, match="windows have them; use auto"):
        check(small(attention="pallas", objective="ssl", encoder="swin", **{"data.crop": (64, 64, 64), "data.size": (64, 64, 64)}))
    with pytest.raises(InputError, match="use dtype=bfloat16"):
        check(small(attention="cudnn"))
