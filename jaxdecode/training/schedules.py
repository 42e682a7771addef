"""Noise schedules of masked diffusion: how much of a text is left at time t, from 0 to 1.

A token survives to time t with probability alpha(t), which falls from 1 to 0; else it is masked.
The bound on the negative log-likelihood of a text (arXiv:2406.04329 equation 4, arXiv:2406.07524
equation 10) is

    E over t of  weight(t) * sum over masked tokens of -log p(token)
    weight(t) = -alpha'(t) / (1 - alpha(t))

and, where time has only T steps and s = t - 1/T,

    weight(t) = T * (alpha(s) - alpha(t)) / (1 - alpha(t))

which is the T * expm1(logsnr(t) - logsnr(s)) * alpha(s) of the authors' code, up to its sign. The
value in continuous time is the same for every schedule; its variance is not.
"""

from collections.abc import Callable
from typing import Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxdecode.errors import InputError

Kind = Literal["linear", "polynomial", "cosine", "loglinear"]
# What is left at t = 1 under "loglinear".
_LEFT = 1e-3


class Schedule(NamedTuple):
    """What is left of a text.

    alpha: t -> probability that a token is not masked
    slope: t -> its derivative
    """

    alpha: Callable[[Float[Array, "*B"]], Float[Array, "*B"]]
    slope: Callable[[Float[Array, "*B"]], Float[Array, "*B"]]

    def weight(self, t: Float[Array, "*B"]) -> Float[Array, "*B"]:
        """Weight of the masked tokens' errors at time t, in continuous time."""
        return -self.slope(t) / (1 - self.alpha(t))

    def step_weight(self, t: Float[Array, "*B"], num_steps: int) -> Float[Array, "*B"]:
        """Weight of the masked tokens' errors at time t, one of 1/T, 2/T, ..., 1."""
        # All is left at time 0, whatever the schedule says of it.
        s = t - 1 / num_steps
        before = jnp.where(s < 0.5 / num_steps, 1.0, self.alpha(s))
        return num_steps * (before - self.alpha(t)) / (1 - self.alpha(t))


def of(kind: Kind, power: float = 2.0) -> Schedule:
    """The schedule of a name.

    Args:
        kind: "linear" 1 - t; "polynomial" 1 - t^power; "cosine" 1 - cos(pi / 2 (1 - t));
            "loglinear" exp(-sigma(t)) with sigma = -log(1 - (1 - 0.001) t), arXiv:2406.07524.
        power: of "polynomial".
    """
    quarter = jnp.pi / 2
    return {
        "linear": Schedule(lambda t: 1 - t, lambda t: -jnp.ones_like(t)),
        "polynomial": Schedule(lambda t: 1 - t**power, lambda t: -power * t ** (power - 1)),
        "cosine": Schedule(
            lambda t: 1 - jnp.cos(quarter * (1 - t)),
            lambda t: -quarter * jnp.sin(quarter * (1 - t)),
        ),
        "loglinear": Schedule(
            lambda t: 1 - (1 - _LEFT) * t, lambda t: -(1 - _LEFT) * jnp.ones_like(t)
        ),
    }[kind]


def check(kind: str) -> None:
    """Refuses the name of no schedule."""
    if kind not in get_args(Kind):
        known = ", ".join(get_args(Kind))
        raise InputError(f"schedule={kind!r} is not known; use one of {known}.")


def antithetic(key: Array, num_rows: int, num: int) -> Float[Array, "B N"]:
    """Times of N groups of tokens in each of B rows, spread evenly over the rows.

    Row b of a group has (u + b / B) mod 1 with one u per group, uniform: each time is uniform, and
    a batch sees all of them (arXiv:2107.00630 appendix I.1).
    """
    start = jax.random.uniform(key, (num,))
    return (start + jnp.arange(num_rows)[:, None] / num_rows) % 1.0
