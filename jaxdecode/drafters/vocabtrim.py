"""Trimmed vocabulary: a draft model whose head scores only the most frequent tokens.

A small model spends much of its time in its output head. Tokens outside the trimmed vocabulary are
never drafted; a target that emits one ends the accepted path there.

Exactness: L0 under sample_match. Cost: as `draft_model`, with `keep` rows of the head in place of
all; the trimmed head is a copy.
Source: arXiv:2506.22694 (no code of the authors was found); differs: without a calibration text
the lowest ids are kept, which tokenizers that merge pairs give to their most frequent tokens.
"""

import dataclasses

import jax.numpy as jnp
import numpy as np

from jaxdecode import checks
from jaxdecode.core.protocols import Drafter, DraftWeights, Models, Weights
from jaxdecode.drafters import draft_model
from jaxdecode.errors import InputError


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """Options.

    Attributes:
        num_draft: most draft tokens per step.
        min_prob: as for `draft_model`; 0 always drafts num_draft tokens.
        keep: tokens of the trimmed head.
        calibration: tokens of a text, as the draft model counts them: the most frequent ones are
            kept, then the lowest ids. Best is a text written by the target.
    """

    num_draft: int = 4
    min_prob: float = 0.0
    keep: int = 16384
    calibration: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        """Refuses values outside their range, by name."""
        _inner(self)
        checks.integer("keep", self.keep, low=1)
        if not isinstance(self.calibration, tuple):
            raise InputError(f"calibration={self.calibration!r} must be a list of token ids.")
        for token in self.calibration:
            checks.integer("calibration token id", token, low=0)


def make(config: Config, models: Models) -> Drafter:
    """The drafter of `draft_model` with its head cut."""
    assert models.draft is not None
    model, num_target = models.draft.config, models.target.config.vocab_size
    for token in config.calibration:
        checks.integer("calibration token id", token, low=0, high=model.vocab_size - 1)
    text = np.asarray(config.calibration, np.int64)
    kept = most_frequent(np.bincount(text, minlength=model.vocab_size), config.keep)

    def prepare(weights: Weights) -> Weights:
        return weights._replace(drafter=_trim(weights.drafter, kept, num_target))

    return draft_model.make(_inner(config), models)._replace(prepare=prepare)


def most_frequent(counts: np.ndarray, keep: int) -> np.ndarray:
    """The ids to keep, in rising order: by how often each was counted, of equals the lowest."""
    return np.sort(np.argsort(-counts, kind="stable")[:keep])


def _inner(config: Config) -> draft_model.Config:
    return draft_model.Config(num_draft=config.num_draft, min_prob=config.min_prob)


def _trim(own: DraftWeights, kept: np.ndarray, num_target: int) -> DraftWeights:
    params = own.params
    place = "head" if "head" in params else "embed"
    table = {name: table[kept] for name, table in params[place].items()}
    size = params["embed"]["embedding"].shape[0]
    if own.column is None:
        alike = np.arange(num_target)
        column = np.where(alike < size, alike, -1)
    else:
        column = np.asarray(own.column)
    rank = np.full(size, -1, np.int32)
    rank[kept] = np.arange(len(kept))
    trimmed = np.where(column >= 0, rank[np.maximum(column, 0)], -1)
    return own._replace(column=jnp.asarray(trimmed, jnp.int32), head={place: table})
