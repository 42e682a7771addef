"""Drafts with a second reading: after the draft come a probe and the draft once more.

The nodes are one chain: pending token, draft, probe, copy of the draft. When the target reads the
copy it has seen the whole draft, so the scores before each copied token say what it thinks of that
token on reflection. Probe and copy are scored, never committed; verifier `reflective` reads them.

Exactness: that of the verifier; the draft itself is prompt lookup's. Cost: a step with a draft
forwards about twice as many tokens.
Source: arXiv:2505.18629 (no code of the authors was found); ours: the layout, and the default
probe, which repeats the pending token, so that the copy continues it as the draft did.
"""

import dataclasses

import jax.numpy as jnp
from jaxtyping import Array, Int

from jaxdecode import checks
from jaxdecode.core.protocols import Drafter, Models
from jaxdecode.core.types import Proposal
from jaxdecode.drafters import none, prompt_lookup
from jaxdecode.errors import InputError


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(prompt_lookup.Config):
    """Options of prompt lookup, and one more.

    Attributes:
        probe: token ids between the draft and its copy, such as those of "Check the text above
            and repeat it, corrected:"; empty: the pending token.
    """

    num_draft: int = 6
    probe: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        """Refuses values outside their range, by name."""
        super().__post_init__()
        if not isinstance(self.probe, tuple | list):
            raise InputError(f"probe={self.probe!r} is not a list of token ids.")
        for token in self.probe:
            checks.integer("probe", token, low=0)


def make(config: Config, models: Models) -> Drafter:
    """The drafter; it has no state and no parameters."""
    size = models.target.config.vocab_size
    for token in config.probe:
        checks.integer("probe", token, low=0, high=size - 1)
    inner = prompt_lookup.make(config, models)

    def propose(weights, state, request, canvas, view):
        proposal, state = inner.propose(weights, state, request, canvas, view)
        return reread(proposal, config.probe), state

    num_nodes = 1 + 2 * config.num_draft + max(len(config.probe), 1)
    return none.stateless(propose, widths=(1, num_nodes), max_depth=config.num_draft)


def reread(proposal: Proposal, probe: tuple[int, ...]) -> Proposal:
    """A chain with the probe and a copy of its draft behind it."""
    tokens, draft, exists = proposal.tokens, proposal.tokens[:, 1:], proposal.valid[:, 1:]
    batch, num_draft = draft.shape
    between = tokens[:, :1]
    if probe:
        between = jnp.broadcast_to(jnp.asarray(probe, tokens.dtype), (batch, len(probe)))
    length = exists.sum(-1, keepdims=True, dtype=jnp.int32)
    tail = between.shape[1] + num_draft
    num_nodes = 1 + num_draft + tail
    after = jnp.arange(1, tail + 1, dtype=jnp.int32)
    return dataclasses.replace(
        proposal,
        tokens=jnp.concatenate([tokens, between, draft], axis=1),
        parent=_rows(jnp.arange(-1, num_nodes - 1, dtype=jnp.int32), batch),
        # A short draft leaves no gap: what follows it is numbered from its last token.
        depth=jnp.concatenate([proposal.depth, length + after], axis=1),
        valid=jnp.concatenate(
            [proposal.valid, jnp.broadcast_to(length > 0, between.shape), exists], axis=1
        ),
        probe=_rows(jnp.arange(num_nodes) > num_draft, batch),
    )


def _rows(values: Array, batch: int) -> Int[Array, "B N"]:
    return jnp.broadcast_to(values, (batch, values.shape[0]))
