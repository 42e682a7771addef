"""Dynamic early exit: the rule's hand values, and rates that are what they are said to be."""

import jax.numpy as jnp
import numpy as np
import pytest

import jaxdecode as jd
from jaxdecode import api, engine, options
from jaxdecode.drafters import dynamic_exit
from jaxdecode.errors import InputError
from tests import toys

PROMPTS = [[3, 1, 4, 1, 5], [9], [2, 6, 5, 3, 5, 8, 9, 7, 9]]


@pytest.mark.parametrize(
    ("rate", "layers", "length", "gain"),
    [(0.5, 4, 2, 0.04375), (0.7, 8, 2, 0.04562), (0.85, 12, 3, 0.04686), (0.95, 16, 5, 0.04731)],
)
def test_hand_values_for_32_layers(rate, layers, length, gain):
    grid = dynamic_exit.tokens_per_layer(jnp.asarray([rate]), (layers,), 18, 32)
    assert int(grid.argmax()) == length
    assert float(grid.max()) == pytest.approx(gain, abs=6e-6)
    assert float(grid[0, 0]) == 1 / 32, "plain decoding: one token for all layers"


def test_the_best_of_the_grid_is_chosen():
    rates = jnp.asarray([0.5, 0.7, 0.85, 0.95])
    chosen, length = dynamic_exit.choose(rates, (4, 8, 12, 16), 18, 32)
    assert (int(chosen), int(length)) == (3, 5)
    assert int(dynamic_exit.choose(rates * 0.1, (4, 8, 12, 16), 18, 32)[1]) == 0, "no draft pays"
    assert int(dynamic_exit.choose(jnp.ones(1), (16,), 9, 32)[1]) == 9, "a rate of one is no trap"


def decode(lm, prompts=PROMPTS, num_new=20, law=None, **asked):
    """The last snapshot, and the drafter's final state."""
    method = toys.method(lm, "del", **asked)
    kept = []
    spy = method.drafter._replace(remember=lambda state: kept.append(state) or state)
    built = toys.engine(lm, method._replace(drafter=spy))
    batch = engine.batch_bucket(len(prompts))
    request = toys.request(lm, options.Options(**(law or {})), prompts, batch=batch)
    (done,) = engine.run(built, request, prompts, num_new, iter([1000]))
    return done, kept[0]


def test_a_draft_by_all_layers_is_always_right():
    lm = toys.model("gemma")
    for law in ({}, {"temperature": 0.9}):
        done, state = decode(lm, exits=(4,), decay=1.0, num_draft=3, law=law)
        misses = np.asarray(state.counted - state.matched)[:3, 0]
        assert misses.tolist() == [1.0, 1.0, 1.0], "that of the prior"


def fading(lm, factor):
    """The model with all layers but the first turned down."""
    names = ("attn_post_norm", "mlp_post_norm")
    turned = [
        {**layer, **{name: {"scale": factor * (layer[name]["scale"] + 1) - 1} for name in names}}
        for layer in lm.params["layers"][1:]
    ]
    return api.from_params(lm.config, lm.params | {"layers": [lm.params["layers"][0], *turned]})


def test_the_rate_of_the_exit_in_use_is_its_acceptance():
    """One layer drafts for a model whose other layers say little: some drafts fail."""
    lm = fading(toys.model("gemma"), 0.3)
    done, state = decode(lm, [PROMPTS[0]], 40, exits=(1,), decay=1.0, num_draft=2)
    steps, accepted = done.stats.nfe[0], done.stats.num_accepted[0]
    drafted = done.stats.tokens_forwarded[0] - steps
    matched, counted = float(state.matched[0, 0]) - 1, float(state.counted[0, 0]) - 2
    assert 0 < accepted < drafted
    assert counted == steps + accepted == 40
    # After a wholly accepted draft one more position is compared than was drafted.
    assert accepted <= matched <= accepted + steps


def test_a_row_proposes_in_a_batch_what_it_proposes_alone():
    lm = toys.model("gemma")
    asked = dict(method="del", max_new_tokens=25, exits=(1, 3, 4), num_draft=3)
    together = jd.generate(lm, PROMPTS, **asked)
    for b, prompt in enumerate(PROMPTS):
        alone = jd.generate(lm, [prompt], **asked)
        assert alone.steps[0] == together.steps[b]
        assert alone.stats[0].tokens_forwarded == together.stats[b].tokens_forwarded


def test_options_are_checked():
    lm = toys.model()
    for exits in ((2, 1), (0, 1), (), (1, 2, 3)):
        with pytest.raises(InputError, match="exits"):
            jd.generate(lm, PROMPTS, method="del", exits=exits)
