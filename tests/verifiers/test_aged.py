"""Guesses that are kept for their age: against plain Python, and the strict setting."""

import pytest

import jaxdecode as jd
from jaxdecode.errors import InputError
from tests import toys
from tests.drafters.test_jacobi import PROMPT, iterate


def run(prompts, **asked):
    return jd.generate(toys.model(), prompts, method="ceed_vla", max_new_tokens=24, **asked)


@pytest.mark.parametrize("law", [{}, {"temperature": 0.9, "seed": 4}])
@pytest.mark.parametrize("most", [1, 3])
def test_every_step_is_that_of_plain_python(most, law):
    out = run([PROMPT], window=5, max_corrections=most, **law)
    tokens, counts = iterate(toys.model(), PROMPT, 24, 5, most=most, **law)
    steps = [step for step, count in enumerate(counts) for _ in range(count)]
    assert out.tokens == [tokens] and out.steps == [steps[:24]]


def test_the_text_is_that_of_plain_decoding_up_to_the_first_that_is_kept_for_its_age():
    prompts, window, most = [PROMPT, [7], [3, 1]], 5, 3
    out = run(prompts, window=window, max_corrections=most)
    plain = jd.generate(toys.model(), prompts, max_new_tokens=24)
    for tokens, wanted, steps, stats in zip(
        out.tokens, plain.tokens, out.steps, out.stats, strict=True
    ):
        # No guess is of that age before that step.
        early = sum(step < most for step in steps)
        assert tokens[:early] == wanted[:early] and early >= most
        assert stats.nfe <= 24 * 2 // 3, "age lets guesses pass"


@pytest.mark.parametrize("law", [{}, {"temperature": 0.9, "seed": 4}])
def test_the_strict_setting_is_plain_decoding(law):
    prompts = [PROMPT, [7], [3, 1]]
    wanted = jd.generate(toys.model(), prompts, max_new_tokens=24, **law).tokens
    assert run(prompts, max_corrections=None, **law).tokens == wanted
    # No guess of a window of 5 gets older than 4.
    assert run(prompts, window=5, max_corrections=5, **law).tokens == wanted


def test_stop_tokens_are_not_kept_for_their_age():
    asked, lm = {"window": 5, "max_corrections": 1}, toys.model()
    prompt = [40, 2]
    free = run([prompt], **asked).tokens[0]
    says = toys.full_logits(lm, prompt + free)[0].argmax(-1)[len(prompt) - 1 :].tolist()
    first = next(i for i, token in enumerate(free) if token != says[i])
    assert free[first] not in free[:first]
    stopped = run([prompt], stop_tokens=[free[first]], **asked).tokens[0]
    assert stopped[: first + 1] == [*free[:first], says[first]]


def test_the_age_is_checked():
    with pytest.raises(InputError, match="max_corrections=0"):
        run([PROMPT], max_corrections=0)
