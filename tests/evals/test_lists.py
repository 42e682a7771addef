"""List tasks: deterministic by seed, and answers are right."""

import itertools
import json

from jaxdecode.evals import lists


def test_examples_are_right_and_those_of_the_seed(tmp_path):
    first = list(lists.examples(0, 400))
    assert first == list(lists.examples(0, 400)) and first != list(lists.examples(1, 400))
    assert all(lists.right(prompt, answer) for prompt, answer in first)
    assert {prompt[0] for prompt, _ in first} == set(range(16, 21))
    assert max(map(max, itertools.chain(*first))) == lists.ENDS
    lists.write(tmp_path / "a" / "b.jsonl", 0, 3)
    lines = [json.loads(x) for x in (tmp_path / "a" / "b.jsonl").read_text().splitlines()]
    assert lines[0] == {"tokens": sum(first[0], []), "prompt_length": 9}


def test_what_is_right():
    values, extra = [1, 2, 3, 4, 5, 0], 9

    def right(task, answer):
        prompt = [lists.NUM_VALUES + lists.TASKS.index(task), *values, extra, lists.ENDS]
        return lists.right(prompt, answer)

    assert right("copy", values) and not right("copy", values[::-1])
    assert right("reverse", values[::-1]) and not right("reverse", values)
    assert right("sort", sorted(values)) and not right("sort", values)
    assert right("shuffle", [5, 1, 2, 3, 4, 0]) and not right("shuffle", [5, 5, 2, 3, 4, 0])
    assert right("replace", [1, 9, 3, 4, 5, 0])
    assert not right("replace", values) and not right("replace", [9, 9, 3, 4, 5, 0])
    assert not right("replace", [8, 2, 3, 4, 5, 0])
