"""The registry as readers see it: the table of the docs is the registry's."""

import re
from pathlib import Path

from jaxdecode import zoo
from jaxdecode.core.registry import METHODS

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "methods.md"


def test_the_table_of_the_docs_is_the_registry():
    """If it is not: `make docs`."""
    assert PAGE.read_text(encoding="utf-8").endswith("\n\n" + zoo.markdown())


def test_the_readme_names_the_file_of_every_method():
    """If it does not: `make docs`."""
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    links = dict(re.findall(r"\[`(\w+)`\]\((jaxdecode/[\w/]+\.py)\)", readme))
    assert links == {name: zoo.home(name) for name in METHODS}
    assert all((ROOT / file).is_file() for file in links.values())


def test_the_table_of_the_readme_is_in_order():
    """A name is found by eye: families by folder, and names by the alphabet."""
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| .* \| `(\w+)/` \| (\[`.*) \|$", readme, flags=re.MULTILINE)
    for folder, links in rows:
        found = re.findall(r"\[`(\w+)`\]\(jaxdecode/(\w+)/", links)
        assert found == sorted(found) and {where for _, where in found} == {folder}
    assert sum(links.count("](") for _, links in rows) == len(METHODS)


def test_the_file_of_a_method_is_the_one_it_shares_least():
    files = {
        "spectr": "verifiers/kseq",
        "eagle2": "drafters/eagle",
        "fast_dllm": "commits/threshold",
    }
    files |= {
        "specreason": "search/specreason",
        "edlm": "verifiers/energy",
        "cfg": "drafters/guided",
    }
    assert {name: zoo.home(name) for name in files} == {
        name: f"jaxdecode/{file}.py" for name, file in files.items()
    }


def test_every_method_is_one_row_with_all_columns():
    header, rule, *rows = zoo.markdown().splitlines()
    assert {line.count("|") for line in (header, rule, *rows)} == {7}
    assert [row.split("`")[1] for row in rows] == list(METHODS)
