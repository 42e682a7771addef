"""What the products of a model read, seen from outside: for statistics, not for decoding."""

import collections
import functools
from typing import Any

import flax.linen as nn
import jax
from jaxtyping import Array, Int

from jaxdecode.core.masks import MaskProgram
from jaxdecode.core.protocols import Target
from jaxdecode.models.layers import Linear, OutputLinear


@functools.partial(jax.jit, static_argnames="target")
def product_inputs(
    target: Target, params: Any, tokens: Int[Array, "B T"], mask: MaskProgram
) -> dict[str, list[Array]]:
    """The inputs `[B, T, I]` of every product of one pass, by name and layer.

    Names are those of the parameters: "attn.qkv", "attn.o", "mlp.gate_up", "mlp.down".
    """
    found = collections.defaultdict(list)

    def catch(call, args, kwargs, context):
        if isinstance(context.module, Linear | OutputLinear) and context.method_name == "__call__":
            found[".".join(context.module.path)].append(args[0])
        return call(*args, **kwargs)

    # Layers are jitted of their own, and one that was traced before would not be seen.
    with jax.disable_jit(), nn.intercept_methods(catch):
        target.forward(params, tokens, mask, None)
    return dict(found)
