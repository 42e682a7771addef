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


def cells(notebook):
    return [(cell.cell_type, cell.source) for cell in notebook.cells]


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_a_notebook_is_its_script(script):
    paired = jupytext.read(script.with_suffix(".ipynb"))
    assert cells(paired) == cells(jupytext.read(script)), "make notebooks writes it anew"
    assert not any(cell.get("outputs") for cell in paired.cells)


@pytest.fixture(scope="module")
def model():
    try:
        return download.resolve("smollm2-135m", progress=False)
    except DownloadError as error:
        pytest.skip(f"the model cannot be fetched: {error}")


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_a_notebook_runs(script, model, tmp_path, monkeypatch):
    del model
    if script.stem == "plan_a_pod":
        pytest.importorskip("libtpu")
    monkeypatch.setenv("JAXDECODE_SMALL", "1")
    monkeypatch.setenv(
        "PATH", os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    )
    monkeypatch.setenv("PYTHONPATH", str(FOLDER.parent.parent))
    notebook = jupytext.read(script.with_suffix(".ipynb"))
    client = nbclient.NotebookClient(notebook, timeout=LIMIT, kernel_name="python3")
    client.execute(cwd=str(tmp_path))
    printed = "".join(
        output.get("text", "") for cell in notebook.cells for output in cell.get("outputs", ())
    )
    # A shell line that fails raises nothing: it prints its error.
    assert "error: " not in printed, printed
