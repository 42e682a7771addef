"""The best acceptance that any exact rule can reach with k drafts: a yardstick for rules and trees.

The most probability that an exact rule can put on the drafted tokens is the value of an optimal
transport problem. Its dual is small: 1 + min over sets H of tokens of [P(H) - Q(H)], where Q(H) is
the chance that all drafts lie in H, and the best H consists of the tokens with the smallest ratios
p / q. Host-side, float64.

Source: arXiv:2502.18779 (no code of the authors was found); differs: without replacement and k > 2,
Q(H) is an integral over the time of an exponential race.
"""

from typing import Literal

import numpy as np
from jaxtyping import Float

from jaxdecode import checks
from jaxdecode.errors import InputError

Draws = Literal["with_replacement", "without_replacement"]
_POINTS = 160


def optimal_acceptance(
    target: Float[np.ndarray, "V"], draft: Float[np.ndarray, "V"], num_drafts: int, draws: Draws
) -> float:
    """Largest chance that the next token of an exact rule is one of the drafts.

    Args:
        target: the target's law, warped.
        draft: law the drafts are drawn from, warped in the same way.
        num_drafts: drafts; more than the law has tokens count as one of each.
        draws: with replacement (independent drafts) costs a sort; without, time grows with V
            squared for more than two drafts.

    Raises:
        InputError: laws of different length, that are no laws, or an unknown word for `draws`.
    """
    checks.integer("num_drafts", num_drafts, low=1)
    target, draft = _law("target", target), _law("draft", draft)
    if target.shape != draft.shape:
        raise InputError(f"target has {target.size} tokens, but draft has {draft.size}.")
    ratio = np.divide(target, draft, out=np.full_like(target, np.inf), where=draft > 0)
    order = np.argsort(ratio, kind="stable")
    target, draft = target[order], draft[order]
    if draws == "with_replacement":
        inside = np.cumsum(draft) ** num_drafts
    elif draws == "without_replacement":
        inside = _all_inside(draft, min(num_drafts, int(np.count_nonzero(draft))))
    else:
        raise InputError(
            f"draws={draws!r} is not known; use with_replacement or without_replacement."
        )
    return float(min(1.0, 1.0 + (np.cumsum(target) - inside).min()))


def _law(name: str, values: np.ndarray) -> np.ndarray:
    law = np.asarray(values, np.float64)
    if law.ndim != 1 or not (law >= 0).all() or not abs(law.sum() - 1.0) < 1e-4:
        raise InputError(f"{name} is not a law: one row of numbers >= 0 that sum to 1.")
    return law / law.sum()


def _all_inside(draft: np.ndarray, num_drafts: int) -> np.ndarray:
    """Chance that all drafts, drawn one after another, are among the first h + 1 tokens."""
    mass = np.cumsum(draft)
    if num_drafts == 1:
        return mass
    if num_drafts == 2:
        odds = draft / (1.0 - draft)
        return mass * np.cumsum(odds) - np.cumsum(draft * odds)
    return _first_arrivals(draft, mass, num_drafts)


def _first_arrivals(draft: np.ndarray, mass: np.ndarray, number: int) -> np.ndarray:
    """The same as a race: token i arrives after an exponential time of rate draft[i].

    With U = exp(-(1 - mass) t) for the time t of the first arrival outside, uniform on [0, 1],
    token i has arrived by then with chance 1 - U^(draft[i] / (1 - mass)).
    """
    log_u, weights = _nodes()
    outside = 1.0 - mass
    full = outside < 1e-12
    rate = draft / np.where(full, 1.0, outside)[:, None]  # [h, i]
    # arrived[h, u, j]: chance that j tokens have arrived, number meaning "or more".
    arrived = np.zeros((len(draft), len(log_u), number + 1))
    arrived[..., 0] = 1.0
    for token in range(len(draft)):
        part = arrived[token:]
        hit = -np.expm1(rate[token:, token, None] * log_u)[..., None]
        moved = part[..., :-1] * hit
        part[..., :-1] -= moved
        part[..., 1:] += moved
    return np.where(full, 1.0, arrived[..., -1] @ weights)


def _nodes() -> tuple[np.ndarray, np.ndarray]:
    """Log of points in (0, 1) and weights: tanh-sinh, which does not mind steep ends."""
    step = 8.0 / _POINTS
    x = (np.arange(_POINTS + 1) - _POINTS / 2) * step
    inner = np.pi * np.sinh(x)
    log_u = -np.logaddexp(0.0, -inner)
    slope = np.pi * np.cosh(x) * np.exp(log_u - np.logaddexp(0.0, inner))
    return log_u, slope * step
