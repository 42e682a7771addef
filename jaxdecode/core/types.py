"""Containers that travel through the loop. Plain pytrees: no functions with logic here.

Dimension letters: B rows of the batch, L slots of the canvas, N nodes of a proposal, W slots of a
window that may be decided, P longest path, C child slots, V vocabulary, K kv heads, H layers,
S cache slots, D hidden width.
"""

import dataclasses
from typing import Any, Literal, TypeVar, dataclass_transform

import jax
from jaxtyping import Array, Bool, Float, Int, Int16, UInt32

T = TypeVar("T")


def static(**kwargs: Any) -> Any:
    """A field that is part of the compiled program's identity rather than of its data."""
    return dataclasses.field(metadata={"static": True}, **kwargs)


@dataclass_transform(frozen_default=True, kw_only_default=True, field_specifiers=(static,))
def pytree(cls: type[T]) -> type[T]:
    """Makes a class a frozen, keyword-only dataclass that JAX treats as a pytree."""
    return jax.tree_util.register_dataclass(dataclasses.dataclass(frozen=True, kw_only=True)(cls))


# How a row ended. Codes, because they live on the device; names are what users see.
RUNNING, STOP_TOKEN, STOP_STRING, MAX_LENGTH = 0, 1, 2, 3
FINISH_REASONS = {STOP_TOKEN: "stop", STOP_STRING: "stop_string", MAX_LENGTH: "length"}


@pytree
class Sampling:
    """How scores become a law, per row. None switches a feature off at compile time.

    Attributes:
        temperature: >= 0; below 1e-5 the law is one-hot at the first maximum.
        top_k: keep the k likeliest tokens; 0 keeps all.
        top_p: keep the smallest set of likeliest tokens with total probability >= top_p.
        min_p: keep tokens with probability >= min_p times the largest.
        repetition_penalty: scores of tokens already in the row are divided (if positive) or
            multiplied (if negative) by this (arXiv:1909.05858 section 4.1).
        logit_bias: added to the scores of every row.
    """

    temperature: Float[Array, "B"]
    top_k: Int[Array, "B"] | None = None
    top_p: Float[Array, "B"] | None = None
    min_p: Float[Array, "B"] | None = None
    repetition_penalty: Float[Array, "B"] | None = None
    logit_bias: Float[Array, "V"] | None = None


@pytree
class Request:
    """What one batch asks for; constant while it runs.

    Attributes:
        key: per-row base key, made from (seed, row identity) and never from the batch slot.
        sampling: the law to draw from.
        stop_tokens: token ids that end a row; -1 is padding.
        stop_table: automaton over tokens that recognises stop strings (`sampling.stop`), or None.
        grammar: number of each row's matcher (`core.grammar`), 0 for rows without one; None if no
            row has one.
    """

    key: UInt32[Array, "B 2"]
    sampling: Sampling
    stop_tokens: Int[Array, "E"]
    stop_table: Int16[Array, "Q V"] | None = None
    grammar: Int[Array, "B"] | None = None


@pytree
class Canvas:
    """The token slots being decoded.

    Attributes:
        tokens: token of each slot; meaningless where open.
        open: True while a slot is undecided. Never derived from the token's value.
        length: slots below this count are final, and so is slot `length`. Under a tree it is the
            pending token: committed, not yet cached, node 0 of the next proposal; all before it
            are cached.
        end: first slot that may not be written; the row is done when it gets there.
        done: finished rows; they stay bit-frozen while others run.
        finish: code of FINISH_REASONS once done.
        stop_state: state of the stop-string automaton after the last committed token.
        commit_step: step of the row at which each slot was decided, from 0; -1 for prompt and
            open slots.
        logprob: log-probability under the target (before the warp) of each decided token.
    """

    tokens: Int[Array, "B L"]
    open: Bool[Array, "B L"]
    length: Int[Array, "B"]
    end: Int[Array, "B"]
    done: Bool[Array, "B"]
    finish: Int[Array, "B"]
    stop_state: Int[Array, "B"]
    commit_step: Int[Array, "B L"]
    logprob: Float[Array, "B L"]


# How several children of one node were drawn: each from the node's whole law; each from what its
# elder siblings left of it; the likeliest tokens, and one draw from what they left.
Draws = Literal["with_replacement", "without_replacement", "likeliest_and_one"]


@pytree
class SparseProbs:
    """A law per node with at most J tokens; entries of probability 0 are padding.

    Attributes:
        tokens: token ids; those of positive probability are distinct within a node.
        probs: their probabilities; they sum to 1 where a node has children.
    """

    tokens: Int[Array, "B N J"]
    probs: Float[Array, "B N J"]


@pytree
class Blend:
    """Input rows that are weighted sums of token embeddings, in place of tokens.

    Attributes:
        tokens: the tokens of each sum.
        weights: their weights; they sum to 1 over the last axis.
    """

    tokens: Int[Array, "B T k"]
    weights: Float[Array, "B T k"]


@pytree
class Superposition:
    """k hypotheses that go through the target as one, and what it takes to extend them.

    Attributes:
        blend: what enters the target at each node.
        scores: log score of each hypothesis; -inf where there is none.
        ended: log scores of the k best texts that are finished; -inf where there is none.
        prior: law of each hypothesis' next token that is mixed with the target's; None without.
    """

    blend: Blend
    scores: Float[Array, "B N k"]
    ended: Float[Array, "B N k"]
    prior: Float[Array, "B N k V"] | None = None


@pytree
class Proposal:
    """Draft tokens of one step as a tree. Node 0 is the pending token.

    The order of nodes is the draft order: among siblings the smaller index was drafted first (its
    rank is lower). Siblings may carry equal tokens: drafts drawn independently are a multiset.

    Attributes:
        tokens: token id per node.
        parent: index of the parent node; -1 at the root; always smaller than the node's own index.
        depth: 0 at the root; a node's position is `length + depth`.
        valid: False for padding; a short draft is a mask, never a new shape.
        max_depth: static bound on the depth of nodes that are no probes; a path has at most
            max_depth + 1 nodes.
        max_children: static bound on the children of all nodes that share one path; only rules
            that read the draft law need it.
        draft_probs: law the children of each node were drawn from; None if nothing was drawn.
        draws: how they were drawn, where nodes have several; None if nothing was drawn. Rules that
            read the law are right for one way only, and refuse the others.
        probe: nodes that are scored but never committed; None if there are none.
        superposed: hypotheses that share the nodes; their blend enters the target instead of
            `tokens`. None for drafts of one text.
    """

    tokens: Int[Array, "B N"]
    parent: Int[Array, "B N"]
    depth: Int[Array, "B N"]
    valid: Bool[Array, "B N"]
    max_depth: int = static()
    max_children: int = static(default=1)
    draft_probs: Float[Array, "B N V"] | SparseProbs | None = None
    draws: Draws | None = static(default=None)
    probe: Bool[Array, "B N"] | None = None
    superposed: Superposition | None = None


@pytree
class Nested:
    """Texts that a row may come to: each with some of R guesses filled in, whichever came first.

    Attributes:
        tokens: their first M rows of the window, the mask token where undecided.
        guesses: which of the guesses each has; no two texts have the same ones.
        slot: the slot of the window that a guess fills.
        token: with what.
        valid: which of the texts exist.
    """

    tokens: Int[Array, "B J M"]
    guesses: Bool[Array, "B J R"]
    slot: Int[Array, "B R"]
    token: Int[Array, "B R"]
    valid: Bool[Array, "B J"]


@pytree
class Reading:
    """Rows that see each other by turns: row i sees itself, and row j if turn[j] <= until[i].

    Attributes:
        turn: when a row is to be seen.
        until: the last turn that a row sees.
    """

    turn: Int[Array, "B N"]
    until: Int[Array, "B N"]


@pytree
class Drafted:
    """Tokens tried in the first J slots that may be decided, one after the other.

    Attributes:
        tokens: what was drawn for each.
        valid: which of them exist; after the first that does not, none does.
        probs: the law that each was drawn from.
    """

    tokens: Int[Array, "B J"]
    valid: Bool[Array, "B J"]
    probs: Float[Array, "B J V"]


@pytree
class Window:
    """The proposal of methods that fill slots in any order: N slots go in, W neighbours decide.

    Attributes:
        tokens: what enters the target; the mask token where a slot is undecided.
        first: slot of the first row.
        num: rows that exist; later ones are padding.
        cached: cache slots below this count are seen, save those that the rows stand for.
        start: first of the W slots that may be decided: start, start + 1, ...
        scored: the row whose hidden state scores each of them: its own, or the one before it; of
            nested texts, of each text in turn, the text as it is first.
        open: which of them are undecided and may be decided now.
        step: earlier steps on this block.
        size: slots of this block that were undecided before its first step.
        calls: earlier steps of the row; keys the noise of draws that may be repeated.
        mask_token: the token of undecided slots; never decided on.
        block: positions per block that see each other, as in `models.config.Denoiser`.
        contrast: what else enters the target in these rows, in a text of its own: scores are moved
            away from what it gives. None without guidance.
        slots: slot of each row, where they are not neighbours; past the canvas for padding.
            None: first, first + 1, ...
        nested: texts that go in beside this one, in rows before its own. None: no others.
        decides: the slots that may be decided, where they are not neighbours. None: start, start
            + 1, ...
        reading: which rows see each other, where not all do. None: all, or as their blocks say.
        drafted: tokens that rows stand for although they are not decided. None: no such.
    """

    tokens: Int[Array, "B N"]
    first: Int[Array, "B"]
    num: Int[Array, "B"]
    cached: Int[Array, "B"]
    start: Int[Array, "B"]
    scored: Int[Array, "B K*W"]
    open: Bool[Array, "B W"]
    step: Int[Array, "B"]
    size: Int[Array, "B"]
    calls: Int[Array, "B"]
    mask_token: int = static()
    block: int = static(default=0)
    contrast: Int[Array, "B N"] | None = None
    slots: Int[Array, "B N"] | None = None
    nested: Nested | None = None
    decides: Int[Array, "B W"] | None = None
    reading: Reading | None = None
    drafted: Drafted | None = None


@pytree
class Candidates:
    """What the target would put into each slot of a window.

    Attributes:
        tokens: its draw.
        logprob: log-probability of that token under the target, before the warp.
        scores: the target's scores, the mask token's at -inf; of several texts, those of the last
            that was reached.
        picked: slots that a verifier which takes whole steps has decided on; None from others.
        last: the slot of the last of these steps, whose token the scores do not know of yet.
        after: the row of the window after which each token belongs in the text, of methods whose
            slots are not the places of a text; None from others.
    """

    tokens: Int[Array, "B W"]
    logprob: Float[Array, "B W"]
    scores: Float[Array, "B W V"]
    picked: Bool[Array, "B W"] | None = None
    last: Int[Array, "B"] | None = None
    after: Int[Array, "B W"] | None = None


@pytree
class Decision:
    """What a commit rule makes of the candidates of a window.

    Attributes:
        commit: slots that take their candidate.
        reopen: decided slots that become undecided again; only of methods that reopen.
        settles: whether what is decided before the row's first undecided slot is final. False
            while it may be reopened: then it only settles with its block.
    """

    commit: Bool[Array, "B W"]
    reopen: Bool[Array, "B W"] | None = None
    settles: bool = static(default=True)


@pytree
class Verdict:
    """What the target decided in one step; entry i belongs to the i-th node of the accepted path.

    Attributes:
        tokens: the target's token after each path node: accepted drafts, then next_token.
        logprob: log-probability of that token under the target, before the warp.
        path: node ids, root first; their keys and values become part of the cache.
        num_accepted: accepted draft tokens; excludes next_token. Entries past it are meaningless.
    """

    tokens: Int[Array, "B P"]
    logprob: Float[Array, "B P"]
    path: Int[Array, "B P"]
    num_accepted: Int[Array, "B"]


@pytree
class Outputs:
    """The k texts of a row of a method that writes several at once, best first, or out of order.

    Attributes:
        tokens: slots of each text, the prompt included.
        logprob: log-probability of each new token under the target, before the warp.
        length: slots in use; 0 where there is no text.
        step: step at which each token was decided; None for that of its slot on the canvas.
    """

    tokens: Int[Array, "B k L"]
    logprob: Float[Array, "B k L"]
    length: Int[Array, "B k"]
    step: Int[Array, "B k L"] | None = None


@pytree
class Stats:
    """Counters of live rows only.

    Attributes:
        nfe: target forward calls the row took part in (prefill excluded).
        num_accepted: draft tokens accepted.
        tokens_forwarded: query tokens pushed through the target in those calls.
    """

    nfe: Int[Array, "B"]
    num_accepted: Int[Array, "B"]
    tokens_forwarded: Int[Array, "B"]


@pytree
class DecodeState:
    """Everything one step reads and writes; donated to each call of the loop.

    Attributes:
        canvas: token slots.
        cache: keys and values of committed tokens, in the cache module's own layout.
        drafter: the drafter's state.
        stats: counters.
        step: steps of the loop, since rows came in if some did; rows count theirs in `stats.nfe`.
    """

    canvas: Canvas
    cache: Any
    drafter: Any
    stats: Stats
    step: Int[Array, ""]
