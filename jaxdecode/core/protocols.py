"""The seams: bundles of pure functions that the loop is given. Signatures are fixed and complete.

A bundle is made once per configuration and is a static argument of the compiled loop; parameters
and states are pytrees that pass through it.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

from jax.sharding import Mesh
from jaxtyping import Array, Float, Int, UInt32

from jaxdecode.core.types import pytree

# Keys and values by layer: a tuple with one array per layer, or one stacked array; the form of the
# parameters decides. Keys are stored transposed.
Keys = Float[Array, "H B K d T"] | tuple[Float[Array, "B K d T"], ...]
Values = Float[Array, "H B K T d"] | tuple[Float[Array, "B K T d"], ...]
Rows = tuple[Keys, Values]


class Weights(NamedTuple):
    """Parameters of all parts of a method; constant while it runs.

    Attributes:
        target: the target's parameters.
        drafter: the drafter's, in its own form; None if it has none. A draft model comes as
            `DraftWeights`.
        heads: trained parts that drafter or verifier read (`heads/`); None if there are none.
    """

    target: Any
    drafter: Any = None
    heads: Any = None


class DraftWeights(NamedTuple):
    """A draft model's parameters, and how its vocabulary relates to the target's.

    Attributes:
        params: the draft model's parameters.
        to_draft: for every target token the draft token that stands for it in the draft model's
            context, -1 for none; None if both models count their tokens alike.
        column: for every target token its column in the draft model's scores, -1 for none; None
            if the columns are the target's tokens.
        head: what the scores are computed with where that is not `params`: a trimmed head.
    """

    params: Any
    to_draft: Int[Array, "V"] | None = None
    column: Int[Array, "V"] | None = None
    head: Any = None


@pytree
class TargetOutput:
    """One forward pass of the target over T new rows.

    Attributes:
        hidden: final hidden states, normalised, ready for the head.
        rows: keys and values of the new rows; nothing was written.
        taps: hidden states by name: "embed", "layer.I" (output of block I), "final".
        logits: float32 scores of every row; None where nobody asked for them.
        allowed: tokens that a grammar lets follow each node, or fit each slot of a window, packed
            (`core.grammar`); None without.
    """

    hidden: Float[Array, "B T D"]
    rows: Rows
    taps: dict[str, Float[Array, "B T D"]]
    logits: Float[Array, "B T V"] | None = None
    allowed: UInt32[Array, "B T M"] | None = None


class Target(NamedTuple):
    """A language model as pure functions: the target, or a draft model.

    forward: (params, tokens [B, T] or Blend or embedded rows [B, T, D], mask program, cached rows
             or None, taps, acts) -> TargetOutput; acts [B, H] says on which rows of the batch
             a layer acts, elsewhere it adds nothing; None: on all
    logits:  (params, hidden [..., D]) -> float32 scores [..., V]

    The parts that forward is made of, for those who need only some of the layers:

    embed:   (params, tokens) -> x [B, T, D]
    layers:  (params, x, mask program, cached rows of these layers, first, last) -> (x, new rows),
             through layers first to last - 1
    norm:    (params, x) -> hidden states that the head reads
    """

    forward: Callable[..., TargetOutput]
    logits: Callable[..., Any]
    embed: Callable[..., Any] | None = None
    layers: Callable[..., Any] | None = None
    norm: Callable[..., Any] | None = None


class Cache(NamedTuple):
    """Keys and values of committed tokens.

    init:  (config, batch, slots, dtype, stacked=) -> state
    read:  (state) -> what Target.forward takes as cached rows
    write: (state, rows, start [B], num [B] or None) -> state; row i of b goes to slot start[b] + i
           if i < num[b]; None: all of them, and the caller guarantees that they fit
    put:   (state, rows, slots [B, T]) -> state; row i of b goes to slot slots[b, i]; those past
           the last slot are dropped
    select: (rows, path [B, P]) -> rows of the path nodes only
    """

    init: Callable[..., Any]
    read: Callable[..., Any]
    write: Callable[..., Any]
    put: Callable[..., Any]
    select: Callable[..., Any]


class Model(NamedTuple):
    """A language model bound to its config: what drafters are made from. Hashable.

    Attributes:
        target: its functions.
        config: its `ModelConfig`.
        kv_dtype: dtype of its keys and values.
        cache: where its keys and values are kept.
        mesh: devices its arrays are split over; None for one device.
        tokenizer: for parts that need to know what tokens say; None where there is none.
    """

    target: Target
    config: Any
    kv_dtype: Any
    cache: Cache
    mesh: Mesh | None = None
    tokenizer: Any = None


class HeadSpec(NamedTuple):
    """Which trained parts a caller gave; hashable.

    Attributes:
        kind: file in `heads/`.
        shape: that file's `Shape`: what decides the sizes of the parameters, beside the target.
    """

    kind: str
    shape: Any


class Models(NamedTuple):
    """The models of a method: the target, and the draft model and heads if the caller gave some."""

    target: Model
    draft: Model | None = None
    heads: HeadSpec | None = None


class Writer(NamedTuple):
    """A model as policies see it: whole runs of the loop.

    Attributes:
        write: (members, texts, options) -> Generation; continues one text per member. A member is
            the number of a row, which draws the row's noise in every run.
        tokenizer: None if the checkpoint has none.
        max_length: tokens of the context.
    """

    write: Callable[..., Any]
    tokenizer: Any
    max_length: int


class Drafter(NamedTuple):
    """Who suggests tokens.

    prepare: (weights) -> weights; once, when the method is made: cuts and reorders parameters
    init:    (weights, request, canvas, view, memory) -> state; once per batch, outside the loop
    absorb:  (weights, state, canvas, start, num_new [B], output) -> state; reads what the target
             computed for the chunk of the prompts in slots `start` on: `taps` and hidden states of
             its C tokens, of which a row's first num_new are its own. The pending token is in no
             chunk. A drafter that has it is initialised before prefill, with an empty view.
    propose: (weights, state, request, canvas, view) -> (Proposal or Window, state)
    score:   (weights, proposal, program, view, taps) -> TargetOutput without logits; how the target
             scores this drafter's proposals, where that is not one plain forward pass over their
             tokens: probes with embeddings of their own, say. Nodes that are no probes must get
             what the plain pass gives them.
    focus:   (weights, state, request, window, candidates) -> (window, state); of windows only:
             fewer slots that may be decided now, chosen once their candidates are known, and what
             `update` is to know of that. None: all that were proposed
    update:  (weights, state, request, canvas, proposal, verdict, output) -> state; canvas is the
             committed one, output.logits are those of the proposal's nodes; for a window the
             verdict are its candidates
    remember: (state) -> memory for the next batch's init; None if nothing outlives a batch.
             Only drafters that cannot change what is emitted (L0) may have one.
    outputs: (state) -> Outputs; only of drafters that carry several texts of a row, or
             one whose slots on the canvas are not in the order of the text
    price:   (weights, cost [W]) -> weights; takes the measured time of a step of every entry of
             `widths`; None if the drafter does not ask what a step costs
    taps:    hidden states the target must return
    widths:  numbers of nodes the target forward is compiled for; the loop takes the smallest that
             holds every valid node of the step. Empty: always all nodes.
    max_depth: the bound of its proposals
    prefilled: whether the prompts are cached before its first proposal; windows take them in
             themselves
    keeps:   whether the target's keys and values outlive a step

    `view` is the target's cache as read; every proposal is a function of the row's own past.
    """

    init: Callable[..., Any]
    propose: Callable[..., Any]
    update: Callable[..., Any]
    prepare: Callable[..., Any] | None = None
    remember: Callable[..., Any] | None = None
    price: Callable[..., Any] | None = None
    outputs: Callable[..., Any] | None = None
    absorb: Callable[..., Any] | None = None
    score: Callable[..., Any] | None = None
    focus: Callable[..., Any] | None = None
    taps: tuple[str, ...] = ()
    widths: tuple[int, ...] = ()
    max_depth: int = 0
    prefilled: bool = True
    keeps: bool = True


class Verifier(NamedTuple):
    """Who checks, and with what law.

    verify: (weights, request, canvas, proposal, output) -> Verdict of a tree, Candidates of a
             window; output.logits are given: of every node, of a window's slots only
    outcomes: (scores [N, V], greedy, proposal, marks) -> [N, V]; the same decision as exact
             probabilities, for proofs: of one row with given drafts, how likely the last accepted
             node is n and the next token v. Scores are warped; marks [N] are the verifier's own.
    taps:    hidden states the target must return
    windows: whether it judges windows; otherwise it judges trees
    """

    verify: Callable[..., Any]
    outcomes: Callable[..., Any] | None = None
    taps: tuple[str, ...] = ()
    windows: bool = False


class Commit(NamedTuple):
    """Which slots of a window become final; None in a `Method` whose proposals are trees.

    select: (weights, request, canvas, window, candidates) -> Decision. Every live row must decide
            at least one slot that it does not reopen for ever, or the row never ends.
    """

    select: Callable[..., Any]


class Method(NamedTuple):
    """One resolved registry line: a choice for each seat of the loop."""

    drafter: Drafter
    verifier: Verifier
    cache: Cache
    commit: Commit | None = None
