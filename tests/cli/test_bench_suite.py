"""`bench` with the suites of rounded models and of prompts with slots in them."""

import json

import pytest

from jaxdecode import api
from jaxdecode.cli.bench import Bench
from jaxdecode.evals import dija, lists
from jaxdecode.models.config import Denoiser
from tests import toys


@pytest.fixture
def model(monkeypatch):
    """Makes a random model the one that --model names."""

    def use(lm: api.LanguageModel) -> None:
        monkeypatch.setattr(Bench, "read_config", lambda _: lm.config)
        monkeypatch.setattr(Bench, "load_model", lambda *_: lm)

    return use


def test_a_model_of_few_bits_is_measured_on_lists(cli, model, tmp_path):
    built = toys.config(vocab_size=lists.VOCAB_SIZE)
    mask = Denoiser(mask_token=lists.MASK_TOKEN)
    config = toys.config(vocab_size=lists.VOCAB_SIZE, denoiser=mask)
    model(api.from_params(config, toys.params(built)))
    run = ("bench", "--model", "M", "--suite", "lists:4", "--num-prompts", 3, "--batch-size", 16)
    run = (*run, "--methods", "llada", "--quantize", "w8,w4")
    out = tmp_path / "out.json"
    done = cli(*run, "--json", out)
    lines = done.out.splitlines()
    assert done.code == 0, done.err
    assert lines[0].startswith("| setting | trial | accuracy | divergence | nfe | same tokens |")
    assert [line.split(" | ")[0] for line in lines[2:5]] == ["| float", "| w8", "| w4"]
    assert lines[5] == "" and lines[6].startswith("| product | layer | largest |")
    assert lines[8].startswith("| attn.o | 0 | ") and len(lines) == 8 + 4 * 2
    found = json.loads(out.read_text())
    assert found["size"] == 4 and found["count"] == 3 and len(found["rows"]) == 3
    assert len(found["rows"][0]["differs_by_step"]) == 4


def test_prompts_with_slots_in_them_are_counted(cli, model, jsonl, tmp_path, monkeypatch):
    lm = toys.writing(tmp_path)
    mask = Denoiser(mask_token=lm.config.vocab_size - 1)
    config = toys.config(vocab_size=lm.config.vocab_size, denoiser=mask)
    model(api.from_params(config, lm.params, tokenizer=lm.tokenizer))
    file = jsonl({"prompt": "Name a fruit."}, {"prompt": "Name a tree.", "forbidden": ["oak"]})
    run = ("bench", "--model", "M", "--suite", f"dija:{file}", "--max-new-tokens", 2)
    done = cli(*run, "--methods", "llada:steps=2")
    lines = done.out.splitlines()
    assert done.code == 0, done.err
    assert lines[0].startswith("| condition | prompts | mask tokens | open slots | literal |")
    slots = [line.split(" | ")[1:4] for line in lines[2:]]
    none, all_of_them = ["2", "0", "0"], ["2", "0", "72"]
    assert slots == [none, none, none, ["2", "72", "0"], all_of_them]
    row = {"condition": "quoted", "open_slots": 1}
    monkeypatch.setattr(dija, "measure", lambda *_, **__: [row])
    assert cli(*run, "--json", "-").code == 1


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (("--suite", "lists", "--quantize", "w4"), "the oracle has no weights"),
        (("--suite", "parallelbench", "--quantize", "w4"), "goes with --suite lists"),
        (("--quantize", "w4"), "goes with --suite lists"),
        (("--suite", "dija"), "--suite dija:FILE"),
        (("--suite", "dija:a", "--quantize", "w4"), "no --quantize"),
        (("--suite", "dija:a", "--temperature", "0,1"), "one --temperature"),
        (("--suite", "dija:a", "--methods", "llada,fast_dllm"), "takes one of --methods"),
        (("--suite", "dija:nowhere.jsonl"), "nowhere.jsonl: cannot be read"),
    ],
)
def test_what_a_suite_does_not_take_is_refused(cli, args, message):
    done = cli("bench", "--model", "oracle", *args)
    assert done.code == 2 and message in done.err


def test_settings_and_pictures(cli, model):
    model(toys.denoiser())
    for args, message in (
        (("--quantize", "w1"), "'w1' is no setting"),
        (("--quantize", "w4", "--plots", "p"), "has no pictures"),
    ):
        done = cli("bench", "--model", "M", "--suite", "lists", *args)
        assert done.code == 2 and message in done.err
