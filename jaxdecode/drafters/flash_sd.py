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

import jax.numpy as jnp
from jaxtyping import Array, Int

from jaxdecode import checks
from jaxdecode.core.masks import MaskProgram
from jaxdecode.core.protocols import Drafter, Models
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


def make(config: Config, models: Models) -> Drafter:
    """The drafter."""
    assert models.heads is not None
    shape, model = models.heads.shape, models.target
    target, width = model.target, model.config.hidden_size
    num = min(config.num_draft or shape.block, shape.block)
    own = flash_sd.bind(shape, model.config, model.kv_dtype)
    images = shape.image_token is not None
    assert target.embed is not None
    embed = target.embed

    def init(weights, request, canvas, view, memory):
        del request, view, memory
        batch, slots = canvas.tokens.shape
        extra = shape.num_queries if images else 0
        first = jnp.where(has_image(canvas), extra, 0).astype(jnp.int32)
        past = own_cache.Past(
            cache=own_cache.empty(model, own.pairs.config, batch, slots + extra),
            last=jnp.zeros((batch, 1, width), weights.target["embed"]["embedding"].dtype),
            num_rows=first,
        )
        pool = flash_sd.no_image(batch, shape.num_queries, width) if images else None
        # A copy: states are donated, and the canvas is not.
        return State(past=past, pool=pool, length=jnp.array(canvas.length))

    def extend(weights, state, features, tokens, num_new):
        x = own.pairs.enter(weights.heads, embed(weights.target, tokens), features)
        places = own_cache.positions(state.past, tokens.shape[1])
        past = own_cache.append(
            model, state.past, x, own.pairs.rows(weights.heads, x, places), num_new
        )
        return dataclasses.replace(state, past=past)

    def has_image(canvas):
        if not images:
            return jnp.zeros(canvas.length.shape, bool)
        slot = jnp.arange(canvas.tokens.shape[1])
        return ((canvas.tokens == shape.image_token) & (slot < canvas.length[:, None])).any(1)

    def look(weights, state, canvas, output, image):
        """The image with more of its rows, and what it is mixed to in the cache."""
        params, embedded = weights.heads, output.taps["embed"]
        pool = state.pool.add(params["queries"], embedded, output.hidden, image)
        x = own.pairs.enter(params, *(part.astype(embedded.dtype) for part in pool.read()))
        place = jnp.arange(shape.num_queries, dtype=jnp.int32)
        rows = own.pairs.rows(params, x, jnp.broadcast_to(place, x.shape[:2]))
        # Rows of the batch without an image keep their text: theirs go behind all that is seen.
        start = jnp.where(has_image(canvas), 0, canvas.tokens.shape[1])
        cache = model.cache.write(state.past.cache, rows, start)
        past = dataclasses.replace(state.past, cache=cache)
        return dataclasses.replace(state, past=past, pool=pool)

    def absorb(weights, state, canvas, start, num_new, output):
        size, slots = output.hidden.shape[1], canvas.tokens.shape[1]
        place = start + jnp.arange(size, dtype=jnp.int32)
        tokens = canvas.tokens[:, jnp.minimum(place + 1, slots - 1)]
        if state.pool is None:
            return extend(weights, state, output.hidden, tokens, num_new)
        own_rows = jnp.arange(size) < num_new[:, None]
        image = (canvas.tokens[:, jnp.minimum(place, slots - 1)] == shape.image_token) & own_rows
        state = look(weights, state, canvas, output, image)
        # Rows of text close up; what is not text stands behind them.
        order = jnp.argsort(~(own_rows & ~image), axis=1, stable=True)
        tokens = jnp.take_along_axis(tokens, order, axis=1)
        num_text = (own_rows & ~image).sum(1, dtype=jnp.int32)
        return extend(weights, state, probes.at(output.hidden, order), tokens, num_text)

    def propose(weights, state, request, canvas, view):
        del view
        last = state.past.num_rows - 1
        program = MaskProgram(cached=last, positions=last[:, None], num_new=jnp.ones_like(last))
        cached = model.cache.read(state.past.cache)
        said = own.states(weights.heads, state.past.last, program, cached)[:, 0, :num]
        place = canvas.length[:, None] + 1 + jnp.arange(num, dtype=jnp.int32)
        drafts = guess.tokens(request, target.logits(weights.target, said), place)
        return chain.propose(canvas, drafts, jnp.ones_like(drafts, bool)), state

    def update(weights, state, request, canvas, proposal, verdict, output):
        del request, proposal
        features = probes.at(output.hidden, verdict.path)
        num_new = canvas.length - state.length
        state = dataclasses.replace(state, length=canvas.length)
        return extend(weights, state, features, verdict.tokens, num_new)

    return Drafter(
        init=init,
        absorb=absorb,
        propose=propose,
        update=update,
        taps=("embed",) if images else (),
        max_depth=num,
    )
