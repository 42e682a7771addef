"""Proofs for lines that fill slots in any order.

What they are measured against is the sampler that decides one slot per step: its law is the chain
rule, summed over all canvases. A line whose rule decides more at once is heuristic by design, and
is proven at the setting at which it decides one. A line that promises the tokens of another one is
compared with it text by text. The control decides one more slot in every step; of drafts that are
tested in order, it draws from the target's law where it should from the residual. Insertions have a
law of their own (`exactness_insert`).
"""

import dataclasses
import functools
import itertools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxdecode import api, resolve
from jaxdecode.core.protocols import Commit, Method, Verifier
from jaxdecode.core.registry import METHODS
from jaxdecode.errors import InputError
from jaxdecode.evals import exactness_insert, filling, sampled, toys
from jaxdecode.evals.bench_lines import Line, reference
from jaxdecode.sampling import confidence, noise, residual
from jaxdecode.trees import walk
from jaxdecode.verifiers import nested, ranked

# Settings at which a rule decides one slot per step, by its file; each with the order it has.
_ONE: dict[str, Any] = {"steps": 0, "schedule": "even"}
STRICT: dict[str, tuple[tuple[str, dict[str, Any]], ...]] = {
    "quota": (
        ("probability", _ONE | {"order": "probability", "order_noise": 0.0}),
        ("left_to_right", _ONE | {"order": "left_to_right", "order_noise": 0.0}),
        ("random", _ONE | {"order": "random", "order_noise": 0.0}),
    ),
    "threshold": (("probability", {"threshold": 1.0}),),
    "factor": (("probability", {"factor": 1e-6}),),
    "ancestral": (("random", {"steps": 0}),),
    "confident": (("probability", _ONE | {"threshold": 1.0}),),
    "entropy": (("entropy", {"threshold": 0.0}),),
    "entropy_bound": (("entropy", {"gamma": 0.0, "order": "entropy"}),),
    "early_answer": (("probability", _ONE | {"gaps": (1e6, 1e6, 1e6)}),),
    "late_end": (("probability", _ONE | {"end_weight": 1.0}),),
    "second_look": (("probability", _ONE | {"budget": 0.0}),),
    "picked": (
        ("told_left_to_right", {"order": "left_to_right"}),
        ("told_random", {"order": "random"}),
    ),
}
# Orders in which slots are told by those before them only; each with the orders it draws from.
TOLD = {
    "told_left_to_right": (tuple(range(sampled.NUM_NEW)),),
    "told_random": tuple(itertools.permutations(range(sampled.NUM_NEW))),
}
# Orders that are drawn, or of drafts, so that a rule's choice cannot be enumerated.
DRAWN_ORDERS = ("random", *TOLD)
# The same of drafters: one block, and nothing approximate.
WHOLE: dict[str, dict[str, Any]] = {
    "denoise": {"block_length": 0, "reuse": "none"},
    "adablock": {"min_delimiter": 2.0, "delimiters": (0,), "reuse": "none"},
    "guided": {"block_length": 0, "reuse": "none", "guidance": 0.0},
    "delayed": {"block_length": 0, "renew_every": 1},
    "any_subset": {},
}
# Verifiers that can give single draws of the target's law, and the setting at which they do.
SINGLE: dict[str, dict[str, Any]] = {
    "denoise": {},
    "energy": {"num_candidates": 1},
    "ranked": {},
}
# What a drafter must be given where there is no tokenizer.
GIVEN: dict[str, dict[str, Any]] = {"adablock": {"delimiters": (0,)}}
TEXTS, TEXT_NEW = 64, 12
TEMPERATURES = (0.0, 0.9)


class Found(NamedTuple):
    """Fields of `exactness.Proof`."""

    variation: float | None
    p_value: float | None
    twin_variation: float | None
    twin_p_value: float | None
    samples: int
    accepted: float
    default_variation: float | None


def provable(name: str) -> bool:
    """Whether there is a setting to prove the line at, or a line to compare it with."""
    entry = METHODS[name]
    plain = entry.verifier in SINGLE and entry.heads is None
    known = entry.commit in STRICT and entry.drafter in WHOLE
    return _copies(name) or _inserts(name) or (plain and known)


def _copies(name: str) -> bool:
    """Whether the line promises the tokens of another one."""
    entry = METHODS[name]
    return entry.level == "L0" and entry.reference != name and entry.heads is None


def _inserts(name: str) -> bool:
    """Whether the line inserts tokens where others fill slots."""
    return METHODS[name].verifier == "insertion"


def refuse(name: str) -> None:
    """Says what is missing for a proof."""
    raise InputError(
        f"no setting of method {name!r} is known here at which its rule "
        f"({METHODS[name].commit}) decides one slot per step, so there is no law to prove; leave "
        "it out."
    )


def rows_needed(name: str, samples: int, twin_samples: int) -> int:
    """Rows that `prove` decodes."""
    if _copies(name):
        return 0
    if _inserts(name):
        return sampled.whole(samples) + sampled.whole(min(samples, twin_samples))
    cases = len(STRICT[METHODS[name].commit])
    rows = sampled.whole(samples // cases) + sampled.whole(min(samples, twin_samples) // cases)
    exact = METHODS[name].level in ("L0", "L1")
    return cases * rows + (0 if exact else sampled.whole(min(samples, twin_samples)))


def prove(
    name: str, samples: int, twin_samples: int, progress: Callable[[int], None] | None = None
) -> Found:
    """Both proofs of one line, and both of its twin."""
    if _copies(name):
        return _prove_texts(name)
    if _inserts(name):
        return _prove_insertions(name, samples, twin_samples, progress)
    cases = STRICT[METHODS[name].commit]
    found = [
        _prove_case(
            name, order, options, samples // len(cases), twin_samples // len(cases), progress
        )
        for order, options in cases
    ]
    p_values = [case.p_value for case in found]
    loose = None
    if METHODS[name].level not in ("L0", "L1"):
        given = GIVEN.get(METHODS[name].drafter, {})
        usual = _counts(_setup(name, given), min(samples, twin_samples), progress)
        law = law_of(cases[0][0])
        loose = sampled.total_variation(usual, law) - sampled.noise_floor(usual, law)
    return Found(
        variation=max((x.variation for x in found if x.variation is not None), default=None),
        # The smallest of several p-values is small by chance more often.
        p_value=min(1.0, len(found) * min(p_values)),
        twin_variation=min(
            (x.twin_variation for x in found if x.twin_variation is not None), default=None
        ),
        twin_p_value=max(case.twin_p_value for case in found),
        samples=sum(case.samples for case in found),
        accepted=0.0,
        default_variation=loose,
    )


class _Case(NamedTuple):
    variation: float | None
    p_value: float
    twin_variation: float | None
    twin_p_value: float
    samples: int


def _prove_case(
    name: str,
    order: str,
    options: dict[str, Any],
    samples: int,
    twin_samples: int,
    progress: Callable[[int], None] | None,
) -> _Case:
    entry = METHODS[name]
    ready = _setup(name, WHOLE[entry.drafter] | SINGLE[entry.verifier] | options)
    broken = ready._replace(method=twin(ready.method, entry.verifier))
    law = law_of(order)
    cells = _counts(ready, samples, progress)
    wrong = _counts(broken, min(samples, twin_samples), progress)
    by_rule = [None, None]
    if order not in DRAWN_ORDERS:
        by_rule = [_distance(law, one) for one in (ready, broken)]
    return _Case(
        variation=by_rule[0],
        p_value=sampled.chi_square(cells, law),
        twin_variation=by_rule[1],
        twin_p_value=sampled.chi_square(wrong, law),
        samples=int(cells.sum()),
    )


def _setup(name: str, options: dict[str, Any]) -> sampled.Setup:
    return sampled.setup(resolve.split(name, options)[1], toys.denoiser(), toys.model())


def _counts(ready: sampled.Setup, samples: int, progress: Any) -> np.ndarray:
    return sampled.counts(ready, samples, progress=progress).cells


def _distance(law: np.ndarray, ready: sampled.Setup) -> float:
    assert ready.method.commit is not None
    found = filling.by_rule(_asked(), ready.method.commit.select, ready.weights)
    return 0.5 * float(np.abs(found - law).sum())


@functools.lru_cache
def _asked() -> filling.Conditionals:
    return filling.conditionals(
        toys.denoiser(), sampled.PROMPT, sampled.NUM_NEW, sampled.TEMPERATURE
    )


@functools.lru_cache
def law_of(order: str) -> np.ndarray:
    """The exact joint law of the tokens that `sampled.counts` counts, one slot per step."""
    if order not in TOLD:
        return filling.one_by_one(_asked(), order)
    laws = [
        filling.in_turn(toys.denoiser(), sampled.PROMPT, turns, sampled.TEMPERATURE)
        for turns in TOLD[order]
    ]
    return np.mean(laws, axis=0)


@functools.lru_cache(maxsize=256)
def twin(method: Method, verifier: str) -> Method:
    """The method with a rule that decides one more slot in every step, or with a wrong residual."""
    assert method.commit is not None
    if verifier == "ranked":
        return method._replace(verifier=ranked.by_rule(wrong_residual))
    return method._replace(commit=Commit(select=functools.partial(_one_more, method.commit.select)))


def wrong_residual(visit: walk.Visit) -> Float[Array, "V"]:
    """Keeps drafts as it should, else draws from the target's law; too flat without a draft."""
    target = visit.target_probs()
    token, valid = visit.tokens[0], visit.valid[0]
    assert visit.draft_probs is not None
    chance = residual.accept(target[token], visit.draft_probs[token])
    kept = ((1 - chance) * target).at[token].add(chance)
    return jnp.where(valid, jnp.log(kept), 0.8 * visit.scores)


def _one_more(select, weights, request, canvas, window, candidates):
    decision = select(weights, request, canvas, window, candidates)
    left = window.open & ~decision.commit
    score = confidence.probability(candidates)
    more = confidence.rank(score, left) == 0
    return dataclasses.replace(decision, commit=decision.commit | (more & left))


def _prove_insertions(
    name: str, samples: int, twin_samples: int, progress: Callable[[int], None] | None
) -> Found:
    cells = exactness_insert.counts(name, samples, progress)
    wrong = exactness_insert.counts(name, min(samples, twin_samples), progress, broken=True)
    law = exactness_insert.law()
    p_values = (sampled.chi_square(found, law) for found in (cells, wrong))
    return Found(None, next(p_values), None, next(p_values), int(cells.sum()), 0.0, None)


def _prove_texts(name: str) -> Found:
    """Texts against those of the reference.

    Blocks are short, so that there are several. The control of a line that tries texts takes every
    one of them for right; of another line it is the reference at one step per block.
    """
    blocks = {"block_length": TEXT_NEW // 3} if "block_length" in _options(name) else {}
    ours = Line(name, name, blocks)
    theirs = reference(ours)
    tries = METHODS[name].verifier == "nested"
    broken = ours if tries else theirs._replace(options=theirs.options | {"steps": 1})
    laws = TEMPERATURES[:1] if "temperature" in METHODS[name].refuses else TEMPERATURES
    differ, control = [], []
    for temperature in laws:
        wanted = _texts(theirs, temperature)
        differ.append(_share(_texts(ours, temperature), wanted))
        wrong = _texts(broken, temperature, TRUSTING if tries else None)
        control.append(_share(wrong, wanted))
    return Found(max(differ), None, min(control), None, 0, 0.0, None)


def _options(name: str) -> set[str]:
    _, usual = resolve.split(name, {})
    return {field.name for field in dataclasses.fields(usual.drafter)}


def _texts(line: Line, temperature: float, verifier: Verifier | None = None) -> list[list[int]]:
    """What a line writes, with another verifier if one is given."""
    rng = np.random.default_rng(0)
    prompts = [rng.integers(0, toys.VOCAB - 1, 6).tolist() for _ in range(TEXTS)]
    asked = {"max_new_tokens": TEXT_NEW, "temperature": temperature, **line.options}
    chosen, choice = resolve.split(line.method, asked)
    engine = api._engine(toys.denoiser(), choice, None)
    if verifier is not None:
        engine.method = engine.method._replace(verifier=verifier)
    keys = [noise.row_key(0, prompt) for prompt in prompts]
    return api._decode(toys.denoiser(), engine, prompts, keys, chosen, TEXTS, None).tokens


def _all_right(tried, have, slot, token):
    """A walk that goes on to a text with one more guess, whatever the step was."""
    del slot, token
    holds = (tried.guesses | ~have).all(-1)
    return tried.valid & holds & (tried.guesses.sum(-1) == have.sum() + 1)


# One bundle for all calls: programs are kept by it.
TRUSTING = nested.by_rule(_all_right)


def _share(ours: list[list[int]], theirs: list[list[int]]) -> float:
    return float(np.mean([a != b for a, b in zip(ours, theirs, strict=True)]))
