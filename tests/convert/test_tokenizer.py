import io
import json

import numpy as np
import pytest
import sentencepiece
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from sentencepiece import sentencepiece_model_pb2 as model_pb2

from jaxdecode.convert.tokenizer import TextStream, load_tokenizer, tokenizer_from_gguf
from jaxdecode.errors import CorruptCheckpointError, InputError, JaxdecodeError, UnsupportedError

SENTENCES = [
    "the quick brown fox jumps over the lazy dog",
    "pack my box with five dozen liquor jugs",
    "naïve café: 12 + 34 = 46, isn't it?\n\n    indented  text",
    "how vexingly quick daft zebras jump over the boxes",
] * 10
TEXTS = st.text(max_size=30)
CHATML = (
    "{{ bos_token }}{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content }}"
    "{{ '<|im_end|>\n' }}{% endfor %}"
)


def byte_level_metadata(pre="smollm"):
    """A small byte-level BPE vocabulary as a GGUF file stores it."""
    trained = tokenizers.Tokenizer(tokenizers.models.BPE())
    trained.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = tokenizers.pre_tokenizers.ByteLevel.alphabet()
    specials = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=330, special_tokens=specials, initial_alphabet=alphabet, show_progress=False
    )
    trained.train_from_iterator(SENTENCES, trainer)
    model = json.loads(trained.to_str())["model"]
    tokens = sorted(model["vocab"], key=model["vocab"].get)
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": pre,
        "tokenizer.ggml.tokens": [*tokens, "<think>"],
        "tokenizer.ggml.token_type": [3] * 3 + [1] * (len(tokens) - 3) + [4],
        "tokenizer.ggml.merges": [" ".join(pair) for pair in model["merges"]],
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 0,
        "tokenizer.ggml.add_bos_token": False,
        "tokenizer.chat_template": CHATML,
    }


def sentencepiece_model(**options):
    out = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(SENTENCES),
        model_writer=out,
        vocab_size=340,
        model_type="bpe",
        byte_fallback=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        control_symbols=["<start_of_turn>", "<end_of_turn>"],
        user_defined_symbols=["▁▁", "\n", "\n\n"],
        minloglevel=2,
        **options,
    )
    return out.getvalue()


def sentencepiece_metadata(raw, **changes):
    model = model_pb2.ModelProto()
    model.ParseFromString(raw)
    return {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": [
            piece.piece.replace("▁", " ") if piece.type == 4 else piece.piece
            for piece in model.pieces
        ],
        # Gemma's GGUF files call the unknown token a control token.
        "tokenizer.ggml.token_type": [3 if p.type == 2 else p.type for p in model.pieces],
        "tokenizer.ggml.scores": [piece.score for piece in model.pieces],
        "tokenizer.ggml.unknown_token_id": 0,
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.add_bos_token": True,
        "tokenizer.ggml.add_space_prefix": model.normalizer_spec.add_dummy_prefix,
        **changes,
    }


@pytest.fixture(scope="module")
def byte_level():
    return tokenizer_from_gguf(byte_level_metadata())


@pytest.fixture(scope="module")
def gemma_like():
    return tokenizer_from_gguf(sentencepiece_metadata(sentencepiece_model(add_dummy_prefix=False)))


@pytest.fixture(scope="module")
def llama_like():
    return tokenizer_from_gguf(sentencepiece_metadata(sentencepiece_model()))


@pytest.fixture(scope="module", params=["byte_level", "gemma_like", "llama_like"])
def any_tokenizer(request):
    return request.getfixturevalue(request.param)


def plain(text, tokenizer):
    """Whether no special token is written in the text, and U+2581, which means space, neither."""
    return "▁" not in text and not any(
        tokenizer.backend.piece(token) in text for token in tokenizer.backend.special
    )


@settings(max_examples=150, deadline=None)
@given(text=TEXTS)
def test_byte_level_round_trip(byte_level, text):
    assert not plain(text, byte_level) or byte_level.decode(byte_level.encode(text)) == text


@settings(max_examples=150, deadline=None)
@given(text=TEXTS)
def test_sentencepiece_round_trip(gemma_like, llama_like, text):
    if plain(text, gemma_like):
        assert gemma_like.decode(gemma_like.encode(text)) == text
        assert llama_like.decode(llama_like.encode(text)) == (" " + text if text else "")


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_stream_pieces_join_to_decode(any_tokenizer, data):
    ids = st.integers(0, any_tokenizer.vocab_size + 3)
    tokens = data.draw(st.one_of(st.lists(ids, max_size=20), TEXTS.map(any_tokenizer.encode)))
    cuts = sorted(data.draw(st.lists(st.integers(0, len(tokens)), max_size=5)))
    stream = TextStream(any_tokenizer)
    pieces = [
        stream.push(tokens[a:b]) for a, b in zip([0, *cuts], [*cuts, len(tokens)], strict=True)
    ]
    assert "".join(pieces) + stream.flush() == any_tokenizer.decode(tokens)


def test_stream_shows_only_whole_characters(byte_level):
    stream = TextStream(byte_level)
    tokens = byte_level.encode("😀")
    assert [stream.push([token]) for token in tokens] == [""] * (len(tokens) - 1) + ["😀"]
    assert stream.push(tokens[:1]) == "" and stream.flush() == "\ufffd"


def test_byte_level_equals_the_library(byte_level):
    library = tokenizers.Tokenizer.from_str(byte_level.backend.raw.decode())
    for text in ["<|im_start|>user\nhi 2024<|im_end|>", "isn't it?\n\n    x", "<think>é</think>"]:
        tokens = byte_level.encode(text)
        assert tokens == library.encode(text).ids
        assert byte_level.decode(tokens) == library.decode(tokens, skip_special_tokens=True)


def test_token_bytes(byte_level, gemma_like):
    for tokenizer in (byte_level, gemma_like):
        assert len(tokenizer.token_bytes) == tokenizer.vocab_size
        assert {bytes([value]) for value in range(256)} <= set(tokenizer.token_bytes)
        assert all(tokenizer.token_bytes[token] == b"" for token in tokenizer.backend.special)
    assert byte_level.token_bytes[-1] == b"<think>"
    named = {gemma_like.backend.piece(i): b for i, b in enumerate(gemma_like.token_bytes)}
    assert named["<0x0A>"] == b"\n" and named["▁▁"] == b"  " and named["▁the"] == b" the"
    assert named["<start_of_turn>"] == named["<unk>"] == b""


def test_pre_tokenizers_differ_where_they_should():
    digits = "1234567"
    counts = {
        pre: [
            len(part)
            for part, _ in tokenizers.Tokenizer.from_buffer(
                tokenizer_from_gguf(byte_level_metadata(pre)).backend.raw
            ).pre_tokenizer.pre_tokenize_str(digits)
        ]
        for pre in ("gpt-2", "smollm", "llama-bpe", "qwen2", "default", "tekken")
    }
    assert counts == {
        "gpt-2": [7],
        "smollm": [1] * 7,
        "llama-bpe": [3, 3, 1],
        "qwen2": [1] * 7,
        "default": [3, 3, 1],
        "tekken": [1] * 7,
    }


def test_sentencepiece_from_gguf_equals_the_model():
    for raw in (sentencepiece_model(add_dummy_prefix=False), sentencepiece_model()):
        library = sentencepiece.SentencePieceProcessor(model_proto=raw)
        rebuilt = tokenizer_from_gguf(sentencepiece_metadata(raw))
        for text in [*SENTENCES[:4], "a\n\n\nb", "x     y", " lead", "日本 😀", "   "]:
            assert rebuilt.encode(text, add_special=False) == library.encode(text)


def test_special_tokens_in_sentencepiece_text(gemma_like, llama_like):
    turn = gemma_like.backend.token_id("<start_of_turn>")
    hello = gemma_like.encode("the fox", add_special=False)
    assert gemma_like.encode("<start_of_turn>the fox<eos>") == [
        1, turn, *hello, *gemma_like.encode("<eos>", add_special=False)
    ]  # fmt: skip
    # llama.cpp and the first Llama releases put the space before every stretch of text.
    assert llama_like.decode(llama_like.encode("the<start_of_turn>fox")) == " the fox"


def test_a_token_can_be_made_text(any_tokenizer):
    names = [any_tokenizer.backend.piece(t) for t in sorted(any_tokenizer.backend.special)]
    name, other = names[-1], names[-2]
    token, kept = (any_tokenizer.backend.token_id(piece) for piece in (name, other))
    made = any_tokenizer.without(token)
    text = f"jugs {name} of {other} wine"
    tokens = made.encode(text, add_special=False)
    assert token in any_tokenizer.encode(text) and token not in tokens and kept in tokens
    # Legacy sentencepiece puts a space before every stretch of text between special tokens.
    assert made.decode(tokens).split() == text.replace(other, "").split()
    assert made.encode("a fox\n\n jumps") == any_tokenizer.encode("a fox\n\n jumps")
    assert made.token_bytes == any_tokenizer.token_bytes
    assert made.without(10**6) is made


def test_legacy_false_puts_the_space_only_first(tmp_path):
    (tmp_path / "tokenizer.model").write_bytes(sentencepiece_model())
    for legacy, text in ((None, " the fox"), (True, " the fox"), (False, " thefox")):
        config = {} if legacy is None else {"legacy": legacy}
        (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
        tokenizer = load_tokenizer(tmp_path)
        assert tokenizer.decode(tokenizer.encode("the<start_of_turn>fox")) == text


def test_stop_tokens(byte_level, gemma_like):
    assert byte_level.stop_tokens == (0, 2)  # eos, then <|im_end|>
    assert gemma_like.stop_tokens == (2, gemma_like.backend.token_id("<end_of_turn>"))
    ends = {"tokenizer.ggml.eot_token_id": 5, "tokenizer.ggml.eom_token_id": 6}
    assert tokenizer_from_gguf(byte_level_metadata() | ends).stop_tokens == (0, 5, 6, 2)
    # The same letters as a plain token are no end of a turn.
    types = byte_level_metadata()["tokenizer.ggml.token_type"]
    types[2] = 1
    changed = byte_level_metadata() | {"tokenizer.ggml.token_type": types}
    assert tokenizer_from_gguf(changed).stop_tokens == (0,)


def test_chat_has_one_bos():
    tokenizer = tokenizer_from_gguf(byte_level_metadata() | {"tokenizer.ggml.add_bos_token": True})
    assert tokenizer.encode("a")[0] == 1
    tokens = tokenizer.apply_chat([{"role": "user", "content": "hi"}])
    assert tokens.count(1) == 2  # the BOS of the template, which is also the start of the turn
    assert tokenizer.decode(tokens) == "user\nhi\n"


def test_chat_without_template(gemma_like):
    with pytest.raises(InputError, match="no.*chat template|template and this checkpoint has none"):
        gemma_like.apply_chat([{"role": "user", "content": "hi"}])


def test_save_and_load(any_tokenizer, tmp_path):
    any_tokenizer.save(tmp_path)
    loaded = load_tokenizer(tmp_path)
    fields = ("kind", "bos_id", "eos_id", "stop_tokens", "chat_template", "add_bos", "vocab_size")
    for field in (*fields, "token_bytes"):
        assert getattr(loaded, field) == getattr(any_tokenizer, field), field
    for text in SENTENCES[:4]:
        assert loaded.encode(text) == any_tokenizer.encode(text)
    again = tmp_path / "again"
    again.mkdir()
    loaded.save(again)
    for path in tmp_path.glob("*.*"):
        assert (again / path.name).read_bytes() == path.read_bytes()


def test_no_tokenizer(tmp_path):
    assert load_tokenizer(tmp_path) is None
    assert tokenizer_from_gguf({"general.architecture": "llama"}) is None
    assert tokenizer_from_gguf({"tokenizer.ggml.model": "none"}) is None


def test_settings_as_transformers_writes_them(byte_level, tmp_path):
    (tmp_path / "tokenizer.json").write_bytes(byte_level.backend.raw)
    config = {
        "bos_token": {"content": "<|im_start|>", "special": True},
        "eos_token": "<|endoftext|>",
        "chat_template": [{"name": "rag", "template": "t"}, {"name": "default", "template": "d"}],
        "added_tokens_decoder": {"1": {"content": "<|im_start|>", "special": True}},
        "auto_map": {"AutoTokenizer": ["evil.py", None]},
    }  # fmt: skip
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": [2, 7], "top_k": 5}')
    loaded = load_tokenizer(tmp_path)
    assert (loaded.bos_id, loaded.eos_id, loaded.stop_tokens) == (1, 0, (0, 2, 7))
    assert loaded.chat_template == "d" and not loaded.add_bos
    (tmp_path / "chat_template.json").write_text('{"chat_template": "from json"}')
    assert load_tokenizer(tmp_path).chat_template == "from json"
    (tmp_path / "chat_template.jinja").write_text("from jinja")
    assert load_tokenizer(tmp_path).chat_template == "from jinja"
    out = tmp_path / "out"
    out.mkdir()
    load_tokenizer(tmp_path).save(out)
    assert "auto_map" not in (out / "tokenizer_config.json").read_text()
    assert json.loads((out / "generation_config.json").read_text())["top_k"] == 5


def test_added_tokens_beside_a_sentencepiece_model(tmp_path):
    raw = sentencepiece_model()
    (tmp_path / "tokenizer.model").write_bytes(raw)
    added = {
        "340": {"content": "<|im_end|>", "special": True},
        "342": {"content": "<tool>", "special": False},
    }
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"added_tokens_decoder": added}))
    tokenizer = load_tokenizer(tmp_path)
    assert tokenizer.vocab_size == 343 and tokenizer.stop_tokens == (2, 340, 4)
    assert (tokenizer.bos_id, tokenizer.add_bos) == (1, True)
    assert tokenizer.encode("<tool><|im_end|>", add_special=False) == [342, 340]
    assert tokenizer.decode([342, 340, 341]) == "<tool>"


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"model": "bert"}, UnsupportedError, "'bert'"),
        ({"pre": "qwen22"}, UnsupportedError, "'qwen22'.*Did you mean 'qwen2'"),
        ({"tokens": None}, CorruptCheckpointError, "tokens is missing"),
        ({"tokens": ["a", 1]}, CorruptCheckpointError, "tokens holds 1"),
        ({"token_type": [1]}, CorruptCheckpointError, "token_type has 1 entries"),
        ({"merges": ["ab"]}, CorruptCheckpointError, r"merges\[0\] is 'ab'"),
        ({"merges": ["a Q", "Zz Yy"]}, CorruptCheckpointError, "not a usable tokenizer"),
        ({"bos_token_id": 10**6}, CorruptCheckpointError, "bos_token_id is 1000000"),
        ({"eos_token_id": -1}, CorruptCheckpointError, "eos_token_id is -1"),
        ({"add_bos_token": "yes"}, CorruptCheckpointError, "add_bos_token is 'yes'"),
    ],
)
def test_damaged_gguf_metadata(change, error, message):
    changed = {f"tokenizer.ggml.{name}": value for name, value in change.items()}
    with pytest.raises(error, match=message):
        tokenizer_from_gguf(byte_level_metadata() | changed)


def test_duplicate_tokens_are_named():
    metadata = byte_level_metadata()
    metadata["tokenizer.ggml.tokens"][10] = metadata["tokenizer.ggml.tokens"][9]
    with pytest.raises(CorruptCheckpointError, match="both token 9 and token 10"):
        tokenizer_from_gguf(metadata)


def test_unusable_input(byte_level):
    with pytest.raises(InputError, match="character 1, half of a surrogate pair"):
        byte_level.encode("a\ud800")
    with pytest.raises(InputError, match="must be a string"):
        byte_level.encode(b"a")
    with pytest.raises(InputError, match="-1 is negative"):
        byte_level.decode([3, -1])
    assert byte_level.decode([byte_level.vocab_size + 5]) == ""


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("tokenizer.json", "{"),
        ("tokenizer.json", "[]"),
        ("tokenizer.json", "[" * 100_000),
        ("tokenizer.json", '{"model": {}}'),
        ("tokenizer_config.json", "[1]"),
        ("tokenizer_config.json", '{"chat_template": 3}'),
        ("tokenizer_config.json", '{"added_tokens_decoder": {"x": {"content": "y"}}}'),
        ("tokenizer_config.json", '{"added_tokens_decoder": {"1": {"content": "wrong"}}}'),
        ("tokenizer_config.json", '{"added_tokens_decoder": {"99999999": "y"}}'),
        ("generation_config.json", '{"eos_token_id": "x"}'),
        ("generation_config.json", '{"eos_token_id": [1, 5000]}'),
        ("generation_config.json", '{"eos_token_id": true}'),
    ],
)
def test_damaged_files(byte_level, tmp_path, name, content):
    byte_level.save(tmp_path)
    (tmp_path / name).write_text(content)
    with pytest.raises(CorruptCheckpointError):
        load_tokenizer(tmp_path)


@pytest.mark.parametrize("which", ["byte_level", "llama_like"])
def test_random_damage_gives_typed_errors(which, request, tmp_path):
    tokenizer = request.getfixturevalue(which)
    tokenizer.save(tmp_path)
    rng = np.random.default_rng(0)
    path = tmp_path / tokenizer.backend.file_name
    outcomes = {"loaded": 0, "refused": 0}
    for _ in range(200):
        raw = bytearray(tokenizer.backend.raw)
        if rng.random() < 0.3:
            del raw[rng.integers(len(raw)) :]
        for _ in range(rng.integers(1, 5) if raw else 0):
            raw[rng.integers(len(raw))] = rng.integers(256)
        path.write_bytes(bytes(raw))
        try:
            loaded = load_tokenizer(tmp_path)
            loaded.decode(loaded.encode("the quick brown fox"))
            outcomes["loaded"] += 1
        except JaxdecodeError:
            outcomes["refused"] += 1
    assert outcomes["refused"] > 10 and outcomes["loaded"] > 0, outcomes
