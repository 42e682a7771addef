"""Static trees: the shipped files, what a file may not contain, and the tree optimiser."""

import itertools
import json

import numpy as np
import pytest

from jaxdecode.errors import InputError, UnknownNameError
from jaxdecode.paths import config_dir
from jaxdecode.trees import static

# Drafts per level of the trees that are taken from elsewhere.
LEVELS = {
    "token_recycling_80": [8, 21, 25, 15, 8, 3],
    "medusa_63": [10, 28, 23, 2],
    "eagle_25": [4, 8, 8, 3, 2],
}


@pytest.mark.parametrize("name", static.names())
def test_shipped_trees_are_trees_with_a_source(name):
    tree = static.load(name)
    assert tree.num_nodes == len(tree.paths) + 1
    for node, path in enumerate(tree.paths, start=1):
        parent = int(tree.parent[node])
        assert 0 <= parent < node and (tree.paths[parent - 1] if parent else ()) == path[:-1]
        assert tree.depth[node] == len(path) and tree.rank[node] == path[-1]
    assert tree.parent[0] == -1 and tree.depth[0] == tree.rank[0] == 0
    assert tree.max_depth == max(map(len, tree.paths)) == len(tree.levels())
    assert sorted(np.concatenate(tree.levels())) == list(range(1, tree.num_nodes))
    content = json.loads((config_dir() / "trees" / f"{name}.json").read_text())
    assert content["paper"].startswith("arXiv:") and content["repository"] and content["taken"]


@pytest.mark.parametrize("name", LEVELS)
def test_templates_have_the_published_levels(name):
    assert [len(level) for level in static.load(name).levels()] == LEVELS[name]


@pytest.mark.parametrize("size", [4, 8, 16, 32])
def test_small_trees_are_part_of_the_recycling_tree(size):
    small = static.load(f"recycling_{size}")
    assert len(small.paths) == size
    assert small.is_gapless()
    assert set(small.paths) < set(static.load("token_recycling_80").paths)


def test_every_prefix_of_a_tree_is_a_tree():
    tree = static.load("medusa_63")
    for size in range(1, len(tree.paths) + 1):
        assert static.from_paths(tree.first(size).paths) == tree.first(size)


def test_trees_are_values():
    tree = static.load("medusa_63")
    assert tree is static.load("medusa_63")
    again = static.from_paths(tree.paths)
    assert hash(tree) == hash(again) and tree == again
    assert static.chain(3).paths == ((0,), (0, 0), (0, 0, 0))
    arrays = static.proposal_arrays(static.chain(3), 2)
    assert arrays["parent"].tolist() == [[-1, 0, 1, 2]] * 2 and arrays["max_depth"] == 3
    assert arrays["max_children"] == 1


def test_a_users_file_is_read(tmp_path):
    file = tmp_path / "mine.json"
    file.write_text('{"paths": [[0], [1], [0, 3]]}')
    tree = static.load(str(file))
    assert tree.parent.tolist() == [-1, 0, 0, 1] and tree.rank.tolist() == [0, 0, 1, 3]
    assert tree.max_children == 2 and tree.max_rank == 3


def test_gaps_between_siblings_are_seen():
    assert static.load("token_recycling_80").is_gapless() and static.chain(3).is_gapless()
    for paths in ([[0], [2]], [[1], [0]], [[0], [0, 1]]):
        assert not static.from_paths(paths).is_gapless()


def test_an_unknown_name_lists_near_ones():
    with pytest.raises(UnknownNameError, match="Did you mean 'medusa_63'"):
        static.load("medusa_64")
    with pytest.raises(InputError, match="cannot be read"):
        static.load("absent.json")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "is not JSON"),
        ("[" * 100_000, "is not JSON"),
        ("[[0]]", 'must be an object with "paths"'),
        ('{"paths": 3}', 'must be an object with "paths"'),
        ('{"paths": []}', "has 0 paths"),
        (json.dumps({"paths": [[i] for i in range(1024)]}), "has 1024 paths"),
        (json.dumps({"paths": [[0] * n for n in range(1, 66)]}), "depth 65; at most 64"),
        ('{"paths": [[0, 1], [0]]}', r"path 1, \[0, 1\], stands before its parent; .* \[0\]"),
        ('{"paths": [[0], [1, 0]]}', r"path 2, \[1, 0\], has no parent; add \[1\]"),
        ('{"paths": [[0], [1], [0]]}', r"path 3, \[0\], repeats path 1"),
        ('{"paths": [[0], [-1]]}', "negative rank"),
        ('{"paths": [[0], [0.5]]}', "whole numbers"),
        ('{"paths": [[0], [true]]}', "whole numbers"),
        ('{"paths": [[0], []]}', "at least one rank"),
        ('{"paths": [[0], 1]}', "at least one rank"),
    ],
)
def test_what_is_no_tree_is_refused(tmp_path, text, message):
    file = tmp_path / "bad.json"
    file.write_text(text)
    with pytest.raises(InputError, match=message):
        static.load(str(file))


def _frequencies(seed, num):
    """Accepted share of random paths: each a random part of its parent's."""
    rng = np.random.default_rng(seed)
    share = {(): 1.0}
    while len(share) <= num:
        above = list(share)[rng.integers(len(share))]
        path = (*above, sum(other[:-1] == above and other != () for other in share))
        share[path] = share[above] * rng.choice([1.0, 0.5, 0.3, 0.1])
    return {path: value for path, value in share.items() if path}


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("size", [1, 3, 6])
def test_the_optimiser_finds_the_best_tree_of_all(seed, size):
    share = _frequencies(seed, 12)
    tree = static.optimise(share, size)
    best = max(
        sum(share[path] for path in paths)
        for paths in itertools.combinations(share, size)
        if all(len(path) == 1 or path[:-1] in paths for path in paths)
    )
    assert len(tree.paths) == size
    assert static.expected_length(tree, share) == pytest.approx(best, abs=1e-12)
    assert static.expected_length(tree, {}) == 0


def test_the_optimiser_refuses_impossible_shares():
    with pytest.raises(InputError, match="more often than its parent"):
        static.optimise({(0,): 0.1, (0, 0): 0.2}, 2)
    with pytest.raises(InputError, match="more often than its parent"):
        static.optimise({(0, 0): 0.2}, 1)
    with pytest.raises(InputError, match="num_draft"):
        static.optimise({(0,): 0.1}, 0)
