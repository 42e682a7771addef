"""Lines of training data: what counts, token by token, and what is refused."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxdecode.convert import download, pipeline
from jaxdecode.convert.open import open_source
from jaxdecode.convert.tokenizer import tokenizer_from_gguf
from jaxdecode.errors import InputError
from jaxdecode.training.texts import _of_messages, read_texts
from tests.convert.test_tokenizer import byte_level_metadata

SMOLLM2 = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face"
    "<|im_end|>\n' }}{% endif %}{{'<|im_start|>' + message['role'] + '\n' + message['content'] + "
    "'<|im_end|>' + '\n'}}{% endfor %}{% if add_generation_prompt %}"
    "{{ '<|im_start|>assistant\n' }}{% endif %}"
)
# As Qwen3's: what was thought is left out of earlier turns.
FORGETS = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{{ m.content if loop.last else m.content.split('</think>')[-1] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
LONG = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "hi"},
    {"role": "assistant", "content": "\nHello  there."},
    {"role": "user", "content": "more"},
    {"role": "assistant", "content": " ok 12\n"},
    {"role": "user", "content": "bye"},
]


def tokenizer(template=SMOLLM2, **changes):
    metadata = byte_level_metadata() | {"tokenizer.chat_template": template} | changes
    return tokenizer_from_gguf(metadata)


@pytest.fixture
def texts(jsonl):
    def read(*lines, tokenizer=None, vocab_size=None):
        options = {"tokenizer": tokenizer, "vocab_size": vocab_size}
        return read_texts(jsonl(*lines), option="data.train", **options)

    return read


def counted(text, tokenizer):
    """The parts that count, as the vocabulary writes them."""
    edges = np.flatnonzero(np.diff(np.pad(text.counts.astype(int), 1)))
    spans = zip(edges[::2], edges[1::2], strict=True)
    return ["".join(map(tokenizer.backend.piece, text.tokens[a:b].tolist())) for a, b in spans]


def check_chat(text, messages, tokenizer):
    """What counts is what the assistant said and the ends of its turns, to the token."""
    answers = [i for i, m in enumerate(messages) if m["role"] == "assistant"]
    edges = np.flatnonzero(np.diff(np.pad(text.counts.astype(int), 1)))
    end = tokenizer.backend.token_id("<|im_end|>")
    for i, first, last in zip(answers, edges[::2], edges[1::2], strict=True):
        tokens = text.tokens.tolist()
        assert tokens[first:last] == [*tokenizer.encode(messages[i]["content"]), end]
    assert edges[-1] == len(text.tokens)
    assert text.tokens[: edges[0]].tolist() == tokenizer.apply_chat(messages[: answers[0]])


def test_answers_of_a_chat_count_and_nothing_else(texts):
    own = tokenizer()
    (text,) = texts({"messages": LONG, "id": "extra fields are ignored"}, tokenizer=own)
    assert counted(text, own) == ["ĊHelloĠĠthere.<|im_end|>", "ĠokĠ12Ċ<|im_end|>"]
    check_chat(text, LONG, own)
    assert text.prompt == own.apply_chat(LONG[:2])


@settings(max_examples=60, deadline=None)
@given(st.lists(st.text(min_size=1, max_size=12), min_size=2, max_size=6))
def test_any_answer_is_cut_out_exactly(contents):
    own = tokenizer()
    roles = ["user", "assistant"] * 3
    messages = [
        {"role": role, "content": content.replace("<", "") or "x"}
        for role, content in zip(roles, contents, strict=False)
    ]
    (text,) = _of_messages(messages, own)
    check_chat(text, messages[: len(messages) // 2 * 2], own)


@pytest.mark.slow
def test_answers_of_the_real_vocabulary(texts):
    source = open_source(download.resolve("smollm2-135m"))
    own = pipeline.read_tokenizer(source)
    assert own.chat_template == SMOLLM2
    (text,) = texts({"messages": LONG}, tokenizer=own)
    check_chat(text, LONG, own)
    assert text.tokens.tolist() == own.apply_chat(LONG[:5], add_generation_prompt=False)[:-1]


def test_a_template_that_rewrites_earlier_turns_gives_a_text_per_answer(texts):
    own, thought = tokenizer(FORGETS), {"role": "assistant", "content": "hm</think>ok"}
    asked = [{"role": "user", "content": "a"}, thought, {"role": "user", "content": "b"}, thought]
    first, second = texts({"messages": asked}, tokenizer=own)
    assert counted(first, own) == counted(second, own) == ["hm</think>ok<|im_end|>"]
    for text, prompt in ((first, asked[:1]), (second, asked[:3])):
        assert text.prompt == own.apply_chat(prompt)


def test_a_token_never_reaches_into_the_answer(texts):
    own = tokenizer()
    tokens = own.encode("the")
    assert len(tokens) == 1 and len(own.encode("th")) == 1
    (text,) = texts({"prompt": "th", "completion": "e cat"}, tokenizer=own)
    assert text.prompt == own.encode("th")
    assert own.decode(text.tokens[text.counts].tolist()) == "e cat"


def test_the_other_forms(texts):
    own = tokenizer(**{"tokenizer.ggml.add_bos_token": True})
    plain, asked, given_ids = texts(
        {"text": "the cat"},
        {"prompt": "the", "completion": " cat<|im_end|>"},
        {"tokens": [5, 6, 7], "prompt_length": 1},
        tokenizer=own,
    )
    assert plain.counts.all() and plain.tokens.tolist() == own.encode("the cat")
    assert plain.tokens[0] == own.bos_id
    assert plain.prompt == plain.tokens[: len(plain.tokens) // 2].tolist()
    assert asked.prompt == own.encode("the")
    assert asked.tokens[-1] == own.backend.token_id("<|im_end|>")
    assert given_ids.tokens.tolist() == [5, 6, 7] and given_ids.counts.tolist() == [0, 1, 1]
    (bare,) = texts({"tokens": list(range(200)), "prompt_length": 0})
    assert bare.prompt == list(range(64))


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "not JSON"),
        ("[1]", "got a JSON array"),
        ({"txt": "a"}, r"exactly one of .* got the keys \['txt'\]"),
        ({"text": "a", "tokens": [1]}, "exactly one of"),
        ({"text": ""}, '"text" is empty'),
        ({"text": 3}, '"text" must be text, got a JSON number'),
        ({"prompt": "a"}, '"completion" is missing'),
        ({"prompt": "a", "completion": ""}, '"completion" is empty'),
        ({"tokens": "a", "prompt_length": 0}, '"tokens" must be a list'),
        ({"tokens": [1, 2]}, '"prompt_length" is missing'),
        ({"tokens": [1, 2], "prompt_length": 2}, "the answer is empty"),
        ({"tokens": [1, 2], "prompt_length": -1}, "out of range"),
        ({"tokens": [1, 61], "prompt_length": 1}, "from 0 to 60"),
        ({"tokens": [1, True], "prompt_length": 1}, "not an integer"),
        ({"messages": "hi"}, '"messages" must be a list'),
        ({"messages": LONG[:2]}, "has no answer"),
        ({"messages": LONG[2:]}, "begins with an answer"),
        ({"messages": [LONG[1], {"role": "assistant", "content": ""}]}, "is empty"),
        ({"messages": [LONG[1], {"role": "assistant", "content": 1}]}, "must be text"),
        ({"messages": [LONG[1], {"role": "assistant"}]}, "got nothing"),
    ],
)
def test_a_bad_line_is_named(texts, line, message):
    with pytest.raises(InputError, match=rf"prompts.jsonl:3: .*{message}"):
        texts({"text": "fine"}, "", line, tokenizer=tokenizer(), vocab_size=61)


def test_what_a_target_cannot_read_is_said(texts):
    with pytest.raises(InputError, match=":1: .*needs a tokenizer"):
        texts({"text": "a"})
    with pytest.raises(InputError, match="no texts"):
        texts("")
    with pytest.raises(InputError, match="data.train .*cannot be read"):
        read_texts("/nowhere.jsonl", option="data.train", tokenizer=None)
    odd = tokenizer("{{ messages|length }}{{ messages[0].content }}")
    with pytest.raises(InputError, match="does not write messages"):
        texts({"messages": LONG[:3]}, tokenizer=odd)


def test_plain_text_is_cut_into_rows(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("hello there", encoding="utf-8")
    (whole,) = read_texts(str(path), option="data.train", tokenizer=tokenizer())
    parts = read_texts(str(path), option="data.train", tokenizer=tokenizer(), width=3)
    assert (
        sum((part.tokens.tolist() for part in parts), [])
        == whole.tokens.tolist()[: sum(len(part.tokens) for part in parts)]
    )
    assert all(len(part.tokens) == 3 and part.counts.all() for part in parts[:-1])
    with pytest.raises(InputError, match="needs a tokenizer"):
        read_texts(str(path), option="data.train", tokenizer=None)
    with pytest.raises(InputError, match="cannot be read"):
        read_texts(str(tmp_path / "no.txt"), option="data.train", tokenizer=tokenizer())
