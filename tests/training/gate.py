"""The overfit gate: a drafter that was trained on one text drafts all of it.

What is trained and what decodes must agree on offsets, positions, features and caches; a mistake in
any of them shows here, where a loss curve would not show it.
"""

import functools
import importlib

import jax
import jax.numpy as jnp
import numpy as np
import optax

import jaxdecode as jd
from jaxdecode.convert import heads as head_files
from jaxdecode.convert.heads import Heads
from jaxdecode.core.protocols import HeadSpec, Models, Weights
from jaxdecode.evals import toys as smallest
from jaxdecode.training.objective import Batch, Moment
from jaxdecode.training.recipes import RECIPES
from tests import toys

PROMPT = [3, 1, 4, 1, 5, 9, 2, 6]
# For losses that do not depend on it.
MOMENT = Moment(jnp.int32(0), 1)


def draft_of(recipe: str):
    """The draft model that a recipe starts from: another toy; None if it trains none."""
    return toys.model(seed=5) if RECIPES[recipe].draft else None


def objective(recipe: str, *, shape=None, lm=None, **settings):
    """The objective of a recipe on a toy target, and the spec of its heads."""
    lm, line, draft = lm or toys.model(), RECIPES[recipe], draft_of(recipe)
    spec = None
    if line.heads is not None:
        spec = HeadSpec(line.heads, head_files.shape_of(line.heads, shape or {}))
    module = importlib.import_module(f"jaxdecode.training.objectives.{line.objective}")
    models = Models(lm.bound, draft and draft.bound, spec)
    return module.make(module.Config(**{**line.options, **settings}), models), spec


def random_heads(kind: str, sizes, lm=None) -> Heads:
    """Heads of these sizes for a toy, moved away from where training begins."""
    spec = HeadSpec(kind, head_files.shape_of(kind, sizes))
    return smallest.random_heads(spec, lm or toys.model())


@functools.lru_cache
def text(num_new=48, lm=None):
    """The prompt, and what the target says to it."""
    return jd.generate(lm or toys.model(), PROMPT, max_new_tokens=num_new).tokens[0]


def batch(rows, prompt=0, width=None):
    """One text per row; what follows the first `prompt` tokens counts."""
    width = width or max(map(len, rows))
    tokens = np.zeros((len(rows), width), np.int32)
    real = np.zeros((len(rows), width), np.int32)
    for b, row in enumerate(rows):
        tokens[b, : len(row)], real[b, : len(row)] = row, 1
    place = np.broadcast_to(np.arange(width, dtype=np.int32), tokens.shape)
    weight = np.asarray(real * (place >= prompt), np.float32)
    return Batch(tokens=tokens, positions=place, segments=real, weight=weight)


def train(made, lm, data, *, steps, lr, seed=0, draft=None):
    """Parameters after `steps` steps of Adam on one batch, and the losses on the way."""
    start = made.init(jax.random.key(seed), Weights(lm.params, draft and draft.params), None)
    flat = head_files.flattened(start.params)
    held = {
        name: leaf
        for name, leaf in flat.items()
        if start.frozen(name) or not jnp.issubdtype(leaf.dtype, jnp.floating)
    }
    moving = {name: jnp.asarray(leaf) for name, leaf in flat.items() if name not in held}
    optimizer = optax.chain(
        optax.clip_by_global_norm(1.0), optax.adam(optax.cosine_decay_schedule(lr, steps))
    )

    def loss(moving, key, number):
        moment = Moment(number, steps)
        return made.loss(head_files.nested(moving | held), lm.params, data, key, moment)[0]

    def step(carry, given):
        moving, state = carry
        value, grads = jax.value_and_grad(loss)(moving, *given)
        updates, state = optimizer.update(grads, state)
        return (optax.apply_updates(moving, updates), state), value

    given = (jax.random.split(jax.random.key(seed + 1), steps), jnp.arange(steps))
    run = jax.jit(lambda moving: jax.lax.scan(step, (moving, optimizer.init(moving)), given))
    (moving, _), values = run(moving)
    return head_files.nested(moving | held), np.asarray(values)


def first_loss(recipe, data, *, key=1, moment=MOMENT, **settings):
    """Loss and metrics on a batch with the parameters before training."""
    lm, draft = toys.model(), draft_of(recipe)
    made, _ = objective(recipe, **settings)
    start = made.init(jax.random.key(0), Weights(lm.params, draft and draft.params), None)
    found = jax.jit(made.loss)(start.params, lm.params, data, jax.random.key(key), moment)
    value, metrics = found
    return float(value), {name: float(metric) for name, metric in metrics.items()}


def learns_alone(recipe, data, *, still=(), lm=None, **settings):
    """Whether every leaf that is trained has a gradient, but for those named in `still`, and the
    target's parameters have none.
    """
    lm, draft = lm or toys.model(), draft_of(recipe)
    made, _ = objective(recipe, lm=lm, **settings)
    start = made.init(jax.random.key(0), Weights(lm.params, draft and draft.params), None)

    @jax.jit
    def gradients(params, target):
        def loss(params, target):
            return made.loss(params, target, data, jax.random.key(1), MOMENT)[0]

        found = jax.grad(loss, (0, 1))(params, target)
        return jax.tree.map(lambda leaf: jnp.abs(leaf).max(), found)

    own, other = gradients(start.params, lm.params)
    moving = {name: float(leaf) > 0 for name, leaf in head_files.flattened(own).items()}
    return all(moving[name] for name in moving if name not in still) and not any(
        float(leaf) for leaf in jax.tree.leaves(other)
    )


def passes(
    recipe: str,
    *,
    depth: int,
    steps=300,
    lr=1e-2,
    shape=None,
    settings=None,
    num_new=48,
    blind=0,
    prompt=0,
    lm=None,
    **options,
):
    """Trains on one text; whether every draft of the loop is then accepted as a whole.

    Args:
        recipe: what is trained.
        depth: tokens of a whole draft.
        steps: of training.
        lr: peak learning rate.
        shape: sizes of the heads.
        settings: of the objective.
        num_new: tokens of the text beyond the prompt.
        blind: steps at the start in which there cannot be a draft.
        prompt: tokens at the start that do not count in training.
        lm: the target; a toy by default, whose text has places where two tokens are nearly as good.
        **options: of the method.
    """
    lm = lm or toys.model()
    answer = text(num_new, lm)
    asked = {"steps": steps, "lr": lr, "num_new": num_new, "prompt": prompt}
    target, given = trained(recipe, shape=shape, settings=settings, lm=lm, **asked)
    num_whole = (len(answer) - blind) // (depth + 1)
    asked = {"max_new_tokens": blind + num_whole * (depth + 1)} | given | options
    out = jd.generate(target, PROMPT, **asked)
    plain = jd.generate(target, PROMPT, max_new_tokens=asked["max_new_tokens"])
    assert out.tokens == plain.tokens
    return out.stats[0].nfe == blind + num_whole


@functools.cache
def _trained(recipe, steps, lr, shape, settings, num_new, prompt, lm):
    draft = draft_of(recipe)
    made, spec = objective(recipe, shape=dict(shape), lm=lm, **dict(settings))
    data = batch([PROMPT + text(num_new, lm)], prompt)
    params, _ = train(made, lm, data, steps=steps, lr=lr, draft=draft)
    found, given = made.export(params, lm.params), {"method": RECIPES[recipe].method}
    if found.heads is not None:
        known = head_files.target_of(lm.config, "toy")
        given["heads"] = Heads(spec=spec, params=found.heads, target=known)
    if found.draft is not None:
        assert draft is not None
        given["draft"] = jd.api.from_params(draft.config, found.draft)
    target = lm if found.target is None else jd.api.from_params(lm.config, found.target)
    return target, given


def trained(
    recipe, *, steps=300, lr=1e-2, shape=None, settings=None, num_new=48, prompt=0, lm=None
):
    """The target after training on one text, and what else decodes; as keywords of `generate`."""
    frozen = [tuple(sorted((part or {}).items())) for part in (shape, settings)]
    return _trained(recipe, steps, lr, *frozen, num_new, prompt, lm or toys.model())
