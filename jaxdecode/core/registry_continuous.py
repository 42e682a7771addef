"""CONTINUOUS: the lines that denoise a text as vectors. Pure data; part of METHODS."""

from functools import partial

from jaxdecode.core.entry import CONSTRAINTS, Entry

# A text is rounded to tokens all at once, so nothing can depend on the tokens before.
_Line = partial(
    Entry,
    drafter="none",
    tree="none",
    commit="rounding",
    cache="none",
    level="L3",
    tier="lab",
    refuses=("repetition_penalty", *CONSTRAINTS),
)

CONTINUOUS = {
    "neodiff": _Line(
        continuous="neodiff",
        source="arXiv:2505.22165",
        summary="denoises all tokens' vectors at once, each with a noise level of its own",
        heads="neodiff",
    ),
    "cosmos": _Line(
        continuous="cosmos",
        source="arXiv:2506.21170",
        summary="denoises the few vectors that a text is pressed into, and says it from them",
        heads="cosmos",
    ),
    "ladic": _Line(
        continuous="ladic",
        source="arXiv:2404.10763",
        summary="denoises a caption's states under guidance, and says the least sure places again",
        heads="ladic",
    ),
}
