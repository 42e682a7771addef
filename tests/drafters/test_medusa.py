"""Medusa: the tree of the paper's example, its heads, its loss by hand, and the overfit gate."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxdecode as jd
from jaxdecode.core import masks
from jaxdecode.core.protocols import HeadSpec, Weights
from jaxdecode.core.registry import METHODS
from jaxdecode.errors import InputError
from jaxdecode.evals import toys as smallest
from jaxdecode.heads import medusa
from jaxdecode.training.objective import Texts, program
from jaxdecode.training.objectives import medusa as objective
from jaxdecode.trees import static
from tests import toys
from tests.training import gate

PATHS = [[0], [1], [2], [0, 0], [0, 1], [1, 0], [0, 0, 0], [0, 0, 1], [1, 0, 0]]
SEES = (
    "1000000000 1100000000 1010000000 1001000000 1100100000 1100010000 1010001000 1100100100 "
    "1100100010 1010001001"
)


def test_the_tree_of_nine_choices_has_the_masks_of_the_paper():
    tree = static.from_paths(PATHS)
    assert tree.parent.tolist() == [-1, 0, 0, 0, 1, 1, 2, 4, 4, 6]
    assert tree.depth.tolist() == [0, 1, 1, 1, 2, 2, 2, 3, 3, 3]
    sees = np.asarray(masks.ancestors_of(jnp.asarray(tree.parent)))
    assert [row.astype(int).tolist() for row in sees] == [list(map(int, r)) for r in SEES.split()]


OUTPUTS = [{}, {"own_head": True}, {"affine": True}]


@pytest.mark.parametrize("output", OUTPUTS)
def test_untrained_heads_say_what_the_target_says(output):
    lm, shape = toys.model(), medusa.Shape(num_heads=3, num_layers=2, **output)
    params = medusa.init(shape, lm.config, jax.random.key(0), lm.params)
    hidden = jax.random.normal(jax.random.key(1), (2, 5, lm.config.hidden_size))
    plain = lm.target.logits(lm.params, hidden)
    found = medusa.logits(shape, params, hidden, lambda x: lm.target.logits(lm.params, x))
    assert found.shape == (2, 5, 3, lm.config.vocab_size)
    for k in range(3):
        np.testing.assert_allclose(found[:, :, k], plain, atol=1e-6)


def test_a_head_is_its_formula():
    rng = np.random.default_rng(0)
    kernel, bias = rng.normal(size=(1, 4, 4)), rng.normal(size=(1, 4))
    out, hidden = rng.normal(size=(1, 6, 4)), rng.normal(size=4)
    params = {"blocks.0.kernel": kernel, "blocks.0.bias": bias, "output.kernel": out}
    params = jax.tree.map(jnp.float32, params)
    shape = medusa.Shape(num_heads=1, own_head=True)
    found = medusa.logits(shape, params, jnp.float32(hidden), lambda x: x)
    x = hidden @ kernel[0] + bias[0]
    np.testing.assert_allclose(found[0], out[0] @ (hidden + x / (1 + np.exp(-x))), rtol=1e-4)


def test_an_affine_head_maps_what_its_blocks_give():
    rng = np.random.default_rng(0)
    kernel, bias, turn, add = (rng.normal(size=size) for size in [(4, 4), 4, (4, 4), 4])
    params = {
        "blocks.0.kernel": kernel[None],
        "blocks.0.bias": bias[None],
        "affine.kernel": turn[None],
        "affine.bias": add[None],
    }
    params, hidden = jax.tree.map(jnp.float32, params), rng.normal(size=4)
    shape = medusa.Shape(num_heads=1, affine=True)
    found = medusa.logits(shape, params, jnp.float32(hidden), lambda x: 2 * x)
    x = hidden @ kernel + bias
    np.testing.assert_allclose(
        found[0], 2 * ((hidden + x / (1 + np.exp(-x))) @ turn + add), rtol=1e-4
    )


TEXT = [5, 9, 2, 7, 7, 1, 3, 8, 4, 6]


def test_affine_maps_can_begin_with_what_follows_linearly():
    """The second head's: least squares from a state to that of which the target reads its token."""
    lm = toys.model()
    made, _ = gate.objective("medusa", shape={"num_heads": 2, "affine": True}, ridge=0.1)
    data = [gate.batch([TEXT, TEXT[::-1]]), gate.batch([TEXT[3:] + TEXT[:3], TEXT[::-1]])]
    texts = Texts(np.zeros(lm.config.vocab_size, int), lambda: iter(data))
    start = made.init(jax.random.key(0), Weights(lm.params), texts).params
    inputs, wanted = [], []
    for batch in data:
        hidden = lm.target.forward(lm.params, batch.tokens, program(batch), None).hidden
        for b in range(2):
            for t in range(len(TEXT) - 3):
                inputs.append([*hidden[b, t], 1.0])
                wanted.append(hidden[b, t + 2])
    inputs, wanted = np.asarray(inputs, np.float64), np.asarray(wanted, np.float64)
    penalty = np.diag([0.1] * (inputs.shape[1] - 1) + [1e-6])
    found = np.linalg.solve(inputs.T @ inputs + penalty, inputs.T @ wanted)
    np.testing.assert_allclose(start["affine.kernel"][1], found[:-1], atol=2e-3)
    np.testing.assert_allclose(start["affine.bias"][1], found[-1], atol=2e-3)
    assert not np.any(start["blocks.0.kernel"])


def test_settings_that_would_do_nothing_are_refused():
    with pytest.raises(InputError, match="affine=True says nothing that own_head=True does not"):
        medusa.Shape(affine=True, own_head=True)
    with pytest.raises(InputError, match="ridge=0.1 is what affine maps begin with"):
        gate.objective("medusa", ridge=0.1)


def test_the_loss_weighs_heads_as_the_paper_does():
    assert float(objective.combine(jnp.asarray([1.0, 2.0]), 0.8)) == pytest.approx(2.08)


@pytest.mark.parametrize("output", OUTPUTS[1:])
def test_the_overfit_gate(output):
    assert gate.passes("medusa", depth=4, shape=output)


def test_the_gate_can_fail():
    assert not gate.passes("medusa", depth=4, shape={"own_head": True}, steps=3)


def test_trees_that_do_not_fit_the_heads_are_refused(tmp_path):
    lm = toys.model()
    heads = smallest.heads(METHODS["medusa"].heads, lm)

    def run(**asked):
        return jd.generate(lm, [1, 2], method="medusa", max_new_tokens=4, heads=heads, **asked)

    deep = tmp_path / "deep.json"
    deep.write_text('{"paths": [[0], [0, 0], [0, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0, 0]]}')
    with pytest.raises(InputError, match="5 tokens deep, but the heads guess 4"):
        run(tree=str(deep))
    with pytest.raises(InputError, match="num_draft=64 is out of range"):
        run(num_draft=64)
    assert run(num_draft=5).stats[0].tokens_forwarded % 6 == 0


@pytest.mark.parametrize("output", OUTPUTS)
def test_heads_compute_in_bfloat16_too(output):
    lm = toys.model()
    spec = HeadSpec("medusa", medusa.Shape(num_heads=3, **output))
    exact = smallest.random_heads(spec, lm).params
    x = jax.random.normal(jax.random.key(0), (5, lm.config.hidden_size))

    @jax.jit
    def scores(params, x):
        return medusa.logits(spec.shape, params, x, lambda states: states)

    low = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), exact)
    found, wanted = scores(low, x.astype(jnp.bfloat16)), scores(exact, x)
    np.testing.assert_allclose(np.asarray(found, np.float32), wanted, atol=0.1, rtol=0.05)
