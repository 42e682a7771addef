"""A chain that a part of the target writes: its rows are in nobody's cache.

Draft tokens are not cached, so each of them is drawn after forwarding the whole short block from
the pending token on. A block of a few rows reads the same weights as one row, and nothing has to be
kept or taken back.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxdecode.core import masks
from jaxdecode.core.protocols import Target
from jaxdecode.core.types import Canvas, Proposal, Request
from jaxdecode.sampling import guess
from jaxdecode.trees import chain

# From the block's tokens, causal from the pending token on, to hidden states for the head.
HiddenOf = Callable[[Int[Array, "B T"]], Float[Array, "B T D"]]
LogitsOf = Callable[[Float[Array, "B D"]], Float[Array, "B V"]]


def parts(target: Target) -> tuple[Callable[..., Any], Callable[..., Any], Callable[..., Any]]:
    """The target's `embed`, `layers` and `norm`."""
    assert target.embed is not None and target.layers is not None and target.norm is not None
    return target.embed, target.layers, target.norm


def program(canvas: Canvas, num_rows: int) -> masks.MaskProgram:
    """Mask of a causal block that begins with the pending token."""
    index = jnp.arange(num_rows, dtype=jnp.int32)
    return masks.MaskProgram(
        cached=canvas.length,
        positions=canvas.length[:, None] + index,
        num_new=jnp.full_like(canvas.length, num_rows),
    )


def propose(
    request: Request,
    canvas: Canvas,
    *,
    num_draft: int,
    hidden_of: HiddenOf,
    logits_of: LogitsOf,
    wanted: Int[Array, "B"] | None = None,
) -> Proposal:
    """A chain of draft tokens of every row, drawn with the noise of their positions.

    Args:
        request: arrays of the batch's options.
        canvas: token slots.
        num_draft: the most draft tokens of a row.
        hidden_of: forwards the block of the pending token and the drafts but the last.
        logits_of: the head.
        wanted: draft tokens of each row, num_draft if not given; the longest of a live row decides
            how many are drawn.
    """
    index = jnp.arange(num_draft, dtype=jnp.int32)
    # A row's last slot is for the target's own token, which follows the drafts.
    room = jnp.where(canvas.done, 0, jnp.maximum(canvas.end - canvas.length - 2, 0))
    wanted = jnp.clip(num_draft if wanted is None else jnp.minimum(wanted, num_draft), 0, room)
    start = jnp.pad(chain.pending(canvas), ((0, 0), (0, num_draft)))

    def body(i, carry):
        tokens, seen = carry
        hidden = hidden_of(tokens[:, :num_draft])
        hidden = jax.lax.dynamic_index_in_dim(hidden, i, axis=1, keepdims=False)
        position = (canvas.length + 1 + i)[:, None]
        drawn = guess.tokens(request, logits_of(hidden)[:, None], position, seen)
        if seen is not None:
            seen = jax.vmap(lambda row, token: row.at[token].set(True))(seen, drawn[:, 0])
        return jax.lax.dynamic_update_slice_in_dim(tokens, drawn, i + 1, axis=1), seen

    seen = guess.seen(request, canvas, _vocab_size(hidden_of, logits_of, start[:, :num_draft]))
    tokens, _ = jax.lax.fori_loop(0, wanted.max(), body, (start, seen))
    return chain.propose(canvas, tokens[:, 1:], index < wanted[:, None])


def _vocab_size(hidden_of: HiddenOf, logits_of: Callable[..., Any], tokens: Any) -> int:
    scores = jax.eval_shape(lambda tokens: logits_of(hidden_of(tokens)[:, 0]), tokens)
    return scores.shape[-1]
