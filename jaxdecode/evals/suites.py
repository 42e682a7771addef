"""What filling several slots at once costs: right answers, and the quality of text, by steps.

    lists          the five tasks of `evals.lists`, over a few ways to fill
    parallelbench  the same over a grid: tokens per step for every order, thresholds, factor
    text           held-out text's bits, and what is written: its bits, entropy and repetition

Each row of a table is one way to fill (a trial). Calls of the model and tokens that went into it
are both given, since some ways save one and not the other.
Source: ParallelBench (arXiv:2510.04767) for the tasks, the grid and the best per problem.
"""

import collections
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from jaxdecode import api
from jaxdecode.errors import InputError
from jaxdecode.evals import elbo, lists
from jaxdecode.evals.bench_lines import Line, parse_lines
from jaxdecode.results import Generation

BEST = "best of each problem"
_ORDERS = ("random", "probability", "margin", "entropy")
# Texts repeat themselves where runs of so many tokens come again.
_RUN = 4
_WHOLE = "block_length=0:reuse=none"


class Trial(NamedTuple):
    """One way to fill slots."""

    line: Line
    temperature: float

    @property
    def label(self) -> str:
        """What tables call it."""
        warm = f" T={self.temperature:g}" if self.temperature else ""
        return self.line.label.replace(f":{_WHOLE}", "") + warm


def trials(text: str, temperatures: Sequence[float]) -> list[Trial]:
    """Lines as `bench --methods` takes them, at every temperature.

    The baseline is one of them only if it is named, or a group is.
    """
    found = parse_lines(text, fills=True, temperatures=temperatures)
    asked = {part.strip() for part in text.split(",")}
    if asked <= {line.label for line in found}:
        found = [line for line in found if line.label in asked]
    return [Trial(line, temperature) for temperature in temperatures for line in found]


def _trial(label: str, temperature: float = 0.0) -> Trial:
    return Trial(parse_lines(label, fills=True)[-1], temperature)


def divisors(size: int) -> list[int]:
    """Tokens per step with which all steps are equal."""
    return [k for k in range(1, size + 1) if size % k == 0]


def usual(suite: str, size: int) -> list[Trial]:
    """The trials of a suite where none are asked for; `size` slots are filled."""
    thresholds = (0.9, 0.7) if suite == "lists" else (0.95, 0.9, 0.7, 0.5)
    rules = [_trial(f"fast_dllm:threshold={t}:{_WHOLE}") for t in thresholds]
    rules += [_trial(f"fast_dllm_factor:{_WHOLE}")]
    if suite == "text":
        steps = [max(1, size >> i) for i in range(5)]
        # In random order it is the model's own law that is drawn from; by probability text repeats.
        orders = (":order=random", "")
        steps = list(dict.fromkeys(steps))
        plain = [_trial(f"llada:steps={n}{order}", 1.0) for order in orders for n in steps]
        return plain + [trial._replace(temperature=1.0) for trial in rules]
    steps = [size // k for k in divisors(size)]
    drawn = [_trial(f"llada:steps={n}:order=random", 1.0) for n in steps]
    if suite == "lists":
        return drawn + [_trial("llada"), _trial("llada:steps=1"), *rules]
    orders = [_trial(f"llada:steps={n}:order={order}") for order in _ORDERS for n in steps]
    return drawn + orders + rules


def fill_lists(
    lm: api.LanguageModel,
    ways: Sequence[Trial],
    *,
    size: int,
    count: int,
    batch_size: int = 64,
    seed: int = 0,
    tick: Callable[[], None] = lambda: None,
) -> list[dict[str, Any]]:
    """One row per task and trial, and the best that any trial does on each problem.

    accuracy, error: share of right answers, and its standard error.
    nfe, tokens_forwarded: calls, and tokens that went in, per problem.
    tokens_per_step: slots over calls.
    ideal: accuracy of a model that knows every law, where it is known in closed form.

    Raises:
        InputError: a model of another vocabulary.
    """
    check_vocabulary(lm)
    found = []
    for task in lists.TASKS:
        problems = lists.problems(task, size, count, seed)
        fewest = np.full(count, np.inf)
        for way in ways:
            out = fill(lm, way, [p.prompt for p in problems], size, batch_size, seed)
            right = np.asarray([p.accepts(t) for p, t in zip(problems, out.tokens, strict=True)])
            nfe = np.asarray([stats.nfe for stats in out.stats])
            fewest = np.where(right, np.minimum(fewest, nfe), fewest)
            forwarded = np.mean([stats.tokens_forwarded for stats in out.stats])
            found.append(_row(task, way.label, right, nfe, size, float(forwarded)))
            found[-1]["ideal"] = ideal(task, way, size)
            tick()
        solved = np.isfinite(fewest)
        row = _row(task, BEST, solved, fewest[solved], size, None)
        found.append(row | {"ideal": None})
    return found


def _row(task, label, right, nfe, size, forwarded) -> dict[str, Any]:
    accuracy, mean = float(right.mean()), float(nfe.mean()) if len(nfe) else None
    return {
        "task": task,
        "trial": label,
        "accuracy": accuracy,
        "error": math.sqrt(accuracy * (1 - accuracy) / len(right)),
        "nfe": mean,
        "tokens_forwarded": forwarded,
        "tokens_per_step": None if mean is None else size / mean,
    }


def ideal(task: str, way: Trial, size: int) -> float | None:
    """What the formulas say of a trial; None where they say nothing."""
    options = way.line.options
    plain = way.line.method == "llada" and set(options) <= {"steps", "order"}
    if not plain or options.get("order") != "random" or way.temperature != 1.0:
        return None
    steps = options.get("steps") or size
    quotas = [size // steps + (i < size % steps) for i in range(min(steps, size))]
    return lists.ideal_accuracy(task, quotas)


def check_vocabulary(lm: api.LanguageModel) -> None:
    """Refuses a model that does not speak the list tasks."""
    denoiser = lm.config.denoiser
    if denoiser is None:
        raise InputError("these suites are for models that fill slots; this one writes in order.")
    if (lm.config.vocab_size, denoiser.mask_token) != (lists.VOCAB_SIZE, lists.MASK_TOKEN):
        raise InputError(
            f"the list tasks are written in {lists.VOCAB_SIZE} tokens of their own, the last of "
            f"which is the mask token; this model has {lm.config.vocab_size} and mask token "
            f"{denoiser.mask_token}. Train one with configs/train/mdlm_lists.yaml, or use "
            "--model oracle."
        )


def fill(
    lm: api.LanguageModel,
    way: Trial,
    prompts: list[list[int]],
    num_new: int,
    batch_size: int,
    seed: int,
) -> Generation:
    """What a model writes after prompts in one way; prompt i has seed `seed + i`."""
    return api.generate(
        lm,
        prompts,
        method=way.line.method,
        max_new_tokens=num_new,
        batch_size=batch_size,
        temperature=way.temperature,
        seed=list(range(seed, seed + len(prompts))),
        ignore_eos=True,
        **way.line.options,
    )


def windows(tokens: Sequence[int], width: int, count: int) -> list[list[int]]:
    """Up to `count` pieces of a text, evenly spaced.

    Raises:
        InputError: the text is shorter than one piece.
    """
    if len(tokens) < width:
        raise InputError(f"the text has {len(tokens)} tokens; one piece has {width}.")
    starts = np.linspace(0, len(tokens) - width, min(count, len(tokens) // width)).astype(int)
    return [list(tokens[start : start + width]) for start in starts]


def write_text(
    lm: api.LanguageModel,
    ways: Sequence[Trial],
    tokens: Sequence[int],
    *,
    num_given: int,
    num_new: int,
    count: int,
    draws: int = 16,
    batch_size: int = 16,
    seed: int = 0,
    tick: Callable[[], None] = lambda: None,
) -> list[dict[str, Any]]:
    """The held-out text itself, then what every trial writes after the same beginnings.

    bits: by the bound, per token of what follows the beginning; of the trial's text it says how
        well the model thinks of what it wrote, so it is low too where text repeats itself.
    entropy: of the tokens of one text, in bits, mean over texts.
    repetition: share of runs of four tokens that came before in the same text.
    nfe, tokens_forwarded: per text. tokens_per_second: with compilation left out by a first run.
    """
    pieces = windows(tokens, num_given + num_new, count)
    begins = [piece[:num_given] for piece in pieces]

    def judged(label: str, ends: list[list[int]]) -> dict[str, Any]:
        whole = [a + b for a, b in zip(begins, ends, strict=True)]
        found = elbo.bound(lm, whole, given=num_given, draws=draws, seed=seed)
        return {
            "trial": label,
            "bits": found.per_token,
            "error": found.error / found.num_tokens,
            "characters": _characters(lm, ends),
            "bits_per_character": float(found.bits.sum()) / _characters(lm, ends),
            "entropy": float(np.mean([entropy(end) for end in ends])),
            "repetition": float(np.mean([repetition(end) for end in ends])),
        }

    rows = [judged("held-out text", [piece[num_given:] for piece in pieces])]
    tick()
    for way in ways:
        for _ in range(2):
            out = fill(lm, way, begins, num_new, batch_size, seed)
        stats = out.stats
        seconds = sum(s.seconds for s in stats[::batch_size])
        counts = {
            "nfe": float(np.mean([s.nfe for s in stats])),
            "tokens_forwarded": float(np.mean([s.tokens_forwarded for s in stats])),
            "tokens_per_second": sum(s.num_tokens for s in stats) / seconds,
        }
        rows.append(judged(way.label, out.tokens) | counts)
        tick()
    return rows


def _characters(lm: api.LanguageModel, texts: Sequence[Sequence[int]]) -> int:
    if lm.tokenizer is None:
        return sum(map(len, texts))
    return max(1, sum(len(lm.tokenizer.decode(list(text))) for text in texts))


def entropy(tokens: Sequence[int]) -> float:
    """Of how often each token occurs, in bits."""
    share = np.asarray(list(collections.Counter(tokens).values())) / len(tokens)
    return float(-(share * np.log2(share)).sum())


def repetition(tokens: Sequence[int], run: int = _RUN) -> float:
    """Share of runs that came before."""
    runs = [tuple(tokens[i : i + run]) for i in range(len(tokens) - run + 1)]
    return 1 - len(set(runs)) / len(runs) if runs else 0.0
