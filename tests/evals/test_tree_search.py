"""Counting accepted paths, and choosing trees from the counts."""

import json

import numpy as np
import pytest

import jaxdecode as jd
from jaxdecode.convert.heads import save_heads
from jaxdecode.errors import InputError
from jaxdecode.evals import accepted, tree_search
from jaxdecode.evals import toys as smallest
from jaxdecode.trees import static
from tests import toys

PROMPTS = [[3, 1, 4, 1, 5, 9, 2, 6], [2, 7, 1], [5], [8, 2, 8, 1, 8]]


@pytest.mark.parametrize("method", ["token_recycling", "medusa"])
@pytest.mark.parametrize("batch_size", [1, 3])
def test_counts_are_those_of_the_loop(method, batch_size):
    lm = toys.model()
    helpers = toys.helpers(method, lm)
    asked = dict(tree="recycling_16" if method == "token_recycling" else "medusa_63")
    asked |= dict(max_new_tokens=40, batch_size=batch_size) | helpers
    found = accepted.measure(lm, PROMPTS, method=method, **asked)
    stats = jd.generate(lm, PROMPTS, method=method, **asked).stats
    assert found.steps == sum(row.nfe for row in stats)
    # Of the last step of a row some accepted tokens may lie past its end.
    emitted = sum(row.num_tokens for row in stats)
    assert 0 <= found.length * found.steps - emitted <= 4 * len(PROMPTS)
    assert any(found.share.values())
    for path, share in found.share.items():
        assert share <= found.share.get(path[:-1], 1.0)


def test_a_method_without_a_tree_is_refused():
    with pytest.raises(InputError, match="'tree' is not known"):
        accepted.measure(toys.model(), PROMPTS, method="prompt_lookup", tree="medusa_63")


def test_the_wide_tree_is_a_tree_with_likely_paths_first():
    tree = tree_search.wide(4, 100)
    assert len(tree.paths) == 100 and tree.max_depth == 4 and tree.max_rank <= 9
    assert static.from_paths(tree.paths) == tree
    assert set(tree_search.wide(4, 30).paths) == set(tree.paths[:30])


def test_the_best_size_is_the_one_with_the_highest_rate():
    share = {(0,): 0.6, (0, 0): 0.4, (1,): 0.1, (0, 1): 0.05}
    found = accepted.Accepted(share, 100)
    seconds = {1: 1.0, 2: 1.05, 3: 2.0, 4: 3.0}
    made = tree_search.candidates(found, [1, 2, 3, 4], seconds)
    assert [c.length for c in made] == pytest.approx([1.6, 2.0, 2.1, 2.15])
    assert tree_search.best(made).tree.paths == ((0,), (0, 0))
    # Where nothing was timed, more tokens per step are better.
    assert tree_search.best(tree_search.candidates(found, [1, 4])).tree.num_nodes == 5
    assert tree_search.sizes_up_to(20) == [1, 2, 3, 5, 8, 12, 18, 20]


def test_steps_are_timed_for_every_size():
    heads = smallest.heads("medusa", toys.model())
    found = tree_search.step_seconds(
        toys.model(), method="medusa", sizes=[1, 5], heads=heads, slots=128
    )
    assert list(found) == [1, 5] and 0 < found[1] <= found[5]


def test_the_command_writes_a_tree_that_the_method_takes(tmp_path, monkeypatch, capsys):
    lm = toys.spelling(tmp_path)
    monkeypatch.setattr(jd.api, "load", lambda *args, **kwargs: lm)
    save_heads(smallest.heads("medusa", lm), tmp_path / "heads")
    lines = [json.dumps({"tokens": [int(x) for x in row]}) for row in PROMPTS * 2]
    (tmp_path / "in.jsonl").write_text("\n".join(lines))
    from jaxdecode.cli.main import main

    out = tmp_path / "tree.json"
    command = ["tree", "--model", "toy", "--method", "medusa", "--heads", str(tmp_path / "heads")]
    command += ["--prompts", str(tmp_path / "in.jsonl"), "--out", str(out)]
    command += ["--max-new-tokens", "16", "--most", "6", "--wide", "20"]
    assert main([*command, "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert [row["num_draft"] for row in report["sizes"]] == [1, 2, 3, 5, 6]
    assert sum(row["chosen"] for row in report["sizes"]) == 1
    assert report["held_out"]["steps"] > 0 and np.isfinite(report["held_out"]["measured"])
    tree = static.load(str(out))
    heads = jd.load_heads(tmp_path / "heads")
    asked = dict(max_new_tokens=8)
    done = jd.generate(lm, [1, 2], method="medusa", heads=heads, tree=str(out), **asked)
    assert done.tokens == jd.generate(lm, [1, 2], **asked).tokens
    assert done.stats[0].tokens_forwarded % tree.num_nodes == 0
    assert main(command) == 1 and "exists" in capsys.readouterr().err
