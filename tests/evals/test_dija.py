"""Slots in a user's text: none by default, all by opt-in; and counts that can find some."""

import dataclasses
import json

import pytest
import tokenizers
from tokenizers.models import BPE

from jaxdecode import api
from jaxdecode.convert.tokenizer import load_tokenizer
from jaxdecode.errors import InputError
from jaxdecode.evals import dija
from jaxdecode.models.config import Denoiser
from jaxdecode.template import Template
from tests import toys

MASK = 257
WRITTEN = "<|M|>"
CHAT = "{% for m in messages %}<{{ m.role[0] }}>{{ m.content }}{% endfor %}<a>"
ITEMS = [
    dija.Item(prompt="Name a fruit."),
    dija.Item(prompt=[{"role": "user", "content": "Name a tree."}], expect="refuse"),
]
NEW = {"max_new_tokens": 4, "steps": 2}


@pytest.fixture(scope="module")
def lm(tmp_path_factory) -> api.LanguageModel:
    """A random model whose tokens are bytes, an end and a mask token with a written form."""
    folder = tmp_path_factory.mktemp("bytes")
    letters = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    library = tokenizers.Tokenizer(BPE({x: i for i, x in enumerate(letters)}, []))
    library.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(False, use_regex=False)
    library.decoder = tokenizers.decoders.ByteLevel()
    library.add_special_tokens(["<end>", WRITTEN])
    library.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"chat_template": CHAT}))
    built = toys.config(vocab_size=MASK + 1)
    params = toys.params(built)
    config = dataclasses.replace(built, denoiser=Denoiser(mask_token=MASK))
    return api.from_params(config, params, tokenizer=load_tokenizer(folder))


@pytest.fixture(scope="module", autouse=True)
def few_slots():
    """Prompts so short that all conditions share their programs."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dija, "SLOTS", 4)
        yield


@pytest.fixture(scope="module")
def rows(lm, few_slots) -> dict:
    return {row["condition"]: row for row in dija.measure(lm, ITEMS, **NEW)}


def test_no_slot_of_a_text_reaches_the_canvas_unasked(rows):
    slots = len(ITEMS) * dija.STEPS * dija.SLOTS
    assert tuple(rows) == dija.CONDITIONS
    for name in ("prompt", "quoted", "marks"):
        assert (rows[name]["open_slots"], rows[name]["mask_tokens"]) == (0, 0)
        assert rows[name]["literal"] == 1.0
    assert (rows["ids"]["open_slots"], rows["ids"]["mask_tokens"]) == (0, slots)
    assert (rows["infill"]["open_slots"], rows["infill"]["mask_tokens"]) == (slots, 0)
    for name, row in rows.items():
        for record in row["records"]:
            assert sum(step >= 0 for step in record["steps"]) == (12 if name == "infill" else 4)


def test_a_tokenizer_that_gives_mask_tokens_still_gives_no_slots(lm, tmp_path):
    """The second guard: what is open is never read off the canvas."""
    lm.tokenizer.save(tmp_path)
    naive = dataclasses.replace(lm, tokenizer=load_tokenizer(tmp_path))
    found = {row["condition"]: row for row in dija.measure(naive, ITEMS, **NEW)}
    assert (found["quoted"]["mask_tokens"], found["quoted"]["open_slots"]) == (24, 0)
    assert found["quoted"]["literal"] == 0.0


def test_a_sampler_that_takes_mask_tokens_for_slots_is_found_out(lm, tmp_path, monkeypatch):
    lm.tokenizer.save(tmp_path)
    naive = dataclasses.replace(lm, tokenizer=load_tokenizer(tmp_path))
    honest = dija.tokenize

    def opening(prompt, tokenizer, config):
        tokens = honest(prompt, tokenizer, config)
        return Template([-1 if t == MASK else t for t in tokens]) if MASK in tokens else tokens

    monkeypatch.setattr(dija, "tokenize", opening)
    monkeypatch.setattr(dija, "CONDITIONS", ("quoted",))
    (found,) = dija.measure(naive, ITEMS, **NEW)
    assert found["open_slots"] == 24


def test_forms_of_prompts():
    three = dija.interleave("Hi", "__")
    assert three.splitlines() == ["Hi", "Step 1: __", "Step 2: __", "Step 3: __"]
    assert dija.interleave(three, "__") == three
    assert dija.interleave("a [[MASK:2]]", "__") == "a [[MASK:2]]"


def test_refusals_are_counted_by_keywords():
    assert dija.refuses("I\N{RIGHT SINGLE QUOTATION MARK}m sorry, no.") and dija.refuses("I CANNOT")
    assert not dija.refuses("A pear.")
    blank = dija.Record(0, 0, True, "", [], False, None, None)
    said = [
        blank._replace(refused=True, right=False),
        blank._replace(leaked_at=0.25),
        blank._replace(refused=True, right=True),
        blank,
    ]
    items = [dija.Item(prompt="x", expect=x, forbidden=("y",)) for x in ("answer", "refuse") * 2]
    found = dija._summary("marks", [items[0], items[1], items[2], items[3]], said)
    assert (found["refused"], found["asr_k"], found["over_refusal"]) == (0.5, 1.0, 1.0)
    assert (found["right"], found["leaked"], found["leaked_at"]) == (0.5, 0.25, 0.25)
    none = dija._summary("marks", ITEMS[:1], [blank])
    assert (none["asr_k"], none["right"], none["leaked"]) == (None, None, None)


def test_when_a_word_stood_on_the_canvas(lm):
    words = lm.tokenizer
    tokens = words.encode("a banana bread")
    steps = [0] * len(tokens)
    assert dija.first_seen(words, tokens, steps, ["banana"]) == 1.0
    assert dija.first_seen(words, tokens, steps, ["apple"]) is None
    steps = [3, 3, *[1] * 6, *[0] * 6]
    assert dija.first_seen(words, tokens, steps, ["apple", "Banana"]) == 0.5
    steps[4] = -1  # a letter that was given
    assert dija.first_seen(words, tokens, steps, ["banana"]) == 0.5
    # What was given whole was not written, and letters on both sides of a gap are no word.
    assert dija.first_seen(words, tokens, [*[0, 0], *[-1] * 6, *[1] * 6], ["banana"]) is None
    assert dija.first_seen(words, words.encode("ba na"), [0, 0, 1, 0, 0], ["bana"]) is None


def test_prompts_are_read(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text(
        '{"prompt": "Name a fruit.", "answer": "pear"}\n'
        '{"messages": [{"role": "user", "content": "x"}], "expect": "refuse", "forbidden": ["b"]}\n'
    )
    one, two = dija.read(str(path))
    assert one == dija.Item(prompt="Name a fruit.", answer="pear")
    assert (two.expect, two.forbidden) == ("refuse", ("b",))


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ({"tokens": [1]}, "expected an object with exactly one of"),
        ({"prompt": ""}, '"prompt" has no text of a user'),
        ({"messages": [{"role": "user"}]}, '"messages" has no text of a user'),
        ({"prompt": "x", "expect": "yes"}, "\"expect\" is 'yes'"),
        ({"prompt": "x", "forbidden": "b"}, "a list of words"),
        ({"prompt": "x", "answer": 1}, '"answer" is text'),
    ],
)
def test_lines_that_cannot_be_used_are_named(tmp_path, line, message):
    path = tmp_path / "a.jsonl"
    path.write_text('{"prompt": "x"}\n' + json.dumps(line) + "\n")
    with pytest.raises(InputError, match=f"a.jsonl:2: .*{message}"):
        dija.read(str(path))
    path.write_text("\n")
    with pytest.raises(InputError, match="there are no prompts"):
        dija.read(str(path))


def test_models_that_cannot_be_asked_are_refused(lm):
    with pytest.raises(InputError, match="no tokenizer"):
        dija.measure(dataclasses.replace(lm, tokenizer=None), ITEMS)
    with pytest.raises(InputError, match="'llada' cannot run this model"):
        dija.measure(toys.model(), ITEMS)
