"""The loop over noise: one compiled scan whose steps denoise all vectors of all rows at once.

A method is a bundle of pure functions, as in the loop over tokens. Noise belongs to (seed, row,
place, step), places that do not exist are masked, and rows never meet: a row in any batch is the
row alone. At the end scores become tokens by the one warp and the noise of their positions, and
`core/commit.py` writes them, up to the first stop.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jaxdecode.core import commit
from jaxdecode.core.masks import MaskProgram
from jaxdecode.core.protocols import Model, Weights
from jaxdecode.core.types import MAX_LENGTH, STOP_TOKEN, Canvas, Request, Verdict, pytree
from jaxdecode.sampling import guess, noise


@pytree
class Source:
    """Prompts, side by side.

    Attributes:
        tokens: their token ids; what is not real is padding.
        real: which there are.
    """

    tokens: Int[Array, "B S"]
    real: Bool[Array, "B S"]


class Continuous(NamedTuple):
    """A method. Its weights are the target's parameters and the heads'.

    num_steps: steps of the scan
    calls:     passes of the denoiser in a step
    size:      numbers of a vector
    max_length: tokens of the longest text that it can write
    extent:    (tokens of the longest text of a batch) -> vectors that stand for each text
    encode:    (weights, source) -> memory: all that steps read of the prompt
    lengths:   (weights, memory) -> scores of the lengths 1, 2, ... of the text; None if the vectors
               say it
    begin:     (noise [B N D]) -> state
    step:      (weights, memory, lengths [B], state, step, noise [B N D]) -> state; the noise of
               step 0 is another than that of `begin`
    read:      (weights, memory, lengths [B], state, width) -> (scores of the text's first `width`
               tokens, its length [B])
    """

    num_steps: int
    calls: int
    size: int
    max_length: int
    extent: Callable[[int], int]
    encode: Callable[..., Any]
    lengths: Callable[..., Float[Array, "B L"]] | None
    begin: Callable[..., Any]
    step: Callable[..., Any]
    read: Callable[..., tuple[Float[Array, "B W V"], Int[Array, "B"]]]


def prompt_states(model: Model, weights: Weights, source: Source) -> Float[Array, "B S D"]:
    """The target's last hidden states of prompts."""
    num_rows, width = source.tokens.shape
    places = jnp.arange(width, dtype=jnp.int32)
    program = MaskProgram(
        cached=jnp.zeros(num_rows, jnp.int32),
        positions=jnp.broadcast_to(places, source.tokens.shape),
        num_new=source.real.sum(1, dtype=jnp.int32),
    )
    return model.target.forward(weights.target, source.tokens, program, None).hidden


@functools.partial(jax.jit, static_argnames="method")
def prepare(weights: Weights, source: Source, *, method: Continuous) -> tuple[Any, Any]:
    """What steps read of the prompts, and the scores of lengths if there are any."""
    memory = method.encode(weights, source)
    return memory, None if method.lengths is None else method.lengths(weights, memory)


@functools.partial(jax.jit, static_argnames=("method", "width"))
def run(
    weights: Weights,
    request: Request,
    canvas: Canvas,
    memory: Any,
    lengths: Int[Array, "B"],
    *,
    method: Continuous,
    width: int,
) -> Canvas:
    """Writes the texts of all rows.

    Args:
        weights: of target and heads.
        request: keys, law and stops of the rows.
        canvas: the prompts; a row's text goes up to its `end`.
        memory: what `prepare` gave.
        lengths: tokens of each text, where the method does not say it itself.
        method: the bundle.
        width: tokens of the longest text.
    """
    num = method.extent(width)

    def drawn(step: Array) -> Float[Array, "B N D"]:
        own = functools.partial(noise.gaussian, size=method.size)
        return jax.vmap(lambda key: own(key, num, step))(request.key)

    def step(state, index):
        state = method.step(weights, memory, lengths, state, index, drawn(index + 1))
        return state, None

    first = method.begin(drawn(jnp.int32(0)))
    state, _ = jax.lax.scan(step, first, jnp.arange(method.num_steps, dtype=jnp.int32))
    scores, lengths = method.read(weights, memory, lengths, state, width)
    return _write(request, canvas, scores, lengths, method.num_steps - 1)


def length_of(exists: Float[Array, "B N"]) -> Int[Array, "B"]:
    """Tokens of texts, which end before the first place without one, but are not empty.

    Args:
        exists: log-odds that there is a token at each place.
    """
    ended = jnp.concatenate([exists <= 0, jnp.ones_like(exists[:, :1], bool)], axis=1)
    return jnp.maximum(ended.argmax(1), 1).astype(jnp.int32)


def _write(
    request: Request,
    canvas: Canvas,
    scores: Float[Array, "B W V"],
    lengths: Int[Array, "B"],
    step: int,
) -> Canvas:
    """Rounds to tokens and commits them: a text is an accepted path as a whole."""
    scores = scores.astype(jnp.float32)
    start = canvas.length + 1
    index = jnp.arange(scores.shape[1], dtype=jnp.int32)
    tokens = guess.tokens(request, scores, start[:, None] + index)
    law = jax.nn.log_softmax(scores)
    verdict = Verdict(
        tokens=tokens,
        logprob=jnp.take_along_axis(law, tokens[..., None], axis=-1)[..., 0],
        path=jnp.broadcast_to(index, tokens.shape),
        num_accepted=jnp.full_like(lengths, index.shape[0] - 1),
    )
    ends = jnp.minimum(canvas.end, start + jnp.maximum(lengths, 1))
    steps = jnp.full_like(lengths, step)
    written = commit.commit(request, dataclasses.replace(canvas, end=ends), verdict, steps)
    # A text that is over before there is no more room has come to its end.
    over = (ends < canvas.end) & (written.finish == MAX_LENGTH)
    return dataclasses.replace(written, finish=jnp.where(over, STOP_TOKEN, written.finish))
