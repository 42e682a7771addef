"""Logical axes of every array.

A parameter is split along its heads, its MLP width or the vocabulary; a row of the batch lies
whole on one "data" index. A layer then needs two all-reduces, after `attn.o` and after `mlp.down`.
Source of the split: Megatron-LM, arXiv:1909.08053 section 3.
"""

# By the end of a parameter's name; what is not listed lies whole on every device.
_PARAMS: dict[str, tuple[str | None, ...]] = {
    "embed.embedding": ("vocab", None),
    "head.kernel": ("vocab", None),
    "attn.qkv.kernel": (None, "kv_heads", None, None),
    "attn.qkv.bias": ("kv_heads", None, None),
    "attn.o.kernel": (None, "heads"),
    "mlp.gate_up.kernel": (None, None, "mlp"),
    "mlp.gate_up.bias": (None, "mlp"),
    "mlp.down.kernel": (None, "mlp"),
}
# Keys and values: rows, then KV heads; a stacked cache has the layers in front.
_CACHE = ("rows", "kv_heads", None, None)


def param(name: str, ndim: int) -> tuple[str | None, ...]:
    """Logical axes of a parameter by its flat name; stacked ones have a layer axis in front."""
    found = next((axes for end, axes in _PARAMS.items() if name.endswith(end)), ())
    return (None,) * (ndim - len(found)) + found


def fits(name: str, ndim: int) -> bool:
    """Whether an array of this name has the axes of a parameter of that name, or more in front."""
    found = next((axes for end, axes in _PARAMS.items() if name.endswith(end)), ())
    return ndim >= len(found)


def split_of(name: str, ndim: int) -> int | None:
    """The axis along which devices share a parameter; None if each holds all of it."""
    axes = param(name, ndim)
    return next((number for number, axis in enumerate(axes) if axis is not None), None)


def cache(ndim: int) -> tuple[str | None, ...]:
    """Logical axes of a cache's keys or values; with five axes, the first are the layers."""
    return (None,) * (ndim - len(_CACHE)) + _CACHE
