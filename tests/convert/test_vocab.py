"""Two vocabularies: what stands for what."""

import json

import pytest
import tokenizers
from tokenizers.models import BPE

from jaxdecode.convert import vocab
from jaxdecode.convert.tokenizer import load_tokenizer
from jaxdecode.errors import InputError

END = "<|end|>"


@pytest.fixture
def build(tmp_path):
    def make(pieces, special=(), merges=()):
        folder = tmp_path / f"t{len(list(tmp_path.iterdir()))}"
        folder.mkdir()
        tokenizer = tokenizers.Tokenizer(
            BPE(vocab={piece: i for i, piece in enumerate(pieces)}, merges=list(merges))
        )
        tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = tokenizers.decoders.ByteLevel()
        tokenizer.add_special_tokens(list(special))
        tokenizer.save(str(folder / "tokenizer.json"))
        settings = {"eos_token": special[0]} if special else {}
        (folder / "tokenizer_config.json").write_text(json.dumps(settings))
        return load_tokenizer(folder)

    return make


def side(name, tokenizer, size=None):
    return vocab.Vocabulary(name, size or tokenizer.vocab_size, tokenizer)


def test_equal_bytes_are_equal_tokens(build):
    ours = side("ours", build("abcd", [END]))
    theirs = side("theirs", build("dxcba", ["<eos>"]))
    maps = vocab.match(ours, theirs)
    assert maps is not None
    assert maps.column.tolist() == [4, 3, 2, 0, 5], "ends of texts are a pair"
    assert maps.to_draft.tolist() == maps.column.tolist()


def test_the_longest_end_stands_for_an_unknown_token(build):
    ours = side("ours", build(["a", "b", "c", "ab", "cab"], merges=[("a", "b"), ("c", "ab")]), 7)
    theirs = side("theirs", build(["b", "a", "ab"], merges=[("a", "b")]))
    maps = vocab.match(ours, theirs)
    assert maps is not None
    assert maps.to_draft.tolist() == [1, 0, -1, 2, 2, -1, -1], "rows without a token map to none"
    assert maps.column.tolist() == [1, 0, -1, 2, -1, -1, -1]


def test_alike_tokenizers_need_no_map(build):
    shorter, longer = build("abcd"), build("abcde")
    assert vocab.match(side("a", shorter, 8), side("b", longer, 16)) is None
    assert vocab.match(side("a", None, 8), side("b", None, 8)) is None


def test_what_cannot_be_matched_is_refused(build):
    with pytest.raises(InputError, match="'b' has 9 tokens and 'a' has 8"):
        vocab.match(side("a", None, 8), side("b", build("abc"), 9))
    with pytest.raises(InputError, match="no token in common"):
        vocab.match(side("a", build("abc")), side("b", build("xyz")))
