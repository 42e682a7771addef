"""Dynamic early exit (DEL): each row chooses, step by step, which layers draft and how long.

Every verified position shows what each exit layer would have drafted there: its final norm and head
on the hidden state that the target's forward pass computed anyway. The decayed rate at which these
shadow tokens were the target's is the exit's match rate a, and a draft of d tokens by l of the L
layers is expected to give

    TPL(l, d) = (1 + a + ... + a^d) / (d l + L)    tokens per layer run;

the row takes the best (l, d), d = 0 included. The layers of the deepest exit that any row chose
run, and each row reads its own exit: what is proposed depends on the row alone.

Exactness: L0 under sample_match; drafts are drawn with the noise of their positions.
Cost: per draft token the deepest exit's layers and the head, and per step the head on every exit at
every accepted position; state two numbers per exit and row.
Source: arXiv:2504.05598; differs: a fixed set of exits instead of all layers, a decay of our own
choice, and no early end of a draft by confidence.
"""

import dataclasses
from itertools import pairwise

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxdecode import checks
from jaxdecode.core.protocols import Drafter, Models
from jaxdecode.core.types import pytree
from jaxdecode.errors import InputError
from jaxdecode.sampling import guess
from jaxdecode.trees import chain, unroll

# Before anything was seen an exit counts as one match in two.
_PRIOR = (1.0, 2.0)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """Options.

    Attributes:
        num_draft: most draft tokens per step.
        exits: numbers of layers that may draft, ascending; None takes 1/8 to 4/8 of the target's.
        decay: weight of the past in the match rates, per step.
    """

    num_draft: int = 6
    exits: tuple[int, ...] | None = None
    decay: float = 0.95

    def __post_init__(self) -> None:
        """Refuses values outside their range, by name."""
        checks.integer("num_draft", self.num_draft, low=1)
        checks.number("decay", self.decay, "a number in (0, 1]", lambda x: 0 < x <= 1)
        if self.exits is not None and not _ascending(self.exits):
            raise InputError(f"exits={self.exits!r} must be ascending layer counts, from 1 on.")


@pytree
class State:
    """Decayed counts of every exit.

    Attributes:
        matched: shadow tokens that were the target's.
        counted: shadow tokens compared.
    """

    matched: Float[Array, "B E"]
    counted: Float[Array, "B E"]


def make(config: Config, models: Models) -> Drafter:
    """The drafter."""
    target, num_layers = models.target.target, models.target.config.num_layers
    exits = config.exits or tuple(sorted({max(1, num_layers * n // 8) for n in range(1, 5)}))
    if exits[-1] > num_layers:
        raise InputError(f"exits={exits} go past the target's {num_layers} layers.")
    embed, layers, norm = unroll.parts(target)
    taps = tuple(f"layer.{last - 1}" for last in exits)

    def init(weights, request, canvas, view, memory):
        del weights, request, view, memory
        one = jnp.ones((canvas.length.shape[0], len(exits)), jnp.float32)
        return State(matched=one * _PRIOR[0], counted=one * _PRIOR[1])

    def propose(weights, state, request, canvas, view):
        params = weights.target
        rate = state.matched / state.counted
        pick = jax.vmap(lambda rate: choose(rate, exits, config.num_draft, num_layers))
        chosen, wanted = pick(rate)
        deepest = jnp.max(jnp.where(canvas.done | (wanted == 0), -1, chosen))

        def hidden_of(tokens):
            block = unroll.program(canvas, tokens.shape[1])
            x = read = embed(params, tokens)
            for n, (first, last) in enumerate(pairwise((0, *exits))):

                def run(x, first=first, last=last):
                    cached = (view[0][first:last], view[1][first:last])
                    return layers(params, x, block, cached, first, last)[0]

                x = jax.lax.cond(n <= deepest, run, lambda x: x, x)
                read = jnp.where((chosen == n)[:, None, None], x, read)
            return norm(params, read)

        proposal = unroll.propose(
            request,
            canvas,
            num_draft=config.num_draft,
            wanted=wanted,
            hidden_of=hidden_of,
            logits_of=lambda hidden: target.logits(params, hidden),
        )
        return proposal, state

    def update(weights, state, request, canvas, proposal, verdict, output):
        del proposal
        params, path = weights.target, verdict.path
        index = jnp.arange(path.shape[1], dtype=jnp.int32)
        states = jnp.stack([output.taps[name] for name in taps], axis=1)
        states = jnp.take_along_axis(states, path[:, None, :, None], axis=2)
        logits = target.logits(params, norm(params, states))
        # A row that ended early is off by some places; nobody reads its rates.
        position = (canvas.length - verdict.num_accepted)[:, None] + index
        # Mapped over exits and not flattened: they share the noise of a position.
        draw = jax.vmap(lambda logits: guess.tokens(request, logits, position), 1, 1)
        decided = index <= verdict.num_accepted[:, None]
        match = (draw(logits) == verdict.tokens[:, None]) & decided[:, None]
        return State(
            matched=config.decay * state.matched + match.sum(-1),
            counted=config.decay * state.counted + decided.sum(-1)[:, None],
        )

    return Drafter(
        init=init,
        propose=propose,
        update=update,
        taps=taps,
        widths=chain.widths(config.num_draft),
        max_depth=config.num_draft,
    )


def _ascending(exits: tuple[int, ...]) -> bool:
    whole = all(isinstance(last, int) for last in exits)
    return whole and bool(exits) and all(a < b for a, b in pairwise((0, *exits)))


def tokens_per_layer(
    rate: Float[Array, "E"], exits: tuple[int, ...], num_draft: int, num_layers: int
) -> Float[Array, "M E"]:
    """Expected tokens per layer run, for drafts of 0 to num_draft tokens by each exit."""
    length = jnp.arange(num_draft + 1)[:, None]
    layers_run = length * jnp.asarray(exits) + num_layers
    return jnp.cumsum(rate**length, axis=0) / layers_run


def choose(
    rate: Float[Array, "E"], exits: tuple[int, ...], num_draft: int, num_layers: int
) -> tuple[Int[Array, ""], Int[Array, ""]]:
    """The best exit, by index, and its draft length; ties go to the shorter draft."""
    gain = tokens_per_layer(rate, exits, num_draft, num_layers)
    best = jnp.argmax(gain).astype(jnp.int32)
    return best % len(exits), best // len(exits)
