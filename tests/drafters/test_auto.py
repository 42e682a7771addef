"""The adaptive drafter: prices decide how much is drafted, never what is emitted."""

import dataclasses
import json

import jax.numpy as jnp
import numpy as np
import pytest

import jaxdecode as jd
from jaxdecode import costs, engine, options, resolve
from jaxdecode.core.protocols import Weights
from jaxdecode.drafters import auto, prompt_lookup
from jaxdecode.errors import InputError
from jaxdecode.trees import dynamic, static
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

    def choose(cost, done):
        return int(
            auto._choose(gain, done, auto.Prices(jnp.asarray(cost), jnp.bool_(True)), (1, 4, 8))
        )

    assert choose([1.0, 1.4, 1.7], free) == 4  # 2/1, 3/1.4 = 2.14, 3.3/1.7 = 1.94
    assert choose([1.0, 1.4, 1.5], free) == 8  # 3.3/1.5 = 2.2
    assert choose([1.0, 1.4, 1.7], jnp.asarray([True, False])) == 1, "done rows do not count"


@pytest.mark.parametrize(("cost", "width"), [(2.6, 4), (3.6, 1)])
def test_a_width_is_taken_if_its_draft_is_worth_its_price(cost, width):
    built = toys.built(toys.model(), "auto")
    request = toys.request(toys.model(), options.Options(max_new_tokens=8), PERIODIC, batch=1)
    state = engine.prefilled(built, request, PERIODIC, 8)
    drafter = built.method.drafter
    priced = drafter.price(built.weights, np.asarray([1.0, cost, 99.0, 99.0]))
    view = built.method.cache.read(state.cache)
    proposal, _ = drafter.propose(priced, state.drafter, request, state.canvas, view)
    # The long match counts as right with 0.88 before any count: 0.88 + 0.77 + 0.68 more tokens.
    assert int(proposal.valid.sum()) == width


def test_a_draft_is_counted_up_to_its_first_wrong_token():
    state = auto.State(
        table=None,
        right=jnp.zeros(6),
        tried=jnp.zeros(6),
        copied=jnp.asarray([4, 5, 6, -1]),
        kind=jnp.int32(2),
        followers=jnp.asarray([7, 4, -1]),
    )

    def count(tokens, num_accepted, **changes):
        verdict = toys.verdict(tokens, num_accepted)
        right, tried = auto._count(dataclasses.replace(state, **changes), verdict)
        return right.tolist(), tried.tolist()

    def both(tree, copies):
        return [float(tree), 0.0, float(copies), 0.0, 0.0, 0.0]

    assert count([4, 5, 9, 0], 2) == (both(1, 2), both(1, 3))
    assert count([4, 5, 6, 9], 3) == (both(1, 3), both(1, 3)), "a whole draft has no wrong token"
    assert count([4, 0, 0, 0], 0) == (both(1, 1), both(1, 1)), "not sent, but seen to be right"
    assert count([9, 0, 0, 0], 0) == (both(0, 0), both(1, 1))
    assert count([7, 0, 0, 0], 0) == (both(1, 0), both(1, 1)), "any of a level"
    nothing = dict(copied=jnp.full(4, -1), kind=jnp.int32(0), followers=jnp.full(3, -1))
    assert count([4, 0, 0, 0], 0, **nothing) == (both(0, 0), both(0, 0))


TREE = static.StaticTree(paths=((0,), (1,), (0, 0), (1, 0)))


def chosen(below, copied, rates, num_draft=8):
    """Paths of the chosen nodes, best first, with their probabilities."""
    valid = jnp.asarray([True, *(token >= 0 for token in below)])
    chain = jnp.asarray(copied + [0] * (3 - len(copied)))
    draft = prompt_lookup.Draft(chain, jnp.arange(3) < len(copied), jnp.int32(len(copied)))
    joined = auto.join(TREE, jnp.asarray([9, *below]), valid, rates[0], draft, rates[1])
    nodes = dynamic.select(joined, jnp.int32(9), num_draft)
    paths = []
    for node in np.flatnonzero(nodes.valid):
        path = []
        while node > 0:
            path, node = [int(nodes.tokens[node]), *path], int(nodes.parent[node])
        paths.append(tuple(path))
    return paths[1:], np.exp(nodes.scores[1 : len(paths)])


def test_both_sources_are_one_tree_best_first():
    paths, probs = chosen([1, 2, 3, 4], [5, 6], (0.5, 0.6))
    assert set(paths) == {(1,), (2,), (1, 3), (2, 4), (5,), (5, 6)}
    assert paths[:3] == [(5,), (5, 6), (1,)], "0.6, 0.36, then half of what the first rank gets"
    assert (np.diff(probs) <= 0).all()
    assert chosen([1, 2, 3, 4], [5, 6], (0.5, 0.6), num_draft=2)[0] == paths[:2]


def test_what_both_sources_say_is_sent_once_and_counts_as_the_better_of_the_two():
    paths, probs = chosen([5, 2, 6, 4], [5, 7], (0.9, 0.5))
    assert sorted(paths) == [(2,), (2, 4), (5,), (5, 6), (5, 7)]
    first = float(probs[paths.index((5,))])
    assert first == pytest.approx(0.9 * auto._share((0,)))
    both, _ = chosen([5, 2, 6, 4], [5, 6, 7], (0.9, 0.5))
    assert sorted(both) == [(2,), (2, 4), (5,), (5, 6), (5, 6, 7)]
    assert chosen([-1, -1, -1, -1], [], (0.9, 0.5))[0] == []


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
    def keep(*cost):
        return bool(auto.price(Weights(target=None), np.asarray(cost)).drafter.keep_table)

    assert keep(1, 1.3, 1.9) and not keep(1, 1.6, 1.9)


@pytest.mark.parametrize("widths", [(4, 8), (1,), (1, 8, 4), (1, 1, 4)])
def test_widths_are_checked(widths):
    with pytest.raises(InputError, match="ascend from 1"):
        resolve.split("auto", {"widths": widths})
