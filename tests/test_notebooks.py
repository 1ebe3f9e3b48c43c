"""Every notebook is stored without outputs and runs from top to bottom."""

import contextlib
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


@contextlib.contextmanager
def quiet():
    """What the client's own event loop and sockets warn of is ignored; notebooks run in another process."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@pytest.fixture(scope="module")
def client(tmp_path_factory):
    """A kernel of this interpreter, shared: starting one and importing what all import took a third of a notebook."""
    with quiet(), pytest.MonkeyPatch.context() as patch:
        from nbclient import NotebookClient

        patch.setenv("PYTHONPATH", str(ROOT))
        patch.setenv("PYTHONWARNINGS", "default")
        patch.setenv("IPYTHONDIR", str(tmp_path_factory.mktemp("ipython")))
        patch.delenv("MPLBACKEND", raising=False)
        resources = {"metadata": {"path": str(ROOT / "notebooks")}}
        shared = NotebookClient(nbformat.v4.new_notebook(), timeout=120, kernel_name="python3", resources=resources)
        with shared.setup_kernel():
            yield shared


def run(notebook, client):
    """Execute in place where no name is defined; raises ``CellExecutionError`` with the cell's traceback."""
    with quiet():
        client.nb = notebook
        client.reset_execution_trackers()
        client.kc.execute("%reset -f", silent=True)
        for index, cell in enumerate(notebook.cells):
            client.execute_cell(cell, index)


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
def test_runs(path, client):
    """Without an exception or a warning, and every cell prints something or shows a picture."""
    notebook = read(path)

    run(notebook, client)

    for cell in notebook.cells:
        if cell.cell_type == "code":
            assert shown(cell), f"prints and shows nothing: {cell.source}"
            assert not [out.text for out in cell.outputs if out.output_type == "stream" and out.name == "stderr"]


def test_no_notebook_finds_a_name_of_another(client):
    from nbclient.exceptions import CellExecutionError

    one, other = (nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(it)]) for it in ("kept = 1", "kept"))
    run(one, client)
    with pytest.raises(CellExecutionError, match="NameError"):
        run(other, client)


def shown(cell):
    """What a code cell printed, and its pictures."""
    printed = [out.text.strip() for out in cell.outputs if out.output_type == "stream" and out.name == "stdout"]
    return [*filter(None, printed), *(out for out in cell.outputs if "image/png" in out.get("data", {}))]
