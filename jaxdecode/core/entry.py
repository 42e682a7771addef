"""What one line of the registry says."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Literal, NamedTuple

# Options that constrain a text. Methods that write several texts at once, or slots in any order,
# cannot honour them.
CONSTRAINTS = ("json_schema", "regex", "grammar")


class Entry(NamedTuple):
    """One method.

    Attributes:
        drafter: file in `drafters/`.
        tree: shape of the proposal; "window" for slots that are filled in any order.
        verifier: file in `verifiers/`.
        commit: which slots become final: "prefix", the accepted path of a tree; "segment", what
            a policy keeps; or a file in `commits/`, a rule for the slots of a window.
        cache: file in `caches/`.
        level: exactness: L0 token-identical to the reference, L1 same law, L2 within a stated
            bound, L3 heuristic.
        reference: the sampler the level is measured against.
        source: paper.
        tier: "stable" or "lab": what we promise about the interface.
        summary: one line for listings.
        needs: what the caller must give: "draft" (a draft model), "tokenizer" (a model with one),
            "insertions" (a model trained to insert).
        heads: kind of trained parts that the caller must give: a file in `heads/`.
        options: values that this line fixes differently from the files' own defaults.
        refuses: fields of `Options` that must keep their default: the method cannot honour them.
        policy: file in `search/` that calls the loop segment by segment; the seats are then how
            the target writes its own segments.
        continuous: file in `continuous/` that denoises a text as vectors, in a loop of its own;
            nobody sits in the seats then.
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
    heads: str | None = None
    options: Mapping[str, Any] = MappingProxyType({})
    refuses: tuple[str, ...] = ()
    policy: str | None = None
    continuous: str | None = None

    @property
    def on_loop(self) -> bool:
        """Whether one run of the loop writes a text."""
        return self.policy is None and self.continuous is None

    @property
    def fills(self) -> bool:
        """Whether it fills slots in any order, which takes a model trained to."""
        return self.tree == "window"
