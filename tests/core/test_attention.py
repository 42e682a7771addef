"""The kernel in the model: the tokens of XLA's path, for every form of the parameters."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdecode import api
from jaxdecode.core import attention
from jaxdecode.errors import InputError, UnsupportedError
from jaxdecode.models import decoder
from tests import toys

PROMPTS = [[3, 1, 4, 1, 5, 3, 1, 4], [9], [2, 6, 5, 3, 5]]


def with_kernel(lm, impl="tpu"):
    backend = attention.Backend(impl=impl, interpret=True)
    return dataclasses.replace(lm, target=decoder.make_target(lm.config, lm.kv_dtype, backend))


@pytest.mark.parametrize("stacked", [False, True])
@pytest.mark.parametrize("method", ["ar", "token_recycling"])
def test_tokens_do_not_depend_on_who_computes_attention(method, stacked):
    lm = toys.model()
    params = {**lm.params, "layers": decoder.stack(lm.params["layers"])} if stacked else lm.params
    lm = dataclasses.replace(lm, params=params)
    run = dict(method=method, max_new_tokens=8, temperature=0.7, seed=2)
    want, got = (api.generate(m, PROMPTS, **run) for m in (lm, with_kernel(lm)))
    assert got.tokens == want.tokens
    np.testing.assert_allclose(
        np.concatenate(got.logprobs), np.concatenate(want.logprobs), atol=1e-4
    )


def test_a_pass_that_stands_for_cached_slots_is_left_to_xla():
    lm = toys.denoiser()
    run = dict(method="fast_dllm", block_length=8, max_new_tokens=16, threshold=0.1)
    want, got = (api.generate(m, PROMPTS, **run) for m in (lm, with_kernel(lm)))
    assert got.tokens == want.tokens and got.steps == want.steps


def test_windows_are_refused_by_kernels_and_auto_takes_xla(monkeypatch):
    config = toys.gemma_like()
    with pytest.raises(UnsupportedError, match="runs on tpu, but the devices are cpu"):
        attention.choose("tpu", config, jnp.float32, None)
    monkeypatch.setattr(jax, "default_backend", lambda: "tpu")
    with pytest.raises(UnsupportedError, match="sliding window"):
        attention.choose("tpu", config, jnp.float32, None)
    assert attention.choose("auto", config, jnp.float32, None).impl == "xla"
    assert attention.choose("auto", toys.config(), jnp.float32, None).impl == "tpu"
    with pytest.raises(UnsupportedError, match="float16"):
        attention.choose("tpu", toys.config(), jnp.float16, None)


def test_an_unknown_implementation_is_an_error():
    with pytest.raises(InputError, match="cuda.*auto, xla, tpu, gpu"):
        attention.choose("cuda", toys.config(), jnp.float32, None)
