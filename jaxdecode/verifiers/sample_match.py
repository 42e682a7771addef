"""Sample and match: draw the target's own token at a node, descend if a child carries it.

The rule is the target's law itself, whatever was proposed. What is emitted is always the target's
own draw, and its noise depends on the position alone, so the output is token-identical to plain
decoding. Greedy verification is the temperature 0 case.

Exactness: L0 against `ar`, for every proposal that is a function of the past (and of the noise
that plain decoding would use).
Source: target-only verification of tree drafts, arXiv:2401.10774 section 2.3.2 (greedy case);
position-keyed noise is ours.
"""

import dataclasses

from jaxdecode.core.protocols import Models, Verifier
from jaxdecode.trees import walk


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """No options."""


def make(config: Config, models: Models) -> Verifier:
    """The verifier."""
    del config, models
    return walk.make(lambda visit: visit.scores, reads_children=False)
