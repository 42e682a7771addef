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
        needs: what the caller must give: "draft" (a draft model), "tokenizer" (a model with one).
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
    "suffix_decoding": Entry(
        drafter="suffix_decoding",
        tree="chain",
        verifier="sample_match",
        commit="prefix",
        cache="dense",
        level="L0",
        reference="ar",
        source="arXiv:2411.04975",
        tier="stable",
        summary="copies the continuation that followed the current suffix most often",
    ),
    "aggressive_decoding": Entry(
        drafter="aggressive_decoding",
        tree="chain",
        verifier="sample_match",
        commit="prefix",
        cache="dense",
        level="L0",
        reference="ar",
        source="arXiv:2205.10350",
        tier="stable",
        summary="copies the prompt from a pointer on; resumes at places that occur once",
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
    "s2d": Entry(
        drafter="s2d",
        tree="chain",
        verifier="sample_match",
        commit="prefix",
        cache="dense",
        level="L0",
        reference="ar",
        source="arXiv:2407.01955",
        tier="stable",
        summary="a draft model that is read after its first layers where they are sure",
        needs=("draft",),
    ),
    "lookahead": Entry(
        drafter="lookahead",
        tree="probes and chains",
        verifier="sample_match",
        commit="prefix",
        cache="dense",
        level="L0",
        reference="ar",
        source="arXiv:2402.02057",
        tier="stable",
        summary="n-grams read off a window of Jacobi guesses that is scored beside the draft",
    ),
    "layerskip": Entry(
        drafter="layerskip",
        tree="chain",
        verifier="sample_match",
        commit="prefix",
        cache="dense",
        level="L0",
        reference="ar",
        source="arXiv:2404.16710",
        tier="stable",
        summary="the target's own first layers draft, the whole target verifies",
    ),
    "del": Entry(
        drafter="dynamic_exit",
        tree="chain",
        verifier="sample_match",
        commit="prefix",
        cache="dense",
        level="L0",
        reference="ar",
        source="arXiv:2504.05598",
        tier="stable",
        summary="early exit that picks its layer and draft length from running match rates",
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
    "draft_model": Entry(
        drafter="draft_model",
        tree="chain",
        verifier="sample_match",
        commit="prefix",
        cache="dense",
        level="L0",
        reference="ar",
        source="arXiv:2211.17192",
        tier="stable",
        summary="a smaller language model drafts a chain with the noise of the target's own draws",
        needs=("draft",),
    ),
    "vocabtrim": Entry(
        drafter="vocabtrim",
        tree="chain",
        verifier="sample_match",
        commit="prefix",
        cache="dense",
        level="L0",
        reference="ar",
        source="arXiv:2506.22694",
        tier="stable",
        summary="draft_model with a head that is cut down to the most frequent tokens",
        needs=("draft",),
    ),
    "speculative_sampling": Entry(
        drafter="draft_chains",
        tree="chain",
        verifier="rejection",
        commit="prefix",
        cache="dense",
        level="L1",
        reference="ar",
        source="arXiv:2211.17192",
        tier="stable",
        summary="a chain drawn from a smaller language model, tested token by token",
        needs=("draft",),
    ),
    "block_verification": Entry(
        drafter="draft_chains",
        tree="chain",
        verifier="block",
        commit="prefix",
        cache="dense",
        level="L1",
        reference="ar",
        source="arXiv:2403.10444",
        tier="stable",
        summary="a chain drawn from a smaller language model, tested as a whole",
        needs=("draft",),
    ),
    "spectr": Entry(
        drafter="draft_chains",
        tree="chains",
        verifier="kseq",
        commit="prefix",
        cache="dense",
        level="L1",
        reference="ar",
        source="arXiv:2310.15141",
        tier="stable",
        summary="several independent chains of a smaller language model, tested by K-SEQ",
        needs=("draft",),
        options=MappingProxyType({"num_chains": 2}),
    ),
    "rsd_c": Entry(
        drafter="draft_tree",
        tree="branching",
        verifier="rejection",
        commit="prefix",
        cache="dense",
        level="L1",
        reference="ar",
        source="arXiv:2402.14160",
        tier="stable",
        summary="a tree drawn without replacement from a smaller language model",
        needs=("draft",),
        options=MappingProxyType({"children": "race"}),
    ),
    "rsd_s": Entry(
        drafter="draft_beam",
        tree="beams",
        verifier="rejection",
        commit="prefix",
        cache="dense",
        level="L1",
        reference="ar",
        source="arXiv:2402.14160",
        tier="stable",
        summary="stochastic beams of a smaller language model",
        needs=("draft",),
    ),
    "optimal_mdsd": Entry(
        drafter="draft_tree",
        tree="branching",
        verifier="greedy_multi_draft",
        commit="prefix",
        cache="dense",
        level="L1",
        reference="ar",
        source="arXiv:2502.18779",
        tier="stable",
        summary="likeliest tokens and one draw below every node, with the best possible acceptance",
        needs=("draft",),
        options=MappingProxyType({"children": "greedy"}),
    ),
    "auto": Entry(
        drafter="auto",
        tree="chain or static",
        verifier="sample_match",
        commit="prefix",
        cache="dense",
        level="L0",
        reference="ar",
        source="-",
        tier="stable",
        summary="copies or recycles, as much per step as pays at this machine's measured prices",
    ),
    "ngram_recycling": Entry(
        drafter="ngram_recycling",
        tree="static",
        verifier="sample_match",
        commit="prefix",
        cache="dense",
        level="L0",
        reference="ar",
        source="arXiv:2408.08696",
        tier="stable",
        summary="a chain copied from the row's own text beside the tree of token_recycling",
    ),
    "aded": Entry(
        drafter="aded",
        tree="dynamic",
        verifier="sample_match",
        commit="prefix",
        cache="dense",
        level="L0",
        reference="ar",
        source="arXiv:2407.12021",
        tier="stable",
        summary="a best-first tree from a tri-gram table that follows the text",
    ),
    "stand": Entry(
        drafter="stand",
        tree="static",
        verifier="rejection",
        commit="prefix",
        cache="dense",
        level="L1",
        reference="ar",
        source="arXiv:2506.04708",
        tier="lab",
        summary="a tree drawn from the target's earlier laws in like contexts",
    ),
    "specreason": Entry(
        drafter="none",
        tree="root",
        verifier="sample_match",
        commit="segment",
        cache="dense",
        level="L3",
        reference="ar",
        source="arXiv:2504.07891",
        tier="lab",
        summary="a small model writes step by step, and the target judges each by one digit",
        needs=("draft", "tokenizer"),
        refuses=("stop",),
        policy="specreason",
    ),
}
