"""Packed batches: nothing is lost, nothing is mixed up, and the order is the seed's alone."""

import json
from collections import Counter

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxdecode.errors import InputError
from jaxdecode.training import objective
from jaxdecode.training.data import Data, open_data, pack, to_batch
from jaxdecode.training.texts import Text
from tests import toys

WIDTH = 24


def lines(num, seed=0, longest=WIDTH, vocab=61):
    """Texts of any length, no two alike: the first token counts them."""
    rng = np.random.default_rng(seed)
    found = []
    for i in range(num):
        size = int(rng.integers(2, longest + 1))
        tokens = [i % vocab, i // vocab, *rng.integers(0, vocab, size - 2).tolist()]
        found.append({"tokens": tokens, "prompt_length": int(rng.integers(0, size))})
    return found


@pytest.fixture
def loader(jsonl):
    name = jsonl(*lines(37))

    def opened(train=name, batch_size=2, seed=5, **options):
        parts = {k: options.pop(k) for k in ("process_index", "num_processes") if k in options}
        config = Data(train=train, **{"max_length": WIDTH, **options})
        return open_data(config, tokenizer=None, batch_size=batch_size, seed=seed, **parts)

    return opened


def texts_of(batch):
    """Every text of a batch, row by row: its tokens and what counts; checks the layout."""
    found = []
    for b in range(len(batch.tokens)):
        segments = batch.segments[b]
        real = segments > 0
        assert not batch.weight[b][~real].any() and not batch.tokens[b][~real].any()
        assert (np.diff(segments[real]) >= 0).all() and real[: real.sum()].all()
        for number in range(1, segments.max() + 1):
            own = segments == number
            assert batch.positions[b][own].tolist() == list(range(own.sum()))
            found.append((tuple(batch.tokens[b][own]), tuple(batch.weight[b][own])))
    return found


def same(a, b):
    return all(np.array_equal(x, y) for x, y in zip(*map(jax.tree.leaves, (a, b)), strict=True))


def epochs(loaders, num):
    """The texts of the first epochs, from the batches of all processes."""
    found = [Counter() for _ in range(num)]
    num_texts = loaders[0].counts.num_texts
    seen = []
    while len(seen) < num_texts * num:
        for one in loaders:
            seen += texts_of(next(one))
    for i, text in enumerate(seen[: num_texts * num]):
        found[i // num_texts][text] += 1
    return found


@pytest.mark.parametrize("pack", [True, False])
@pytest.mark.parametrize("num_processes", [1, 2])
def test_every_epoch_has_every_text_exactly_once(loader, pack, num_processes):
    loaders = [
        loader(pack=pack, batch_size=3, process_index=i, num_processes=num_processes)
        for i in range(num_processes)
    ]
    wanted = Counter()
    for line in lines(37):
        counts = np.arange(len(line["tokens"])) >= line["prompt_length"]
        wanted[tuple(line["tokens"]), tuple(counts.astype(float))] += 1
    assert epochs(loaders, 3) == [wanted] * 3


def test_packing_fills_rows(loader):
    batch, alone = (next(loader(batch_size=10, pack=pack)) for pack in (True, False))
    assert batch.tokens.shape == alone.tokens.shape == (10, WIDTH)
    assert alone.segments.max() == 1 and batch.segments.max() > 1
    assert (batch.segments > 0).mean() > 0.9 > 0.7 > (alone.segments > 0).mean()


@given(st.lists(st.integers(1, 30), max_size=60))
def test_no_row_is_too_long_and_nothing_is_lost(lengths):
    rows = pack(lengths, 30)
    assert sorted(i for row in rows for i in row) == list(range(len(lengths)))
    fill = [sum(lengths[i] for i in row) for row in rows]
    assert max(fill, default=0) <= 30
    # Two rows that are not half full would have become one.
    assert sum(f < 15 for f in fill) <= 1


def test_order_is_of_the_seed_and_the_epoch(loader):
    first, again, other = loader(), loader(), loader(seed=6)
    batches = [next(first) for _ in range(30)]
    assert all(same(a, next(again)) for a in batches)
    assert not all(same(a, next(other)) for a in batches)
    assert first.epoch > 1
    by_epoch = loader(batch_size=1, pack=False)
    rows = [next(by_epoch).tokens[0].tolist() for _ in range(74)]
    assert rows[:37] != rows[37:] and sorted(rows[:37]) == sorted(rows[37:])


def test_what_a_step_sees_does_not_depend_on_the_number_of_processes(loader):
    whole = loader(batch_size=4)
    parts = [loader(process_index=i, num_processes=2) for i in range(2)]
    for _ in range(25):
        joined = jax.tree.map(lambda *x: np.concatenate(x), *map(next, parts))
        assert same(next(whole), joined)
    assert whole.state() == parts[0].state() == parts[1].state()


@settings(max_examples=25, deadline=None)
@given(before=st.integers(0, 40), lost=st.integers(0, 20))
def test_resume_is_exact_at_any_place(tmp_path_factory, before, lost):
    path = tmp_path_factory.getbasetemp() / "resumed.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines(23)))

    def opened():
        config = Data(train=str(path), max_length=WIDTH)
        return open_data(config, tokenizer=None, batch_size=2, seed=1)

    run, killed = opened(), opened()
    for _ in range(before):
        next(run)
    state = run.state()
    rest = [next(run) for _ in range(lost + 3)]
    for _ in range(lost):
        next(killed)
    killed.restore(state)
    assert killed.state() == state
    assert all(same(a, next(killed)) for a in rest) and killed.state() == run.state()


def test_a_place_in_other_data_is_refused(loader, jsonl, tmp_path):
    state = loader().state()
    (tmp_path / "other").mkdir()
    other = tmp_path / "other" / "x.jsonl"
    other.write_text("".join(json.dumps(line) + "\n" for line in lines(37, seed=1)))
    for changed in ({"train": str(other)}, {"seed": 6}, {"pack": False}, {"max_length": 25}):
        with pytest.raises(InputError, match="other data"):
            loader(**changed).restore(state)
    with pytest.raises(InputError, match="other data"):
        loader(batch_size=3).restore(state)
    # The same rows of a step among more processes are the same data.
    loader(batch_size=1, process_index=1, num_processes=2).restore(state)


def test_long_texts_are_cut_and_counted(loader, jsonl):
    name = jsonl(
        {"tokens": [1] * 30, "prompt_length": 3},
        {"tokens": [2] * 30, "prompt_length": 28},
        {"tokens": [3] * 5, "prompt_length": 1},
    )
    with pytest.warns(UserWarning, match=f"2 texts are longer than .*={WIDTH}.* 1 had no answer"):
        found = loader(train=name)
    assert (found.counts.num_texts, found.counts.num_cut, found.counts.num_dropped) == (2, 2, 1)
    assert (found.counts.num_tokens, found.counts.num_counted) == (WIDTH + 5, WIDTH - 3 + 4)
    with pytest.raises(InputError, match="nothing to learn|no text has anything"):
        loader(train=jsonl({"tokens": [2] * 30, "prompt_length": 28}))


def test_held_out_texts_come_along_and_leaks_are_told(loader, jsonl, tmp_path):
    clean = tmp_path / "held_out.jsonl"
    clean.write_text(json.dumps({"tokens": [60, 60, 60], "prompt_length": 2}) + "\n")
    found = loader(held_out=str(clean))
    assert [text.prompt for text in found.held_out] == [[60, 60]] and not found.counts.num_shared
    assert loader().held_out == []
    name = jsonl(*lines(4))
    with pytest.warns(UserWarning, match="4 of 4 prompts"):
        assert loader(train=name, held_out=name).counts.num_shared == 4


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"max_length": 1}, "data.max_length=1 is out of range"),
        ({"batch_size": 0}, "batch_size=0"),
        ({"seed": -1}, "seed=-1"),
        ({"process_index": 2, "num_processes": 2}, "process_index=2"),
    ],
)
def test_settings_are_checked(loader, changed, message):
    with pytest.raises(InputError, match=message):
        loader(**changed)


@pytest.mark.parametrize("name", ["llama", "gemma"])
def test_packed_texts_see_only_themselves(name):
    lm, rng = toys.model(name), np.random.default_rng(0)
    rows = [[9, 1, 14], [24], [5, 6]]
    texts = [
        [Text(rng.integers(0, 61, n).astype(np.int32), np.ones(n, bool)) for n in row]
        for row in rows
    ]
    batch = jax.tree.map(jnp.asarray, to_batch(texts, WIDTH))
    output = lm.target.forward(lm.params, batch.tokens, objective.program(batch), None)
    packed = np.asarray(lm.target.logits(lm.params, output.hidden))
    for b, row in enumerate(texts):
        start = 0
        for text in row:
            alone, _ = toys.full_logits(lm, text.tokens.tolist())
            part = packed[b, start : start + len(text.tokens)]
            np.testing.assert_allclose(part, alone, atol=1e-5)
            start += len(text.tokens)
