"""Low-rank adapters: a product with a kernel W becomes `x W + gate * (x A) B` (arXiv:2106.09685).

Adapters are extra leaves beside a kernel, so the forward pass takes them without knowing of them. A
gate per row chooses which rows of one pass are adapted: rows with gate 0 get, bit by bit, what they
get without adapters. The usual factor alpha / rank is part of A from its start.

Adapters are kept as one tree for all layers, `{"attn": {"qkv": {"a", "b"}, ...}, ...}` with
`[H, ...]` leaves, whichever form the model's layers have.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxdecode.core import ops
from jaxdecode.models import layout

# Where an adapter stands among the leaves of a layer.
NAME = "lora"
# The part of a block that each product belongs to.
PARTS = {"qkv": "attn", "o": "attn", "gate_up": "mlp", "down": "mlp"}
# Products whose kernels are `[out, in]`.
TRANSPOSED = ("o", "down")

Adapters = dict[str, Any]


def init(
    key: Array,
    params: Mapping[str, Any],
    rank: int,
    which: Sequence[str] = tuple(PARTS),
    scale: float = 2.0,
) -> Adapters:
    """Adapters that change nothing yet: B is zero.

    Args:
        key: PRNG key of A.
        params: the model's parameters; only their sizes are read.
        rank: columns of A.
        which: adapted products, names of `PARTS`.
        scale: what papers call alpha / rank.
    """
    layers = params["layers"]
    listed = isinstance(layers, Sequence)
    first, num = (layers[0], len(layers)) if listed else (layers, _num_layers(layers))
    adapters: Adapters = {}
    for name, own_key in zip(which, jax.random.split(key, len(which)), strict=True):
        shape = first[PARTS[name]][name]["kernel"].shape[0 if listed else 1 :]
        width, features = (
            (shape[1], shape[:1]) if name in TRANSPOSED else (shape[0], tuple(shape[1:]))
        )
        a = jax.random.normal(own_key, (num, width, rank)) * (scale * width**-0.5)
        adapters.setdefault(PARTS[name], {})[name] = {
            "a": a,
            "b": jnp.zeros((num, rank, *features)),
        }
    return adapters


def attach(
    params: Mapping[str, Any], adapters: Adapters, gate: Float[Array, "B T"] | None = None
) -> dict[str, Any]:
    """The parameters with the adapters in them.

    Args:
        params: the model's.
        adapters: as `init` makes them.
        gate: how much each row of the forward pass is adapted; None adapts all rows fully.
    """
    layers = params["layers"]
    if not isinstance(layers, Sequence):
        extra = {} if gate is None else {"gate": jnp.stack([gate] * _num_layers(layers))}
        return {**params, "layers": _beside(layers, adapters, extra)}
    extra = {} if gate is None else {"gate": gate}
    each = [
        _beside(layer, jax.tree.map(lambda leaf, i=i: leaf[i], adapters), extra)
        for i, layer in enumerate(layers)
    ]
    return {**params, "layers": each}


def merge(params: Mapping[str, Any], adapters: Adapters) -> dict[str, Any]:
    """The parameters of a model that says without adapters what this one says with them."""
    plain = layout.without_copies(params)
    layers = plain["layers"]
    if not isinstance(layers, Sequence):
        return {**plain, "layers": jax.vmap(_merged)(layers, adapters)}
    each = [
        _merged(layer, jax.tree.map(lambda leaf, i=i: leaf[i], adapters))
        for i, layer in enumerate(layers)
    ]
    return {**plain, "layers": each}


def add(
    adapter: Mapping[str, Any], x: Float[Array, "B T I"], out: Float[Array, "B T ..."]
) -> Float[Array, "B T ..."]:
    """What a product returned, with the adapter's part added where the gate is open."""
    narrow = ops.linear(x, adapter["a"])
    more = ops.linear(narrow, adapter["b"]).astype(jnp.float32)
    gate = adapter.get("gate")
    if gate is None:
        return (out + more).astype(out.dtype)
    gate = gate.reshape(*gate.shape, *[1] * (out.ndim - gate.ndim))
    # A choice and not a product with 0, which infinite values would pass.
    return jnp.where(gate == 0, out, (out + gate * more).astype(out.dtype))


def _num_layers(layers: Mapping[str, Any]) -> int:
    return jax.tree.leaves(layers)[0].shape[0]


def _pairs(adapters: Adapters) -> Iterator[tuple[str, str, Any]]:
    for part, products in adapters.items():
        for name, adapter in products.items():
            yield part, name, adapter


def _beside(layer: Mapping[str, Any], adapters: Adapters, extra: Mapping[str, Any]) -> Any:
    layer = {part: dict(leaf) for part, leaf in layer.items()}
    for part, name, adapter in _pairs(adapters):
        layer[part][name] = {**layer[part][name], NAME: {**adapter, **extra}}
    return layer


def _merged(layer: Mapping[str, Any], adapters: Adapters) -> Any:
    layer = {part: dict(leaf) for part, leaf in layer.items()}
    for part, name, adapter in _pairs(adapters):
        kernel = layer[part][name]["kernel"]
        more = jnp.tensordot(adapter["a"], adapter["b"], 1)
        more = more.T if name in TRANSPOSED else more
        layer[part][name] = {
            **layer[part][name],
            "kernel": (kernel + more.astype(jnp.float32)).astype(kernel.dtype),
        }
    return layer
