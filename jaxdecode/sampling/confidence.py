"""How sure the target is of a candidate, and the ranking that commit rules share.

Measures are of the target's own law: before temperature and top-p, which would make most of them 1.
"""

from collections.abc import Callable
from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jaxdecode.core.commit import slots
from jaxdecode.core.types import Candidates, Canvas, Request, Window
from jaxdecode.sampling import noise

Order = Literal["probability", "log_probability", "margin", "entropy", "random", "left_to_right"]


def probability(candidates: Candidates) -> Float[Array, "B W"]:
    """Probability of the candidate."""
    return jnp.exp(candidates.logprob)


def margin(candidates: Candidates) -> Float[Array, "B W"]:
    """Probability of the likeliest token minus that of the second."""
    best = jax.lax.top_k(jax.nn.softmax(candidates.scores), 2)[0]
    return best[..., 0] - best[..., 1]


def entropy(candidates: Candidates) -> Float[Array, "B W"]:
    """Entropy of the target's law, in nats."""
    return entropy_of(candidates.scores)


def entropy_of(scores: Float[Array, "*B V"]) -> Float[Array, "*B"]:
    """Entropy of the law that scores say, in nats."""
    logprobs = jax.nn.log_softmax(scores)
    probs = jnp.exp(logprobs)
    return -jnp.where(probs > 0, probs * logprobs, 0.0).sum(-1)


def taken(array: Array, window: Window) -> Array:
    """What an array over the canvas holds at a window's slots; those past it read its last."""
    return jnp.take_along_axis(array, slots(window), axis=1, mode="clip")


def revisable(canvas: Canvas, window: Window) -> Bool[Array, "B W"]:
    """Slots of the block that the target has decided and that are not yet text."""
    inside = slots(window) < canvas.end[:, None]
    decided = ~window.open & (taken(canvas.commit_step, window) >= 0) & inside
    return decided & (slots(window) > canvas.length[:, None])


def uniform(request: Request, window: Window, *, renewed: bool = True) -> Float[Array, "B W"]:
    """A number in [0, 1) per slot: a new one in every step, or the same in all of them."""
    calls = window.calls if renewed else jnp.zeros_like(window.calls)
    return jax.vmap(noise.turns)(request.key, slots(window), calls)


def gumbel(request: Request, window: Window) -> Float[Array, "B W"]:
    """Gumbel noise per slot and step: added to scores, it draws slots in place of ranking them."""
    drawn = jnp.maximum(uniform(request, window), jnp.finfo(jnp.float32).tiny)
    return -jnp.log(-jnp.log(drawn))


def score(
    order: Order, request: Request, window: Window, candidates: Candidates
) -> Float[Array, "B W"]:
    """Larger is sooner."""
    ways: dict[str, Callable[[], Float[Array, "B W"]]] = {
        "probability": lambda: probability(candidates),
        "log_probability": lambda: candidates.logprob,
        "margin": lambda: margin(candidates),
        "entropy": lambda: -entropy(candidates),
        "random": lambda: uniform(request, window),
        "left_to_right": lambda: jnp.broadcast_to(
            -jnp.arange(window.open.shape[1], dtype=jnp.float32), window.open.shape
        ),
    }
    return ways[order]()


def rank(score: Float[Array, "B W"], open: Bool[Array, "B W"]) -> Int[Array, "B W"]:
    """0 for the largest score among open slots, 1 for the next; equal scores in order of slots.

    Slots that are not open come last.
    """
    order = jnp.argsort(jnp.where(open, -score, jnp.inf), axis=-1, stable=True)
    return jnp.argsort(order, axis=-1)


def best(
    score: Float[Array, "B W"], open: Bool[Array, "B W"], num: Int[Array, "B"]
) -> Bool[Array, "B W"]:
    """The `num` open slots of the largest scores."""
    return open & (rank(score, open) < num[:, None])
