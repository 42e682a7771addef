"""Small runs on a tiny checkpoint, and what they saved."""

import dataclasses
import json
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp

from jaxdecode import language_model
from jaxdecode.convert import pipeline
from jaxdecode.convert.open import open_source
from jaxdecode.models import decoder
from jaxdecode.models.config import Denoiser
from jaxdecode.training import whole

HANDLERS = {"state": ocp.StandardCheckpointHandler(), "place": ocp.JsonCheckpointHandler()}
TINY = Path(__file__).parents[1] / "golden" / "tiny" / "llama"


def denoiser(folder):
    """The tiny checkpoint as a model that fills slots; 95 is its mask token."""
    lm = language_model.load(str(TINY), progress=False)
    config = dataclasses.replace(lm.config, denoiser=Denoiser(mask_token=95))
    arrays = {k: np.asarray(v) for k, v in decoder.flatten(whole.apart(lm.params)).items()}
    pipeline.save_model(folder, config, arrays, open_source(TINY))
    return folder


def write_data(folder, *, num=24, seed=0, name="train.jsonl"):
    """Random texts of 10 to 30 tokens, of which the first 4 are the prompt."""
    rng = np.random.default_rng(seed)
    path = folder / name
    lines = [
        {"tokens": rng.integers(0, 90, rng.integers(10, 30)).tolist(), "prompt_length": 4}
        for _ in range(num)
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return str(path)


def config(folder, **changes):
    """A run of Medusa in a few seconds; keyword arguments replace settings."""
    base = {
        "recipe": "medusa",
        "target": str(TINY),
        "shape": {"num_heads": 2},
        "data": {"train": write_data(folder), "max_length": 48},
        "optimizer": {"lr": 1e-2},
        "batch_size": 4,
        "steps": 12,
        "checkpoint": {"every": 4},
        "log": {"every": 3},
    }
    return base | changes


def saved(folder):
    """Arrays and place of the last checkpoint of a run, whatever devices it was saved from."""
    here = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    with ocp.CheckpointManager(
        Path(folder).absolute() / "steps", item_handlers=HANDLERS
    ) as manager:
        step = manager.latest_step()
        known = manager.item_metadata(step)["state"]
        known = getattr(known, "tree", known)
        like = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=here), known)
        args = ocp.args.Composite(
            state=ocp.args.StandardRestore(like), place=ocp.args.JsonRestore()
        )
        found = manager.restore(step, args=args)
        return step, found["state"], dict(found["place"])


def assert_same(a, b):
    """Two runs saved the same: every bit of parameters and optimizer, and the place in the data."""
    (step, state, place), (other_step, other_state, other_place) = saved(a), saved(b)
    assert step == other_step
    assert place == other_place
    names, leaves = zip(*jax.tree_util.tree_leaves_with_path(state), strict=True)
    others = jax.tree.leaves(other_state)
    assert len(leaves) == len(others) and len(leaves) > 6
    for name, leaf, other in zip(names, leaves, others, strict=True):
        assert np.asarray(leaf).tobytes() == np.asarray(other).tobytes(), name
