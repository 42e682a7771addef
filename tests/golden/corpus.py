"""Reads the goldens of this folder; needs only numpy."""

import json
import pathlib

import numpy as np

FOLDER = pathlib.Path(__file__).parent
TINY = tuple(sorted(path.parent.name for path in FOLDER.glob("tiny/*/golden.npz")))
REAL = tuple(sorted(path.stem for path in FOLDER.glob("*.npz")))


def tiny_folder(name: str) -> pathlib.Path:
    """The checkpoint folder of a tiny model: config.json, config_v4.json, model.safetensors."""
    return FOLDER / "tiny" / name


def load_golden(name: str) -> dict:
    """The arrays of one golden by name (see README.md) and its metadata as the dict `meta`."""
    path = tiny_folder(name) / "golden.npz" if name in TINY else FOLDER / f"{name}.npz"
    with np.load(path, allow_pickle=False) as stored:
        golden = {key: stored[key] for key in stored.files}
    return golden | {"meta": json.loads(str(golden["meta"]))}


def prompts(golden: dict) -> list[list[int]]:
    """The prompts of a golden without their padding."""
    pairs = zip(golden["tokens"], golden["lengths"], strict=True)
    return [row[:length].tolist() for row, length in pairs]
