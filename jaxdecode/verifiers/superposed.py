"""Superposed decoding: commits the token of the best hypothesis, one per step.

Exactness: L3. With one hypothesis and no n-grams it is greedy decoding.
Source: arXiv:2405.18400.
"""

import dataclasses

import jax
import jax.numpy as jnp

from jaxdecode.core.protocols import Models, Verifier
from jaxdecode.core.types import Verdict
from jaxdecode.errors import InputError
from jaxdecode.trees import superposition


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(superposition.Config):
    """The options of `trees.superposition`."""


def make(config: Config, models: Models) -> Verifier:
    """The verifier; it needs proposals of superposed hypotheses."""
    del models

    def verify(weights, request, canvas, proposal, output):
        del weights, canvas
        if proposal.superposed is None:
            raise InputError("verifier superposed needs drafter superposed; use sample_match.")
        extend = jax.vmap(lambda part, logits: superposition.extend(part, logits, request, config))
        token = extend(proposal.superposed, output.logits).committed
        logprob = jax.nn.log_softmax(output.logits[:, 0])
        return Verdict(
            tokens=token[:, None],
            logprob=jnp.take_along_axis(logprob, token[:, None], axis=1),
            path=jnp.zeros_like(token)[:, None],
            num_accepted=jnp.zeros_like(token),
        )

    return Verifier(verify=verify)
