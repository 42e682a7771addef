"""Trees that a draft model grows level by level: all nodes of a level are expanded at once.

The draft model's own cache has room for one path only, so the whole tree so far is forwarded again
for every level, under its tree mask. Small trees of a small model cost little more than one row.

Draws use noise keyed by the position of the pending token, one part of it per level: a position is
drafted again in every step that proposes it, but a pending token belongs to one step.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jaxdecode.core import masks
from jaxdecode.core.protocols import Drafter, Models, Rows, Weights
from jaxdecode.core.types import Canvas, Draws, Proposal, Request, Sampling
from jaxdecode.sampling import noise, warp
from jaxdecode.trees import chain, draft_lm, walk
from jaxdecode.trees.draft_lm import DraftModel


class Children(NamedTuple):
    """The next level of one row, in draft order.

    Attributes:
        tokens: token ids.
        parent: index of the parent in the level before.
        valid: which of them exist.
        carry: whatever the next expansion wants to know.
        law: law the children of each node of the level before are recorded as drawn from.
    """

    tokens: Int[Array, "M"]
    parent: Int[Array, "M"]
    valid: Bool[Array, "M"]
    carry: Any
    law: Float[Array, "N V"]


# (law [N, V] of the next token at each node of a level, Gumbel noise for the level, carry, index of
# the level) -> Children. One row.
Expand = Callable[..., Children]


class Plan(NamedTuple):
    """How a tree is grown; all sizes are static.

    Attributes:
        sizes: nodes of every level below the root.
        noise: rows of noise each expansion wants, of V numbers each.
        expand: one level to the next.
        carry: what the first expansion is given.
        max_children: most children of nodes that share one path.
        draws: how they are drawn.
    """

    sizes: tuple[int, ...]
    noise: tuple[int, ...]
    expand: Expand
    carry: Any
    max_children: int
    draws: Draws


def make(plan: Plan, models: Models) -> Drafter:
    """The drafter that grows `plan`; its state is the draft model's cache."""
    draft = draft_lm.bind(models)

    def propose(weights, state, request, canvas, view):
        del view
        return _grow(plan, draft, weights, state, request, canvas)

    return Drafter(
        init=draft_lm.starting(draft),
        propose=propose,
        update=draft_lm.keep,
        max_depth=len(plan.sizes),
    )


def _grow(
    plan: Plan,
    draft: DraftModel,
    weights: Weights,
    cache: Any,
    request: Request,
    canvas: Canvas,
) -> tuple[Proposal, Any]:
    max_depth = len(plan.sizes)
    view = draft.model.cache.read(cache)
    # After a whole path was accepted, all its tokens are new to the cache.
    columns, rows, start = draft_lm.catch_up(draft, weights, view, canvas, max_depth + 1)
    columns = columns[:, None]
    seen = draft_lm.seen_tokens(request, canvas, draft)
    seen = None if seen is None else seen[:, None]
    tree, last = _root(canvas, draft_lm.can_draft(weights, canvas)), 0
    batch = len(canvas.length)
    carry = jax.tree.map(lambda x: jnp.broadcast_to(x, (batch, *jnp.shape(x))), plan.carry)
    for level, size in enumerate(plan.sizes):
        shape = (plan.noise[level], draft.vocab_size)
        gumbel = _noise(request, canvas, level, shape)
        out = _expand_level(plan, level, columns, request.sampling, seen, gumbel, carry)
        tree = tree.add(out, last)
        if level == 0:
            cache = draft_lm.store(cache, draft, rows, start, tree.tokens[:, 1])
            view = draft.model.cache.read(cache)
        carry, last = out.carry, tree.tokens.shape[1] - size
        if level + 1 < max_depth:
            columns = _score_level(draft, weights, view, canvas, tree, size)
            if seen is not None:
                seen = jax.vmap(_add_seen)(seen, out.parent, out.tokens)
    return tree.proposal(plan, max_depth), cache


class _Tree(NamedTuple):
    """The nodes so far, and the laws of all but the last level."""

    tokens: Int[Array, "B N"]
    parent: Int[Array, "B N"]
    depth: Int[Array, "B N"]
    valid: Bool[Array, "B N"]
    law: tuple[Float[Array, "B N V"], ...]

    def add(self, out: Children, first: int) -> "_Tree":
        """With one more level below the level that begins at node `first`."""
        parent = out.parent + first
        valid = out.valid & jnp.take_along_axis(self.valid, parent, axis=1)
        depth = jnp.full_like(parent, len(self.law) + 1)

        def join(old, new):
            return jnp.concatenate([old, new.astype(old.dtype)], axis=1)

        return _Tree(
            tokens=join(self.tokens, out.tokens),
            parent=join(self.parent, parent),
            depth=join(self.depth, depth),
            valid=join(self.valid, valid),
            law=(*self.law, out.law),
        )

    def proposal(self, plan: Plan, max_depth: int) -> Proposal:
        """The finished tree; nodes of the last level have no children, hence no law."""
        last = jnp.zeros((len(self.tokens), plan.sizes[-1], self.law[0].shape[-1]), jnp.float32)
        return Proposal(
            tokens=self.tokens,
            parent=self.parent,
            depth=self.depth,
            # The root is always scored, also where nothing could be drafted.
            valid=self.valid.at[:, 0].set(True),
            max_depth=max_depth,
            max_children=plan.max_children,
            draft_probs=jnp.concatenate([*self.law, last], axis=1),
            draws=plan.draws,
        )


def _root(canvas: Canvas, alive: Bool[Array, "B"]) -> _Tree:
    pending = chain.pending(canvas)
    zero = jnp.zeros_like(pending)
    return _Tree(pending, zero - 1, zero, alive[:, None], ())


def _noise(request: Request, canvas: Canvas, level: int, shape: tuple[int, int]):
    """Gumbel noise of one level, 0 in greedy rows."""

    def row(key, position):
        stream = noise.stream(key, position, purpose=noise.DRAFT)
        return jax.random.gumbel(jax.random.fold_in(stream, level), shape, jnp.float32)

    return draft_lm.unless_greedy(request.sampling, row, request.key, canvas.length, shape=shape)


def _expand_level(plan, level, columns, sampling: Sampling, seen, gumbel, carry) -> Children:
    def row(columns, sampling, seen, gumbel, carry):
        greedy = sampling.temperature < warp.GREEDY_BELOW
        if seen is None:
            scores = jax.vmap(lambda x: warp.warp(x, sampling, None))(columns)
        else:
            scores = jax.vmap(lambda x, past: warp.warp(x, sampling, past))(columns, seen)
        law = jax.vmap(lambda x: walk.probs_of(x, greedy))(scores)
        return plan.expand(law, gumbel, carry, level)

    in_axes = (0, draft_lm.axes(sampling), 0, 0, 0)
    return jax.vmap(row, in_axes=in_axes)(columns, sampling, seen, gumbel, carry)


def _score_level(
    draft: DraftModel, weights: Weights, view: Rows, canvas: Canvas, tree: _Tree, size: int
) -> Float[Array, "B N V"]:
    """Scores after each node of the last level; the root's row lies in the cache already."""
    program = masks.tree_program(
        cached=canvas.length + 1,
        parent=jnp.where(tree.parent[:, 1:] > 0, tree.parent[:, 1:] - 1, -1),
        depth=tree.depth[:, 1:] - 1,
        valid=tree.valid[:, 1:],
    )
    tokens = draft_lm.to_draft(draft, weights, tree.tokens[:, 1:])
    output = draft.model.target.forward(weights.drafter.params, tokens, program, view)
    return draft_lm.scores(draft, weights, output.hidden[:, -size:])


def _add_seen(
    seen: Bool[Array, "N V"], parent: Int[Array, "M"], tokens: Int[Array, "M"]
) -> Bool[Array, "M V"]:
    return seen[parent].at[jnp.arange(len(tokens)), tokens].set(True)


def race(
    law: Float[Array, "V"], gumbel: Float[Array, "V"], num: int
) -> tuple[Int[Array, "C"], Float[Array, "C"]]:
    """`num` tokens drawn one after another without replacement, and their perturbed log law.

    Where the law has fewer tokens, the number of a surplus draw is -inf.
    """
    perturbed = jnp.log(law) + gumbel
    tokens, numbers = [], []
    # Repeated maxima: a partial sort of a whole vocabulary costs milliseconds on a CPU.
    for _ in range(num):
        token = jnp.argmax(perturbed)
        tokens.append(token.astype(jnp.int32))
        numbers.append(perturbed[token])
        perturbed = perturbed.at[token].set(-jnp.inf)
    return jnp.stack(tokens), jnp.stack(numbers)


def full(sizes: Sequence[int]) -> tuple[int, ...]:
    """Nodes of every level if every node of level i has sizes[i] children."""
    nodes = []
    for size in sizes:
        nodes.append(size * (nodes[-1] if nodes else 1))
    return tuple(nodes)
