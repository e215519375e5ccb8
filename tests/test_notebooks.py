"""The notebooks run from top to bottom, and hold the outputs of such a run."""

import re
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient


NOTEBOOKS = Path(__file__).parent.parent / "notebooks"
SHORT = {"MAX_STEPS": "1", "PANEL": "8", "EPISODES": "8"}


each_notebook = pytest.mark.parametrize("path", sorted(NOTEBOOKS.glob("*.ipynb")), ids=lambda path: path.stem)


@each_notebook
def test_the_notebook_runs(path, tmp_path):
    notebook = nbformat.read(path, as_version=4)
    [parameters] = [cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", [])]
    parameters.source = "\n".join(f"{name} = {value}" for name, value in SHORT.items())
    NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(tmp_path)}}).execute()


@each_notebook
def test_the_stored_outputs_are_there_small_and_of_no_machine(path):
    notebook = nbformat.read(path, as_version=4)
    outputs = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    pictures = [output.data["image/png"] for output in outputs if "image/png" in output.get("data", {})]
    texts = [output.get("text", "") + output.get("data", {}).get("text/plain", "") for output in outputs]
    assert len(pictures) >= 2 and 3 / 4 * sum(map(len, pictures)) < 150_000
    assert not any(output.get("name") == "stderr" or output.output_type == "error" for output in outputs)
    assert not re.search(r"/(home|root|tmp|work|Users|opt)/|site-packages|Warning", "".join(texts))
