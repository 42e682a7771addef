"""Acceptance: held-out prompts decoded by the loop itself, with what has been trained so far."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from jaxdecode import api, resolve
from jaxdecode.convert.heads import Heads
from jaxdecode.errors import InputError
from jaxdecode.language_model import LanguageModel
from jaxdecode.results import Generation
from jaxdecode.training.config import Measuring


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


class Exam:
    """Held-out prompts, and what plain decoding says to them.

    Attributes:
        prompts: token ids; empty if there is nothing to measure.
    """

    def __init__(self, lm: LanguageModel, prompts: Sequence[Sequence[int]], config: Measuring):
        # A prompt must leave room for what is decoded behind it, and for the longest draft.
        room = lm.config.max_length - config.max_new_tokens - resolve.MAX_DEPTH - 1
        self.prompts = [prompt for prompt in prompts if len(prompt) <= room][: config.num_prompts]
        if prompts and not self.prompts:
            raise InputError(
                f"no prompt of data.held_out leaves room for measure.max_new_tokens="
                f"{config.max_new_tokens} in a context of {lm.config.max_length} tokens; lower it."
            )
        self._lm, self._config = lm, config
        self._plain: list[list[int]] | None = None

    def check(self, candidate: Candidate, method: str, options: Mapping[str, Any]) -> None:
        """Refuses what could not be measured, before anything is trained.

        Raises:
            InputError: options that are no options of the method, or not with these heads.
        """
        _, choice = resolve.split(method, dict(options))
        api._engine(candidate.lm, choice, candidate.draft, candidate.heads)

    def measure(
        self, candidate: Candidate, method: str, options: Mapping[str, Any]
    ) -> dict[str, Any]:
        """Tokens per step over all prompts, greedy; and how many texts are not the plain ones.

        The second is None where the method does not promise the tokens of plain decoding.

        Args:
            candidate: what decodes.
            method: registry line.
            options: of the method.
        """
        out = self._decode(
            candidate.lm,
            method=method,
            heads=candidate.heads,
            draft=candidate.draft,
            **options,
        )
        num_tokens = sum(row.num_tokens for row in out.stats)
        steps = sum(row.nfe for row in out.stats)
        differing = None
        if resolve.entry_of(method).level == "L0":
            pairs = zip(out.tokens, self._expected(candidate.lm), strict=True)
            differing = sum(a != b for a, b in pairs)
        return {"acceptance_length": num_tokens / max(steps, 1), "differing": differing}

    def _expected(self, lm: LanguageModel) -> list[list[int]]:
        """Texts of plain decoding; those of the target as it was are decoded once."""
        if lm is not self._lm:
            return self._decode(lm).tokens
        if self._plain is None:
            self._plain = self._decode(lm).tokens
        return self._plain

    def _decode(self, lm: LanguageModel, **options: Any) -> Generation:
        return api.generate(
            lm,
            self.prompts,
            max_new_tokens=self._config.max_new_tokens,
            batch_size=self._config.batch_size,
            **options,
        )
