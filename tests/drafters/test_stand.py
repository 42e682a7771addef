"""The table of laws against dictionaries, the draws against their recorded law, and the text."""

import dataclasses
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxdecode as jd
from jaxdecode.core.types import Sampling
from jaxdecode.drafters import stand
from jaxdecode.errors import InputError
from jaxdecode.sampling import warp
from jaxdecode.trees import static
from jaxdecode.verifiers import rejection
from tests import toys

K, VOCAB = 4, 6
CONFIG = stand.Config(tree="eagle_25", num_candidates=K, num_slots=4096)
OBSERVE = jax.jit(stand.observe)


def _laws(rng, num):
    """Random laws of K of the VOCAB tokens each."""
    tokens = np.stack([rng.permutation(VOCAB)[:K] for _ in range(num)])
    return tokens.astype(np.int32), rng.dirichlet(np.ones(K), num).astype(np.float32)


def _reference(contexts, tokens, probs, wanted):
    """Mean law by context, as dictionaries; only the K likeliest survive each update."""
    table = {}
    for context, law_tokens, law_probs, use in zip(contexts, tokens, probs, wanted, strict=True):
        for cut in range(3) if use else ():
            end = (-1,) * cut + tuple(int(x) for x in context[cut:])
            mean, count = table.get(end, ({}, 0))
            fresh = {int(t): float(p) for t, p in zip(law_tokens, law_probs, strict=True) if p}
            both = {
                t: (mean.get(t, 0) * count + fresh.get(t, 0)) / (count + 1)
                for t in mean.keys() | fresh.keys()
            }
            kept = sorted(both, key=lambda t: -both[t])[:K]
            table[end] = {t: both[t] for t in kept}, count + 1
    return table


def _filled(seed, num=40):
    rng = np.random.default_rng(seed)
    contexts = rng.integers(0, 3, (num, 3)).astype(np.int32)
    tokens, probs = _laws(rng, num)
    wanted = rng.random(num) < 0.8
    args = [jnp.asarray(x) for x in (contexts, tokens, probs, wanted)]
    return OBSERVE(stand.empty(CONFIG), *args), _reference(contexts, tokens, probs, wanted)


@pytest.mark.parametrize("seed", range(3))
def test_the_table_holds_the_mean_laws(seed):
    table, wanted = _filled(seed)
    slots = np.flatnonzero(np.asarray(table.counts))
    assert {tuple(np.asarray(table.contexts[slot]).tolist()) for slot in slots} == set(wanted)
    for slot in slots:
        law, count = wanted[tuple(np.asarray(table.contexts[slot]).tolist())]
        assert int(table.counts[slot]) == count
        got = dict(zip(table.tokens[slot].tolist(), table.probs[slot].tolist(), strict=True))
        assert {t: pytest.approx(p, abs=1e-5) for t, p in got.items() if t >= 0} == law


def test_the_longest_known_context_decides():
    table, wanted = _filled(0)
    look = jax.jit(stand.lookup)
    known = next(end for end in wanted if -1 not in end)
    for context in [known, (5, known[1], known[2]), (5, 5, known[2]), (5, 5, 5)]:
        ends = [(-1,) * cut + tuple(context[cut:]) for cut in range(3)]
        law = next((wanted[end][0] for end in ends if end in wanted), {})
        tokens, probs = look(table, jnp.asarray(context))
        got = {int(t): float(p) for t, p in zip(tokens, probs, strict=True) if p > 0}
        total = sum(law.values())
        assert got == {t: pytest.approx(p / total, abs=1e-5) for t, p in law.items()}


@pytest.mark.parametrize("options", [{}, {"top_k": 3}, {"top_p": 0.7}, {"min_p": 0.2}])
def test_the_laws_that_enter_are_the_warped_ones(options):
    logits = jnp.asarray(np.random.default_rng(1).normal(size=(5, 9)) * 3, jnp.float32)
    given = {name: jnp.asarray(value) for name, value in options.items()}
    sampling = Sampling(temperature=jnp.float32(0.7), **given)
    tokens, probs = stand.law_of(logits, sampling, 12)
    for row in range(5):
        whole = jax.nn.softmax(warp.warp(logits[row], sampling, None))
        got = jnp.zeros(9).at[tokens[row]].add(probs[row])
        np.testing.assert_allclose(got, whole, atol=1e-6)


TREE = static.from_paths([[0], [1], [0, 0], [0, 1], [1, 0]])


@jax.jit
def _drafts(table, keys):
    text = jnp.asarray([0, 1, 2, 1])

    def row(key):
        return stand.draft(table, key, jnp.bool_(False), text, jnp.int32(3), TREE)

    return jax.vmap(row)(keys)


def test_children_are_drawn_without_replacement_from_the_recorded_law():
    table, _ = _filled(2)
    num = 40_000
    keys = jnp.asarray(np.random.default_rng(0).integers(0, 2**32, (num, 2), dtype=np.uint32))
    tokens, valid, law = _drafts(table, keys)
    assert valid[:, :3].all() and (tokens[:, 1] != tokens[:, 2]).all()
    q = np.zeros(VOCAB)
    np.add.at(q, np.asarray(law.tokens[0, 0]), np.asarray(law.probs[0, 0]))
    assert q.sum() == pytest.approx(1, abs=1e-5)
    wanted = np.outer(q, q) / np.maximum(1 - q, 1e-9)[:, None] * (1 - np.eye(VOCAB))
    got = np.zeros((VOCAB, VOCAB))
    np.add.at(got, (np.asarray(tokens[:, 1]), np.asarray(tokens[:, 2])), 1 / num)
    assert np.abs(got - wanted).max() < 5 * np.sqrt(0.25 / num)
    # The children of the first child follow its own context.
    first = np.asarray(tokens[:, 1]) == np.flatnonzero(q)[0]
    assert len(np.unique(np.asarray(law.tokens[first, 1]), axis=0)) == 1


def _verdict_law(table, target, law_of_drafts=lambda law: law, num=40_000):
    """Share of each next token at the root: the rule's law, averaged over drafts."""
    keys = jnp.asarray(np.random.default_rng(1).integers(0, 2**32, (num, 2), dtype=np.uint32))
    tokens, valid, law = _drafts(table, keys)

    def one(tokens, valid, law_tokens, law_probs):
        recorded = jnp.zeros(VOCAB).at[law_tokens].add(law_probs)
        visit = SimpleNamespace(
            draft_probs=law_of_drafts(recorded),
            tokens=tokens[1:3],
            valid=valid[1:3],
            target_probs=lambda: target,
        )
        return rejection.law(visit, once=True)

    return np.asarray(jax.vmap(one)(tokens, valid, law.tokens[:, 0], law.probs[:, 0]).mean(0))


def test_the_verified_law_is_the_targets_and_a_wrong_record_is_seen():
    table, _ = _filled(2)
    target = jnp.asarray(np.random.default_rng(5).dirichlet(np.ones(VOCAB)), jnp.float32)
    assert np.abs(_verdict_law(table, target) - np.asarray(target)).max() < 0.01
    flat = _verdict_law(table, target, lambda law: jnp.full(VOCAB, 1 / VOCAB))
    assert np.abs(flat - np.asarray(target)).max() > 0.03


def test_greedy_rows_take_the_likeliest_and_record_a_point():
    table, _ = _filled(2)
    text = jnp.asarray([0, 1, 2, 1])
    tokens, _, law = stand.draft(
        table, jnp.zeros(2, jnp.uint32), jnp.bool_(True), text, jnp.int32(3), TREE
    )
    found, probs = stand.lookup(table, jnp.asarray([1, 2, 1]))
    assert tokens[1] == found[0] and tokens[2] == found[1] and probs[0] > probs[1]
    assert law.probs[0].tolist() == [1, 0, 0, 0]


def test_it_learns_within_a_row_and_forgets_between_rows():
    lm = toys.model()
    greedy = jd.generate(lm, [[5, 6, 7, 8]] * 2, method="stand", batch_size=1, max_new_tokens=60)
    plain = jd.generate(lm, [[5, 6, 7, 8]], max_new_tokens=60)
    assert greedy.tokens == plain.tokens * 2
    assert greedy.stats[0].nfe == greedy.stats[1].nfe < 45


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_slots": 1000}, "num_slots"),
        ({"num_candidates": 2}, "num_candidates"),
        ({"tree": "medusa_63", "num_candidates": 10}, None),
    ],
)
def test_options_out_of_range_are_refused(options, message, tmp_path):
    if message:
        with pytest.raises(InputError, match=message):
            stand.Config(**options)
        return
    assert dataclasses.replace(CONFIG, **options).tree == "medusa_63"
    file = tmp_path / "gap.json"
    file.write_text('{"paths": [[0], [2]]}')
    with pytest.raises(InputError, match="one after another"):
        stand.Config(tree=str(file))
