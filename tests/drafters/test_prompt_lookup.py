"""Prompt lookup against plain Python on random texts."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdecode.drafters import prompt_lookup
from jaxdecode.errors import InputError

SIZE = 48


def reference(text, config):
    """The longest suffix first, then the latest place; the tokens after it and its length."""
    for matched in range(min(config.max_ngram, len(text)), config.min_ngram - 1, -1):
        for end in range(len(text) - 1, matched - 1, -1):
            if text[end - matched : end] == text[-matched:]:
                return text[end : end + config.num_draft], matched
    return [], None


def drafts(texts, config):
    """What `lookup` gives for each text, in slots that hold leftovers past its end."""
    rng = np.random.default_rng(1)
    canvas = rng.integers(0, 4, (len(texts), SIZE)).astype(np.int32)
    for row, text in zip(canvas, texts, strict=True):
        row[: len(text)] = text
    last = np.asarray([len(text) - 1 for text in texts], np.int32)
    search = jax.jit(jax.vmap(lambda tokens, length: prompt_lookup.lookup(tokens, length, config)))
    found = jax.tree.map(np.asarray, search(jnp.asarray(canvas), jnp.asarray(last)))
    return [
        (tokens[valid].tolist(), matched if valid.any() else None)
        for tokens, valid, matched in zip(*found, strict=True)
    ]


def random_texts(count=1000):
    rng = np.random.default_rng(0)
    return [rng.integers(0, 4, rng.integers(1, SIZE)).tolist() for _ in range(count)]


CONFIGS = [
    prompt_lookup.Config(),
    prompt_lookup.Config(num_draft=4, max_ngram=8, min_ngram=3),
    prompt_lookup.Config(num_draft=1, max_ngram=1),
]


@pytest.mark.parametrize("config", CONFIGS)
def test_drafts_are_those_of_plain_python(config):
    texts = random_texts()
    assert drafts(texts, config) == [reference(text, config) for text in texts]


def test_the_comparison_can_fail():
    texts = random_texts(50)
    wrong = [reference(text, CONFIGS[0]) for text in texts]
    assert drafts([text[:-1] + [3] for text in texts], CONFIGS[0]) != wrong


def test_a_periodic_text_is_copied_whole():
    text = [5, 6, 7] * 10
    ((tokens, matched),) = drafts([text], prompt_lookup.Config(num_draft=3, max_ngram=5))
    assert tokens == [5, 6, 7] and matched == 5


@pytest.mark.parametrize(
    "wrong", [{"num_draft": 0}, {"min_ngram": 0}, {"max_ngram": 2, "min_ngram": 3}]
)
def test_values_out_of_range_are_refused_by_name(wrong):
    with pytest.raises(InputError, match=next(iter(wrong))):
        prompt_lookup.Config(**wrong)
