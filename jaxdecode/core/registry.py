"""METHODS: the zoo on one page. Pure data: it imports nothing and names files, not functions.

A row says which file sits in each seat of the loop, what is promised, and against which reference.
Everything in the table is tested by tests/contract; nothing outside it exists.
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Literal, NamedTuple


class Entry(NamedTuple):
    """One method.

    Attributes:
        drafter: file in `drafters/`.
        tree: shape of the proposal.
        verifier: file in `verifiers/`.
        commit: which slots become final.
        cache: file in `caches/`.
        level: exactness: L0 token-identical to the reference, L1 same law, L2 within a stated
            bound, L3 heuristic.
        reference: the sampler the level is measured against.
        source: paper.
        tier: "stable" or "lab": what we promise about the interface.
        summary: one line for listings.
        needs: what the caller must give: "draft" (a draft model).
        options: values that this line fixes differently from the files' own defaults.
        refuses: fields of `Options` that must keep their default: the method cannot honour them.
        policy: file in `search/` that calls the loop segment by segment; the seats are then how
            the target writes its own segments.
    """

    drafter: str
    tree: str
    verifier: str
    commit: str
    cache: str
    level: Literal["L0", "L1", "L2", "L3"]
    reference: str
    source: str
    tier: Literal["stable", "lab"]
    summary: str
    needs: tuple[str, ...] = ()
    options: Mapping[str, Any] = MappingProxyType({})
    refuses: tuple[str, ...] = ()
    policy: str | None = None


METHODS = {
    "ar": Entry(
        drafter="none",
        tree="root",
        verifier="sample_match",
        commit="prefix",
        cache="dense",
        level="L0",
        reference="ar",
        source="-",
        tier="stable",
        summary="plain autoregressive decoding: one token per forward pass",
    ),
    "prompt_lookup": Entry(
        drafter="prompt_lookup",
        tree="chain",
        verifier="sample_match",
        commit="prefix",
        cache="dense",
        level="L0",
        reference="ar",
        source="github.com/apoorvumang/prompt-lookup-decoding",
        tier="stable",
        summary="copies what followed the last occurrence of the current suffix in the row itself",
    ),
    "jacobi": Entry(
        drafter="jacobi",
        tree="chain",
        verifier="sample_match",
        commit="prefix",
        cache="dense",
        level="L0",
        reference="ar",
        source="arXiv:2305.10427",
        tier="stable",
        summary="guesses a window of tokens and corrects all of them in every forward pass",
    ),
    "token_recycling": Entry(
        drafter="token_recycling",
        tree="static",
        verifier="sample_match",
        commit="prefix",
        cache="dense",
        level="L0",
        reference="ar",
        source="arXiv:2408.08696",
        tier="stable",
        summary="a tree of the followers that the target last scored highest after each token",
    ),
    "superposed": Entry(
        drafter="superposed",
        tree="root",
        verifier="superposed",
        commit="prefix",
        cache="dense",
        level="L3",
        reference="ar",
        source="arXiv:2405.18400",
        tier="lab",
        summary="several texts of a prompt from one forward pass per token",
        refuses=("temperature", "top_k", "top_p", "min_p", "repetition_penalty", "stop"),
    ),
}
