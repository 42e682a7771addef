"""Models without a network that know the exact law of every slot of a list task.

A list task's right answers are equally likely. Given the slots that are decided, the law of each
open slot follows by counting the answers that agree with them; what is written here is that count
in closed form. The loop takes an oracle as it takes any masked diffusion model, so what rules and
schedules cost can be measured apart from what a network has learned.

    lm = oracles.lists_model(6)
    jd.generate(lm, [problem.prompt], method="llada", steps=3, max_new_tokens=6)

Where the decided slots agree with no answer, the law keeps to what is left: unused items of a
`shuffle`, the old item of a `replace`.

Rows that see part of a text only have the law of that part.

Exactness: the marginals are exact; nothing is reused from step to step, so only reuse="none" runs.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from jaxdecode.api import LanguageModel
from jaxdecode.core import masks
from jaxdecode.core.masks import MaskProgram
from jaxdecode.core.protocols import Target, TargetOutput
from jaxdecode.errors import InputError
from jaxdecode.evals import lists, toys
from jaxdecode.models.config import Denoiser


@functools.lru_cache
def lists_model(size: int) -> LanguageModel:
    """The oracle of all list tasks with lists of `size` items; a problem names its task."""
    forward = functools.partial(_forward, functools.partial(list_laws, size), lists.MASK_TOKEN)
    built = toys.config(vocab_size=lists.VOCAB_SIZE, denoiser=Denoiser(mask_token=lists.MASK_TOKEN))
    return _bundle(f"lists of {size}", built, forward)


@functools.lru_cache
def table_model(law: tuple[tuple[float, ...], ...]) -> LanguageModel:
    """The oracle of a text of two tokens with this joint law, after a prompt of one token.

    Its mask token is the one after the law's.
    """
    table = np.asarray(law)
    size = len(table)
    forward = functools.partial(_forward, functools.partial(_table_laws, law), size)
    built = toys.config(vocab_size=size + 1, denoiser=Denoiser(mask_token=size))
    return _bundle("table", built, forward)


@functools.lru_cache
def insertions_model(law: tuple[float, ...], size: int) -> LanguageModel:
    """The oracle that inserts towards texts of `size` tokens, after a prompt of one token.

    What it scores is what a model learns from texts of which all but a random part is taken away:
    the chance that a token taken at random was `v`, after the j-th that is left.

    Args:
        law: probability of every text, the last token's index running fastest.
        size: tokens of a text.
    """
    num_tokens = round(len(law) ** (1 / size))
    forward = functools.partial(_insertions, law, size)
    denoiser = Denoiser(mask_token=num_tokens, inserts=True)
    return _bundle("insertions", toys.config(vocab_size=num_tokens + 1, denoiser=denoiser), forward)


@functools.lru_cache
def insertion_laws(law: tuple[float, ...], size: int) -> np.ndarray:
    """Chance of each place and token, given what is left of a text; by its number.

    The number of k tokens that are left is that of digits 1 + token, `size` of them, 0 where there
    is none. Places are the prompt and the tokens: `[numbers, size + 1, tokens + 1]`.
    """
    num_tokens = round(len(law) ** (1 / size))
    found = np.zeros(((num_tokens + 1) ** size, size + 1, num_tokens + 1))
    for text, chance in zip(np.ndindex(*(num_tokens,) * size), law, strict=True):
        for kept in np.ndindex(*(2,) * size):
            place, digits = 0, [0] * size
            taken = []
            for token, keep in zip(text, kept, strict=True):
                if keep:
                    digits[place] = token + 1
                    place += 1
                else:
                    taken.append((place, token))
            number = np.ravel_multi_index(digits, (num_tokens + 1,) * size)
            # Texts of equally many tokens left are equally often kept in each way.
            for where, token in taken:
                found[number, where, token] += chance
    return found


def _insertions(
    law: tuple[float, ...],
    size: int,
    params: Any,
    tokens: Int[Array, "B T"],
    program: MaskProgram,
    cached: Any,
    taps: tuple[str, ...] = (),
    acts: Any = None,
) -> TargetOutput:
    del params, acts, cached, taps
    scores = jnp.log(jnp.asarray(insertion_laws(law, size), jnp.float32))
    left = jnp.arange(size) < program.num_new[:, None] - 1
    digits = jnp.where(left, tokens[:, 1 : size + 1] + 1, 0)
    number = (digits * scores.shape[-1] ** jnp.arange(size - 1, -1, -1)).sum(-1)
    pad = ((0, 0), (0, tokens.shape[1] - size - 1), (0, 0))
    return TargetOutput(hidden=jnp.pad(scores[number], pad), rows=((), ()), taps={})


def _bundle(name: str, config: Any, forward: Any) -> LanguageModel:
    float32 = jnp.dtype(jnp.float32)
    return LanguageModel(
        name=name,
        config=config,
        params={"layers": ()},  # what tells the cache its form
        target=Target(forward=forward, logits=_logits),
        tokenizer=None,
        end_tokens=(),
        dtype=float32,
        kv_dtype=float32,
    )


def _logits(params: Any, hidden: Float[Array, "... V"]) -> Float[Array, "... V"]:
    del params
    return hidden


def _forward(
    laws: Any,
    mask_token: int,
    params: Any,
    tokens: Int[Array, "B T"],
    program: MaskProgram,
    cached: Any,
    taps: tuple[str, ...] = (),
    acts: Any = None,
) -> TargetOutput:
    """Scores in place of hidden states: they are what the head reads."""
    del params, acts
    if cached is not None or taps:
        raise InputError("an oracle has no keys, values or layers; use reuse='none'.")
    if program.rule == "tree":
        seen = jax.vmap(functools.partial(_as_told, laws, mask_token))(
            tokens, program.positions, masks.dense(program, num_slots=0, window=0)[1]
        )
    else:
        seen = jax.vmap(laws)(tokens)
    return TargetOutput(hidden=seen, rows=((), ()), taps={})


def _as_told(
    laws: Any,
    mask_token: int,
    tokens: Int[Array, "T"],
    slot: Int[Array, "T"],
    sees: Bool[Array, "T T"],
) -> Float[Array, "T V"]:
    """The law of each row's slot in the text that the row sees, undecided where it sees nothing."""

    def row(slot_of_row, sees):
        text = jnp.full(tokens.shape, mask_token, jnp.int32)
        known = jnp.where(sees, slot, tokens.shape[0])
        return laws(text.at[known].set(tokens, mode="drop"))[slot_of_row]

    return jax.vmap(row)(slot, sees)


def list_laws(size: int, row: Int[Array, "T"]) -> Float[Array, "T V"]:
    """Log-probabilities of every slot of a problem and its answer; zeros outside of the answer."""
    first = size + 3
    task, items, new = row[0] - lists.FIRST_TASK, row[1 : 1 + size], row[1 + size]
    answer = jax.lax.dynamic_slice_in_dim(row, first, size)
    open = answer == lists.MASK_TOKEN
    fixed = jnp.stack([items, items[::-1], jnp.sort(items)])
    known = jax.nn.one_hot(fixed[jnp.clip(task, 0, 2)], lists.VOCAB_SIZE)
    law = jnp.where(task < 3, known, 0.0)
    law = jnp.where(task == lists.TASKS.index("shuffle"), _unused(items, answer), law)
    law = jnp.where(task == lists.TASKS.index("replace"), _mixed(items, new, answer, open), law)
    return jnp.zeros((row.shape[0], lists.VOCAB_SIZE)).at[first : first + size].set(jnp.log(law))


def _unused(items: Int[Array, "n"], answer: Int[Array, "n"]) -> Float[Array, "1 V"]:
    """As likely each: the items that no slot has yet."""
    given = jnp.zeros(lists.VOCAB_SIZE).at[items].set(1.0)
    left = given.at[answer].set(0.0)
    left = jnp.where(left.sum() > 0, left, given)
    return (left / left.sum())[None]


def _mixed(
    items: Int[Array, "n"], new: Int[Array, ""], answer: Int[Array, "n"], open: Bool[Array, "n"]
) -> Float[Array, "n V"]:
    """The new item in one of the open slots, unless a decided one has it already."""
    chance = jnp.where((answer == new).any(), 0.0, 1 / jnp.maximum(open.sum(), 1))
    one_hot = functools.partial(jax.nn.one_hot, num_classes=lists.VOCAB_SIZE)
    return (1 - chance) * one_hot(items) + chance * one_hot(new)


def _table_laws(law: tuple[tuple[float, ...], ...], row: Int[Array, "T"]) -> Float[Array, "T V"]:
    joint = jnp.asarray(law)
    size = len(law)
    (a, b) = row[1], row[2]
    second = jnp.where(a == size, joint.sum(0), joint[jnp.minimum(a, size - 1)])
    first = jnp.where(b == size, joint.sum(1), joint[:, jnp.minimum(b, size - 1)])
    found = jnp.pad(jnp.stack([first / first.sum(), second / second.sum()]), ((0, 0), (0, 1)))
    return jnp.zeros((row.shape[0], size + 1)).at[1:3].set(jnp.log(found))
