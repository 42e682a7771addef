"""Takes every draft as it is: for drafters that offer only what they are sure of.

Exactness: L3. With `verify` the target checks every draft, and tokens are those of `ar`.
Cost: nothing beside the walk.
Source: arXiv:2405.15208.
"""

import dataclasses

import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxdecode.core.protocols import Models, Verifier
from jaxdecode.errors import InputError
from jaxdecode.trees import walk
from jaxdecode.verifiers.typical import take_first


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """Options.

    Attributes:
        verify: let the target check the drafts after all.
    """

    verify: bool = False

    def __post_init__(self) -> None:
        """Refuses what is neither true nor false."""
        if not isinstance(self.verify, bool):
            raise InputError(f"verify={self.verify!r} is not valid; it must be true or false.")


def make(config: Config, models: Models) -> Verifier:
    """The verifier."""
    del models

    def rule(visit: walk.Visit) -> Float[Array, "V"]:
        if config.verify:
            return visit.scores
        return take_first(visit, jnp.ones_like(visit.valid))

    return walk.make(rule, reads_children=not config.verify)
