"""Lexical units: pads behind the newest token say, in the same pass, how its unit goes on.

Some tokens follow others almost surely: the rest of a word, of a phrase, of a line of code. A
target that was trained for it guesses them at pads that stand behind what it reads. The longest
run of guesses that are all likely enough is sent, and pads follow the last of them. As pads never
enter the cache, every token's keys and values come from the pass in which it stands there itself.

Exactness: that of the verifier. `lexical` takes the guesses unseen, as the paper does (L3); with
`verify` they are drafts like others.
Cost: k rows more per pass, and one for each token sent.
Source: arXiv:2405.15208, whose abstract is all that is known here: pads, the rule of confidence
and the layout are our reading of it. The pad is an ordinary token of the vocabulary.
"""

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxdecode import checks
from jaxdecode.core.protocols import Drafter, Models
from jaxdecode.errors import InputError
from jaxdecode.trees import chain, probes, static
from jaxdecode.trees.probes import Guesses, Layout


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """Options.

    Attributes:
        num_draft: k, pads of a pass, and most tokens that are sent.
        min_prob: probability that a guess must have under its pad; above 1 nothing is ever sent.
        pad_token: the token that the target was trained to take for a pad.
    """

    num_draft: int = 4
    min_prob: float = 0.9
    pad_token: int = 0

    def __post_init__(self) -> None:
        """Refuses values outside their range, by name."""
        checks.integer("num_draft", self.num_draft, low=1, high=64)
        checks.number("min_prob", self.min_prob, "at least 0", lambda x: x >= 0)
        checks.integer("pad_token", self.pad_token, low=0)


def make(config: Config, models: Models) -> Drafter:
    """The drafter."""
    k = config.num_draft
    check_pad(config.pad_token, models.target.config.vocab_size)
    # State n: n guesses are sent, and the pads hang below the last of them.
    table = probes.tables([Layout(static.chain(n).paths, (0,) * n + (k,)) for n in range(k + 1)])

    def propose(weights, state, request, canvas, view):
        del weights, request, view
        made = probes.propose(table, state.known, chain.pending(canvas), state.ids)
        assert made.probe is not None
        tokens = jnp.where(made.probe, config.pad_token, made.tokens)
        return dataclasses.replace(made, tokens=tokens), state

    def update(weights, state, request, canvas, proposal, verdict, output):
        del weights, request, canvas, proposal
        nodes, there = probes.below(table, state.known, verdict)
        ids, known = sure(probes.at(output.logits, nodes), config.min_prob)
        return Guesses(ids=ids[..., None], known=jnp.where(there > 0, known, 0))

    return Drafter(
        init=probes.start(table, 1),
        propose=propose,
        update=update,
        widths=(table.widths[0], table.widths[-1]),
        max_depth=k,
    )


def sure(
    logits: Float[Array, "B k V"], min_prob: float
) -> tuple[Int[Array, "B k"], Int[Array, "B"]]:
    """The likeliest token of each place, and how many from the first on are likely enough."""
    most = jnp.exp(logits.max(-1) - jax.nn.logsumexp(logits, axis=-1))
    likely = jnp.cumprod(most >= min_prob, axis=-1)
    return logits.argmax(-1).astype(jnp.int32), likely.sum(-1, dtype=jnp.int32)


def check_pad(pad_token: int, vocab_size: int) -> None:
    """Refuses a pad that is no token."""
    if pad_token >= vocab_size:
        raise InputError(
            f"pad_token={pad_token} is no token of the target, which has {vocab_size}; take one "
            "below that, the one it was trained with."
        )
