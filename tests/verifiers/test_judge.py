"""Judge decoding: against plain Python, its strict setting, and heads that do not fit."""

import numpy as np
import pytest
from safetensors.numpy import save_file

import jaxdecode as jd
from jaxdecode.errors import CorruptCheckpointError, InputError
from tests import toys
from tests.verifiers import plain

PROMPTS = [[3, 1, 4, 1, 5, 3, 1, 4, 1], [9, 9, 9, 9], [2, 6, 5, 3, 5, 2, 6, 5]]
WIDTH = 32


@pytest.fixture
def head(tmp_path):
    def write(weight, bias):
        path = tmp_path / "head.safetensors"
        save_file({"weight": np.float32(weight), "bias": np.asarray(bias, np.float32)}, path)
        return str(path)

    return write


def _run(**asked):
    asked = {"max_new_tokens": 20, "num_draft": 4} | asked
    return jd.generate(toys.model(), PROMPTS, method="judge_decoding", **asked)


@pytest.mark.parametrize("law", [{}, {"temperature": 0.9, "seed": 4}])
def test_the_strict_setting_is_plain_decoding(law, head):
    plain_out = jd.generate(toys.model(), PROMPTS, method="ar", max_new_tokens=20, **law)
    assert _run(threshold=1.0, **law).tokens == plain_out.tokens
    nothing = head(np.zeros(WIDTH), -9.0)
    assert _run(head=nothing, **law).tokens == plain_out.tokens


def test_every_step_is_that_of_plain_python(head):
    rng = np.random.default_rng(0)
    weight, lm = rng.normal(size=WIDTH), toys.model()

    def keeps(row, draft, index, scores):
        del scores
        hidden = toys.full_logits(lm, row + draft, taps=("final",))[1]["final"]
        return hidden[len(row) + index] @ weight + 0.1 > 0

    out = _run(head=head(weight, 0.1))
    accepted = 0
    for prompt, tokens, stats in zip(PROMPTS, out.tokens, out.stats, strict=True):
        assert (tokens, stats.nfe) == plain.decode(lm, prompt, 20, 4, keeps)
        accepted += 20 - stats.nfe
    assert accepted > 5, "the head lets drafts pass"


def test_a_lower_threshold_takes_fewer_steps_and_stop_tokens_are_not_let_through(head):
    trusting = head(np.zeros(WIDTH), 0.0)
    steps = [sum(stats.nfe for stats in _run(head=trusting, threshold=t).stats) for t in (0.6, 0.4)]
    assert steps[1] < steps[0]
    # The first draft of the first row is 5, what followed 3 1 4 1 before.
    trusted = {"head": trusting, "threshold": 0.4, "max_new_tokens": 1}
    assert _run(**trusted).tokens[0] == [5]
    assert _run(**trusted, stop_tokens=[5]).tokens[0] == _run(threshold=1.0).tokens[0][:1] != [5]


def test_heads_that_do_not_fit_are_refused(head, tmp_path):
    with pytest.raises(InputError, match="pass head=FILE"):
        _run()
    with pytest.raises(InputError, match="nowhere.*not a file"):
        _run(head=str(tmp_path / "nowhere"))
    broken = tmp_path / "broken.safetensors"
    broken.write_bytes(b"not a header")
    with pytest.raises(CorruptCheckpointError, match="broken"):
        _run(head=str(broken))
    save_file({"weight": np.zeros(WIDTH, np.float32)}, broken)
    with pytest.raises(InputError, match="has no bias"):
        _run(head=str(broken))
    with pytest.raises(InputError, match=r"weight \(2, 32\)"):
        _run(head=head(np.zeros((2, WIDTH)), 0.0))
    with pytest.raises(InputError, match="for 5 hidden units.*32"):
        _run(head=head(np.zeros(5), 0.0))
    with pytest.raises(InputError, match="not finite"):
        _run(head=head(np.full(WIDTH, np.nan), 0.0))
    with pytest.raises(InputError, match="threshold=2"):
        _run(threshold=2)
    with pytest.raises(InputError, match="head=7"):
        _run(head=7)
