"""How a project publishes its heads, as data: which of their tensors make up each of ours."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

Tensors = Mapping[str, np.ndarray]


class Codec(NamedTuple):
    """One of our parameters; both directions only move values, so they are bit-exact.

    Attributes:
        names: their tensors.
        join: their arrays to ours.
        split: ours to their arrays.
    """

    names: tuple[str, ...]
    join: Callable[[list[np.ndarray]], np.ndarray]
    split: Callable[[np.ndarray], list[np.ndarray]]


class Layout(NamedTuple):
    """One project's folder.

    Attributes:
        project: where it is from.
        kind: kind of heads, a file in `heads/`.
        file: the file of tensors that is written.
        matches: (config.json) -> whether a folder is of this layout.
        marks: tensors by which it is told from others of the same config.
        sizes: (config.json, tensors) -> fields of the heads' Shape.
        codecs: (shape, config.json, tensors or None) -> our parameters by name. None when writing.
        target: (config.json, tensors) -> what is known of the model the heads are for.
        config: (shape, target, our parameters by name) -> config.json.
        ignored: (name) -> whether a tensor of theirs is one that nothing reads.
    """

    project: str
    kind: str
    file: str
    matches: Callable[[Mapping[str, Any]], bool]
    sizes: Callable[[Mapping[str, Any], Tensors], dict[str, Any]]
    codecs: Callable[[Any, Mapping[str, Any], Tensors | None], dict[str, Codec]]
    target: Callable[[Mapping[str, Any], Tensors], dict[str, Any]]
    config: Callable[[Any, Mapping[str, Any], Tensors], dict[str, Any]]
    ignored: Callable[[str], bool] = lambda name: False
    marks: tuple[str, ...] = ()


def same(name: str) -> Codec:
    """A tensor as it is."""
    return Codec((name,), lambda arrays: arrays[0], lambda array: [array])


def turned(name: str) -> Codec:
    """A matrix `[out, in]` that we keep as `[in, out]`."""
    return Codec((name,), lambda arrays: arrays[0].T, lambda array: [array.T])


def stacked(parts: Sequence[Codec]) -> Codec:
    """One array of several parameters of equal shape, along a new first axis."""
    sizes = [len(part.names) for part in parts]

    def join(arrays: list[np.ndarray]) -> np.ndarray:
        rest, made = list(arrays), []
        for part, size in zip(parts, sizes, strict=True):
            made.append(part.join(rest[:size]))
            rest = rest[size:]
        return np.stack(made)

    def split(array: np.ndarray) -> list[np.ndarray]:
        return [x for part, own in zip(parts, array, strict=True) for x in part.split(own)]

    return Codec(tuple(name for part in parts for name in part.names), join, split)
