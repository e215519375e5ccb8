"""Code and commands on the pages of docs/ and in the README: run where the tests have what they need, else understood
by the programs they call."""

import importlib
import io
import json
import re
import runpy
import shlex
import sys
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import pytest
import torch

from sdar_trl import Episode, Turn, check_env, load_world
from sdar_trl.envs import world_class


ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
PAGES = {path.name: path.read_text() for path in (ROOT / "README.md", ROOT / "CONTRIBUTING.md", *DOCS.glob("*.md"))}

# Pages with Python on them, and the test that runs it.
RUN_BY = {
    "README.md": "test_examples.py",
    "environments.md": "envs/test_check.py",
    "episodes.md": "test_docs.py",
    "evaluation.md": "test_pages.py",
    "extending.md": "test_pages.py",
    "methods.md": "test_pages.py",
    "objective.md": "test_docs.py",
    "rollouts.md": "test_pages.py",
    "search_qa.md": "test_pages.py",
    "skills.md": "test_docs.py",
}
FOREIGN = {"alfworld-download", "vllm", "pip", "cd", "source", "export"}  # programs of others


def python_of(page):
    return re.findall(r"```python\n(.*?)```", PAGES[page], re.DOTALL)


def commands(text):
    """Commands of the bash blocks of a page, each as a list of words."""
    for block in re.findall(r"```bash\n(.*?)```", text, re.DOTALL):
        for line in block.replace("\\\n", " ").splitlines():
            words = shlex.split(line, comments=True)
            while words and re.fullmatch(r"\w+=.*", words[0]):
                words = words[1:]
            if words:
                yield [word for word in words if word != "&"]


COMMANDS = sorted({shlex.join(words) for text in PAGES.values() for words in commands(text)})


def options(words):
    return {word.partition("=")[0] for word in words if re.match(r"--?[a-zA-Z]", word)}


def help_of(script, module):
    """The help of a program of ours."""
    output = io.StringIO()
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(output), redirect_stderr(output):
        patch.setattr(sys, "argv", [script, "--help"])
        patch.chdir(ROOT)
        patch.delitem(sys.modules, "common", raising=False)  # the examples have one as well
        patch.setattr(sys, "path", [*sys.path, str(ROOT / "benchmarks")])  # last: one is called as a package is
        with pytest.raises(SystemExit) as stop:
            runpy.run_module(script, run_name="__main__") if module else runpy.run_path(script, run_name="__main__")
    assert not stop.value.code, output.getvalue()
    return output.getvalue()


def check_training_script(script, words, monkeypatch):
    """The arguments of a training script are read as it reads them."""
    monkeypatch.delitem(sys.modules, "common", raising=False)
    monkeypatch.syspath_prepend(ROOT / "examples")
    common = importlib.import_module("common")
    name = Path(script).stem.removeprefix("train_")
    demo = importlib.import_module(f"train_{name}").DEMO
    monkeypatch.chdir(ROOT)
    _, _, config, _ = common.parse(world_class(name), demo, [*words, "--bf16", "false", "--use_cpu"])
    assert config.output_dir


def check_python(words, monkeypatch):
    if words[0] == "-c":
        exec(words[1], {})
        return
    module = words[0] == "-m"
    script, rest = (words[1], words[2:]) if module else (words[0], words[1:])
    if not module and Path(script).name.startswith("train_"):
        check_training_script(script, rest, monkeypatch)
    elif script in ("pytest", "venv", "pip"):
        return
    elif script == "examples/evaluate.py":
        monkeypatch.setattr(sys, "argv", [script, *rest])
        runpy.run_path(str(ROOT / script))["parse"]()
    else:
        assert options(rest) <= options(re.findall(r"--?[a-zA-Z][\w-]*", help_of(script, module)))


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_is_understood(command, monkeypatch):
    program, *words = shlex.split(command)
    if program == "accelerate":
        assert words[0] == "launch"
        launch = importlib.import_module("accelerate.commands.launch").launch_command_parser()
        start = next(index for index, word in enumerate(words) if word.endswith(".py"))
        args = launch.parse_args([*words[1:start], words[start]])
        assert args.config_file is None or (ROOT / args.config_file).exists()
        check_training_script(words[start], words[start + 1 :], monkeypatch)
    elif program in ("python", ".venv/bin/python"):
        check_python(words, monkeypatch)
    elif program == "make":
        targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
        assert {word for word in words if "=" not in word} <= set(targets)
        for name, _, value in (word.partition("=") for word in words if "=" in word):
            assert name == "OPTIONS" and "study" in words  # the script's own
            check_python(["benchmarks/study.py", *shlex.split(value)], monkeypatch)
    else:
        assert program in FOREIGN
    for extras in re.findall(r"(?:\.|sdar-trl)\[([\w,]+)\]", command):
        declared = (ROOT / "pyproject.toml").read_text().split("[project.optional-dependencies]")[1]
        assert all(f"\n{extra} = [" in declared for extra in extras.split(","))


def test_every_page_with_python_on_it_is_run():
    assert {page for page in PAGES if python_of(page)} == set(RUN_BY)
    for page, test in RUN_BY.items():
        assert page in (ROOT / "tests" / test).read_text()


def test_the_configuration_page_is_what_the_fields_say(monkeypatch):
    monkeypatch.syspath_prepend(DOCS)
    page = importlib.import_module("make_configuration").page()
    assert page == PAGES["configuration.md"], "run `python docs/make_configuration.py`"


def test_the_gate_retriever_context_and_environment_of_the_extending_page_work(
    make_trainer, make_config, tmp_path, monkeypatch
):
    skill = tmp_path / "my_skills" / "prices" / "SKILL.md"
    skill.parent.mkdir(parents=True)
    skill.write_text("---\nname: prices\ndescription: Prices\n---\nStay below the limit.\n")
    monkeypatch.chdir(tmp_path)
    names: dict = {}
    for code in python_of("extending.md"):
        exec(code, names)
    tasks = [{"prompt": [{"role": "user", "content": text}]} for text in ("a lamp, price below 5", "a lamp")]
    with_price, without = names["skills"]([Episode(task, task["prompt"]) for task in tasks])
    assert "Stay below the limit." in with_price and without == ""
    lost = Episode({}, [], [Turn("a door", [1], [2], "go")], feedback="It stays shut.")
    assert names["last_words"]([lost, Episode({}, [])]) == ["# How this attempt ended\n\nIt stays shut.", ""]

    trainer = make_trainer(make_config(max_steps=1, sdar_coef=0.1), gate=names["only_wide"])
    trainer.train()
    turns = [turn for episode in trainer.episodes for turn in episode.turns]
    gaps = torch.tensor([gap for turn in turns for gap in turn.gaps])
    gates = torch.tensor([gate for turn in turns for gate in turn.gates])
    torch.testing.assert_close(gates, torch.sigmoid(5 * gaps) * (gaps.abs() > 0.1))


def test_the_gate_of_the_methods_page_is_one_and_the_class_of_the_rollouts_page_is_an_environments():
    [code] = python_of("methods.md")
    names: dict = {"torch": torch}
    exec(code.split("\n\n\ntrainer = ")[0], names)
    gap, entropy = torch.tensor([[1.0, 1.0]]), torch.tensor([[0.5, 2.0]])
    assert names["confident"](gap, entropy, 5.0).tolist() == [[torch.sigmoid(torch.tensor(5.0)).item(), 0.0]]
    [code] = python_of("rollouts.md")
    exec(code, names)
    exec(python_of("extending.md")[-1], names)
    env = type("Env", (names["MyEnv"], names["EchoEnv"]), {})()
    check_env(env, [names["task"]], nonsense=("", "<action>"))
    assert env.parallel == "process" and env.timeout == 60.0


def test_the_code_of_the_evaluation_page_plays_its_panel(tmp_path, monkeypatch, capsys):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from sdar_trl.policies import TINY_POLICY

    monkeypatch.chdir(tmp_path)
    [code] = python_of("evaluation.md")
    small = {'"test", 128': '"test", 2', "temperature=0.4": "temperature=0.4, max_turns=2, max_response_length=8"}
    for old, new in small.items():
        assert old in code
        code = code.replace(old, new)
    model = AutoModelForCausalLM.from_pretrained(TINY_POLICY, dtype="float32")
    exec(code, {"model": model, "tokenizer": AutoTokenizer.from_pretrained(TINY_POLICY)})
    assert re.search(r"policy +\d", capsys.readouterr().out)
    assert len((tmp_path / "records.jsonl").read_text().splitlines()) == 1 + 2 * 4


def test_the_code_of_the_search_qa_page_asks_a_corpus_of_ones_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    lines = [{"contents": "Ada Lovelace\nShe was born in London."}, {"contents": "Rivers\nThe Thames is one."}]
    Path("my_corpus.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    Path("my_questions").mkdir()
    question = {"question": "Where was Ada Lovelace born?", "golden_answers": ["London"], "data_source": "mine"}
    for split in ("train", "validation", "test"):
        Path("my_questions", f"{split}.jsonl").write_text(json.dumps(question) + "\n")
    names: dict = {"load_world": load_world}
    [code] = python_of("search_qa.md")
    exec(code, names)
    assert "Lovelace" in names["env"].reset(**names["world"].dataset("train")[0])
    assert "London" in names["env"].step("<search>Ada Lovelace</search>").observation
