"""The kernel in the model: the tokens of XLA's path, for every form of the parameters."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdecode import api
from jaxdecode.core import attention, masks
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


def chunk_of_prefill(slots, cached, num_new, rows=20):
    """Arguments of `attention` for the last rows of ragged prompts."""
    keys = jax.random.split(jax.random.key(slots), 5)
    batch, heads, group, width = len(cached), 2, 3, 8
    query = jax.random.normal(keys[0], (batch, heads, group, rows, width))
    key, value = (
        jax.random.normal(k, (batch, heads, *shape))
        for k, shape in zip(keys[1:3], [(width, rows), (rows, width)], strict=True)
    )
    old_key, old_value = (
        jax.random.normal(k, (batch, heads, *shape))
        for k, shape in zip(keys[3:], [(width, slots), (slots, width)], strict=True)
    )
    cached = jnp.asarray(cached, jnp.int32)
    mask = masks.MaskProgram(
        cached=cached,
        positions=cached[:, None] + jnp.arange(rows, dtype=jnp.int32),
        num_new=jnp.asarray(num_new, jnp.int32),
    )
    return (query, key, value, attention.View(old_key, old_value)), mask


def softmax_over_all(query, key, value, view, mask, window):
    """The law, in NumPy: every key of the cache and of the chunk in one softmax."""
    sees = np.concatenate(masks.dense(mask, num_slots=view.key.shape[3], window=window), axis=2)
    scores = np.einsum("bkgtd,bkds->bkgts", query, np.concatenate([view.key, key], 3))
    scores = np.where(sees[:, None, None], scores, -np.inf)
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    weights /= weights.sum(-1, keepdims=True)
    return np.einsum("bkgts,bksd->bkgtd", weights, np.concatenate([view.value, value], 2))


@pytest.mark.parametrize("slots", [8, 21, 32])
@pytest.mark.parametrize("window", [0, 5])
def test_blocks_of_the_cache_give_the_softmax_over_all_of_it(monkeypatch, slots, window):
    monkeypatch.setattr(attention, "_BLOCK", 8)
    monkeypatch.setattr(attention, "_TILE", 16)
    rows, mask = chunk_of_prefill(slots, cached=[0, 3, 8, slots], num_new=[20, 20, 7, 1])
    got = attention.attention(*rows, mask=mask, window=window)
    np.testing.assert_allclose(got, softmax_over_all(*rows, mask, window), atol=1e-5)


def test_a_row_does_not_depend_on_how_much_others_have_cached(monkeypatch):
    monkeypatch.setattr(attention, "_BLOCK", 8)
    few, many = (chunk_of_prefill(32, cached=[3, n], num_new=[20, 20]) for n in (3, 32))
    alone, beside = (attention.attention(*rows, mask=mask, window=0) for rows, mask in (few, many))
    np.testing.assert_array_equal(alone[0], beside[0])
