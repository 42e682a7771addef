"""Token recycling: its table against dictionaries, and what it promises on repetitive text."""

import dataclasses
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxdecode as jd
from jaxdecode.core.types import Canvas, Proposal, Verdict
from jaxdecode.drafters import token_recycling
from jaxdecode.errors import InputError
from jaxdecode.sampling.top import top_ids
from jaxdecode.trees import static
from tests import toys

SIZE, K = 11, 3
TREE = static.from_paths([[0], [1], [2], [0, 0], [0, 2], [1, 0], [0, 0, 0], [0, 2, 1]])


@pytest.mark.parametrize(("size", "k"), [(61, 8), (3000, 8), (4099, 5), (2560, 1)])
def test_the_top_is_exact_with_ties_in_order(size, k):
    scores = np.random.default_rng(size).integers(0, 40, (5, size)).astype(np.float32)
    scores[0] = -np.inf
    scores[1, 7:] = -np.inf
    wanted = np.argsort(-scores, axis=-1, kind="stable")[:, :k]
    np.testing.assert_array_equal(top_ids(jnp.asarray(scores), k), wanted)


def _canvas(tokens, length):
    shape = np.shape(tokens)
    zeros, flags = np.zeros(shape[0], np.int32), np.zeros(shape[0], bool)
    return Canvas(
        tokens=jnp.asarray(tokens, jnp.int32),
        open=jnp.zeros(shape, bool),
        length=jnp.asarray(length, jnp.int32),
        end=zeros,
        done=jnp.asarray(flags),
        finish=zeros,
        stop_state=zeros,
        commit_step=np.zeros(shape, np.int32),
        logprob=np.zeros(shape, np.float32),
    )


def _primed(memory, tokens):
    """Followers of every token: the memory's, else those in the text, latest first."""
    table = {token: list(row) for token, row in memory.items()}
    for token, new in zip(tokens, tokens[1:], strict=False):
        if token not in memory:
            row = table.get(token, [])
            table[token] = [new, *(other for other in row if other != new)][:K]
    return table


def _as_table(array):
    rows = {token: [int(x) for x in row if x >= 0] for token, row in enumerate(np.asarray(array))}
    return {token: row for token, row in rows.items() if row}


def _as_array(table):
    array = np.full((SIZE, K), -1, np.int32)
    for token, row in table.items():
        array[token, : len(row)] = row
    return jnp.asarray(array)


@pytest.mark.parametrize("seed", range(5))
def test_tables_start_from_the_memory_and_the_prompt(seed):
    rng = np.random.default_rng(seed)
    memory = {int(t): rng.permutation(SIZE)[:K].tolist() for t in rng.permutation(SIZE)[:4]}
    tokens, length = rng.integers(0, SIZE, (3, 40)), np.asarray([39, 17, 0])
    state = token_recycling.init(
        _canvas(tokens, length), _as_array(memory), size=SIZE, num_candidates=K
    )
    for row in range(3):
        wanted = _primed(memory, tokens[row, : length[row] + 1].tolist())
        assert _as_table(state.followers[row]) == wanted
    assert not state.written.any()


DRAFT = jax.jit(lambda followers, pending: token_recycling.draft(followers, pending, TREE))


def _reference_draft(table, pending):
    tokens, paths = [pending], [()]
    for path in TREE.paths:
        above = tokens[paths.index(path[:-1])]
        row = [] if above is None else table.get(above, [])
        tokens.append(row[path[-1]] if path[-1] < len(row) else None)
        paths.append(path)
    return tokens


@pytest.mark.parametrize("seed", range(20))
def test_nodes_are_the_followers_of_their_parents(seed):
    rng = np.random.default_rng(seed)
    table = {t: rng.permutation(SIZE)[: rng.integers(1, K + 1)].tolist() for t in range(0, SIZE, 2)}
    pending = int(rng.integers(SIZE))
    tokens, valid = DRAFT(_as_array(table), jnp.int32(pending))
    wanted = _reference_draft(table, pending)
    assert [int(t) if v else None for t, v in zip(tokens, valid, strict=True)] == wanted


def _reference_write(table, tokens, valid, path, logits):
    """The accepted path writes last, deepest first; before it the others, deepest first."""
    order = sorted(range(len(tokens)), key=lambda n: (n in path, -TREE.depth[n], -n))
    for node in order:
        if valid[node]:
            table[tokens[node]] = np.argsort(-logits[node], kind="stable")[:K].tolist()
    return table


def _step(seed):
    """Two rows of a step; the second is done."""
    rng = np.random.default_rng(seed)
    tokens = rng.integers(0, 5, (2, TREE.num_nodes))
    valid = rng.random((2, TREE.num_nodes)) < 0.8
    valid[:, 0] = True
    deepest = int(rng.integers(TREE.num_nodes))
    path = [deepest]
    while path[0]:
        path.insert(0, int(TREE.parent[path[0]]))
    valid[:, path] = True
    whole = path + [0] * (TREE.max_depth + 1 - len(path))
    return rng, tokens, valid, path, np.asarray([whole, whole])


UPDATE = jax.jit(
    lambda state, canvas, proposal, verdict, logits: token_recycling.update(
        None, state, None, canvas, proposal, verdict, SimpleNamespace(logits=logits)
    )
)


def _updated(seed, update=UPDATE):
    rng, tokens, valid, path, whole = _step(seed)
    logits = rng.normal(size=(2, TREE.num_nodes, SIZE)).astype(np.float32)
    table = {t: rng.permutation(SIZE)[:K].tolist() for t in range(SIZE)}
    canvas = _canvas(np.zeros((2, 4)), [0, 0])
    canvas = dataclasses.replace(canvas, done=jnp.asarray([False, True]))
    proposal = Proposal(
        tokens=jnp.asarray(tokens, jnp.int32),
        valid=jnp.asarray(valid),
        **static.proposal_arrays(TREE, 2),
    )
    verdict = Verdict(
        tokens=jnp.zeros_like(whole),
        logprob=jnp.zeros(whole.shape),
        path=jnp.asarray(whole, jnp.int32),
        num_accepted=jnp.full(2, len(path) - 1, jnp.int32),
    )
    before = jnp.stack([_as_array(table)] * 2)
    state = token_recycling.State(followers=before, written=jnp.zeros((2, SIZE), bool))
    state = update(state, canvas, proposal, verdict, jnp.asarray(logits))
    wanted = _reference_write(dict(table), tokens[0].tolist(), valid[0], path, logits[0])
    return state, table, wanted, set(tokens[0][valid[0]].tolist())


@pytest.mark.parametrize("seed", range(10))
def test_every_node_writes_and_a_fixed_one_of_equals_wins(seed):
    state, table, wanted, scored = _updated(seed)
    assert _as_table(state.followers[0]) == wanted
    assert set(np.flatnonzero(state.written[0]).tolist()) == scored
    assert _as_table(state.followers[1]) == table, "a row that is done does not learn"
    assert not state.written[1].any()


def test_the_comparison_can_fail():
    def last_wins(state, canvas, proposal, verdict, logits):
        ids = jnp.argsort(-logits[0], axis=-1)[:, :K]
        return dataclasses.replace(
            state, followers=state.followers.at[0, proposal.tokens[0]].set(ids)
        )

    got = [_updated(seed, last_wins) for seed in range(10)]
    assert any(_as_table(state.followers[0]) != wanted for state, _, wanted, _ in got)


def test_the_memory_takes_what_the_first_row_learned():
    followers = jnp.stack([jnp.full((SIZE, K), row, jnp.int32) for row in (4, 5, 6)])
    written = np.zeros((3, SIZE), bool)
    written[1, [2, 3]] = written[2, [3, 7]] = True
    memory = token_recycling.remember(
        token_recycling.State(followers=followers, written=jnp.asarray(written))
    )
    wanted = np.full(SIZE, 4)
    wanted[[2, 3]], wanted[7] = 5, 6
    np.testing.assert_array_equal(memory[:, 0], wanted)


def test_what_it_remembers_saves_steps_and_changes_no_token():
    lm = toys.model()
    longer, prompt = [5, 6, 7, 8], [5, 6]  # shorter prompts run first

    def run(*prompts):
        return jd.generate(lm, prompts, method="token_recycling", batch_size=1, max_new_tokens=20)

    alone, after = run(longer), run(prompt, longer)
    assert after.tokens[1] == alone.tokens[0]
    assert after.stats[1].nfe < alone.stats[0].nfe < 20


def test_repetitive_text_is_accepted():
    lm = toys.model()
    out = jd.generate(lm, [[1, 2]], method="token_recycling", max_new_tokens=160)
    late = out.tokens[0][80:]
    assert len(set(late)) < 40, "greedy toys fall into a cycle"
    assert len(late) / len(set(out.steps[0][80:])) > 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_candidates": 7}, "at least 8"),
        ({"num_candidates": 0}, "num_candidates"),
        ({"tree": "medusa_63"}, "at least 10"),
        ({"tree": "medusa"}, "Did you mean 'medusa_63'"),
    ],
)
def test_options_out_of_range_are_refused(options, message):
    with pytest.raises(InputError, match=message):
        token_recycling.Config(**options)
