"""Sampled chains: a draft model draws one or several independent continuations.

Every draft token is drawn from the draft model's warped law at its place, and that law is recorded,
as rules that compare it with the target's law need. Several chains are independent: they may share
tokens at their start, and rules that count drafts count every one of them.

Exactness: L1 under the rules `rejection`, `block` and `kseq`. Cost: `num_draft` forward passes of
the draft model per step; several chains forward all their tokens so far for each.
Source: one chain arXiv:2211.17192 and arXiv:2302.01318, several arXiv:2310.15141.
"""

import dataclasses

import jax
import jax.numpy as jnp

from jaxdecode import checks
from jaxdecode.core.protocols import Drafter, Models
from jaxdecode.sampling import noise
from jaxdecode.trees import chain, draft_lm, levels, walk


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """Options.

    Attributes:
        num_draft: draft tokens per chain.
        num_chains: independent chains.
    """

    num_draft: int = 4
    num_chains: int = 1

    def __post_init__(self) -> None:
        """Refuses values outside their range, by name."""
        checks.integer("num_draft", self.num_draft, low=1)
        checks.integer("num_chains", self.num_chains, low=1)


def make(config: Config, models: Models) -> Drafter:
    """The drafter; its state is the draft model's cache."""
    if config.num_chains == 1:
        return _one(config, models)
    return levels.make(several(config.num_chains, config.num_draft), models)


def several(num_chains: int, num_draft: int) -> levels.Plan:
    """The plan of independent chains side by side."""

    def expand(law, gumbel, carry, level):
        # At the first level all chains draw from the root's law.
        perturbed = jnp.log(law) + gumbel
        tokens = jnp.argmax(perturbed, axis=-1).astype(jnp.int32)
        index = jnp.arange(num_chains, dtype=jnp.int32)
        parent = jnp.zeros_like(index) if level == 0 else index
        return levels.Children(tokens, parent, jnp.ones(num_chains, bool), carry, law)

    return levels.Plan(
        sizes=(num_chains,) * num_draft,
        noise=(num_chains,) * num_draft,
        expand=expand,
        carry=(),
        max_children=num_chains,
        draws="with_replacement",
    )


def _one(config: Config, models: Models) -> Drafter:
    draft = draft_lm.bind(models)

    def propose(weights, state, request, canvas, view):
        del view
        greedy = draft_lm.greedy(request.sampling)

        def draw(scores, position):
            law = jax.vmap(walk.probs_of)(scores, greedy)
            gumbel = _noise(request, canvas, position, draft.vocab_size)
            token = jnp.argmax(jnp.log(law) + gumbel, axis=-1).astype(jnp.int32)
            return draft_lm.Drawn(token, jnp.ones_like(token, bool), law)

        drawn, state = draft_lm.draft_chain(
            draft, weights, state, request, canvas, num_draft=config.num_draft, draw=draw
        )
        assert drawn.law is not None
        law = jnp.pad(drawn.law, ((0, 0), (0, 1), (0, 0)))
        return chain.propose(canvas, drawn.tokens, drawn.valid, draft_probs=law), state

    return Drafter(
        init=draft_lm.starting(draft),
        propose=propose,
        update=draft_lm.keep,
        widths=(1, config.num_draft + 1),
        max_depth=config.num_draft,
    )


def _noise(request, canvas, position, size):
    """Noise of one draft token: keyed by the pending token's position, then by its own."""

    def row(key, pending, position):
        stream = noise.stream(key, pending, purpose=noise.DRAFT)
        return jax.random.gumbel(jax.random.fold_in(stream, position), (size,), jnp.float32)

    args = (request.key, canvas.length, position)
    return draft_lm.unless_greedy(request.sampling, row, *args, shape=(size,))
