"""jaxdecode generate: draft models, options of methods, several samples."""

import pytest


@pytest.fixture
def generate(cli, checkpoint):
    def run(*args):
        return cli("generate", "--model", checkpoint, "--max-new-tokens", 6, *args)

    return run


def test_a_draft_model_changes_the_steps_and_no_token(generate, checkpoint, jsonl):
    prompts = jsonl({"prompt": "ab"}, {"tokens": [1, 2, 3]})
    plain = generate("--prompts", prompts, "--json")
    asked = ("--method", "draft_model", "--draft", checkpoint)
    drafted = generate("--prompts", prompts, "--json", *asked, "--num-draft", 2)
    assert drafted.code == 0, drafted.err
    assert [r["tokens"] for r in drafted.records] == [r["tokens"] for r in plain.records]
    assert [r["stats"]["nfe"] for r in drafted.records] == [2, 2]
    never = generate("--prompts", prompts, "--json", *asked, "--set", "min_prob=1.0")
    assert [r["stats"]["nfe"] for r in never.records] == [6, 6]


def test_samples_are_numbered_prompt_by_prompt(generate, jsonl):
    prompts = jsonl({"tokens": [1]}, {"tokens": [2]})
    law = ("--temperature", 1.0, "--json")
    one = generate("--prompts", prompts, *law).records
    many = generate("--prompts", prompts, *law, "-n", 3, "--batch-size", 2).records
    assert "sample" not in one[0]
    assert [record["sample"] for record in many] == [0, 1, 2, 0, 1, 2]
    assert [many[0]["tokens"], many[3]["tokens"]] == [record["tokens"] for record in one]
    assert many[0]["tokens"] != many[1]["tokens"]


def test_a_method_of_several_texts_gives_them_all(generate):
    asked = ("--prompt", "ab", "--method", "superposed", "--json")
    (record,) = generate(*asked).records
    assert len(record["alternatives"]) > 1
    assert record["alternatives"][0] == {key: record[key] for key in ("text", "tokens")}
    (record,) = generate(*asked, "--logprobs").records
    assert record["alternatives"][0]["logprobs"] == record["logprobs"]


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (("--method", "draft_model"), "--draft NAME_OR_PATH"),
        (("--draft", "x"), "does not use a draft model"),
        (("--num-draft", "3"), "option 'num_draft' is not known"),
        (("--method", "prompt_lookup", "--num-draft", "0"), "num_draft=0"),
        (("--method", "prompt_lookup", "--set", "max_ngram"), "NAME=VALUE"),
        (("--method", "prompt_lookup", "--set", "max_ngram=two"), "max_ngram='two'"),
        (("--set", "temperature=1"), "use --temperature"),
        (("--set", "a=1", "--set", "a=2"), "given twice"),
        (("--n", "0"), "--n 0"),
        (("--n", "2", "--stream"), "one sample"),
    ],
)
def test_bad_options_are_named_before_a_model_is_loaded(generate, monkeypatch, args, message):
    from jaxdecode import api

    monkeypatch.setattr(api, "load", lambda *_, **__: pytest.fail("a model was loaded"))
    done = generate("--prompt", "a", *args)
    assert done.code == 2 and message in done.err
