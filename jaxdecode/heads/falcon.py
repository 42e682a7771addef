"""A drafter that guesses k states at once: a recurrent memory and one layer in blocks of k rows.

Row i joins the target's last state of token i with the embedding of token i + 1. Recurrent layers
add what they remember of the rows before; a decoder layer, in which the k rows of a block see each
other in both directions and all earlier blocks, turns each row into the state of token i + k. So
the last k rows of a text say the next k states, which the target's head reads (arXiv:2412.12639).
"""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from jaxdecode import checks
from jaxdecode.core.masks import MaskProgram
from jaxdecode.core.protocols import Rows
from jaxdecode.models import extra
from jaxdecode.models.config import ModelConfig


@dataclasses.dataclass(frozen=True, kw_only=True)
class Shape:
    """Sizes.

    Attributes:
        block: k, states that are guessed in one pass.
        num_recurrent: recurrent layers; 0 has no memory but the cache.
    """

    block: int = 2
    num_recurrent: int = 2

    def __post_init__(self) -> None:
        """Refuses values outside their range, by name."""
        checks.integer("block", self.block, low=1, high=16)
        checks.integer("num_recurrent", self.num_recurrent, low=0, high=8)


class Drafting(NamedTuple):
    """The drafter's functions; hashable.

    Attributes:
        pairs: its rows.
        num_recurrent: recurrent layers.
    """

    pairs: extra.Pairs
    num_recurrent: int

    def memory(self, batch: int) -> Float[Array, "B n 2 D"]:
        """What the recurrent layers remember before the first row."""
        return jnp.zeros((batch, self.num_recurrent, 2, self.pairs.config.hidden_size), jnp.float32)

    def recur(
        self,
        params: Any,
        x: Float[Array, "B T D"],
        memory: Float[Array, "B n 2 D"],
        *,
        keep: Bool[Array, "B T"] | None = None,
        fresh: Bool[Array, "B T"] | None = None,
    ) -> tuple[Float[Array, "B T D"], Float[Array, "B n 2 D"]]:
        """Rows with what is remembered of those before added, and the memory after them.

        Args:
            params: of the drafter.
            x: rows.
            memory: before the first row: output and cell of every layer.
            keep: rows that are remembered; None for all.
            fresh: rows before which all is forgotten; None for none.
        """
        if self.num_recurrent == 0:
            return x, memory
        weights = [params["memory"][str(i)] for i in range(self.num_recurrent)]
        yes, no = jnp.ones(x.shape[:2], bool), jnp.zeros(x.shape[:2], bool)

        def step(memory, row):
            x, keep, fresh = row
            old = jnp.where(fresh[:, None, None, None], 0.0, memory)
            new = []
            for i, own in enumerate(weights):
                new.append(_cell(own, x if i == 0 else new[-1][:, 0], old[:, i]))
            after = jnp.where(keep[:, None, None, None], jnp.stack(new, axis=1), old)
            return after, new[-1][:, 0]

        rows = (
            x.astype(jnp.float32),
            yes if keep is None else keep,
            no if fresh is None else fresh,
        )
        rows = jax.tree.map(lambda leaf: jnp.swapaxes(leaf, 0, 1), rows)
        memory, out = jax.lax.scan(step, memory, rows)
        return x + jnp.swapaxes(out, 0, 1).astype(x.dtype), memory

    def states(
        self,
        params: Any,
        x: Float[Array, "B T D"],
        program: MaskProgram,
        cached: Rows | None = None,
    ) -> Float[Array, "B T D"]:
        """The state that each row guesses."""
        return extra.block(
            self.pairs.config, self.pairs.kv_dtype, params["layer"], x, program, cached
        )


def bind(shape: Shape, config: ModelConfig, kv_dtype: Any) -> Drafting:
    """The drafter of a target."""
    return Drafting(extra.Pairs(extra.like(config), kv_dtype), shape.num_recurrent)


def init(shape: Shape, config: ModelConfig, key: Array, target: Any) -> dict[str, Any]:
    """Parameters before training."""
    del target
    width, keys = config.hidden_size, jax.random.split(key, shape.num_recurrent + 2)
    params = {
        "enter": extra.init_pair(width, keys[0]),
        "layer": extra.init_block(extra.like(config), keys[1]),
    }
    if shape.num_recurrent:
        params["memory"] = {str(i): _init_cell(width, key) for i, key in enumerate(keys[2:])}
    return params


def _cell(params: Any, x: Float[Array, "B D"], old: Float[Array, "B 2 D"]) -> Array:
    """Output and cell of a long short-term memory (Hochreiter and Schmidhuber 1997)."""
    gates = jnp.concatenate([x, old[:, 0]], axis=-1) @ params["kernel"] + params["bias"]
    enter, forget, made, out = jnp.split(gates, 4, axis=-1)
    cell = jax.nn.sigmoid(forget) * old[:, 1] + jax.nn.sigmoid(enter) * jnp.tanh(made)
    return jnp.stack([jax.nn.sigmoid(out) * jnp.tanh(cell), cell], axis=1)


def _init_cell(width: int, key: Array) -> Any:
    kernel = jax.random.normal(key, (2 * width, 4 * width)) * (2 * width) ** -0.5
    return {"kernel": kernel, "bias": jnp.zeros(4 * width)}
