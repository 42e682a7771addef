"""What few bits do to a model that fills slots: to its laws, its answers and its steps.

    found = quantized.on_lists(lm, quantize.settings("w8a8,w4a4"), ways, size=6, count=64)

Each setting (`evals.quantize`) is one copy of the model; each copy fills in the same ways as the
model itself, with the same seeds. What products read is collected from texts with a part of their
slots masked, as it is while a text is filled: from whole texts one would not see what mask tokens
do, whose rows all begin alike.
Source: arXiv:2508.14896; masked states as in arXiv:2508.14090.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float

from jaxdecode.api import LanguageModel
from jaxdecode.errors import InputError
from jaxdecode.evals import elbo, lists, quantize, suites
from jaxdecode.evals.quantize import Setting
from jaxdecode.evals.suites import Trial
from jaxdecode.models import filled, observe
from jaxdecode.models.config import Denoiser
from jaxdecode.results import Generation

FLOAT = "float"
# Shares of the slots that are masked in the texts of `calibrate`.
SHARES = (0.25, 0.5, 0.75, 1.0)
TEXTS = 32
# Rows per product that are kept; more change little and cost memory.
_KEPT = 2048
# A channel is large if half of its values are over 6 medians; a token is massive if one of its
# values is over 100 of them.
_LARGE, _MASSIVE = 6.0, 100.0
Text = tuple[Sequence[int], int]


Judge = Callable[[Generation], dict[str, Any]]


class Inputs(NamedTuple):
    """What products read, over rows of masked texts.

    Attributes:
        rows: by product and layer.
        undecided: which rows are those of mask tokens.
    """

    rows: dict[str, list[Float[np.ndarray, "N I"]]]
    undecided: Bool[np.ndarray, "N"]


def calibrate(
    lm: LanguageModel, texts: Sequence[Text], *, shares: Sequence[float] = SHARES, seed: int = 0
) -> Inputs:
    """Runs texts with masked slots through the model and keeps what its products read.

    Args:
        lm: a model that fills slots.
        texts: token ids, and how many at the beginning are never masked.
        shares: every text is run once with each of these shares of its slots masked.
        seed: of the slots and of the rows that are kept.

    Raises:
        InputError: a model without slots, or no texts.
    """
    denoiser = _denoiser(lm)
    if not texts or any(len(text) <= begin for text, begin in texts):
        raise InputError("calibration wants texts with something to mask; give at least one.")
    rng = np.random.default_rng(seed)
    parts: list[dict[str, list[np.ndarray]]] = []
    undecided = []
    for tokens, length, masked in _masked(texts, shares, rng):
        rows = jnp.where(masked, denoiser.mask_token, tokens)
        program = filled.program(denoiser, jnp.asarray(length), tokens.shape[1])
        found = observe.product_inputs(lm.target, lm.params, rows, program)
        real = np.arange(tokens.shape[1]) < length[:, None]
        # Rows that only fill up the batch are not texts.
        real &= (length > 1)[:, None]
        undecided.append(masked[real])
        parts.append({k: [np.asarray(x, np.float32)[real] for x in v] for k, v in found.items()})
    flags = np.concatenate(undecided)
    kept = rng.permutation(len(flags))[:_KEPT]
    rows = {
        name: [
            np.concatenate([p[name][i] for p in parts])[kept] for i in range(len(parts[0][name]))
        ]
        for name in parts[0]
    }
    return Inputs(rows, flags[kept])


def _denoiser(lm: LanguageModel) -> Denoiser:
    denoiser = lm.config.denoiser
    if denoiser is None or denoiser.inserts:
        raise InputError("this is measured on models that fill masked slots; this is none.")
    return denoiser


def _masked(texts: Sequence[Text], shares: Sequence[float], rng: np.random.Generator):
    """Batches of `elbo.ROWS` texts: tokens, lengths, masked slots."""
    every = [(text, begin, share) for text, begin in texts for share in shares]
    for first in range(0, len(every), elbo.ROWS):
        part = every[first : first + elbo.ROWS]
        tokens, length = elbo.padded([text for text, _, _ in part])
        masked = np.zeros(tokens.shape, bool)
        for b, (text, begin, share) in enumerate(part):
            number = round(share * (len(text) - begin))
            masked[b, rng.permutation(len(text) - begin)[:number] + begin] = True
        yield tokens, length, masked


def outliers(inputs: Inputs) -> list[dict[str, Any]]:
    """How uneven the inputs of every product of every layer are.

    largest: value. over_median: the same over the median of all values.
    kurtosis: of all values; 3 is that of a bell curve.
    large_channels: share of channels in which half of the values are over 6 medians.
    massive_tokens: share of tokens with a value over 100 medians.
    undecided, decided: mean over tokens of their largest value, of mask tokens and of others.
    """
    found = []
    for name, layers in inputs.rows.items():
        for layer, rows in enumerate(layers):
            size = np.abs(rows)
            median = max(float(np.median(size)), 1e-12)
            tops = size.max(1)
            where = {"undecided": inputs.undecided, "decided": ~inputs.undecided}
            found.append(
                {
                    "product": name,
                    "layer": layer,
                    "largest": float(tops.max()),
                    "over_median": float(tops.max()) / median,
                    "kurtosis": float((rows**4).mean() / np.square((rows**2).mean())),
                    "large_channels": float((np.median(size, 0) > _LARGE * median).mean()),
                    "massive_tokens": float((tops > _MASSIVE * median).mean()),
                    **{k: float(tops[m].mean()) if m.any() else None for k, m in where.items()},
                }
            )
    return found


def divergence(
    lm: LanguageModel,
    other: LanguageModel,
    texts: Sequence[Text],
    *,
    shares: Sequence[float] = SHARES,
    seed: int = 0,
) -> float:
    """Mean over masked slots of the divergence of another's law from the model's, in nats."""
    denoiser = _denoiser(lm)
    total, slots = 0.0, 0
    for tokens, length, masked in _masked(texts, shares, np.random.default_rng(seed)):
        ask = functools.partial(_laws, target=lm.target, denoiser=denoiser)
        ours, theirs = (ask(x.params, tokens, length, masked) for x in (lm, other))
        total += float(_divergences(ours, theirs, masked))
        slots += int(masked.sum())
    return total / max(slots, 1)


def on_lists(
    lm: LanguageModel,
    chosen: Sequence[Setting],
    ways: Sequence[Trial],
    *,
    size: int,
    count: int,
    batch_size: int = 64,
    seed: int = 0,
    tick: Callable[[], None] = lambda: None,
) -> dict[str, list[dict[str, Any]]]:
    """The five list tasks; `count` problems of each. A row per setting and way, as `_fill` says.

    accuracy: share of right answers over all tasks. tasks: the same of each.

    Returns:
        "rows", and the "outliers" of the model itself.

    Raises:
        InputError: a model of another vocabulary, or one that cannot be rounded so.
    """
    suites.check_vocabulary(lm)
    problems = [p for task in lists.TASKS for p in lists.problems(task, size, count, seed)]
    # Problems of another seed: none of those that are asked.
    examples: Any = lists.examples(2 * TEXTS, size, seed + 1)
    solved = [(example["tokens"], example["prompt_length"]) for example in examples]

    def judge(out: Generation) -> dict[str, Any]:
        right = [p.accepts(tokens) for p, tokens in zip(problems, out.tokens, strict=True)]
        each = np.asarray(right, float).reshape(len(lists.TASKS), -1).mean(1)
        tasks = dict(zip(lists.TASKS, each.tolist(), strict=True))
        return {"accuracy": float(each.mean()), "tasks": tasks}

    asked = _Asked([p.prompt for p in problems], size, batch_size, seed)
    return _measure(lm, chosen, ways, asked, solved, judge, tick)


def on_text(
    lm: LanguageModel,
    chosen: Sequence[Setting],
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
) -> dict[str, list[dict[str, Any]]]:
    """A text's pieces, every second one to calibrate on; their beginnings are gone on with.

    bits: per token of what was written, by the bound of the model itself.

    Returns:
        As `on_lists`.

    Raises:
        InputError: the text is shorter than two pieces.
    """
    pieces = suites.windows(tokens, num_given + num_new, 2 * count)
    if len(pieces) < 2:
        raise InputError("the text has one piece; two are wanted: one of them to calibrate on.")
    begins = [piece[:num_given] for piece in pieces[::2]]
    judging = quantize.plain(lm)

    def judge(out: Generation) -> dict[str, Any]:
        whole = [a + b for a, b in zip(begins, out.tokens, strict=True)]
        found = elbo.bound(judging, whole, given=num_given, draws=draws, seed=seed)
        return {"bits": found.per_token, "error": found.error / found.num_tokens}

    others = [(piece, num_given) for piece in pieces[1::2] + pieces[::2]]
    asked = _Asked(begins, num_new, batch_size, seed)
    return _measure(lm, chosen, ways, asked, others, judge, tick)


class _Asked(NamedTuple):
    prompts: list[list[int]]
    num_new: int
    batch_size: int
    seed: int


def _measure(
    lm: LanguageModel,
    chosen: Sequence[Setting],
    ways: Sequence[Trial],
    asked: _Asked,
    texts: Sequence[Text],
    judge: Judge,
    tick: Callable[[], None],
) -> dict[str, list[dict[str, Any]]]:
    """The first half of `texts` is to calibrate on, the second to compare laws on.

    divergence: mean over masked slots of that of the law from the model's own, in nats.
    nfe: calls per text. same_tokens, same_step: share of slots with the token, and that were
    decided in the step, of the model itself.
    differs_by_step: share of slots that hold something else after each step of it.
    """
    base = quantize.plain(lm)
    half = len(texts) // 2
    inputs = calibrate(base, texts[:half][:TEXTS], seed=asked.seed)
    wanted = [suites.fill(base, way, *asked) for way in ways]
    rows = []
    for setting in (None, *chosen):
        copy = base if setting is None else quantize.apply(base, setting, inputs.rows)
        apart = divergence(base, copy, texts[half:][:TEXTS], seed=asked.seed)
        for way, own in zip(ways, wanted, strict=True):
            out = own if setting is None else suites.fill(copy, way, *asked)
            row = {"setting": FLOAT if setting is None else setting.label, "trial": way.label}
            nfe = float(np.mean([stats.nfe for stats in out.stats]))
            rows.append(row | judge(out) | {"divergence": apart, "nfe": nfe} | _against(own, out))
            tick()
    return {"rows": rows, "outliers": outliers(inputs)}


def _against(own: Generation, out: Generation) -> dict[str, Any]:
    """How far one generation agrees with another of the same prompts and lengths."""
    (tokens, steps), (others, theirs) = (
        (np.asarray(x.tokens), np.asarray(x.steps)) for x in (own, out)
    )
    differs = []
    for step in range(int(steps.max()) + 1):
        held = np.where(steps <= step, tokens, -1), np.where(theirs <= step, others, -1)
        differs.append(float((held[0] != held[1]).mean()))
    return {
        "same_tokens": float((tokens == others).mean()),
        "same_step": float((steps == theirs).mean()),
        "differs_by_step": differs,
    }


_laws = jax.jit(filled.laws, static_argnames=("target", "denoiser"))


@jax.jit
def _divergences(ours, theirs, masked):
    # The mask token has no chance in either.
    each = jnp.where(jnp.isfinite(ours), jnp.exp(ours) * (ours - theirs), 0.0)
    return jnp.where(masked[..., None], each, 0.0).sum()
