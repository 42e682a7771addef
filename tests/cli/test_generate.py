"""jaxdecode generate: every flag does something one can see."""

import io
import sys

import pytest

from jaxdecode import api
from jaxdecode.errors import CheckpointError

MORE = ("--max-new-tokens", 6)


@pytest.fixture
def generate(cli, checkpoint):
    def run(*args):
        options = () if "--max-new-tokens" in args else MORE
        return cli("generate", "--model", checkpoint, *args, *options)

    return run


def test_json_lines_have_the_documented_fields_in_order(generate, jsonl):
    prompts = jsonl({"prompt": "ab"}, {"tokens": [1, 2, 3]}, {"prompt": "xyz!"})
    done = generate("--prompts", prompts, "--json")
    assert done.code == 0 and done.err == ""
    assert len(done.records) == 3
    for record in done.records:
        assert list(record) == ["tokens", "text", "finish_reason", "stats"]
        assert len(record["tokens"]) == 6 and isinstance(record["text"], str)
        assert record["finish_reason"] == "length"
        assert record["stats"]["num_tokens"] == 6 and record["stats"]["seconds"] > 0
    alone = generate("--prompts", jsonl({"tokens": [1, 2, 3]}), "--json")
    assert alone.records[0]["tokens"] == done.records[1]["tokens"]


def test_batches_keep_order_and_results(generate, jsonl, monkeypatch):
    prompts = jsonl(*({"tokens": [5] * n} for n in (7, 1, 4, 2, 9)))
    sizes = []
    real = api.generate
    monkeypatch.setattr(
        api, "generate", lambda lm, p, **o: sizes.append(len(p)) or real(lm, p, **o)
    )
    at_once = generate("--prompts", prompts, "--json")
    in_twos = generate("--prompts", prompts, "--json", "--batch-size", 2)
    assert sizes == [5, 2, 2, 1]
    assert [r["tokens"] for r in at_once.records] == [r["tokens"] for r in in_twos.records]


def test_samples_are_numbered_and_in_order(generate, jsonl):
    prompts = jsonl({"tokens": [1, 2, 3], "seed": 4}, {"tokens": [5]})
    law = ("--temperature", 1, "--json")
    done = generate("--prompts", prompts, "--n", 2, *law)
    assert [record["sample"] for record in done.records] == [0, 1, 0, 1]
    rows = [record["tokens"] for record in done.records]
    assert rows[0] != rows[1] and rows[2] != rows[3]
    alone = generate("--prompts", prompts, *law)
    assert rows[::2] == [record["tokens"] for record in alone.records]
    assert not any("sample" in record for record in alone.records)
    singly = generate("--prompts", prompts, "--n", 2, "--batch-size", 1, *law)
    assert [record["tokens"] for record in singly.records] == rows


def test_earlier_batches_are_printed_before_a_later_one_fails(generate, jsonl, monkeypatch):
    real, calls = api.generate, []

    def fails_second(lm, prompts, **options):
        calls.append(prompts)
        if len(calls) == 2:
            raise MemoryError("no memory left")
        return real(lm, prompts, **options)

    monkeypatch.setattr(api, "generate", fails_second)
    done = generate("--prompts", jsonl(*[{"tokens": [1]}] * 3), "--json", "--batch-size", 1)
    assert done.code == 1 and len(done.records) == 1
    assert done.err == "error: MemoryError: no memory left (--debug shows where)\n"


def test_logprobs(generate, jsonl):
    done = generate("--prompts", jsonl({"tokens": [1]}), "--json", "--logprobs")
    logprobs = done.records[0]["logprobs"]
    assert len(logprobs) == 6 and all(value <= 0 for value in logprobs)
    refused = generate("--prompt", "a", "--logprobs")
    assert refused.code == 2 and "--json" in refused.err


def test_text_on_stdout_and_statistics_on_stderr(generate, jsonl):
    single = generate("--prompt", "ab")
    assert single.code == 0 and len(single.out) == 7
    assert "loaded" in single.err and "6 tokens in" in single.err
    record = generate("--prompt", "ab", "--json").records[0]
    assert single.out == record["text"] + "\n"
    several = generate("--prompts", jsonl({"prompt": "ab"}, {"prompt": "c"}))
    assert several.out.startswith(f"--- 1 ---\n{record['text']}\n--- 2 ---\n")


def test_message_goes_through_the_chat_template(generate, jsonl):
    message = generate("--message", "hi", "--json").records
    chat = [{"role": "user", "content": "hi"}]
    from_file = generate("--prompts", jsonl({"messages": chat}), "--json").records
    raw = generate("--prompt", "<u>hi", "--json").records
    assert message[0]["tokens"] == from_file[0]["tokens"] == raw[0]["tokens"]


def test_prompts_from_stdin(generate, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.StringIO('{"tokens": [1, 2]}\n\n{"tokens": [3]}'))
    assert len(generate("--prompts", "-", "--json").records) == 2
    monkeypatch.setattr(sys, "stdin", io.StringIO('{"tokens": [1]}\nnope\n'))
    assert "<stdin>:2: not JSON" in generate("--prompts", "-").err


def test_the_words_none_and_empty_are_prompts_too(generate):
    assert generate("--prompt", "None", "--json").code == 0
    empty = generate("--prompt", "")
    assert empty.code == 2 and "the prompt is empty" in empty.err


def test_seed_and_temperature(generate, jsonl):
    def tokens(*args):
        return [r["tokens"] for r in generate(*args, "--json", "--temperature", 2).records]

    zero, again, one = (tokens("--prompt", "ab", "--seed", seed) for seed in (0, 0, 1))
    assert zero == again != one
    assert zero != [r["tokens"] for r in generate("--prompt", "ab", "--json").records]
    lines = jsonl({"prompt": "ab", "seed": 1}, {"prompt": "ab"})
    assert tokens("--prompts", lines, "--seed", 0) == [*one, *zero]


def test_each_filter_of_the_warp_reduces_sampling_to_greedy(generate):
    greedy = generate("--prompt", "ab", "--json").records[0]["tokens"]
    for narrow in (("--top-k", 1), ("--top-p", 1e-6), ("--min-p", 1.0)):
        drawn = generate("--prompt", "ab", "--json", "--temperature", 2, *narrow).records
        assert drawn[0]["tokens"] == greedy, narrow


def test_repetition_penalty(generate):
    done = generate("--prompt", "ab", "--json", "--repetition-penalty", 100.0)
    tokens = done.records[0]["tokens"]
    assert len(set(tokens)) == len(tokens)


def test_stop_is_repeatable_and_cuts_before_the_first(generate):
    text = generate("--prompt", "ab", "--json").records[0]["text"]
    first, later = text[2], text[4]
    done = generate("--prompt", "ab", "--json", "--stop", later, "--stop", first).records[0]
    assert done["finish_reason"] == "stop_string"
    assert done["text"] == text[: text.index(first)]


def test_ignore_eos(cli, checkpoint, tmp_path):
    import json
    import shutil

    tokens = cli("generate", "--model", checkpoint, "--prompt", "ab", "--json", *MORE)
    third = tokens.records[0]["tokens"][2]
    folder = tmp_path / "ends"
    shutil.copytree(checkpoint, folder)
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": third}))
    run = ("generate", "--model", folder, "--prompt", "ab", "--json", *MORE)
    stopped = cli(*run).records[0]
    assert stopped["finish_reason"] == "stop" and stopped["tokens"][-1] == third
    assert len(cli(*run, "--ignore-eos").records[0]["tokens"]) == 6


def test_dtype(generate):
    float32, bfloat16 = (
        generate("--prompt", "ab", "--json", "--logprobs", "--dtype", dtype).records[0]["logprobs"]
        for dtype in ("float32", "bfloat16")
    )
    assert float32 != bfloat16
    assert float32[0] == pytest.approx(bfloat16[0], abs=0.1)
    assert generate("--prompt", "ab", "--dtype", "int3").code == 2


def test_stream_prints_pieces_that_join_to_the_text(generate, monkeypatch):
    whole = generate("--prompt", "ab").out
    writes = []
    monkeypatch.setattr(sys.stdout, "write", lambda text: writes.append(text))
    done = generate("--prompt", "ab", "--stream")
    assert "".join(writes) == whole and len(writes) > 3
    assert done.code == 0 and "the first after" in done.err


def test_stream_refuses_what_it_cannot_do(generate, jsonl, tmp_path):
    two = jsonl({"prompt": "a"}, {"prompt": "b"})
    for args in (("--prompts", two), ("--prompt", "a", "--json"), ("--prompt", "a", "--out", "x")):
        done = generate("--stream", *args)
        assert done.code == 2 and "--stream" in done.err


def test_progress_bar_only_when_asked_and_only_on_stderr(generate):
    quiet = generate("--prompt", "ab", "--json")
    shown = generate("--prompt", "ab", "--json", "--progress")
    assert quiet.err == "" and "6 tokens" in shown.err
    assert len(shown.records) == 1


def test_out_is_written_whole_or_not_at_all(generate, tmp_path, monkeypatch):
    out = tmp_path / "out.jsonl"
    done = generate("--prompt", "ab", "--json", "--out", out)
    assert done.code == 0 and done.out == "" and out.read_text().count("\n") == 1
    before = out.read_text()
    refused = generate("--prompt", "ab", "--json", "--out", out)
    assert refused.code == 1 and "--overwrite" in refused.err and out.read_text() == before
    changed = generate("--prompt", "cd", "--json", "--out", out, "--overwrite")
    assert changed.code == 0 and out.read_text() != before

    def interrupt(*args, **options):
        raise KeyboardInterrupt

    before = out.read_text()
    monkeypatch.setattr(api, "generate", interrupt)
    stopped = generate("--prompt", "ab", "--out", out, "--overwrite")
    assert stopped.code == 130 and stopped.err.endswith("interrupted\n")
    assert out.read_text() == before
    assert [path.name for path in tmp_path.iterdir()] == ["out.jsonl"]


@pytest.mark.parametrize("name", ["missing/out.txt", "."])
def test_out_that_cannot_be_written_is_found_before_loading(generate, tmp_path, name, no_load):
    done = generate("--prompt", "ab", "--out", tmp_path / name)
    assert done.code == 2 and "--out" in done.err


def test_checkpoint_without_tokenizer(cli, jsonl):
    from tests.cli.conftest import TINY

    tokens = cli("generate", "--model", TINY, "--prompts", jsonl({"tokens": [1, 2]}), *MORE)
    assert tokens.code == 0 and len(tokens.out.split()) == 6
    text = cli("generate", "--model", TINY, "--prompt", "hi")
    assert text.code == 2 and "no tokenizer" in text.err


@pytest.fixture
def no_load(monkeypatch):
    """Fails the test if a model is loaded."""

    def load(*args, **options):
        raise AssertionError("the model was loaded")

    monkeypatch.setattr(api, "load", load)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "not JSON"),
        ("[1]", "got a JSON array"),
        ("{}", "got the keys []"),
        ({"prompt": "a", "tokens": [1]}, "exactly one of"),
        ({"prompt": "a", "temperature": 1}, "'temperature'"),
        ({"prompt": 3}, '"prompt" must be text, got a JSON number'),
        ({"prompt": ""}, '"prompt" is empty'),
        ({"tokens": "12"}, '"tokens" must be a list, got a JSON string'),
        ({"messages": []}, '"messages" is empty'),
        ({"prompt": "a", "seed": True}, '"seed" is True'),
        ({"prompt": "a", "seed": 2**63}, '"seed"'),
        ('{"prompt": ' + "9" * 5000 + "}", "not usable JSON"),
        ("[" * 100_000, "JSON"),
    ],
)
def test_bad_line_is_named_before_a_model_is_loaded(generate, jsonl, no_load, line, message):
    path = jsonl({"prompt": "fine"}, "", line)
    done = generate("--prompts", path)
    assert done.code == 2 and done.out == ""
    assert done.err.startswith(f"error: {path}:3: ") and message in done.err
    assert done.err.count("\n") == 1


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ({"tokens": [1, 96]}, "96"),
        ({"tokens": [1, "2"]}, "not an integer"),
        ({"tokens": [1] * 256}, "context"),
        ({"messages": [{"role": "user"}]}, "content"),
    ],
)
def test_prompt_that_does_not_fit_the_model_costs_no_work(generate, jsonl, line, message):
    path = jsonl({"tokens": [1]}, line)
    done = generate("--prompts", path, "--json")
    assert done.code == 2 and done.out == "" and f"{path}:2: " in done.err and message in done.err


def test_unreadable_prompt_files(generate, tmp_path, no_load):
    missing = generate("--prompts", tmp_path / "none.jsonl")
    assert missing.code == 2 and "none.jsonl" in missing.err
    empty = tmp_path / "empty.jsonl"
    empty.write_text("\n\n")
    assert "there are no prompts" in generate("--prompts", empty).err
    binary = tmp_path / "binary.jsonl"
    binary.write_bytes(b"\xff\xfe\x00")
    assert "not UTF-8" in generate("--prompts", binary).err
    marked = tmp_path / "marked.jsonl"
    marked.write_bytes(b"\xef\xbb\xbfnope")
    assert "marked.jsonl:1: not JSON" in generate("--prompts", marked).err


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ((), "got none"),
        (("--prompt", "a", "--message", "b"), "got --prompt and --message"),
        (("--prompt", "a", "--batch-size", "0"), "--batch-size 0"),
        (("--prompt", "a", "--n", "0"), "--n 0"),
        (("--prompt", "a", "--method", "arr"), "Did you mean 'ar' or 'rcr'?"),
        (("--prompt", "a", "--max-new-tokens", "0"), "max_new_tokens=0"),
        (("--prompt", "a", "--temperature", "-1"), "temperature=-1"),
        (("--prompt", "a", "--temperature", "nan"), "temperature=nan"),
        (("--prompt", "a", "--top-p", "0"), "top_p=0"),
        (("--prompt", "a", "--top-p", "1.5"), "top_p=1.5"),
        (("--prompt", "a", "--min-p", "2"), "min_p=2"),
        (("--prompt", "a", "--top-k", "-1"), "top_k=-1"),
        (("--prompt", "a", "--repetition-penalty", "0"), "repetition_penalty=0"),
        (("--prompt", "a", "--seed", str(2**64)), "seed"),
    ],
)
def test_bad_options_are_named_before_a_model_is_loaded(generate, no_load, args, message):
    done = generate(*args)
    assert done.code == 2 and done.out == ""
    assert done.err.startswith("error: ") and message in done.err and done.err.count("\n") == 1


def test_ctrl_c_while_streaming_leaves_the_line(generate, monkeypatch):
    def pieces(*args, **options):
        yield "half a sen"
        raise KeyboardInterrupt

    monkeypatch.setattr(api, "stream", pieces)
    done = generate("--prompt", "ab", "--stream")
    assert done.code == 130 and done.out == "half a sen\n" and done.err.endswith("\ninterrupted\n")


@pytest.mark.parametrize("accepted", [False, True])
def test_terms_and_dtype_reach_the_loader(cli, monkeypatch, accepted):
    seen = []

    def load(model, **options):
        seen.append((model, options))
        raise CheckpointError("not today")

    monkeypatch.setattr(api, "load", load)
    flags = ("--accept-terms",) if accepted else ()
    flags += ("--mesh", "model=2", "--attention", "xla")
    assert cli("generate", "--model", "m", "--prompt", "a", *flags).code == 1
    asked = {"dtype": None, "accept_terms": accepted, "mesh": "model=2", "attention": "xla"}
    assert seen == [("m", asked | {"progress": False})]
