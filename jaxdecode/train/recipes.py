"""RECIPES: what can be trained, on one page. Pure data: it names files and imports none of them."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, NamedTuple


class Recipe(NamedTuple):
    """One thing that can be trained.

    Attributes:
        objective: file in `train/objectives/`.
        method: registry line that decodes with the result, to measure acceptance.
        source: paper.
        summary: one line for listings.
        heads: kind of heads that are trained: a file in `heads/`; None if the target itself is.
        options: settings of the objective that this recipe fixes differently from its defaults.
    """

    objective: str
    method: str
    source: str
    summary: str
    heads: str | None = None
    options: Mapping[str, Any] = MappingProxyType({})


RECIPES = {
    "medusa": Recipe(
        objective="medusa",
        heads="medusa",
        method="medusa",
        source="arXiv:2401.10774",
        summary="heads on the last hidden state; the target is frozen (Medusa-1)",
    ),
}
