"""The registry as readers see it: the table of the docs is the registry's."""

from pathlib import Path

from jaxdecode import zoo
from jaxdecode.core.registry import METHODS

PAGE = Path(__file__).parents[1] / "docs" / "methods.md"


def test_the_table_of_the_docs_is_the_registry():
    """If it is not: `make docs`."""
    assert PAGE.read_text(encoding="utf-8").endswith("\n\n" + zoo.markdown())


def test_every_method_is_one_row_with_all_columns():
    header, rule, *rows = zoo.markdown().splitlines()
    assert {line.count("|") for line in (header, rule, *rows)} == {7}
    assert [row.split("`")[1] for row in rows] == list(METHODS)
