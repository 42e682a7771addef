"""The energy: its loss against plain passes, what it learns of two slots, and what is picked."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxdecode as jd
from jaxdecode.convert import heads as head_files
from jaxdecode.convert.heads import Heads
from jaxdecode.core.protocols import Weights
from jaxdecode.errors import InputError
from jaxdecode.evals import oracles
from jaxdecode.heads import edlm_nce as heads
from jaxdecode.models import extra
from jaxdecode.training import denoising, places, replays
from jaxdecode.training.objectives import edlm_nce
from jaxdecode.verifiers import energy, learned_energy
from tests import toys
from tests.training import gate
from tests.training.test_replays import BLOCK, answered
from tests.verifiers.test_energy import shown

# Two tokens; the target thinks the slots independent, and in texts they are equal.
INDEPENDENT = ((0.25, 0.25), (0.25, 0.25))
MASK, ROWS = 2, 2048


@pytest.mark.slow
def test_the_loss_is_its_formula():
    lm = toys.denoiser()
    prompts, _, batch = answered(lm)
    made, _ = gate.objective("edlm_nce", lm=lm, block_length=BLOCK)
    params = gate.random_heads("edlm_nce", {}, lm).params
    key, errors = jax.random.key(3), []
    found, metrics = jax.jit(made.loss)(params, lm.params, batch, key, gate.MOMENT)
    asked = denoising.own_setting(lm.bound)
    where, draw = jax.random.split(key)
    laid = replays.blocks(asked, batch, BLOCK)
    place = jax.jit(lambda: places.draw(asked, batch, laid, where))()

    @jax.jit
    def ask(place):
        states = denoising.states(asked, lm.params, batch, place.open | place.behind)
        return states, denoising.draws(asked, lm.params, states, draw)[0]

    @jax.jit
    def of(tokens, states, slots):
        program = extra.windows(slots, jnp.ones_like(slots))
        return heads.parts(
            lm.bound, params, states, lm.target.embed(lm.params, tokens), program
        ).mean()

    states, drawn = ask(place)
    drawn = jnp.where(place.open, drawn, batch.tokens)
    for row in range(len(prompts)):
        slots = np.flatnonzero(np.asarray(place.inside[row]))
        assert place.open[row].any() and len(slots) in (4, BLOCK)
        text, wrong = (
            of(tokens[row, slots][None], states[row, slots][None], jnp.asarray(slots)[None])
            for tokens in (batch.tokens, drawn)
        )
        errors.append(math.log1p(math.exp(text)) + math.log1p(math.exp(-wrong)))
    assert float(found) == pytest.approx(np.mean(errors), rel=1e-3)
    assert float(metrics["energy.text"]) != float(metrics["energy.draw"])


@pytest.mark.slow
def test_only_the_energy_learns():
    """Its last layer begins at zero, so those before it have nothing to learn yet."""
    lm = toys.denoiser()
    _, _, batch = answered(lm)
    params = head_files.flattened(gate.random_heads("edlm_nce", {}, lm).params)
    still = [name for name in params if name != "out/kernel"]
    # A text and a draw move the bias against each other, and at first by as much.
    assert gate.learns_alone("edlm_nce", batch, lm=lm, still=still, block_length=BLOCK)


@functools.cache
def target():
    return toys.knowing(oracles.table_model(INDEPENDENT))


@pytest.fixture(scope="module")
def trained():
    """An energy for texts 00 and 11."""
    lm = target()
    data = jax.tree.map(jnp.asarray, gate.batch([[MASK, i % 2, i % 2] for i in range(16)], 1))
    made, spec = gate.objective("edlm_nce", lm=lm, block_length=2)
    params, _ = gate.train(made, lm, data, steps=200, lr=2e-2)
    found = made.export(params, lm.params).heads
    return Heads(spec=spec, params=found, target=head_files.target_of(lm.config, "table"))


def energies(given):
    """Of all texts of two tokens, where nothing is known yet."""
    lm, texts = target(), jnp.asarray([[0, 0], [0, 1], [1, 0], [1, 1]])
    bound = jnp.maximum(jnp.log(jnp.asarray([0.5, 0.5, 0.0])), -8.0)

    @jax.jit
    def of(params):
        program = extra.windows(jnp.full_like(texts, 1) + jnp.arange(2), jnp.ones_like(texts))
        embedded = lm.target.embed(lm.params, texts)
        hidden = jnp.broadcast_to(bound, embedded.shape)
        return heads.parts(lm.bound, params, hidden, embedded, program).mean(-1)

    return np.asarray(of(given.params)).reshape(2, 2)


def test_it_learns_which_texts_there_are(trained):
    found = energies(trained)
    right, wrong = np.diag(found), found[[0, 1], [1, 0]]
    assert right.max() - wrong.min() <= -3, found


def equal_share(given, **asked):
    """How often the slots are equal where both are filled in one pass."""
    usual = {"max_new_tokens": 2, "block_length": 2, "steps": 1, "temperature": 1.0, "n": ROWS}
    out = jd.generate(
        target(), [MASK], method="edlm_nce", heads=given, batch_size=ROWS, **(usual | asked)
    )
    return np.mean([a == b for a, b in out.tokens])


@pytest.mark.parametrize("k", [4, *(pytest.param(k, marks=pytest.mark.slow) for k in (2, 8))])
def test_texts_are_right_as_often_as_one_of_k_is(trained, k):
    """A draw is right half of the time; one that is right is picked if there is one."""
    share = equal_share(trained, num_candidates=k)
    assert abs(share - (1 - 2**-k)) < 0.05 and share > 0.7


def test_the_wrong_sign_is_convicted(trained):
    """Right only where all are. Heads with an energy of -E are that twin."""
    out = jax.tree.map(jnp.negative, trained.params["out"])
    twin = Heads(spec=trained.spec, params=trained.params | {"out": out}, target=trained.target)
    assert abs(equal_share(twin, num_candidates=4) - 2**-4) < 0.05


def test_an_untrained_energy_picks_by_chance(trained):
    out = jax.tree.map(jnp.zeros_like, trained.params["out"])
    blind = Heads(spec=trained.spec, params=trained.params | {"out": out}, target=trained.target)
    assert abs(equal_share(blind, num_candidates=4) - 0.5) < 0.05


@pytest.mark.slow
def test_one_candidate_is_mdlm():
    asked = {"max_new_tokens": 12, "steps": 4, "block_length": 8, "temperature": 0.9}
    given = gate.random_heads("edlm_nce", {}, toys.denoiser())
    one = jd.generate(
        toys.denoiser(), [[3, 1]], method="edlm_nce", heads=given, num_candidates=1, **asked
    )
    assert one.tokens == jd.generate(toys.denoiser(), [[3, 1]], method="mdlm", **asked).tokens


@pytest.mark.slow
def test_what_is_decided_counts_and_what_is_not_there_does_not():
    """The energies of the loop, against the network on the rows of the slots that exist."""
    lm = toys.denoiser()
    given = gate.random_heads("edlm_nce", {}, lm)
    weights = Weights(target=lm.params, heads=given.params)
    row = [3, 1, 4, 60, 5, 60, 60, 60, 0, 0]
    open = np.asarray([0, 0, 0, 1, 0, 1, 1, 1, 1, 1], bool)
    canvas, window = shown(row, open, start=3, width=6)
    # The text ends before the window's last slot.
    canvas = toys.dataclasses.replace(canvas, end=jnp.asarray([8]))
    window = toys.dataclasses.replace(window, open=window.open.at[:, 5].set(False), mask_token=60)
    rng = np.random.default_rng(0)
    hidden = jnp.asarray(rng.normal(size=(1, 10, 32)), jnp.float32)
    output = energy.TargetOutput(hidden=hidden, rows=((), ()), taps={})
    drawn = jnp.asarray(rng.integers(0, 60, (1, 2, 6)), jnp.int32)
    texts = energy.Texts(drawn, jnp.zeros((1, 2, 6)), jnp.zeros((1, 2, 6)), jnp.zeros((1, 6, 61)))
    of = jax.jit(functools.partial(learned_energy._energies, lm.bound))
    found = of(weights, canvas, window, texts, output)[0]
    alone = jax.jit(functools.partial(heads.parts, lm.bound))
    for ours, tokens in zip(found, drawn[0], strict=True):
        text = tokens[:5].at[1].set(5)[None]
        program = extra.windows(jnp.arange(3, 8)[None], jnp.ones((1, 5), jnp.int32))
        embedded = lm.target.embed(lm.params, text)
        parts = alone(given.params, hidden[:, 3:8], embedded, program)
        assert float(ours) == pytest.approx(float(parts.mean()), rel=1e-4)


def test_what_does_not_fit_is_refused():
    with pytest.raises(InputError, match="name a target that fills slots"):
        gate.objective("edlm_nce")
    with pytest.raises(InputError, match="block_length="):
        edlm_nce.Config(block_length=0)
    with pytest.raises(InputError, match="num_layers="):
        heads.Shape(num_layers=0)
    with pytest.raises(InputError, match="reads embeddings, and this model has none"):
        lists = toys.Models(oracles.lists_model(4).bound)
        learned_energy.make(learned_energy.Config(), lists)
