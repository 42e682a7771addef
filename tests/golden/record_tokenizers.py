"""Records tokenizers.json: token ids of 20 strings, from transformers and from llama.cpp.

Run in an environment with transformers, gguf and llama-cpp-python:
    python tests/golden/record_tokenizers.py smollm2=SmolLM2.gguf gemma3=gemma-3.gguf

llama.cpp reads `tokenizer.ggml.pre`; transformers' reading of GGUF files splits SmolLM2's digits
and Gemma's long runs of spaces differently. Both are recorded, and the test names where it follows
which.
"""

import json
import sys
from pathlib import Path

from llama_cpp import Llama
from transformers import AutoTokenizer

STRINGS = [
    "Why is the sky blue?",
    "",
    " ",
    "  two  spaces ",
    "\n\n\nx\r\n\ty",
    "I'll say DON'T, it's 1234567890 and 3.14159",
    "def f(x):\n    return x ** 2  # ok\n",
    "naïve café Ærøskøbing",
    "中文字符测试，你好世界。",
    "日本語のテキスト",
    "Привет, как дела?",
    "مرحبا بالعالم",
    "नमस्ते दुनिया",
    "🙂👩‍👩‍👧‍👦🇩🇪",
    "e\u0301 \u00a0\u200b\u2028",
    "<|im_start|>user\nhi<|im_end|>\n",
    "<start_of_turn>user\nhi<end_of_turn>\n",
    "[multimodal] <unused10> <0x0A>",
    " " * 70,
    "١٢٣ ½ Ⅷ",
]
CHATS = [
    [{"role": "user", "content": "Why is the sky blue?"}],
    [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "hi\n\nthere"},
        {"role": "assistant", "content": "yo"},
        {"role": "user", "content": "🙂"},
    ],
]


def record(path: Path) -> dict:
    tokenizer = AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
    native = Llama(str(path), vocab_only=True, verbose=False)
    start = [tokenizer.bos_token_id] if tokenizer.encode("") else []
    chats = [
        tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_dict=False)
        for chat in CHATS
        if tokenizer.chat_template
    ]
    return {
        "transformers": [tokenizer.encode(text) for text in STRINGS],
        "llama_cpp": [
            start + native.tokenize(text.encode(), add_bos=False, special=True) for text in STRINGS
        ],
        "chats": chats,
    }


if __name__ == "__main__":
    models = dict(argument.split("=", 1) for argument in sys.argv[1:])
    golden = {"strings": STRINGS, "chats": CHATS}
    golden |= {name: record(Path(path)) for name, path in models.items()}
    text = json.dumps(golden, ensure_ascii=True, indent=None)
    (Path(__file__).parent / "tokenizers.json").write_text(text.replace("]], ", "]],\n") + "\n")
