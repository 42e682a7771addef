"""Mask tokens behind every draft token: the target, adapted for them alone, sees the future.

In the forward pass that checks a chain of drafts, k masks hang below each of its tokens. Adapters
with a gate per row change the target for the masks only, so the tokens are scored by the target as
it is. The states of the masks below the last accepted token become the next drafts: a small sampler
reads each beside the token before it, so that the drafts fit each other.

Exactness: L0 under sample_match; drafts are drawn with the noise of their positions.
Cost: (k + 1)^2 rows per forward pass, and the sampler and the target's head once per draft.
Source: arXiv:2507.11851; differs: masks have an embedding each, the sampler has a norm and a
residual.
"""

import dataclasses

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxdecode import checks
from jaxdecode.core.protocols import Drafter, Models
from jaxdecode.core.types import pytree
from jaxdecode.heads import mtp_future
from jaxdecode.sampling import guess
from jaxdecode.trees import chain, probes, static


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """Options.

    Attributes:
        num_draft: draft tokens per step; None takes one per mask.
    """

    num_draft: int | None = None

    def __post_init__(self) -> None:
        """Refuses values outside their range, by name."""
        if self.num_draft is not None:
            checks.integer("num_draft", self.num_draft, low=1)


@pytree
class State:
    """What the last step's masks say.

    Attributes:
        masks: their final states.
        known: how many there are: none or all.
    """

    masks: Float[Array, "B k D"]
    known: Int[Array, "B"]


def make(config: Config, models: Models) -> Drafter:
    """The drafter."""
    assert models.heads is not None
    target = models.target.target
    num = min(config.num_draft or models.heads.shape.num_probes, models.heads.shape.num_probes)
    table = probes.tables(probes.full(static.chain(num), num))

    def init(weights, request, canvas, view, memory):
        del request, view, memory
        batch, dtype = canvas.length.shape[0], weights.target["embed"]["embedding"].dtype
        masks = jnp.zeros((batch, num, models.target.config.hidden_size), dtype)
        return State(masks=masks, known=jnp.zeros(batch, jnp.int32))

    def propose(weights, state, request, canvas, view):
        del view
        assert target.embed is not None
        pending = chain.pending(canvas)
        token, drafts = pending, []
        for j in range(num):
            before = target.embed(weights.target, token)
            hidden = mtp_future.sampled(weights.heads, before, state.masks[:, j : j + 1])
            logits = target.logits(weights.target, hidden)
            token = guess.tokens(request, logits, canvas.length[:, None] + 1 + j)
            drafts.append(token)
        ids = jnp.stack(drafts, axis=1)
        return probes.propose(table, state.known, pending, ids), state

    def update(weights, state, request, canvas, proposal, verdict, output):
        del weights, request, canvas, proposal
        nodes, known = probes.below(table, state.known, verdict)
        return State(masks=probes.at(output.hidden, nodes).astype(state.masks.dtype), known=known)

    return Drafter(
        init=init,
        propose=propose,
        score=probes.score(models.target),
        update=update,
        widths=table.widths,
        max_depth=table.max_depth,
    )
