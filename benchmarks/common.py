"""What the benchmarks share: where a figure comes from, tables, JSON."""

import json
import os
import platform
import subprocess
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch


ROOT = Path(__file__).parent.parent


def provenance() -> dict[str, Any]:
    """Machine, date, commit and versions."""
    if torch.cuda.is_available():
        machine = torch.cuda.get_device_name()
    else:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
        machine = f"{names[0] if names else platform.machine()}, {os.cpu_count()} cores, no GPU"
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True)
    packages = {name: version(name) for name in ("torch", "transformers", "trl")}
    return {"machine": machine, "date": str(date.today()), "commit": commit.stdout.strip(), "versions": packages}


def table(rows: list[dict[str, Any]]) -> str:
    """Rows as a Markdown table; floats with three significant digits."""
    names = list(rows[0])

    def cell(value: Any) -> str:
        if not isinstance(value, float):
            return "" if value is None else str(value)
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"

    lines = [names, ["---"] * len(names), *([cell(row[name]) for name in names] for row in rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def write_json(path: str | None, result: dict[str, Any]) -> None:
    """Writes a benchmark's result, with its provenance, if a file was asked for."""
    if path is not None:
        options = {name: value for name, value in result.get("options", {}).items() if name != "json"}
        written = {**provenance(), **result, **({"options": options} if options else {})}
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        Path(path).write_text(json.dumps(written, indent=2) + "\n")
