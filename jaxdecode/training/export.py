"""What a run leaves behind to decode with: heads, or a whole model."""

import dataclasses
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxdecode.convert import download, pipeline
from jaxdecode.convert import heads as head_files
from jaxdecode.convert.heads import HEADS_FOLDER, Heads
from jaxdecode.convert.open import open_source
from jaxdecode.dist import place
from jaxdecode.language_model import LanguageModel
from jaxdecode.models import decoder
from jaxdecode.training.acceptance import Candidate
from jaxdecode.training.objective import Export
from jaxdecode.training.setup import Setup
from jaxdecode.training.step import Flat

MODEL = "model"


def candidate(setup: Setup, moving: Flat) -> Candidate:
    """What decodes with the parameters of a step."""
    flat = {name: leaf.astype(setup.lm.dtype) for name, leaf in moving.items()}
    made = _export(setup, flat)
    lm, draft, heads = setup.lm, None, None
    if made.heads is not None:
        assert setup.spec is not None
        target = head_files.target_of(setup.lm.config, name_of(setup.lm))
        heads = Heads(spec=setup.spec, params=made.heads, target=target)
    if made.target is not None:
        lm = _with(setup.lm, made.target)
    if made.draft is not None:
        assert setup.draft is not None
        draft = _with(setup.draft, made.draft)
    return Candidate(lm=lm, heads=heads, draft=draft)


def save(setup: Setup, moving: Flat, folder: Path, target: str, notes: dict[str, Any]) -> None:
    """Writes `heads/`, `model/` or both, each whole or not at all; every process must call it.

    Args:
        setup: the run.
        moving: parameters of a step.
        folder: of the run.
        target: name or path that the target was loaded by.
        notes: how they were made, for people.
    """
    made = place.fetch(_export(setup, moving))
    if jax.process_index():
        return
    if made.heads is not None:
        assert setup.spec is not None
        known = head_files.target_of(setup.lm.config, name_of(setup.lm))
        heads = Heads(spec=setup.spec, params=made.heads, target=known, notes=notes)
        head_files.save_heads(heads, folder / HEADS_FOLDER, overwrite=True)
    for lm, changed in ((setup.lm, made.target), (setup.draft, made.draft)):
        if lm is not None and changed is not None:
            arrays = {k: np.asarray(v) for k, v in decoder.flatten(changed).items()}
            if made.denoiser is not None:
                lm = dataclasses.replace(
                    lm, config=dataclasses.replace(lm.config, denoiser=made.denoiser)
                )
            like = open_source(download.resolve(target, progress=False))
            pipeline.save_model(folder / MODEL, lm.config, arrays, like)


def name_of(lm: LanguageModel) -> str:
    """A model's name without the folders above a path: they could be private."""
    return Path(lm.name).name if Path(lm.name).expanduser().exists() else lm.name


def params(setup: Setup, moving: Flat) -> Any:
    """Everything the objective computes with: what moves and what does not."""
    return head_files.nested({**setup.parts.held, **moving})


def _export(setup: Setup, flat: Flat) -> Export:
    return setup.objective.export(params(setup, flat), setup.lm.params)


def _with(lm: LanguageModel, params: Any) -> LanguageModel:
    """The model with other parameters, in the form that decoding likes where it runs."""
    stacked = not isinstance(lm.params["layers"], list)
    if stacked and isinstance(params["layers"], list):
        params = params | {"layers": decoder.stack(params["layers"])}
    return dataclasses.replace(lm, params=params)
