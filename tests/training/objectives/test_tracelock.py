"""The controller: weights and loss written out, and that it tells apart what probability cannot."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxdecode as jd
from jaxdecode.convert import heads as head_files
from jaxdecode.convert.heads import Heads
from jaxdecode.errors import InputError
from jaxdecode.evals import oracles
from jaxdecode.heads import tracelock as heads
from jaxdecode.training.objectives import tracelock
from tests import toys
from tests.training import gate
from tests.training.objectives.test_learn2pd import SIZE, batch_of, known, own_answers
from tests.training.test_replays import BLOCK, answered

TASKS = ("copy", "shuffle", "replace")


def test_weights_fall_with_the_distance_and_wrong_ones_have_their_own():
    open = np.asarray([1, 0, 1, 1, 0, 1, 1], bool)
    right = np.asarray([1, 0, 0, 1, 0, 1, 1], bool)
    found = tracelock.weights_of(tracelock.Config(), jnp.asarray(open), jnp.asarray(right))
    np.testing.assert_allclose(found, [1.0, 0, 2.0, 0.75, 0, 0.625, 0.5])
    alone = tracelock.weights_of(tracelock.Config(), jnp.ones(1, bool), jnp.ones(1, bool))
    np.testing.assert_allclose(alone, [1.0])


def test_the_loss_is_its_formula():
    lm = toys.denoiser()
    _, _, batch = answered(lm)
    made, spec = gate.objective("tracelock", lm=lm, block_length=BLOCK)
    params = gate.random_heads("tracelock", {}, lm).params
    trace = jax.tree.map(np.asarray, jax.jit(made.features)(lm.params, batch))
    total, weights, held = 0.0, 0.0, []
    for row, start in enumerate((5, 2)):
        for first in range(start, start + 20, BLOCK):
            slots = np.arange(first, min(first + BLOCK, start + 20))
            size = trace.open[row, slots, 0].sum()
            assert size == len(slots)
            for step in range(size):
                parts = {"open": np.zeros(BLOCK, bool), "right": np.zeros(BLOCK, bool)}
                parts |= {
                    n: np.zeros(BLOCK, np.float32) for n in ("confidence", "entropy", "margin")
                }
                for name, part in parts.items():
                    part[: len(slots)] = getattr(trace, name)[row, slots, step]
                open = parts["open"]
                seen = heads.features(
                    jnp.asarray(open), jnp.asarray(size),
                    *(jnp.asarray(parts[n]) for n in ("confidence", "entropy", "margin")),
                )  # fmt: skip
                odds, threshold = heads.trust(spec.shape, params, seen, jnp.asarray(open))
                held.append(float(threshold) ** 2)
                for rank, slot in enumerate(np.flatnonzero(open)):
                    right = parts["right"][slot]
                    weight = 1 - 0.5 * rank / max(open.sum() - 1, 1) if right else 2.0
                    sign = -1 if right else 1
                    total += weight * np.log1p(np.exp(sign * float(odds[slot])))
                    weights += weight
    wanted = total / weights + 0.001 * np.mean(held)
    found, _ = jax.jit(made.loss)(params, lm.params, batch, jax.random.key(0), gate.MOMENT)
    assert float(found) == pytest.approx(wanted, rel=1e-4)


def test_only_the_controller_learns():
    """Its last layers begin at zero, so those before them have nothing to learn yet."""
    lm = toys.denoiser()
    _, _, batch = answered(lm)
    still = [f"{layer}/{part}" for layer in ("slot", "both") for part in ("kernel", "bias")]
    assert gate.learns_alone("tracelock", batch, lm=lm, still=still, block_length=BLOCK)


@pytest.fixture(scope="module")
def trained():
    lm = oracles.lists_model(SIZE)
    prompts, out = own_answers(TASKS, 12, seed=1)
    made, spec = gate.objective("tracelock", lm=lm, block_length=SIZE)
    data = known(made, lm, batch_of(prompts, out.tokens))
    params, _ = gate.train(made, lm, data, steps=200, lr=2e-2)
    found = made.export(params, lm.params).heads
    return made, Heads(spec=spec, params=found, target=head_files.target_of(lm.config, "lists"))


def area(score, right):
    """Chance that a right candidate scores higher than a wrong one; ties count half."""
    good, bad = score[right][:, None], score[~right]
    return (good > bad).mean() + 0.5 * (good == bad).mean()


def test_it_tells_right_from_wrong_better_than_probability(trained):
    made, given = trained
    lm = oracles.lists_model(SIZE)
    prompts, out = own_answers(TASKS, 20, seed=2)
    data = known(made, lm, batch_of(prompts, out.tokens))
    laid = tracelock.replays.blocks(tracelock.denoising.own_setting(lm.bound), data, SIZE)
    found = tracelock.replays.lessons(data.features, laid, SIZE, jax.random.key(0))
    seen = found.trace
    odds, _ = heads.trust(given.spec.shape, given.params, tracelock.inputs(seen), seen.open)
    open, right = np.asarray(seen.open), np.asarray(seen.right)
    ours, plain = (area(np.asarray(x)[open], right[open]) for x in (odds, seen.confidence))
    assert ours > 0.97 > 0.93 > plain > 0.5
    # Labels of other slots tell it nothing.
    mixed = np.random.default_rng(0).permutation(right[open])
    assert abs(area(np.asarray(odds)[open], mixed) - 0.5) < 0.1


def test_it_takes_fewer_passes_than_the_sampler_for_the_same_texts(trained):
    _, plain = own_answers(TASKS, 20, seed=2)
    asked = {"method": "tracelock", "heads": trained[1]}
    _, out = own_answers(TASKS, 20, seed=2, **asked)
    same = np.mean([a == b for a, b in zip(out.tokens, plain.tokens, strict=True)])
    steps = [sum(stats.nfe for stats in run.stats) for run in (out, plain)]
    assert same > 0.95 and steps[0] < 0.8 * steps[1]
    # Four at a time at most: six slots take two passes.
    assert min(stats.nfe for stats in out.stats) == 2
    _, few = own_answers(TASKS, 20, seed=2, most=1, **asked)
    assert sum(stats.nfe for stats in few.stats) > steps[0]


def test_what_does_not_fit_is_refused():
    with pytest.raises(InputError, match="name a target that fills slots"):
        gate.objective("tracelock")
    for wrong in ({"block_length": 0}, {"wrong": 0}, {"far": 1.5}, {"decay": -1}):
        with pytest.raises(InputError, match=f"{next(iter(wrong))}="):
            tracelock.Config(**wrong)
    assert jd.explain("tracelock")
