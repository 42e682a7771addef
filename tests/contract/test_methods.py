"""Runs over every registry line without edits: what any method must do, whatever it is."""

import jax.numpy as jnp
import numpy as np
import pytest

import jaxdecode as jd
from jaxdecode.core.registry import METHODS
from jaxdecode.sampling import noise
from tests import toys

PROMPTS = [[3, 1, 4, 1, 5], [9], [2, 6, 5, 3, 5, 8, 9, 7, 9]]
EXACT = [name for name in toys.LOOP if METHODS[name].level == "L0"]
LAWS = [{}, {"temperature": 0.9, "seed": 4}, {"temperature": 1.3, "top_k": 9, "top_p": 0.8}]
# Every model and every law once; the other combinations are slow.
CASES = [
    ("llama", 0),
    ("llama", 1),
    ("gemma", 2),
    *(
        pytest.param(*case, marks=pytest.mark.slow)
        for case in [("gemma", 0), ("gemma", 1), ("llama", 2)]
    ),
]


def slow_reference(lm, prompt, num_new, temperature=0.0, top_k=0, top_p=1.0, seed=0):
    """Decoding as textbooks write it: a whole forward pass per token, NumPy for the rest."""
    tokens, key = list(prompt), jnp.asarray(noise.row_key(seed, prompt))
    for _ in range(num_new):
        scores = toys.full_logits(lm, tokens)[0][-1].astype(np.float64)
        if temperature:
            scores /= temperature
            order = np.argsort(-scores, kind="stable")[: top_k or None]
            law = np.exp(scores[order] - scores[order[0]])
            law /= law.sum()
            order = order[np.cumsum(law) - law < top_p]
            gumbel = noise.gumbel(key, len(tokens), purpose=noise.TOKEN, size=len(scores))
            kept = np.full_like(scores, -np.inf)
            kept[order] = scores[order]
            scores = kept + np.asarray(gumbel)
        tokens.append(int(scores.argmax()))
    return tokens[len(prompt) :]


@pytest.mark.parametrize(("model", "law"), CASES)
@pytest.mark.parametrize("name", toys.core_first(EXACT))
def test_tokens_are_those_of_the_slow_reference(name, model, law):
    check_tokens(name, model, LAWS[law])


@pytest.mark.parametrize("name", EXACT)
def test_sampled_tokens_are_those_of_the_slow_reference(name):
    check_tokens(name, "llama", LAWS[1])


def check_tokens(name, model, law):
    lm = toys.model(model)
    out = jd.generate(lm, PROMPTS, method=name, max_new_tokens=12, **(law | toys.helpers(name, lm)))
    assert out.tokens == [slow_reference(lm, prompt, 12, **law) for prompt in PROMPTS]


@pytest.mark.parametrize("name", toys.LOOP)
def test_every_row_advances_and_counts_add_up(name):
    more = toys.helpers(name) | toys.drawn(name)
    out = jd.generate(toys.model(), PROMPTS, method=name, max_new_tokens=17, **more)
    for stats, tokens, steps in zip(out.stats, out.tokens, out.steps, strict=True):
        assert stats.num_tokens == len(tokens) == 17
        assert 1 <= stats.nfe <= 17 and stats.tokens_forwarded >= stats.nfe
        assert stats.acceptance_length == len(tokens) / stats.nfe
        assert sorted(set(steps)) == list(range(stats.nfe)), "a live row commits in every step"


@pytest.mark.parametrize("name", toys.core_first(toys.LOOP))
def test_a_row_ends_where_its_first_stop_token_is(name):
    lm, asked = toys.model(), dict(method=name, max_new_tokens=20) | toys.helpers(name)
    if METHODS[name].verifier in ("judge", "aged"):
        # A stop token is let through where it is right only, so as a stop it may not even come.
        asked |= toys.strict(name)
    free = jd.generate(lm, PROMPTS, **asked)
    stop = free.tokens[0][6]
    out = jd.generate(lm, PROMPTS, stop_tokens=[stop], **asked)
    for ours, whole in zip(out.tokens, free.tokens, strict=True):
        assert ours == (whole[: whole.index(stop) + 1] if stop in whole else whole)


@pytest.mark.parametrize("name", METHODS)
def test_it_is_explained(name):
    assert name in jd.explain(name) and METHODS[name].summary in jd.explain(name)
    (entry,) = [line for line in jd.methods() if line["name"] == name]
    assert entry["level"] in ("L0", "L1", "L2", "L3") and entry["tier"] in ("stable", "lab")
