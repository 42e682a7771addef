"""The oracles know what enumeration knows, and the loop does with them what the formulas say."""

import itertools
import json
import math
import sys

import jax.numpy as jnp
import numpy as np
import pytest

import jaxdecode as jd
from jaxdecode.errors import InputError
from jaxdecode.evals import lists, oracles

ROWS = 2048
# Accuracy of filling in random order at temperature 1, k slots per step.
CLOSED = {
    ("shuffle", 4): {1: 1.0, 2: 0.375, 4: 0.09375},
    ("shuffle", 6): {1: 1.0, 2: 0.3125, 3: 0.1235, 6: 0.0154},
    ("replace", 4): {1: 1.0, 2: 21 / 32, 4: 27 / 64},
    ("replace", 6): {1: 1.0, 2: 0.7335, 3: 0.6044, 6: 0.4019},
}
TOTAL_CORRELATION = {
    ("shuffle", 4): 2.367,
    ("shuffle", 6): 4.171,
    ("replace", 4): 0.863,
    ("replace", 6): 0.912,
}


def run(task, size, rows=1, **asked):
    problem = lists.problems(task, size, 1)[0]
    asked = {"max_new_tokens": size, "block_length": size, "reuse": "none"} | asked
    out = jd.generate(oracles.lists_model(size), [problem.prompt], n=rows, batch_size=rows, **asked)
    accuracy = np.mean([problem.accepts(answer) for answer in out.tokens])
    assert all(stats.tokens_forwarded == stats.nfe * (2 * size + 3) for stats in out.stats)
    return float(accuracy), np.asarray([stats.nfe for stats in out.stats])


def right_answers(problem):
    items = list(range(lists.NUM_ITEMS))
    used = [i for i in items if i in {*problem.items, problem.new}]
    every = itertools.product(used, repeat=len(problem.items))
    return np.asarray([answer for answer in every if problem.accepts(answer)])


@pytest.mark.parametrize("task", lists.TASKS)
def test_laws_are_those_of_all_right_answers(task):
    problem = lists.problems(task, 3, 1, seed=3)[0]
    answers = right_answers(problem)
    assert len(answers) == {"shuffle": 6, "replace": 3}.get(task, 1)
    for whole, kept in itertools.product(answers, itertools.product((0, 1), repeat=3)):
        decided = np.asarray(kept, bool)
        agreeing = answers[(answers[:, decided] == whole[decided]).all(1)]
        expected = np.stack([np.bincount(agreeing[:, i], minlength=23) for i in range(3)])
        row = [*problem.prompt, *np.where(decided, whole, lists.MASK_TOKEN)]
        law = np.exp(oracles.list_laws(3, jnp.asarray(row, jnp.int32)))[len(problem.prompt) :]
        wanted = expected / len(agreeing)
        np.testing.assert_allclose(law[~decided], wanted[~decided], atol=1e-6)


def test_answers_are_judged():
    for task, right, wrong in [
        ("copy", (3, 1, 2), (3, 2, 1)),
        ("reverse", (2, 1, 3), (3, 1, 2)),
        ("sort", (1, 2, 3), (3, 2, 1)),
        ("shuffle", (2, 3, 1), (2, 2, 1)),
        ("replace", (3, 9, 2), (3, 1, 2)),
        ("replace", (9, 1, 2), (9, 9, 2)),
        ("replace", (3, 1, 9), (3, 1, 8)),
    ]:
        problem = lists.Problem(task, (3, 1, 2), 9)
        assert problem.accepts(right) and not problem.accepts(wrong), task
        assert problem.accepts(problem.solution(np.random.default_rng(1)))


def test_training_data_are_problems_with_right_answers():
    lines = list(lists.examples(50, 5, seed=2))
    assert lines == list(lists.examples(50, 5, seed=2)) and lines != list(lists.examples(50, 5, 3))
    tasks = set()
    for line in lines:
        prompt, answer = line["tokens"][:8], line["tokens"][8:]
        assert line["prompt_length"] == 8 and prompt[-1] == lists.SEPARATOR
        problem = lists.Problem(lists.TASKS[prompt[0] - 16], tuple(prompt[1:6]), prompt[6])
        assert problem.prompt == prompt and problem.accepts(answer)
        tasks.add(problem.task)
    assert tasks == set(lists.TASKS)


@pytest.mark.parametrize(("task", "size"), CLOSED)
def test_formulas_give_the_known_values(task, size):
    for k, value in CLOSED[task, size].items():
        assert lists.ideal_accuracy(task, [k] * (size // k)) == pytest.approx(value, abs=6e-5)
    one_step = -math.log(lists.ideal_accuracy(task, [size]))
    assert one_step == pytest.approx(TOTAL_CORRELATION[task, size], abs=6e-4)


@pytest.mark.parametrize(("task", "size"), CLOSED)
def test_total_correlation_of_one_step_by_the_laws_themselves(task, size):
    problem = lists.problems(task, size, 1)[0]
    row = jnp.asarray([*problem.prompt, *[lists.MASK_TOKEN] * size], jnp.int32)
    logs = np.asarray(oracles.list_laws(size, row), np.float64)[size + 3 :]
    entropies = -(np.exp(logs) * np.where(np.isfinite(logs), logs, 0)).sum()
    number = math.factorial(size) if task == "shuffle" else size
    found = entropies - math.log(number)
    assert found == pytest.approx(TOTAL_CORRELATION[task, size], abs=6e-4)


@pytest.mark.parametrize(("task", "size"), CLOSED)
def test_the_loop_is_as_right_as_the_formula_says(task, size):
    for k, value in CLOSED[task, size].items():
        asked = {"method": "llada", "steps": size // k, "order": "random", "temperature": 1.0}
        accuracy, nfe = run(task, size, ROWS, **asked)
        allowed = 4 * math.sqrt(value * (1 - value) / ROWS) + 5e-5
        assert abs(accuracy - value) <= allowed, (k, accuracy, value)
        assert (nfe == size // k).all()
        others = [other for j, other in CLOSED[task, size].items() if j != k]
        assert min(abs(accuracy - other) for other in others) > allowed, "the test tells them apart"


def test_one_right_answer_is_found_at_any_speed():
    """Three tasks in one batch, as a model sees them."""
    problems = [lists.problems(task, 6, 1)[0] for task in ("copy", "reverse", "sort")] * 20
    prompts = [problem.prompt for problem in problems]
    random = {"method": "llada", "order": "random", "temperature": 1.0}
    for asked, steps in [
        (random | {"steps": 6}, 6),
        (random | {"steps": 3}, 3),
        (random | {"steps": 1}, 1),
        ({"method": "fast_dllm", "reuse": "none"}, 1),
    ]:
        out = jd.generate(oracles.lists_model(6), prompts, max_new_tokens=6, batch_size=64, **asked)
        assert all(p.accepts(t) for p, t in zip(problems, out.tokens, strict=True))
        assert {stats.nfe for stats in out.stats} == {steps}


@pytest.mark.parametrize("size", [5, 9, 11, 15])
def test_a_threshold_fails_replace_where_the_old_item_is_likelier_than_it(size):
    """With n items left the old one has 1 - 1/n, which 0.9 lets pass from n = 10 on."""
    accuracy, nfe = run("replace", size, method="fast_dllm", threshold=0.9)
    assert (accuracy, nfe[0]) == ((1.0, size) if size < 10 else (0.0, 1))
    accuracy, nfe = run("replace", size, method="fast_dllm_factor")
    assert accuracy == 1.0 and nfe[0] in (2, 3)
    for method in ("fast_dllm", "fast_dllm_factor"):
        accuracy, nfe = run("shuffle", size, method=method)
        assert accuracy == 1.0 and nfe[0] == size


def test_greedy_filling_at_once_leaves_the_list_as_it_is():
    for task in ("shuffle", "replace"):
        assert run(task, 6, method="llada")[0] == 1.0
        assert run(task, 6, method="llada", steps=1)[0] == 0.0


def test_nothing_can_be_reused():
    with pytest.raises(InputError, match="reuse='none'"):
        run("copy", 4, method="llada", reuse="dual")


def test_lists_of_any_size_are_written(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["lists", str(tmp_path), "--size", "3"])
    lists.main()
    with (tmp_path / "held_out.jsonl").open() as file:
        lines = [json.loads(line) for line in file]
    assert {(len(x["tokens"]), x["prompt_length"]) for x in lines} == {(9, 6)}
    monkeypatch.setattr(sys, "argv", ["lists", str(tmp_path), "--size", "16"])
    with pytest.raises(SystemExit):
        lists.main()
    assert "--size 16: lists have 1 to 15 items" in capsys.readouterr().err
