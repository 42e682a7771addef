"""Published masked and block diffusion checkpoints: read, refused, and their forward pass."""

import dataclasses
import json

import jax.numpy as jnp
import numpy as np
import pytest
import tokenizers
from tokenizers.models import BPE, WordLevel

import jaxdecode as jd
from jaxdecode.convert import catalog, pipeline
from jaxdecode.convert.hf_config import config_from_hf, config_to_hf
from jaxdecode.convert.open import open_source
from jaxdecode.convert.tokenizer import load_tokenizer
from jaxdecode.core.masks import MaskProgram
from jaxdecode.errors import CheckpointError, CorruptCheckpointError, UnsupportedError
from jaxdecode.models.config import Denoiser, param_shapes
from tests import toys
from tests.convert import tiny_denoisers as tiny
from tests.models import reference_diffusion as reference

EXPECTED = {
    "llada": Denoiser(mask_token=tiny.MASK),
    "llada_options": Denoiser(mask_token=tiny.MASK),
    "dream": Denoiser(mask_token=tiny.MASK, shifted=True),
    "fast_dllm": Denoiser(mask_token=tiny.MASK, shifted=True, block=4),
}
TEXTS = [[5, 7, 11, tiny.MASK, tiny.MASK, 3, 2, tiny.MASK, 9, tiny.MASK, 1], [4, tiny.MASK, 8]]


@pytest.fixture(scope="module", params=tiny.NAMES)
def loaded(request, tmp_path_factory):
    folder = tiny.write(tmp_path_factory.mktemp("hf") / request.param, request.param)
    return request.param, jd.load(folder, dtype="float32", progress=False)


def scores(lm, rows):
    """Raw logits of unpadded rows in one ragged batch, by the forward pass under test."""
    width = max(map(len, rows))
    tokens = np.array([row + [0] * (width - len(row)) for row in rows], np.int32)
    block = lm.config.denoiser.block
    program = MaskProgram(
        cached=jnp.zeros(len(rows), jnp.int32),
        positions=jnp.broadcast_to(jnp.arange(width, dtype=jnp.int32), tokens.shape),
        num_new=jnp.asarray([len(row) for row in rows], jnp.int32),
        rule="block_causal" if block else "bidirectional",
        block=block,
    )
    output = lm.target.forward(lm.params, jnp.asarray(tokens), program, None)
    found = np.asarray(lm.target.logits(lm.params, output.hidden))
    return [row[: len(text)] for row, text in zip(found, rows, strict=True)]


def test_config_says_how(loaded):
    name, lm = loaded
    assert lm.config.denoiser == EXPECTED[name]
    assert lm.config.vocab_size == 96


def test_logits_equal_the_published_rules(loaded):
    name, lm = loaded
    hf, tensors = tiny.CONFIGS[name], tiny.tensors(name)
    for text, ours in zip(TEXTS, scores(lm, TEXTS), strict=True):
        wanted = reference.logits(hf, tensors, text)
        np.testing.assert_allclose(ours, wanted, atol=1e-5, rtol=1e-5)
        np.testing.assert_allclose(
            ours[np.maximum(np.arange(len(text)) - 1, 0)],
            reference.shifted(wanted[None])[0],
            atol=1e-5,
            rtol=1e-5,
        )


@pytest.mark.parametrize("count", ["with padding", "real slots only"])
def test_left_padding_of_the_published_code_changes_nothing(loaded, count):
    name, lm = loaded
    if lm.config.denoiser.block:
        pytest.skip("Fast-dLLM v2 counts its blocks from the first slot and never pads there")
    pad, text = 5, TEXTS[1]
    real = np.arange(pad + len(text)) >= pad
    # LLaDA counts positions with the padding, Dream without it (and gives the padding 1).
    positions = None if count == "with padding" else np.where(real, np.cumsum(real) - 1, 1)
    padded = [0] * pad + text
    wanted = reference.logits(tiny.CONFIGS[name], tiny.tensors(name), padded, real, positions)
    np.testing.assert_allclose(scores(lm, TEXTS)[1], wanted[pad:], atol=1e-5, rtol=1e-5)


def test_the_loop_writes_the_published_text(loaded):
    """Greedy, ragged here and left-padded there; the mask token is never written, as here."""
    name, lm = loaded
    if name in ("llada_options", "fast_dllm"):
        pytest.skip("one loop of each kind is enough here")
    raw = reference.forward_of(tiny.CONFIGS[name], tiny.tensors(name))
    never = np.where(np.arange(96) == tiny.MASK, -1e9, 0.0)
    rows, asked = [[5, 7, 11], [3, 2, 1, 4, 6], [8]], dict(length=8, mask=tiny.MASK)
    options = dict(max_new_tokens=8, method="llada", ignore_eos=True)
    if name == "llada":
        seen = reference.llada(
            lambda x, real: raw(x, real) + never, rows, steps=4, block=4, **asked
        )
        out = jd.generate(lm, rows, block_length=4, steps=2, **options)
    else:
        seen = reference.dream(lambda x, real: raw(x, real) + never, rows, steps=6, **asked)
        out = jd.generate(lm, rows, steps=6, schedule="linear", **options)
    assert out.tokens == seen[-1][:, 5:].tolist()


@pytest.mark.parametrize("reuse", ["block", "none"])
@pytest.mark.parametrize("threshold", [0.02, 1.0])
def test_the_loop_writes_the_published_text_block_by_block(tmp_path, threshold, reuse):
    """Texts that end with a block here, since there a block is never cut."""
    lm = jd.load(tiny.write(tmp_path / "hf", "fast_dllm"), dtype="float32", progress=False)
    raw = reference.forward_of(tiny.CONFIGS["fast_dllm"], tiny.tensors("fast_dllm"))
    never = np.where(np.arange(96) == tiny.MASK, -1e9, 0.0)
    rows, new = [[5, 7, 11], [3, 2, 1, 4, 6], [8], [4] * 8], [13, 11, 11, 12]
    asked = dict(method="fast_dllm_v2", sub_block=2, threshold=threshold, reuse=reuse)
    passes = []
    for row, length in zip(rows, new, strict=True):
        seen = reference.fast_dllm(
            lambda x, real: raw(x, real) + never,
            row,
            length=16,
            mask=tiny.MASK,
            block=4,
            sub_block=2,
            threshold=threshold,
        )
        out = jd.generate(lm, [row], max_new_tokens=length, ignore_eos=True, **asked)
        assert out.tokens[0] == seen[-1][len(row) :][:length].tolist()
        passes.append(out.stats[0].nfe)
    assert (sum(passes) < sum(new)) == (threshold < 1)
    together = jd.generate(lm, rows, max_new_tokens=11, ignore_eos=True, **asked)
    assert (
        together.tokens[1]
        == jd.generate(lm, rows[1:2], max_new_tokens=11, ignore_eos=True, **asked).tokens[0]
    )


def test_the_reference_notices_a_wrong_rule(loaded):
    name, lm = loaded
    ours, tensors = scores(lm, TEXTS)[0], tiny.tensors(name)
    hf = dict(tiny.CONFIGS[name])
    wrong = [hf | {"rope_theta": 100.0}]
    if "hidden_size" in hf:
        wrong.append(hf | {"bd_size": None if hf.get("bd_size") else 4})
    for changed in wrong:
        assert np.abs(ours - reference.logits(changed, tensors, TEXTS[0])).max() > 1e-3


def test_what_inspect_verify_and_repr_say(loaded, tmp_path):
    name, lm = loaded
    folder = tiny.write(tmp_path / "hf", name)
    words = str(EXPECTED[name])
    assert f"mask token {tiny.MASK}" in words
    assert ("shifted" in words, "blocks of 4" in words) == (
        lm.config.denoiser.shifted,
        name == "fast_dllm",
    )
    assert words in repr(lm)
    assert pipeline.inspect(folder)["fills_slots"] == words
    assert pipeline.verify(folder)["fills_slots"] == words
    ours = pipeline.convert(folder, tmp_path / "ours", progress=False)
    assert pipeline.inspect(ours)["fills_slots"] == words
    plain = toys.model()
    assert "fills" not in repr(plain)


@pytest.mark.parametrize(
    ("name", "change", "words"),
    [
        ("llada", {"alibi": True}, "alibi"),
        ("llada", {"rope": False}, "rope = 'False'"),
        ("llada", {"activation_type": "swiglu"}, "activation_type.*swiglu.*silu"),
        ("llada", {"activation_type": None}, "activation_type"),
        ("llada", {"block_group_size": 2}, "block_group_size"),
        ("llada", {"block_type": "sequential"}, "block_type.*llama"),
        ("llada", {"layer_norm_type": "default"}, "layer_norm_type.*rms"),
        ("llada", {"layer_norm_with_affine": False}, "layer_norm_with_affine"),
        ("llada", {"bias_for_layer_norm": True}, "bias_for_layer_norm"),
        ("llada", {"attention_layer_norm": True}, "attention_layer_norm"),
        ("llada", {"scale_logits": True}, "scale_logits"),
        ("llada", {"include_bias": True}, "include_bias.*weight_tying"),
        ("llada", {"clip_qkv": 8.0}, "clip_qkv"),
        ("llada", {"rope_scaling": {"type": "dynamic", "factor": 2.0}}, "rope_scaling"),
        ("llada", {"architectures": ["LLaDAMoEModel"]}, "architectures.*LLaDAModelLM"),
        ("dream", {"use_sliding_window": True, "sliding_window": 8}, "use_sliding_window"),
        ("dream", {"layer_types": ["sliding_attention"] * 2}, "layer_types"),
        ("dream", {"rope_scaling": {"rope_type": "yarn", "factor": 4.0}}, "rope type.*yarn"),
        ("dream", {"use_mrope": True}, "use_mrope"),
        ("dream", {"hidden_act": "relu"}, "hidden_act"),
        ("dream", {"architectures": ["DreamForCausalLM"]}, "architectures.*DreamModel"),
        ("dream", {"block_size": 32}, "block_size"),
        ("fast_dllm", {"use_sliding_window": True, "sliding_window": 8}, "use_sliding_window"),
        ("fast_dllm", {"quantization_config": {"bits": 4}}, "quantization_config"),
    ],
)
def test_options_that_are_not_supported_are_named(name, change, words):
    hf = {k: v for k, v in (tiny.CONFIGS[name] | change).items() if v is not None}
    with pytest.raises(UnsupportedError, match=words):
        config_from_hf(hf)


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("llada", {"mask_token_id": 96}),
        ("llada", {"mask_token_id": "x"}),
        ("llada", {"embedding_size": 90}),
        ("llada", {"n_heads": 5}),
        ("llada", {"n_heads": 0}),
        ("llada", {"n_kv_heads": 3}),
        ("llada", {"multi_query_attention": True}),
        ("llada", {"rope_theta": None}),
        ("dream", {"mask_token_id": -1}),
        ("fast_dllm", {"bd_size": 0}),
        ("fast_dllm", {"bd_size": "32"}),
    ],
)
def test_impossible_values_are_typed_errors(name, change):
    with pytest.raises(CorruptCheckpointError):
        config_from_hf(tiny.CONFIGS[name] | change)


def test_a_config_that_the_class_cannot_say_is_not_written():
    config = config_from_hf(tiny.CONFIGS["dream"])
    for changed in (Denoiser(mask_token=tiny.MASK), None):
        with pytest.raises(UnsupportedError, match="cannot express"):
            config_to_hf(dataclasses.replace(config, denoiser=changed))
    llama = toys.config(denoiser=Denoiser(mask_token=60))
    with pytest.raises(UnsupportedError, match="cannot express"):
        config_to_hf(llama)


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("added_tokens.json", {"|<MASK>|": 91}),
        ("tokenizer_config.json", {"added_tokens_decoder": {"91": {"content": "|<MASK>|"}}}),
        ("tokenizer.json", {"added_tokens": [{"id": 91, "content": "|<MASK>|"}]}),
        (
            "tokenizer_config.json",
            {"mask_token": "<m>", "added_tokens_decoder": {"91": {"content": "<m>"}}},
        ),
    ],
)
def test_mask_token_from_the_tokenizer(tmp_path, file, content):
    folder = tiny.write(tmp_path / "hf", "fast_dllm", mask_token_id=None)
    with pytest.raises(CheckpointError, match=r"mask_token_id is missing.*\|<MASK>\|"):
        open_source(folder)
    (folder / file).write_text(json.dumps(content))
    assert open_source(folder).config.denoiser.mask_token == 91


def byte_level(folder, mask, *, in_vocab=False):
    """A byte-level tokenizer with end and mask tokens, and a chat template."""
    letters = tokenizers.pre_tokenizers.ByteLevel.alphabet()
    vocab = {letter: i for i, letter in enumerate(sorted(letters))}
    names = ["<|im_start|>", mask, "<|im_end|>"]
    if in_vocab:
        vocab |= {name: len(vocab) + i for i, name in enumerate(names)}
    library = tokenizers.Tokenizer(BPE(vocab=vocab, merges=[]))
    library.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    library.decoder = tokenizers.decoders.ByteLevel()
    library.add_special_tokens(names)
    library.save(str(folder / "tokenizer.json"))
    template = "{% for m in messages %}<|im_start|>{{ m.content }}<|im_end|>{% endfor %}"
    (folder / "tokenizer_config.json").write_text(json.dumps({"chat_template": template}))
    return load_tokenizer(folder)


@pytest.mark.parametrize("in_vocab", [False, True])
@pytest.mark.parametrize("mask", ["<|mdm_mask|>", "<|mask|>", "|<MASK>|"])
def test_a_quoted_mask_token_is_text(tmp_path, mask, in_vocab):
    plain = byte_level(tmp_path, mask, in_vocab=in_vocab)
    token, end = plain.backend.token_id(mask), plain.backend.token_id("<|im_end|>")
    assert plain.encode(mask) == [token]
    safe = plain.without(token)
    text = f"say {mask}{mask} twice<|im_end|>"
    tokens = safe.encode(text)
    assert token not in tokens
    assert tokens[-1] == end
    assert safe.decode(tokens) == text.removesuffix("<|im_end|>")
    chat = safe.apply_chat([{"role": "user", "content": f"a{mask}"}])
    assert token not in chat
    assert chat == [plain.backend.token_id("<|im_start|>"), *safe.encode(f"a{mask}"), end]
    # Nothing else changes: ids, bytes, what is saved.
    assert safe.token_bytes == plain.token_bytes
    assert safe.backend.token_id(mask) == token
    assert safe.backend.raw == plain.backend.raw
    assert safe.encode("plain text") == plain.encode("plain text")


def test_words_and_tokens_listed_beside_the_file(tmp_path):
    library = tokenizers.Tokenizer(WordLevel({"a": 0, "[UNK]": 1, "m": 2}, unk_token="[UNK]"))
    library.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    library.decoder = tokenizers.decoders.ByteLevel()
    library.save(str(tmp_path / "tokenizer.json"))
    listed = {"added_tokens_decoder": {"3": {"content": "m a", "special": True}}}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(listed))
    plain = load_tokenizer(tmp_path)
    assert plain.encode("m a m") == [3, 2]
    assert plain.without(3).encode("m a m") == [2, 0, 2]
    assert plain.without(2).encode("m a a") == [3, 0]
    assert plain.without(2).encode("m") == [1]


def pair_of_files(folder, **changes):
    """A tokenizer as Dream publishes it: vocab.json, merges.txt and the added tokens beside."""
    letters = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    vocab = {piece: i for i, piece in enumerate([*letters, "ab", "\u0120ab", "12"])} | changes
    (folder / "vocab.json").write_text(json.dumps(vocab))
    (folder / "merges.txt").write_text("#version: 0.2\na b\n\u0120 ab\n1 2\n")
    names = ["<|endoftext|>", "<|beginoftext|>", "<|mask|>"]
    added = {str(259 + i): {"content": name, "special": True} for i, name in enumerate(names)}
    settings = {"tokenizer_class": "DreamTokenizer", "added_tokens_decoder": added}
    settings |= {"mask_token": "<|mask|>", "eos_token": "<|endoftext|>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))


def test_a_vocabulary_in_two_files(tmp_path):
    pair_of_files(tmp_path)
    made = load_tokenizer(tmp_path)
    one = {made.backend.piece(t): t for t in range(256)}
    # Digits are cut apart before merging, and a decomposed letter is composed.
    assert made.encode("ab ab12") == [256, 257, one["1"], one["2"]]
    assert made.decode(made.encode("e\u0301")) == "\u00e9"
    assert (made.eos_id, made.vocab_size) == (259, 262)
    assert made.encode("ab<|mask|>") == [256, 261]
    assert 261 not in made.without(261).encode("ab<|mask|>")
    assert made.without(261).decode(made.without(261).encode("ab<|mask|>")) == "ab<|mask|>"
    (tmp_path / "saved").mkdir()
    made.save(tmp_path / "saved")
    assert load_tokenizer(tmp_path / "saved").encode("ab ab12") == made.encode("ab ab12")
    pair_of_files(tmp_path, ab=300)
    with pytest.raises(CorruptCheckpointError, match="vocab.json"):
        load_tokenizer(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class": "Other"}')
    assert load_tokenizer(tmp_path) is None


def test_a_loaded_model_never_reads_the_mask_from_text(tmp_path):
    folder = tiny.write(tmp_path / "hf", "llada", mask_token_id=None, vocab_size=96)
    vocab = {chr(33 + i): i for i in range(64)}
    library = tokenizers.Tokenizer(BPE(vocab=vocab, merges=[]))
    library.decoder = tokenizers.decoders.ByteLevel()
    library.add_special_tokens(["<|mdm_mask|>"])
    library.save(str(folder / "tokenizer.json"))
    for path in (folder, pipeline.convert(folder, tmp_path / "ours", progress=False)):
        lm = jd.load(path, dtype="float32", progress=False)
        assert lm.config.denoiser.mask_token == 64
        assert 64 not in lm.tokenizer.encode("A<|mdm_mask|>B")
        # Tokens that are given as tokens are taken as they are.
        assert lm.tokenizer.backend.token_id("<|mdm_mask|>") == 64


@pytest.mark.parametrize(
    ("name", "billions"), [("llada-8b", 8.02), ("dream-7b", 7.62), ("fast-dllm-v2-7b", 7.62)]
)
def test_published_shapes(name, billions):
    config = catalog.model_shape(name)
    count = sum(int(np.prod(shape)) for shape in param_shapes(config).values())
    assert round(count / 1e9, 2) == billions
    assert config.denoiser is not None
