"""Parts that objectives of diffusion share: who is masked at which rate, passes, errors.

Groups are what one noise level belongs to: a text of a row, or a block of it. A prompt is never
masked, and what no model could fill is not either: with shifted scores, the first token of a text.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jaxdecode.core.masks import MaskProgram
from jaxdecode.core.protocols import Model
from jaxdecode.errors import InputError
from jaxdecode.models.config import Denoiser
from jaxdecode.training import losses, schedules, whole
from jaxdecode.training.objective import Batch, Export


class Setting(NamedTuple):
    """How the model is asked: what its checkpoint says of it afterwards."""

    model: Model
    denoiser: Denoiser


def setting(model: Model, mask_token: int | None, shifted: bool, block: int) -> Setting:
    """The setting of an objective.

    Raises:
        InputError: the mask token is missing, or outside the vocabulary.
    """
    size, known = model.config.vocab_size, model.config.denoiser
    if mask_token is None and known is not None:
        mask_token = known.mask_token
    if mask_token is None:
        raise InputError(
            "objective.mask_token is missing: the target has no mask token of its own; name an id "
            "of its vocabulary that its texts do not use."
        )
    if mask_token >= size:
        raise InputError(
            f"mask_token={mask_token} is outside the vocabulary of {size} tokens; name an id in it "
            "that texts do not use."
        )
    return Setting(model, Denoiser(mask_token=mask_token, shifted=shifted, block=block))


def own_setting(model: Model) -> Setting:
    """How a model is asked that fills slots already; it stays as it is.

    Raises:
        InputError: it does not.
    """
    if model.config.denoiser is None:
        raise InputError(
            "the target writes one token after the other, and what is to be trained decides which "
            "slots to fill; name a target that fills slots."
        )
    return Setting(model, model.config.denoiser)


def filled(batch: Batch, token: int | None) -> Batch:
    """The batch with padding turned into tokens that are learned, at the end of each row's last
    text; None leaves it.
    """
    if token is None:
        return batch
    index = jnp.arange(batch.tokens.shape[1])
    real, last = batch.segments > 0, batch.segments.max(1, keepdims=True)
    start = jnp.where(real & (batch.segments == last), index - batch.positions, 0).max(1)
    return Batch(
        tokens=jnp.where(real, batch.tokens, token),
        positions=jnp.where(real, batch.positions, index - start[:, None]),
        segments=jnp.where(real, batch.segments, last),
        weight=jnp.where(real, batch.weight, 1.0),
    )


def groups(batch: Batch, block: int = 0) -> Int[Array, "B T"]:
    """Number, from 0 in each row, of the text or of its block that a token belongs to.

    Blocks are counted from the beginning of each text; padding has no blocks of its own.
    """
    begins = jnp.diff(batch.segments, axis=1, prepend=batch.segments[:, :1]) != 0
    if block:
        begins |= batch.positions % block == 0
    return jnp.cumsum(begins.at[:, 0].set(True), axis=1) - 1


def learned(batch: Batch, shifted: bool) -> Float[Array, "B T"]:
    """Weight of tokens that may be masked."""
    return batch.weight * (batch.positions > 0) if shifted else batch.weight


def drawn(key: Array, rate: Float[Array, "B T"], weight: Float[Array, "B T"]) -> Bool[Array, "B T"]:
    """Which tokens are masked: each by itself, at its rate, and only those that may be."""
    return (jax.random.uniform(key, rate.shape) < rate) & (weight > 0)


def program(batch: Batch) -> MaskProgram:
    """Every token sees its whole text."""
    num_rows, width = batch.tokens.shape
    return MaskProgram(
        cached=jnp.zeros(num_rows, jnp.int32),
        positions=batch.positions,
        num_new=jnp.full(num_rows, width, jnp.int32),
        segments=batch.segments,
        rule="bidirectional",
    )


def twice(batch: Batch, block: int, blocks: Int[Array, "B T"] | None = None) -> MaskProgram:
    """Noisy text, then the same text clean; noisy blocks see the clean ones before them."""
    num_rows, width = batch.tokens.shape

    def double(array: Array) -> Array:
        return jnp.concatenate([array, array], axis=1)

    return MaskProgram(
        cached=jnp.zeros(num_rows, jnp.int32),
        positions=double(batch.positions),
        num_new=jnp.full(num_rows, 2 * width, jnp.int32),
        segments=double(batch.segments),
        blocks=None if blocks is None else double(blocks),
        rule="noisy_and_clean",
        block=block,
    )


def states(
    setting: Setting, params: Any, batch: Batch, masked: Bool[Array, "B T"]
) -> Float[Array, "B T D"]:
    """The hidden state that scores each token, where some tokens are masked.

    With blocks, all of them in one pass of twice the length. A state that scores the token after
    it, the first of the next block, is that of the clean text, as it is when blocks are filled one
    after the other.
    """
    model, denoiser = setting
    noisy, width = jnp.where(masked, denoiser.mask_token, batch.tokens), batch.tokens.shape[1]
    if denoiser.block:
        tokens = jnp.concatenate([noisy, batch.tokens], axis=1)
        asked = twice(batch, denoiser.block)
    else:
        tokens, asked = noisy, program(batch)
    hidden = model.target.forward(params, tokens, asked, None).hidden
    source = jnp.broadcast_to(jnp.arange(width), batch.tokens.shape)
    if denoiser.shifted:
        source = jnp.maximum(source - 1, 0)
        if denoiser.block:
            source += jnp.where(batch.positions % denoiser.block == 0, width, 0)
    elif not denoiser.block:
        return hidden
    return jnp.take_along_axis(hidden, source[..., None], axis=1)


def read(
    setting: Setting,
    params: Any,
    hidden: Float[Array, "B T D"],
    tokens: Int[Array, "B T"],
    temperature: float | None = None,
) -> tuple[Float[Array, "B T"], ...]:
    """Cross-entropy of each token, whether it is the likeliest, and the entropy of its law.

    The mask token is never scored: it is no token of any text.

    Args:
        setting: how the model is asked.
        params: its parameters.
        hidden: the state that scores each token.
        tokens: what is right.
        temperature: of the law whose entropy is taken; None leaves it out.
    """

    def per_token(states, wanted):
        found = scores(setting, params, states)
        out = (losses.cross_entropy(found, wanted), found.argmax(-1) == wanted)
        if temperature is None:
            return out
        law = jax.nn.log_softmax(found / temperature)
        return *out, -(jnp.exp(law) * law).sum(-1)

    return losses.over_tokens(per_token, hidden, tokens)


def draws(
    setting: Setting, params: Any, hidden: Float[Array, "B T D"], key: Array
) -> tuple[Int[Array, "B T"], Float[Array, "B T"]]:
    """A token of the law of every state, and its probability.

    Args:
        setting: how the model is asked.
        params: its parameters.
        hidden: the state that scores each token.
        key: of the draws.
    """
    keys = jax.random.key_data(jax.random.split(key, hidden.shape[:2]))

    def draw(states, keys):
        law = jax.nn.log_softmax(scores(setting, params, states))
        tokens = jax.vmap(jax.random.categorical)(jax.random.wrap_key_data(keys), law)
        return tokens, jnp.exp(jnp.take_along_axis(law, tokens[:, None], axis=-1)[:, 0])

    return losses.over_tokens(draw, hidden, keys)


def scores(setting: Setting, params: Any, states: Float[Array, "*B D"]) -> Float[Array, "*B V"]:
    """float32 scores of states; the mask token, which is no token of any text, gets none."""
    model, denoiser = setting
    found = model.target.logits(params, states).astype(jnp.float32)
    return found.at[..., denoiser.mask_token].set(-1e9)


def per_text(
    values: Float[Array, "B T"], batch: Batch, weight: Float[Array, "B T"]
) -> Float[Array, ""]:
    """Mean over texts of the sum of a text's values over its number of learned tokens."""
    most = batch.tokens.shape[1] + 1
    hot = jax.nn.one_hot(batch.segments, most, dtype=jnp.float32)[..., 1:]
    totals = jnp.einsum("bt,bts->bs", values * weight, hot)
    counts = jnp.einsum("bt,bts->bs", weight, hot)
    return losses.weighted_mean(totals / jnp.maximum(counts, 1.0), (counts > 0).astype(jnp.float32))


def metrics(
    hits: Bool[Array, "B T"], masked: Bool[Array, "B T"], weight: Float[Array, "B T"]
) -> dict[str, Float[Array, ""]]:
    """What a step reports."""
    return {
        "accuracy": losses.weighted_mean(hits.astype(jnp.float32), weight * masked),
        "masked": losses.weighted_mean(masked.astype(jnp.float32), weight),
    }


def likelihood(setting: Setting, params: Any, batch: Batch, key: Array) -> Float[Array, "B"]:
    """One estimate of the bound on each row's negative log-likelihood, in nats (arXiv:2502.09992).

    k, uniform over 1 to the number L of learned tokens and spread over the rows, of them are
    masked; the estimate is the sum of the masked tokens' errors times L / k. One text per row.
    """
    level, order = jax.random.split(key)
    weight = learned(batch, setting.denoiser.shifted)
    num = (weight > 0).sum(1)
    t = schedules.antithetic(level, num.shape[0], 1)[:, 0]
    count = jnp.floor(t * num).astype(jnp.int32) + 1
    turn = jnp.where(weight > 0, jax.random.uniform(order, weight.shape), jnp.inf)
    rank = jnp.argsort(jnp.argsort(turn, axis=1), axis=1)
    masked = (rank < count[:, None]) & (weight > 0)
    errors, _ = read(setting, params, states(setting, params, batch, masked), batch.tokens)
    return (errors * masked).sum(1) * num / count


def exporting(setting: Setting) -> Callable[[Any, Any], Export]:
    """The `export` of objectives whose result is the target, filling undecided slots."""

    def export(params, target):
        return whole.as_target(params, target)._replace(denoiser=setting.denoiser)

    return export
