"""The real vocabularies, against what their own libraries said."""

import json
from pathlib import Path

import gguf
import pytest

from jaxdecode.convert import download
from jaxdecode.convert.tokenizer import load_tokenizer, tokenizer_from_gguf

GOLDEN = json.loads((Path(__file__).parents[1] / "golden/tokenizers.json").read_text())
# Where llama.cpp and transformers differ, we are with the model's own tokenizer, as llama.cpp is:
# SmolLM2 splits all digits; Gemma takes the longest run of spaces first.
ONLY_LLAMA_CPP = {"smollm2": {"١٢٣ ½ Ⅷ"}, "gemma3": {" " * 70}}

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module", params=["smollm2-135m", "gemma3-270m"])
def model(request):
    (path,) = download.resolve(request.param, accept_terms=True).parent.glob("*.gguf")
    fields = gguf.GGUFReader(path).fields
    metadata = {name: field.contents() for name, field in fields.items() if "tokenizer." in name}
    return request.param.partition("-")[0], tokenizer_from_gguf(metadata)


def test_ids_equal_the_recorded(model):
    name, tokenizer = model
    golden = GOLDEN[name]
    rows = zip(GOLDEN["strings"], golden["transformers"], golden["llama_cpp"], strict=True)
    for text, transformers_ids, llama_cpp_ids in rows:
        tokens = tokenizer.encode(text)
        assert tokens == llama_cpp_ids, text
        assert (tokens == transformers_ids) == (text not in ONLY_LLAMA_CPP[name]), text


def test_text_comes_back(model):
    _, tokenizer = model
    for text in GOLDEN["strings"]:
        if "<" not in text:  # special tokens give no text
            assert tokenizer.decode(tokenizer.encode(text)) == text


def test_chats_equal_the_recorded(model):
    name, tokenizer = model
    for chat, tokens in zip(GOLDEN["chats"], GOLDEN[name]["chats"], strict=False):
        assert tokenizer.apply_chat(chat) == tokens


def test_saved_folder_reads_the_same(model, tmp_path):
    _, tokenizer = model
    tokenizer.save(tmp_path)
    loaded = load_tokenizer(tmp_path)
    assert loaded.token_bytes == tokenizer.token_bytes
    assert loaded.stop_tokens == tokenizer.stop_tokens
    for text in GOLDEN["strings"]:
        assert loaded.encode(text) == tokenizer.encode(text)
