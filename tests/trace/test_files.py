"""Trace files: what is written is read, and what was damaged is refused by name."""

import json

import pytest

from jaxdecode.errors import DestinationExistsError, InputError, TraceError
from jaxdecode.trace import files
from jaxdecode.trace.steps import joined
from tests.trace import made


@pytest.mark.parametrize("whole", [made.tree(), made.window(), made.hostile()])
def test_a_file_gives_the_trace_that_was_written(whole, tmp_path):
    files.save(whole, tmp_path / "a.jsonl")
    assert files.load(tmp_path / "a.jsonl") == whole


def test_rows_of_several_traces_share_a_file(tmp_path):
    both = joined([made.tree(), made.tree()])
    files.save(both, tmp_path / "a.jsonl")
    assert len(files.load(tmp_path / "a.jsonl").rows) == 2


def test_nothing_is_overwritten_unasked(tmp_path):
    path = tmp_path / "a.jsonl"
    files.save(made.tree(), path)
    with pytest.raises(DestinationExistsError, match="a.jsonl exists"):
        files.save(made.window(), path)
    files.save(made.window(), path, overwrite=True)
    assert files.load(path) == made.window()
    with pytest.raises(InputError, match="cannot be written"):
        files.save(made.tree(), tmp_path / "none" / "a.jsonl")


def change(number, **fields):
    def apply(lines):
        lines[number] |= fields

    return apply


def drop(number):
    return lambda lines: lines.pop(number)


def set_row(**fields):
    def apply(lines):
        lines[0]["rows"][0] |= fields

    return apply


def drop_row_field(lines):
    del lines[0]["rows"][0]["tokens"]


DAMAGE = [
    (change(0, format="other"), "no trace of jaxdecode"),
    (change(0, version=2), "version '2', but this program reads version 1"),
    (change(0, version=True), "version 'True'"),
    (change(0, kind="graph"), "kind 'graph' is not known"),
    (change(0, pieces={"x": "a"}), "'x' is no token id"),
    (change(0, pieces={"1": [256]}), "neither text nor bytes"),
    (change(0, pieces={"1": 10**12}), "neither text nor bytes"),
    (change(0, names={"1": 2}), "names has what is no text"),
    (change(0, names={"1": "\ud800"}), "names has what is no text"),
    (change(0, model="\ud800"), "model is not text"),
    (change(0, rows=[]), "there are no rows"),
    (change(0, rows=[1]), "row 0: not an object"),
    (change(0, num_steps="2"), "num_steps has '2'"),
    (change(0, model=None), "model is not text"),
    (set_row(prompt=[]), "the prompt is empty"),
    (set_row(tokens=[7, 5, 1]), "other tokens than the trace says"),
    (drop_row_field, "tokens is not a list"),
    (drop(-1), "1 steps, but the header says 2; the file was cut off"),
    (drop(1), "row 0, step 1 follows row 0, step -1"),
    (change(1, step=1), "row 0, step 1 follows"),
    (change(1, row=1), "row has '1'"),
    (change(1, extra=1), "'extra' missing, or not known"),
    (change(1, **{"\x1b[2J": 1}), r"'\x1b[2J' missing, or not known"),
    (change(1, tokens=[2, True, 8, 9]), "tokens has 'True'"),
    (change(1, tokens=[2, 2**40, 8, 9]), "tokens has '1099511627776'"),
    (change(1, tokens=[2, 7.0, 8, 9]), "tokens has '7.0'"),
    (change(1, logprobs=["a", 1]), "logprobs has 'a'"),
    (change(1, logprobs=[float("nan"), 1]), "logprobs has 'nan'"),
    (change(1, parent=[-2, 0, 0, 1]), "parent has '-2'"),
    (change(1, path=[0, 99]), "not one of the tree"),
    (change(2, chosen=[9]), "other tokens than the trace says"),
]


@pytest.mark.parametrize(("damage", "message"), DAMAGE)
def test_damage_is_named(damage, message, tmp_path):
    path = tmp_path / "a.jsonl"
    files.save(made.tree(), path)
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    damage(lines)
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    with pytest.raises(TraceError) as caught:
        files.load(path)
    assert message in str(caught.value) and str(path) in str(caught.value)


@pytest.mark.parametrize(
    ("guesses", "message"),
    [
        ([[0, [4, 5, 6]]], "what is not [slot, tokens, digits]"),
        ([[-1, [4, 5, 6], "279"]], "slot has '-1'"),
        ([[2**30, [4, 5, 6], "279"]], "slot has '1073741824'"),
        ([[0, [4, 5, 6], "27"]], "damaged guesses"),
        ([[0, [4, 5, 6], "27x"]], "no digits"),
        ([[0, [4, 5], "27"]], "slot 2 filled with what was not guessed"),
    ],
)
def test_damaged_guesses_are_named(guesses, message, tmp_path):
    path = tmp_path / "a.jsonl"
    files.save(made.window(), path)
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    lines[1]["guesses"] = guesses
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    with pytest.raises(TraceError) as caught:
        files.load(path)
    assert message in str(caught.value)


def test_a_file_cut_anywhere_is_refused(tmp_path):
    path = tmp_path / "a.jsonl"
    files.save(made.window(), path)
    content = path.read_bytes()
    for size in range(0, len(content) - 1, 7):
        path.write_bytes(content[:size])
        with pytest.raises(InputError):
            files.load(path)


def test_a_file_that_is_not_there_is_named(tmp_path):
    with pytest.raises(InputError, match="none.jsonl: cannot be read"):
        files.load(tmp_path / "none.jsonl")
