"""EAGLE-3: the drafter is trained on what it will read: its own outputs, several tokens deep.

Pass 0 reads the target's states; pass j reads the outputs of pass j - 1, with the tokens j places
further. A row of pass j sees the rows of pass 0 up to its place, and at its place those of passes
1 to j: what a node j levels deep sees in decoding.

Loss: sum over passes j of decay^j CE(target's law j + 2 tokens on, over the draft vocabulary, the
drafter's); places where the target's first choice cannot be drafted add 0 and count in the mean.
The target is frozen (arXiv:2503.01840 section 3.2, training-time test). The draft vocabulary
is that of the tokens that are learned most often, as the authors count them in their data.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jaxdecode import checks
from jaxdecode.core.protocols import Models
from jaxdecode.drafters import vocabtrim
from jaxdecode.heads import eagle3
from jaxdecode.models import extra
from jaxdecode.training import classes, features, losses, probed
from jaxdecode.training.objective import Batch, Objective, Start, ahead, heads_only, program


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """Settings.

    Attributes:
        num_passes: passes, so tokens that are guessed ahead in training.
        decay: weight of each pass relative to the one before.
        num_places: places of a text whose guesses are compared in one step; None compares all.
    """

    num_passes: int = 7
    decay: float = 0.8
    num_places: int | None = None

    def __post_init__(self) -> None:
        """Refuses values outside their range, by name."""
        checks.integer("num_passes", self.num_passes, low=1, high=64)
        checks.number("decay", self.decay, "a number in (0, 1]", lambda x: 0 < x <= 1)
        if self.num_places is not None:
            checks.integer("num_places", self.num_places, low=1)


def make(config: Config, models: Models) -> Objective:
    """The objective of heads on a frozen target."""
    assert models.heads is not None
    shape, model = models.heads.shape, models.target
    target = model.target
    parts = eagle3.bind(shape, model.config, model.kv_dtype, target)

    def init(key, weights, texts):
        params = eagle3.init(shape, model.config, key, weights.target)
        if texts is not None and shape.draft_vocab is not None:
            tokens = jnp.asarray(vocabtrim.most_frequent(texts.counts, shape.draft_vocab))
            params |= eagle3.columns(model.config, weights.target, tokens)
        return Start(params)

    @jax.named_scope("target")
    def said(target_params, batch):
        frozen = jax.lax.stop_gradient(target_params)
        output = target.forward(frozen, batch.tokens, program(batch), None, parts.taps)
        found = {"hidden": output.hidden, "taps": {name: output.taps[name] for name in parts.taps}}
        if shape.draft_vocab is None:
            return found
        return found | {"best": _first_choices(target, frozen, output.hidden)}

    def loss(params, target_params, batch, key, moment):
        del moment
        frozen = jax.lax.stop_gradient(target_params)
        known = features.known(batch, said, frozen)
        hidden = known["hidden"]
        with jax.named_scope("heads"):
            start = parts.fused(params, known["taps"])
        places = probed.choose(ahead(batch, 2)[1], key, config.num_places)
        tokens = params.get("tokens")
        trimmed = frozen if tokens is None else classes.with_rows(model.config, frozen, tokens)
        can = jnp.ones(hidden.shape[:2])
        if tokens is not None:
            drafted = jnp.zeros(model.config.vocab_size).at[tokens].set(1.0)
            can = drafted[known["best"]]
        total, metrics = jnp.float32(0), {}
        for j, out in enumerate(unrolled(parts, params, frozen, batch, start, config.num_passes)):
            weight = probed.taken(ahead(batch, j + 2)[1], places)
            # Past the end nothing has weight.
            later = jnp.minimum(places + j + 1, hidden.shape[1] - 1)
            sure, taught = probed.taken(can, later), probed.taken(hidden, later)

            def per_token(out, taught):
                ours = parts.scores(params, frozen, out)
                theirs = target.logits(trimmed, taught)
                hit = ours.argmax(-1) == theirs.argmax(-1)
                return losses.soft_cross_entropy(ours, jax.nn.softmax(theirs)), hit

            with jax.named_scope("losses"):
                errors, hits = losses.over_tokens(per_token, probed.taken(out, places), taught)
            total += config.decay**j * losses.weighted_mean(errors * sure, weight)
            metrics[f"accuracy.{j}"] = losses.weighted_mean(hits * sure, weight)
        return total, metrics

    return Objective(init=init, loss=loss, export=heads_only, features=said)


@jax.named_scope("heads")
def unrolled(
    parts: eagle3.Parts,
    params: Any,
    frozen: Any,
    batch: Batch,
    start: Float[Array, "B T D"],
    num_passes: int,
) -> list[Float[Array, "B T D"]]:
    """Outputs of every pass; `start` is what the first one reads."""
    layer, sees, embed = parts.layer, sees_of(batch.segments), parts.target.embed
    assert embed is not None
    embedded = jax.lax.stop_gradient(embed(frozen, batch.tokens))

    def attend(read, positions, above):
        return extra.attend_down(
            layer.config, layer.kv_dtype, params["attn"], read, positions, sees, above
        )

    read, above, made = start, [], []
    for j in range(num_passes):
        joined, x = parts.join(params, features.shift(embedded, j + 1), read)
        mixed, own = attend(joined, batch.positions + j, above)
        read = layer.after(params, x + mixed)
        above.append(own)
        made.append(read)
    return made


def sees_of(segments: Int[Array, "B T"]) -> Bool[Array, "B T T"]:
    """Which rows of pass 0 each row sees: those of its text up to its place."""
    place = jnp.arange(segments.shape[1])
    return (segments[:, :, None] == segments[:, None, :]) & (place[:, None] >= place)


def _first_choices(target: Any, frozen: Any, hidden: Float[Array, "B T D"]) -> Int[Array, "B T"]:
    """The target's likeliest tokens."""
    best = losses.over_tokens(lambda x: target.logits(frozen, x).argmax(-1), hidden)
    return best.astype(jnp.int32)
