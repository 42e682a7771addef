"""The one place that makes a mesh: from `data=2,model=8` and devices, real or abstract."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import Mesh

from jaxdecode.errors import InputError, UnknownNameError, near_matches

# Rows of a batch are split over "data", heads, MLP width and vocabulary over "model".
AXES: tuple[str, ...] = ("data", "model")


def parse(text: str) -> dict[str, int]:
    """`data=2,model=8` as axis sizes; axes that are not named have size 1.

    Raises:
        UnknownNameError: an axis other than AXES.
        InputError: a size that is no positive integer, or an axis named twice.
    """
    sizes = dict.fromkeys(AXES, 1)
    named = set()
    for part in filter(None, (part.strip() for part in text.split(","))):
        name, _, size = (piece.strip() for piece in part.partition("="))
        if name not in AXES:
            raise UnknownNameError(
                f"mesh axis {name!r} is not known.{near_matches(name, list(AXES))} "
                f"Write for example data=2,model=4."
            )
        if name in named:
            raise InputError(f"mesh {text!r} names axis {name!r} twice.")
        if not size.isdecimal() or int(size) < 1:
            raise InputError(f"mesh axis {name}={size!r} is not valid; it must be an integer >= 1.")
        named.add(name)
        sizes[name] = int(size)
    return sizes


def make(sizes: Mapping[str, int] | str, devices: Sequence[Any] | None = None) -> Mesh:
    """A mesh over all of the devices, neighbours of an axis being neighbours on the network.

    Devices of several slices (or of several hosts that only a data-centre network joins) are split
    between the slices along "data", so that "model" never leaves a slice.

    Args:
        sizes: size per axis, or text for `parse`.
        devices: all devices of this program by default.

    Raises:
        InputError: the sizes do not multiply to the number of devices, or "data" cannot be split
            between the slices.
    """
    sizes = parse(sizes) if isinstance(sizes, str) else {a: sizes.get(a, 1) for a in AXES}
    devices = list(jax.devices() if devices is None else devices)
    shape, needed = tuple(sizes[axis] for axis in AXES), math.prod(sizes.values())
    if needed != len(devices):
        raise InputError(
            f"mesh {describe(sizes)} needs {needed} devices, but there are {len(devices)}; "
            f"choose sizes that multiply to {len(devices)}."
        )
    # Devices of a lone slice have no such attribute.
    slices = len({getattr(device, "slice_index", 0) for device in devices})
    if slices == 1:
        return Mesh(_grid(shape, devices), AXES)
    if sizes["data"] % slices:
        raise InputError(
            f"mesh {describe(sizes)} spans {slices} slices, but data={sizes['data']} does not "
            f"divide by {slices}; give data a multiple of {slices}."
        )
    inner = (sizes["data"] // slices, sizes["model"])
    grid = mesh_utils.create_hybrid_device_mesh(
        inner, (slices, 1), devices, allow_split_physical_axes=True
    )
    return Mesh(grid, AXES)


def describe(sizes: Mapping[str, int]) -> str:
    """The text that `parse` reads."""
    return ",".join(f"{axis}={size}" for axis, size in sizes.items())


def _grid(shape: tuple[int, ...], devices: Sequence[Any]) -> np.ndarray:
    if devices[0].platform != "tpu":
        # No torus: neighbours in the list are neighbours on the machine.
        return np.asarray(devices, dtype=object).reshape(shape)
    return mesh_utils.create_device_mesh(shape, devices, allow_split_physical_axes=True)
