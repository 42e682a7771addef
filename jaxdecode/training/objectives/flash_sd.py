"""The next k states from one row, by their distance and by the laws read from them; frozen target.

Loss: means over the k states of the smooth L1 distance, and 0.1 times the distance of the target's
head's laws (arXiv:2505.12728). An image's rows stand mixed in front of its text, as in decoding; of
the texts packed in one row, only the first that has an image keeps it.
"""

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from jaxdecode import checks
from jaxdecode.core import masks
from jaxdecode.core.masks import MaskProgram
from jaxdecode.core.protocols import Models
from jaxdecode.core.types import pytree
from jaxdecode.heads import flash_sd
from jaxdecode.training import features as aligned
from jaxdecode.training import losses
from jaxdecode.training.objective import Batch, Objective, Start, ahead, heads_only, program


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """Settings.

    Attributes:
        law_weight: weight of the laws' distance.
        noise: half-width of uniform noise on the states that enter.
    """

    law_weight: float = 0.1
    noise: float = 0.1

    def __post_init__(self) -> None:
        """Refuses values outside their range, by name."""
        checks.number("law_weight", self.law_weight, "at least 0", lambda x: x >= 0)
        checks.number("noise", self.noise, "at least 0", lambda x: x >= 0)


def make(config: Config, models: Models) -> Objective:
    """The objective of a drafter on a frozen target."""
    assert models.heads is not None
    model, shape = models.target, models.heads.shape
    target, k = model.target, shape.block
    own = flash_sd.bind(shape, model.config, model.kv_dtype)
    assert target.embed is not None
    embed = target.embed

    def init(key, weights, texts):
        del texts
        return Start(flash_sd.init(shape, model.config, key, weights.target))

    def rows_of(params, batch, entered, hidden, following):
        """Rows of the drafter, who sees whom, and which tokens are text."""
        x = own.pairs.enter(params, following, hidden)
        if shape.image_token is None:
            return x, program(batch), jnp.ones(batch.tokens.shape, bool)
        laid = lay(batch, shape.image_token, shape.num_queries)
        pool = flash_sd.no_image(len(x), shape.num_queries, x.shape[-1])
        mixed = pool.add(params["queries"], entered, hidden, laid.image).read()
        image = own.pairs.enter(params, *(part.astype(x.dtype) for part in mixed))
        return jnp.concatenate([image, x], axis=1), laid.program, laid.text

    def loss(params, target_params, batch, key, moment):
        del moment
        frozen = jax.lax.stop_gradient(target_params)
        keys = jax.random.split(key)
        entered = embed(frozen, batch.tokens)
        hidden = target.forward(frozen, entered, program(batch), None).hidden
        seen = aligned.disturbed(keys[0], hidden, config.noise)
        following = embed(frozen, ahead(batch, 1)[0])
        x, laid, text = rows_of(params, batch, entered, seen, following)
        said = own.states(params, x, laid)[:, -batch.tokens.shape[1] :]
        wanted, weight = wanted_of(batch, hidden, k)
        weight = weight * text[..., None]

        def joined(rows):
            return rows.reshape(len(rows), -1, rows.shape[-1])

        apart, found = aligned.compared(target, frozen, joined(said), joined(wanted), keys[1])
        apart, soft, hit = (
            part.reshape(weight.shape) for part in (apart, found["soft"], found["hit"])
        )
        means = [losses.weighted_mean(part, weight) for part in (apart, soft)]
        rates = losses.per_head(hit, weight)
        metrics = {f"accuracy.{j}": rate for j, rate in enumerate(rates)}
        metrics |= {"states": means[0], "laws": means[1]}
        return means[0] + config.law_weight * means[1], metrics

    return Objective(init=init, loss=loss, export=heads_only)


def wanted_of(
    batch: Batch, hidden: Float[Array, "B T D"], block: int
) -> tuple[Float[Array, "B T k D"], Float[Array, "B T k"]]:
    """The states that each row should say, and the weights of the tokens read from them."""
    states = jnp.stack([aligned.shift(hidden, j + 1) for j in range(block)], axis=2)
    weight = jnp.stack([ahead(batch, j + 2)[1] for j in range(block)], axis=2)
    return states, weight


@pytree
class Laid:
    """Texts behind the rows of an image.

    Attributes:
        program: who sees whom, of the mixed rows and the tokens.
        image: tokens that are mixed.
        text: tokens that are rows of their own.
    """

    program: MaskProgram
    image: Bool[Array, "B T"]
    text: Bool[Array, "B T"]


def lay(batch: Batch, image_token: int, num_queries: int) -> Laid:
    """The layout of texts some of whose tokens stand for rows of an image."""
    slot = jnp.arange(batch.tokens.shape[1])

    def row(tokens, segments):
        is_image = (tokens == image_token) & (segments > 0)
        owner = jnp.where(is_image.any(), segments[jnp.argmax(is_image)], -1)
        mixed = is_image & (segments == owner)
        text = ~is_image
        # What stands before the end of an image must not know it.
        knows = (segments == owner) & (slot > jnp.max(jnp.where(mixed, slot, -1)))
        own = (segments[:, None] == segments) & (slot <= slot[:, None]) & text
        below = jnp.concatenate(
            [jnp.broadcast_to(knows[:, None], (len(slot), num_queries)), own], 1
        )
        above = jnp.eye(num_queries, num_queries + len(slot), dtype=bool)
        first = jnp.where(segments == owner, num_queries, 0)
        place = first + (own & (slot < slot[:, None])).sum(1)
        return jnp.concatenate([above, below]), place, mixed, text

    sees, place, mixed, text = jax.vmap(row)(batch.tokens, batch.segments)
    num_rows = len(place)
    front = jnp.broadcast_to(jnp.arange(num_queries), (num_rows, num_queries))
    positions = jnp.concatenate([front, place], axis=1).astype(jnp.int32)
    return Laid(
        program=MaskProgram(
            cached=jnp.zeros(num_rows, jnp.int32),
            positions=positions,
            num_new=jnp.full(num_rows, positions.shape[1], jnp.int32),
            ancestors=masks.pack_ancestors(sees),
            rule="tree",
        ),
        image=mixed,
        text=text,
    )
