"""The notebook in docs/: it runs as it is, on a real model."""

from __future__ import annotations

from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

NOTEBOOK = Path(__file__).resolve().parents[2] / "docs" / "notebook.ipynb"


@pytest.mark.timeout(900)
def test_the_notebook_runs(tmp_path: Path) -> None:
    """Every cell runs in an empty folder, and the last one lists the run as done. It is stored without outputs."""
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert not any(cell.outputs or cell.execution_count for cell in code)
    client = NotebookClient(notebook, timeout=800, resources={"metadata": {"path": str(tmp_path)}})
    client.execute()
    assert code[-1].outputs[-1].data["text/plain"] == "[('notebook', 'done')]"
    assert "arc_challenge" in code[-2].outputs[-1].text
