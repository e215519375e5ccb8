"""
Run the notebooks from top to bottom and keep their outputs in them.

    python notebooks/run.py [NOTEBOOK ...]

Kept is what a reader wants: results, and pictures with fewer colours. Bars and warnings of other packages, times of
day and anything else on stderr are left out, so that two runs differ in their results alone.
"""

import base64
import io
import re
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import nbformat
from nbclient import NotebookClient
from PIL import Image


HERE = Path(__file__).parent
LOG_LINE = re.compile(r"^\[\d{4}-\d\d-\d\d [^\n]*\] \[[A-Z]+\][^\n]*\n", re.MULTILINE)  # DeepSpeed's, on stdout


def smaller(picture: str) -> str:
    """A PNG in base64, in 128 colours."""
    image = Image.open(io.BytesIO(base64.b64decode(picture))).convert("RGB").quantize(128, dither=Image.Dither.NONE)
    file = io.BytesIO()
    image.save(file, "PNG", optimize=True)
    return base64.b64encode(file.getvalue()).decode()


def kept(outputs: list[Any]) -> list[Any]:
    """The outputs of a cell that stay: what it printed, in one piece, then its results and pictures."""
    text = "".join(output["text"] for output in outputs if output.get("name") == "stdout")
    text = LOG_LINE.sub("", text)
    results = [output for output in outputs if output["output_type"] != "stream"]
    for result in results:
        if "image/png" in result.data:
            result.data["image/png"] = smaller(result.data["image/png"])
    return [*([nbformat.v4.new_output("stream", name="stdout", text=text)] if text else []), *results]


def run(path: Path) -> None:
    """Run a notebook in an empty folder, and write it with its outputs."""
    notebook = nbformat.read(path, as_version=4)
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        NotebookClient(notebook, timeout=None, resources={"metadata": {"path": folder}}).execute()
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)  # times of day
        if cell.cell_type == "code":
            cell.outputs = kept(cell.outputs)
    notebook.metadata["language_info"] = {"name": "python"}
    nbformat.write(notebook, path)
    print(f"{path.name}: {time.perf_counter() - start:.0f} seconds, {path.stat().st_size / 1000:.0f} kB", flush=True)


if __name__ == "__main__":
    for notebook in sys.argv[1:] or sorted(HERE.glob("*.ipynb")):
        run(Path(notebook))
