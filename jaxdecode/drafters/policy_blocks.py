"""Blocks whose length a trained policy chooses.

Idea: with as many passes for every block, a long one is fast and decides slots that are still
unsure, a short one is slow and sure. Which is better differs from place to place, so it is asked
there: when a block begins, its first pass shows what the target says of the slots ahead, and a
small network says how long the block shall be (`heads/ctrldiff_blocks.py`). The likeliest length is
taken, the shorter one where two are as likely.

Exactness: what `denoise` gives with the rule and blocks of one length, where the policy always
chooses that length.
Cost: `denoise`, with scores of as many slots as the longest block has at every step, and two small
matrices.
Source: arXiv:2505.14455 (CtrlDiff). Differs: the paper's policy reads the context's state, this one
what the target says of the slots ahead.
"""

import dataclasses
import functools
from typing import get_args

import jax.numpy as jnp
from jaxtyping import Array, Int

from jaxdecode import checks
from jaxdecode.core.protocols import Drafter, Models, Weights
from jaxdecode.core.types import Candidates, Window
from jaxdecode.drafters import denoise
from jaxdecode.heads import ctrldiff_blocks


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """Options; the policy itself says which lengths there are.

    Attributes:
        reuse: as in `denoise`.
    """

    reuse: denoise.Reuse = "auto"

    def __post_init__(self) -> None:
        """Refuses values outside their range, by name."""
        checks.choice("reuse", self.reuse, get_args(denoise.Reuse))


def make(config: Config, models: Models) -> Drafter:
    """The drafter.

    Raises:
        InputError: the model cannot fill undecided slots or has blocks of its own.
    """
    assert models.heads is not None
    shape = models.heads.shape
    longest = denoise.Config(block_length=shape.longest, reuse=config.reuse)
    return denoise.with_ends(longest, models, shape.sizes, functools.partial(_stop, shape))


def _stop(
    shape: ctrldiff_blocks.Shape,
    weights: Weights,
    state: denoise.State,
    window: Window,
    candidates: Candidates,
) -> Int[Array, "B"]:
    """The slot after each row's block, as its first step shows what lies ahead."""
    shown = ctrldiff_blocks.shown(candidates.scores, window.open)
    choice = jnp.argmax(ctrldiff_blocks.log_probs(shape, weights.heads, shown), axis=-1)
    return jnp.minimum(state.start + jnp.asarray(shape.sizes, jnp.int32)[choice], state.stop)
