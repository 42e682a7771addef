"""Parallel prompt decoding: trained tokens behind every candidate make the next drafts.

A prompt token is a probe with a trained embedding. In the forward pass that checks a tree of
candidates, chains of prompt tokens hang below all of them, and those below the last accepted one
say what comes further on. A candidate that is unlikely to be the last has fewer: how many it had
is the state of the row, and every state has a tree of its own.

Exactness: L0 under sample_match. Cost: up to num_nodes rows per forward pass; nothing is computed
outside it but a top-k of the prompt tokens' scores.
Source: arXiv:2405.18628; differs: one embedding per prompt token (no ensembles), the same number
of candidates in every state that has guesses, and trees for assumed rates of success.
"""

import dataclasses

from jaxdecode import checks
from jaxdecode.core.protocols import Drafter, Models
from jaxdecode.trees import chain, probes, sparse

# Guesses of one place that may become candidates.
WIDTH = 10


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """Options.

    Attributes:
        num_nodes: most nodes of a step: pending token, candidates and prompt tokens.
        num_draft: most candidates of a step; None takes what gives the most tokens per step.
    """

    num_nodes: int = 32
    num_draft: int | None = None

    def __post_init__(self) -> None:
        """Refuses values outside their range, by name."""
        checks.integer("num_nodes", self.num_nodes, low=4, high=1024)
        if self.num_draft is not None:
            checks.integer("num_draft", self.num_draft, low=1, high=(self.num_nodes - 2) // 2)


def make(config: Config, models: Models) -> Drafter:
    """The drafter; its state are the guesses of the last step's prompt tokens."""
    assert models.heads is not None
    num_probes, size = models.heads.shape.num_probes, models.target.config.vocab_size
    rates = sparse.falling(num_probes, min(WIDTH, size))
    if config.num_draft is None:
        plan = sparse.best(rates, config.num_nodes)
    else:
        plan = sparse.plan(rates, config.num_nodes, config.num_draft)
    table = probes.tables(plan.layouts)

    def propose(weights, state, request, canvas, view):
        del weights, request, view
        return probes.propose(table, state.known, chain.pending(canvas), state.ids), state

    return Drafter(
        init=probes.start(table, table.max_rank + 1),
        propose=propose,
        score=probes.score(models.target),
        update=probes.read(table),
        widths=table.widths,
        max_depth=table.max_depth,
    )
