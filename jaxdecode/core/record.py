"""What one step did, for those who want to see it: the arrays behind a trace."""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jaxdecode.core.commit import slots
from jaxdecode.core.types import Canvas, Proposal, Verdict, Window, pytree


@pytree
class Guesses:
    """What the target said of the slots that a window may decide.

    Attributes:
        open: slots that were undecided and asked about.
        tokens: its candidate for each.
        logprob: log-probability of that token under the target, before the warp.
    """

    open: Bool[Array, "B W"]
    tokens: Int[Array, "B W"]
    logprob: Float[Array, "B W"]


@pytree
class TreeRecord:
    """A step that proposed a tree.

    Attributes:
        live: rows that took part.
        tokens: token per node; node 0 is the pending token.
        parent: index of the parent node; -1 at the root.
        drafted: nodes that exist and may be committed: no padding, no probes.
        path: node ids of the accepted path, root first.
        chosen: the target's token after each node of the path.
        num_accepted: accepted draft tokens; entries of path and chosen past it are meaningless.
    """

    live: Bool[Array, "B"]
    tokens: Int[Array, "B N"]
    parent: Int[Array, "B N"]
    drafted: Bool[Array, "B N"]
    path: Int[Array, "B P"]
    chosen: Int[Array, "B P"]
    num_accepted: Int[Array, "B"]


@pytree
class WindowRecord:
    """A step that proposed a window.

    Attributes:
        live: rows that took part.
        slots: places on the canvas.
        guesses: what the target said of them.
        filled: slots of the canvas that this step decided.
        reopened: slots of the canvas that this step made undecided again.
    """

    live: Bool[Array, "B"]
    slots: Int[Array, "B W"]
    guesses: Guesses
    filled: Bool[Array, "B L"]
    reopened: Bool[Array, "B L"]


Record = TreeRecord | WindowRecord


def record_of(
    before: Canvas, after: Canvas, proposal: Proposal | Window, decided: Verdict | Guesses
) -> Record:
    """The record of a step from the canvas before and after it."""
    live = ~before.done
    if isinstance(proposal, Window):
        assert isinstance(decided, Guesses)
        return WindowRecord(
            live=live,
            slots=jnp.broadcast_to(slots(proposal), decided.open.shape),
            guesses=decided,
            filled=before.open & ~after.open,
            reopened=~before.open & after.open,
        )
    assert isinstance(decided, Verdict)
    drafted = proposal.valid if proposal.probe is None else proposal.valid & ~proposal.probe
    return TreeRecord(
        live=live,
        tokens=proposal.tokens,
        parent=proposal.parent,
        drafted=drafted,
        path=decided.path,
        chosen=decided.tokens,
        num_accepted=decided.num_accepted,
    )
