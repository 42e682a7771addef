"""Aggressive decoding: the pointer, the rule for resuming, and what a copy task costs."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxdecode as jd
from jaxdecode.drafters import aggressive_decoding as iad
from jaxdecode.errors import InputError
from tests import toys

CONFIG = iad.Config()
SIZE = 64


def row(source, output, *, num_source=0, pointer=-1, num_new=1):
    """State, slots and last decided slot of a row with this prompt and output."""
    tokens = np.full(SIZE, 9, np.int32)
    text = [*source, *output]
    tokens[: len(text)] = text

    def number(value):
        return jnp.asarray(value, jnp.int32)

    state = iad.State(
        pointer=number(pointer),
        first=number(len(source) - num_source if num_source else 0),
        stop=number(len(source)),
        start=number(len(source)),
        length=number(len(text) - 1 - num_new),
    )
    return state, jnp.asarray(tokens), number(len(text) - 1)


@jax.jit
def resume(state, tokens, length):
    return iad.resume(state, tokens, length, CONFIG)


@jax.jit
def follow(state, tokens, length):
    return iad.follow(state, tokens, length, CONFIG).pointer


def reference(source, output):
    """The unique-suffix rule in plain Python; positions within the source."""
    for size in range(1, min(3, len(output)) + 1):
        tail = output[-size:]
        places = [i for i in range(len(source)) if source[i : i + size] == tail]
        if len(places) == 1:
            return places[0] + size
    return -1


def test_a_suffix_that_occurs_twice_does_not_resume():
    assert resume(*row([1, 2, 3, 1, 2, 4], [1, 2])) == -1


def test_a_suffix_that_occurs_once_resumes_behind_it():
    assert resume(*row([1, 2, 3, 1, 2, 4], [2, 4])) == 6


def test_resuming_is_that_of_plain_python():
    rng = np.random.default_rng(0)
    for _ in range(300):
        source = rng.integers(0, 8, rng.integers(1, 20)).tolist()
        output = rng.integers(0, 8, rng.integers(1, 20)).tolist()
        assert resume(*row(source, output)) == reference(source, output)


def test_only_the_last_part_of_the_prompt_is_searched():
    assert resume(*row([5, 6, 1, 5, 7], [5])) == -1
    assert resume(*row([5, 6, 1, 5, 7], [5], num_source=2)) == 4


def test_the_pointer_moves_with_what_was_copied():
    source = [1, 2, 3, 4, 5, 6]
    assert follow(*row(source, [1, 2, 3], pointer=0, num_new=3)) == 3
    assert follow(*row(source, [1, 2, 8], pointer=0, num_new=3)) == -1, "8 is not in the source"
    assert follow(*row(source, [1, 2, 5], pointer=0, num_new=3)) == 5, "3 and 4 are left out"
    assert follow(*row(source, [6, 9], pointer=5, num_new=2)) == -1, "the source is at its end"


def simulate(source, output, config):
    """Target calls that the drafter needs for an output, and the tokens they gave."""
    (fields, tokens, _), calls = row(source, [], num_new=0, pointer=0), 0
    text = [*source, *output]
    state, tokens = fields, np.asarray(tokens).copy()
    draft = jax.jit(lambda state, tokens: iad._draft(state, tokens, config.num_draft))
    step = jax.jit(lambda state, tokens, length: iad.follow(state, tokens, length, config))
    length = len(source) - 1
    while length + 1 < len(text):
        copied, valid = draft(state, jnp.asarray(tokens))
        calls += 1
        for token in [*np.asarray(copied)[np.asarray(valid)], None]:
            length += 1
            tokens[length] = text[length]
            if token != text[length] or length + 1 == len(text):
                break
        state = step(state, jnp.asarray(tokens), jnp.int32(length))
    return calls


def test_calls_for_a_copy_and_for_a_copy_with_an_edit():
    source = list(range(10, 30))
    assert simulate(source, source, iad.Config(num_draft=4)) == 4
    edited = [*source[:7], 99, *source[8:]]
    # 5 and 2 copied with the edit; its successor is plain; then 5, 5 and 1 copied.
    assert simulate(source, edited, iad.Config(num_draft=4)) == 6
    assert simulate(source, [50 + i for i in range(8)], iad.Config(num_draft=4)) == 8


@pytest.mark.parametrize("asked", [{"num_source": 3, "skip_source": 2}, {"skip_source": 99}])
def test_tokens_are_those_of_plain_decoding_for_every_source(asked):
    lm, prompts = toys.model(), [[3], [3, 1, 4, 1, 5, 9, 2, 6]]
    stop = jd.generate(lm, prompts, max_new_tokens=12).tokens[0][8]
    asked_of_all = dict(max_new_tokens=12, stop_tokens=[stop])
    prompts = [[*prompt, stop, *prompt] for prompt in prompts]
    plain = jd.generate(lm, prompts, **asked_of_all)
    out = jd.generate(lm, prompts, method="aggressive_decoding", **asked_of_all, **asked)
    assert out.tokens == plain.tokens


@pytest.mark.parametrize("wrong", [{"num_draft": 0}, {"num_source": -1}, {"skip_source": -1}])
def test_values_out_of_range_are_refused_by_name(wrong):
    with pytest.raises(InputError, match=next(iter(wrong))):
        iad.Config(**wrong)
