"""Sampled trees: a draft model draws several distinct tokens below every node.

Drawing without replacement wastes no node on a token twice. "race" draws all children of a node in
turn, each from the law of what is left; "greedy" takes the likeliest ones and draws only the last
from the law of the rest, which is the best a rule can be given from one draw.

Exactness: L1, "race" under `rejection`, "greedy" under `greedy_multi_draft`. Cost: a forward pass
of the draft model per level, over the whole tree so far.
Source: "race" RSD-C of arXiv:2402.14160; "greedy" arXiv:2502.18779.
"""

import dataclasses
from typing import Literal

import jax
import jax.numpy as jnp

from jaxdecode import checks
from jaxdecode.core.protocols import Drafter, Models
from jaxdecode.errors import InputError
from jaxdecode.trees import levels


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """Options.

    Attributes:
        branching: children of every node, level by level.
        children: "race" or "greedy": how the children of a node are chosen.
    """

    branching: tuple[int, ...] = (2, 2, 2)
    children: Literal["race", "greedy"] = "race"

    def __post_init__(self) -> None:
        """Refuses values outside their range, by name."""
        if not isinstance(self.branching, tuple) or not self.branching:
            raise InputError(f"branching={self.branching!r}: give a list of integers, as (2, 2).")
        for size in self.branching:
            checks.integer("branching", size, low=1)
        if self.children not in ("race", "greedy"):
            raise InputError(f"children={self.children!r} is not known; use 'race' or 'greedy'.")


def make(config: Config, models: Models) -> Drafter:
    """The drafter; its state is the draft model's cache."""
    return levels.make(plan(config), models)


def plan(config: Config) -> levels.Plan:
    """The plan of a tree in which all nodes of a level have equally many children."""
    choose = _race if config.children == "race" else _greedy
    sizes = levels.full(config.branching)

    def expand(law, gumbel, carry, level):
        num = config.branching[level]
        tokens, valid, recorded = jax.vmap(lambda q, noise: choose(q, noise, num))(law, gumbel)
        parent = jnp.repeat(jnp.arange(law.shape[0], dtype=jnp.int32), num)
        return levels.Children(tokens.reshape(-1), parent, valid.reshape(-1), carry, recorded)

    return levels.Plan(
        sizes=sizes,
        noise=(1, *sizes[:-1]),
        expand=expand,
        carry=(),
        max_children=max(config.branching),
        draws="likeliest_and_one" if config.children == "greedy" else "without_replacement",
    )


def _race(law, gumbel, num):
    tokens, number = levels.race(law, gumbel, num)
    return tokens, number > -jnp.inf, law


def _greedy(law, gumbel, num):
    """The num - 1 likeliest tokens, then one drawn from the rest."""
    tokens, number = levels.race(law, jnp.zeros_like(law), num - 1) if num > 1 else ([], [])
    rest = law.at[jnp.asarray(tokens, jnp.int32)].set(0.0)
    last, last_number = levels.race(rest, gumbel, 1)
    valid = jnp.concatenate([jnp.asarray(number, jnp.float32), last_number]) > -jnp.inf
    return jnp.concatenate([jnp.asarray(tokens, jnp.int32), last]), valid, law
