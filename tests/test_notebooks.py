"""Every notebook is stored without outputs and runs from top to bottom."""

import warnings
from pathlib import Path

import nbformat
import pytest

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))


def read(path):
    """The notebook, checked against its format's schema."""
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    return notebook


def run(notebook):
    """Execute in place, in a kernel of this interpreter; raises ``CellExecutionError`` with the cell's traceback."""
    with warnings.catch_warnings():
        # What the client's own event loop and sockets warn of; the notebook runs in another process.
        warnings.simplefilter("ignore")
        from nbclient import NotebookClient

        resources = {"metadata": {"path": str(ROOT / "notebooks")}}
        NotebookClient(notebook, timeout=120, kernel_name="python3", resources=resources).execute()


def test_there_are_notebooks():
    assert "01_first_plan.ipynb" in [path.name for path in NOTEBOOKS]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.name)
def test_is_stored_clean(path):
    """No outputs, no execution counts, nothing of the machine it was written on."""
    notebook = read(path)

    assert notebook.metadata.kernelspec.name == "python3"
    assert set(notebook.metadata) == {"kernelspec", "language_info"}
    for cell in notebook.cells:
        assert cell.cell_type in ("markdown", "code")
        if cell.cell_type == "code":
            assert cell.outputs == []
            assert cell.execution_count is None


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.name)
def test_runs(path, monkeypatch, tmp_path):
    """Without an exception or a warning, and every cell prints something or shows a picture."""
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("PYTHONWARNINGS", "default")
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    monkeypatch.delenv("MPLBACKEND", raising=False)
    notebook = read(path)

    run(notebook)

    for cell in notebook.cells:
        if cell.cell_type == "code":
            assert shown(cell), f"prints and shows nothing: {cell.source}"
            assert not [out.text for out in cell.outputs if out.output_type == "stream" and out.name == "stderr"]


def shown(cell):
    """What a code cell printed, and its pictures."""
    printed = [out.text.strip() for out in cell.outputs if out.output_type == "stream" and out.name == "stdout"]
    return [*filter(None, printed), *(out for out in cell.outputs if "image/png" in out.get("data", {}))]
