"""TPU slices by name: what Cloud TPU calls them, how many chips they have, which runtime they boot.

Types, shapes and runtimes are those of the Cloud TPU pages on v4, v5e, v5p, v6e and on software
versions. How many hosts a slice has is not here: the pages and what is delivered differ, so
programs ask the slice itself.
"""

import dataclasses
import math
import re

_FLAT = ("1x1", "2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16")
_DEEP = ("2x2x1", "2x2x2", "2x2x4", "2x4x4", "4x4x4", "4x4x8", "4x8x8", "8x8x8")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Family:
    """Chips of one generation.

    Attributes:
        type: first part of the accelerator type.
        runtime: software version that a VM boots for JAX.
        shapes: topologies that a type without further flags gives.
        cores: how many the last part of the type counts per chip.
    """

    type: str
    runtime: str
    shapes: tuple[str, ...]
    cores: int = 1


FAMILIES = {
    "v4": Family(type="v4", runtime="tpu-ubuntu2204-base", shapes=_DEEP, cores=2),
    "v5e": Family(type="v5litepod", runtime="v2-alpha-tpuv5-lite", shapes=_FLAT),
    "v5p": Family(type="v5p", runtime="v2-alpha-tpuv5", shapes=_DEEP, cores=2),
    "v6e": Family(type="v6e", runtime="v2-alpha-tpuv6e", shapes=_FLAT),
}


@dataclasses.dataclass(frozen=True)
class Slice:
    """One kind of slice.

    Attributes:
        type: accelerator type, such as v5litepod-16.
        chips: how many there are; JAX shows one device per chip.
        runtime: software version for it.
    """

    type: str
    chips: int
    runtime: str


def find(name: str) -> Slice:
    """The slice of an accelerator type (v5litepod-16) or of a topology (v5e:4x4).

    Raises:
        ValueError: there is no such slice; the message says what there is.
    """
    if name.startswith(("tpu7", "v7")):
        raise ValueError("the Cloud TPU API knows no TPU7x; it runs on GKE only")
    return _by_topology(name) if ":" in name else _by_type(name)


def _by_topology(name: str) -> Slice:
    chip, _, shape = name.partition(":")
    family = FAMILIES.get(chip)
    if family is None:
        raise ValueError(f"write one of {', '.join(FAMILIES)} before the colon, such as v5e:4x4")
    if shape not in family.shapes:
        raise ValueError(f"shapes of {chip} are {', '.join(family.shapes)}")
    return _slice(family, math.prod(map(int, shape.split("x"))))


def _by_type(name: str) -> Slice:
    match = re.fullmatch(r"([a-z0-9]+)-([0-9]+)", name)
    family = next((f for f in FAMILIES.values() if match and f.type == match[1]), None)
    if match is None or family is None:
        types = ", ".join(f"{family.type}-N" for family in FAMILIES.values())
        raise ValueError(f"write one of {types}, or a topology such as v5e:4x4")
    chips, rest = divmod(int(match[2]), family.cores)
    sizes = [math.prod(map(int, shape.split("x"))) for shape in family.shapes]
    # Larger slices of deep families come in too many shapes to list.
    known = chips in sizes or (family.shapes is _DEEP and chips > sizes[-1] and chips % 64 == 0)
    if rest or not known:
        listed = ", ".join(f"{family.type}-{size * family.cores}" for size in sizes)
        raise ValueError(f"slices of this family are {listed}")
    return _slice(family, chips)


def _slice(family: Family, chips: int) -> Slice:
    return Slice(f"{family.type}-{chips * family.cores}", chips, family.runtime)
