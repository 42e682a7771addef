"""The filter: its loss written out, and what it learns of list tasks from replays."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxdecode as jd
from jaxdecode.convert import heads as head_files
from jaxdecode.convert.heads import Heads
from jaxdecode.errors import InputError
from jaxdecode.evals import greedy_parallel, lists, oracles
from jaxdecode.heads import learn2pd as heads
from tests import toys
from tests.training import gate
from tests.training.test_replays import BLOCK, answered

SIZE = 6


def known(made, lm, batch):
    """The batch with its features, as `cache: true` gives it."""
    return dataclasses.replace(batch, features=jax.jit(made.features)(lm.params, batch))


def own_answers(tasks, count, seed, **asked):
    """Problems of list tasks, and what the plain sampler says to them."""
    prompts = [p.prompt for task in tasks for p in lists.problems(task, SIZE, count, seed)]
    asked = {"method": "llada", "block_length": SIZE, "max_new_tokens": SIZE} | asked
    return prompts, jd.generate(
        oracles.lists_model(SIZE), prompts, batch_size=len(prompts), **asked
    )


def batch_of(prompts, answers):
    rows = [prompt + answer for prompt, answer in zip(prompts, answers, strict=True)]
    return jax.tree.map(jnp.asarray, gate.batch(rows, prompt=len(prompts[0])))


@pytest.mark.parametrize("given", [False, True])
def test_the_loss_is_its_formula(given):
    """Over every pass of every block, by hand from the trace."""
    lm = toys.denoiser()
    _, _, batch = answered(lm)
    made, spec = gate.objective("learn2pd", lm=lm, shape={"block_length": BLOCK})
    params = gate.random_heads("learn2pd", {"block_length": BLOCK}, lm).params
    trace = jax.tree.map(np.asarray, jax.jit(made.features)(lm.params, batch))
    errors = []
    for row, start in enumerate((5, 2)):
        for first in range(start, start + 20, BLOCK):
            slots = np.arange(first, min(first + BLOCK, start + 20))
            for step in range(BLOCK):
                open = trace.open[row, slots, step]
                if not open.any():
                    continue
                shown = np.ones(BLOCK, np.float32)
                shown[: len(slots)] = trace.confidence[row, slots, step]
                odds = np.asarray(heads.scores(spec.shape, params, shown))[: len(slots)]
                wanted = trace.right[row, slots, step] | ~open
                errors += np.log1p(np.exp(np.where(wanted, -odds, odds))).tolist()
    data = known(made, lm, batch) if given else batch
    found, _ = jax.jit(made.loss)(params, lm.params, data, jax.random.key(0), gate.MOMENT)
    assert float(found) == pytest.approx(np.mean(errors), rel=1e-4)


def test_only_the_filter_learns():
    """Its last layer begins at zero, so the first has nothing to learn yet."""
    lm = toys.denoiser()
    _, _, batch = answered(lm)
    still = ("Dense_0/kernel", "Dense_0/bias")
    assert gate.learns_alone("learn2pd", batch, lm=lm, still=still, shape={"block_length": BLOCK})


@pytest.fixture(scope="module")
def trained():
    lm = oracles.lists_model(SIZE)
    prompts, out = own_answers(("copy", "shuffle", "replace"), 20, seed=1)
    made, spec = gate.objective("learn2pd", lm=lm, shape={"block_length": SIZE})
    data = known(made, lm, batch_of(prompts, out.tokens))
    params, _ = gate.train(made, lm, data, steps=250, lr=2e-2)
    found = made.export(params, lm.params).heads
    return made, Heads(spec=spec, params=found, target=head_files.target_of(lm.config, "lists"))


def test_what_it_takes_for_right_on_held_out_traces_is(trained):
    made, given = trained
    lm = oracles.lists_model(SIZE)
    prompts, out = own_answers(("copy", "shuffle", "replace"), 20, seed=2)
    trace = known(made, lm, batch_of(prompts, out.tokens)).features
    answer = slice(len(prompts[0]), None)
    shown, open, right = (
        np.swapaxes(np.asarray(x)[:, answer], 1, 2)
        for x in (trace.confidence, trace.open, trace.right)
    )
    odds = np.asarray(heads.scores(given.spec.shape, given.params, jnp.asarray(shown)))
    sure = open & (odds > np.log(9))
    assert right[sure].mean() > 0.95
    assert sure[right].mean() > 0.5
    # The target's own probability, at the same bound, finds far fewer of those that are right.
    assert (open & (shown >= 0.9))[right].mean() < 0.7 * sure[right].mean()


def test_it_takes_fewer_passes_than_the_sampler_and_no_fewer_than_one_that_knows_the_text(trained):
    lm = oracles.lists_model(SIZE)
    prompts, plain = own_answers(("copy", "shuffle", "replace"), 20, seed=2)
    _, out = own_answers(
        ("copy", "shuffle", "replace"), 20, seed=2, method="learn2pd", heads=trained[1]
    )
    least = greedy_parallel.passes(lm, prompts, plain.tokens, block_length=SIZE)
    same = np.mean([a == b for a, b in zip(out.tokens, plain.tokens, strict=True)])
    assert same > 0.95
    mine = [stats.nfe for stats in out.stats]
    assert sum(least) <= sum(mine) < 0.8 * sum(stats.nfe for stats in plain.stats)
    assert all(few <= n <= SIZE for few, n in zip(least, mine, strict=True))


def test_what_does_not_fit_is_refused():
    with pytest.raises(InputError, match="name a target that fills slots"):
        gate.objective("learn2pd")
    with pytest.raises(InputError, match="block_length=32 does not fit.*blocks of 8"):
        gate.objective("learn2pd", lm=toys.denoiser(block=8))
