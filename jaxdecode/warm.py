"""Everything compiled before the first request: for `generate` and `stream`, and for data sets."""

import dataclasses
import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jaxdecode import api, checks, many, refill, resolve
from jaxdecode import engine as engines
from jaxdecode.constraints.rules import ANYTHING
from jaxdecode.convert.heads import Heads
from jaxdecode.core.entry import CONSTRAINTS
from jaxdecode.errors import InputError
from jaxdecode.language_model import LanguageModel
from jaxdecode.sampling import noise


def warmup(
    lm: LanguageModel,
    *,
    method: str = "ar",
    draft: LanguageModel | None = None,
    heads: Heads | str | Path | None = None,
    batch_sizes: Sequence[int] = (1,),
    max_length: int = 1024,
    requests: Sequence[tuple[int, int]] | None = None,
    **options: Any,
) -> None:
    """Compiles every program that requests of these sizes can need, so that none compiles later.

    That is for `generate` and `stream`; `trace=True` has programs of its own.

    Args:
        lm: the model.
        method: name from `methods()`.
        draft: the draft model of methods that need one.
        heads: the trained heads of methods that need some.
        batch_sizes: batch sizes that will be used.
        max_length: longest prompt plus new tokens that will be used.
        requests: in place of everything up to max_length, the pairs (tokens of the longest prompt
            of a batch, max_new_tokens) that will be used.
        **options: options that will be switched on (top_p, stop, ...): each set of features is a
            program of its own; values do not matter.
    """
    # A constrained text has to end where its constraint says.
    if all(options.get(name) is None for name in CONSTRAINTS):
        options["ignore_eos"] = True
    chosen, choice = resolve.split(method, options)
    if choice.entry.policy is not None:
        raise InputError(
            f"method {method!r} runs two models by turns; warm up each of them with method='ar'."
        )
    engine = api._engine(lm, choice, draft, heads)
    if requests is None:
        sizes = engines.shapes(min(max_length, lm.config.max_length), engine.slack)
    else:
        sizes = engines.distinct(requests, lm.config.max_length, engine.slack)
    # A token is enough: what a row may need besides is slots.
    asked = dataclasses.replace(chosen, max_new_tokens=1)
    forms = [rule and ANYTHING for rule in asked.rules(1)]
    for batch in sorted({engines.batch_bucket(size, lm.mesh) for size in batch_sizes}):
        keys = [noise.row_key(0, [0])] * batch
        for length, new in sizes:
            rows = [[0] * length] * batch
            slots = engines.slots_of(engine, rows, new)
            engine.memory = None
            # Once more with what the drafter remembers of the first time.
            for _ in range(1 if engine.method.drafter.remember is None else 2):
                for _ in api._run(lm, engine, rows, keys, asked, None, forms * batch, slots=slots):
                    pass


def warmup_many(
    lm: LanguageModel,
    *,
    max_prompt: int,
    method: str = "ar",
    draft: LanguageModel | None = None,
    heads: Heads | str | Path | None = None,
    n: int = 1,
    batch_size: int = api.DEFAULT_BATCH_SIZE,
    refilled: bool = True,
    **options: Any,
) -> None:
    """Compiles every program that `generate_many` with the same arguments can need.

    Args:
        lm: the model.
        max_prompt: tokens of the longest prompt that will come.
        method: as for `generate_many`, like all that follow.
        draft: the draft model of methods that need one.
        heads: the trained heads of methods that need some.
        n: samples per prompt.
        batch_size: rows decoded at once.
        refilled: False for fixed batches.
        **options: as for `generate`. `max_new_tokens` counts; of the others, only which are
            switched on.

    Raises:
        InputError: an option is unusable; the message names it.
        UnsupportedError: rows cannot come into a running batch here; the message says why.
    """
    chosen, choice = resolve.split(method, options)
    for name, value in (("max_prompt", max_prompt), ("n", n), ("batch_size", batch_size)):
        checks.integer(name, value, low=1)
    lengths = range(1, min(max_prompt, lm.config.max_length - 1) + 1)
    engine = None
    if many.lets_in(refilled, batch_size):
        engine = many.engine_of(lm, choice, draft, heads, chosen)
    if engine is None:
        requests = [(length, chosen.max_new_tokens) for length in lengths]
        given: dict[str, Any] = {"method": method, "draft": draft, "heads": heads, **options}
        sizes = _fixed_sizes(n, batch_size)
        warmup(lm, batch_sizes=sizes, requests=requests, **given)
        return
    refill.warm(
        engine,
        request_of=functools.partial(many.request_of, lm, chosen),
        lengths=lengths,
        max_new_tokens=chosen.max_new_tokens,
        batch_size=batch_size,
    )


def _fixed_sizes(n: int, batch_size: int) -> list[int]:
    """Rows that may be decoded at once in fixed batches: whole ones, and what is left at an end."""
    prompts = range(1, max(batch_size // n, 1) + 1)
    starts = ((num * n, first) for num in prompts for first in range(0, num * n, batch_size))
    return sorted({min(batch_size, rows - first) for rows, first in starts})
