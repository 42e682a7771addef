"""`jaxdecode distill`: the model's own answers, whoever makes them, split by prompt."""

import json
from pathlib import Path

import numpy as np
import pytest

from jaxdecode import api, many
from jaxdecode.cli import bars, output
from jaxdecode.training.data import Data, open_data
from tests.training import runs

PROMPTS = [
    *({"tokens": [3 + i, 1, 4], "category": "count"} for i in range(12)),
    {"messages": [{"role": "user", "content": "ab"}], "seed": 5},
    {"question_id": 81, "category": "writing", "turns": ["abab", "and now?"]},
    {"tokens": [3, 1, 4], "category": "count"},
]


@pytest.fixture
def prompts(jsonl):
    return jsonl(*PROMPTS)


@pytest.fixture
def distill(cli, checkpoint, prompts):
    def run(out, *args):
        options = ("--model", checkpoint, "--prompts", prompts, "--out", out, "--held-out", 0.3)
        return cli("distill", *options, "--max-new-tokens", 5, "--batch-size", 2, *args)

    return run


def read(path):
    return [json.loads(line) for line in Path(path).read_text().splitlines()]


def both(folder):
    return read(folder / "train.jsonl"), read(folder / "held_out.jsonl")


def asked(rows):
    return {tuple(row["tokens"][: row["prompt_length"]]) for row in rows}


def test_answers_are_the_models_own(distill, checkpoint, tmp_path):
    out = tmp_path / "data"
    done = distill(out)
    assert done.code == 0 and f"complete: {out}/train.jsonl" in done.err
    train, held_out = both(out)
    rows = sorted(train + held_out, key=lambda row: row["index"])
    assert [row["index"] for row in rows] == list(range(15)) and train and held_out
    lm = api.load(checkpoint, progress=False)
    for row in (rows[0], rows[12], rows[13]):
        prompt = row["tokens"][: row["prompt_length"]]
        answer = api.generate(lm, prompt, max_new_tokens=5).tokens[0]
        assert row["tokens"] == prompt + answer
    assert rows[12]["seed"] == 5 and rows[12]["category"] == "all"
    assert rows[13]["category"] == "mt_bench"
    loader = open_data(
        Data(train=str(out / "train.jsonl"), held_out=str(out / "held_out.jsonl"), max_length=16),
        tokenizer=None,
        batch_size=2,
        seed=0,
        vocab_size=96,
    )
    assert loader.counts.num_texts == len(train) and loader.counts.num_shared == 0
    assert loader.counts.num_counted == sum(len(r["tokens"]) - r["prompt_length"] for r in train)


def test_the_split_is_stated_by_category_and_goes_by_the_prompt(distill, tmp_path, jsonl):
    out = tmp_path / "data"
    table = distill(out).out.splitlines()
    assert table[0].split() == ["CATEGORY", "TRAIN", "HELD", "OUT"]
    stated = json.loads((out / "split.json").read_text())["categories"]
    assert table[1].split() == ["count", *map(str, stated["count"].values())]
    train, held_out = both(out)
    prompts = [
        {tuple(r["tokens"][: r["prompt_length"]]) for r in rows} for rows in (train, held_out)
    ]
    assert not prompts[0] & prompts[1]
    assert sum(row["category"] == "count" for row in held_out) == stated["count"]["held_out"]
    # The same prompts among others, in another order: on the same sides.
    jsonl(*reversed(PROMPTS), {"tokens": [9]})
    distill(tmp_path / "more")
    again = both(tmp_path / "more")
    for side, rows in zip(prompts, again, strict=True):
        assert side <= asked(rows)


def test_processes_and_restarts_make_the_same_files(distill, tmp_path, monkeypatch):
    whole, out, calls = tmp_path / "whole", tmp_path / "out", []
    law = ("--temperature", 1, "--n", 2, "--top-p", 0.9)
    distill(whole, *law)
    first = distill(out, *law, "--processes", 2, "--process-id", 1)
    assert first.code == 0 and "parts are not here yet" in first.err
    others = int(first.err.split(" prompts and ")[0].split()[-1])
    real = many.decode

    def stops_at_third(*args, **options):
        for result in real(*args, **options):
            calls.append(1)
            if len(calls) == 3:
                raise KeyboardInterrupt
            yield result

    with monkeypatch.context() as patch:
        patch.setattr(many, "decode", stops_at_third)
        assert distill(out, *law).code == 130
    assert not (out / "train.jsonl").exists()
    told = json.loads(distill(out, *law, "--json").out)
    # Of those that are not the other process's, two were kept when it was stopped.
    assert told["new_prompts"] == 15 - others - 2 and told["train"] == f"{out}/train.jsonl"
    for name in ("train.jsonl", "held_out.jsonl", "split.json"):
        assert (out / name).read_bytes() == (whole / name).read_bytes()
    assert {row["sample"] for row in both(out)[0]} == {0, 1}


def test_a_complete_folder_loads_nothing(distill, tmp_path, monkeypatch):
    out = tmp_path / "data"
    distill(out)
    (out / "split.json").unlink()  # as if it had been killed while it split
    (out / "train.jsonl").unlink()
    monkeypatch.setattr(api, "load", None)
    again = distill(out)
    assert again.code == 0 and "0 prompts and 0 tokens" in again.err and both(out)[0]


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (("--held-out", 1), "--held-out=1.0 is not valid"),
        (("--n", 2), "raise --temperature"),
        (("--n", 0), "--n=0 is out of range"),
        (("--max-new-tokens", 0), "max_new_tokens=0 is out of range"),
        (("--prompts", "-"), "cannot be resumed"),
        (("--prompts", "/nowhere"), "--prompts /nowhere: cannot be read"),
    ],
)
def test_what_cannot_run_is_refused_before_loading(distill, tmp_path, monkeypatch, args, message):
    monkeypatch.setattr(api, "load", None)
    done = distill(tmp_path / "data", *args)
    assert done.code == 2 and message in done.err and not (tmp_path / "data").exists()


def test_other_settings_need_another_folder(distill, tmp_path):
    distill(tmp_path / "data")
    for args in (("--held-out", 0.5), ("--temperature", 1), ("--seed", 2)):
        refused = distill(tmp_path / "data", *args)
        assert refused.code == 2 and "was begun differently" in refused.err


def test_nothing_held_out_is_said(distill, tmp_path):
    assert "no prompt" not in distill(tmp_path / "none", "--held-out", 0).err
    assert both(tmp_path / "none")[1] == []
    assert "no prompt fell to held-out" in distill(tmp_path / "few", "--held-out", 1e-6).err


def test_the_time_left_is_honest(monkeypatch):
    """Rows of different length, as places in the batch get free: right once a tenth is there."""
    now, made = [0.0], []

    class Bar(bars.Bar):
        def __init__(self, *columns, **options):
            super().__init__(*columns, **options)
            self.start = self.stop = lambda: None
            made.append(self)

    monkeypatch.setattr(bars, "Bar", Bar)
    monkeypatch.setattr(output.time, "monotonic", lambda: now[0])
    rng = np.random.default_rng(0)
    seconds, total = rng.uniform(2, 16, 400), 400
    free = [30.0] * 8  # the first step compiles
    ends = []
    for took in seconds:
        at = int(np.argmin(free))
        free[at] += took
        ends.append(free[at])
    with output.rows_bar("prompts", total, True) as tick:
        for number, end in enumerate(sorted(ends), 1):
            now[0] = end
            tick(10)
            told = made[0].tasks[0].fields["left"]
            if number < 4:
                assert told == "-:--:--"
            elif number >= total / 10:
                hours, minutes, left = map(int, told.split(":"))
                left += 60 * (minutes + 60 * hours)
                assert left == pytest.approx(max(ends) - end, rel=0.15, abs=12)
    assert made[0].finished


def test_a_model_that_fills_slots_answers_block_by_block(cli, jsonl, tmp_path):
    folder, prompts = runs.denoiser(tmp_path / "model"), jsonl(*PROMPTS[:3])
    base = ("distill", "--model", folder, "--prompts", prompts, "--held-out", 0)
    asked = ("--max-new-tokens", 6, "--block-length", 3)
    assert cli(*base, *asked, "--out", tmp_path / "data").code == 0
    lm = api.load(folder, progress=False)
    for row in read(tmp_path / "data" / "train.jsonl"):
        prompt = row["tokens"][: row["prompt_length"]]
        given = {"method": "llada", "block_length": 3, "max_new_tokens": 6}
        assert row["tokens"] == prompt + api.generate(lm, prompt, **given).tokens[0]


def test_blocks_are_for_models_that_fill_slots(distill, tmp_path):
    done = distill(tmp_path / "data", "--block-length", 3)
    assert done.code == 2 and "is for models that fill slots" in done.err
