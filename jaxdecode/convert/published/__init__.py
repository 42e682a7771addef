"""Heads as their authors publish them, in and out: one file per project.

Only safetensors are read: most projects publish pickle files, which can run code, so these are
converted to safetensors first, in an environment that the user trusts.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import load_file, save_file

from jaxdecode.convert.atomic import atomic_directory
from jaxdecode.convert.heads import Heads, flattened, nested, shape_of
from jaxdecode.convert.published import eagle, hydra, medusa
from jaxdecode.convert.published.layout import Layout
from jaxdecode.convert.safetensors import read_json, refuse_pickle
from jaxdecode.core.protocols import HeadSpec
from jaxdecode.errors import CorruptCheckpointError, InputError, UnsupportedError

LAYOUTS: tuple[Layout, ...] = (medusa.LAYOUT, hydra.LAYOUT, hydra.PREFIX, eagle.THIRD, eagle.LAYOUT)


def recognise(path: Path) -> Layout | None:
    """The layout of a folder of published heads; None if it is something else."""
    if not (path / "config.json").is_file() or (path / "manifest.json").is_file():
        return None
    config = read_json(path / "config.json")
    found = (x for x in LAYOUTS if x.matches(config) and (not x.marks or _has(path, x.marks)))
    return next(found, None)


def read(path: Path) -> Heads:
    """Heads from a published folder.

    Raises:
        InputError: not a folder that is known.
        UnsafeCheckpointError: its tensors are pickled.
        CorruptCheckpointError: a tensor is missing, unknown or of another shape.
    """
    layout = recognise(path)
    if layout is None:
        known = ", ".join(layout.project for layout in LAYOUTS)
        raise InputError(f"{path} holds no published heads that are known; known: {known}.")
    config, tensors = read_json(path / "config.json"), _tensors(path)
    spec = HeadSpec(layout.kind, shape_of(layout.kind, layout.sizes(config, tensors)))
    codecs = layout.codecs(spec.shape, config, tensors)
    wanted = {name for codec in codecs.values() for name in codec.names}
    unknown = sorted(name for name in tensors.keys() - wanted if not layout.ignored(name))
    missing = sorted(wanted - tensors.keys())
    if unknown or missing:
        fault = f"lacks {missing[:4]}" if missing else f"has {unknown[:4]}, which have no place"
        raise CorruptCheckpointError(f"{path} {fault} in {layout.project}'s layout.")
    try:
        flat = {
            ours: codec.join([tensors[name] for name in codec.names])
            for ours, codec in codecs.items()
        }
    except ValueError as error:
        raise CorruptCheckpointError(f"{path}: tensors do not fit together: {error}.") from None
    notes = {"published": {"layout": layout.project, "config": config}}
    return Heads(spec=spec, params=nested(flat), target=layout.target(config, tensors), notes=notes)


def write(heads: Heads, path: Path, *, overwrite: bool = False) -> None:
    """Heads to a folder in the layout of their kind's authors.

    Raises:
        UnsupportedError: nobody publishes such heads, or they have parts that the layout has not.
        DestinationExistsError: the folder exists, and `overwrite` is False.
    """
    layout = next((layout for layout in LAYOUTS if layout.kind == heads.spec.kind), None)
    if layout is None:
        kinds = ", ".join(sorted({layout.kind for layout in LAYOUTS}))
        raise UnsupportedError(
            f"heads of kind {heads.spec.kind!r} have no published layout; those of {kinds} do."
        )
    flat = {name: np.asarray(leaf) for name, leaf in flattened(heads.params).items()}
    config = _config(layout, heads, flat)
    tensors: dict[str, np.ndarray] = {}
    codecs = layout.codecs(heads.spec.shape, config, None)
    if rest := sorted(flat.keys() - codecs.keys()):
        raise UnsupportedError(f"{layout.project}'s layout has no place for {rest[:4]}.")
    for ours, codec in codecs.items():
        parts = zip(codec.names, codec.split(flat[ours]), strict=True)
        tensors |= {name: np.ascontiguousarray(part) for name, part in parts}
    size = sum(tensor.nbytes for tensor in tensors.values())
    with atomic_directory(path, overwrite=overwrite, num_bytes=size) as folder:
        save_file(tensors, folder / layout.file)
        (folder / "config.json").write_text(json.dumps(config, indent=2), encoding="utf-8")


def _config(layout: Layout, heads: Heads, flat: dict[str, np.ndarray]) -> dict[str, Any]:
    """The published config that the heads came with, or one like it."""
    kept = heads.notes.get("published", {})
    if kept.get("layout") == layout.project:
        return dict(kept["config"])
    return layout.config(heads.spec.shape, heads.target, flat)


def _has(path: Path, marks: tuple[str, ...]) -> bool:
    """Whether a folder's file of tensors names all of these; reads only what is in it."""
    files = sorted(path.glob("*.safetensors"))
    if len(files) != 1:
        return False
    try:
        with safe_open(files[0], "numpy") as tensors:
            return set(marks) <= set(tensors.keys())
    except (SafetensorError, OSError):
        return False


def _tensors(path: Path) -> dict[str, np.ndarray]:
    files = sorted(path.glob("*.safetensors"))
    if not files:
        for pickled in sorted([*path.glob("*.pt"), *path.glob("*.bin")]):
            refuse_pickle(pickled)
    if len(files) != 1:
        raise InputError(
            f"{path} has {len(files)} .safetensors files; expected one with the heads."
        )
    try:
        return load_file(files[0])
    except (SafetensorError, OSError) as error:
        raise CorruptCheckpointError(f"{files[0]} is not readable: {error}") from None
