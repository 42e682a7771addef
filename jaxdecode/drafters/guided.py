"""`denoise` with guidance: what follows from the given text is asked for more than it is.

Idea: the target also sees the text with the given part, or a share of it, hidden. With scores c of
the text and u of the text so hidden, candidates come from

    u + (w + 1) (c - u),

which makes likelier what the given text makes likelier. Both texts go through the target in one
pass, each seeing itself only. The head is linear, so the mix is made of the states before it, and
the head runs once.

Exactness: with w = 0, or nothing hidden, it is `denoise`.
Cost: twice the tokens of `denoise` without reuse; keys and values are of two texts, so none are
reused.
Source: classifier-free guidance of arXiv:2502.09992 (released sampler, where all of the prompt is
hidden); a random share of it, anew in every step: arXiv:2501.06158 section 4.3, with w + 1 for w,
which also hides what has been decided.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxdecode import checks
from jaxdecode.core.masks import MaskProgram
from jaxdecode.core.protocols import Drafter, Models, TargetOutput, Weights
from jaxdecode.core.types import Canvas, Request, Window
from jaxdecode.drafters import denoise
from jaxdecode.errors import InputError
from jaxdecode.sampling import noise


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(denoise.Config):
    """Options: those of `denoise`, and two more.

    Attributes:
        guidance: w, >= 0; 0 is none, in one pass over one text.
        hidden_share: share of the given text that the second text hides, in [0, 1].
    """

    guidance: float = 1.0
    hidden_share: float = 1.0

    def __post_init__(self) -> None:
        """Refuses values outside their range, by name."""
        super().__post_init__()
        checks.number("guidance", self.guidance, "a number >= 0", lambda x: x >= 0)
        checks.number(
            "hidden_share", self.hidden_share, "a number in [0, 1]", lambda x: 0 <= x <= 1
        )
        if self.guidance and self.reuse not in ("auto", "none"):
            raise InputError(
                f"reuse={self.reuse!r} does not go with guidance={self.guidance}: the second text "
                "would need keys and values of its own; use reuse='none'."
            )


def make(config: Config, models: Models) -> Drafter:
    """The drafter; errors as of `denoise.make`."""
    if not config.guidance:
        return denoise.make(config, models)
    base = denoise.make(dataclasses.replace(config, reuse="none"), models)
    return base._replace(
        propose=functools.partial(_propose, base, config.hidden_share),
        score=functools.partial(_score, models, config.guidance),
    )


def _propose(
    base: Drafter,
    share: float,
    weights: Weights,
    state: denoise.State,
    request: Request,
    canvas: Canvas,
    view: Any,
) -> tuple[Window, denoise.State]:
    window, state = base.propose(weights, state, request, canvas, view)
    # Without reuse the rows are the slots.
    hidden = ~canvas.open & (canvas.commit_step < 0)
    if share < 1:
        slots = jnp.arange(hidden.shape[1], dtype=jnp.int32)
        drawn = jax.vmap(noise.turns, (0, None, 0))(request.key, slots, window.calls)
        hidden &= drawn < share
    contrast = jnp.where(hidden, window.mask_token, window.tokens)
    return dataclasses.replace(window, contrast=contrast), state


def _score(
    models: Models,
    guidance: float,
    weights: Weights,
    proposal: Window,
    program: MaskProgram,
    view: Any,
    taps: tuple[str, ...],
) -> TargetOutput:
    assert proposal.contrast is not None
    num_rows = proposal.tokens.shape[1]
    tokens = jnp.concatenate([proposal.tokens, proposal.contrast], axis=1)
    output = models.target.target.forward(weights.target, tokens, both(program), view, taps)

    def guide(x: Float[Array, "B T D"]) -> Float[Array, "B N D"]:
        ours, other = (x.astype(jnp.float32) for x in jnp.split(x, [num_rows], axis=1))
        return (other + (guidance + 1) * (ours - other)).astype(x.dtype)

    taken = {name: tap[:, :num_rows] for name, tap in output.taps.items()}
    # Nobody caches the rows.
    return dataclasses.replace(output, hidden=guide(output.hidden), taps=taken)


def both(program: MaskProgram) -> MaskProgram:
    """The program of two texts in the rows of one after the other; neither sees the other."""
    num_rows = program.positions.shape[1]
    exists = jnp.arange(num_rows) < program.num_new[:, None]
    # Padding of the first text lies between the two: a text of its own that nobody reads.
    segments = [jnp.where(exists, text, 2) for text in (0, 1)]
    return dataclasses.replace(
        program,
        positions=jnp.concatenate([program.positions] * 2, axis=1),
        num_new=num_rows + program.num_new,
        segments=jnp.concatenate(segments, axis=1),
    )
