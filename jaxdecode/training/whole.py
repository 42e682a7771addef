"""Language models that are trained whole: the target itself, or a draft model."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxdecode.core.protocols import Model, Models, Weights
from jaxdecode.errors import InputError
from jaxdecode.models import decoder, layout
from jaxdecode.training import losses
from jaxdecode.training.objective import Batch, Export, Start, Texts, ahead, program


def start(params: Mapping[str, Any]) -> Start:
    """All parameters of a model, its layers stacked: nested dicts whatever form they had."""
    plain = layout.without_copies(params)
    layers = plain["layers"]
    return Start(plain | {"layers": decoder.stack(layers) if _listed(layers) else layers})


def of_target(key: Array, weights: Weights, texts: Texts | None) -> Start:
    """The `init` of objectives whose parameters are the target's."""
    del key, texts
    return start(weights.target)


def of_draft(key: Array, weights: Weights, texts: Texts | None) -> Start:
    """The `init` of objectives whose parameters are a draft model's."""
    del key, texts
    return start(weights.drafter)


def apart(params: Mapping[str, Any]) -> dict[str, Any]:
    """The parameters with a tree per layer, the form that decoding reads everywhere."""
    layers = params["layers"]
    return dict(params) | {"layers": layers if _listed(layers) else decoder.unstack(layers)}


def as_target(params: Any, target: Any) -> Export:
    """The `export` of objectives whose parameters are the target's."""
    del target
    return Export(target=apart(params))


def as_draft(params: Any, target: Any) -> Export:
    """The `export` of objectives whose parameters are a draft model's."""
    del target
    return Export(draft=apart(params))


def read(
    model: Model, params: Any, states: Float[Array, "B T E D"], batch: Batch
) -> tuple[Float[Array, "E"], Float[Array, "E"]]:
    """Cross-entropy on the next token of what each of E layers left, and how often it was right.

    Args:
        model: its functions.
        params: its parameters; the layers share final norm and head.
        states: what the layers left.
        batch: texts.
    """
    norm = model.target.norm
    assert norm is not None
    wanted, weight = ahead(batch, 1)

    def per_token(states, wanted):
        scores = model.target.logits(params, norm(params, states))
        every = jnp.broadcast_to(wanted[:, None], scores.shape[:2])
        return losses.cross_entropy(scores, every), scores.argmax(-1) == every

    num_exits = states.shape[2]
    chunk = max(1, losses.CHUNK // num_exits)
    errors, hits = losses.over_tokens(per_token, states, wanted, chunk=chunk)
    weight = jnp.broadcast_to(weight[..., None], errors.shape)
    return losses.per_head(errors, weight), losses.per_head(hits, weight)


def states_of(model: Model, params: Any, batch: Batch) -> Float[Array, "B T D"]:
    """Final hidden states of texts."""
    return model.target.forward(params, batch.tokens, program(batch), None).hidden


def both_scores(
    models: Models, params: Any, target_params: Any
) -> Callable[[Array, Array], tuple[Array, Array]]:
    """What gives the scores of draft model and target from their hidden states.

    Both over the tokens that both have: the rest of the larger vocabulary is padding.
    """
    assert models.draft is not None
    draft, target = models.draft, models.target
    size = min(draft.config.vocab_size, target.config.vocab_size)

    def scores(own, taught):
        return (
            draft.target.logits(params, own)[..., :size],
            jax.lax.stop_gradient(target.target.logits(target_params, taught))[..., :size],
        )

    return scores


def first_layers(model: Model, params: Mapping[str, Any], count: int) -> dict[str, Any]:
    """The parameters of a model with only its first layers.

    Args:
        model: the model.
        params: its parameters.
        count: layers that stay.

    Raises:
        InputError: it has fewer.
    """
    num_layers = model.config.num_layers
    if count > num_layers:
        raise InputError(f"the first {count} layers were asked for, but there are {num_layers}.")
    plain = apart(layout.without_copies(params))
    return plain | {"layers": plain["layers"][:count]}


def _listed(layers: Any) -> bool:
    return isinstance(layers, Sequence)
