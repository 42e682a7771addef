"""The notebooks run as they are, in small settings, and are what their scripts say."""

import os
import sys
from pathlib import Path

import jupytext
import nbclient
import pytest

from jaxdecode.convert import download
from jaxdecode.errors import DownloadError

FOLDER = Path(__file__).resolve().parent.parent / "docs" / "notebooks"
SCRIPTS = sorted(FOLDER.glob("*.py"))
LIMIT = 400  # seconds per cell
OFF = "SMALL = False"
# Minutes each; what they call is tested by itself.
LONG = ("train_a_drafter", "plan_a_pod")


def cells(notebook):
    return [(cell.cell_type, cell.source) for cell in notebook.cells]


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_a_notebook_is_its_script(script):
    paired = jupytext.read(script.with_suffix(".ipynb"))
    assert cells(paired) == cells(jupytext.read(script)), "make notebooks writes it anew"
    assert not any(cell.get("outputs") for cell in paired.cells)


def small(notebook):
    """A notebook whose switch for a try is on."""
    for cell in notebook.cells:
        cell.source = cell.source.replace(OFF, "SMALL = True")
    return notebook


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_a_notebook_that_takes_minutes_can_be_tried(script):
    text = script.read_text(encoding="utf-8")
    assert text.count(OFF) == ("if SMALL" in text)


@pytest.fixture(scope="module")
def model():
    try:
        return download.resolve("smollm2-135m", progress=False)
    except DownloadError as error:
        pytest.skip(f"the model cannot be fetched: {error}")


@pytest.mark.parametrize(
    "script",
    [pytest.param(x, marks=[pytest.mark.slow] * (x.stem in LONG)) for x in SCRIPTS],
    ids=lambda path: path.stem,
)
def test_a_notebook_runs(script, model, tmp_path, monkeypatch):
    del model
    if script.stem == "plan_a_pod":
        pytest.importorskip("libtpu")
    # Their model is no toy: what is optimised pays.
    monkeypatch.setenv("XLA_FLAGS", "")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_DISABLE_PIP_VERSION_CHECK", "1")
    monkeypatch.setenv(
        "PATH", os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    )
    monkeypatch.setenv("PYTHONPATH", str(FOLDER.parent.parent))
    notebook = small(jupytext.read(script.with_suffix(".ipynb")))
    client = nbclient.NotebookClient(notebook, timeout=LIMIT, kernel_name="python3")
    client.execute(cwd=str(tmp_path))
    printed = "".join(
        output.get("text", "") for cell in notebook.cells for output in cell.get("outputs", ())
    )
    # A line of the shell or of pip that fails raises nothing: it prints its error.
    assert "error: " not in printed.lower(), printed
