"""The steps of a trace add up to the tokens of the generation, whatever the method."""

import dataclasses

import pytest

import jaxdecode as jd
from jaxdecode.core.registry import METHODS
from jaxdecode.errors import InputError, TraceError
from jaxdecode.trace.steps import TreeStep, replay
from tests import toys
from tests.trace import made

PROMPTS = [[3, 1, 4, 1, 5], [9], [2, 6, 5, 3, 5, 8, 9, 7, 9]]
# They write several texts, insert, or call the loop by pieces: there is no trace of them.
ELSEWHERE = ("superposed", "ilm", "specreason")
# A line per way of drafting, checking and filling; the others run with the slow tests.
FEW = ("ar", "prompt_lookup", "auto", "draft_model", "spectr", "fast_dllm", "rcr", "assd")
NAMES = [
    name if name in FEW else pytest.param(name, marks=pytest.mark.slow)
    for name in (*toys.LOOP, *toys.FILL)
    if name not in ELSEWHERE
]


def generate(name, prompts=PROMPTS, **asked):
    lm = toys.filler(name) if METHODS[name].fills else toys.model()
    given = {"max_new_tokens": 17, "batch_size": 2} | toys.fitting(name)
    return jd.generate(lm, prompts, method=name, **given | toys.helpers(name, lm) | asked)


@pytest.mark.parametrize("law", [{}, {"temperature": 0.9, "seed": 4}])
@pytest.mark.parametrize("name", NAMES)
def test_steps_rebuild_the_text_and_tracing_changes_nothing(name, law):
    out, plain = generate(name, trace=True, **law), generate(name, **law)
    assert plain.trace is None and out.tokens == plain.tokens and out.steps == plain.steps
    for i, row in enumerate(out.trace.rows):
        assert replay(row) == out.tokens[i]
        assert len(row.steps) == out.stats[i].nfe == plain.stats[i].nfe
        assert (row.prompt, row.seed) == (PROMPTS[i], law.get("seed", 0))
        assert decided(row) == dict(zip(range(17), out.steps[i], strict=True))


def decided(row):
    """Step at which every slot of the final text was last decided."""
    found, size = {}, 0
    for number, step in enumerate(row.steps):
        slots = range(size, size + len(step.new)) if isinstance(step, TreeStep) else step.filled
        found |= dict.fromkeys(slots, number)
        size += len(slots)
    return found


def test_what_was_drafted_and_accepted_is_there():
    (row,) = generate("prompt_lookup", [[5, 6] * 9], trace=True).trace.rows
    out = generate("prompt_lookup", [[5, 6] * 9])
    drafts = sum(len(step.tokens) - 1 for step in row.steps)
    assert drafts + len(row.steps) == out.stats[0].tokens_forwarded
    # The last step ends within its drafts, without a token of the target's own.
    assert sum(step.num_drafted for step in row.steps) == 17 - len(row.steps) + 1 > 1


def test_probes_are_no_drafts():
    (row,) = generate("lookahead", [[3, 1, 4]], trace=True).trace.rows
    forwarded = generate("lookahead", [[3, 1, 4]]).stats[0].tokens_forwarded
    assert sum(len(step.tokens) for step in row.steps) < forwarded


def test_reopened_slots_are_filled_again():
    rows = generate("rcr", trace=True).trace.rows
    reopened = [slot for row in rows for step in row.steps for slot in step.reopened]
    assert reopened, "else this says nothing about reopening"


@pytest.mark.parametrize("name", ["prompt_lookup", "fast_dllm"])
def test_a_text_that_ends_early_has_no_token_after_its_end(name):
    stop = generate(name).tokens[0][6]
    out = generate(name, stop_tokens=[stop], trace=True)
    assert out.finish_reasons[0] == "stop"
    assert [replay(row) for row in out.trace.rows] == out.tokens


def test_samples_have_rows_of_their_own():
    out = generate("ar", n=2, temperature=1.0, trace=True, seed=[1, 2, 3])
    assert [(row.seed, row.sample) for row in out.trace.rows] == [
        (seed, sample) for seed in (1, 2, 3) for sample in (0, 1)
    ]
    out.trace.check()


@pytest.mark.parametrize("name", ELSEWHERE)
def test_methods_that_write_elsewhere_are_refused(name):
    with pytest.raises(InputError, match=f"'{name}' does not write token by token"):
        generate(name, trace=True)


def test_without_a_trace_there_is_nothing_to_save(tmp_path):
    with pytest.raises(InputError, match="has no trace"):
        generate("ar").save_trace(tmp_path / "out.jsonl")
    with pytest.raises(InputError, match="has no trace"):
        generate("ar").show()


TREE = [
    ("tokens", [3, 7, 8, 9], "begins at another token"),
    ("parent", [-1, 0, 0, 4], "does not come before"),
    ("path", [0, 2], "did not choose"),
    ("path", [2, 1], "did not choose"),
    ("path", [0, 9], "not one of the tree"),
    ("chosen", [8, 5], "did not choose"),
    ("logprobs", [-1.0] * 3, "3 new tokens of 2"),
]
WINDOW = [
    ("filled", [0, 1], "not guessed"),
    ("tokens", [5], "2 filled slots with 1"),
    ("reopened", [2], "slot 2 is reopened"),
    ("reopened", [1, 1], "not in order"),
    ("filled", [2, 1], "not in order"),
    ("final", 2, "2 slots are final"),
]


@pytest.mark.parametrize(
    ("whole", "field", "value", "message"),
    [
        *((made.tree(), *change) for change in TREE),
        *((made.window(), *change) for change in WINDOW),
    ],
)
def test_a_step_that_cannot_be_is_found(whole, field, value, message):
    whole.check()
    (row,) = whole.rows
    row.steps[0] = dataclasses.replace(row.steps[0], **{field: value})
    with pytest.raises(TraceError, match=f"row 0, step 0: .*{message}"):
        whole.check()


@pytest.mark.parametrize("whole", [made.tree(), made.window()])
def test_a_step_that_is_missing_is_found(whole):
    for number in range(len(whole.rows[0].steps)):
        left = [step for i, step in enumerate(whole.rows[0].steps) if i != number]
        row = dataclasses.replace(whole.rows[0], steps=left)
        with pytest.raises(TraceError):
            dataclasses.replace(whole, rows=[row]).check()
