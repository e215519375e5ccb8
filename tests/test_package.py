"""What is built can be used outside the checkout."""

import subprocess
import sys
import zipfile
from pathlib import Path

import sdar_trl


ROOT = Path(__file__).parent.parent


def test_the_wheel_holds_the_skills_the_embedded_policy_and_the_type_marker(tmp_path):
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(tmp_path), str(ROOT)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    [wheel] = tmp_path.glob("*.whl")
    assert wheel.name == f"sdar_trl-{sdar_trl.__version__}-py3-none-any.whl"
    names = zipfile.ZipFile(wheel).namelist()
    for name in (
        "py.typed",
        "skills/bundled/webshop/general/SKILL.md",
        "policies/tiny/model.safetensors",
        "policies/tiny_search_qa/model.safetensors",
        "envs/search_qa/facts.json.gz",
    ):
        assert f"sdar_trl/{name}" in names
    assert not any(name.startswith(("tests/", "examples/")) for name in names)


def test_the_public_names_are_there():
    assert all(hasattr(sdar_trl, name) for name in sdar_trl.__all__)


def test_environments_skills_and_names_of_policies_know_neither_torch_nor_trl():
    for room in (
        "sdar_trl.envs",
        "sdar_trl.envs.workers",
        "sdar_trl.envs.webshop",
        "sdar_trl.envs.search_qa",
        "sdar_trl.envs.search_qa.client",
        "sdar_trl.skills",
        "sdar_trl.policies",
    ):
        code = (
            f"import importlib, sys; importlib.import_module({room!r}); "
            "assert not {'torch', 'trl', 'transformers'} & set(sys.modules)"
        )
        subprocess.run([sys.executable, "-c", code], check=True)
