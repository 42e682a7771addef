"""Two models by turns: thresholds that leave one writer, a scripted judge, and what is refused."""

import numpy as np
import pytest
from tokenizers import Tokenizer as Library
from tokenizers import decoders, models, pre_tokenizers

import jaxdecode as jd
from jaxdecode import api
from jaxdecode.convert.tokenizer import load_tokenizer
from jaxdecode.errors import InputError
from jaxdecode.search import specreason
from tests import toys

PROMPTS = [[3, 1, 4, 1, 5], [9], [2, 6, 5, 3, 5, 8, 9, 7, 9]]
NEW = 30
ASKED = {"method": "specreason", "delimiter": "e", "judge": "so:", "max_step_tokens": 9}


def tokenizer(folder, pieces):
    library = Library(models.BPE(vocab={piece: i for i, piece in enumerate(pieces)}, merges=[]))
    library.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    library.decoder = decoders.ByteLevel()
    library.save(str(folder / "tokenizer.json"))
    return load_tokenizer(folder)


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """Two random models that share a tokenizer of 61 characters."""
    pieces = [*map(chr, range(48, 58)), *map(chr, range(97, 123)), *map(chr, range(65, 90))][:61]
    shared = tokenizer(tmp_path_factory.mktemp("shared"), [*pieces[:-1], ":"])
    built = toys.config()

    def make(seed):
        return api.from_params(built, toys.params(built, seed), tokenizer=shared)

    return make(0), make(1)


def num_steps(lm, tokens):
    """Segments of a text: up to each delimiter, at most max_step_tokens long."""
    count = size = 0
    for i, piece in enumerate(map(lambda t: lm.tokenizer.decode([t]), tokens)):
        size += 1
        if piece == "e" or size == 9 or i == len(tokens) - 1:
            count, size = count + 1, 0
    return count


LAWS = [
    {"n": 1},
    {"temperature": 1.0, "seed": [1, 2, 3], "n": 2},
    {"temperature": 0.9, "repetition_penalty": 1.3, "stop_tokens": [20, 31], "n": 1},
]


@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize(("threshold", "writer"), [(0, 1), (10, 0)])
def test_the_extreme_thresholds_leave_one_writer(pair, threshold, writer, law):
    wanted = jd.generate(pair[writer], PROMPTS, max_new_tokens=NEW, **law)
    for batch_size in (1, 8):
        out = jd.generate(
            pair[0], PROMPTS, draft=pair[1], threshold=threshold, max_new_tokens=NEW,
            batch_size=batch_size, **ASKED, **law,
        )  # fmt: skip
        assert out.tokens == wanted.tokens and out.texts == wanted.texts
        assert out.finish_reasons == wanted.finish_reasons
        for a, b in zip(out.logprobs, wanted.logprobs, strict=True):
            np.testing.assert_allclose(a, b, atol=1e-4)
        for stats, tokens in zip(out.stats, out.tokens, strict=True):
            steps = num_steps(pair[0], tokens)
            written = len(tokens) if writer == 0 else 0
            # A run goes on until the row with the most room is full, so a row may take part in
            # more calls than it keeps tokens of.
            assert stats.num_judged == steps and stats.nfe >= steps + written
            assert writer == 0 or stats.nfe == steps
    other = jd.generate(pair[1 - writer], PROMPTS, max_new_tokens=NEW, **law)
    assert other.tokens != wanted.tokens


def test_a_refused_step_is_written_by_the_target(pair, monkeypatch):
    script = [9, 0, 3, 8, 7, 1, 9, 9, 0, 7]
    scores = iter(script)

    def judge(target, members, texts, digits):
        return [next(scores) for _ in members]

    monkeypatch.setattr(specreason, "_judge", judge)
    out = jd.generate(pair[0], PROMPTS[:1], draft=pair[1], max_new_tokens=NEW, **ASKED)
    text, wanted = list(PROMPTS[0]), iter(script)
    while (left := NEW + len(PROMPTS[0]) - len(text)) > 0:
        writer = pair[1] if next(wanted) >= 7 else pair[0]
        text += jd.generate(writer, [text], stop="e", max_new_tokens=min(9, left)).tokens[0]
    assert out.tokens == [text[len(PROMPTS[0]) :]]
    assert out.stats[0].num_judged == len(script) - len(list(wanted))


def test_the_judge_is_the_likeliest_digit_after_the_question(pair, monkeypatch):
    seen, judge = [], specreason._judge

    def spy(target, members, texts, digits):
        scores = judge(target, members, texts, digits)
        seen.extend(zip(texts, scores, strict=True))
        return scores

    monkeypatch.setattr(specreason, "_judge", spy)
    out = jd.generate(pair[0], PROMPTS, draft=pair[1], threshold=4, max_new_tokens=NEW, **ASKED)
    question = pair[0].tokenizer.encode("so:")
    assert len(seen) == sum(stats.num_judged for stats in out.stats) > 3
    for text, score in seen:
        assert text[-3:] == question
        assert score == toys.full_logits(pair[0], text)[0][-1][:10].argmax()
    assert len({score for _, score in seen}) > 1


def test_first_steps_may_be_the_targets_own(pair):
    asked = ASKED | {"draft": pair[1], "threshold": 0, "max_new_tokens": NEW}
    plain = jd.generate(pair[0], PROMPTS, max_new_tokens=NEW)
    out = jd.generate(pair[0], PROMPTS, num_own_steps=100, **asked)
    assert out.tokens == plain.tokens and all(stats.num_judged == 0 for stats in out.stats)


def test_a_full_context_ends_the_text(pair, tmp_path):
    built = toys.config(max_length=24)
    small = [
        api.from_params(built, toys.params(built, seed), tokenizer=pair[0].tokenizer)
        for seed in (0, 1)
    ]
    for target, draft, threshold, writer in (
        (small[0], pair[1], 10, 0),
        (pair[0], small[1], 10, 0),
    ):
        models = (target, draft)
        wanted = jd.generate(models[writer], PROMPTS, max_new_tokens=NEW)
        out = jd.generate(
            target, PROMPTS, draft=draft, threshold=threshold, max_new_tokens=NEW, **ASKED
        )
        assert out.tokens == wanted.tokens and out.finish_reasons == wanted.finish_reasons


def test_what_cannot_work_is_refused(pair, tmp_path):
    target, draft = pair
    bare, asked = toys.model(), {"method": "specreason", "max_new_tokens": 4}
    with pytest.raises(InputError, match="needs a draft model"):
        jd.generate(target, PROMPTS, **asked)
    for lm, small in ((bare, draft), (target, bare)):
        with pytest.raises(InputError, match="no tokenizer"):
            jd.generate(lm, PROMPTS, draft=small, **asked)
    with pytest.raises(InputError, match="stop="):
        jd.generate(target, PROMPTS, draft=draft, stop="a", **asked)
    with pytest.raises(InputError, match="threshold"):
        jd.generate(target, PROMPTS, draft=draft, threshold=11, **asked)
    with pytest.raises(InputError, match="stream"):
        jd.stream(target, "abc", draft=draft, **asked)
    with pytest.raises(InputError, match="warm up"):
        jd.warmup(target, draft=draft, **asked)
    wordless = tokenizer(tmp_path, [*map(chr, range(97, 123))])
    spoken = [api.from_params(lm.config, lm.params, tokenizer=wordless) for lm in pair]
    with pytest.raises(InputError, match="one vocabulary"):
        jd.generate(target, PROMPTS, draft=spoken[1], **asked)
    with pytest.raises(InputError, match="one token each"):
        jd.generate(spoken[0], PROMPTS, draft=spoken[1], **(asked | {"judge": "so"}))


def test_it_is_listed_with_its_policy():
    assert "policy specreason" in jd.explain("specreason")
    assert "threshold=7" in jd.explain("specreason")
