"""FILL: the lines that fill slots in any order. Pure data; part of METHODS in `registry.py`."""

from types import MappingProxyType

from jaxdecode.core.entry import Entry

FILL = {
    "llada": Entry(
        drafter="denoise",
        tree="window",
        verifier="denoise",
        commit="quota",
        cache="none",
        reference="llada",
        source="arXiv:2502.09992",
        summary="fills masked slots, a fixed number per step, those it is surest of first",
    ),
    "fast_dllm": Entry(
        drafter="denoise",
        tree="window",
        verifier="denoise",
        commit="threshold",
        level="L3",
        reference="llada",
        source="arXiv:2505.22618",
        summary="fills every slot it is sure enough of; keys and values renewed once per block",
        options=MappingProxyType({"block_length": 32, "reuse": "dual"}),
    ),
    "fast_dllm_factor": Entry(
        drafter="denoise",
        tree="window",
        verifier="denoise",
        commit="factor",
        level="L3",
        reference="llada",
        source="arXiv:2505.22618",
        summary="fast_dllm with as many slots per step as its theorem allows",
        options=MappingProxyType({"block_length": 32, "reuse": "dual"}),
    ),
}
