"""How many bits per token a model that fills slots needs for a text: the evidence lower bound.

Of the n slots of a text, a number k, uniform from 1 to n, is masked at random; the cost of the
masked ones times n / k estimates a bound on -log p(text) without bias. The numbers k of one text's
draws are spread evenly, which lowers the variance and not the mean. A model with blocks pays block
by block: a random one, with the blocks before it in place, times the number of blocks.

Cost: one forward pass over the texts per draw.
Source: arXiv:2502.09992 appendix A (likelihood); arXiv:2406.07524 section 3; blocks of
arXiv:2503.09573 section 3.
"""

import functools
import math
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from jaxdecode import checks
from jaxdecode.api import LanguageModel
from jaxdecode.core.protocols import Target
from jaxdecode.errors import InputError
from jaxdecode.models import filled
from jaxdecode.models.config import Denoiser

# Texts per forward pass.
ROWS = 16


class Bound(NamedTuple):
    """Estimate of a bound, in bits.

    Attributes:
        bits: per text.
        error: standard error of their sum, from the spread over draws.
        num_tokens: tokens that were paid for.
    """

    bits: Float[np.ndarray, "M"]
    error: float
    num_tokens: int

    @property
    def per_token(self) -> float:
        """Bits per token over all texts."""
        return float(self.bits.sum()) / max(self.num_tokens, 1)


def bound(
    lm: LanguageModel,
    texts: Sequence[Sequence[int]],
    *,
    given: Sequence[int] | int = 0,
    draws: int = 16,
    seed: int = 0,
) -> Bound:
    """The bound of every text.

    Args:
        lm: a model that fills slots.
        texts: token ids.
        given: how many tokens at the beginning of each are not paid for.
        draws: random sets of masked slots per text.
        seed: of the random sets.

    Raises:
        InputError: a model that writes one token after the other, or a text without tokens to pay.
    """
    denoiser = lm.config.denoiser
    if denoiser is None:
        raise InputError("the bound is of models that fill slots; this one writes them in order.")
    checks.integer("draws", draws, low=1)
    begins = np.full(len(texts), given) if isinstance(given, int) else np.asarray(given)
    # The slot before a shifted model's first one does not exist.
    begins = np.maximum(begins, int(denoiser.shifted)).astype(int)
    if any(len(text) <= begin for text, begin in zip(texts, begins, strict=True)):
        raise InputError("a text is no longer than what is given of it; nothing is left to pay.")
    rng = np.random.default_rng(seed)
    costs = np.zeros((draws, len(texts)))
    for first in range(0, len(texts), ROWS):
        members = list(range(first, min(first + ROWS, len(texts))))
        tokens, length = padded([texts[i] for i in members])
        offsets = rng.random(len(members))
        for draw in range(draws):
            masked, weight = np.zeros(tokens.shape, bool), np.ones(len(tokens))
            for b, i in enumerate(members):
                even = (offsets[b] + draw / draws) % 1.0
                slots, weight[b] = _masked(denoiser, begins[i], int(length[b]), even, rng)
                masked[b, slots] = True
            cost = _cost(lm.params, tokens, length, masked, target=lm.target, denoiser=denoiser)
            costs[draw, members] = np.asarray(cost)[: len(members)] * weight[: len(members)]
    bits = costs / math.log(2)
    error = float(bits.sum(1).std(ddof=1) / math.sqrt(draws)) if draws > 1 else math.inf
    paid = sum(len(text) - begin for text, begin in zip(texts, begins, strict=True))
    return Bound(bits.mean(0), error, int(paid))


def padded(texts: Sequence[Sequence[int]]) -> tuple[np.ndarray, np.ndarray]:
    """ROWS rows of a length that few programs cover; what is added are copies that nobody reads."""
    width = -(-max(map(len, texts)) // 64) * 64
    rows = np.zeros((ROWS, width), np.int32)
    lengths = np.ones(ROWS, np.int32)
    for b, text in enumerate(texts):
        rows[b, : len(text)], lengths[b] = text, len(text)
    return rows, lengths


def _masked(
    denoiser: Denoiser, begin: int, end: int, even: float, rng: np.random.Generator
) -> tuple[np.ndarray, float]:
    """Slots to mask, and what their cost counts: the block's share, times the number of blocks."""
    size = denoiser.block or end
    first = begin // size
    num_blocks = -(-end // size) - first
    block = first + int(rng.integers(num_blocks))
    slots = np.arange(max(begin, block * size), min(end, (block + 1) * size))
    number = int(even * len(slots)) + 1
    return rng.choice(slots, number, replace=False), num_blocks * len(slots) / number


@functools.partial(jax.jit, static_argnames=("target", "denoiser"))
def _cost(
    params: object,
    tokens: Int[Array, "B T"],
    length: Int[Array, "B"],
    masked: Bool[Array, "B T"],
    *,
    target: Target,
    denoiser: Denoiser,
) -> Float[Array, "B"]:
    """Summed cost of the masked tokens, in nats."""
    law = filled.laws(params, tokens, length, masked, target=target, denoiser=denoiser)
    logprob = jnp.take_along_axis(law, tokens[..., None], 2)[..., 0]
    return -jnp.where(masked, logprob, 0.0).sum(1)
