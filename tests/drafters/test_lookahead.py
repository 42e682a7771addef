"""Lookahead against the visibility rule, the pool and the whole loop written out in Python."""

import jax.numpy as jnp
import numpy as np
import pytest

import jaxdecode as jd
from jaxdecode.core import masks
from jaxdecode.drafters import lookahead
from jaxdecode.errors import InputError
from tests import toys

PROMPT = [3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 5, 3, 1, 4]
SMALL = dict(window=3, ngram=4, pool=2, buckets=5)


def places(config):
    """Every node as ("root",), ("window", level, column) or ("draft", branch, step)."""
    window = [("window", m, w) for m in range(config.levels) for w in range(config.window)]
    drafts = [("draft", g, n) for g in range(config.pool) for n in range(config.levels)]
    return [("root",), *window, *drafts]


def sees(query, key):
    """The rule: level 0 up to the own column, the own column's earlier levels, the own branch."""
    if key == ("root",) or query == key:
        return True
    if query[0] != key[0]:
        return False
    if query[0] == "draft":
        return key[1] == query[1] and key[2] < query[2]
    same_column = key[2] == query[2] and key[1] < query[1]
    return same_column or (key[1] == 0 and key[2] < query[2])


@pytest.mark.parametrize("sizes", [(7, 5, 7), (3, 2, 1), (1, 4, 2), (4, 3, 3)])
def test_mask_is_the_visibility_rule(sizes):
    config = lookahead.Config(window=sizes[0], ngram=sizes[1], pool=sizes[2])
    parent, depth = lookahead.shape(config)
    nodes = places(config)
    assert len(nodes) == len(parent) == 1 + (sizes[1] - 1) * (sizes[0] + sizes[2])
    got = np.asarray(masks.ancestors_of(jnp.asarray(parent)))
    assert np.array_equal(got, [[sees(query, key) for key in nodes] for query in nodes])
    assert not np.array_equal(got, [[sees(key, query) for key in nodes] for query in nodes])
    for node, place in enumerate(nodes):
        if place[0] == "window":
            assert depth[node] == 1 + place[1] + place[2]
    assert (parent < np.arange(len(parent))).all()


class Pool:
    """The pool as lists: FIFO of `size` per bucket, a repeated n-gram becomes the newest."""

    def __init__(self, buckets, size):
        self.buckets, self.size, self.lists = buckets, size, {}

    def insert(self, gram):
        grams = self.lists.setdefault(gram[0] % self.buckets, [])
        if gram in grams:
            grams.remove(gram)
        grams.append(gram)
        del grams[: -self.size]

    def find(self, token):
        grams = self.lists.get(token % self.buckets, [])
        return [gram for gram in reversed(grams) if gram[0] == token]


def test_pool_is_the_python_one():
    random = np.random.default_rng(0)
    grams = random.integers(0, [7, 2, 2], size=(200, 3))
    ours, theirs = jnp.full((4, 3, 3), -1, jnp.int32), Pool(4, 3)
    for part in np.split(grams, 8):
        ours = lookahead.insert_all(ours, jnp.asarray(part))
        for gram in part.tolist():
            theirs.insert(tuple(gram))
        for token in range(7):
            found, exists = lookahead.find(ours, jnp.int32(token))
            assert [tuple(g) for g in np.asarray(found)[exists].tolist()] == theirs.find(token)
    assert np.array_equal(lookahead.insert(ours, jnp.asarray([2, -1, 0])), ours)


def decode_by_hand(lm, prompt, num_new, config):
    """Tokens and the number committed by each step."""
    pool, row, counts = Pool(config.buckets, config.pool), list(prompt), []
    size, width, levels = len(prompt), config.window, config.levels
    for begin in range(size - levels):
        pool.insert(tuple(prompt[begin : begin + config.ngram]))
    window = [[prompt[(w * size // width + m) % size] for w in range(width)] for m in range(levels)]

    def answer(tokens):
        return int(toys.full_logits(lm, tokens)[0][-1].argmax())

    while len(row) < len(prompt) + num_new:
        answers = [
            answer(row + window[0][: w + 1] + [window[m][w] for m in range(1, levels)])
            for w in range(width)
        ]
        drafts = [list(gram[1:]) for gram in pool.find(row[-1])]
        count, new = 1, [answer(row)]
        while any(draft[:count] == new for draft in drafts):
            new, count = [*new, answer(row + new)], count + 1
        row, window = row + new, [*window, answers]
        counts.append(count)
        for w in range(width):
            pool.insert(tuple(line[w] for line in window))
        window = window[1:]
    return row[len(prompt) :][:num_new], counts


def test_every_step_is_that_of_the_reference():
    lm = toys.model()
    out = jd.generate(lm, [PROMPT], method="lookahead", max_new_tokens=26, **SMALL)
    tokens, counts = decode_by_hand(lm, PROMPT, 26, lookahead.Config(**SMALL))
    steps = [step for step, count in enumerate(counts) for _ in range(count)]
    assert out.tokens == [tokens] and out.steps == [steps[:26]]
    assert out.stats[0].nfe < 26, "nothing was accepted, so this test has seen nothing"


def test_options_are_checked():
    with pytest.raises(InputError, match="ngram=1"):
        jd.generate(toys.model(), [PROMPT], method="lookahead", ngram=1)
