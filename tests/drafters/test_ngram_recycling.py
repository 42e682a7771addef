"""The chain from the text and the tree from the table, in one proposal."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdecode.core.protocols import Models
from jaxdecode.core.types import Canvas
from jaxdecode.drafters import ngram_recycling, prompt_lookup, token_recycling
from jaxdecode.errors import InputError
from jaxdecode.trees import static
from tests import toys

TREE = static.load("eagle_25")
NUM_DRAFT = 4


def _canvas(tokens, length):
    shape = np.shape(tokens)
    values = {field.name: jnp.zeros(shape[0], jnp.int32) for field in dataclasses.fields(Canvas)}
    values |= {"tokens": jnp.asarray(tokens, jnp.int32), "length": jnp.asarray(length, jnp.int32)}
    return Canvas(**values)


def _proposed(on_match, canvas, state):
    config = ngram_recycling.Config(tree="eagle_25", num_draft=NUM_DRAFT, on_match=on_match)
    lm = toys.model()
    model = lm.bound
    drafter = ngram_recycling.make(config, Models(model))
    return drafter, jax.jit(drafter.propose)(None, state, None, canvas, None)[0]


@pytest.mark.parametrize("on_match", ["both", "chain"])
def test_it_proposes_what_its_parts_propose(on_match):
    tokens = np.random.default_rng(3).integers(0, 6, (5, 30))
    tokens[4] = np.arange(30)  # nothing is repeated: no match
    canvas = _canvas(tokens, [29, 17, 6, 2, 20])
    state = token_recycling.init(canvas, None, size=61, num_candidates=8)
    drafter, proposal = _proposed(on_match, canvas, state)
    look = prompt_lookup.Config(num_draft=NUM_DRAFT)
    matched = []
    for row in range(5):
        length = canvas.length[row]
        chain, found, _ = prompt_lookup.lookup(canvas.tokens[row], length, look)
        below, valid = token_recycling.draft(state.followers[row], canvas.tokens[row, length], TREE)
        matched.append(bool(found[0]))
        valid = valid[1:] & (on_match == "both" or not matched[-1])
        np.testing.assert_array_equal(proposal.tokens[row], [below[0], *chain, *below[1:]])
        np.testing.assert_array_equal(proposal.valid[row], [True, *found, *valid])
    assert True in matched and False in matched
    assert drafter.widths[-1] == proposal.tokens.shape[1] == 1 + NUM_DRAFT + 25
    assert NUM_DRAFT + 1 in drafter.widths and drafter.max_depth == 5


@pytest.mark.parametrize("num_draft", [1, 3, 9])
def test_chain_and_tree_share_the_root_only(num_draft):
    parent, depth = ngram_recycling.shape(TREE, num_draft)
    assert (parent[1:] < np.arange(1, len(parent))).all() and parent[0] == -1
    np.testing.assert_array_equal(depth[1:], depth[parent[1:]] + 1)
    np.testing.assert_array_equal(parent[1 : num_draft + 1], np.arange(num_draft))
    below = parent[num_draft + 1 :]
    assert not ((below > 0) & (below <= num_draft)).any()
    np.testing.assert_array_equal(np.sort(depth[num_draft + 1 :]), np.sort(TREE.depth[1:]))


def test_options_out_of_range_are_refused():
    for options, message in [
        ({"on_match": "tree"}, "use both or chain"),
        ({"num_draft": 0}, "num_draft"),
        ({"num_candidates": 2}, "at least 8"),
        ({"max_ngram": 1, "min_ngram": 2}, "max_ngram"),
    ]:
        with pytest.raises(InputError, match=message):
            ngram_recycling.Config(**options)
