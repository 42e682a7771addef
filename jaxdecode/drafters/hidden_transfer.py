"""Hidden transfer: states of tokens ahead, made from a candidate's own, enter half way up.

Below every candidate hang probes that have no token. In the middle of the target's layers each gets
the candidate's state, through a matrix of its place, and goes through the remaining layers as the
token there would. The scores of the probes below the last accepted candidate fill the next tree.

Exactness: L0 under sample_match. Cost: one row per candidate and probe, whose first layers are for
nothing, and n matrices of D x D.
Source: arXiv:2404.12022, of which only the abstract was read; the layers, the tree and the loss are
ours.
"""

import dataclasses

from jaxdecode.core.protocols import Drafter, Models
from jaxdecode.heads import hidden_transfer
from jaxdecode.trees import chain, injected, probes, ranked, static


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """Options.

    Attributes:
        tree: name of a shipped tree (`configs/trees`) or path of a tree file; None takes the
            shipped medusa_63 as deep as there are probes.
        num_draft: candidates per step: the first of the tree; None takes all. Every candidate
            brings its probes along.
    """

    tree: str | None = None
    num_draft: int | None = 8

    def __post_init__(self) -> None:
        """Refuses values outside their range, by name."""
        static.check_part(self.tree or "medusa_63", self.num_draft)


def make(config: Config, models: Models) -> Drafter:
    """The drafter; its state are the guesses of the last step's probes."""
    assert models.heads is not None
    shape, model = models.heads.shape, models.target
    num = shape.num_probes
    tree = ranked.tree_of(config.tree, config.num_draft, depth=num)
    table = probes.tables(probes.full(tree, num))
    layers = hidden_transfer.layers_of(shape, model.config.num_layers)

    def propose(weights, state, request, canvas, view):
        del weights, request, view
        return probes.propose(table, state.known, chain.pending(canvas), state.ids), state

    def score(weights, proposal, program, view, taps):
        source = probes.candidate_of(proposal, num)
        changes = hidden_transfer.changes(
            weights.heads, layers, proposal.tokens, proposal.probe, source
        )
        return injected.forward(
            model, weights.target, proposal.tokens, program, view, taps=taps, changes=changes
        )

    return Drafter(
        init=probes.start(table, min(table.max_rank + 1, model.config.vocab_size)),
        propose=propose,
        score=score,
        update=probes.read(table),
        widths=table.widths,
        max_depth=table.max_depth,
    )
