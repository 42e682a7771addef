"""A trace in memory: steps, rows, and the text that they add up to.

Slots and tokens are those of the new text: slot 0 is the first one after the prompt.
"""

import dataclasses
import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from jaxdecode.errors import TraceError

# None where a number would not be finite.
Logprobs = Sequence[float | None]


@dataclasses.dataclass(frozen=True, kw_only=True)
class TreeStep:
    """A step that proposed a tree of draft tokens.

    Attributes:
        tokens: token per node; node 0 is the pending token, which is text already.
        parent: parent of each node, -1 at node 0; parents come first.
        path: the accepted nodes, node 0 first.
        chosen: the target's token after each node of the path.
        logprobs: of those that became text: fewer than `chosen` where the text ended.
    """

    tokens: Sequence[int]
    parent: Sequence[int]
    path: Sequence[int]
    chosen: Sequence[int]
    logprobs: Logprobs

    @property
    def new(self) -> Sequence[int]:
        """What became text: accepted drafts, then perhaps a token of the target's own."""
        return self.chosen[: len(self.logprobs)]

    @property
    def num_drafted(self) -> int:
        """New tokens that were drafts."""
        return min(len(self.path) - 1, len(self.logprobs))

    def problem(self) -> str | None:
        """What cannot be true of a step; None if nothing."""
        size = len(self.tokens)
        if not size or len(self.parent) != size:
            return f"{size} nodes with {len(self.parent)} parents"
        if self.parent[0] != -1 or any(not 0 <= p < i for i, p in enumerate(self.parent) if i):
            return "a parent that does not come before its node"
        inside = all(0 <= node < size for node in self.path)
        if not self.path or len(self.path) != len(self.chosen) or not inside:
            return "a path that is not one of the tree"
        # Drafts may be equal, so a node of the path need not be the parent of the next one.
        for depth, node in enumerate(self.path):
            if self.spelled(node) != list(self.chosen[:depth]):
                return "accepted drafts that the target did not choose"
        if not 1 <= len(self.logprobs) <= len(self.chosen):
            return f"{len(self.logprobs)} new tokens of {len(self.chosen)} chosen ones"
        return None

    def spelled(self, node: int) -> list[int]:
        """Draft tokens on the way to a node, its own the last."""
        tokens = []
        while node > 0:
            tokens.append(self.tokens[node])
            node = self.parent[node]
        return tokens[::-1]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Run:
    """What the target said of neighbouring slots.

    Attributes:
        slot: the first of them.
        tokens: its candidate for each.
        sure: its probability of each as a digit, in tenths, rounded down.
    """

    slot: int
    tokens: Sequence[int]
    sure: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class WindowStep:
    """A step that asked about undecided slots.

    Attributes:
        guesses: what the target said of them.
        filled: slots that were decided, ascending.
        tokens: the token of each.
        logprobs: log-probability of each.
        reopened: decided slots that became undecided again, ascending.
        final: slots before this one are text for good.
    """

    guesses: Sequence[Run]
    filled: Sequence[int]
    tokens: Sequence[int]
    logprobs: Logprobs
    reopened: Sequence[int]
    final: int

    def guessed(self) -> dict[int, int]:
        """Candidate of every slot that was asked about."""
        return {run.slot + i: token for run in self.guesses for i, token in enumerate(run.tokens)}

    def problem(self) -> str | None:
        """What cannot be true of a step; None if nothing."""
        for run in self.guesses:
            if run.slot < 0 or not run.tokens or len(run.sure) != len(run.tokens):
                return f"damaged guesses from slot {run.slot} on"
            if not (run.sure.isascii() and run.sure.isdigit()):
                return f"guesses from slot {run.slot} on whose probabilities are no digits"
        if not len(self.filled) == len(self.tokens) == len(self.logprobs):
            return f"{len(self.filled)} filled slots with {len(self.tokens)} tokens"
        for slots in (self.filled, self.reopened):
            if any(slot >= after for slot, after in itertools.pairwise(slots)):
                return "slots that are not in order"
        guessed = self.guessed()
        for slot, token in zip(self.filled, self.tokens, strict=True):
            if guessed.get(slot) != token:
                return f"slot {slot} filled with what was not guessed"
        return None


Step = TreeStep | WindowStep
KINDS = {"tree": TreeStep, "window": WindowStep}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Row:
    """One text.

    Attributes:
        prompt: its token ids.
        seed: its seed.
        sample: which sample of its prompt it is.
        tokens: the new tokens.
        finish: why it ended.
        steps: what happened, step by step.
    """

    prompt: Sequence[int]
    seed: int
    sample: int
    tokens: Sequence[int]
    finish: str
    steps: Sequence[Any]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Trace:
    """What happened in a generation.

    Attributes:
        model: name of the model.
        method: name of the method.
        level: what the method promises.
        kind: "tree" or "window": what its steps propose.
        options: options of the generation and of the method.
        pieces: bytes that each token adds to a text; empty without a tokenizer.
        names: how the vocabulary writes tokens that add nothing to a text.
        rows: the texts.
    """

    model: str
    method: str
    level: str
    kind: str
    options: Mapping[str, Any]
    pieces: Mapping[int, bytes]
    names: Mapping[int, str]
    rows: Sequence[Row]

    def check(self) -> None:
        """Raises TraceError if the steps of a row do not add up to its tokens."""
        for number, row in enumerate(self.rows):
            tokens = replay(row, f"row {number}")
            if tokens != list(row.tokens):
                raise TraceError(
                    f"row {number}: its steps give other tokens than the trace says; it was "
                    "changed after it was written, or parts are missing."
                )


def replay(row: Row, where: str = "the row") -> list[int]:
    """The new tokens that the steps of a row add up to.

    Raises:
        TraceError: a step cannot follow the one before it; names the step.
    """
    text: dict[int, int] = {}
    final = 0
    for number, step in enumerate(row.steps):
        problem = step.problem() or _conflict(step, text, final, row.prompt)
        if problem is not None:
            raise TraceError(f"{where}, step {number}: {problem}; the trace is damaged.")
        final = apply(step, text, final)
    return [text[slot] for slot in range(final)]


def apply(step: Step, text: dict[int, int], final: int) -> int:
    """Puts what a step decided into `text`, by slot; returns how much of it is final."""
    if isinstance(step, TreeStep):
        text |= enumerate(step.new, final)
        return final + len(step.new)
    for slot in step.reopened:
        del text[slot]
    text |= zip(step.filled, step.tokens, strict=True)
    return step.final


def _conflict(step: Step, text: Mapping[int, int], final: int, prompt: Sequence[int]) -> str | None:
    """Why a step cannot follow a text; None if it can."""
    if isinstance(step, TreeStep):
        pending = text[final - 1] if final else prompt[-1]
        return None if step.tokens[0] == pending else "it begins at another token than the last one"
    for slot in step.reopened:
        if slot not in text or slot < final:
            return f"slot {slot} is reopened, but cannot be"
    twice = [slot for slot in step.filled if slot in text]
    if twice:
        return f"slot {twice[0]} is filled twice"
    decided = set(text) - set(step.reopened) | set(step.filled)
    if step.final < final or any(slot not in decided for slot in range(final, step.final)):
        return f"{step.final} slots are final, but not all of them are decided"
    return None


def joined(traces: Sequence[Trace]) -> Trace:
    """One trace of the rows of several that differ in nothing else."""
    first = traces[0]
    pieces: dict[int, bytes] = {}
    names: dict[int, str] = {}
    for trace in traces:
        pieces |= trace.pieces
        names |= trace.names
    rows = [row for trace in traces for row in trace.rows]
    return dataclasses.replace(first, pieces=pieces, names=names, rows=rows)


def used(rows: Sequence[Row]) -> Iterator[int]:
    """Token ids of a trace, with repetitions."""
    for row in rows:
        yield from row.prompt
        for step in row.steps:
            yield from step.tokens
            if isinstance(step, TreeStep):
                yield from step.chosen
            else:
                yield from step.guessed().values()
