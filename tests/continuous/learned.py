"""A task that is learned in seconds: copy the prompt, then say as many tokens by chance.

The first token of a prompt says how long it is.
"""

import functools

import jax
import jax.numpy as jnp

from jaxdecode.convert import heads as head_files
from jaxdecode.convert.heads import Heads
from jaxdecode.training.objective import Batch
from tests import toys
from tests.training import gate

LOW, HIGH = 3, 11
SHORTEST, LONGEST = 2, 4
NEODIFF = {
    "latent_size": 16,
    "width": 32,
    "num_heads": 2,
    "num_encoder_layers": 1,
    "num_layers": 1,
    "num_level_layers": 1,
    "max_length": 12,
}


def texts(key, num):
    """Prompts of 2 to 4 tokens and their answers, side by side, in rows of 12."""
    size, tokens = jax.random.split(key)
    length = jax.random.randint(size, (num, 1), SHORTEST, LONGEST + 1)
    drawn = jax.random.randint(tokens, (num, 3 * LONGEST), LOW, HIGH)
    drawn = drawn.at[:, :1].set(LOW + length - SHORTEST)
    place = jnp.broadcast_to(jnp.arange(3 * LONGEST), drawn.shape)
    copied = jnp.take_along_axis(drawn, jnp.maximum(place - length, 0), axis=1)
    real = place < 3 * length
    is_copy = (place >= length) & (place < 2 * length)
    return Batch(
        tokens=jnp.where(is_copy, copied, drawn),
        positions=place,
        segments=real.astype(jnp.int32),
        weight=(real & (place >= length)).astype(jnp.float32),
    )


@functools.lru_cache
def heads(kind, sizes, steps, lr, rows=16):
    """Heads of a kind that have learned the task; `sizes` are pairs."""
    lm = toys.model()
    made, spec = gate.objective(kind, shape=dict(sizes))
    fresh = made._replace(
        loss=lambda params, target, data, key, moment: made.loss(
            params, target, texts(key, rows), key, moment
        )
    )
    params, losses = gate.train(fresh, lm, None, steps=steps, lr=lr)
    target = head_files.target_of(lm.config, lm.name)
    return Heads(spec=spec, params=params, target=target), losses
