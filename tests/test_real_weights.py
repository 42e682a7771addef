"""The promises on real weights. Slow: fetches SmolLM2-135M and Gemma 3 270M once.

Running it accepts Gemma's terms (`jaxdecode models` shows them).
"""

import json
import subprocess
import sys

import numpy as np
import pytest

import jaxdecode as jd
from jaxdecode.convert import download
from tests import toys
from tests.golden import corpus
from tests.toys import count_compilations

pytestmark = pytest.mark.slow
NEAR_TIE = 1e-4
LOGIT_TOLERANCE = 2e-3


@pytest.fixture(scope="module", params=corpus.REAL)
def case(request):
    return jd.load(request.param, dtype="float32", accept_terms=True), corpus.load_golden(
        request.param
    )


@pytest.fixture(scope="module")
def smol():
    return jd.load("smollm2-135m", dtype="float32")


def test_logits_equal_transformers(case):
    lm, golden = case
    worst = 0.0
    for row, prompt in enumerate(corpus.prompts(golden)):
        logits, _ = toys.full_logits(lm, prompt)
        for place, position in enumerate(golden["positions"][row]):
            ours = logits[position]
            expected = golden["logits"][row, place]
            worst = max(worst, np.abs(ours[golden["vocab_ids"]] - expected).max())
            top = golden["top_ids"][row, place]
            worst = max(worst, np.abs(ours[top] - golden["top_logits"][row, place]).max())
    print(f"max abs logit difference {worst:.2e}")
    assert worst <= LOGIT_TOLERANCE


def test_greedy_tokens_equal_transformers(case):
    lm, golden = case
    new = golden["greedy"].shape[1]
    out = jd.generate(lm, corpus.prompts(golden), max_new_tokens=new, ignore_eos=True)
    assert out.tokens == golden["greedy"].tolist()


def random_requests(count, vocab):
    rng = np.random.default_rng(7)
    for _ in range(count):
        rows = int(rng.integers(1, 9))
        prompts = [rng.integers(0, vocab, rng.integers(1, 48)).tolist() for _ in range(rows)]
        law = [{}, {"temperature": 1.0}, {"temperature": 0.7, "top_p": 0.9, "top_k": 40}]
        stop = rng.integers(0, vocab, 12).tolist()
        asked = {"max_new_tokens": int(rng.integers(1, 25)), "stop_tokens": stop, "seed": 3}
        yield prompts, law[int(rng.integers(3))] | asked


def near_tie(lm, prompt, ours, other, law):
    """Whether two runs part where the two best scores are closer than rounding."""
    place = next(i for i, pair in enumerate(zip(ours, other, strict=False)) if pair[0] != pair[1])
    logits, _ = toys.full_logits(lm, [*prompt, *ours[:place]])
    if law.get("temperature"):
        return False
    best = np.sort(logits[-1])[-2:]
    return best[1] - best[0] < NEAR_TIE


def test_a_row_in_200_ragged_batches_is_the_row_alone(smol):
    rows = tokens = ties = 0
    for prompts, law in random_requests(200, smol.config.vocab_size):
        together = jd.generate(smol, prompts, **law)
        for prompt, expected in zip(prompts, together.tokens, strict=True):
            alone = jd.generate(smol, [prompt], **law).tokens[0]
            rows, tokens = rows + 1, tokens + len(alone)
            if alone != expected:
                assert near_tie(smol, prompt, alone, expected, law), (prompt, law)
                ties += 1
    print(f"{rows} rows, {tokens} tokens, {ties} parted at a near tie")


def test_500_stop_strings_leak_nothing(smol):
    rng = np.random.default_rng(11)
    prompts = ["The quick brown", "Once upon a time", "def main():", "In 1998 the", "Dear Sir,"]
    stopped = 0
    for case in range(100):
        free = jd.generate(smol, prompts, temperature=1.0, seed=case, max_new_tokens=20)
        stop = []
        for text in free.texts:  # a piece of what would come, so that most rows stop
            first = int(rng.integers(0, max(len(text) - 3, 1)))
            stop.append(text[first : first + int(rng.integers(1, 5))] or "x")
        out = jd.generate(smol, prompts, temperature=1.0, seed=case, max_new_tokens=20, stop=stop)
        for row, text in enumerate(out.texts):
            whole = [smol.tokenizer.decode(free.tokens[row][:n]) for n in range(21)]
            ends = [n for n, prefix in enumerate(whole) if any(s in prefix for s in stop)]
            assert out.tokens[row] == free.tokens[row][: ends[0] if ends else None]
            assert len(out.logprobs[row]) == len(out.tokens[row])
            assert not any(s in text for s in stop) and free.texts[row].startswith(text)
            stopped += bool(ends)
    print(f"{stopped} of 500 rows stopped")
    assert stopped > 300


def test_logprobs_equal_a_teacher_forced_pass(smol):
    prompts = ["The capital of France is", "def add(a, b):"]
    out = jd.generate(smol, prompts, temperature=0.8, top_p=0.95, seed=1, max_new_tokens=64)
    for prompt, tokens, logprobs in zip(prompts, out.tokens, out.logprobs, strict=True):
        ids = smol.tokenizer.encode(prompt)
        scores = toys.full_logits(smol, ids + tokens)[0][len(ids) - 1 : -1].astype(np.float64)
        law = scores - np.log(np.exp(scores - scores.max(-1, keepdims=True)).sum(-1, keepdims=True))
        law -= scores.max(-1, keepdims=True)
        np.testing.assert_allclose(logprobs, law[np.arange(len(tokens)), tokens], atol=1e-4)


def test_100_ragged_requests_compile_nothing_after_warm_up(smol):
    jd.warmup(smol, batch_sizes=(1, 4), max_length=400)
    rng = np.random.default_rng(2)
    with count_compilations() as compiled:
        for _ in range(100):
            rows = int(rng.choice([1, 3, 4]))
            new = int(rng.integers(1, 6))
            prompts = [rng.integers(0, 49152, rng.integers(1, 394)).tolist() for _ in range(rows)]
            jd.generate(smol, prompts, max_new_tokens=new)
    assert compiled == []


def test_conversion_is_small_and_quick(tmp_path):
    (source,) = download.resolve("smollm2-135m").parent.glob("*.gguf")
    code = (
        "import json, pathlib, re, time\n"
        "from jaxdecode.convert.pipeline import convert\n"
        "begin = time.perf_counter()\n"
        f"convert({str(source)!r}, {str(tmp_path / 'out')!r}, progress=False)\n"
        # Not ru_maxrss: that starts at the size of the process which forked this one.
        "status = pathlib.Path('/proc/self/status').read_text()\n"
        "peak = int(re.search(r'VmHWM:\\s+(\\d+)', status)[1]) / 1e6\n"
        "print(json.dumps([time.perf_counter() - begin, peak]))"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    seconds, peak_gb = json.loads(run.stdout)
    print(f"{seconds:.1f} s, {peak_gb:.2f} GB")
    assert seconds < 15 and peak_gb < 1.0
