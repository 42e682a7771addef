"""Semi-autoregressive drafting in one pass: one row of a small drafter says the next k states.

The drafter reads the target's last states and the tokens that follow them, and the target's head
reads what it says: a chain of k tokens per step. The rows of an image, where a prompt has some,
enter it mixed to a few (`num_queries`), in front of all text.

Exactness: L0 under sample_match; drafts are drawn with the noise of their positions.
Cost: one row of a layer and k of the target's head per step, and a cache of one row per token of
text.
Source: arXiv:2505.12728; differs: rows count their positions without a gap where an image was
mixed; the drafter knows an image by a token of its prompt, as its targets do.
"""

import dataclasses
from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool, Int

from jaxdecode import checks
from jaxdecode.core.masks import MaskProgram
from jaxdecode.core.protocols import Drafter, Model, Models
from jaxdecode.core.types import pytree
from jaxdecode.heads import flash_sd
from jaxdecode.sampling import guess
from jaxdecode.trees import chain, own_cache, probes


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """Options.

    Attributes:
        num_draft: draft tokens per step: the first that a row says; None takes all.
    """

    num_draft: int | None = None

    def __post_init__(self) -> None:
        """Refuses values outside their range, by name."""
        if self.num_draft is not None:
            checks.integer("num_draft", self.num_draft, low=1)


@pytree
class State:
    """The drafter's own past.

    Attributes:
        past: its rows: those of an image if there is one, then those of text.
        pool: the image, as far as it was read; None where there can be none.
        length: tokens before the pending one.
    """

    past: own_cache.Past
    length: Int[Array, "B"]
    pool: flash_sd.Pool | None


class _Bound(NamedTuple):
    """What the steps need besides their data."""

    own: flash_sd.Drafting
    shape: flash_sd.Shape
    model: Model

    @property
    def num_queries(self) -> int:
        """Rows of an image; 0 where there are none."""
        return 0 if self.shape.image_token is None else self.shape.num_queries


def make(config: Config, models: Models) -> Drafter:
    """The drafter."""
    assert models.heads is not None
    shape, model = models.heads.shape, models.target
    num = min(config.num_draft or shape.block, shape.block)
    own = flash_sd.bind(shape, model.config, model.kv_dtype)
    bound = _Bound(own, shape, model)

    def init(weights, request, canvas, view, memory):
        del request, view, memory
        return _start(bound, weights, canvas)

    def absorb(weights, state, canvas, start, num_new, output):
        size, slots = output.hidden.shape[1], canvas.tokens.shape[1]
        slot = jnp.minimum(start + jnp.arange(size + 1, dtype=jnp.int32), slots - 1)
        tokens = canvas.tokens[:, slot]
        if state.pool is None:
            return _extend(bound, weights, state, output.hidden, tokens[:, 1:], num_new)
        mine = jnp.arange(size) < num_new[:, None]
        image = mine & (tokens[:, :-1] == shape.image_token)
        state = _look(bound, weights, state, canvas, output, image)
        # Rows of text close up; what is not text stands behind them.
        text = mine & ~image
        order = jnp.argsort(~text, axis=1, stable=True)
        features, tokens = (probes.at(rows, order) for rows in (output.hidden, tokens[:, 1:]))
        num_text = text.sum(1, dtype=jnp.int32)
        return _extend(bound, weights, state, features, tokens, num_text)

    def propose(weights, state, request, canvas, view):
        del view
        last = state.past.num_rows - 1
        program = MaskProgram(cached=last, positions=last[:, None], num_new=jnp.ones_like(last))
        cached = model.cache.read(state.past.cache)
        said = own.states(weights.heads, state.past.last, program, cached)[:, 0, :num]
        place = canvas.length[:, None] + 1 + jnp.arange(num, dtype=jnp.int32)
        drafts = guess.tokens(request, model.target.logits(weights.target, said), place)
        return chain.propose(canvas, drafts, jnp.ones_like(drafts, bool)), state

    def update(weights, state, request, canvas, proposal, verdict, output):
        del request, proposal
        features = probes.at(output.hidden, verdict.path)
        num_new = canvas.length - state.length
        state = dataclasses.replace(state, length=canvas.length)
        return _extend(bound, weights, state, features, verdict.tokens, num_new)

    return Drafter(
        init=init,
        absorb=absorb,
        propose=propose,
        update=update,
        taps=("embed",) if bound.num_queries else (),
        max_depth=num,
    )


def _start(bound: _Bound, weights, canvas) -> State:
    """The state before the prompts."""
    (batch, slots), model, num = canvas.tokens.shape, bound.model, bound.num_queries
    width, dtype = model.config.hidden_size, weights.target["embed"]["embedding"].dtype
    past = own_cache.Past(
        cache=own_cache.empty(model, bound.own.pairs.config, batch, slots + num),
        last=jnp.zeros((batch, 1, width), dtype),
        num_rows=jnp.where(_has_image(bound, canvas), num, 0).astype(jnp.int32),
    )
    pool = flash_sd.no_image(batch, num, width) if num else None
    # A copy: states are donated, and the canvas is not.
    return State(past=past, pool=pool, length=jnp.array(canvas.length))


def _has_image(bound: _Bound, canvas) -> Bool[Array, "B"]:
    """Prompts some of whose tokens stand for an image."""
    if bound.shape.image_token is None:
        return jnp.zeros(canvas.length.shape, bool)
    inside = jnp.arange(canvas.tokens.shape[1]) < canvas.length[:, None]
    return ((canvas.tokens == bound.shape.image_token) & inside).any(1)


def _look(bound: _Bound, weights, state: State, canvas, output, image) -> State:
    """The image with more of its rows, and what it is mixed to in the cache."""
    params, embedded, own = weights.heads, output.taps["embed"], bound.own
    assert state.pool is not None
    pool = state.pool.add(params["queries"], embedded, output.hidden, image)
    x = own.pairs.enter(params, *(part.astype(embedded.dtype) for part in pool.read()))
    place = jnp.arange(bound.num_queries, dtype=jnp.int32)
    rows = own.pairs.rows(params, x, jnp.broadcast_to(place, x.shape[:2]))
    # Rows of the batch without an image keep their text: theirs go behind all that is seen.
    start = jnp.where(_has_image(bound, canvas), 0, canvas.tokens.shape[1])
    cache = bound.model.cache.write(state.past.cache, rows, start)
    past = dataclasses.replace(state.past, cache=cache)
    return dataclasses.replace(state, past=past, pool=pool)


def _extend(bound: _Bound, weights, state: State, features, tokens, num_new) -> State:
    """The state with rows of text: states, and the tokens that follow them."""
    target, pairs = bound.model.target, bound.own.pairs
    assert target.embed is not None
    x = pairs.enter(weights.heads, target.embed(weights.target, tokens), features)
    rows = pairs.rows(weights.heads, x, own_cache.positions(state.past, tokens.shape[1]))
    past = own_cache.append(bound.model, state.past, x, rows, num_new)
    return dataclasses.replace(state, past=past)
