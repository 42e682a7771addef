"""The seam between the trainer and what is trained: a bundle of pure functions.

An objective is a file in `training/objectives/` with `Config`, a frozen keyword-only dataclass of
its own settings, and `make(config, models) -> Objective`. Among the models are a draft model if
the recipe trains one, and heads if it trains some.
"""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from jaxdecode.core.masks import MaskProgram
from jaxdecode.core.types import pytree
from jaxdecode.models.config import Denoiser


@pytree
class Batch:
    """Packed texts.

    Attributes:
        tokens: token ids; several texts may share a row.
        positions: position of each token in its own text.
        segments: which text of its row a token belongs to, from 1; 0 is padding.
        weight: 1 where the token is one to be predicted (an answer's), 0 for prompts and padding.
        features: what `Objective.features` says of the tokens, if it is known already.
    """

    tokens: Int[Array, "B T"]
    positions: Int[Array, "B T"]
    segments: Int[Array, "B T"]
    weight: Float[Array, "B T"]
    features: Any = None


class Start(NamedTuple):
    """What training begins with.

    Attributes:
        params: everything that the run may change or that belongs to its result: nested dicts.
        frozen: whether a leaf stays as it is, by its name ("blocks/kernel"). Leaves that are not
            floating-point never change.
    """

    params: Any
    frozen: Callable[[str], bool] = lambda name: False


class Export(NamedTuple):
    """What a run leaves behind to decode with.

    Attributes:
        heads: parameters of the heads; None if the objective has none.
        target: the changed target's parameters; None if it is as it was.
        draft: the trained draft model's parameters; None if there is none.
        denoiser: how the changed target fills undecided slots; None if it does not.
    """

    heads: Any = None
    target: Any = None
    draft: Any = None
    denoiser: Denoiser | None = None


class Texts(NamedTuple):
    """What the beginning may depend on: all that is trained on.

    Attributes:
        counts: how often each token of the vocabulary is to be learned.
        batches: all texts once, in a fixed order.
    """

    counts: Int[np.ndarray, "V"]
    batches: Callable[[], Iterator[Batch]]


class Moment(NamedTuple):
    """Where in a run a step is; what warms up or takes turns goes by it.

    Attributes:
        step: steps before this one.
        num_steps: of the whole run.
    """

    step: Int[Array, ""]
    num_steps: int

    @property
    def share(self) -> Float[Array, ""]:
        """The part of the run that is over: from 0 to below 1."""
        return jnp.float32(self.step) / self.num_steps


class Objective(NamedTuple):
    """What is minimised.

    init:   (key, weights, texts) -> Start; `weights` are the models' before training,
            `weights.drafter` the draft model's plain parameters; `texts` are None where only
            shapes matter
    loss:   (params, target params, batch, key, moment) -> (loss [], metrics: dict of scalars).
            The mean over the tokens that count, so that batches weigh alike. Differentiable in
            `params`; nothing flows into the target's parameters. All parts of a step have the same
            moment, which is a value: no Python branch on it.
    export: (params, target params) -> Export
    judge:  as `loss`, where held-out texts are measured by something else than what is minimised
    features: (target params, batch) -> what the loss reads of a frozen target: a tree of
            `[B, T, ...]` arrays, a text's part of which depends on that text only. None if the
            loss reads it in another way.
    rollout: (params, target params, batch, key, moment) -> Batch of as many or some times as many
            rows, in their order: what the parameters at the beginning of a step make of its batch,
            which the loss reads in its place. None: it reads the batch itself.
    num_moves: of the optimizer in a step, all with the same rollout; more than 1 only with one
    unpacked: whether a row must be one text: `data.pack: false`
    """

    init: Callable[..., Start]
    loss: Callable[..., tuple[Float[Array, ""], dict[str, Float[Array, ""]]]]
    export: Callable[..., Export]
    judge: Callable[..., tuple[Float[Array, ""], dict[str, Float[Array, ""]]]] | None = None
    features: Callable[..., Any] | None = None
    rollout: Callable[..., Batch] | None = None
    num_moves: int = 1
    unpacked: bool = False


def heads_only(params: Any, target: Any) -> Export:
    """The `export` of objectives whose parameters are the heads'."""
    del target
    return Export(heads=params)


def program(batch: Batch) -> MaskProgram:
    """Causal attention within each text."""
    num_rows, width = batch.tokens.shape
    return MaskProgram(
        cached=jnp.zeros(num_rows, jnp.int32),
        positions=batch.positions,
        num_new=jnp.full(num_rows, width, jnp.int32),
        segments=batch.segments,
    )


def ahead(batch: Batch, offset: int) -> tuple[Int[Array, "B T"], Float[Array, "B T"]]:
    """The token `offset` places after each, and its weight; 0 where the text has none."""

    def shift(array: Array) -> Array:
        return jnp.pad(array[:, offset:], ((0, 0), (0, offset)))

    same = (shift(batch.segments) == batch.segments) & (batch.segments > 0)
    return shift(batch.tokens), jnp.where(same, shift(batch.weight), 0.0)
