"""Early exit: a draft by all layers is the target's own text; every part equals the whole."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxdecode as jd
from jaxdecode import api
from jaxdecode.core.masks import MaskProgram
from jaxdecode.errors import InputError
from jaxdecode.models import decoder
from tests import toys

PROMPTS = [[3, 1, 4, 1, 5], [9], [2, 6, 5, 3, 5, 8, 9, 7, 9]]
LAWS = [{}, {"temperature": 0.9, "seed": 4, "repetition_penalty": 1.3}]


@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize("name", ["llama", "gemma"])
def test_all_layers_draft_what_the_target_says(name, law):
    lm = toys.model(name)
    asked = dict(max_new_tokens=21, exit_layer=lm.config.num_layers, num_draft=4)
    out = jd.generate(lm, PROMPTS, method="layerskip", **asked, **law)
    assert [stats.nfe for stats in out.stats] == [5, 5, 5], "21 tokens in steps of 5, one short"
    assert out.tokens == jd.generate(lm, PROMPTS, method="ar", max_new_tokens=21, **law).tokens


def test_a_model_whose_last_layers_do_nothing_is_drafted_whole():
    """The exit is read like the whole model: with its final norm and head."""
    lm = toys.model("gemma")
    idle = [{**layer, **_silent(layer)} for layer in lm.params["layers"][2:]]
    params = lm.params | {"layers": [*lm.params["layers"][:2], *idle]}
    quiet = api.from_params(lm.config, params, name="quiet")
    for exit_layer, steps in ((2, 3), (4, 3)):
        asked = dict(max_new_tokens=15, exit_layer=exit_layer, num_draft=4)
        out = jd.generate(quiet, PROMPTS, method="layerskip", **asked)
        assert [stats.nfe for stats in out.stats] == [steps] * 3
    early = jd.generate(quiet, PROMPTS, method="layerskip", max_new_tokens=15, exit_layer=1)
    assert sum(stats.nfe for stats in early.stats) > 9, "one layer is not the model"


def _silent(layer):
    """Output norms of scale zero: the layer adds nothing."""
    names = ("attn_post_norm", "mlp_post_norm")
    return {name: jax.tree.map(lambda scale: scale * 0 - 1.0, layer[name]) for name in names}


@pytest.mark.parametrize("stacked", [False, True])
def test_layers_in_two_parts_are_the_whole_forward_pass(stacked):
    lm = toys.model("gemma")
    target, params, tokens = lm.target, dict(lm.params), jnp.asarray([PROMPTS[2]])
    if stacked:
        params["layers"] = decoder.stack(params["layers"])
    size = tokens.shape[1]
    program = MaskProgram(
        cached=jnp.zeros(1, jnp.int32),
        positions=jnp.arange(size, dtype=jnp.int32)[None],
        num_new=jnp.full(1, size, jnp.int32),
    )
    whole = target.forward(params, tokens, program, None)
    x, first = target.layers(params, target.embed(params, tokens), program, None, 0, 3)
    x, second = target.layers(params, x, program, None, 3, 4)
    np.testing.assert_allclose(target.norm(params, x), whole.hidden, atol=1e-5)
    for part in (0, 1):
        rows = np.concatenate([np.stack(first[part]), np.stack(second[part])])
        np.testing.assert_allclose(rows, np.stack(whole.rows[part]), atol=1e-5)


def test_exit_layer_is_checked():
    with pytest.raises(InputError, match="exit_layer=3.*2 layers"):
        jd.generate(toys.model(), PROMPTS, method="layerskip", exit_layer=3)
