"""The judge head: mistakes that are some, a balanced loss, and a head that tells them apart."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxdecode as jd
from jaxdecode.convert import heads as head_files
from jaxdecode.convert.heads import Heads
from jaxdecode.errors import InputError
from jaxdecode.heads import judge as heads
from jaxdecode.training.objectives import judge
from tests import toys
from tests.training import gate

KEY = jax.random.key(0)


def test_mistakes_are_unlikely_and_never_what_the_text_says():
    scores = jnp.log(jnp.asarray([0.6, 0.3, 0.05, 0.04, 0.01]))
    keys = jax.random.key_data(jax.random.split(KEY, 4000))
    config = judge.Config(temperature=2.0, unlikely=0.1)

    def counts(said):
        drawn = jax.vmap(lambda key: judge.mistake(scores, jnp.int32(said), key, config))(keys)
        return np.bincount(drawn, minlength=5) / len(keys)

    flat = np.sqrt([0.05, 0.04, 0.01])
    np.testing.assert_allclose(counts(0)[2:], flat / flat.sum(), atol=0.03)
    assert not counts(0)[:2].any()
    assert not counts(2)[:3].any() and counts(2)[3:].all()
    alike = jax.vmap(lambda key: judge.mistake(scores * 0, jnp.int32(3), key, config))(keys)
    assert set(np.unique(alike)) == {0, 1, 2, 4}


def test_the_classes_weigh_alike():
    good, bad = jnp.asarray([1.0, -2.0, 7.0]), jnp.asarray([0.5])
    found = judge.balanced(good, jnp.asarray([1.0, 1.0, 0.0]), bad, jnp.ones(1))
    right = np.log1p(np.exp([-1.0, 2.0])).mean()
    assert float(found) == pytest.approx((right + np.log1p(np.exp(0.5))) / 2)


def area(good, bad):
    """Chance that a right token scores higher than a wrong one."""
    return (np.asarray(good).ravel()[:, None] > np.asarray(bad).ravel()).mean()


def test_states_that_can_be_told_apart_are():
    rng = np.random.default_rng(0)
    line = rng.normal(size=32)
    good, bad = (rng.normal(size=(400, 32)) + side * 0.4 * line for side in (1, -1))
    params = heads.init(heads.Shape(), toys.model().config, KEY, None)
    optimizer = optax.adam(1e-2)

    def loss(params):
        scores = (heads.scores(params, jnp.float32(x[:300])) for x in (good, bad))
        return judge.balanced(*(y for x in scores for y in (x, jnp.ones(300))))

    def step(carry, _):
        params, state = carry
        updates, state = optimizer.update(jax.grad(loss)(params), state)
        return (optax.apply_updates(params, updates), state), None

    start = params, optimizer.init(params)
    (params, _), _ = jax.jit(lambda: jax.lax.scan(step, start, None, 200))()
    held_out = (heads.scores(params, jnp.float32(x[300:])) for x in (good, bad))
    assert area(*held_out) > 0.95


def test_the_loss_is_its_formula():
    """Against passes over every text with its mistake written into it."""
    lm, row = toys.model(), gate.PROMPT
    made, spec = gate.objective("judge")
    params = {"kernel": jax.random.normal(KEY, (32, 1)), "bias": jnp.ones(1)}
    data = gate.batch([row], prompt=3)
    kept = []
    original = judge.probed.filled

    def spy(laid, batch, tokens):
        kept.append(np.asarray(tokens)[0, :, 0])
        return original(laid, batch, tokens)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(judge.probed, "filled", spy)
        found, _ = made.loss(params, lm.params, jax.tree.map(jnp.asarray, data), KEY, gate.MOMENT)

    def score(tokens):
        state = toys.full_logits(lm, tokens, taps=("final",))[1]["final"][-1]
        return float(state @ params["kernel"][:, 0] + 1)

    good = [score(row[: i + 1]) for i in range(3, len(row))]
    bad = [score([*row[: i + 1], int(kept[0][i])]) for i in range(2, len(row) - 1)]
    wanted = (np.log1p(np.exp(-np.asarray(good))).mean() + np.log1p(np.exp(bad)).mean()) / 2
    assert float(found) == pytest.approx(wanted, rel=1e-4)


def test_only_the_head_learns():
    # An undecided head is as wrong about both classes: its bias has nothing to learn yet.
    assert gate.learns_alone("judge", gate.batch([gate.PROMPT]), still=("bias",))


def trained(steps):
    """A head after training on what the target says, and whom it would let pass."""
    lm = toys.model()
    made, spec = gate.objective("judge")
    params, _ = gate.train(
        made, lm, gate.batch([gate.PROMPT + gate.text(24)], 8), steps=steps, lr=3e-2
    )
    known = head_files.target_of(lm.config, "toy")
    return Heads(spec=spec, params=made.export(params, lm.params).heads, target=known)


def test_the_head_lets_more_of_the_targets_own_text_pass_than_of_anothers():
    lm = toys.model()

    def scores(made, answers):
        found = []
        for prompt, answer in zip(prompts, answers, strict=True):
            row = prompt + answer
            state = toys.full_logits(lm, row, taps=("final",))[1]["final"]
            found.append(heads.scores(made.params, state[len(prompt) :]))
        return np.asarray(found)

    prompts = [gate.PROMPT]
    own = jd.generate(lm, prompts, max_new_tokens=24).tokens
    other = [np.random.default_rng(0).integers(0, 61, 24).tolist()]
    found = [area(*(scores(trained(steps), x) for x in (own, other))) for steps in (300, 1)]
    assert found[0] > 0.9 > found[1]


def test_decoding_takes_the_result():
    made = trained(3)
    asked = {"method": "judge_decoding", "max_new_tokens": 12, "heads": made}
    assert len(jd.generate(toys.model(), gate.PROMPT, **asked).tokens[0]) == 12


def test_settings_are_checked():
    for wrong in ({"num_places": 0}, {"temperature": 0}, {"unlikely": 1}):
        with pytest.raises(InputError, match=f"{next(iter(wrong))}="):
            judge.Config(**wrong)
