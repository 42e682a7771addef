"""Which nodes of a tree are accepted, and how often: counted inside the loop, for any drafter."""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int

from jaxdecode import api, resolve
from jaxdecode.core.protocols import Drafter
from jaxdecode.core.types import Verdict, pytree
from jaxdecode.errors import InputError
from jaxdecode.trees import static


@pytree
class State:
    """The drafter's own state, and what was counted.

    Attributes:
        own: the drafter's.
        nodes: steps in which each node was accepted.
        steps: steps of live rows.
        done: rows that had ended before the step.
    """

    own: Any
    nodes: Int[Array, "B N"]
    steps: Int[Array, "B"]
    done: Bool[Array, "B"]


class Accepted(NamedTuple):
    """How often the paths of a tree were accepted.

    Attributes:
        share: share of the steps in which each path was accepted as a whole.
        steps: steps counted.
    """

    share: dict[static.RankPath, float]
    steps: int

    @property
    def length(self) -> float:
        """Tokens per step: accepted drafts, and the target's own token."""
        return 1 + sum(self.share.values())


@functools.lru_cache(maxsize=64)
def counting(drafter: Drafter, num_nodes: int) -> Drafter:
    """The drafter, counting; what it remembers at the end of a batch are the counts of its rows."""

    def wrap(own: Any, canvas: Any) -> State:
        zero = jnp.zeros_like(canvas.length)
        return State(
            own=own,
            nodes=jnp.zeros((len(canvas.length), num_nodes), jnp.int32),
            steps=zero,
            done=canvas.done,
        )

    def init(weights, request, canvas, view, memory):
        del memory
        return wrap(drafter.init(weights, request, canvas, view, None), canvas)

    def absorb(weights, state, canvas, start, num_new, output):
        assert drafter.absorb is not None
        own = drafter.absorb(weights, state.own, canvas, start, num_new, output)
        return dataclasses.replace(state, own=own)

    def propose(weights, state, request, canvas, view):
        proposal, own = drafter.propose(weights, state.own, request, canvas, view)
        return proposal, dataclasses.replace(state, own=own)

    def update(weights, state, request, canvas, proposal, verdict, output):
        own = drafter.update(weights, state.own, request, canvas, proposal, verdict, output)
        live = ~state.done
        hits = jax.vmap(lambda verdict: _hits(verdict, num_nodes))(verdict) & live[:, None]
        return State(own=own, nodes=state.nodes + hits, steps=state.steps + live, done=canvas.done)

    return drafter._replace(
        init=init,
        absorb=None if drafter.absorb is None else absorb,
        propose=propose,
        update=update,
        remember=lambda state: (state.nodes.sum(0), state.steps.sum()),
    )


def _hits(verdict: Verdict, num_nodes: int) -> Bool[Array, "N"]:
    """The accepted drafts of one row; the root is no draft."""
    index = jnp.arange(verdict.path.shape[0])
    on_path = (index > 0) & (index <= verdict.num_accepted)
    nodes = jnp.where(on_path, verdict.path, num_nodes)
    return jnp.zeros(num_nodes, bool).at[nodes].set(True, mode="drop")


def measure(
    lm: api.LanguageModel,
    prompts: Sequence[Any],
    *,
    method: str,
    tree: str,
    heads: Any = None,
    batch_size: int = 8,
    progress: Callable[[], None] = lambda: None,
    **options: Any,
) -> Accepted:
    """Decodes prompts with a tree and counts which of its paths are accepted.

    Args:
        lm: the model.
        prompts: as for `generate`.
        method: one whose proposals are a static tree.
        tree: name or file of the tree: what its option `tree` takes.
        heads: as for `generate`.
        batch_size: as for `generate`.
        progress: called after every batch.
        **options: as for `generate`.

    Raises:
        InputError: the method does not draft in a static tree.
    """
    shape = static.load(tree)
    chosen, choice = resolve.split(method, {"tree": tree, **options})
    if choice.entry.tree != "static":
        raise InputError(f"method {method!r} does not draft in a tree of fixed shape.")
    engine = api._engine(lm, choice, None, heads)
    drafter = counting(engine.method.drafter, shape.num_nodes)
    engine.method = engine.method._replace(drafter=drafter)
    rows = [api.tokenize(prompt, lm.tokenizer, lm.config) for prompt in prompts]
    nodes, steps = np.zeros(shape.num_nodes, np.int64), 0
    for first in range(0, len(rows), batch_size):
        part = rows[first : first + batch_size]
        keys = [api.noise.row_key(0, row) for row in part]
        api._decode(lm, engine, part, keys, chosen, batch_size, None)
        more, taken = jax.device_get(engine.memory)
        nodes, steps = nodes + more, steps + int(taken)
        progress()
    share = {path: float(nodes[i + 1]) / steps for i, path in enumerate(shape.paths)}
    return Accepted(share=share, steps=steps)
