"""Star graphs: what is asked, and that a few of them are learned from data to inserted paths."""

import itertools
import json

import numpy as np
import pytest

import jaxdecode as jd
from jaxdecode.errors import InputError
from jaxdecode.evals import stars
from jaxdecode.paths import config_dir
from jaxdecode.training import config as configs
from jaxdecode.training.run import train

CONFIG = config_dir() / "train" / "ilm_stars.yaml"


@pytest.mark.parametrize(("degree", "length"), [(2, 5), (3, 2)])
def test_a_problem_has_one_answer_and_its_beginning_tells_nothing(degree, length):
    firsts = []
    for problem in stars.problems(200, degree, length):
        after = dict(problem.edges)
        assert len(problem.edges) == degree * length
        nodes = {node for edge in problem.edges for node in edge}
        assert len(nodes) == 1 + degree * length and max(nodes) < stars.NUM_NODES
        assert list(itertools.pairwise([problem.start, *problem.path])) == [
            edge for edge in itertools.pairwise([problem.start, *problem.path])
            if edge in problem.edges
        ]  # fmt: skip
        assert problem.path[-1] not in after and len(problem.path) == length
        arms = [edge for edge in problem.edges if edge[0] == problem.start]
        assert len(arms) == degree
        firsts.append(arms.index((problem.start, problem.path[0])))
        assert problem.prompt[-3:] == [problem.start, problem.path[-1], stars.SEPARATOR]
        assert problem.accepts(problem.path) and not problem.accepts(problem.path[::-1])
    share = np.bincount(firsts, minlength=degree) / len(firsts)
    np.testing.assert_allclose(share, 1 / degree, atol=3.5 * (degree * 200) ** -0.5)


def test_sizes_that_do_not_fit():
    for sizes in ((1, 5), (2, 0), (2, 10), (4, 5)):
        with pytest.raises(InputError, match="degree|length"):
            list(stars.problems(1, *sizes))


def run_of(folder, recipe, steps, *changes):
    """What a run of the shipped config leaves, with a recipe and steps of its own."""
    files = [f"data.{name}={folder / name}.jsonl" for name in ("train", "held_out")]
    config = configs.read(CONFIG, [f"recipe={recipe}", f"steps={steps}", *files, *changes])
    run = train(config, out=folder / recipe)
    return jd.load(run.checkpoint, progress=False)


def answers(lm, problems):
    method = "ar" if lm.config.denoiser is None else "ilm"
    length = len(problems[0].path)
    prompts = [problem.prompt for problem in problems]
    out = jd.generate(lm, prompts, method=method, max_new_tokens=length, batch_size=64)
    return [tokens[:length] for tokens in out.tokens]


@pytest.mark.slow
def test_the_shipped_config_learns_a_few_graphs(tmp_path):
    """Three graphs, each with both of its goals: from data to inserted paths."""
    graphs = list(stars.problems(3, length=3))
    problems = []
    for problem in graphs:
        after = dict(problem.edges)
        for first in (b for a, b in problem.edges if a == problem.start):
            path = [first]
            while path[-1] in after:
                path.append(after[path[-1]])
            problems.append(problem._replace(path=tuple(path)))
    assert len(problems) == 6
    for name in ("train", "held_out"):
        (tmp_path / f"{name}.jsonl").write_text("".join(stars.lines(iter(problems))))
    small = "target={num_layers: 1, hidden_size: 32, num_heads: 2, vocabulary: 14}"
    sizes = ["data.max_length=18", "batch_size=12", "optimizer={lr: 1.0e-2}"]
    with pytest.warns(UserWarning, match="also trained on"):
        lm = run_of(tmp_path, "ilm", 1500, small, *sizes)
    assert lm.config.denoiser.inserts and lm.config.vocab_size == stars.VOCAB_SIZE
    found = answers(lm, problems)
    assert all(p.accepts(answer) for p, answer in zip(problems, found, strict=True))


def test_the_files_are_those_of_the_config(tmp_path):
    stars.write(tmp_path, count=3)
    config = configs.read(CONFIG)
    for name, count in (("train", 3), ("held_out", 500)):
        lines = (tmp_path / f"{name}.jsonl").read_text().splitlines()
        assert len(lines) == count
        content = json.loads(lines[0])
        assert len(content["tokens"]) == config.data.max_length
        assert len(content["tokens"]) - content["prompt_length"] == 5
    assert config.target["vocabulary"] == stars.VOCAB_SIZE
