"""Results for any number of prompts, as they come: what data sets are decoded with."""

import dataclasses
import functools
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jaxdecode import api, checks, refill, resolve
from jaxdecode.convert.heads import Heads
from jaxdecode.core.entry import CONSTRAINTS
from jaxdecode.core.types import Request
from jaxdecode.engine import Engine
from jaxdecode.errors import InputError, JaxdecodeError, UnsupportedError
from jaxdecode.language_model import LanguageModel
from jaxdecode.options import Options, Prompt, make_request, tokenize
from jaxdecode.results import Generation, collect, row_result
from jaxdecode.sampling import noise

# Rows that are read ahead: enough that many of them are of like length.
LOOK_AHEAD = 1024


class Asked(NamedTuple):
    """One prompt.

    Attributes:
        index: its number; results come with it.
        tokens: its token ids.
        seed: of its noise.
    """

    index: int
    tokens: np.ndarray
    seed: int


def generate_many(
    lm: LanguageModel,
    prompts: Iterable[Prompt],
    *,
    method: str = "ar",
    draft: LanguageModel | None = None,
    heads: Heads | str | Path | None = None,
    n: int = 1,
    batch_size: int = api.DEFAULT_BATCH_SIZE,
    look_ahead: int = LOOK_AHEAD,
    refilled: bool = True,
    on_error: Callable[[int, JaxdecodeError], None] | None = None,
    **options: Any,
) -> Iterator[tuple[int, Generation]]:
    """Yields (index, n continuations) of every prompt as it is done, in any order.

    Places of finished rows in the running batch go to rows that wait. The prompts are read as
    they are needed, so there may be any number of them. A row's tokens are those of `generate`;
    its seconds count from when it came into the batch.

    Args:
        lm: the model.
        prompts: as `generate` takes, or mappings like them with a "seed" of their own besides.
        method: name from `methods()`.
        draft: the draft model of methods that need one.
        heads: the trained heads of methods that need some.
        n: samples per prompt.
        batch_size: rows decoded at once.
        look_ahead: rows that are read ahead, so that those of like length run together.
        refilled: False for fixed batches, whose results come when their last row is done. It is
            the only way for methods that cannot let rows in, and on several devices.
        on_error: called with the index of a prompt that cannot be used, and why; it then has no
            result. None: the error is raised.
        **options: as for `generate`; `seed` is that of every prompt that brings none.

    Raises:
        InputError: a prompt or an option is unusable; the message names it.
        UnsupportedError: rows cannot come into a running batch here; the message says why.
    """
    seed = options.pop("seed", 0)
    checks.integer("seed", seed, low=-(2**63), high=2**63 - 1)
    asked = _asked(lm, prompts, seed, on_error)
    parts: dict[str, Any] = {"method": method, "draft": draft, "heads": heads}
    sizes: dict[str, Any] = {"n": n, "batch_size": batch_size, "look_ahead": look_ahead}
    return decode(lm, asked, refilled=refilled, **parts, **sizes, **options)


def _asked(
    lm: LanguageModel,
    prompts: Iterable[Prompt],
    seed: int,
    on_error: Callable[[int, JaxdecodeError], None] | None,
) -> Iterator[Asked]:
    for index, prompt in enumerate(prompts):
        try:
            own = seed
            if isinstance(prompt, Mapping) and "seed" in prompt:
                own = prompt["seed"]
                checks.integer("seed", own, low=-(2**63), high=2**63 - 1)
                prompt = {key: prompt[key] for key in prompt if key != "seed"}
            tokens = tokenize(prompt, lm.tokenizer, lm.config)
        except JaxdecodeError as error:
            if on_error is None:
                raise
            on_error(index, error)
        else:
            yield Asked(index, np.asarray(tokens, np.int32), own)


def decode(
    lm: LanguageModel,
    asked: Iterator[Asked],
    *,
    method: str,
    draft: LanguageModel | None,
    heads: Heads | str | Path | None,
    n: int,
    batch_size: int,
    look_ahead: int,
    refilled: bool,
    on_fixed: Callable[[str], None] | None = None,
    **options: Any,
) -> Iterator[tuple[int, Generation]]:
    """As `generate_many`, for prompts that are token ids already.

    With `on_fixed`, it is told why there must be fixed batches, and there are; that is no error.
    """
    chosen, choice = resolve.split(method, options)
    for name, value in (("n", n), ("batch_size", batch_size), ("look_ahead", look_ahead)):
        checks.integer(name, value, low=1)
    for kind in CONSTRAINTS:
        if isinstance(getattr(chosen, kind), list | tuple):
            raise InputError(
                f"{kind} must be one for all prompts here: how many come is not known."
            )
    engine = None
    if lets_in(refilled, batch_size):
        engine = engine_of(lm, choice, draft, heads, chosen, on_fixed)
    if engine is None:
        given: dict[str, Any] = {"method": method, "draft": draft, "heads": heads, **options}
        return _in_batches(lm, asked, n, batch_size, look_ahead, given)
    rows = refill.run(
        engine,
        _rows(asked, n),
        request_of=functools.partial(request_of, lm, chosen),
        max_new_tokens=chosen.max_new_tokens,
        batch_size=batch_size,
        look_ahead=look_ahead,
    )
    return _joined(lm, rows, chosen, n)


def lets_in(refilled: bool, batch_size: int) -> bool:
    """Whether rows come into a running batch; the only row of one has nobody to wait for."""
    return refilled and batch_size > 1


def engine_of(
    lm: LanguageModel,
    choice: resolve.Choice,
    draft: LanguageModel | None,
    heads: Heads | str | Path | None,
    chosen: Options,
    on_fixed: Callable[[str], None] | None = None,
) -> Engine | None:
    """What lets rows in; None for fixed batches, if somebody wants to hear why.

    Raises:
        UnsupportedError: rows cannot be let in, and nobody wants to.
    """
    engine, why = _open_engine(lm, choice, draft, heads, chosen)
    if why is not None:
        if on_fixed is None:
            raise UnsupportedError(f"{why}; ask for fixed batches: refilled=False.")
        on_fixed(why)
    return engine


def _open_engine(
    lm: LanguageModel,
    choice: resolve.Choice,
    draft: LanguageModel | None,
    heads: Heads | str | Path | None,
    chosen: Options,
) -> tuple[Engine | None, str | None]:
    """What runs, or why rows cannot come into a running batch."""
    if choice.entry.policy is not None:
        return None, f"method {choice.name!r} runs two models by turns, each in batches of its own"
    if choice.continuous is not None:
        return None, f"method {choice.name!r} writes the texts of a batch as a whole"
    if chosen.constrained:
        return None, "texts of a given form are followed on the host, batch by batch"
    if lm.mesh is not None:
        return None, "the model lies on several devices, where rows cannot come into a batch"
    engine = api._engine(lm, choice, draft, heads)
    if refill.shared_state(engine, functools.partial(request_of, lm, chosen)):
        return None, f"under method {choice.name!r} the rows of a batch share what it learns"
    return engine, None


def request_of(lm: LanguageModel, chosen: Options, batch: int) -> Request:
    """Arrays of the options for a batch of so many rows, without their noise."""
    keys = [np.zeros(2, np.uint32)] * batch
    own: dict[str, Any] = {"tokenizer": lm.tokenizer, "config": lm.config}
    return make_request(chosen, keys, batch=batch, end_tokens=lm.end_tokens, **own)


def _rows(asked: Iterator[Asked], n: int) -> Iterator[refill.Row]:
    for index, tokens, seed in asked:
        for sample in range(n):
            key = noise.row_key(seed, tokens.tolist(), sample=sample)
            yield refill.Row((index, sample), tokens, key)


def _joined(
    lm: LanguageModel, rows: Iterator[tuple[refill.Row, Any]], chosen: Options, n: int
) -> Iterator[tuple[int, Generation]]:
    """Results by prompt, once all samples of it are there."""
    held: dict[int, dict[int, tuple]] = {}
    for row, snapshot in rows:
        index, sample = row.name
        own = held.setdefault(index, {})
        own[sample] = row_result(lm.tokenizer, snapshot, 0, len(row.tokens), chosen)
        if len(own) == n:
            yield index, collect([own[i] for i in range(n)])
            del held[index]


def _in_batches(
    lm: LanguageModel,
    asked: Iterator[Asked],
    n: int,
    batch_size: int,
    look_ahead: int,
    given: dict[str, Any],
) -> Iterator[tuple[int, Generation]]:
    """Fixed batches of neighbours in length."""
    memory: dict = {}
    # A trace is of a whole call, and none was asked for.
    names = [field.name for field in dataclasses.fields(Generation) if field.name != "trace"]
    while waiting := list(itertools.islice(asked, max(look_ahead // n, 1))):
        waiting.sort(key=lambda one: len(one.tokens))
        for first in range(0, len(waiting), max(batch_size // n, 1)):
            batch = waiting[first : first + max(batch_size // n, 1)]
            prompts, seeds = [one.tokens for one in batch], [one.seed for one in batch]
            sizes: dict[str, Any] = {"n": n, "batch_size": batch_size, "memory": memory}
            out = api.generate(lm, prompts, seed=seeds, **sizes, **given)
            for i, one in enumerate(batch):
                own = slice(i * n, (i + 1) * n)
                yield one.index, Generation(**{name: getattr(out, name)[own] for name in names})
