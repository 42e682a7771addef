"""A model that fills masked tokens gets surer of those it has right, so that fewer steps do.

A place is drawn in every answer, a multiple of `block` from its beginning. What stands before it is
clean; of the next `block` tokens half are masked, by chance; all after them are masked and not
learned. The text is seen twice, the second time with the other half masked. Loss over the learned
tokens of each view, added up (arXiv:2509.26488 equations 5 to 7):

    cross-entropy + force * entropy of softmax(scores / temperature)

the entropy over those tokens only whose likeliest token is right; which these are is a constant to
the gradient. The texts are to be the model's own answers (`jaxdecode distill`).

Differs from the paper: all parameters are trained, not low-rank additions to them.
"""

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool

from jaxdecode import checks
from jaxdecode.core.protocols import Models
from jaxdecode.training import denoising, losses, schedules, whole
from jaxdecode.training.objective import Batch, Objective


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """Settings.

    Attributes:
        mask_token: stands in masked places; None takes the target's own.
        block: tokens of an answer that are learned at once.
        force: weight of the entropy.
        temperature: of the law whose entropy is taken.
        pad_token: stands in padding, which then is learned; None leaves padding out. Needs
            data.pack=false.
    """

    mask_token: int | None = None
    block: int = 32
    force: float = 2.0
    temperature: float = 0.5
    pad_token: int | None = None

    def __post_init__(self) -> None:
        """Refuses values outside their range, by name."""
        for name in ("mask_token", "pad_token"):
            if getattr(self, name) is not None:
                checks.integer(name, getattr(self, name), low=0)
        checks.integer("block", self.block, low=1)
        checks.number("force", self.force, "at least 0", lambda x: x >= 0)
        checks.number("temperature", self.temperature, "above 0", lambda x: x > 0)


def make(config: Config, models: Models) -> Objective:
    """The objective of all parameters of the target.

    Raises:
        InputError: there is no mask token.
    """
    own = models.target.config.denoiser
    shifted = own is not None and own.shifted
    asked = denoising.setting(models.target, config.mask_token, shifted, own.block if own else 0)

    def loss(params, target_params, batch, key, moment):
        del target_params, moment
        batch = denoising.filled(batch, config.pad_token)
        place, half = jax.random.split(key)
        learns, behind = span(batch, config.block, denoising.learned(batch, shifted), place)
        first = denoising.drawn(half, jnp.full(learns.shape, 0.5), learns)
        total, found = jnp.zeros(()), {}
        for name, masked in (("", first), (".second", ~first & learns)):
            hidden = denoising.states(asked, params, batch, masked | behind)
            parts = denoising.read(asked, params, hidden, batch.tokens, config.temperature)
            error, entropy = certainty(parts, masked)
            total += error + config.force * entropy
            found |= {f"error{name}": error, f"entropy{name}": entropy}
        return total, found

    return Objective(init=whole.of_target, loss=loss, export=denoising.exporting(asked))


def span(
    batch: Batch, block: int, weight: Array, key: Array
) -> tuple[Bool[Array, "B T"], Bool[Array, "B T"]]:
    """Tokens of a block drawn in every answer, and the tokens after it.

    Args:
        batch: texts.
        block: tokens of a block.
        weight: of tokens that may be masked.
        key: of the draw.
    """
    may, group = weight > 0, denoising.groups(batch)
    number = jnp.cumsum(may, axis=1)
    # Tokens that may be masked, counted from 0 in each text; and how many there are.
    before = jax.lax.cummax(jnp.where(_begins(group), number - may, 0), axis=1)
    rank = number - may - before
    last = jnp.where(_begins(group[:, ::-1]), number[:, ::-1], jnp.iinfo(jnp.int32).max)
    count = jax.lax.cummin(last, axis=1)[:, ::-1] - before
    u = jnp.take_along_axis(schedules.antithetic(key, *may.shape), group, axis=1)
    start = jnp.floor(u * -(-count // block)).astype(jnp.int32) * block
    return may & (rank >= start) & (rank < start + block), may & (rank >= start + block)


def _begins(group: Array) -> Bool[Array, "B T"]:
    return jnp.diff(group, axis=1, prepend=-1) != 0


def certainty(parts: tuple[Array, ...], masked: Array) -> tuple[Array, Array]:
    """Mean error of masked tokens, and mean entropy of those whose likeliest token is right.

    Args:
        parts: errors, whether they are right, and entropies, as `denoising.read` gives them.
        masked: tokens that are learned.
    """
    errors, hits, entropies = parts
    right = jax.lax.stop_gradient(hits & masked).astype(jnp.float32)
    return (
        losses.weighted_mean(errors, masked.astype(jnp.float32)),
        losses.weighted_mean(entropies, right),
    )
