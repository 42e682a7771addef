"""Models so small that the exact law of everything they emit can be written down.

They are ordinary decoders with few tokens, so every drafter runs on them as it would on a real
model, and the law is computed by one plain causal pass over all prefixes: no cache, no tree.
"""

import functools
import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxdecode import api
from jaxdecode.convert import heads as head_files
from jaxdecode.convert.heads import Heads
from jaxdecode.core.masks import MaskProgram
from jaxdecode.core.protocols import HeadSpec
from jaxdecode.models import decoder
from jaxdecode.models.config import Denoiser, ModelConfig

VOCAB = 6


def config(**changes: Any) -> ModelConfig:
    """A model of few tokens and narrow layers; keyword arguments replace fields."""
    base: dict[str, Any] = dict(
        family="llama",
        vocab_size=VOCAB,
        num_layers=2,
        hidden_size=8,
        intermediate_size=8,
        num_heads=2,
        num_kv_heads=1,
        head_dim=4,
        max_length=256,
        query_scale=0.5,
        layer_windows=(0, 0),
    )
    return ModelConfig(**(base | changes))


@functools.lru_cache
def model(*, blend: float = 0.0, sharpness: float = 1.5) -> api.LanguageModel:
    """A random model whose next token depends on all of its past.

    Args:
        blend: how far its parameters lie from those of the model with blend 0, towards those of
            an unrelated one: a draft model that is right some of the time.
        sharpness: standard deviation of its scores.
    """
    built = config()
    own, other = (_random(built, seed, sharpness) for seed in (1, 2))
    params = jax.tree.map(lambda a, b: (1 - blend) * a + blend * b, own, other)
    return api.from_params(built, params, name="toy")


@functools.lru_cache
def denoiser(*, sharpness: float = 1.5, inserts: bool = False) -> api.LanguageModel:
    """A random model that fills undecided slots; the last of its tokens is the mask token.

    Args:
        sharpness: standard deviation of its scores.
        inserts: it inserts tokens instead.
    """
    built = config(denoiser=Denoiser(mask_token=VOCAB - 1, inserts=inserts))
    return api.from_params(built, _random(config(), 1, sharpness), name="toy")


def _random(built: ModelConfig, seed: int, sharpness: float) -> Any:
    flat, structure = jax.tree.flatten(decoder.init_params(built, jax.random.key(0), jnp.float32))
    keys = jax.random.split(jax.random.key(seed), len(flat))
    # Scales of norms stay as they are; kernels are large enough that layers and context matter.
    flat = [
        leaf if leaf.ndim == 1 else jax.random.normal(key, leaf.shape) * leaf.shape[-1] ** -0.5
        for leaf, key in zip(flat, keys, strict=True)
    ]
    params = jax.tree.unflatten(structure, flat)
    params["head"]["kernel"] *= sharpness
    return params


@functools.lru_cache
def heads(kind: str, lm: api.LanguageModel) -> Heads:
    """Random heads of a kind for a toy: wrong most of the time, as an adversary's."""
    return random_heads(HeadSpec(kind, head_files.module_of(kind).Shape()), lm)


def random_heads(spec: HeadSpec, lm: api.LanguageModel) -> Heads:
    """Random heads of a kind and shape."""
    params = head_files.initial(spec, lm.config, jax.random.key(0), lm.params)
    flat, structure = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.key(1), len(flat))
    noisy = [
        leaf + 0.3 * jax.random.normal(key, leaf.shape, leaf.dtype)
        if jnp.issubdtype(leaf.dtype, jnp.floating)
        else leaf
        for leaf, key in zip(flat, keys, strict=True)
    ]
    target = head_files.target_of(lm.config, lm.name)
    return Heads(spec=spec, params=jax.tree.unflatten(structure, noisy), target=target)


def markov(table: np.ndarray) -> api.LanguageModel:
    """A decoder whose next token has the law `table[last token]`: a Markov chain in closed form.

    Its embeddings are one-hot, its layers add nothing, and its head is the logarithm of the table.
    """
    size = len(table)
    built = config(vocab_size=size, hidden_size=size, norm_eps=1e-12)
    params = jax.tree.map(
        jnp.zeros_like, decoder.init_params(built, jax.random.key(0), jnp.float32)
    )
    params["embed"]["embedding"] = jnp.eye(size)
    params["final_norm"]["scale"] = jnp.full(size, size**-0.5)
    params["head"]["kernel"] = jnp.asarray(np.log(table).T, jnp.float32)
    return api.from_params(built, params, name="markov")


def joint_law(
    lm: api.LanguageModel, prompt: tuple[int, ...], num_new: int, temperature: float
) -> np.ndarray:
    """Probability of every continuation of `num_new` tokens: one axis per token, float64."""
    size = lm.config.vocab_size
    law = np.ones(())
    for depth in range(num_new):
        prefixes = list(itertools.product(range(size), repeat=depth))
        rows = np.asarray([[*prompt, *prefix] for prefix in prefixes], np.int32)
        scores = np.asarray(_last_scores(lm.params, rows, target=lm.target), np.float64)
        scores = (scores - scores.max(-1, keepdims=True)) / temperature
        step = np.exp(scores) / np.exp(scores).sum(-1, keepdims=True)
        law = law[..., None] * step.reshape(law.shape + (size,))
    return law


@functools.partial(jax.jit, static_argnames="target")
def _last_scores(params, rows, *, target):
    batch, width = rows.shape
    program = MaskProgram(
        cached=jnp.zeros(batch, jnp.int32),
        positions=jnp.broadcast_to(jnp.arange(width, dtype=jnp.int32), rows.shape),
        num_new=jnp.full(batch, width, jnp.int32),
    )
    return target.logits(params, target.forward(params, rows, program, None).hidden[:, -1])
