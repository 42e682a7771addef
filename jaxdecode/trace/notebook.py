"""Traces shown in a notebook."""

import html
import sys
from collections.abc import Sequence

from jaxdecode.errors import UnsupportedError
from jaxdecode.trace import page
from jaxdecode.trace.steps import Trace

_HEIGHT = 760


def show(traces: Sequence[Trace]) -> None:
    """Shows one trace, or two side by side, below the cell that runs.

    Raises:
        UnsupportedError: this is no notebook.
    """
    ipython = sys.modules.get("IPython")
    shell = ipython and ipython.get_ipython()
    # The shell of a terminal has no kernel, and nothing that could draw a page.
    if shell is None or not hasattr(shell, "kernel"):
        raise UnsupportedError(
            "show() needs a notebook; elsewhere, out.save_trace('out.jsonl') and `jaxdecode show "
            "out.jsonl --html out.html` make a page for a browser."
        )
    from IPython.display import HTML, display  # type: ignore[import-not-found]

    display(HTML(frame(page.render(traces))))


def frame(content: str) -> str:
    """A frame with a page in it, which can reach neither the notebook nor the network."""
    return (
        f'<iframe srcdoc="{html.escape(content)}" sandbox="allow-scripts" title="jaxdecode trace" '
        f'style="width: 100%; height: {_HEIGHT}px; border: 0"></iframe>'
    )
