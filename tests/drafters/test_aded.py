"""The tri-gram table against a dictionary, and the search against one over all paths."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxdecode as jd
from jaxdecode.drafters import aded
from jaxdecode.errors import InputError
from tests import toys

CONFIG = aded.Config(num_slots=4096, num_candidates=4, max_depth=3, width=64, num_draft=12)
OBSERVE = jax.jit(aded.observe)


class Reference:
    """The table with dictionaries, slot by slot."""

    def __init__(self):
        self.slots = {}

    def see(self, a, b, new):
        slot = int(aded.slot_of(jnp.asarray([a, b]), CONFIG.num_slots))
        pair, row = self.slots.get(slot, (None, {}))
        if pair != (a, b):
            row = {}
        if new not in row and len(row) == CONFIG.num_candidates:
            # The rarest goes; of equals the one that has been there longest at its place.
            gone = min(row, key=lambda token: row[token])
            row = {new if token == gone else token: row[token] for token in row}
            row[new] = 0.0
        row[new] = min(row.get(new, 0.0) + 1, aded.MAX_COUNT)
        self.slots[slot] = ((a, b), row)

    def successors(self, a, b):
        slot = int(aded.slot_of(jnp.asarray([a, b]), CONFIG.num_slots))
        pair, row = self.slots.get(slot, (None, {}))
        return row if pair == (a, b) else {}


def _text(seed, size=300, vocab=7):
    return np.random.default_rng(seed).integers(0, vocab, size).astype(np.int32)


def _tables(seed, num=300):
    text, reference = _text(seed), Reference()
    for a, b, new in itertools.islice(zip(text, text[1:], text[2:], strict=False), num):
        reference.see(int(a), int(b), int(new))
    slots = jnp.arange(300)
    table = OBSERVE(aded.empty(CONFIG), jnp.asarray(text), slots, slots < num + 2)
    return table, reference


def _same(table, reference):
    got = {}
    for slot in np.flatnonzero(np.asarray(table.pairs)[:, 0] >= 0):
        pairs = zip(table.tokens[slot], table.counts[slot], strict=True)
        row = {int(token): float(count) for token, count in pairs if token >= 0}
        got[int(slot)] = (tuple(int(x) for x in table.pairs[slot]), row)
    return got == reference.slots


@pytest.mark.parametrize("seed", range(4))
def test_the_table_is_the_dictionarys(seed):
    table, reference = _tables(seed)
    assert _same(table, reference)
    assert not _same(table, _tables(seed + 1)[1]), "the comparison can fail"


def test_a_pair_that_shares_a_slot_displaces_the_older():
    small = dataclasses.replace(CONFIG, num_slots=1)
    text = jnp.asarray([1, 2, 3, 4])
    table = aded.observe(aded.empty(small), text, jnp.arange(4), jnp.ones(4, bool))
    assert table.pairs.tolist() == [[2, 3]] and table.tokens[0].tolist() == [4, -1, -1, -1]
    assert aded.lookup(table, jnp.asarray([1, 2]))[1].sum() == 0


def _paths(reference, a, b):
    """Score of every path of at most three tokens below the pair (a, b)."""
    found, level = {}, [((), (a, b), 0.0)]
    for _ in range(CONFIG.max_depth):
        below = []
        for path, pair, score in level:
            row = reference.successors(*pair)
            if row:
                law = aded.probabilities(jnp.asarray(list(row.values())), CONFIG.exploration)
                for token, prob in zip(row, law, strict=True):
                    below.append(((*path, token), (pair[1], token), score + np.log(float(prob))))
        found |= {path: score for path, _, score in below}
        level = below
    return found


@pytest.mark.parametrize("seed", range(4))
def test_it_proposes_the_likeliest_paths(seed):
    table, reference = _tables(seed, 60)
    text = jnp.asarray(_text(seed))
    chosen = jax.jit(lambda *row: aded.draft(*row, CONFIG))(table, text, jnp.int32(70))
    paths = [()]
    for node in range(1, len(chosen.tokens)):
        paths.append((*paths[int(chosen.parent[node])], int(chosen.tokens[node])))
    wanted = _paths(reference, int(text[69]), int(text[70]))
    got = [wanted[path] for path, ok in zip(paths[1:], chosen.valid[1:], strict=True) if ok]
    best = sorted(wanted.values(), reverse=True)[: CONFIG.num_draft]
    np.testing.assert_allclose(got, best, atol=1e-5)
    assert len(set(paths)) == len(paths) or not chosen.valid.all()


def test_rare_successors_gain_by_exploration():
    counts = jnp.asarray([9.0, 1.0, 0.0])
    plain, bold = aded.probabilities(counts, 0.0), aded.probabilities(counts, 5.0)
    np.testing.assert_allclose(plain, [9 / 11, 1 / 11, 0])
    assert bold[1] > plain[1] and bold[2] == 0 and bold.sum() < 1


def test_the_memory_is_the_first_rows_that_changed_a_slot():
    config = dataclasses.replace(CONFIG, num_slots=4)
    tables = [aded.empty(config) for _ in range(3)]
    for row, table in enumerate(tables):
        written = table.written.at[row].set(True)
        tables[row] = dataclasses.replace(table, counts=table.counts + row, written=written)
    memory = aded.remember(jax.tree.map(lambda *rows: jnp.stack(rows), *tables))
    assert memory.counts[:, 0].tolist() == [0, 1, 2, 0] and not memory.written.any()


def test_the_same_prompts_again_take_fewer_steps_and_give_the_same_tokens():
    lm = toys.model()
    prompts = [[5, 6, 7, 8]] * 3
    out = jd.generate(lm, prompts, method="aded", batch_size=1, max_new_tokens=24)
    assert out.tokens[0] == out.tokens[1] == out.tokens[2]
    nfe = [stats.nfe for stats in out.stats]
    assert nfe[0] > max(nfe[1:])


@pytest.mark.parametrize(
    "options", [{"num_draft": 64}, {"num_slots": 1000}, {"exploration": -1.0}, {"width": 0}]
)
def test_options_out_of_range_are_refused(options):
    with pytest.raises(InputError, match=next(iter(options))):
        aded.Config(**options)
