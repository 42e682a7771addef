"""FILL: the lines that fill slots in any order. Pure data; part of METHODS in `registry.py`."""

from functools import partial
from types import MappingProxyType

from jaxdecode.core.entry import CONSTRAINTS, Entry

# Grammars are followed from left to right; over a canvas, an expression is an automaton.
UNORDERED = ("json_schema", "grammar")
# What most lines have in common; a line says what is different.
_Line = partial(
    Entry,
    drafter="denoise",
    tree="window",
    verifier="denoise",
    level="L3",
    reference="llada",
    refuses=UNORDERED,
)

FILL = {
    "llada": _Line(
        commit="quota",
        cache="none",
        level="L0",
        source="arXiv:2502.09992",
        summary="fills masked slots, a fixed number per step, those it is surest of first",
    ),
    "fast_dllm": _Line(
        commit="threshold",
        source="arXiv:2505.22618",
        summary="fills every slot it is sure enough of; keys and values renewed once per block",
        options=MappingProxyType({"block_length": 32, "reuse": "dual"}),
    ),
    "fast_dllm_factor": _Line(
        commit="factor",
        source="arXiv:2505.22618",
        summary="fast_dllm with as many slots per step as its theorem allows",
        options=MappingProxyType({"block_length": 32, "reuse": "dual"}),
    ),
    "fast_dllm_v2": _Line(
        drafter="sub_blocks",
        commit="threshold",
        source="arXiv:2509.26328",
        summary="fast_dllm for models with blocks: part by part of a block, the first slot alone",
    ),
    "dream": _Line(
        commit="quota",
        source="arXiv:2508.15487",
        summary="fills by a linear clock, the slots of the clearest law first",
        options=MappingProxyType({"schedule": "linear", "order": "entropy"}),
    ),
    "dream_origin": _Line(
        commit="ancestral",
        reference="first_hitting",
        source="arXiv:2508.15487",
        summary="decides every slot by a linear clock's chance, in a given number of steps",
        options=MappingProxyType({"steps": 512}),
    ),
    "mdlm": _Line(
        commit="ancestral",
        reference="first_hitting",
        source="arXiv:2406.07524",
        summary="undoes the hiding of slots as it was done: each by its own chance",
        options=MappingProxyType({"steps": 1000}),
    ),
    "edlm": _Line(
        verifier="energy",
        refuses=CONSTRAINTS,
        commit="ancestral",
        reference="mdlm",
        source="arXiv:2410.21357",
        summary="mdlm that draws several texts per step; a left-to-right model weighs them",
        needs=("draft",),
        options=MappingProxyType({"steps": 1000}),
    ),
    "first_hitting": _Line(
        commit="ancestral",
        cache="none",
        reference="first_hitting",
        level="L0",
        source="arXiv:2409.02908",
        summary="fills one slot per pass, in a uniformly random order",
    ),
    "ass": _Line(
        commit="quota",
        source="arXiv:2509.23924",
        summary="fills 1, 2, 4, ... slots: as many passes as a power of two needs",
        options=MappingProxyType({"schedule": "doubling"}),
    ),
    "dimple": _Line(
        commit="confident",
        source="arXiv:2505.16990",
        summary="fills every slot it is sure of, or what a schedule gives where it is not",
    ),
    "dparallel": _Line(
        commit="entropy",
        source="arXiv:2509.26488",
        summary="fills every slot of little entropy; for models trained to be certain",
        options=MappingProxyType({"block_length": 32}),
    ),
    "eb_sampler": _Line(
        commit="entropy_bound",
        source="arXiv:2505.24857",
        summary="fills as many slots as can cost only so many nats of dependence",
    ),
    "prophet": _Line(
        commit="early_answer",
        source="arXiv:2508.19982",
        summary="fills all that is left once the target has made up its mind",
    ),
    "eoser": _Line(
        commit="late_end",
        source="arXiv:2509.23924",
        summary="holds end tokens back while it is early, so that a whole text fills at once",
    ),
    "adablock": _Line(
        drafter="adablock",
        commit="threshold",
        reference="fast_dllm",
        source="arXiv:2509.26432",
        summary="fast_dllm with blocks that end where a line or sentence is likely to",
        options=MappingProxyType({"reuse": "dual"}),
    ),
    "cfg": _Line(
        drafter="guided",
        commit="quota",
        source="arXiv:2502.09992",
        summary="llada guided away from what the target would write without the given text",
    ),
    "rcr": _Line(
        commit="running",
        source="arXiv:2508.13148",
        summary="keeps the surest slots of a block, and undoes those that fall behind",
        options=MappingProxyType({"block_length": 32}),
    ),
    "remdm": _Line(
        commit="remask",
        reference="mdlm",
        source="arXiv:2503.00307",
        summary="mdlm that hides some of what it decided again, so that mistakes can go",
    ),
    "ddvla": _Line(
        commit="second_look",
        source="arXiv:2508.20072",
        summary="undoes slots that the target no longer believes in, a few per step",
    ),
    "magnet": _Line(
        commit="spans",
        source="arXiv:2401.04577",
        summary="fills spans of neighbouring slots, few at first and many at the end",
    ),
    "genmol": _Line(
        drafter="guided",
        commit="quota",
        source="arXiv:2501.06158",
        summary="one slot per pass, by confidence with noise that settles; may be guided",
        options=MappingProxyType(
            {
                "order": "log_probability",
                "order_noise": 0.5,
                "anneal": True,
                "guidance": 0.0,
                "hidden_share": 0.3,
            }
        ),
    ),
    "dkv_cache": _Line(
        drafter="delayed",
        commit="quota",
        source="arXiv:2505.15781",
        summary="llada that reuses keys and values of a slot a step after it was decided",
    ),
    "ilm": _Line(
        drafter="insertion",
        verifier="insertion",
        commit="picked",
        cache="none",
        level="L0",
        reference="ilm",
        source="arXiv:2505.05755",
        summary="inserts one token per pass, wherever in the text one is most wanted",
        needs=("insertions",),
        refuses=("stop", "stop_tokens", *CONSTRAINTS),
    ),
    "freedave": _Line(
        drafter="freedave",
        verifier="nested",
        commit="picked",
        level="L0",
        source="arXiv:2510.00294",
        summary="the tokens of llada: tries its next steps at once and takes those that are right",
        refuses=("repetition_penalty", *CONSTRAINTS),
    ),
    "any_subset": _Line(
        drafter="any_subset",
        verifier="ranked",
        commit="picked",
        cache="none",
        level="L0",
        reference="any_subset",
        source="arXiv:2504.20456",
        summary="one slot per pass in a fixed order, each told by those before it",
        options=MappingProxyType({"num_draft": 0}),
        refuses=("repetition_penalty", *CONSTRAINTS),
    ),
    "assd": _Line(
        drafter="any_subset",
        verifier="ranked",
        commit="picked",
        cache="none",
        level="L1",
        reference="any_subset",
        source="arXiv:2504.20456",
        summary="the law of any_subset: drafts the next slots of the order and tests all at once",
        refuses=("repetition_penalty", *CONSTRAINTS),
    ),
    "learn2pd": _Line(
        commit="learn2pd",
        heads="learn2pd",
        tier="lab",
        source="arXiv:2509.25188",
        summary="fills what a trained filter takes for right, by the block's probabilities",
        options=MappingProxyType({"block_length": 32}),
    ),
    "tracelock": _Line(
        commit="tracelock",
        heads="tracelock",
        tier="lab",
        source="arXiv:2605.24697",
        summary="fills the few slots that a trained controller trusts most",
        options=MappingProxyType({"block_length": 32}),
    ),
    "adjust_joint": _Line(
        verifier="adjust_joint",
        commit="picked",
        heads="adjust_joint",
        tier="lab",
        refuses=CONSTRAINTS,
        source="arXiv:2509.22738",
        summary="fills several slots per pass, each told by those before it by a trained layer",
        options=MappingProxyType({"block_length": 32}),
    ),
}
