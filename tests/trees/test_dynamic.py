"""Dynamic trees against a search over plain Python dictionaries."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdecode.trees import dynamic

VOCAB, BRANCH = 7, 3


def _table(seed, ties=False):
    """Log-probabilities of the next token given the last one; coarse ones tie often."""
    rng = np.random.default_rng(seed)
    law = rng.dirichlet(np.full(VOCAB, 0.5), VOCAB)
    if ties:
        law = np.round(law * 4) / 4
    with np.errstate(divide="ignore"):
        return np.log(law).astype(np.float32)


def _grown(table, levels, width):
    table = jnp.asarray(table)

    def children(carry, contexts):
        scores, tokens = jax.lax.top_k(table[contexts], BRANCH)
        return tokens, scores, tokens, carry + 1

    return dynamic.grow(children, jnp.int32(0), jnp.int32(2), levels=levels, width=width)


def _reference(table, levels, width):
    """{path: score} of all candidates, in the order in which they are grown."""
    found, beam = {}, [((), np.float32(0))]
    for _ in range(levels):
        level = []
        for path, score in beam:
            row = table[path[-1] if path else 2]
            for token in np.argsort(-row, kind="stable")[:BRANCH]:
                level.append(((*path, int(token)), np.float32(score + row[token])))
        found |= dict(level)
        beam = sorted(level, key=lambda item: -item[1])[:width]
    return found


def _paths(chosen):
    paths = [()]
    for node in range(1, len(chosen.tokens)):
        paths.append((*paths[int(chosen.parent[node])], int(chosen.tokens[node])))
    return paths


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize(("levels", "width", "num_draft"), [(1, 3, 2), (3, 2, 6), (4, 5, 20)])
def test_it_is_the_best_of_what_a_plain_search_finds(seed, levels, width, num_draft):
    table = _table(seed)
    candidates, calls = _grown(table, levels, width)
    assert int(calls) == levels
    wanted = _reference(table, levels, width)
    best = sorted(wanted.items(), key=lambda item: -item[1])[:num_draft]
    chosen = dynamic.select(candidates, jnp.int32(2), num_draft)
    assert _paths(chosen)[1:] == [path for path, _ in best]
    np.testing.assert_array_equal(chosen.depth, [len(path) for path in _paths(chosen)])
    assert int(chosen.tokens[0]) == 2 and int(chosen.parent[0]) == -1 and chosen.valid.all()


@pytest.mark.parametrize("seed", range(6))
def test_every_prefix_is_a_tree_even_with_ties(seed):
    chosen = dynamic.select(_grown(_table(seed, ties=True), 4, 4)[0], jnp.int32(2), 25)
    parent = np.asarray(chosen.parent)
    assert (parent[1:] < np.arange(1, len(parent))).all() and (parent[1:] >= 0).all()
    np.testing.assert_array_equal(chosen.depth[1:], np.asarray(chosen.depth)[parent[1:]] + 1)
    valid = np.asarray(chosen.valid)
    assert (valid[parent[1:]] | ~valid[1:]).all(), "a node that exists has a parent that exists"
    assert (np.diff(valid.astype(int)) <= 0).all(), "what does not exist comes last"


def test_the_example_of_eagle2():
    """Probabilities .6, .3 below the root and .5, .4; .9, .05 below those; .3 is there twice."""
    law = jnp.asarray([[0.6, 0.3], [0.5, 0.4], [0.9, 0.05]])

    def children(carry, contexts):
        ids = jnp.broadcast_to(jnp.asarray([1, 2]), (len(contexts), 2))
        return ids, jnp.log(law[contexts]), ids, carry

    candidates, _ = dynamic.grow(children, None, jnp.int32(0), levels=2, width=2)
    wanted = [0.6, 0.3, 0.3, 0.24, 0.27, 0.015]
    np.testing.assert_allclose(np.exp(candidates.scores), wanted, rtol=1e-5)
    chosen = dynamic.select(candidates, jnp.int32(9), 4)
    assert sorted(_paths(chosen)) == [(), (1,), (1, 1), (2,), (2, 1)]


def test_more_nodes_than_candidates_gives_all_candidates():
    candidates, _ = _grown(_table(0), 2, 2)
    assert len(dynamic.select(candidates, jnp.int32(2), 99).tokens) == 1 + 3 + 2 * 3


def test_nothing_on_offer_leaves_the_root_alone():
    chosen = dynamic.select(_grown(np.full((VOCAB, VOCAB), -np.inf), 3, 2)[0], jnp.int32(2), 5)
    assert np.asarray(chosen.valid).tolist() == [True] + [False] * 5
