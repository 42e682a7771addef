"""Files of training data."""

import json

import pytest


@pytest.fixture
def jsonl(tmp_path):
    """Writes lines, given as text or as values, and returns the path."""

    def write(*lines: object) -> str:
        text = [line if isinstance(line, str) else json.dumps(line) for line in lines]
        path = tmp_path / "prompts.jsonl"
        path.write_text("\n".join(text) + "\n", encoding="utf-8")
        return str(path)

    return write
