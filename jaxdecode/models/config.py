"""What a decoder-only transformer of the Llama, Qwen and Gemma kin is, as data."""

import dataclasses
from typing import Literal

FAMILIES = (
    "llama",
    "mistral",
    "qwen2",
    "qwen3",
    "gemma3",
    "llada",
    "dream",
    "fast_dllm",
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Rope:
    """Rotary position embedding: base frequency and how it is stretched beyond the trained length.

    Attributes:
        theta: base; the wavelength of pair i is 2 pi theta^(2i / head_dim).
        scaling: "none", "linear" (positions divided by factor) or "llama3" (only long wavelengths
            are stretched, with a smooth middle band; Llama 3.1 model card).
        factor: stretch of the context length.
        low_freq_factor: "llama3" only; wavelengths above original_max_length / this are stretched.
        high_freq_factor: "llama3" only; wavelengths below original_max_length / this are kept.
        original_max_length: "llama3" only; context length before stretching, in tokens.
    """

    theta: float = 10_000.0
    scaling: Literal["none", "linear", "llama3"] = "none"
    factor: float = 1.0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_max_length: int = 8192


@dataclasses.dataclass(frozen=True, kw_only=True)
class Denoiser:
    """How a model fills undecided slots of a text, for models trained to.

    Attributes:
        mask_token: the token that stands in undecided slots when they enter the model.
        shifted: whether the hidden state of a position scores the token after it, as in the
            autoregressive model that it was made from, rather than its own.
        block: positions per block; a position sees its own and all earlier blocks. 0: everything
            is one block, every position sees every other.
        inserts: a position scores the tokens that may be inserted after it; nothing undecided
            enters, and the first position's score of the mask token says that the text is whole.
    """

    mask_token: int
    shifted: bool = False
    block: int = 0
    inserts: bool = False

    def __str__(self) -> str:
        """How it does, in a few words."""
        if self.inserts:
            return f"by inserting, mask token {self.mask_token}"
        sees = f"blocks of {self.block} in order" if self.block else "all at once"
        shift = ", scores shifted by one" if self.shifted else ""
        return f"{sees}, mask token {self.mask_token}{shift}"


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """Static description of one model; hashable, so it can be a static argument under jit.

    Attributes:
        family: one of FAMILIES; selects name maps only, never behaviour inside the model.
        vocab_size: rows of the embedding, including padding rows of the checkpoint.
        num_layers: number of blocks.
        hidden_size: width of the residual stream.
        intermediate_size: width of the gated MLP.
        num_heads: query heads; a multiple of num_kv_heads.
        num_kv_heads: key and value heads.
        head_dim: width of one head; num_heads * head_dim need not equal hidden_size.
        max_length: context length in tokens.
        norm_eps: epsilon of every RMS norm.
        norm_offset: added to norm scales (1.0 for Gemma, whose checkpoints store scale - 1).
        activation: gate nonlinearity of the MLP.
        qkv_bias: whether query, key and value projections have biases.
        o_bias: whether the attention output projection has a bias.
        mlp_bias: whether the MLP projections have biases.
        qk_norm: whether each query and key head is RMS-normalised before RoPE.
        post_norms: whether attention and MLP outputs are normalised before they are added.
        embed_scale: factor on token embeddings.
        query_scale: factor on queries before the dot product with keys.
        tied_embeddings: whether the output head is the embedding transposed.
        layer_windows: one int per layer; that layer attends to the last `window` positions
            (itself included), 0 means all.
        rope: rotary embedding of full-attention layers (and of all layers if local_rope is None).
        local_rope: rotary embedding of windowed layers.
        denoiser: how the model fills undecided slots; None for autoregressive models.
    """

    family: str
    vocab_size: int
    num_layers: int
    hidden_size: int
    intermediate_size: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    max_length: int
    norm_eps: float = 1e-5
    norm_offset: float = 0.0
    activation: Literal["silu", "gelu_tanh"] = "silu"
    qkv_bias: bool = False
    o_bias: bool = False
    mlp_bias: bool = False
    qk_norm: bool = False
    post_norms: bool = False
    embed_scale: float = 1.0
    query_scale: float
    tied_embeddings: bool = False
    layer_windows: tuple[int, ...]
    rope: Rope = Rope()
    local_rope: Rope | None = None
    denoiser: Denoiser | None = None

    @property
    def group_size(self) -> int:
        """Query heads per KV head."""
        return self.num_heads // self.num_kv_heads


def param_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Flat names and shapes of every parameter, one entry per layer (the checkpoint layout).

    Kernels that read the residual stream are `[in, out]`; those that write it (`attn.o`,
    `mlp.down`) and the head are `[out, in]`: the orders in which a single row is multiplied
    fastest. Two projections are stored fused, because one wide product is faster than several
    narrow ones and both fusions still split evenly over a mesh axis: `attn.qkv` is
    `[hidden, kv_heads, group + 2, head_dim]` (a KV head's queries, then its key, then its value)
    and `mlp.gate_up` is `[hidden, 2, intermediate]`.
    """
    c = config
    qkv = (c.num_kv_heads, c.group_size + 2, c.head_dim)
    layer = {
        "attn_norm.scale": (c.hidden_size,),
        "attn.qkv.kernel": (c.hidden_size, *qkv),
        "attn.o.kernel": (c.hidden_size, c.num_heads * c.head_dim),
        "mlp_norm.scale": (c.hidden_size,),
        "mlp.gate_up.kernel": (c.hidden_size, 2, c.intermediate_size),
        "mlp.down.kernel": (c.hidden_size, c.intermediate_size),
    }
    if c.qkv_bias:
        layer["attn.qkv.bias"] = qkv
    if c.o_bias:
        layer["attn.o.bias"] = (c.hidden_size,)
    if c.mlp_bias:
        layer["mlp.gate_up.bias"] = (2, c.intermediate_size)
        layer["mlp.down.bias"] = (c.hidden_size,)
    if c.qk_norm:
        layer["attn.q_norm.scale"] = (c.head_dim,)
        layer["attn.k_norm.scale"] = (c.head_dim,)
    if c.post_norms:
        layer["attn_post_norm.scale"] = (c.hidden_size,)
        layer["mlp_post_norm.scale"] = (c.hidden_size,)
    shapes: dict[str, tuple[int, ...]] = {"embed.embedding": (c.vocab_size, c.hidden_size)}
    for i in range(c.num_layers):
        shapes |= {f"layers.{i}.{name}": shape for name, shape in layer.items()}
    shapes["final_norm.scale"] = (c.hidden_size,)
    if not c.tied_embeddings:
        shapes["head.kernel"] = (c.vocab_size, c.hidden_size)
    return shapes
