"""Proofs of what the registry promises: every line by enumeration and by a test of its samples.

Two proofs per line, and a control for each. Enumeration: the exact law of what the line's verifier
emits, summed over every draft that can be drawn, against the target's law. Chi-square: the joint
law of several tokens from the compiled loop, with the line's own drafter. The control is a broken
twin: the same line with a verifier that is wrong on purpose, which both proofs must reject.
"""

import dataclasses
import functools
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxdecode import api, resolve
from jaxdecode.core.protocols import Method, Models
from jaxdecode.core.registry import METHODS
from jaxdecode.errors import InputError
from jaxdecode.evals import enumeration, exactness_fill, sampled, toys
from jaxdecode.sampling import residual
from jaxdecode.trees import walk

MAX_VARIATION = 1e-6
MIN_P = 1e-4
# Twins are far from exact: few samples convict them.
TWIN_SAMPLES = 100_000
BLIND_TRUST = 0.25
DRAFT_BLEND = 0.06
# Options of drafters and verifiers that make a line small, by name; a line gets those it has.
SMALL: dict[str, Any] = {
    "num_draft": 3,
    "max_depth": 3,
    "width": 3,
    "window": 3,
    "ngram": 3,
    "pool": 2,
    "buckets": 16,
    "num_slots": 64,
    "num_places": 8,
    "num_candidates": 4,
    "tree": "recycling_4",
    "branching": (2, 2),
    "max_corrections": 1,
}
# Trees that are enumerated, by how a verifier wants drafts drawn. Verifiers that read no draft law
# are exact for any drafts, so theirs are the likeliest tokens.
DRAWN = {
    "with_replacement": (enumeration.chains(1, 3), enumeration.chains(2, 2)),
    "without_replacement": (
        enumeration.without_replacement((1, 1, 1)),
        enumeration.without_replacement((2, 2)),
    ),
    "likeliest_and_one": (
        enumeration.likeliest_and_one((1, 1, 1)),
        enumeration.likeliest_and_one((2, 2)),
    ),
    "chain": (enumeration.chains(1, 3),),
    "any": (enumeration.likeliest((2, 2, 1)), enumeration.likeliest((1, 1, 1))),
    "none": (enumeration.likeliest((1,)),),
}
# What verifiers want, where they have no `draws` option that says it.
DRAWS = {"kseq": "with_replacement", "greedy_multi_draft": "likeliest_and_one", "block": "chain"}
# Options with which a heuristic verifier is exact.
STRICT: dict[str, dict[str, Any]] = {
    "typical": {"epsilon": 1.0, "delta": 1e9},
    "bild": {"rollback": 0.0},
    "judge": {"threshold": 1.0},
    "reflective": {"alpha": 0.0},
    "lexical": {"verify": True, "min_prob": 0.0},
    "superposed": {"num_texts": 1, "alpha": 0.0},
    "aged": {"max_corrections": None},
}
# Prompts, and new tokens, of lines that are compared with plain decoding token by token.
GREEDY_PROMPTS, GREEDY_NEW = 64, 16


@dataclasses.dataclass(frozen=True, kw_only=True)
class Proof:
    """What was found about one registry line.

    Attributes:
        method: registry key.
        level: what the line promises.
        variation: largest total variation by enumeration. Of a line that only decodes greedily,
            where every law is one text, or fills slots as another line does: the share of texts
            that differ. None where a rule's choices are drawn, so that only samples show them.
        p_value: of the chi-square test; None for lines whose texts are compared.
        twin_variation: the same for the broken twin.
        twin_p_value: the same for the broken twin.
        samples: rows decoded.
        accepted: draft tokens accepted per step.
        default_variation: of a line that is not exact by design, at its own defaults: total
            variation of its samples less what finite samples show; None for exact lines.
        seconds: wall time.
    """

    method: str
    level: str
    variation: float | None
    p_value: float | None
    twin_variation: float | None
    twin_p_value: float | None
    samples: int
    accepted: float
    default_variation: float | None
    seconds: float

    @property
    def passed(self) -> bool:
        """Whether both proofs hold and both reject the twin."""
        told_apart = True
        if self.variation is not None and self.twin_variation is not None:
            told_apart = self.variation <= MAX_VARIATION < self.twin_variation
        if self.p_value is None or self.twin_p_value is None:
            return told_apart
        entry = METHODS[self.method]
        drafts = entry.drafter != "none" and not entry.fills
        by_samples = self.p_value > MIN_P >= self.twin_p_value
        return told_apart and by_samples and (self.accepted > 0 or not drafts)

    def as_dict(self) -> dict[str, Any]:
        """The fields and the verdict, for JSON."""
        return dataclasses.asdict(self) | {"passed": self.passed}


def rows_needed(name: str, samples: int) -> int:
    """Rows that `prove` decodes, for progress bars."""
    if METHODS[name].fills:
        return exactness_fill.rows_needed(name, samples, TWIN_SAMPLES)
    if greedy_only(name):
        return 0
    exact = METHODS[name].level in ("L0", "L1")
    controls = 1 if exact else 2
    return sampled.whole(samples) + controls * sampled.whole(min(samples, TWIN_SAMPLES))


def names(asked: str) -> list[str]:
    """Registry lines of a comma-separated list, or of "all"."""
    if asked == "all":
        return [name for name in METHODS if has_law(name)]
    found = [name.strip() for name in asked.split(",") if name.strip()]
    if not found:
        raise InputError("methods is empty; name some, or use all.")
    for name in found:
        if not resolve.entry_of(name).on_loop:
            beside = resolve.entry_of(name).continuous is not None
            kind = "denoises vectors" if beside else "is a policy over runs"
            raise InputError(
                f"method {name!r} {kind}, so its law is not that of texts written "
                "token by token, which these proofs are about; leave it out."
            )
        if not has_law(name):
            exactness_fill.refuse(name)
    return found


def has_law(name: str) -> bool:
    """Whether one run of the loop writes a text, and its law can be proven."""
    entry = METHODS[name]
    return entry.on_loop and (not entry.fills or exactness_fill.provable(name))


def prove(
    name: str, samples: int = 1_000_000, progress: Callable[[int], None] | None = None
) -> Proof:
    """Both proofs of one line, and both of its broken twin.

    Args:
        name: registry key.
        samples: rows decoded for the chi-square test; the twin gets at most TWIN_SAMPLES.
        progress: called with the number of rows decoded since the last call.
    """
    if METHODS[name].fills:
        return _prove_filling(name, samples, progress)
    if greedy_only(name):
        return _prove_greedy(name)
    begin = time.perf_counter()
    exact = METHODS[name].level in ("L0", "L1")
    choice = small(name, strict=not exact)
    ready = setup(choice)
    broken = ready._replace(method=twin(ready.method))
    law = law_of_target()
    found = sampled.counts(ready, samples, progress=progress)
    wrong = sampled.counts(broken, min(samples, TWIN_SAMPLES), progress=progress)
    relaxed = None
    if not exact:
        loose = sampled.counts(setup(small(name)), min(samples, TWIN_SAMPLES), progress=progress)
        relaxed = sampled.total_variation(loose.cells, law) - sampled.noise_floor(loose.cells, law)
    return Proof(
        method=name,
        level=METHODS[name].level,
        variation=variation(choice, ready.method),
        p_value=sampled.chi_square(found.cells, law),
        twin_variation=variation(choice, ready.method, broken=True),
        twin_p_value=sampled.chi_square(wrong.cells, law),
        samples=int(found.cells.sum()),
        accepted=found.accepted,
        default_variation=relaxed,
        seconds=time.perf_counter() - begin,
    )


def _prove_filling(name: str, samples: int, progress: Callable[[int], None] | None) -> Proof:
    begin = time.perf_counter()
    found = exactness_fill.prove(name, samples, TWIN_SAMPLES, progress)
    seconds = time.perf_counter() - begin
    return Proof(method=name, level=METHODS[name].level, seconds=seconds, **found._asdict())


def variation(choice: resolve.Choice, method: Method, broken: bool = False) -> float:
    """Largest total variation by enumeration of the line's verifier, for drafts as it needs them.

    A rule that looks at no draft law must be exact for any drafts; one that does must be exact on
    average over drafts drawn as its verifier says.

    Args:
        choice: the line.
        method: its bundles.
        broken: enumerate the twin instead.
    """
    return _variation(METHODS[choice.name].verifier, choice.verifier, _drafts(method), broken)


@functools.lru_cache(maxsize=256)
def _variation(file: str, config: Any, drafts: bool, broken: bool) -> float:
    draws = getattr(config, "draws", DRAWS.get(file, "any")) if drafts else "none"
    if broken:
        verifier = walk.make(_twin_rule(drafts))
    else:
        verifier = resolve.verifier(file, config, Models(toys.model().bound))
    return max(enumeration.variation(verifier, drafter) for drafter in DRAWN[draws])


def greedy_only(name: str) -> bool:
    """Whether the line draws nothing: then texts are compared."""
    return "temperature" in METHODS[name].refuses


def _prove_greedy(name: str) -> Proof:
    """The strict setting against plain decoding; what the line's defaults give is the control."""
    begin = time.perf_counter()
    rng = np.random.default_rng(0)
    prompts = [rng.integers(0, toys.VOCAB, 6).tolist() for _ in range(GREEDY_PROMPTS)]
    draft = toys.model(blend=DRAFT_BLEND) if "draft" in METHODS[name].needs else None

    def texts(method: str, **more: Any) -> list[list[int]]:
        asked: dict[str, Any] = dict(max_new_tokens=GREEDY_NEW, batch_size=GREEDY_PROMPTS)
        return api.generate(toys.model(), prompts, method=method, **asked, **more).tokens

    def share(**more: Any) -> float:
        ours = texts(name, draft=draft, **more)
        return float(np.mean([a != b for a, b in zip(ours, wanted, strict=True)]))

    wanted = texts("ar")
    strict, usual = share(**strict_options(name)), share()
    return Proof(
        method=name,
        level=METHODS[name].level,
        variation=strict,
        p_value=None,
        twin_variation=usual,
        twin_p_value=None,
        samples=0,
        accepted=0.0,
        default_variation=usual,
        seconds=time.perf_counter() - begin,
    )


def strict_options(name: str) -> dict[str, Any]:
    """Options with which a line that is not exact by design is exact; none for others."""
    entry = METHODS[name]
    if entry.level in ("L0", "L1"):
        return {}
    return STRICT.get(entry.verifier, {})


def small(name: str, strict: bool = False) -> resolve.Choice:
    """The line with options that make it small enough for a toy.

    Args:
        name: registry key.
        strict: the setting of a heuristic verifier that makes it exact.
    """
    _, usual = resolve.split(name, {})
    options: dict[str, Any] = {}
    for part in (usual.drafter, usual.verifier):
        for field in dataclasses.fields(part):
            if field.name in SMALL:
                value = getattr(part, field.name)
                limit = SMALL[field.name]
                options[field.name] = min(value, limit) if isinstance(value, int) else limit
    if strict:
        options |= strict_options(name)
    return resolve.split(name, options)[1]


def setup(choice: resolve.Choice) -> sampled.Setup:
    """The line on the toy target, with a toy draft model where it needs one."""
    return sampled.setup(choice, toys.model(), toys.model(blend=DRAFT_BLEND))


@functools.lru_cache
def law_of_target() -> np.ndarray:
    """The exact joint law of the tokens that `sampled.counts` counts."""
    return toys.joint_law(toys.model(), sampled.PROMPT, sampled.NUM_NEW, sampled.TEMPERATURE)


@functools.lru_cache(maxsize=256)
def twin(method: Method) -> Method:
    """The method with a verifier that is wrong on purpose."""
    rule = _twin_rule(_drafts(method))
    return method._replace(verifier=walk.make(rule)._replace(taps=method.verifier.taps))


def _drafts(method: Method) -> bool:
    return method.drafter.max_depth > 0


def _twin_rule(drafts: bool) -> walk.Rule:
    return broken_rule if drafts else flat_rule


def flat_rule(visit: walk.Visit) -> Float[Array, "V"]:
    """The target's law at another temperature: the twin of lines that draft nothing."""
    return 0.8 * visit.scores


def broken_rule(visit: walk.Visit) -> Float[Array, "V"]:
    """Trusts the first draft too often, or draws from the wrong law after a rejection.

    Where the draft's law is known it accepts as rejection sampling does, but then draws from the
    target's law instead of the residual. Elsewhere it accepts the first draft blindly in a quarter
    of all cases, and else takes another token, also if the draft was the target's own draw.
    """
    target = visit.target_probs()
    slot = jnp.argmax(visit.valid)
    token = visit.tokens[slot]
    trust, left = jnp.float32(BLIND_TRUST), target.at[token].set(0.0)
    if visit.draft_probs is not None:
        left = target
        trust = jnp.minimum(1.0, target[token] / jnp.maximum(visit.draft_probs[token], 1e-12))
    point = jax.nn.one_hot(token, target.shape[0], dtype=jnp.float32)
    law = trust * point + (1 - trust) * residual.normalise(left, target)
    return jnp.log(jnp.where(visit.valid[slot], law, target))
