"""
Write docs/configuration.md from the fields of `SDARConfig` and their help texts:

    python docs/make_configuration.py
"""

import inspect
import re
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any

from sdar_trl import SDARConfig
from sdar_trl.methods import SDAR


PAGE = Path(__file__).with_name("configuration.md")

BEFORE = """\
# Configuration

<!-- Written by docs/make_configuration.py from SDARConfig; do not edit. -->

Every option that [`SDARConfig`](../sdar_trl/config.py) has of its own. Those of
[`GRPOConfig`](https://huggingface.co/docs/trl/grpo_trainer#trl.GRPOConfig) are taken too, and mean what they
mean in TRL. In Python they are keyword arguments, on the command line of the training scripts `--name value`,
in a YAML file for `--config` lines `name: value`. *Method's* is what [`method`](methods.md) says where the
option is not given, for `sdar` the value in brackets.
"""

AFTER = """\
## TRL's options to look at first

`learning_rate` (TRL's default of 1e-6 is for full weights; LoRA usually takes ten times as much or more),
`per_device_train_batch_size` and `gradient_accumulation_steps` (with the number of processes they make the
episodes of a step), `num_generations` (episodes of the same task), `beta` (KL to the reference model, 0.01 in
the published runs), `loss_type` ([what it means for rows](methods.md#loss-types-and-rows)), `temperature`,
`bf16` (on by default; give `False` on a CPU), `logging_steps`, `report_to`, `log_completions`, `use_vllm`
([rollouts](rollouts.md)), `chat_template_kwargs` (`{"enable_thinking": False}` for Qwen3).
"""


def default_of(option: Any) -> str:
    """An option's default, as a cell."""
    value = option.default_factory() if option.default is MISSING else option.default
    if option.name in SDAR:
        own = SDAR[option.name]
        return f"method's (`{own}`)" if own is not None else "method's"
    return "" if value is None else f"`{value}`"


def row_of(option: Any) -> str:
    """An option as a row of a table."""
    meaning = option.metadata["help"]
    choices = ", ".join(f"`{choice}`" for choice in option.metadata.get("choices", ()))
    cells = [f"`{option.name}`", default_of(option), meaning + (f" One of {choices}." if choices else "")]
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def groups() -> dict[str, list[str]]:
    """Names of the options under the headings that the docstring has."""
    found: dict[str, list[str]] = {}
    heading = ""
    for line in inspect.cleandoc(SDARConfig.__doc__ or "").splitlines():
        if match := re.match(r"    > Parameters that control (.*)", line):
            heading = match[1]
        elif match := re.match(r"    (\w+) \(`", line):
            found.setdefault(heading, []).append(match[1])
    return found


def page() -> str:
    """The whole page."""
    own = {option.name: option for option in fields(SDARConfig) if option.name in SDARConfig.__annotations__}
    parts = [BEFORE]
    for heading, names in groups().items():
        head = [f"## {heading[0].upper()}{heading[1:]}", "", "| option | default | |", "|---|---|---|"]
        parts.append("\n".join([*head, *(row_of(own[name]) for name in names), ""]))
    return "\n".join([*parts, AFTER])


if __name__ == "__main__":
    PAGE.write_text(page())
