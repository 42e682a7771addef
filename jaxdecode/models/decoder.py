"""The one config-driven decoder. Its forward pass writes nothing: it returns the new rows' K and V.

Parameters are a plain pytree: `{"embed", "layers", "final_norm", "head"?}`. `layers` is a list with
one tree per layer (fast where every layer's weights are read in place: CPU, GPU), or one tree of
stacked `[H, ...]` arrays, which is scanned (fast to compile, free on TPU). The forward pass
follows the form it is given.
"""

import functools
import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jaxdecode.core import attention, ops
from jaxdecode.core.attention import Backend
from jaxdecode.core.masks import MaskProgram
from jaxdecode.core.protocols import Rows, Target, TargetOutput
from jaxdecode.core.types import Blend
from jaxdecode.errors import InputError
from jaxdecode.models import layout, rope
from jaxdecode.models.config import ModelConfig, param_shapes
from jaxdecode.models.layers import Block, RMSNorm

Params = dict[str, Any]
# Tokens, weighted sums of tokens, or rows that are embedded already.
Inputs = Int[Array, "B T"] | Float[Array, "B T D"] | Blend
# Kinds of devices on which a scanned layer leaves its last sum to the next one. On v5p XLA then
# keeps the residual stream of a tree in vector memory; v6e would move more (docs/hardware.md).
_SUM_LATER = ("TPU v5",)


def make_target(
    config: ModelConfig,
    kv_dtype: Any = jnp.float32,
    backend: Backend = attention.XLA,
    *,
    remat: bool = False,
) -> Target:
    """Binds a config to the pure functions the loop calls.

    Args:
        config: the model.
        kv_dtype: dtype of keys and values, in attention and in the cache, and of what products
            return.
        backend: who computes attention.
        remat: compute what is inside a layer again in the backward pass, instead of keeping it.
    """
    block = Block(config, jnp.dtype(kv_dtype), backend, remat)

    def forward(params, tokens, mask, cached, taps=(), acts=None):
        return _forward(config, block, params, tokens, mask, cached, taps, acts)

    def logits(params, hidden):
        return _logits(config, params, hidden)

    def layers(params, x, mask, cached, first, last):
        return _layers(config, block, params, x, mask, cached, range(first, last))[:2]

    return Target(
        forward=forward,
        logits=logits,
        embed=lambda params, tokens: _embed(config, params, tokens),
        layers=layers,
        norm=lambda params, x: _final_norm(config, params, x),
    )


def init_params(config: ModelConfig, key: Array, dtype: Any = jnp.float32) -> Params:
    """Random parameters in the per-layer form, as the Linen definitions initialise them."""
    keys = jax.random.split(key, config.num_layers + 2)
    width = config.hidden_size
    x = jnp.zeros((1, 1, width), dtype)
    position = jnp.zeros((1, 1), jnp.int32)
    mask = MaskProgram(
        cached=jnp.zeros(1, jnp.int32), positions=position, num_new=jnp.ones(1, jnp.int32)
    )
    angles = rope.angles(config.rope, config.head_dim, position)
    block = jax.jit(lambda key: Block(config, dtype).init(key, x, angles, mask, None, 0)["params"])
    params: Params = {
        "embed": {"embedding": jax.random.normal(keys[0], (config.vocab_size, width)) * 0.02},
        "layers": [block(key) for key in keys[2:]],
        "final_norm": _norm(config).init(keys[1], x)["params"],
    }
    if not config.tied_embeddings:
        kernel = jax.random.normal(keys[1], (config.vocab_size, width)) * width**-0.5
        params["head"] = {"kernel": kernel}
    return jax.tree.map(lambda leaf: leaf.astype(dtype), params)


def nest(config: ModelConfig, flat: Mapping[str, Any]) -> Params:
    """The parameter tree of flat checkpoint names (`models.config.param_shapes`)."""
    params: Params = {"layers": [{} for _ in range(config.num_layers)]}
    for name in param_shapes(config):
        node, *parts = _path(params, name)
        for part in parts[:-1]:
            node = node.setdefault(part, {})
        node[parts[-1]] = flat[name]
    return params


def flatten(params: Params) -> dict[str, Any]:
    """The inverse of `nest`; stacked layers are taken apart, copies of kernels left out."""
    plain = layout.without_copies(params)
    layers = plain["layers"]
    tree = plain | {"layers": layers if isinstance(layers, Sequence) else unstack(layers)}
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {
        ".".join(str(getattr(entry, "key", getattr(entry, "idx", None))) for entry in path): leaf
        for path, leaf in leaves
    }


def stack(layers: Sequence[Params]) -> Params:
    """Per-layer trees to one tree of `[H, ...]` arrays, the form that is scanned."""
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *layers)


def unstack(layers: Params) -> list[Params]:
    """The inverse of `stack`."""
    num_layers = jax.tree.leaves(layers)[0].shape[0]
    return [jax.tree.map(lambda leaf: leaf[i], layers) for i in range(num_layers)]  # noqa: B023


def _path(params: Params, name: str) -> list[Any]:
    parts = name.split(".")
    if parts[0] == "layers":
        return [params["layers"][int(parts[1])], *parts[2:]]
    return [params, *parts]


def _norm(config: ModelConfig) -> RMSNorm:
    return RMSNorm(config.norm_eps, config.norm_offset)


def _forward(
    config: ModelConfig,
    block: Block,
    params: Params,
    tokens: Inputs,
    mask: MaskProgram,
    cached: Rows | None,
    taps: tuple[str, ...],
    acts: Bool[Array, "B H"] | None,
) -> TargetOutput:
    x = _embed(config, params, tokens)
    seen: dict[str, Any] = {"embed": x}
    tapped = _tapped_layers(config, taps)
    every = range(config.num_layers)
    x, rows, layer_taps = _layers(config, block, params, x, mask, cached, every, tapped, acts)
    hidden: Any = _final_norm(config, params, x)
    seen |= {f"layer.{i}": tap for i, tap in layer_taps.items()} | {"final": hidden}
    return TargetOutput(hidden=hidden, rows=rows, taps={name: seen[name] for name in taps})


def _embed(config: ModelConfig, params: Params, tokens: Inputs):
    if not isinstance(tokens, Blend) and jnp.issubdtype(tokens.dtype, jnp.floating):
        return tokens
    x = _table_rows(params["embed"]["embedding"], tokens)
    if config.embed_scale != 1.0:
        x = x * jnp.asarray(config.embed_scale, x.dtype)
    return x


def _final_norm(config: ModelConfig, params: Params, x: Float[Array, "*B D"]):
    return _norm(config).apply({"params": params["final_norm"]}, x)


def _layers(config, block, params, x, mask, cached, span: range, tapped=(), acts=None):
    """Runs the layers of `span`; `cached` and the rows returned are of these layers only."""
    mask = attention.plan(block.backend, mask, cached)
    layers = params["layers"]
    if isinstance(layers, Sequence):
        return _run_list(config, block, layers, x, mask, cached, span, tapped, acts)
    if len(span) < config.num_layers:
        layers = jax.tree.map(lambda leaf: leaf[span.start : span.stop], layers)
    return _run_scan(config, block, layers, x, mask, cached, span, tapped, acts)


def _table_rows(
    table: Float[Array, "V D"], tokens: Int[Array, "B T"] | Blend
) -> Float[Array, "B T D"]:
    if not isinstance(tokens, Blend):
        return ops.embed(table, tokens)
    rows = ops.embed(table, tokens.tokens).astype(jnp.float32)
    return (rows * tokens.weights[..., None]).sum(-2).astype(table.dtype)


def _tapped_layers(config: ModelConfig, taps: tuple[str, ...]) -> tuple[int, ...]:
    known = {"embed", "final", *(f"layer.{i}" for i in range(config.num_layers))}
    for name in taps:
        if name not in known:
            raise InputError(
                f"tap {name!r} is not known; use 'embed', 'final' or 'layer.I' with I from 0 to "
                f"{config.num_layers - 1}."
            )
    return tuple(int(name.split(".")[1]) for name in taps if name.startswith("layer."))


def _angle_pair(config: ModelConfig, positions: Int[Array, "B T"]):
    """Angles of full-attention and of windowed layers."""
    full = rope.angles(config.rope, config.head_dim, positions)
    if config.local_rope is None:
        return full, full
    return full, rope.angles(config.local_rope, config.head_dim, positions)


def _run_list(config, block, layers, x, mask, cached, span, tapped, acts):
    full, local = _angle_pair(config, mask.positions)
    rows, taps = [], {}
    for n, i in enumerate(span):
        window = config.layer_windows[i]
        view = None if cached is None else attention.View(cached[0][n], cached[1][n])
        angles = local if window else full
        run = functools.partial(_layer, block=block, window=window)
        run = jax.checkpoint(run) if block.remat else run
        out, new_rows = run(layers[i], x, angles, mask, view)
        x = out if acts is None else _where(acts[:, i], out, x)
        rows.append(new_rows)
        if i in tapped:
            taps[i] = x
    keys, values = zip(*rows, strict=True)
    return x, (keys, values), taps


@functools.partial(jax.jit, static_argnames=("block", "window"))
def _layer(params, x, angles, mask, view, *, block, window):
    # Jitted so that layers of one form are traced once, in whatever programs they stand.
    x, update, rows = block.apply({"params": params}, x, angles, mask, view, window)
    return x + update, rows


def _where(acts: Bool[Array, "B"], x: Float[Array, "B T D"], y: Any) -> Float[Array, "B T D"]:
    return jnp.where(acts[:, None, None], x, y)


def _run_scan(config, block, layers, x, mask, cached, span, tapped, acts):
    full, local = _angle_pair(config, mask.positions)
    # The window is data here, so that layers of both kinds share one body; "all" is a window
    # no position can leave.
    spans = [config.layer_windows[i] for i in span]
    windows = jnp.asarray([w or config.max_length + 1 for w in spans], jnp.int32)
    is_local = jnp.asarray([bool(w) for w in spans])

    own = attention.per_layer(block.backend, cached)

    sum_later = attention.device_kind(block.backend) in _SUM_LATER

    def body(carry, layer):
        x, update = carry
        x = x if update is None else x + update
        params, window, windowed, own, acts = layer
        view = attention.view(cached, own)
        angles = full
        if config.local_rope is not None:
            angles = jax.tree.map(lambda a, b: jnp.where(windowed, b, a), full, local)
        before = x
        x, update, rows = block.apply({"params": params}, x, angles, mask, view, window)
        if acts is not None:
            x, update = _where(acts, x, before), _where(acts, update, 0)
        return (x, update) if sum_later else (x + update, None), rows

    run = jax.checkpoint(body) if block.remat else body
    each = (layers, windows, is_local, own, None if acts is None else acts.T)
    carry, pieces, taps = (x, jnp.zeros_like(x) if sum_later else None), [], {}
    # What a scan gives of its layers it gives of all: it ends at every layer that is tapped.
    ends = sorted({*(i + 1 for i in tapped), span.stop})
    for first, last in itertools.pairwise([span.start, *ends]):
        carry, rows = _scan_some(run, carry, each, first - span.start, last - span.start)
        x = carry[0] if carry[1] is None else carry[0] + carry[1]
        pieces.append(rows)
        if last - 1 in tapped:
            taps[last - 1] = x
    joined = pieces[0] if len(pieces) == 1 else jax.tree.map(_joined, *pieces)
    return x, joined, taps


def _scan_some(run: Callable[..., Any], carry: Any, each: Any, first: int, last: int) -> Any:
    """`jax.lax.scan` over some of the layers, each of which is read where it lies."""
    if (first, last) == (0, len(jax.tree.leaves(each)[0])):
        return jax.lax.scan(run, carry, each)

    def step(carry, _):
        own, i = carry
        own, rows = run(own, jax.tree.map(lambda leaf: leaf[i], each))
        return (own, i + 1), rows

    (carry, _), rows = jax.lax.scan(step, (carry, jnp.int32(first)), None, length=last - first)
    return carry, rows


def _joined(*pieces: Array) -> Array:
    return jnp.concatenate(pieces)


def _logits(config: ModelConfig, params: Params, hidden: Float[Array, "*B D"]):
    table = params["embed"]["embedding"] if config.tied_embeddings else params["head"]["kernel"]
    return ops.linear_transposed(hidden, table)
