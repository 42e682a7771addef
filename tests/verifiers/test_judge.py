"""Judge decoding: against plain Python, its strict setting, and heads that do not fit."""

import jax
import numpy as np
import pytest

import jaxdecode as jd
from jaxdecode.convert import heads as head_files
from jaxdecode.convert.heads import Heads
from jaxdecode.core.protocols import HeadSpec
from jaxdecode.errors import CorruptCheckpointError, InputError
from jaxdecode.evals import toys as smallest
from jaxdecode.heads import judge
from tests import toys
from tests.verifiers import plain

PROMPTS = [[3, 1, 4, 1, 5, 3, 1, 4, 1], [9, 9, 9, 9], [2, 6, 5, 3, 5, 2, 6, 5]]
WIDTH = 32


def head(weight, bias):
    """A judge head for the toy target."""
    params = {"kernel": np.float32(weight)[:, None], "bias": np.float32([bias])}
    known = head_files.target_of(toys.model().config, "toy")
    return Heads(spec=HeadSpec("judge", judge.Shape()), params=params, target=known)


def _run(**asked):
    asked = {"max_new_tokens": 20, "num_draft": 4} | asked
    return jd.generate(toys.model(), PROMPTS, method="judge_decoding", **asked)


@pytest.mark.parametrize("law", [{}, {"temperature": 0.9, "seed": 4}])
def test_the_strict_setting_is_plain_decoding(law):
    plain_out = jd.generate(toys.model(), PROMPTS, method="ar", max_new_tokens=20, **law)
    assert _run(heads=head(np.zeros(WIDTH), 9.0), threshold=1.0, **law).tokens == plain_out.tokens
    assert _run(heads=head(np.zeros(WIDTH), -9.0), **law).tokens == plain_out.tokens


def test_every_step_is_that_of_plain_python():
    rng = np.random.default_rng(0)
    weight, lm = rng.normal(size=WIDTH), toys.model()

    def keeps(row, draft, index, scores):
        del scores
        hidden = toys.full_logits(lm, row + draft, taps=("final",))[1]["final"]
        return hidden[len(row) + index] @ weight + 0.1 > 0

    out = _run(heads=head(weight, 0.1))
    accepted = 0
    for prompt, tokens, stats in zip(PROMPTS, out.tokens, out.stats, strict=True):
        assert (tokens, stats.nfe) == plain.decode(lm, prompt, 20, 4, keeps)
        accepted += 20 - stats.nfe
    assert accepted > 5, "the head lets drafts pass"


def test_a_lower_threshold_takes_fewer_steps_and_stop_tokens_are_not_let_through():
    trusting = head(np.zeros(WIDTH), 0.0)
    runs = [_run(heads=trusting, threshold=threshold).stats for threshold in (0.6, 0.4)]
    steps = [sum(stats.nfe for stats in run) for run in runs]
    assert steps[1] < steps[0]
    # The first draft of the first row is 5, what followed 3 1 4 1 before.
    trusted = {"heads": trusting, "threshold": 0.4, "max_new_tokens": 1}
    assert _run(**trusted).tokens[0] == [5]
    strict = _run(heads=trusting, threshold=1.0).tokens[0][:1]
    assert _run(**trusted, stop_tokens=[5]).tokens[0] == strict != [5]


def test_a_head_comes_back_from_its_folder(tmp_path):
    lm = toys.model()
    head_files.save_heads(smallest.heads("judge", lm), tmp_path / "judge")
    out = _run(heads=tmp_path / "judge")
    assert out.tokens == _run(heads=smallest.heads("judge", lm)).tokens
    fresh = judge.init(judge.Shape(), lm.config, jax.random.key(0), lm.params)
    assert not judge.scores(fresh, np.ones((2, WIDTH), np.float32)).any(), "undecided at first"


def test_heads_that_do_not_fit_are_refused():
    with pytest.raises(InputError, match="needs trained heads of kind 'judge'"):
        _run()
    with pytest.raises(InputError, match="does not use heads of kind 'medusa'"):
        _run(heads=smallest.heads("medusa", toys.model()))
    with pytest.raises(CorruptCheckpointError, match=r"kernel.*\(32, 1\).*\(5, 1\)"):
        _run(heads=head(np.zeros(5), 0.0))
    with pytest.raises(InputError, match="threshold=2"):
        _run(threshold=2)
    with pytest.raises(InputError, match="'head' is not known"):
        _run(head="head.safetensors")
