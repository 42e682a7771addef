"""Several texts from one pass: against a beam in NumPy that runs whole texts each time."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxdecode as jd
from jaxdecode.core.masks import MaskProgram
from jaxdecode.core.types import Blend
from jaxdecode.drafters import superposed
from jaxdecode.errors import InputError
from tests import toys

PROMPTS = [[3, 1, 4, 1, 5], [9], [2, 6, 5, 3, 5, 8, 9, 7, 9]]
NEW = 10


def forward(lm, tokens):
    """Scores after every input row of one text, from scratch."""
    size = jax.tree.leaves(tokens)[0].shape[1]
    padded = jax.tree.map(lambda x: jnp.pad(x, ((0, 0), (0, 24 - size), (0, 0))[: x.ndim]), tokens)
    return np.asarray(_forward(lm.params, padded, size, target=lm.target))[:size]


@functools.partial(jax.jit, static_argnames="target")
def _forward(params, tokens, size, *, target):
    program = MaskProgram(
        cached=jnp.zeros(1, jnp.int32),
        positions=jnp.arange(24, dtype=jnp.int32)[None],
        num_new=jnp.full(1, size, jnp.int32),
    )
    return target.logits(params, target.forward(params, tokens, program, None).hidden)[0]


def log_softmax(x):
    x = x.astype(np.float64) - x.max()
    return x - np.log(np.exp(x).sum())


def ngram_law(text, size):
    law = np.zeros(size)
    for n, weight in enumerate(superposed.NGRAM_WEIGHTS, 2):
        context = text[len(text) - n + 1 :]
        if len(context) < n - 1:
            continue
        places = [i for i in range(len(text) - n + 1) if text[i : i + n - 1] == context]
        after = [text[i + n - 1] for i in places]
        for token in after:
            law[token] += weight / len(after)
    return law


def beam(lm, prompt, k=3, m=9, tau=0.06, alpha=0.0, stops=(), blend=True):
    """Texts and log scores as the paper's section 3 has them, best first."""
    rows = [([token] * k, np.eye(k)[0]) for token in prompt]
    alive, ended = [(0.0, list(prompt))], []
    for step in range(NEW):
        if step:
            score = np.array([score for score, _ in alive])
            weights = np.exp(score - score.max()) if blend else np.ones(len(alive))
            last = [text[-1] for _, text in alive]
            gap = k - len(alive)
            row = np.pad(weights / weights.sum(), (0, gap))
            rows.append((last + [0] * gap, row))
        tokens = jnp.asarray([[row[0] for row in rows]], jnp.int32)
        weights = jnp.asarray([[row[1] for row in rows]], jnp.float32)
        logits = forward(lm, Blend(tokens=tokens, weights=weights))[-1]
        top = np.argsort(-logits, kind="stable")[:m]
        law = log_softmax(logits[top] / tau)
        found = []
        for score, text in alive:
            mixed = law
            if alpha:
                own = ngram_law(text, len(logits))[top]
                with np.errstate(divide="ignore"):
                    mixed = (1 - alpha) * law + alpha * np.log(own)
                if not np.isfinite(mixed).any():
                    mixed = (1 - alpha) * law - 200
            found += [(score + x, [*text, int(t)]) for x, t in zip(mixed, top, strict=True)]
        found = sorted((c for c in found if np.isfinite(c[0])), key=lambda c: -c[0])[: 2 * k]
        ended += [c for c in found[:k] if c[1][-1] in stops]
        ended = sorted(ended, key=lambda c: -c[0])[:k]
        alive = [c for c in found if c[1][-1] not in stops][:k]
        if len(ended) == k and ended[-1][0] >= alive[0][0]:
            break
    best = sorted(ended + alive, key=lambda c: -c[0])[:k]
    return [text[len(prompt) :] for _, text in best]


def texts(out):
    return [[one.tokens for one in row] for row in out.alternatives]


@pytest.mark.parametrize(
    ("model", "asked"), [("gemma", {}), ("llama", {"logit_bias": {5: 3.0, 7: -2.0}})]
)
def test_one_text_without_ngrams_is_greedy_decoding(model, asked):
    lm = toys.model(model)
    free = jd.generate(lm, PROMPTS, max_new_tokens=20, **asked)
    for stops in ([], [free.tokens[0][7]]):
        both = asked | {"max_new_tokens": 20, "stop_tokens": stops}
        plain = jd.generate(lm, PROMPTS, **both)
        ours = jd.generate(lm, PROMPTS, method="superposed", num_texts=1, **both)
        assert ours.tokens == plain.tokens and ours.finish_reasons == plain.finish_reasons
        for a, b in zip(ours.logprobs, plain.logprobs, strict=True):
            np.testing.assert_allclose(a, b, atol=1e-5)


def test_equal_hypotheses_enter_as_their_token():
    lm = toys.model("gemma")
    tokens = jnp.asarray([PROMPTS[2]], jnp.int32)
    equal = Blend(
        tokens=jnp.repeat(tokens[..., None], 3, -1),
        weights=jnp.broadcast_to(jnp.asarray([0.5, 0.2, 0.3]), (*tokens.shape, 3)),
    )
    np.testing.assert_allclose(forward(lm, equal), forward(lm, tokens), atol=1e-5)
    other = Blend(tokens=equal.tokens.at[0, 0, 0].set(8), weights=equal.weights)
    assert np.abs(forward(lm, other) - forward(lm, tokens)).max() > 1e-3


@pytest.mark.parametrize(
    ("k", "asked"), [(2, {"tau": 1.0}), (3, {}), (3, {"tau": 1.0, "alpha": 0.54})]
)
def test_texts_are_those_of_the_reference(k, asked):
    lm = toys.model()
    out = jd.generate(lm, PROMPTS, method="superposed", num_texts=k, max_new_tokens=NEW, **asked)
    assert texts(out) == [beam(lm, prompt, k=k, **asked) for prompt in PROMPTS]
    assert out.tokens == [row[0] for row in texts(out)]


@pytest.mark.parametrize("stops", [[20], [20, 26, 6]])
def test_texts_end_where_those_of_the_reference_end(stops):
    lm = toys.model()
    out = jd.generate(
        lm, PROMPTS, method="superposed", tau=1.0, max_new_tokens=NEW, stop_tokens=stops
    )
    wanted = [beam(lm, prompt, tau=1.0, stops=stops) for prompt in PROMPTS]
    assert texts(out) == wanted
    assert len({len(text) for row in wanted for text in row}) > 1, "nothing ended early"


def test_the_reference_can_fail():
    lm = toys.model()
    wrong = [beam(lm, prompt, tau=1.0, blend=False) for prompt in PROMPTS]
    assert wrong != [beam(lm, prompt, tau=1.0) for prompt in PROMPTS]


def test_one_slot_per_step_and_rows_are_themselves():
    lm = toys.model()
    asked = {"method": "superposed", "max_new_tokens": NEW, "tau": 1.0}
    out = jd.generate(lm, PROMPTS, **asked)
    assert [stats.tokens_forwarded for stats in out.stats] == [NEW] * 3
    for i, prompt in enumerate(PROMPTS):
        assert texts(jd.generate(lm, [prompt], **asked))[0] == texts(out)[i]
    for row in texts(out):
        assert len(row) == 3 == len({tuple(text) for text in row})


def test_ngrams_count_what_followed():
    text = [1, 2, 3, 1, 2, 4, 1, 2]
    law = superposed.ngram_law(jnp.asarray([*text, 1, 2, 9]), jnp.int32(len(text) - 1), 12)
    np.testing.assert_allclose(law, ngram_law(text, 12), atol=1e-7)
    assert law[3] > 0 and law[9] == 0


@pytest.mark.parametrize(
    "asked",
    [{"temperature": 0.5}, {"top_k": 3}, {"repetition_penalty": 1.2}, {"stop": ["a"]}, {"tau": 0}],
)
def test_what_it_cannot_do_is_refused(asked):
    with pytest.raises(InputError, match=next(iter(asked))):
        jd.generate(toys.model(), PROMPTS, method="superposed", **asked)


def test_other_methods_have_no_alternatives():
    assert jd.generate(toys.model(), PROMPTS, max_new_tokens=2).alternatives == [[], [], []]
