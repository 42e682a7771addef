"""Proof of the line that inserts tokens: its law by enumeration, samples of it, and a twin.

Of a model of few tokens every text of up to `sampled.NUM_NEW` tokens behind the prompt is asked
about. Where the next token goes has the marginal of the joint law of place and token; which it is,
the warped law at that place. The law of a whole text sums over all orders in which its tokens can
come. The control puts every token one place too far to the right.
"""

import dataclasses
import functools
from collections.abc import Callable

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int

from jaxdecode import resolve
from jaxdecode.api import LanguageModel
from jaxdecode.core.protocols import Verifier
from jaxdecode.evals import filling, sampled, toys


def counts(
    name: str, samples: int, progress: Callable[[int], None] | None, *, broken: bool = False
) -> Int[np.ndarray, "..."]:
    """How often each text was written, read from left to right: one axis per token."""
    ready = sampled.setup(resolve.split(name, {})[1], toys.denoiser(inserts=True))
    if broken:
        ready = ready._replace(method=ready.method._replace(verifier=_twin(ready.method.verifier)))
    return sampled.counts(ready, samples, progress=progress).cells


@functools.lru_cache
def _twin(verifier: Verifier) -> Verifier:
    def moved(weights, request, canvas, proposal, output):
        found = verifier.verify(weights, request, canvas, proposal, output)
        assert found.after is not None
        after = jnp.minimum(found.after + 1, proposal.num[:, None] - 1)
        return dataclasses.replace(found, after=after)

    return verifier._replace(verify=moved)


@functools.lru_cache
def law() -> Float[np.ndarray, "..."]:
    """The exact joint law of the texts that `counts` counts."""
    return law_of(toys.denoiser(inserts=True), sampled.PROMPT, sampled.NUM_NEW, sampled.TEMPERATURE)


def law_of(
    lm: LanguageModel, prompt: tuple[int, ...], num_new: int, temperature: float
) -> Float[np.ndarray, "..."]:
    """Law of the text of `num_new` tokens that insertions lead to; one axis per token."""
    size = lm.config.vocab_size
    found = np.ones(())
    for length in range(num_new):
        texts = np.indices((size,) * length).reshape(length, size**length).T
        chance = insertions(lm, prompt, texts, temperature) * found.reshape(-1)[:, None, None]
        grown = np.zeros((size,) * (length + 1))
        for place in range(length + 1):
            parts = [texts[:, None, :place].repeat(size, 1), texts[:, None, place:].repeat(size, 1)]
            new = np.broadcast_to(np.arange(size)[None, :, None], (len(texts), size, 1))
            where = np.concatenate([parts[0], new, parts[1]], -1).reshape(-1, length + 1)
            np.add.at(grown, tuple(where.T), chance[:, place].ravel())
        found = grown
    return found


def insertions(
    lm: LanguageModel,
    prompt: tuple[int, ...],
    texts: Int[np.ndarray, "C k"],
    temperature: float,
) -> Float[np.ndarray, "C p V"]:
    """Chance of every place and token, given the texts behind the prompt; p = k + 1 places."""
    assert lm.config.denoiser is not None
    rows = np.concatenate([np.tile(prompt, (len(texts), 1)), texts], 1).astype(np.int32)
    scores = np.array(filling.scores_whole(lm.params, rows, target=lm.target), np.float64)
    scores = scores[:, len(prompt) - 1 :]
    scores[..., lm.config.denoiser.mask_token] = -np.inf

    def law(x: np.ndarray, axis: tuple[int, ...]) -> np.ndarray:
        chance = np.exp(x - x.max(axis, keepdims=True))
        return chance / chance.sum(axis, keepdims=True)

    places = law(scores, (1, 2)).sum(2, keepdims=True)
    return places * law(scores / temperature, (2,))
