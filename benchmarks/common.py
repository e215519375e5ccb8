"""What the benchmarks share: models, clocks, processes, where a figure comes from, tables, JSON."""

import json
import os
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import Any


os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # threads that wait take no time of the processor

import torch

from sdar_trl.runs import provenance


def random_qwen2(
    tokenizer: Any, hidden: int, layers: int, heads: int, kv_heads: int, vocabulary: int, device: str
) -> Any:
    """A randomly initialised model, in bfloat16 on a GPU, else in float32."""
    from transformers import Qwen2Config, Qwen2ForCausalLM

    config = Qwen2Config(
        vocab_size=vocabulary,
        hidden_size=hidden,
        intermediate_size=4 * hidden,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        tie_word_embeddings=True,
        max_position_embeddings=32_768,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    with torch.device(device):
        return Qwen2ForCausalLM(config).to(torch.bfloat16 if device == "cuda" else torch.float32)


def time_steps(trainer: Any) -> list[float]:
    """Seconds of each step of a training to come: of the clock on a GPU, of the processor without one."""
    from transformers import TrainerCallback

    seconds: list[float] = []
    clock = time.perf_counter if torch.cuda.is_available() else time.process_time

    class Clock(TrainerCallback):
        def on_step_begin(self, *_: Any, **__: Any) -> None:
            torch.cuda.synchronize() if torch.cuda.is_available() else None
            self.start = clock()

        def on_step_end(self, *_: Any, **__: Any) -> None:
            torch.cuda.synchronize() if torch.cuda.is_available() else None
            seconds.append(clock() - self.start)

    trainer.add_callback(Clock())
    return seconds


def peak_memory(device: str) -> int:
    """Peak so far, in bytes."""
    if device == "cuda":
        return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def in_process(script: str, *options: Any) -> dict[str, float]:
    """What a script prints as JSON in its last line, run in a process of its own."""
    done = subprocess.run([sys.executable, script, *map(str, options)], capture_output=True, text=True)
    if done.returncode != 0:
        raise RuntimeError(done.stderr)
    return json.loads(done.stdout.splitlines()[-1])


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
