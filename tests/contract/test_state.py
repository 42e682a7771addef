"""What the loop leaves behind under every method: the canvas, the counters and the cache."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdecode import engine, options
from jaxdecode.core import loop
from jaxdecode.core.registry import METHODS
from tests import toys

NEW = 12
PROMPTS = [[3, 1, 4, 1, 5, 3, 1], [9], [2, 6, 5, 3, 5, 8, 9, 7, 9]]


@functools.cache
def final_state(name):
    """The state after a run, on the host, and what ran."""
    lm = toys.model()
    built = toys.built(lm, name)
    request = toys.request(lm, options.Options(max_new_tokens=NEW, **toys.drawn(name)), PROMPTS)
    start = engine.prefilled(built, request, PROMPTS, NEW)
    shapes = jax.eval_shape(lambda: start)
    end = loop.run(
        built.weights, request, start, jnp.int32(100), target=lm.target, method=built.method
    )
    return jax.device_get(end), shapes


@pytest.mark.parametrize("name", toys.LOOP)
def test_state_out_has_the_form_of_state_in(name):
    end, shapes = final_state(name)
    assert jax.tree.structure(end) == jax.tree.structure(shapes)
    for ours, wanted in zip(jax.tree.leaves(end), jax.tree.leaves(shapes), strict=True):
        assert (ours.shape, ours.dtype) == (wanted.shape, wanted.dtype)


@pytest.mark.parametrize("name", toys.core_first(toys.LOOP))
def test_nothing_is_written_past_the_end_or_into_padding_rows(name):
    end, _ = final_state(name)
    canvas = end.canvas
    for b, prompt in enumerate(PROMPTS):
        stop = len(prompt) + NEW
        assert canvas.tokens[b, : len(prompt)].tolist() == prompt
        assert canvas.length[b] + 1 == stop and canvas.finish[b] == 3
        assert not canvas.open[b, :stop].any() and canvas.open[b, stop:].all()
        assert (canvas.tokens[b, stop:] == 0).all() and (canvas.commit_step[b, stop:] == -1).all()
    for counter in dataclasses.astuple(end.stats):
        assert counter[3] == 0, "padding rows are never counted"
    assert (canvas.commit_step[3] == -1).all()


@pytest.mark.parametrize("name", toys.core_first(toys.LOOP))
def test_counters_add_up(name):
    end, _ = final_state(name)
    rows = slice(0, len(PROMPTS))
    committed = end.canvas.length[rows] + 1 - [len(prompt) for prompt in PROMPTS]
    assert (end.stats.num_accepted[rows] + end.stats.nfe[rows] == committed).all()
    steps = [len(set(row[row >= 0])) for row in end.canvas.commit_step[rows]]
    assert (end.stats.nfe[rows] == steps).all() and end.step == max(steps)
    assert (end.stats.tokens_forwarded >= end.stats.nfe).all()


@pytest.mark.parametrize("name", toys.core_first(toys.LOOP))
def test_the_cache_is_that_of_a_fresh_pass(name):
    end, _ = final_state(name)
    lm = toys.model()
    if METHODS[name].drafter == "superposed":
        pytest.skip("its rows of keys and values belong to several texts at once")
    for b in range(len(PROMPTS)):
        length = int(end.canvas.length[b])
        _, (keys, values) = toys.rows_of(lm, end.canvas.tokens[b, :length])
        for layer in range(lm.config.num_layers):
            ours = end.cache.key[layer][b, :, :, :length], end.cache.value[layer][b, :, :length]
            fresh = keys[layer][0, :, :, :length], values[layer][0, :, :length]
            for found, wanted in zip(ours, fresh, strict=True):
                np.testing.assert_allclose(found, wanted, atol=1e-4)
