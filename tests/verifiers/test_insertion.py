"""Texts that grow by insertions: against a plain loop and a known law; a twin is convicted."""

import dataclasses
import functools

import jax.numpy as jnp
import numpy as np
import pytest

import jaxdecode as jd
from jaxdecode import resolve
from jaxdecode.errors import InputError
from jaxdecode.evals import oracles, sampled
from tests import toys

PROMPTS = [[3, 1, 4, 1, 5], [9], [2, 6, 5, 3, 5, 8, 9, 7, 9]]
MASK = 60
# Of texts of three tokens over three.
RNG = np.random.default_rng(3)
LAW = RNG.dirichlet(np.full(27, 0.4))


def by_hand(lm, prompt, num_new, stop=None, threshold=0.9):
    """Greedy insertion, a whole pass per token and lists that are inserted into."""
    text, steps, logprobs = list(prompt), [-1] * len(prompt), [0.0] * len(prompt)
    for step in range(num_new):
        scores = toys.whole(lm, text).astype(np.float64)
        if stop is not None and 1 / (1 + np.exp(-scores[0, MASK])) > threshold:
            return text + [stop], steps + [step], None
        scores = scores[len(prompt) - 1 :]
        scores[:, [MASK] + ([] if stop is None else [stop])] = -np.inf
        joint = scores - np.log(np.exp(scores).sum())
        row = int(np.log(np.exp(joint).sum(1)).argmax())
        token = int(joint[row].argmax())
        at = len(prompt) + row
        text.insert(at, token)
        steps.insert(at, step)
        logprobs.insert(at, float(joint[row, token]))
    return text, steps, logprobs


def test_greedy_texts_are_those_of_a_plain_loop():
    lm = toys.denoiser(inserts=True)
    out = jd.generate(lm, PROMPTS, method="ilm", max_new_tokens=12)
    for i, prompt in enumerate(PROMPTS):
        text, steps, logprobs = by_hand(lm, prompt, 12)
        size = len(prompt)
        assert (out.tokens[i], out.steps[i]) == (text[size:], steps[size:])
        np.testing.assert_allclose(out.logprobs[i], logprobs[size:], atol=1e-4)
    assert any(steps != sorted(steps) for steps in out.steps), "else it would only append"


def ends(threshold):
    lm = toys.denoiser(inserts=True)
    lm = dataclasses.replace(lm, end_tokens=(7,))
    asked = {"max_new_tokens": 12, "stop_threshold": threshold}
    return lm, jd.generate(lm, PROMPTS, method="ilm", **asked), asked


def test_a_whole_text_ends_with_a_stop_token_unless_that_is_ignored():
    lm, out, _ = ends(0.5)
    assert "stop" in out.finish_reasons
    for tokens, reason, prompt in zip(out.tokens, out.finish_reasons, PROMPTS, strict=True):
        assert prompt + tokens == by_hand(lm, prompt, 12, stop=7, threshold=0.5)[0]
        assert (7 in tokens) == (reason == "stop") and 7 not in tokens[:-1]
    lm, out, asked = ends(1.0)
    assert out.finish_reasons == ["length"] * 3
    free = jd.generate(
        lm, PROMPTS, method="ilm", ignore_eos=True, **asked | {"stop_threshold": 0.5}
    )
    assert free.finish_reasons == ["length"] * 3


@pytest.fixture
def three(monkeypatch):
    """Texts of three tokens at temperature 1, counted by `sampled` in the order of the text."""
    monkeypatch.setattr(sampled, "PROMPT", (3,))
    monkeypatch.setattr(sampled, "NUM_NEW", 3)
    monkeypatch.setattr(sampled, "TEMPERATURE", 1.0)


def counts(monkeypatch, shift=0):
    """How often the real loop writes each text, `[3, 3, 3]`; tokens go `shift` places too far."""
    lm = oracles.insertions_model(tuple(LAW.tolist()), 3)
    ready = sampled.setup(resolve.split("ilm", {})[1], lm)
    made = ready.method.verifier.verify

    def moved(weights, request, canvas, proposal, output):
        found = made(weights, request, canvas, proposal, output)
        after = jnp.clip(found.after + shift, 0, proposal.num[:, None] - 1)
        return type(found)(**(vars(found) | {"after": after}))

    verifier = ready.method.verifier._replace(verify=moved)
    ready = ready._replace(method=ready.method._replace(verifier=verifier))
    texts = []
    run = sampled.loop.run

    def spy(*args, **kwargs):
        end = run(*args, **kwargs)
        texts.append(np.asarray(end.drafter.tokens[:, 1:4]))
        return end

    monkeypatch.setattr(sampled.loop, "run", spy)
    sampled.counts(ready, 8192)
    found = np.zeros((3, 3, 3))
    np.add.at(found, tuple(np.concatenate(texts).T), 1)
    return found


def test_a_model_that_knows_its_texts_writes_them_with_their_law(three, monkeypatch):
    """Taking away one token at a time is a Markov chain, and insertions are its reverse."""
    found = counts(monkeypatch)
    assert sampled.chi_square(found, LAW.reshape(3, 3, 3)) > 1e-3
    assert sampled.chi_square(found, LAW.reshape(3, 3, 3).transpose(2, 1, 0)) < 1e-6


@pytest.mark.parametrize("shift", [-1, 1])
def test_a_token_that_is_put_elsewhere_is_convicted(three, monkeypatch, shift):
    assert sampled.chi_square(counts(monkeypatch, shift), LAW.reshape(3, 3, 3)) < 1e-6


def test_what_the_oracle_says_by_hand():
    """One text, 0 1 0: of "0" either zero is left, and what is taken lies behind or before it."""
    law = np.zeros((3, 3, 3))
    law[0, 1, 0] = 1.0
    found = oracles.insertion_laws(tuple(law.ravel().tolist()), 3)
    assert found.shape == (64, 4, 4)
    left = np.ravel_multi_index((1, 0, 0), (4, 4, 4))
    wanted = np.zeros((4, 4))
    wanted[0, 0] = wanted[0, 1] = wanted[1, 1] = wanted[1, 0] = 1
    np.testing.assert_array_equal(found[left], wanted)


def test_the_likeliest_place_is_taken_if_asked():
    lm = toys.denoiser(inserts=True)
    asked = {"temperature": 0.9, "max_new_tokens": 1, "n": 40, "top_k": 1}
    first = jd.generate(lm, PROMPTS[:1], method="ilm", place="likeliest", **asked)
    plain = by_hand(lm, PROMPTS[0], 1)[0][5:]
    assert first.tokens == [plain] * 40
    two = asked | {"max_new_tokens": 2}
    drawn = jd.generate(lm, PROMPTS[:1], method="ilm", **two)
    assert len({tuple(steps) for steps in drawn.steps}) == 2, "before the first, and after it"


@pytest.mark.parametrize(
    ("lm", "method", "message"),
    [
        (toys.denoiser, "ilm", "cannot run this model, which fills undecided slots; use one of"),
        (toys.model, "ilm", "cannot run this model, which writes one token after the other"),
        (
            functools.partial(toys.denoiser, inserts=True),
            "llada",
            "cannot run this model, which inserts tokens; use one of ilm",
        ),
    ],
)
def test_other_models_and_other_methods_are_refused(lm, method, message):
    with pytest.raises(InputError, match=message):
        jd.generate(lm(), PROMPTS, method=method)


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"place": "first"}, "place='first' is not known"),
        ({"stop_threshold": 0.0}, "stop_threshold"),
        ({"stop": ["a"]}, "cannot honour stop="),
    ],
)
def test_what_cannot_be_done_is_refused(asked, message):
    with pytest.raises(InputError, match=message):
        jd.generate(toys.denoiser(inserts=True), PROMPTS, method="ilm", **asked)


def test_templates_are_refused():
    with pytest.raises(InputError, match="open slots mean nothing to it"):
        jd.infill(toys.denoiser(inserts=True), {"tokens": [3, None, 4]}, method="ilm")
