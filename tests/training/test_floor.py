"""The floor of a training step, against what can be told without it."""

import jax
import pytest

from jaxdecode.convert import catalog
from jaxdecode.dist import mesh as meshes
from jaxdecode.plan import setup as plans
from jaxdecode.training import floor

SETTINGS = {"length": 256, "draft_vocab": 4096, "num_passes": 3, "num_places": 64}


def floor_of(batch, **changes):
    target = catalog.model_shape("llama3-8b")
    made = plans.setup(target, meshes.make("model=1", jax.devices()[:1]), batch=batch, context=256)
    return made, floor.eagle3(made, **SETTINGS | changes)


def test_without_rows_a_frozen_target_is_its_kernels():
    made, one = floor_of(1)
    _, two = floor_of(2)
    params = plans.params(made)
    leaves = jax.tree.leaves([params["layers"], params["head"]])
    kernels = sum(plans.shard_bytes(leaf) for leaf in leaves if leaf.size > 1_000_000)
    assert 2 * one["target"].hbm - two["target"].hbm == kernels


def test_one_device_sends_nothing():
    assert {part.wire for part in floor_of(1)[1].values()} == {0.0}


@pytest.mark.parametrize("kind", ["heads", "losses"])
def test_passes_share_the_kernels_gradients(kind):
    """What comes with one pass more is less than what there is with one."""
    one, two = (floor_of(1, num_passes=num)[1][kind].hbm for num in (1, 2))
    assert one < two < 2 * one


@pytest.mark.parametrize(
    ("source", "kind"),
    [
        ("jit(step)/jvp(target)/while/body/Block/dot_general", "target"),
        ("jit(step)/transpose(jvp(heads))/checkpoint/mul", "heads"),
        ("jit(step)/jvp(losses)/while/body/dot_general", "losses"),
        ("jit(step)/add", "parameters"),
    ],
)
def test_operations_are_told_by_scope(source, kind):
    assert floor.kind_of(source) == kind


def test_a_place_costs_the_heads_what_it_costs_and_texts_their_keys():
    """Twice the places are less than twice the bytes, for all texts have keys and values."""
    _, one = floor_of(1)
    _, two = floor_of(1, num_places=2 * SETTINGS["num_places"])
    assert one["heads"].hbm < two["heads"].hbm < 2 * one["heads"].hbm
    assert one["target"] == two["target"]
