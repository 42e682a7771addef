"""Hydra++: Hydra heads on the state of a prefix layer that attends over the target's states.

The layer has a cache of its own, with a row per token before the pending one; the heads read what
the layer says of the last row.

Exactness: L0 under sample_match. Cost: that of Hydra, one row of a layer per step, and keys and
values of one more layer.
Source: arXiv:2402.05109; differs: the layer adds nothing before it is trained.
"""

import dataclasses
from collections.abc import Callable

import jax.numpy as jnp

from jaxdecode.core.masks import MaskProgram
from jaxdecode.core.protocols import Drafter, Models, Weights
from jaxdecode.drafters import hydra
from jaxdecode.heads import hydra_pp
from jaxdecode.trees import own_cache, ranked, static


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(hydra.Config):
    """Options: those of Hydra."""


def make(config: Config, models: Models) -> Drafter:
    """The drafter; its state is the past of the prefix layer."""
    tree = hydra.tree_of(config, models)
    return behind(models, tree, lambda weights: hydra.scoring(models, weights))


def behind(
    models: Models, tree: static.StaticTree, scoring: Callable[[Weights], ranked.Score]
) -> Drafter:
    """A drafter whose heads stand behind a prefix layer.

    Args:
        models: the target and the heads, among whose parameters the layer is `prefix`.
        tree: what they fill.
        scoring: scores a level's nodes; the root is told what the layer says of the last row.
    """
    model = models.target
    prefix = hydra_pp.bind(model.config, model.kv_dtype)

    def propose(weights, state, request, canvas, view):
        del request, view
        last = state.num_rows - 1
        program = MaskProgram(cached=last, positions=last[:, None], num_new=jnp.ones_like(last))
        cached = model.cache.read(state.cache)
        read = prefix.states(weights.heads, state.last, program, cached)[:, 0]
        return ranked.propose(tree, canvas, read, scoring(weights)), state

    return Drafter(
        **own_cache.of_states(model, prefix.config, prefix.rows),
        propose=propose,
        widths=(1, tree.num_nodes),
        max_depth=tree.max_depth,
    )
