"""Traces made by hand: small ones to break, and large ones to measure."""

import dataclasses
import random

from jaxdecode.trace.steps import Row, Run, Trace, TreeStep, WindowStep

HOSTILE = "</script><img src=x onerror=document.title='taken'>"


def trace(kind: str, rows: list[Row], **changes) -> Trace:
    """A trace of these rows with a piece for every token up to 99."""
    pieces = {token: b"%d " % token for token in range(100)}
    fields = dict(model="toy", method="by_hand", level="L0", options={}, names={}, pieces=pieces)
    return Trace(**(fields | {"kind": kind, "rows": rows} | changes))


def row(steps, tokens, prompt=(1, 2), **changes) -> Row:
    """A row with these steps."""
    fields = dict(prompt=list(prompt), seed=0, sample=0, tokens=list(tokens), finish="length")
    return Row(**(fields | {"steps": list(steps)} | changes))


def tree() -> Trace:
    """Two steps: one of three drafts accepted and a token of its own; then a token alone."""
    first = TreeStep(
        tokens=[2, 7, 8, 9], parent=[-1, 0, 0, 1], path=[0, 1], chosen=[7, 5], logprobs=[-0.5, -1.0]
    )
    second = TreeStep(tokens=[5], parent=[-1], path=[0], chosen=[6], logprobs=[None])
    return trace("tree", [row([first, second], [7, 5, 6])])


def window() -> Trace:
    """Three slots in three steps; the middle one is reopened."""
    steps = [
        WindowStep(
            guesses=[Run(slot=0, tokens=[4, 5, 6], sure="279")],
            filled=[1, 2],
            tokens=[5, 6],
            logprobs=[-0.3, -0.1],
            reopened=[],
            final=0,
        ),
        WindowStep(
            guesses=[Run(slot=0, tokens=[3], sure="9")],
            filled=[0],
            tokens=[3],
            logprobs=[-0.1],
            reopened=[1],
            final=1,
        ),
        WindowStep(
            guesses=[Run(slot=1, tokens=[8], sure="5")],
            filled=[1],
            tokens=[8],
            logprobs=[-0.6],
            reopened=[],
            final=3,
        ),
    ]
    return trace("window", [row(steps, [3, 8, 6])])


def hostile() -> Trace:
    """A trace whose every text would like to be HTML."""
    pieces = {1: b"a ", 2: b"\xe2\x80", 7: HOSTILE.encode(), 5: b"\x1b]0;taken\x07", 6: b"&lt;<!--"}
    names = {9: HOSTILE}
    base = tree()
    rows = [row(base.rows[0].steps, [7, 5, 6], finish=HOSTILE + "\x1b[2J")]
    parts = dict(model=HOSTILE, method=HOSTILE, level=HOSTILE, options={HOSTILE: HOSTILE})
    return trace("tree", rows, pieces=pieces | {8: b"<!-- js -->"}, names=names, **parts)


def large_tree(num_tokens: int = 512, nodes: int = 81) -> Trace:
    """A token a step beside trees that are all refused, with the ids of a large vocabulary."""
    rng, steps, tokens = random.Random(0), [], []
    last = 2
    for _ in range(num_tokens):
        own = rng.randrange(100_000, 150_000)
        drafts = [rng.randrange(50_000) for _ in range(nodes - 1)]
        parent = [-1, *(rng.randrange(i + 1) for i in range(nodes - 1))]
        steps.append(
            TreeStep(
                tokens=[last, *drafts], parent=parent, path=[0], chosen=[own], logprobs=[-1.2345]
            )
        )
        tokens.append(own)
        last = own
    return _spelled(trace("tree", [row(steps, tokens)]))


def large_window(num_tokens: int = 512) -> Trace:
    """A slot a step, from the left, with fresh guesses of all others every time."""
    rng, steps, tokens = random.Random(0), [], []
    for slot in range(num_tokens):
        guessed = [rng.randrange(100_000, 150_000) for _ in range(slot, num_tokens)]
        steps.append(
            WindowStep(
                guesses=[Run(slot=slot, tokens=guessed, sure="4" * len(guessed))],
                filled=[slot],
                tokens=guessed[:1],
                logprobs=[-1.2345],
                reopened=[],
                final=slot + 1,
            )
        )
        tokens.append(guessed[0])
    return _spelled(trace("window", [row(steps, tokens)]))


def _spelled(whole: Trace) -> Trace:
    """With pieces for the tokens of the text, as a model with few favourites would need."""
    return dataclasses.replace(whole, pieces={token: b" word" for token in whole.rows[0].tokens})
