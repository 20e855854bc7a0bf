"""The notebooks, executed as a reader would, with an embedded Postgres of their own."""

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbclient import NotebookClient

NOTEBOOKS = Path(__file__).parents[2] / "notebooks"
FIRST = NOTEBOOKS / "01_first_run.ipynb"


@pytest.fixture
def data_folder(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A data folder that the server's account may enter, even when we are root."""
    folder = Path(tempfile.mkdtemp(prefix="holdfast-notebook-"))
    folder.chmod(0o711)
    monkeypatch.setenv("HOLDFAST_DATA_DIR", str(folder))
    yield folder
    shutil.rmtree(folder)


def executed(path: Path) -> Any:
    notebook = nbformat.read(path, as_version=4)
    NotebookClient(
        notebook, timeout=90, kernel_name="python3", resources={"metadata": {"path": str(path.parent)}}
    ).execute()
    return notebook


def outputs(notebook: Any) -> list[Any]:
    return [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]


@pytest.mark.parametrize("path", sorted(NOTEBOOKS.glob("*.ipynb")), ids=lambda path: path.name)
def test_a_notebook_is_committed_without_its_outputs(path: Path):
    notebook = nbformat.read(path, as_version=4)

    nbformat.validate(notebook)
    assert outputs(notebook) == []
    assert [cell.execution_count for cell in notebook.cells if cell.cell_type == "code" and cell.execution_count] == []


def test_the_first_notebook_runs_from_top_to_bottom(data_folder: Path):
    shown = outputs(executed(FIRST))

    text = "".join(output.get("text", "") for output in shown)
    assert [output.text for output in shown if output.output_type == "stream" and output.name == "stderr"] == []
    assert len([output for output in shown if "image/png" in output.get("data", {})]) == 3
    assert "refunds paid so far: 0" in text
    assert "we have refunded $249.00 for order A-1077" in text
    assert "already been refunded in full" in text
    assert text.endswith("refunds paid: 1\n")
