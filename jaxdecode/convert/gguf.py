"""GGUF files in: names, metadata and values as a Hugging Face checkpoint would have them."""

import collections
import functools
import math
import re
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from gguf.constants import GGMLQuantizationType as Kind

from jaxdecode.convert import names
from jaxdecode.convert.gguf_header import Header, TensorInfo, read_header
from jaxdecode.convert.hf_config import config_from_hf
from jaxdecode.convert.source import Box, Source
from jaxdecode.errors import CheckpointError, CorruptCheckpointError, InputError, UnsupportedError

_PLAIN = {
    Kind.F32: ("float32", np.dtype("<f4")),
    Kind.F16: ("float16", np.dtype("<f2")),
    Kind.BF16: ("bfloat16", np.dtype(ml_dtypes.bfloat16)),
}
_QUANTIZED = (Kind.Q8_0, Kind.Q4_0, Kind.Q4_1, Kind.Q5_0, Kind.Q5_1,
              Kind.Q2_K, Kind.Q3_K, Kind.Q4_K, Kind.Q5_K, Kind.Q6_K)  # fmt: skip

_MODEL_TYPES = {
    "llama": "llama",
    "mistral": "mistral",
    "qwen2": "qwen2",
    "qwen3": "qwen3",
    "gemma3": "gemma3_text",
}

# GGUF metadata key (after the architecture) -> config.json key.
_KEYS = {
    "context_length": "max_position_embeddings",
    "embedding_length": "hidden_size",
    "block_count": "num_hidden_layers",
    "feed_forward_length": "intermediate_size",
    "attention.head_count": "num_attention_heads",
    "attention.head_count_kv": "num_key_value_heads",
    "attention.layer_norm_rms_epsilon": "rms_norm_eps",
    "attention.key_length": "head_dim",
    "rope.freq_base": "rope_theta",
}
_REQUIRED = ("context_length", "embedding_length", "block_count", "feed_forward_length",
             "attention.head_count", "attention.layer_norm_rms_epsilon")  # fmt: skip
# Read by the code below, or without effect on the result.
_OTHER_KEYS = ("vocab_size", "attention.value_length", "rope.dimension_count", "rope.scaling.type",
               "rope.scaling.factor", "rope.scaling.original_context_length",
               "rope.scaling.finetuned", "rope.freq_base_swa", "attention.sliding_window",
               "attention.sliding_window_pattern", "attention.causal",
               "tensor_data_layout")  # fmt: skip

_NAMES = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
}
_LAYER_NAMES = {
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_GEMMA_NAMES = {
    "post_attention_norm": "post_attention_layernorm",
    "ffn_norm": "pre_feedforward_layernorm",
    "post_ffw_norm": "post_feedforward_layernorm",
}
_SLICE_ROWS = 4096
_TOKEN_IDS = {"bos": "bos_token_id", "eos": "eos_token_id", "padding": "pad_token_id"}


def open_gguf(path: Path) -> Source:
    """Opens a GGUF file; only its header is read now.

    Raises:
        CorruptCheckpointError: a damaged header, missing tensors or wrong shapes.
        UnsupportedError: architecture, metadata or quantization we do not implement.
        CheckpointError: a tensor that has no place in the model.
    """
    header = read_header(path)
    try:
        hf = _hf_config(header, path)
    except (TypeError, ValueError, KeyError, ArithmeticError, AttributeError, IndexError) as error:
        raise CorruptCheckpointError(f"{path}: unusable GGUF metadata ({error}).") from error
    config = config_from_hf(hf)
    store = GgufStore(path, header, hf)
    names.check_tensors(config, store, str(path))
    metadata = {k: v for k, v in header.fields.items() if k.startswith("tokenizer.")}
    return Source(
        path=path,
        kind="gguf",
        config=config,
        dtypes=names.stored_dtypes(config, store),
        read=functools.partial(names.read_param, config, store),
        files=(path,),
        tokenizer_metadata=metadata,
        token_ids={
            key: value
            for short, key in _TOKEN_IDS.items()
            if (value := metadata.get(f"tokenizer.ggml.{short}_token_id")) is not None
        },
        quantization=dict(collections.Counter(t.kind.name for t in header.tensors.values())),
    )


def _hf_config(header: Header, path: Path) -> dict[str, Any]:
    """The config.json this file would have had."""
    fields, tensors = header.fields, header.tensors
    arch = fields.get("general.architecture")
    if arch not in _MODEL_TYPES:
        raise UnsupportedError(
            f"{path}: GGUF architecture {str(arch)[:80]!r} is not supported; supported: "
            f"{', '.join(_MODEL_TYPES)}."
        )
    own = {k[len(arch) + 1 :]: v for k, v in fields.items() if k.startswith(f"{arch}.")}
    for key, value in own.items():
        if key not in _KEYS and key not in _OTHER_KEYS and value not in (0, False, "", "none"):
            raise UnsupportedError(
                f"{path}: metadata {arch}.{key} = {str(value)[:80]!r} is not supported; it may "
                "change the model's results."
            )
    missing = [f"{arch}.{key}" for key in _REQUIRED if key not in own]
    if missing or "token_embd.weight" not in tensors:
        what = ", ".join(missing) or "tensor token_embd.weight"
        raise CorruptCheckpointError(f"{path}: GGUF file lacks {what}.")
    hf = {theirs: own[key] for key, theirs in _KEYS.items() if key in own}
    # The shortest decimal that is this float32: 1e-05, not 9.999999747378752e-06.
    hf["rms_norm_eps"] = float(str(np.float32(hf["rms_norm_eps"])))
    hf["model_type"] = _MODEL_TYPES[arch]
    hf["vocab_size"] = tensors["token_embd.weight"].shape[0]
    hf["tie_word_embeddings"] = "output.weight" not in tensors
    hf["attention_bias"] = "blk.0.attn_q.bias" in tensors
    hf["mlp_bias"] = "blk.0.ffn_up.bias" in tensors
    head_dim = hf.setdefault("head_dim", hf["hidden_size"] // hf["num_attention_heads"])
    for key in ("rope.dimension_count", "attention.value_length"):
        if own.get(key, head_dim) != head_dim:
            raise UnsupportedError(
                f"{path}: {arch}.{key} = {own[key]!r} is not supported; only {head_dim}, the "
                "width of a head, is."
            )
    if own.get("attention.causal", True) is not True:
        raise UnsupportedError(f"{path}: {arch}.attention.causal = false is not supported.")
    _add_rope(hf, own, header, path)
    _add_windows(hf, own, arch)
    return hf


def _add_windows(hf: dict[str, Any], own: dict[str, Any], arch: str) -> None:
    window = own.get("attention.sliding_window") or None
    pattern = own.get("attention.sliding_window_pattern")
    if arch == "gemma3":
        if window is not None:
            hf["sliding_window"] = window
        # Files before the key existed mean every sixth layer; newer ones list the local layers.
        if isinstance(pattern, list):
            hf["layer_types"] = ["sliding_attention" if x else "full_attention" for x in pattern]
        elif pattern is not None:
            hf["sliding_window_pattern"] = pattern
        if "rope.freq_base_swa" in own:
            hf["rope_local_base_freq"] = own["rope.freq_base_swa"]
        # llama.cpp: the 27B model alone (62 layers) scales queries by its width per head.
        deep = hf["num_hidden_layers"] == 62
        heads = hf["num_attention_heads"]
        hf["query_pre_attn_scalar"] = hf["hidden_size"] // heads if deep else hf["head_dim"]
    elif arch == "mistral" or (arch == "llama" and window is not None):
        hf |= {"model_type": "mistral", "sliding_window": window}
    elif window is not None:
        raise UnsupportedError(
            f"{arch}.attention.sliding_window = {window} is not supported in GGUF files, which do "
            "not say which layers use it; convert the safetensors folder."
        )


def _add_rope(hf: dict[str, Any], own: dict[str, Any], header: Header, path: Path) -> None:
    kind = own.get("rope.scaling.type", "none")
    if kind == "linear":
        hf["rope_scaling"] = {"rope_type": "linear", "factor": own["rope.scaling.factor"]}
    elif kind != "none":
        raise UnsupportedError(
            f"{path}: rope.scaling.type = {str(kind)[:40]!r} is not supported; supported: none, "
            "linear, llama3."
        )
    info = header.tensors.get("rope_freqs.weight")
    if info is None:
        return
    if kind != "none" or info.shape != (hf["head_dim"] // 2,) or info.kind != Kind.F32:
        raise UnsupportedError(f"{path}: rope_freqs.weight {info} is not a Llama 3 scaling table.")
    found = recognise_llama3(
        _read_tensor(path, info),
        theta=hf.get("rope_theta", 10_000.0),
        lengths=(own.get("rope.scaling.original_context_length"), 8192, 4096, 16384, 32768),
    )
    if found is None:
        raise UnsupportedError(
            f"{path}: rope_freqs.weight holds frequency factors of an unknown scaling; only the "
            "Llama 3 rule with low_freq_factor 1 and high_freq_factor 4 is supported."
        )
    hf |= found


def llama3_factors(
    *, theta: float, head_dim: int, factor: float, low: float, high: float, original: int
) -> np.ndarray:
    """What the Llama 3 rule divides each rotary frequency by (Llama 3.1 model card)."""
    frequency = theta ** -(np.arange(0, head_dim, 2, dtype=np.float64) / head_dim)
    rotations = original * frequency / (2 * math.pi)
    smooth = np.clip((rotations - low) / (high - low), 0.0, 1.0)
    return 1.0 / ((1.0 - smooth) / factor + smooth)


def recognise_llama3(
    factors: np.ndarray, *, theta: float, lengths: tuple[int | None, ...]
) -> dict[str, Any] | None:
    """Finds the Llama 3 parameters that give these frequency factors, as config.json entries."""
    largest = float(factors.max())
    if not math.isfinite(largest) or largest < 1.0:
        return None
    if np.all(factors == 1.0):
        return {}
    for original in filter(None, lengths):
        scaling = {"factor": largest, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
        expected = llama3_factors(
            theta=theta, head_dim=2 * len(factors), factor=largest, low=1.0, high=4.0,
            original=original,
        )  # fmt: skip
        if np.allclose(factors, expected, rtol=1e-4, atol=0.0):
            return {
                "rope_scaling": scaling
                | {"rope_type": "llama3", "original_max_position_embeddings": original}
            }
    return None


class GgufStore:
    """The tensors of a GGUF file under their Hugging Face names and with their values."""

    def __init__(self, path: Path, header: Header, hf: dict[str, Any]):
        self._path = path
        self._gemma = hf["model_type"] == "gemma3_text"
        # Only the converters of these two permute queries and keys, for interleaved RoPE.
        self._permuted = hf["model_type"] in ("llama", "mistral")
        self._heads = {
            "q_proj": hf["num_attention_heads"],
            "k_proj": hf.get("num_key_value_heads", hf["num_attention_heads"]),
        }
        self._tensors: dict[str, TensorInfo] = {}
        for name, info in header.tensors.items():
            if name == "rope_freqs.weight":
                continue  # already read into the configuration
            if info.kind not in _PLAIN and info.kind not in _QUANTIZED:
                raise UnsupportedError(
                    f"{path}: tensor {name} has type {info.kind.name}, which is not supported; "
                    f"supported: {', '.join(kind.name for kind in (*_PLAIN, *_QUANTIZED))}."
                )
            hf_name = self._hf_name(name)
            if hf_name in self._tensors:
                raise CheckpointError(f"{path}: two tensors both mean {hf_name}.")
            self._tensors[hf_name] = info
        self.shapes = {name: info.shape for name, info in self._tensors.items()}
        self.dtypes = {name: self._dtype(name, info) for name, info in self._tensors.items()}

    def _hf_name(self, name: str) -> str:
        """The Hugging Face name, or the name as it is: then it counts as unmapped."""
        match = re.fullmatch(r"blk\.(0|[1-9][0-9]{0,3})\.([a-z_]+)\.(weight|bias)", name)
        if match is None:
            return _NAMES.get(name, name)
        layer, short, suffix = match.groups()
        names_here = _LAYER_NAMES | (_GEMMA_NAMES if self._gemma else {})
        return f"model.layers.{layer}.{names_here[short]}.{suffix}" if short in names_here else name

    def _dtype(self, name: str, info: TensorInfo) -> str:
        if self._gemma and name.endswith("norm.weight"):
            return "float32"
        return _PLAIN[info.kind][0] if info.kind in _PLAIN else "float32"

    def read(self, name: str, box: Box | None = None) -> np.ndarray:
        """Returns one tensor, or a box of it; quantized ones as the float32 values they stand for.

        A box is cut from the whole tensor: GGUF files are those of one machine.
        """
        array = self._read(name)
        return array if box is None else array[box]

    def _read(self, name: str) -> np.ndarray:
        array = _read_tensor(self._path, self._tensors[name])
        projection = name.split(".")[-2]
        if self._permuted and projection in self._heads:
            return _unpermute(array, self._heads[projection])
        if self._gemma and name.endswith("norm.weight"):
            # llama.cpp folds Gemma's 1 into the scale; take it out as transformers does.
            return array.astype(np.float32) - np.float32(1.0)
        return array


def _unpermute(array: np.ndarray, num_heads: int) -> np.ndarray:
    """Rows of each head from interleaved pairs back to first half, second half."""
    pairs = array.reshape(num_heads, -1, 2, *array.shape[1:])
    return pairs.swapaxes(1, 2).reshape(array.shape)


def _read_tensor(path: Path, info: TensorInfo) -> np.ndarray:
    # Read, not mapped: mapped pages would count towards the peak memory of a conversion.
    try:
        raw = np.fromfile(path, np.uint8, count=info.num_bytes, offset=info.offset)
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}).") from error
    if raw.size != info.num_bytes:
        raise CorruptCheckpointError(f"{path}: the file became shorter while it was read.")
    if info.kind in _PLAIN:
        return raw.view(_PLAIN[info.kind][1]).reshape(info.shape)
    from gguf.quants import dequantize

    rows = raw.reshape(-1, raw.size * info.shape[-1] // math.prod(info.shape))
    out = np.empty((len(rows), info.shape[-1]), np.float32)
    # In slices: the package needs scratch memory several times the size of what it is given.
    # Damaged scales may be infinite or NaN; `verify` reports those, not a NumPy warning.
    with np.errstate(all="ignore"):
        for start in range(0, len(rows), _SLICE_ROWS):
            part = slice(start, start + _SLICE_ROWS)
            out[part] = dequantize(rows[part], info.kind)
    return out.reshape(info.shape)
