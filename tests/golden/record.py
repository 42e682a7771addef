"""Records the goldens from transformers, the implementation the tests compare with.

The only file besides `tests/bench/systems.py` that imports torch and transformers (the `oracle`
dependency group); the tests themselves read only what this script wrote. See README.md here.

    python tests/golden/record.py tiny tests/golden/tiny
    python tests/golden/record.py real MODEL.gguf tests/golden/NAME.npz --prompts PROMPTS.jsonl
"""

import argparse
import copy
import dataclasses
import json
import pathlib
import sys
from collections.abc import Iterator

import gguf
import numpy as np
import torch
import transformers

PROMPT_LENGTHS = (1, 2, 5, 13, 27, 40)
TINY_NEW_TOKENS = 24
MIN_GAP = 2e-3  # greedy paths of tiny models keep this distance from a tie in every step
MIN_DISTINCT = 8  # and visit this many tokens: a path stuck on one token would hide mistakes
NUM_PROMPTS = 20
MAX_PROMPT = 300
REAL_NEW_TOKENS = 128
NUM_VOCAB_IDS = 512
TOP = 10


@dataclasses.dataclass(frozen=True, kw_only=True)
class Tiny:
    """A tiny random model.

    Attributes:
        model_type: the `model_type` of its config.json.
        hidden_layer: index of the block whose output is stored.
        config: arguments of the transformers 5 config class.
        v4: the keys that transformers 4 wrote in another way.
        v4_drop: keys of `config` that files of that age do not have.
    """

    model_type: str
    hidden_layer: int = 1
    config: dict
    v4: dict
    v4_drop: tuple[str, ...] = ()


# Sharp attention and blocks that outweigh the embedding, else the last token predicts itself.
GAINS = {"q_proj": 1.5, "k_proj": 1.5, "o_proj": 3.0, "down_proj": 3.0}
COMMON = {
    "vocab_size": 96,
    "hidden_size": 32,
    "intermediate_size": 40,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "rms_norm_eps": 3e-5,  # nobody's default
    "bos_token_id": 1,
    "eos_token_id": None,
    "pad_token_id": None,
}
LLAMA3_SCALING = {
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
    "rope_type": "llama3",
}


def _rope(theta: float, **scaling) -> dict:
    return {"rope_theta": theta, "rope_type": "default"} | scaling


TINY = {
    # head_dim 8 with theta 1000: wavelengths 6, 35, 199 and 1117, so every band of llama3 is met.
    "llama": Tiny(
        model_type="llama",
        config={"rope_parameters": _rope(1000.0, **LLAMA3_SCALING), "tie_word_embeddings": False},
        v4={"rope_theta": 1000.0, "rope_scaling": LLAMA3_SCALING},
    ),
    "llama_plain": Tiny(
        model_type="llama",
        config={
            "num_key_value_heads": 4,
            "attention_bias": True,
            "mlp_bias": True,
            "tie_word_embeddings": True,
            "rope_parameters": _rope(10000.0),
        },
        v4={"rope_scaling": None},  # the first Llama files have no rope_theta either
        v4_drop=("num_key_value_heads",),
    ),
    "llama_linear": Tiny(
        model_type="llama",
        config={
            "head_dim": 8,
            "tie_word_embeddings": False,
            "rope_parameters": _rope(10000.0, rope_type="linear", factor=4.0),
        },
        v4={"rope_theta": 10000.0, "rope_scaling": {"type": "linear", "factor": 4.0}},
        v4_drop=("head_dim",),
    ),
    "mistral": Tiny(
        model_type="mistral",
        config={
            "head_dim": 16,
            "sliding_window": 8,
            "tie_word_embeddings": False,
            "rope_parameters": _rope(5000.0),
        },
        v4={"rope_theta": 5000.0},
    ),
    # Files of transformers 4 carry a window that use_sliding_window switches off.
    "qwen2": Tiny(
        model_type="qwen2",
        config={
            "use_sliding_window": False,
            "max_window_layers": 1,
            "tie_word_embeddings": False,
            "rope_parameters": _rope(2000.0),
        },
        v4={"rope_theta": 2000.0, "sliding_window": 6, "rope_scaling": None},
    ),
    "qwen2_swa": Tiny(
        model_type="qwen2",
        config={
            "use_sliding_window": True,
            "sliding_window": 6,
            "max_window_layers": 1,
            "tie_word_embeddings": True,
            "rope_parameters": _rope(2000.0),
        },
        v4={"rope_theta": 2000.0},
    ),
    "qwen3": Tiny(
        model_type="qwen3",
        config={
            "head_dim": 16,
            "attention_bias": False,
            "use_sliding_window": False,
            "max_window_layers": 3,
            "tie_word_embeddings": False,
            "rope_parameters": _rope(2000.0),
        },
        v4={"rope_theta": 2000.0, "sliding_window": None, "rope_scaling": None},
    ),
    "gemma3": Tiny(
        model_type="gemma3_text",
        hidden_layer=3,
        config={
            "num_hidden_layers": 7,
            "num_key_value_heads": 1,
            "head_dim": 16,
            "query_pre_attn_scalar": 24,
            "sliding_window": 6,
            "layer_types": [
                "full_attention" if i in (2, 5) else "sliding_attention" for i in range(7)
            ],
            "rms_norm_eps": 1e-4,
            "hidden_activation": "gelu_pytorch_tanh",
            "tie_word_embeddings": True,
            "rope_parameters": {
                "full_attention": _rope(5000.0, rope_type="linear", factor=4.0),
                "sliding_attention": _rope(100.0),
            },
        },
        v4={
            "rope_theta": 5000.0,
            "rope_scaling": {"rope_type": "linear", "factor": 4.0},
            "rope_local_base_freq": 100.0,
            "sliding_window_pattern": 3,
        },
        v4_drop=("layer_types", "tie_word_embeddings"),
    ),
}


def main() -> None:
    """Parses the command line and records."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    tiny = commands.add_parser("tiny", help="tiny random models of every family and their goldens")
    tiny.add_argument("out", type=pathlib.Path)
    real = commands.add_parser("real", help="goldens of a real model, read from a GGUF file")
    real.add_argument("model", type=pathlib.Path)
    real.add_argument("out", type=pathlib.Path)
    real.add_argument("--prompts", type=pathlib.Path, required=True, help="JSON lines with turns")
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    transformers.utils.logging.disable_progress_bar()
    with torch.inference_mode():
        if args.command == "tiny":
            for name in TINY:
                record_tiny(name, args.out / name)
        else:
            record_real(args.model, args.out, prompts=args.prompts)


# ---------------------------------------------------------------------------------- tiny models


def record_tiny(name: str, out: pathlib.Path) -> None:
    """Writes the model folder, the transformers 4 config and the golden of one tiny model."""
    spec = TINY[name]
    config = transformers.AutoConfig.for_model(spec.model_type, **(COMMON | spec.config))
    for seed in range(100):
        model = _random_model(config, seed=seed)
        arrays = _tiny_arrays(model, seed=seed, hidden_layer=spec.hidden_layer)
        distinct = min(len(set(row)) for row in arrays["greedy"].tolist())
        if arrays["greedy_gap"].min() > MIN_GAP and distinct >= MIN_DISTINCT:
            break
    else:
        sys.exit(f"{name}: no seed gives varied greedy paths without a near tie")
    model.save_pretrained(out)
    v4 = _v4_config(spec, architectures=model.config.architectures)
    (out / "config_v4.json").write_text(json.dumps(v4, indent=2) + "\n")
    _check_saved(out, arrays)
    meta = {"seed": seed, "hidden_layer": spec.hidden_layer} | _versions()
    _save(out / "golden.npz", arrays, meta=meta)
    top = np.abs(arrays["logits"]).max()
    gap = arrays["greedy_gap"].min()
    print(f"{name}: seed {seed}, largest logit {top:.1f}, smallest greedy gap {gap:.4f}")


def _random_model(config, *, seed: int) -> torch.nn.Module:
    """A model in which every weight matters: norms and biases are random too, queries are sharp."""
    config = copy.deepcopy(config)
    model = transformers.AutoModelForCausalLM.from_config(
        config, dtype=torch.float32, attn_implementation="eager"
    ).eval()
    generator = torch.Generator().manual_seed(seed)
    offset = 1.0 if config.model_type == "gemma3_text" else 0.0
    for name, weight in model.named_parameters():
        normal = torch.randn(weight.shape, generator=generator)
        if "norm" in name:
            scale = 0.5 + torch.rand(weight.shape, generator=generator)
            weight.copy_((2.0 if "post_" in name else 1.0) * scale - offset)
        elif name.endswith("bias"):
            weight.copy_(0.3 * normal)
        elif "embed" in name or "lm_head" in name:
            weight.copy_((0.2 if offset else 0.4) * normal)  # Gemma multiplies embeddings
        else:
            gain = next((g for part, g in GAINS.items() if part in name), 1.0)
            weight.copy_(gain / weight.shape[1] ** 0.5 * normal)
    return model


def _tiny_arrays(model, *, seed: int, hidden_layer: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    vocab, longest = model.config.vocab_size, max(PROMPT_LENGTHS)
    prompts = [rng.integers(0, vocab, n).tolist() for n in PROMPT_LENGTHS]
    logits = np.zeros((len(prompts), longest, vocab), np.float32)
    hidden = np.zeros((len(prompts), longest, model.config.hidden_size), np.float32)
    kept = []
    handle = model.model.layers[hidden_layer].register_forward_hook(
        lambda _m, _i, o: kept.append(o)
    )
    for i, prompt in enumerate(prompts):
        kept.clear()
        logits[i, : len(prompt)] = model(torch.tensor([prompt])).logits[0].numpy()
        output = kept[0][0] if isinstance(kept[0], tuple) else kept[0]
        hidden[i, : len(prompt)] = output[0].numpy()
    handle.remove()
    greedy, gap = _greedy_all(model, prompts, TINY_NEW_TOKENS)
    _check_greedy(model, prompts, greedy)
    tokens = _pad(prompts, longest)
    return {
        "lengths": np.array(PROMPT_LENGTHS, np.int32),
        "tokens": tokens,
        "logits": logits,
        "hidden": hidden,
        "greedy": greedy,
        "greedy_gap": gap,
    }


def _v4_config(spec: Tiny, *, architectures: list[str]) -> dict:
    """The config.json that transformers 4 would have written, by hand."""
    dropped = {"rope_parameters", *spec.v4_drop}
    config = {key: value for key, value in (COMMON | spec.config).items() if key not in dropped}
    if spec.model_type != "gemma3_text":
        config["hidden_act"] = "silu"
    fixed = {"torch_dtype": "float32", "transformers_version": "4.50.0", "use_cache": True}
    head = {"architectures": architectures, "model_type": spec.model_type}
    return head | config | spec.v4 | fixed


def _check_saved(folder: pathlib.Path, arrays: dict[str, np.ndarray]) -> None:
    """The saved weights under either config must give the recorded logits, bit for bit."""
    for name in ("config.json", "config_v4.json"):
        raw = json.loads((folder / name).read_text())
        config = transformers.AutoConfig.for_model(raw.pop("model_type"), **raw)
        model = transformers.AutoModelForCausalLM.from_pretrained(
            folder, config=config, dtype=torch.float32, attn_implementation="eager"
        )
        length = int(arrays["lengths"][-1])
        logits = model(torch.tensor(arrays["tokens"][-1:, :length])).logits[0].numpy()
        if not np.array_equal(logits, arrays["logits"][-1, :length]):
            sys.exit(f"{folder / name}: the saved model gives other logits")


# ---------------------------------------------------------------------------------- real models


def record_real(path: pathlib.Path, out: pathlib.Path, *, prompts: pathlib.Path) -> None:
    """Writes the golden of a real model: a few logits and the greedy tokens of 20 prompts."""
    model, tokenizer = load_gguf(path)
    rows = [prompt_tokens(tokenizer, text) for text in pick_prompts(prompts)]
    rng = np.random.default_rng(0)
    vocab_ids = np.sort(rng.choice(model.config.vocab_size, NUM_VOCAB_IDS, replace=False))
    arrays = {
        "lengths": np.array([len(row) for row in rows], np.int32),
        "tokens": _pad(rows, MAX_PROMPT),
        "vocab_ids": vocab_ids.astype(np.int32),
    }
    per_prompt = [_some_logits(model, row, vocab_ids) for row in rows]
    arrays |= {key: np.stack([one[key] for one in per_prompt]) for key in per_prompt[0]}
    arrays["greedy"], arrays["greedy_gap"] = _greedy_all(model, rows, REAL_NEW_TOKENS)
    meta = {
        "template": "chat" if tokenizer.chat_template else "raw",
        "greedy": "eos tokens are ordinary tokens: nothing stops early",
        "model": gguf.GGUFReader(path).fields["general.name"].contents(),
    }
    _save(out, arrays, meta=meta | _versions())
    gaps = np.sort(arrays["greedy_gap"].ravel())
    print(f"{out.name}: lengths {arrays['lengths'].tolist()}, smallest gaps {gaps[:5].tolist()}")


def load_gguf(path: pathlib.Path) -> tuple[torch.nn.Module, transformers.PreTrainedTokenizerBase]:
    """The model in float32 with eager attention, its config checked, and the tokenizer."""
    model = transformers.AutoModelForCausalLM.from_pretrained(
        path.parent, gguf_file=path.name, dtype=torch.float32, attn_implementation="eager"
    ).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
    if model.config.model_type == "gemma3_text":
        _check_gemma(model)
    # Nothing may stop generation: the goldens show the law of the model, not of its chat format.
    model.generation_config.eos_token_id = None
    model.generation_config.pad_token_id = 0
    return model, tokenizer


def _check_gemma(model: torch.nn.Module) -> None:
    """GGUF files of Gemma 3 leave out the local RoPE base, the window pattern and the query scale.

    transformers fills in its defaults, which are right for the 270M model; a file or a version for
    which they are not must not become a golden.
    """
    c = model.config
    bases = {kind: rope["rope_theta"] for kind, rope in c.rope_parameters.items()}
    is_full = [kind == "full_attention" for kind in c.layer_types]
    right = (
        bases == {"full_attention": 1e6, "sliding_attention": 1e4}
        and is_full == [(i + 1) % 6 == 0 for i in range(c.num_hidden_layers)]
        and c.query_pre_attn_scalar == c.head_dim == 256
        and c.sliding_window == 512
        and model.lm_head.weight is model.model.embed_tokens.weight
    )
    if not right:
        sys.exit(f"transformers {transformers.__version__} misreads this Gemma file:\n{c}")


def pick_prompts(path: pathlib.Path) -> list[str]:
    """The first turns of 20 lines: the first of each category, then the second, and so on."""
    by_category: dict[str, list[str]] = {}
    for line in path.read_text().splitlines():
        item = json.loads(line)
        by_category.setdefault(item["category"], []).append(item["turns"][0])
    ranks = range(max(map(len, by_category.values())))
    ordered = [texts[rank] for rank in ranks for texts in by_category.values() if rank < len(texts)]
    return ordered[:NUM_PROMPTS]


def prompt_tokens(tokenizer, text: str) -> list[int]:
    """Token ids of at most MAX_PROMPT, in the chat template if there is one, else after BOS."""
    if not tokenizer.chat_template:
        ids = tokenizer(text, add_special_tokens=False).input_ids
        return [tokenizer.bos_token_id, *ids][:MAX_PROMPT]
    ids = tokenizer(text, add_special_tokens=False).input_ids
    room = MAX_PROMPT - len(_chat(tokenizer, "")) - 2  # cut text may split into more tokens
    return _chat(tokenizer, tokenizer.decode(ids[:room]))


def _chat(tokenizer, text: str) -> list[int]:
    messages = [{"role": "user", "content": text}]
    prompt = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    return tokenizer(prompt, add_special_tokens=False).input_ids


def _some_logits(model, prompt: list[int], vocab_ids: np.ndarray) -> dict[str, np.ndarray]:
    """Logits of four positions, the last prompt position last, on a subset of the vocabulary."""
    n = len(prompt)
    positions = np.array([0, n // 3, 2 * n // 3, n - 1], np.int32)
    logits = model(torch.tensor([prompt]), logits_to_keep=torch.tensor(positions)).logits[0]
    top = torch.topk(logits, TOP)
    return {
        "positions": positions,
        "logits": logits[:, torch.tensor(vocab_ids)].numpy(),
        "logsumexp": torch.logsumexp(logits, -1).numpy(),
        "top_ids": top.indices.numpy().astype(np.int32),
        "top_logits": top.values.numpy(),
    }


# ---------------------------------------------------------------------------------- shared parts


def _greedy_all(model, prompts: list[list[int]], num_new: int) -> tuple[np.ndarray, np.ndarray]:
    """Greedy tokens and the distance of the two largest logits in every step, `[prompts, new]`."""
    rows = list(_greedy(model, prompts, num_new))
    tokens, gaps = zip(*rows, strict=True)
    return np.stack(tokens), np.stack(gaps)


def _greedy(model, prompts: list[list[int]], num_new: int) -> Iterator[tuple]:
    for prompt in prompts:
        ids = torch.tensor([prompt])
        out = model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            do_sample=False,
            max_new_tokens=num_new,
            min_new_tokens=None,
            return_dict_in_generate=True,
            output_logits=True,
        )
        top = torch.topk(torch.cat(out.logits), 2).values
        tokens = out.sequences[0, len(prompt) :].numpy().astype(np.int32)
        if len(tokens) != num_new:
            sys.exit(f"generation stopped after {len(tokens)} of {num_new} tokens")
        yield tokens, (top[:, 0] - top[:, 1]).numpy()


def _check_greedy(model, prompts: list[list[int]], greedy: np.ndarray) -> None:
    """The cached greedy path must be the argmax of one pass without a cache."""
    for prompt, tokens in zip(prompts, greedy, strict=True):
        logits = model(torch.tensor([[*prompt, *tokens[:-1]]]), use_cache=False).logits[0]
        if not np.array_equal(logits[len(prompt) - 1 :].argmax(-1).numpy(), tokens):
            sys.exit("generate and a plain forward pass disagree")


def _pad(rows: list[list[int]], width: int) -> np.ndarray:
    padded = np.full((len(rows), width), -1, np.int32)
    for i, row in enumerate(rows):
        padded[i, : len(row)] = row
    return padded


def _versions() -> dict[str, str]:
    return {"transformers": transformers.__version__, "torch": torch.__version__}


def _save(path: pathlib.Path, arrays: dict[str, np.ndarray], *, meta: dict) -> None:
    np.savez_compressed(path, meta=np.array(json.dumps(meta)), **arrays)


if __name__ == "__main__":
    main()
