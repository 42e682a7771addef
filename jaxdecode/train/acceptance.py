"""Acceptance: held-out prompts decoded by the loop itself, with what has been trained so far."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from jaxdecode import api, resolve
from jaxdecode.convert.heads import Heads
from jaxdecode.language_model import LanguageModel
from jaxdecode.train.config import Measuring


@dataclasses.dataclass(frozen=True, kw_only=True)
class Candidate:
    """What decodes.

    Attributes:
        lm: the target, trained or not.
        heads: trained heads; None if the method has none.
        draft: trained draft model; None if the method has none.
    """

    lm: LanguageModel
    heads: Heads | None = None
    draft: LanguageModel | None = None


def measure(
    candidate: Candidate,
    method: str,
    prompts: Sequence[Sequence[int]],
    config: Measuring,
    options: Mapping[str, Any],
) -> dict[str, Any]:
    """Tokens per step over all prompts, greedy; and at how many prompts the tokens are not those
    of plain decoding (None where the method does not promise them).

    Args:
        candidate: what decodes.
        method: registry line.
        prompts: token ids.
        config: how much is decoded.
        options: of the method.
    """
    # A prompt must leave room for what is decoded behind it, and for the longest draft.
    room = candidate.lm.config.max_length - config.max_new_tokens - resolve.MAX_DEPTH - 1
    chosen = [prompt[-room:] for prompt in prompts[: config.num_prompts]]
    asked: dict[str, Any] = {
        "max_new_tokens": config.max_new_tokens,
        "batch_size": config.batch_size,
    }
    out = api.generate(
        candidate.lm,
        chosen,
        method=method,
        heads=candidate.heads,
        draft=candidate.draft,
        **asked,
        **options,
    )
    num_tokens = sum(row.num_tokens for row in out.stats)
    steps = sum(row.nfe for row in out.stats)
    differing = None
    if resolve.entry_of(method).level == "L0":
        plain = api.generate(candidate.lm, chosen, **asked)
        differing = sum(a != b for a, b in zip(out.tokens, plain.tokens, strict=True))
    return {"acceptance_length": num_tokens / max(steps, 1), "differing": differing}
