"""The adaptive drafter: prices decide how much is drafted, never what is emitted."""

import json

import jax.numpy as jnp
import numpy as np
import pytest

import jaxdecode as jd
from jaxdecode import costs, resolve
from jaxdecode.core.protocols import Weights
from jaxdecode.drafters import auto
from jaxdecode.errors import InputError
from tests import toys

PERIODIC = [[5, 9, 2, 7] * 6]


@pytest.fixture
def prices(monkeypatch):
    """Sets what every width costs, instead of measuring."""

    def fix(*cost):
        monkeypatch.setattr(costs, "measure", lambda *_: list(map(float, cost)))
        monkeypatch.setattr(costs, "_read", dict)
        monkeypatch.setattr(costs, "_write", lambda *_: None)

    return fix


@pytest.mark.parametrize("temperature", [0.0, 0.8])
@pytest.mark.parametrize("cost", [(1, 1.01, 1.02), (1, 1.4, 1.6)])
def test_tokens_are_those_of_plain_decoding(prices, cost, temperature):
    prices(*cost)
    options = dict(max_new_tokens=40, temperature=temperature, seed=3)
    prompts = [*PERIODIC, [3, 1, 4], [9]]
    plain = jd.generate(toys.model(), prompts, **options)
    fast = jd.generate(toys.model(), prompts, method="auto", widths=(1, 4, 8), **options)
    assert fast.tokens == plain.tokens


def test_cheap_widths_are_used_and_dear_ones_never(prices):
    nfe = {}
    for name, cost in {"cheap": (1, 1.01, 1.02), "dear": (1, 50, 90)}.items():
        prices(*cost)
        out = jd.generate(toys.model(), PERIODIC, method="auto", widths=(1, 4, 8))
        nfe[name] = out.stats[0].nfe
        if name == "dear":
            assert out.stats[0].tokens_forwarded == out.stats[0].nfe == out.stats[0].num_tokens
    assert nfe["cheap"] < nfe["dear"]


def test_the_best_width_is_expected_tokens_per_time():
    gain = jnp.asarray([[0.0, 0.9, 1.2], [0.0, 0.1, 0.1]])
    free = jnp.zeros(2, bool)
    choose = lambda cost, done: int(  # noqa: E731
        auto._choose(gain, done, auto.Prices(jnp.asarray(cost), jnp.bool_(True)), (1, 4, 8))
    )
    assert choose([1.0, 1.4, 1.7], free) == 4  # 2/1, 3/1.4 = 2.14, 3.3/1.7 = 1.94
    assert choose([1.0, 1.4, 1.5], free) == 8  # 3.3/1.5 = 2.2
    assert choose([1.0, 1.4, 1.7], jnp.asarray([True, False])) == 1, "done rows do not count"


def test_a_draft_is_counted_up_to_its_first_wrong_token():
    state = auto.State(
        table=None,
        right=jnp.zeros(6),
        tried=jnp.zeros(6),
        sent=jnp.asarray([4, 5, 6, -1]),
        kind=jnp.int32(2),
    )

    def count(tokens, num_accepted, **changes):
        verdict = toys.verdict(tokens, num_accepted)
        right, tried = auto._count(auto.dataclasses.replace(state, **changes), verdict)
        return right.tolist(), tried.tolist()

    one = lambda kind, value: [float(value) if i == kind else 0.0 for i in range(6)]  # noqa: E731
    assert count([4, 5, 9, 0], 2) == (one(2, 2), one(2, 3))
    assert count([4, 5, 6, 9], 3) == (one(2, 3), one(2, 3)), "a whole draft has no wrong token"
    assert count([4, 0, 0, 0], 0) == (one(2, 1), one(2, 1)), "not sent, but seen to be right"
    assert count([9, 0, 0, 0], 0) == (one(2, 0), one(2, 1))
    assert count([6, 0, 0, 0], 0, kind=jnp.int32(0)) == (one(0, 1), one(0, 1)), "any of a level"


def test_what_was_measured_is_kept(tmp_path, monkeypatch):
    monkeypatch.setenv("JAXDECODE_CACHE", str(tmp_path))
    calls = []
    measure = costs.measure
    monkeypatch.setattr(costs, "measure", lambda *a: calls.append(1) or measure(*a))
    for _ in range(2):
        jd.generate(toys.model(), [[3, 1]], method="auto", widths=(1, 4), max_new_tokens=4)
    assert len(calls) == 1
    (kept,) = json.loads((tmp_path / "step_costs.json").read_text()).values()
    assert len(kept) == 2 and all(cost > 0 for cost in kept)
    (tmp_path / "step_costs.json").write_text('{"half')
    jd.generate(toys.model(), [[3, 1]], method="auto", widths=(1, 4), max_new_tokens=4)
    assert len(calls) == 2, "a damaged file is measured anew"


def test_the_table_is_kept_only_where_trees_can_pay():
    keep = lambda *cost: bool(  # noqa: E731
        auto.price(Weights(target=None), np.asarray(cost)).drafter.keep_table
    )
    assert keep(1, 1.3, 1.9) and not keep(1, 1.6, 1.9)


@pytest.mark.parametrize("widths", [(4, 8), (1,), (1, 8, 4), (1, 1, 4)])
def test_widths_are_checked(widths):
    with pytest.raises(InputError, match="ascend from 1"):
        resolve.split("auto", {"widths": widths})
