"""Medusa: the tree of the paper's example, its heads, its loss by hand, and the overfit gate."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxdecode as jd
from jaxdecode.core import masks
from jaxdecode.core.protocols import HeadSpec
from jaxdecode.core.registry import METHODS
from jaxdecode.errors import InputError
from jaxdecode.evals import toys as smallest
from jaxdecode.heads import medusa
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


@pytest.mark.parametrize("own", [False, True])
def test_untrained_heads_say_what_the_target_says(own):
    lm, shape = toys.model(), medusa.Shape(num_heads=3, num_layers=2, own_head=own)
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


def test_the_loss_weighs_heads_as_the_paper_does():
    assert float(objective.combine(jnp.asarray([1.0, 2.0]), 0.8)) == pytest.approx(2.08)


def test_the_overfit_gate():
    assert gate.passes("medusa", depth=4, shape={"own_head": True})


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


@pytest.mark.parametrize("own", [False, True])
def test_heads_compute_in_bfloat16_too(own):
    lm = toys.model()
    spec = HeadSpec("medusa", medusa.Shape(num_heads=3, own_head=own))
    exact = smallest.random_heads(spec, lm).params
    x = jax.random.normal(jax.random.key(0), (5, lm.config.hidden_size))

    @jax.jit
    def scores(params, x):
        return medusa.logits(spec.shape, params, x, lambda states: states)

    low = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), exact)
    found, wanted = scores(low, x.astype(jnp.bfloat16)), scores(exact, x)
    np.testing.assert_allclose(np.asarray(found, np.float32), wanted, atol=0.1, rtol=0.05)
