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
from jaxdecode.core import ops
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
        can, width = jnp.ones(hidden.shape[:2]), hidden.shape[1]
        if tokens is not None:
            drafted = jnp.zeros(model.config.vocab_size).at[tokens].set(1.0)
            can = drafted[known["best"]]
        outs = unrolled(parts, params, frozen, batch, start, places, config.num_passes)
        passes = range(config.num_passes)
        weight = jnp.stack([ops.taken(ahead(batch, j + 2)[1], places) for j in passes], 2)
        # Past the end nothing has weight.
        later = jnp.minimum(places[..., None] + jnp.arange(1, len(passes) + 1), width - 1)
        taught, sure = (ops.taken(x, later) for x in (hidden, can))

        def per_token(learned, out, taught):
            ours = parts.scores(learned, frozen, out)
            theirs = target.logits(trimmed, taught)
            hit = ours.argmax(-1) == theirs.argmax(-1)
            return losses.soft_cross_entropy(ours, jax.nn.softmax(theirs)), hit

        share = losses.shares(weight) * sure
        decays = config.decay ** jnp.arange(len(passes))
        learned = {name: params[name] for name in ("norm", "head")}
        with jax.named_scope("losses"):
            value, hits = losses.summed(
                per_token, learned, jnp.stack(outs, 2), taught, share * decays
            )
        rates = (hits * share).sum((0, 1))
        return value, {f"accuracy.{j}": rate for j, rate in enumerate(rates)}

    return Objective(init=init, loss=loss, export=heads_only, features=said)


@jax.named_scope("heads")
def unrolled(
    parts: eagle3.Parts,
    params: Any,
    frozen: Any,
    batch: Batch,
    start: Float[Array, "B T D"],
    places: Int[Array, "B P"],
    num_passes: int,
) -> list[Float[Array, "B P D"]]:
    """Outputs of every pass at these places; `start` is what the first one reads.

    Of all other places only keys and values of pass 0 are seen, so nothing else is computed.
    """
    layer, embed = parts.layer, parts.target.embed
    assert embed is not None
    embedded = jax.lax.stop_gradient(embed(frozen, batch.tokens))
    # What tokens add to queries, keys and values is the same in all passes, some places further.
    attn, width = params["attn"], embedded.shape[-1]
    of_tokens, of_states = jnp.split(attn["qkv"]["kernel"], [width])
    spoken = ops.linear(layer.norm(params["token_norm"], embedded), of_tokens, layer.kv_dtype)
    attn = attn | {"qkv": attn["qkv"] | {"kernel": of_states}}
    sees, where = (ops.taken(x, places) for x in (sees_of(batch.segments), batch.positions))

    def attend(x, positions, beside, above, places=None):
        read = layer.norm(params["feature_norm"], x)
        form = layer.config, layer.kv_dtype, attn
        given = {"beside": beside, "places": places}
        return extra.attend_down(*form, read, positions, sees, above, **given)

    start = start.astype(embedded.dtype)
    mixed, own = attend(start, batch.positions, features.shift(spoken, 1), (), places)
    above, made = [own], [layer.after(params, ops.taken(start, places) + mixed)]
    for j in range(1, num_passes):
        beside = features.ahead_of(spoken, places, j + 1)
        mixed, own = attend(made[-1], where + j, beside, above)
        above.append(own)
        made.append(layer.after(params, made[-1] + mixed))
    return made


def sees_of(segments: Int[Array, "B T"]) -> Bool[Array, "B T T"]:
    """Which rows of pass 0 each row sees: those of its text up to its place."""
    place = jnp.arange(segments.shape[1])
    return (segments[:, :, None] == segments[:, None, :]) & (place[:, None] >= place)


def _first_choices(target: Any, frozen: Any, hidden: Float[Array, "B T D"]) -> Int[Array, "B T"]:
    """The target's likeliest tokens."""
    best = losses.over_tokens(lambda x: target.logits(frozen, x).argmax(-1), hidden)
    return best.astype(jnp.int32)
