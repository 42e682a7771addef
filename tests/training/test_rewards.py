"""Rewards, by hand."""

import jax.numpy as jnp
import pytest

from jaxdecode.training.rewards import REWARDS


@pytest.mark.parametrize(
    ("answer", "exact", "share", "any_order"),
    [
        ([9, 1, 2, 2, 3, 0], 1, 1, 1),
        ([0, 1, 2, 2, 3, 9], 1, 1, 1),  # what is no answer is not looked at
        ([9, 2, 1, 2, 3, 0], 0, 0.5, 1),
        ([9, 1, 2, 3, 3, 0], 0, 0.75, 0),
        ([9, 5, 6, 7, 8, 0], 0, 0, 0),
    ],
)
def test_by_hand(answer, exact, share, any_order):
    reference = jnp.asarray([9, 1, 2, 2, 3, 0])
    counts = jnp.asarray([False, True, True, True, True, False])
    found = {name: float(f(jnp.asarray(answer), reference, counts)) for name, f in REWARDS.items()}
    assert found == {"exact": exact, "share": share, "any_order": any_order}
