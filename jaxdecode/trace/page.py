"""A trace as one page that needs no server, no network and no other file."""

import difflib
import html
import json
import re
from collections.abc import Sequence
from importlib import resources
from typing import Any

from jaxdecode.trace import files
from jaxdecode.trace.steps import Trace
from jaxdecode.trace.text import pieces_of

_SCRIPTS = ("parts.js", "views.js", "page.js")
_MARK = re.compile(r"<!-- (title|css|data|js) -->")


def render(traces: Sequence[Trace]) -> str:
    """The page of one trace, or of two side by side with their differences marked."""
    content = {"traces": [_plain(trace) for trace in traces], "same": []}
    if len(traces) == 2:
        rows = zip(*(trace.rows for trace in traces), strict=False)
        content["same"] = [
            _same(*(pieces_of(trace, row) for trace, row in zip(traces, pair, strict=True)))
            for pair in rows
        ]
    parts = {
        "title": html.escape(" and ".join(f"{trace.method} on {trace.model}" for trace in traces)),
        "css": _file("page.css"),
        "data": embed(content),
        "js": "\n".join(map(_file, _SCRIPTS)),
    }
    # One pass: what is put in is never searched for marks.
    return _MARK.sub(lambda mark: parts[mark[1]], _file("page.html"))


def embed(content: Any) -> str:
    """JSON that cannot end the element it stands in, whatever its texts say."""
    text = json.dumps(content, separators=(",", ":"), allow_nan=False)
    return text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")


def _plain(trace: Trace) -> dict[str, Any]:
    content = files.header(trace)
    for row, full in zip(content["rows"], trace.rows, strict=True):
        row["steps"] = [files.plain_step(step) for step in full.steps]
    return content


def _same(first: Sequence[str], second: Sequence[str]) -> list[list[int]]:
    """Stretches that two texts share: place in the first, place in the second, length."""
    matcher = difflib.SequenceMatcher(None, first, second, autojunk=False)
    return [[block.a, block.b, block.size] for block in matcher.get_matching_blocks() if block.size]


def _file(name: str) -> str:
    return resources.files("jaxdecode.trace").joinpath(name).read_text(encoding="utf-8")
