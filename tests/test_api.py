"""What users are promised: any batch, any slicing in time, any stop, and errors that help."""

import json
import shutil

import jax
import numpy as np
import pytest

import jaxdecode as jd
from jaxdecode import api, engine
from jaxdecode.convert.pipeline import convert
from jaxdecode.errors import InputError, UnknownNameError
from tests import toys
from tests.golden.corpus import tiny_folder


@pytest.fixture(scope="module")
def lm(tmp_path_factory):
    """A random model with a tokenizer whose tokens are one or two letters."""
    return toys.spelling(tmp_path_factory.mktemp("tokenizer"))


def random_batches(seed, count, vocab, longest):
    rng = np.random.default_rng(seed)
    for _ in range(count):
        rows = rng.integers(1, 9)
        prompts = [rng.integers(0, vocab, rng.integers(1, longest)).tolist() for _ in range(rows)]
        law = [{}, {"temperature": 1.0}, {"temperature": 0.7, "top_p": 0.9, "top_k": 20}]
        stop = rng.integers(0, vocab, 3).tolist()
        yield prompts, law[rng.integers(3)] | {"stop_tokens": stop, "seed": int(rng.integers(99))}


@pytest.mark.parametrize("name", ["llama", "gemma"])
def test_a_row_in_any_batch_is_the_row_alone(name):
    model = toys.model(name)
    different = 0
    for prompts, law in random_batches(0, 12, model.config.vocab_size, 60):
        together = jd.generate(model, prompts, max_new_tokens=20, **law)
        for i, prompt in enumerate(prompts):
            alone = jd.generate(model, [prompt], max_new_tokens=20, **law)
            assert alone.tokens[0] == together.tokens[i]
            assert alone.finish_reasons[0] == together.finish_reasons[i]
            np.testing.assert_allclose(alone.logprobs[0], together.logprobs[i], atol=1e-4)
            different += (
                alone.tokens[0]
                != jd.generate(model, [prompt], max_new_tokens=20, **law | {"seed": 1234}).tokens[0]
            )
    assert different > 0, "seeds must matter somewhere, or the comparison proves nothing"


def test_same_seed_same_text_and_seeds_per_prompt(lm):
    twice = [jd.generate(lm, ["abc"] * 3, temperature=1.0, seed=[1, 1, 2]) for _ in range(2)]
    assert twice[0].tokens == twice[1].tokens
    assert twice[0].tokens[0] == twice[0].tokens[1] != twice[0].tokens[2]


def test_prompts_of_one_batch_have_independent_noise(lm):
    flat = {token: 0.0 for token in range(61)}
    table = {**lm.params, "embed": {"embedding": lm.params["embed"]["embedding"] * 0}}
    blank = api.from_params(lm.config, table)
    out = jd.generate(blank, [[1], [2]], temperature=1.0, logit_bias=flat, max_new_tokens=30)
    assert out.tokens[0] != out.tokens[1]


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_logprobs_equal_a_teacher_forced_pass(lm, temperature):
    out = jd.generate(lm, ["hello", "ab"], temperature=temperature, top_p=0.9, max_new_tokens=40)
    for prompt, tokens, logprobs in zip(["hello", "ab"], out.tokens, out.logprobs, strict=True):
        ids = lm.tokenizer.encode(prompt)
        logits, _ = toys.full_logits(lm, ids + tokens)
        scores = logits[len(ids) - 1 : -1].astype(np.float64)
        law = scores - np.log(np.exp(scores).sum(-1, keepdims=True))
        expected = law[np.arange(len(tokens)), tokens]
        np.testing.assert_allclose(logprobs, expected, atol=1e-4)


def test_nothing_leaks_past_a_stop_string(lm):
    rng = np.random.default_rng(5)
    stopped = 0
    for case in range(60):
        stop = ["".join(rng.choice(list("abcdefgh"), rng.integers(1, 4))) for _ in range(2)]
        law = dict(temperature=1.0, max_new_tokens=24, seed=case)
        out = jd.generate(lm, ["abc"], stop=stop, **law)
        free = jd.generate(lm, ["abc"], **law)
        text = lm.tokenizer.decode(free.tokens[0])
        ends = [
            n for n in range(25) if any(s in lm.tokenizer.decode(free.tokens[0][:n]) for s in stop)
        ]
        assert out.tokens[0] == free.tokens[0][: ends[0] if ends else None]
        assert len(out.logprobs[0]) == len(out.tokens[0]) == out.stats[0].num_tokens
        assert not any(s in out.texts[0] for s in stop) and text.startswith(out.texts[0])
        assert (out.finish_reasons[0] == "stop_string") == bool(ends)
        assert "".join(jd.stream(lm, "abc", stop=stop, **law)) == out.texts[0]
        stopped += bool(ends)
    assert 10 < stopped < 60


def test_stream_joins_to_generate_and_reports_the_end(lm):
    got = []
    pieces = list(jd.stream(lm, "abc", max_new_tokens=30, on_finish=got.append))
    whole = jd.generate(lm, "abc", max_new_tokens=30)
    assert "".join(pieces) == whole.texts[0] and len(pieces) > 5
    assert got[0].tokens == whole.tokens and got[0].logprobs == whole.logprobs


def test_statistics_and_trace(lm):
    out = jd.generate(lm, ["abc", "a"], max_new_tokens=7)
    for stats, steps in zip(out.stats, out.steps, strict=True):
        assert (stats.num_tokens, stats.nfe, stats.acceptance_length) == (7, 7, 1.0)
        assert stats.tokens_forwarded == 7 and steps == list(range(7))
        assert stats.tokens_per_second == pytest.approx(7 / stats.seconds)


def test_ragged_requests_compile_nothing_after_warm_up(lm):
    jd.warmup(lm, batch_sizes=(1, 3), max_length=150, temperature=1.0)
    rng = np.random.default_rng(1)
    with toys.count_compilations() as compiled:
        for _ in range(25):
            total = int(rng.integers(2, 151))
            new = int(rng.integers(1, total))
            rows = int(rng.choice([1, 3, 4]))
            longest = max(total - new, 1)
            prompts = [rng.integers(0, 61, rng.integers(1, longest + 1)).tolist()] * rows
            jd.generate(lm, prompts, max_new_tokens=new, temperature=float(rng.integers(2)))
    assert compiled == []
    with toys.count_compilations() as compiled:
        jd.generate(lm, [[1]], max_new_tokens=1500, temperature=1.0)
    assert compiled, "the counter must count"


@pytest.mark.parametrize("method", ["auto", "token_recycling", "superposed"])
def test_ends_and_what_is_remembered_compile_nothing_after_warm_up(lm, method):
    asked = {"method": method, "temperature": 0.0}
    jd.warmup(lm, requests=[(5, 8)], **asked)
    with toys.count_compilations() as compiled:
        jd.generate(lm, [[1, 2, 3]] * 3, max_new_tokens=8, batch_size=1, **asked)
    assert compiled == []


def test_context_length_bounds_generation():
    short = toys.config(max_length=20)
    model = api.from_params(short, toys.params(short))
    out = jd.generate(model, [[1] * 15, [2]], max_new_tokens=50)
    assert [len(tokens) for tokens in out.tokens] == [5, 19]
    assert out.finish_reasons == ["length", "length"]


@pytest.mark.parametrize(
    ("prompt", "asked", "message"),
    [
        ("", {}, "prompt is empty"),
        ([[]], {}, "prompt is empty"),
        ([], {}, "no prompts"),
        ([[61]], {}, "token id=61 is out of range; it must be from 0 to 60"),
        ([[-1]], {}, "token id=-1"),
        ([[1] * 5000], {}, "5000 tokens, but the model's context is 2048"),
        ("abc", {"max_new_tokens": 0}, "max_new_tokens=0 is out of range; it must be >= 1"),
        ("abc", {"max_new_tokens": 2.5}, "max_new_tokens=2.5 is not an integer"),
        ("abc", {"temperature": -1}, "temperature=-1 is not valid; it must be a number >= 0"),
        ("abc", {"temperature": float("nan")}, "temperature=nan"),
        ("abc", {"top_p": 0}, "top_p=0 is not valid; it must be a number in (0, 1]"),
        ("abc", {"top_p": 1.5}, "top_p=1.5"),
        ("abc", {"top_k": -1}, "top_k=-1"),
        ("abc", {"min_p": 2}, "min_p=2"),
        ("abc", {"repetition_penalty": 0}, "repetition_penalty=0"),
        ("abc", {"logit_bias": {99: 1.0}}, "logit_bias token id=99"),
        ("abc", {"stop_tokens": [99]}, "stop token id=99"),
        ("abc", {"stop": [""]}, "stop string"),
        ("abc", {"seed": "x"}, "seed"),
        (["abc", "ab"], {"seed": [1]}, "1 values for 2 prompts"),
        ("abc", {"batch_size": 0}, "batch_size=0"),
        ("abc", {"temprature": 1}, "did you mean 'temperature'"),
        ([{"text": "a"}], {}, "['text']"),
        ([{"prompt": "a", "tokens": [1]}], {}, "['prompt', 'tokens']"),
        ([{"messages": [{"role": "user", "content": "a"}]}], {}, "chat template"),
        (3.5, {}, "a prompt is a float"),
    ],
)
def test_bad_input_names_the_value_and_the_way_out(lm, prompt, asked, message):
    with pytest.raises(InputError) as caught:
        jd.generate(lm, prompt, **asked)
    assert message.lower() in str(caught.value).lower()


def test_unknown_method(lm):
    with pytest.raises(UnknownNameError, match="'arr' is not known.*'ar'"):
        jd.generate(lm, "abc", method="arr")


def test_no_tokenizer():
    with pytest.raises(InputError, match="no tokenizer"):
        jd.generate(toys.model(), "abc")
    with pytest.raises(InputError, match="no tokenizer"):
        jd.stream(toys.model(), [1, 2])


def test_a_draft_model_on_another_mesh_is_refused():
    mesh = jax.sharding.Mesh(np.asarray(jax.devices()[:1]).reshape(1, 1), ("data", "model"))
    lm = toys.model()
    draft = api.from_params(lm.config, lm.params, name="small", mesh=mesh)
    with pytest.raises(InputError, match="small.*data=1,model=1.*one device.*same mesh"):
        jd.generate(lm, [[1, 2]], method="draft_model", draft=draft)


def test_slot_buckets_hold_what_is_asked():
    sizes = [engine.slot_bucket(n) for n in range(1, 5000)]
    assert all(size >= n for n, size in enumerate(sizes, 1))
    assert len(set(sizes)) < 20 and sizes == sorted(sizes)
    assert all(size <= 1.125 * n + 1 for n, size in enumerate(sizes, 1) if n > 2048)


@pytest.mark.parametrize("several", [False, True])
def test_a_model_without_a_tokenizer_ends_where_its_config_says(tmp_path, several):
    free = jd.generate(jd.load(tiny_folder("llama")), [[1, 2, 3]], max_new_tokens=12)
    end = free.tokens[0][4]
    folder = shutil.copytree(tiny_folder("llama"), tmp_path / "hf")
    written = json.loads((folder / "config.json").read_text())
    written["eos_token_id"] = [95, end] if several else end
    (folder / "config.json").write_text(json.dumps(written))
    convert(folder, tmp_path / "ours", progress=False)
    for path in (folder, tmp_path / "ours"):
        lm = jd.load(path)
        out = jd.generate(lm, [[1, 2, 3]], max_new_tokens=12)
        assert out.tokens[0] == free.tokens[0][: free.tokens[0].index(end) + 1]
        assert out.finish_reasons == ["stop"]
        ignored = jd.generate(lm, [[1, 2, 3]], max_new_tokens=12, ignore_eos=True)
        assert ignored.tokens == free.tokens


def test_public_names_exist():
    assert all(getattr(jd, name) is not None for name in jd.__all__)
    with pytest.raises(AttributeError, match="generat"):
        jd.generat  # noqa: B018
