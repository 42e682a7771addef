"""RECIPES: what can be trained, on one page. Pure data: it names files and imports none of them."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Literal, NamedTuple


class Recipe(NamedTuple):
    """One thing that can be trained.

    Attributes:
        objective: file in `training/objectives/`.
        method: registry line that decodes with the result, to measure acceptance.
        source: paper.
        summary: one line for listings.
        heads: kind of heads that are trained: a file in `heads/`; None if there are none.
        draft: a draft model is trained; with neither heads nor a draft model it is the target.
        options: settings of the objective that this recipe fixes differently from its defaults.
        measure: what held-out texts tell of the result: "acceptance" of the method's drafts, or
            the "loss".
    """

    objective: str
    method: str
    source: str
    summary: str
    heads: str | None = None
    draft: bool = False
    options: Mapping[str, Any] = MappingProxyType({})
    measure: Literal["acceptance", "loss"] = "acceptance"


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
    "layerskip": Recipe(
        objective="early_exit",
        method="layerskip",
        source="arXiv:2404.16710",
        summary="the target itself, to be read after any of its layers",
    ),
    "del": Recipe(
        objective="early_exit",
        method="del",
        source="arXiv:2504.05598",
        summary="as layerskip; decoding picks the layer by itself",
    ),
    "s2d": Recipe(
        objective="s2d",
        draft=True,
        method="s2d",
        source="arXiv:2407.01955",
        summary="a draft model that is read after its first layers too, cut from the target",
    ),
    "fastdraft": Recipe(
        objective="fastdraft",
        draft=True,
        method="draft_model",
        source="arXiv:2411.11055",
        summary="a draft model by the next token: of any text, then of the target's answers",
    ),
    "tvdpp": Recipe(
        objective="tvdpp",
        draft=True,
        method="draft_model",
        source="arXiv:2403.00858",
        summary="a draft model by rewards for tokens to which it gives too little",
    ),
    "cllm": Recipe(
        objective="consistency",
        method="jacobi",
        source="arXiv:2403.00835",
        summary="the target itself, to leap from any Jacobi guess to the fixed point",
    ),
    "ceed_vla": Recipe(
        objective="consistency",
        method="ceed_vla",
        source="arXiv:2506.13725",
        summary="as cllm, but the text teaches where the target's fixed point is far from it",
        options=MappingProxyType({"max_deviation": 0.25, "causal": 1.0}),
    ),
    "judge": Recipe(
        objective="judge",
        heads="judge",
        method="judge_decoding",
        source="arXiv:2501.19309",
        summary="a linear head that tells good tokens from mistakes, by the target's state",
    ),
    "dflash": Recipe(
        objective="dflash",
        heads="dflash",
        method="dflash",
        source="arXiv:2602.06036",
        summary="a drafter that guesses a block at once, conditioned on layers of the target",
    ),
    "falcon": Recipe(
        objective="falcon",
        heads="falcon",
        method="falcon",
        source="arXiv:2412.12639",
        summary="a drafter of states in blocks, with glances at the answers",
    ),
    "lud": Recipe(
        objective="lud",
        method="lud",
        source="arXiv:2405.15208",
        summary="the target learns to finish lexical units at pads",
    ),
    "flash_sd": Recipe(
        objective="flash_sd",
        heads="flash_sd",
        method="flash_sd",
        source="arXiv:2505.12728",
        summary="a drafter of states, several from one row, and queries that mix images",
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
    "chimera": Recipe(
        objective="chimera",
        heads="chimera",
        method="chimera",
        source="arXiv:2402.15758",
        summary="trigrams and a layer on the target's states, by the tokens of the text",
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
    "eagle1": Recipe(
        objective="eagle",
        heads="eagle",
        method="eagle1",
        source="arXiv:2401.15077",
        summary="a layer on the target's states, by its next states and laws",
    ),
    "eagle2": Recipe(
        objective="eagle",
        heads="eagle",
        method="eagle2",
        source="arXiv:2406.16858",
        summary="as eagle1, measured in a tree that grows where the layer is surest",
    ),
    "eagle3": Recipe(
        objective="eagle3",
        heads="eagle3",
        method="eagle3",
        source="arXiv:2503.01840",
        summary="a layer on three depths of the target, trained on its own outputs",
    ),
    "next_token": Recipe(
        objective="next_token",
        method="ar",
        source="",
        summary="the target itself, by the next token",
        measure="loss",
    ),
    "mdlm": Recipe(
        objective="mdlm",
        method="llada",
        source="arXiv:2406.07524",
        summary="the target fills masked tokens, from all others; also LLaDA's losses and MD4's",
        measure="loss",
    ),
    "ilm": Recipe(
        objective="ilm",
        method="ilm",
        source="arXiv:2505.05755",
        summary="the target inserts what is missing from a text, anywhere in it",
        measure="loss",
    ),
    "bd3": Recipe(
        objective="bd3",
        method="llada",
        source="arXiv:2503.09573",
        summary="the target fills masked tokens of a block, from the blocks before it",
        measure="loss",
    ),
    "fast_dllm_v2": Recipe(
        objective="fast_dllm_v2",
        method="llada",
        source="arXiv:2509.26328",
        summary="as bd3, from autoregressive weights, whose scores stay one place ahead",
        measure="loss",
    ),
    "efficient_dlm": Recipe(
        objective="efficient_dlm",
        method="llada",
        source="arXiv:2512.14067",
        summary="as bd3, from autoregressive weights; late tokens of a block are masked more",
        measure="loss",
    ),
    "dimple": Recipe(
        objective="dimple",
        method="dimple",
        source="arXiv:2505.16990",
        summary="autoregressive weights, on answers from left to right first, then in any order",
        measure="loss",
    ),
    "dparallel": Recipe(
        objective="dparallel",
        method="llada",
        source="arXiv:2509.26488",
        summary="a model that fills masked tokens gets surer of those it has right",
        measure="loss",
    ),
    "cj_grpo": Recipe(
        objective="cj_grpo",
        method="eoser",
        source="arXiv:2509.23924",
        summary="a model that fills masked tokens, by rewards for answers it filled itself",
        measure="loss",
    ),
    "learn2pd": Recipe(
        objective="learn2pd",
        heads="learn2pd",
        method="learn2pd",
        source="arXiv:2509.25188",
        summary="a filter that tells which candidates of a block are right, by replays",
        measure="loss",
    ),
    "tracelock": Recipe(
        objective="tracelock",
        heads="tracelock",
        method="tracelock",
        source="arXiv:2605.24697",
        summary="a controller that tells which candidates will stand, by the sampler's traces",
        measure="loss",
    ),
    "adjust_joint": Recipe(
        objective="adjust_joint",
        heads="adjust_joint",
        method="adjust_joint",
        source="arXiv:2509.22738",
        summary="a layer that says what the target would say after more slots are filled",
        measure="loss",
    ),
    "edlm_nce": Recipe(
        objective="edlm_nce",
        heads="edlm_nce",
        method="edlm_nce",
        source="arXiv:2410.21357",
        summary="an energy that tells what a text has in a block from what the target draws there",
        measure="loss",
    ),
    "ctrldiff": Recipe(
        objective="ctrldiff",
        heads="ctrldiff",
        method="ctrldiff",
        source="arXiv:2505.14455",
        summary="a classifier of what texts have, by labels in their prompts",
        measure="loss",
    ),
    "ctrldiff_blocks": Recipe(
        objective="ctrldiff_blocks",
        heads="ctrldiff_blocks",
        method="ctrldiff_blocks",
        source="arXiv:2505.14455",
        summary="a policy that says how long a block shall be, by what sizes cost and save",
        measure="loss",
    ),
    "neodiff": Recipe(
        objective="neodiff",
        heads="neodiff",
        method="neodiff",
        source="arXiv:2505.22165",
        summary="vectors of tokens under noise, each with a level of its own",
        measure="loss",
    ),
    "cosmos": Recipe(
        objective="cosmos",
        heads="cosmos",
        method="cosmos",
        source="arXiv:2506.21170",
        summary="a coder of texts into a few vectors, and then what tells these from noise",
        measure="loss",
    ),
    "ladic": Recipe(
        objective="ladic",
        heads="ladic",
        method="ladic",
        source="arXiv:2404.10763",
        summary="states of captions half way up the target, under noise, and a reader of them",
        measure="loss",
    ),
}
