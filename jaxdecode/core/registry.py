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
        needs: what the caller must give: "draft" (a draft model), "tokenizer" (a model with one),
            "head" (a file with a trained head).
        options: values that this line fixes differently from the files' own defaults.
        refuses: fields of `Options` that must keep their default: the method cannot honour them.
        policy: file in `search/` that calls the loop segment by segment; the seats are then how
            the target writes its own segments.
    """

    drafter: str
    tree: str
    source: str
    summary: str
    verifier: str = "sample_match"
    commit: str = "prefix"
    cache: str = "dense"
    level: Literal["L0", "L1", "L2", "L3"] = "L0"
    reference: str = "ar"
    tier: Literal["stable", "lab"] = "stable"
    needs: tuple[str, ...] = ()
    options: Mapping[str, Any] = MappingProxyType({})
    refuses: tuple[str, ...] = ()
    policy: str | None = None


METHODS = {
    "ar": Entry(
        drafter="none",
        tree="root",
        source="-",
        summary="plain autoregressive decoding: one token per forward pass",
    ),
    "prompt_lookup": Entry(
        drafter="prompt_lookup",
        tree="chain",
        source="github.com/apoorvumang/prompt-lookup-decoding",
        summary="copies what followed the last occurrence of the current suffix in the row itself",
    ),
    "suffix_decoding": Entry(
        drafter="suffix_decoding",
        tree="chain",
        source="arXiv:2411.04975",
        summary="copies the continuation that followed the current suffix most often",
    ),
    "aggressive_decoding": Entry(
        drafter="aggressive_decoding",
        tree="chain",
        source="arXiv:2205.10350",
        summary="copies the prompt from a pointer on; resumes at places that occur once",
    ),
    "jacobi": Entry(
        drafter="jacobi",
        tree="chain",
        source="arXiv:2305.10427",
        summary="guesses a window of tokens and corrects all of them in every forward pass",
    ),
    "s2d": Entry(
        drafter="s2d",
        tree="chain",
        source="arXiv:2407.01955",
        summary="a draft model that is read after its first layers where they are sure",
        needs=("draft",),
    ),
    "lookahead": Entry(
        drafter="lookahead",
        tree="probes and chains",
        source="arXiv:2402.02057",
        summary="n-grams read off a window of Jacobi guesses that is scored beside the draft",
    ),
    "layerskip": Entry(
        drafter="layerskip",
        tree="chain",
        source="arXiv:2404.16710",
        summary="the target's own first layers draft, the whole target verifies",
    ),
    "del": Entry(
        drafter="dynamic_exit",
        tree="chain",
        source="arXiv:2504.05598",
        summary="early exit that picks its layer and draft length from running match rates",
    ),
    "triforce": Entry(
        drafter="triforce",
        tree="chain",
        source="arXiv:2404.11912",
        tier="lab",
        summary="the target drafts from the chunks of its own cache that fit best, and what is new",
    ),
    "token_recycling": Entry(
        drafter="token_recycling",
        tree="static",
        source="arXiv:2408.08696",
        summary="a tree of the followers that the target last scored highest after each token",
    ),
    "superposed": Entry(
        drafter="superposed",
        tree="root",
        verifier="superposed",
        level="L3",
        source="arXiv:2405.18400",
        tier="lab",
        summary="several texts of a prompt from one forward pass per token",
        refuses=("temperature", "top_k", "top_p", "min_p", "repetition_penalty", "stop"),
    ),
    "draft_model": Entry(
        drafter="draft_model",
        tree="chain",
        source="arXiv:2211.17192",
        summary="a smaller language model drafts a chain with the noise of the target's own draws",
        needs=("draft",),
    ),
    "vocabtrim": Entry(
        drafter="vocabtrim",
        tree="chain",
        source="arXiv:2506.22694",
        summary="draft_model with a head that is cut down to the most frequent tokens",
        needs=("draft",),
    ),
    "speculative_sampling": Entry(
        drafter="draft_chains",
        tree="chain",
        verifier="rejection",
        level="L1",
        source="arXiv:2211.17192",
        summary="a chain drawn from a smaller language model, tested token by token",
        needs=("draft",),
    ),
    "block_verification": Entry(
        drafter="draft_chains",
        tree="chain",
        verifier="block",
        level="L1",
        source="arXiv:2403.10444",
        summary="a chain drawn from a smaller language model, tested as a whole",
        needs=("draft",),
    ),
    "spectr": Entry(
        drafter="draft_chains",
        tree="chains",
        verifier="kseq",
        level="L1",
        source="arXiv:2310.15141",
        summary="several independent chains of a smaller language model, tested by K-SEQ",
        needs=("draft",),
        options=MappingProxyType({"num_chains": 2}),
    ),
    "rsd_c": Entry(
        drafter="draft_tree",
        tree="branching",
        verifier="rejection",
        level="L1",
        source="arXiv:2402.14160",
        summary="a tree drawn without replacement from a smaller language model",
        needs=("draft",),
        options=MappingProxyType({"children": "race"}),
    ),
    "rsd_s": Entry(
        drafter="draft_beam",
        tree="beams",
        verifier="rejection",
        level="L1",
        source="arXiv:2402.14160",
        summary="stochastic beams of a smaller language model",
        needs=("draft",),
    ),
    "optimal_mdsd": Entry(
        drafter="draft_tree",
        tree="branching",
        verifier="greedy_multi_draft",
        level="L1",
        source="arXiv:2502.18779",
        summary="likeliest tokens and one draw below every node, with the best possible acceptance",
        needs=("draft",),
        options=MappingProxyType({"children": "greedy"}),
    ),
    "auto": Entry(
        drafter="auto",
        tree="chain or static",
        source="-",
        summary="copies or recycles, as much per step as pays at this machine's measured prices",
    ),
    "ngram_recycling": Entry(
        drafter="ngram_recycling",
        tree="static",
        source="arXiv:2408.08696",
        summary="a chain copied from the row's own text beside the tree of token_recycling",
    ),
    "aded": Entry(
        drafter="aded",
        tree="dynamic",
        source="arXiv:2407.12021",
        summary="a best-first tree from a tri-gram table that follows the text",
    ),
    "stand": Entry(
        drafter="stand",
        tree="static",
        verifier="rejection",
        level="L1",
        source="arXiv:2506.04708",
        tier="lab",
        summary="a tree drawn from the target's earlier laws in like contexts",
    ),
    "specreason": Entry(
        drafter="none",
        tree="root",
        commit="segment",
        level="L3",
        source="arXiv:2504.07891",
        tier="lab",
        summary="a small model writes step by step, and the target judges each by one digit",
        needs=("draft", "tokenizer"),
        refuses=("stop",),
        policy="specreason",
    ),
    "typical_acceptance": Entry(
        drafter="prompt_lookup",
        tree="chain",
        verifier="typical",
        level="L3",
        source="arXiv:2401.10774",
        tier="lab",
        summary="keeps drafts that the target finds likely enough, given how unsure it is",
    ),
    "bild": Entry(
        drafter="draft_model",
        tree="chain",
        verifier="bild",
        level="L3",
        source="arXiv:2302.07863",
        tier="lab",
        summary="a small model writes while it is sure; the target replaces what surprises it",
        needs=("draft",),
        options=MappingProxyType({"num_draft": 10, "min_prob": 0.6}),
    ),
    "judge_decoding": Entry(
        drafter="prompt_lookup",
        tree="chain",
        verifier="judge",
        level="L3",
        source="arXiv:2501.19309",
        tier="lab",
        summary="a trained linear head on the target's hidden states lets drafts pass",
        needs=("head",),
    ),
    "reflective_verify": Entry(
        drafter="reflective",
        tree="chain",
        verifier="reflective",
        level="L3",
        source="arXiv:2505.18629",
        tier="lab",
        summary="the target reads the draft twice and keeps what it would keep on reflection",
    ),
}
