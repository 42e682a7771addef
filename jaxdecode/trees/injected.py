"""The target's forward pass with rows that enter at a layer: states of tokens that are not there.

Until its layer a row is of no consequence: it is overwritten there, and only rows that enter no
earlier see it. So one mask serves all layers.
"""

from collections.abc import Callable, Mapping
from itertools import pairwise
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxdecode.core.masks import MaskProgram
from jaxdecode.core.protocols import Model, Rows, TargetOutput
from jaxdecode.trees import unroll

# From what enters a layer to what enters it instead.
Change = Callable[[Float[Array, "B T D"]], Float[Array, "B T D"]]


def forward(
    model: Model,
    params: Any,
    tokens: Any,
    program: MaskProgram,
    view: Rows | None,
    *,
    taps: tuple[str, ...] = (),
    changes: Mapping[int, Change],
) -> TargetOutput:
    """As `Target.forward`, with changes of what enters some layers.

    Args:
        model: the target.
        params: its parameters.
        tokens: token ids.
        program: who sees whom.
        view: cached rows, or None.
        taps: hidden states wanted.
        changes: by number of the layer.
    """
    embed, layers, norm = unroll.parts(model.target)
    num_layers = model.config.num_layers
    tapped = {int(name.split(".")[1]) + 1 for name in taps if name.startswith("layer.")}
    cuts = sorted({0, num_layers, *changes, *tapped})
    x = embed(params, tokens)
    seen, parts = {"embed": x}, []
    for first, last in pairwise(cuts):
        if first in changes:
            x = changes[first](x)
        cached = None if view is None else (view[0][first:last], view[1][first:last])
        x, rows = layers(params, x, program, cached, first, last)
        seen[f"layer.{last - 1}"] = x
        parts.append(rows)
    hidden = seen["final"] = norm(params, x)
    return TargetOutput(
        hidden=hidden, rows=_joined(parts), taps={name: seen[name] for name in taps}
    )


def _joined(parts: list[Rows]) -> Rows:
    if isinstance(parts[0][0], tuple):
        keys, values = (sum(column, ()) for column in zip(*parts, strict=True))
        return keys, values
    return jax.tree.map(lambda *arrays: jnp.concatenate(arrays), *parts)
