"""What CONTRIBUTING.md says of the modules is so; and what of TRL is relied on is written down."""

import ast
import inspect
import re
import textwrap
from graphlib import TopologicalSorter
from pathlib import Path
from pydoc import locate

from trl import GRPOTrainer
from trl.generation.vllm_generation import VLLMGeneration
from trl_hooks import ATTRIBUTES, ENGINE, ENGINE_ATTRIBUTES, FUNCTIONS, OTHERS, TRL_HOOKS

import sdar_trl


ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "sdar_trl"
FILES = {path.relative_to(ROOT).as_posix(): ast.parse(path.read_text()) for path in sorted(PACKAGE.rglob("*.py"))}
HEAVY = {"torch", "accelerate", "transformers", "trl"}
# where TRL's trainer is subclassed or handed on
TRAINER_FILES = ["trainer.py", "batching.py", "loops.py", "checkpointing.py", "backends.py", "engine.py"]
TRAINER_FILES += ["recording.py", "evaluation/play.py", "card.py"]

PUBLIC = [
    "Episode",
    "KeywordRetriever",
    "PanelResult",
    "Record",
    "Retriever",
    "SDARConfig",
    "SDARTrainer",
    "Skill",
    "SkillContext",
    "SkillLibrary",
    "Step",
    "StopReason",
    "TeacherContext",
    "TextEnv",
    "Turn",
    "check_env",
    "evaluate",
    "evaluate_trainer",
    "hindsight_context",
    "load_world",
    "policy_path",
    "policy_rollout",
    "results_table",
    "sibling_context",
    "summarize",
]


# The table of modules


def table():
    """By module: the modules of this package that it may import, and those of `HEAVY`."""
    lines = re.findall(r"^\| (`sdar_trl/.*) \|$", (ROOT / "CONTRIBUTING.md").read_text(), re.MULTILINE)
    cells = [[cell.strip() for cell in line.split("|")] for line in lines]
    return {module.strip("`"): (names(own), names(heavy)) for module, _, own, heavy in cells}


def names(cell):
    found = re.findall(r"`([^`]+)`", cell)
    assert cell == ", ".join(f"`{name}`" for name in found), cell
    return set(found)


def row_of(file):
    """The table's row for a file: its own, else that of its folder."""
    rows = [row for row in table() if file == row or row.endswith("/") and file.startswith(row)]
    return max(rows, key=len, default=None)


def module_of(row):
    """How the table's cells name a row: `sdar_trl/envs/webshop/` is `envs.webshop`."""
    return row.removeprefix("sdar_trl/").removesuffix(".py").strip("/").replace("/", ".")


def imported(node):
    """The import statements inside, without those for type checkers."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.If) and ast.unparse(child.test) == "TYPE_CHECKING":
            yield from imported(ast.Module(child.orelse, []))
            continue
        if isinstance(child, ast.Import):
            yield from (alias.name for alias in child.names)
        elif isinstance(child, ast.ImportFrom) and child.module:
            yield "." * child.level + child.module
        elif isinstance(child, ast.ImportFrom):
            yield from ("." * child.level + alias.name for alias in child.names)
        yield from imported(child)


def absolute(file, name):
    """An import's module as a dotted path."""
    if not name.startswith("."):
        return name
    level = len(name) - len(name.lstrip("."))
    return ".".join([*Path(file).parts[:-level], *filter(None, [name.lstrip(".")])])


def file_of(module):
    path = ROOT / module.replace(".", "/")
    return f"{module.replace('.', '/')}{'/__init__.py' if (path / '__init__.py').exists() else '.py'}"


def found_imports():
    """What the table should say."""
    found = {row_of(file): (set(), set()) for file in FILES}
    for file, tree in FILES.items():
        own, heavy = found[row_of(file)]
        for name in imported(tree):
            module = absolute(file, name)
            heavy |= {module.split(".")[0]} & HEAVY
            if module.split(".")[0] == "sdar_trl" and row_of(file_of(module)) != row_of(file):
                own.add(module_of(row_of(file_of(module))))
    return found


def test_every_module_has_a_row_and_every_row_a_module():
    assert [file for file in FILES if row_of(file) is None] == []
    assert {row_of(file) for file in FILES} == set(table())


def test_modules_import_what_the_table_says_and_nothing_else():
    said = table()
    for row, (own, heavy) in found_imports().items():
        assert (row, own, heavy) == (row, *said[row])


def test_no_module_imports_itself_by_way_of_others():
    said = {module_of(row): own for row, (own, _) in table().items()}
    assert set().union(*said.values()) <= set(said)
    list(TopologicalSorter(said).static_order())  # raises on a cycle


def test_no_file_is_longer_than_400_lines():
    lengths = {file: len((ROOT / file).read_text().splitlines()) for file in FILES}
    assert {file: length for file, length in lengths.items() if length > 400} == {}


def test_the_public_names_are_these_and_are_there():
    assert sorted(sdar_trl.__all__) == PUBLIC
    assert all(callable(getattr(sdar_trl, name)) for name in PUBLIC)
    assert set(dir(sdar_trl)) >= set(PUBLIC)


# What of TRL is relied on


def attributes(node):
    """Each attribute inside: its name, the text before it, and whether it is loaded or stored."""
    for inner in ast.walk(node):
        if isinstance(inner, ast.Attribute):
            yield inner.attr, ast.unparse(inner.value), inner.ctx


def trainer_names(tree):
    """Names that are looked up on a trainer, and those that its subclasses define."""
    yield from (name for name, of, _ in attributes(tree) if of in ("trainer", "self.trainer"))
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef) and node.name.endswith("Trainer"):
            yield from assigned(node)
            yield from (name for name, of, _ in attributes(node) if of in ("self", "super()"))


def assigned(node, functions=True):
    """What a class defines: methods, names in its body, attributes of `self`."""
    found = set()
    for child in node.body:
        if isinstance(child, ast.FunctionDef) and functions:
            found.add(child.name)
        elif isinstance(child, ast.Assign | ast.AnnAssign):
            targets = child.targets if isinstance(child, ast.Assign) else [child.target]
            found |= {target.id for target in targets if isinstance(target, ast.Name)}
    return found | {name for name, of, context in attributes(node) if of == "self" and isinstance(context, ast.Store)}


def source_of(cls):
    [node] = ast.parse(textwrap.dedent(inspect.getsource(cls))).body
    return node


def private(found):
    return {name for name in found if name.startswith("_") and not name.startswith("__")}


def test_the_names_of_trls_trainer_that_are_used_are_listed():
    used = {name for file in TRAINER_FILES for name in trainer_names(FILES[f"sdar_trl/{file}"])}
    bases = [source_of(cls) for cls in GRPOTrainer.__mro__[:-1]]
    theirs = set().union(*map(assigned, bases))
    # of the public attributes, those that Transformers' trainer does not have
    its_own = assigned(bases[0], functions=False) - set().union(*map(assigned, bases[1:]))
    expected = (private(used) & theirs) | (used & its_own)
    assert {*TRL_HOOKS, *ATTRIBUTES, *ENGINE} == expected
    ours = set().union(*(assigned(n) for t in FILES.values() for n in ast.walk(t) if isinstance(n, ast.ClassDef)))
    assert private(used) - theirs <= ours  # neither TRL's nor ours: gone


def test_the_names_of_trls_engine_that_are_used_are_listed():
    engines = ("engine", "self.trainer.vllm_generation")
    files = ("sdar_trl/backends.py", "sdar_trl/engine.py")
    assert {name for file in files for name, of, _ in attributes(FILES[file]) if of in engines} | {
        "temperature"  # set by name, in evaluation/play.py
    } == set(ENGINE_ATTRIBUTES)
    assert set(ENGINE_ATTRIBUTES) <= assigned(source_of(VLLMGeneration))


def test_functions_from_below_trls_top_level_are_listed():
    used = set()
    for tree in FILES.values():
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and node.module and re.match(r"trl\.(?!kernels)", node.module):
                used |= {f"{node.module}.{alias.name}" for alias in node.names}
    assert used == set(FUNCTIONS)
    for path, expected in FUNCTIONS.items():
        assert parameters(path)[: len(expected)] == expected, path


def test_private_names_of_accelerate_and_transformers_are_listed():
    known = ("self", "cls", "super()", "trainer", "self.trainer", "engine")
    used = private({name for tree in FILES.values() for name, of, _ in attributes(tree) if of not in known})
    assert used - {*ATTRIBUTES, *ENGINE} == {path.rpartition(".")[2] for path in OTHERS}
    for path, expected in OTHERS.items():
        assert parameters(path)[: len(expected)] == expected, path


def parameters(path):
    """Names of a function's parameters, by its dotted path."""
    return list(inspect.signature(locate(path)).parameters)
