"""A small model on this machine's CPU, planned as if the CPU were a slice."""

import dataclasses
from typing import Any

import jax

from jaxdecode.dist import mesh as meshes
from jaxdecode.models.config import ModelConfig
from jaxdecode.plan import hardware
from jaxdecode.plan import setup as setups
from jaxdecode.plan.hardware import Topology

CONFIG = ModelConfig(
    family="llama",
    vocab_size=256,
    num_layers=3,
    hidden_size=32,
    intermediate_size=64,
    num_heads=4,
    num_kv_heads=2,
    head_dim=16,
    max_length=512,
    query_scale=0.25,
    layer_windows=(0, 8, 0),
)
# Numbers of weights: what rows are multiplied with, the embedding, and the norms.
QKV, OUT, MLP = 32 * 2 * 4 * 16, 32 * 64, 3 * 32 * 64
MATRICES = 3 * (QKV + OUT + MLP) + 256 * 32
EMBEDDING, NORMS = 256 * 32, 7 * 32


def topology(hbm_bytes: int = 10**9) -> Topology:
    """A slice of one device with that much memory."""
    chip = dataclasses.replace(hardware.CHIPS["h100"], hbm_bytes=hbm_bytes)
    return Topology(chip, (1, 1))


def setup(config: ModelConfig = CONFIG, **options: Any) -> setups.Setup:
    """The model on one CPU device, layers stacked."""
    made = {"batch": 2, "context": 100, "dtype": "float32", "kv_dtype": "float32"}
    made |= {"attention": "xla", "layers": "stacked"}
    return setups.setup(config, meshes.make("data=1", jax.devices()[:1]), **made | options)
