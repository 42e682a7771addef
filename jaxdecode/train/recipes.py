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
        heads: kind of heads that are trained: a file in `heads/`; None if there are none.
        draft: a draft model is trained; with neither heads nor a draft model it is the target.
        options: settings of the objective that this recipe fixes differently from its defaults.
    """

    objective: str
    method: str
    source: str
    summary: str
    heads: str | None = None
    draft: bool = False
    options: Mapping[str, Any] = MappingProxyType({})


RECIPES = {
    "medusa": Recipe(
        objective="medusa",
        heads="medusa",
        method="medusa",
        source="arXiv:2401.10774",
        summary="heads on the last hidden state; the target is frozen (Medusa-1)",
    ),
    "ppd": Recipe(
        objective="ppd",
        heads="ppd",
        method="ppd",
        source="arXiv:2405.18628",
        summary="embeddings of prompt tokens, by the target's own law further on",
    ),
    "mtp_future": Recipe(
        objective="mtp_future",
        heads="mtp_future",
        method="mtp_future",
        source="arXiv:2507.11851",
        summary="mask tokens, adapters for their rows only, and a sampler",
    ),
    "hidden_transfer": Recipe(
        objective="hidden_transfer",
        heads="hidden_transfer",
        method="hidden_transfer",
        source="arXiv:2404.12022",
        summary="matrices that turn a state into those of the tokens ahead, by the target's law",
    ),
    "hydra": Recipe(
        objective="hydra",
        heads="hydra",
        method="hydra",
        source="arXiv:2402.05109",
        summary="heads that read the tokens before theirs, by the tokens of the text",
    ),
    "hydra_pp": Recipe(
        objective="hydra_pp",
        heads="hydra_pp",
        method="hydra_pp",
        source="arXiv:2402.05109",
        summary="a prefix layer and deeper heads, by the target's own law",
    ),
    "clover2": Recipe(
        objective="clover2",
        heads="clover2",
        method="clover2",
        source="arXiv:2408.00264",
        summary="a state that takes in tokens, by the tokens of the text and the target's states",
    ),
    "clover": Recipe(
        objective="clover",
        heads="clover",
        method="clover",
        source="arXiv:2405.00263",
        summary="a layer and heads that hand on a state, by the tokens of the text",
    ),
    "medusa2": Recipe(
        objective="medusa2",
        heads="medusa",
        method="medusa",
        source="arXiv:2401.10774",
        summary="Medusa heads and their target, which learn together (Medusa-2)",
    ),
}
