"""States k tokens on, guessed in blocks of k, with glances at the answers; the target is frozen.

A first pass guesses. Where it is wrong, a second may glance: the more mistakes, the more rows at
the start of blocks are given the state and token that they should guess, and the others of their
block learn to follow them. The second pass is what is trained: the smooth L1 distance of its
states from the target's, and 0.1 times the distance of their laws: nine parts from the target's
law and one from a token drawn of it (arXiv:2412.12639).

Differs: the share of mistakes that are revealed is drawn anew for every text, from the range that
the paper runs through from its first epoch to its last; revealed rows do not count.
"""

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jaxdecode import checks
from jaxdecode.core.masks import MaskProgram
from jaxdecode.core.protocols import Models
from jaxdecode.heads import falcon
from jaxdecode.training import features as aligned
from jaxdecode.training import losses
from jaxdecode.training.objective import Batch, Objective, Start, ahead, heads_only, program


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """Settings.

    Attributes:
        law_weight: weight of the laws' distance.
        temperature: of both laws where they are compared.
        min_share: least share of the mistakes that are revealed.
        max_share: most.
        noise: half-width of uniform noise on the states that enter.
    """

    law_weight: float = 0.1
    temperature: float = 0.95
    min_share: float = 0.1
    max_share: float = 0.45
    noise: float = 0.1

    def __post_init__(self) -> None:
        """Refuses values outside their range, by name."""
        checks.number("law_weight", self.law_weight, "at least 0", lambda x: x >= 0)
        checks.number("temperature", self.temperature, "above 0", lambda x: x > 0)
        checks.number("min_share", self.min_share, "from 0 to 1", lambda x: 0 <= x <= 1)
        wanted = f"from min_share={self.min_share} to 1"
        checks.number("max_share", self.max_share, wanted, lambda x: self.min_share <= x <= 1)
        checks.number("noise", self.noise, "at least 0", lambda x: x >= 0)


def make(config: Config, models: Models) -> Objective:
    """The objective of a drafter on a frozen target."""
    assert models.heads is not None
    model, shape = models.target, models.heads.shape
    target, k = model.target, models.heads.shape.block
    own = falcon.bind(shape, model.config, model.kv_dtype)
    assert target.embed is not None
    embed = target.embed

    def init(key, weights, texts):
        del texts
        return Start(falcon.init(shape, model.config, key, weights.target))

    def loss(params, target_params, batch, key, moment):
        del moment
        frozen = jax.lax.stop_gradient(target_params)
        hidden = target.forward(frozen, batch.tokens, program(batch), None).hidden
        keys = jax.random.split(key, 4)
        phase = jax.random.randint(keys[0], (), 0, k)
        laid = blocks_of(batch, phase, k)
        weight = ahead(batch, k + 1)[1]
        states = aligned.shift(hidden, k)
        guess = _guesses(own, params, batch, laid)

        def embedded(offset):
            return embed(frozen, ahead(batch, offset)[0])

        def hits(guessed, wanted):
            found, best = (target.logits(frozen, x).argmax(-1) for x in (guessed, wanted))
            return found == best

        seen = aligned.disturbed(keys[1], hidden, config.noise)
        first = jax.lax.stop_gradient(guess(embedded(1), seen))
        right = losses.over_tokens(hits, first, states)
        share = (config.min_share, config.max_share)
        shown = glances(keys[2], weight, right, batch.positions, phase, block=k, share=share)
        second = guess(
            jnp.where(shown[..., None], embedded(k + 1), embedded(1)),
            jnp.where(shown[..., None], states, seen),
        )
        counted = weight * ~shown
        apart, found = aligned.compared(
            target, frozen, second, states, keys[3], temperature=config.temperature
        )
        law = 0.9 * found["soft"] + 0.1 * found["hard"]
        means = [losses.weighted_mean(x, counted) for x in (apart, law)]
        role = ((batch.positions + phase) % k)[..., None] == jnp.arange(k)
        rates = losses.per_head(
            jnp.broadcast_to(found["hit"][..., None], role.shape), counted[..., None] * role
        )
        metrics = {f"accuracy.{j}": rate for j, rate in enumerate(rates)}
        metrics |= {"states": means[0], "laws": means[1], "revealed": shown.sum().astype(float)}
        return means[0] + config.law_weight * means[1], metrics

    return Objective(init=init, loss=loss, export=heads_only)


def _guesses(own: falcon.Drafting, params, batch: Batch, laid: MaskProgram):
    """What the drafter makes of embeddings and states."""
    before = jnp.pad(batch.segments[:, :-1], ((0, 0), (1, 0)))

    def run(embedded, features):
        x = own.pairs.enter(params, embedded, features)
        x, _ = own.recur(params, x, own.memory(len(x)), fresh=batch.segments != before)
        return own.states(params, x, laid)

    return run


def blocks_of(batch: Batch, phase: Int[Array, ""], block: int) -> MaskProgram:
    """Rows see their own text up to the end of their block; the first block lacks `phase` rows."""
    # All positions of a text move alike, which rotations do not notice.
    return dataclasses.replace(
        program(batch), positions=batch.positions + phase, rule="block_causal", block=block
    )


def num_revealed(num_rows, num_right, share):
    """Rows that are revealed: a share of the mistakes."""
    return jnp.floor((num_rows - num_right) * share).astype(jnp.int32)


def glances(
    key: Array,
    weight: Float[Array, "B T"],
    right: Bool[Array, "B T"],
    positions: Int[Array, "B T"],
    phase: Int[Array, ""],
    *,
    block: int,
    share: tuple[float, float],
) -> Bool[Array, "B T"]:
    """Rows that are shown their answer: the first few of some blocks, never a whole block.

    Args:
        key: PRNG key.
        weight: 1 where the answer counts.
        right: where the first pass has it.
        positions: of the rows in their texts.
        phase: rows that the first block of a text lacks.
        block: k.
        share: least and most share of the mistakes.
    """
    if block == 1:
        return jnp.zeros(weight.shape, bool)

    def row(key, weight, right, positions):
        keys = jax.random.split(key, 3)
        role = (positions + phase) % block
        counts = weight > 0
        wanted = jax.random.uniform(keys[0], minval=share[0], maxval=share[1])
        num = num_revealed(counts.sum(), (counts & right).sum(), wanted)
        num = num if block == 2 else num // block
        score = jnp.where(
            counts & (role == 0), jax.random.uniform(keys[1], weight.shape, minval=0.1), 0.0
        )
        rank = jnp.argsort(jnp.argsort(-score))
        length = jax.random.randint(keys[2], weight.shape, 1, block)
        length = jnp.where((rank < num) & (score > 0), length, 0)
        start = jnp.arange(len(weight)) - role
        # The first block of a text may have begun before it.
        inside = (positions >= role) & (start >= 0)
        return inside & counts & (role < length[jnp.maximum(start, 0)])

    return jax.vmap(row)(jax.random.split(key, len(weight)), weight, right, positions)
