"""The shape of the package: imports run one way, only the reports and the command line speak, modules stay small."""

import ast
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import spdexport

PACKAGE = Path(spdexport.__file__).parent
LINES = 400

LAYERS = (
    # Values and the maths on them: no file, no graph.
    ("errors", "names", "conv", "quiet", "text"),
    ("arrays", "content", "gates", "factors", "invocation", "ranges", "speech", "steps"),
    ("lowrank", "multilinear", "canonical"),
    ("forms",),
    ("cost",),
    # Files, and what is read from them.
    ("files",),
    ("edits", "engine", "masks", "model_files", "sources"),
    ("loading", "overwriting"),
    # Graphs: traced, decided about, rewritten, exported, evaluated.
    ("capture", "rewrite", "export", "dense_export", "ort", "precision"),
    ("latency", "planning", "reference"),
    ("options",),
    ("example_inputs",),
    ("prepare", "worth"),
    # What is concluded, told and asked.
    ("verification",),
    ("onnx_prepare", "recorded"),
    ("route", "routes", "lowered_route", "route_metadata"),
    ("pipeline",),
    ("ablation", "compression", "folding", "importance", "laboratory", "measuring"),
    ("atlases",),
    ("report",),
    ("drawing", "lab_folder"),
    ("testing",),
    ("pytest_plugin",),
    ("cli_config", "cli_help", "cli_kinds"),
    ("cli_options",),
    ("commands",),
    ("cli",),
    ("__main__",),
)
"""From the bottom to the top. A module imports from lower layers, or from its own: its folder, or the neighbours on its
line as long as no circle arises."""

RANK = {part: rank for rank, layer in enumerate(LAYERS) for part in layer}

CLI = ("cli", "cli_config", "cli_help", "cli_kinds", "cli_options")

TALKERS = {"click": (*CLI, "commands"), "rich": ("report",)}
"""Who may import the libraries that are made for printing."""

STREAMS = ("stdout", "stderr", "__stdout__", "__stderr__")


def _modules():
    return {".".join(p.relative_to(PACKAGE).with_suffix("").parts): p for p in sorted(PACKAGE.rglob("*.py"))}


MODULES = _modules()
# The public names come from everywhere, and nothing but the version is taken from there.
INNER = [name for name in MODULES if name != "__init__"]


def _tree(name):
    return ast.parse(MODULES[name].read_text(encoding="utf-8"))


def _existing(dotted):
    """The module that a dotted name inside the package is, or is in."""
    parts = dotted.split(".")
    while parts:
        for candidate in (".".join(parts), ".".join([*parts, "__init__"])):
            if candidate in MODULES:
                return candidate
        parts.pop()
    return None


def imported(name):
    """The modules of the package that a module imports, wherever in it and for whatever reason."""
    found = set()
    for node in ast.walk(_tree(name)):
        if isinstance(node, ast.Import):
            found |= {a.name.removeprefix("spdexport.") for a in node.names if a.name.startswith("spdexport.")}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name}, line {node.lineno}: a relative import"
            if node.module == "spdexport":
                found |= {a.name for a in node.names}
            elif (node.module or "").startswith("spdexport."):
                inside = node.module.removeprefix("spdexport.")
                found |= {f"{inside}.{a.name}" for a in node.names}
    return {module for module in map(_existing, found) if module is not None and module != name}


def part(name):
    """The folder or module right below the package."""
    return name.split(".")[0]


def test_every_module_has_its_layer():
    assert {part(name) for name in INNER} == set(RANK)


@pytest.mark.parametrize("name", INNER)
def test_imports_run_one_way(name):
    upwards = {m for m in imported(name) if RANK[part(m)] > RANK[part(name)]}
    assert not upwards, f"{name} imports from above: {', '.join(sorted(upwards))}"


def test_no_module_imports_itself_by_a_detour():
    # Raises CycleError, which names the circle.
    tuple(TopologicalSorter({name: imported(name) for name in INNER}).static_order())


@pytest.mark.parametrize("name", [n for n in INNER if n != "speech"])
def test_all_that_is_printed_goes_through_one_module(name):
    """There it is made printable: what commands a terminal or a runner comes from models and files too."""
    for node in ast.walk(_tree(name)):
        match node:
            case ast.Call(func=ast.Name(id="print" | "input")):
                pytest.fail(f"{name}, line {node.lineno} prints")
            case ast.Attribute(value=ast.Name(id="sys"), attr=attr) if attr in STREAMS:
                pytest.fail(f"{name}, line {node.lineno} uses sys.{attr}")
            case ast.Attribute(value=ast.Name(id="click"), attr="echo" | "secho" | "style" | "prompt" | "confirm"):
                pytest.fail(f"{name}, line {node.lineno} uses click.{node.attr}")
            case ast.Attribute(value=ast.Name(id="traceback"), attr="print_exc" | "print_exception" | "print_stack"):
                pytest.fail(f"{name}, line {node.lineno} uses traceback.{node.attr}")
            case ast.Call(func=ast.Name(id="Console")):
                pytest.fail(f"{name}, line {node.lineno} has a console that obeys what it is given")


@pytest.mark.parametrize("name", INNER)
def test_only_reports_and_the_command_line_know_how_to_speak(name):
    for node in ast.walk(_tree(name)):
        match node:
            case ast.Import(names=names):
                heard = [alias.name for alias in names]
            case ast.ImportFrom(module=str(module)):
                heard = [module]
            case _:
                continue
        talkers = [m for m in heard if part(name) not in TALKERS.get(m.split(".")[0], [part(name)])]
        assert not talkers, f"{name}, line {node.lineno} imports {talkers}"


@pytest.mark.parametrize(
    "name",
    [
        "cli",
        "cli_config",
        "cli_kinds",
        "cli_options",
        "errors",
        "report.formats",
        "__init__",
        *(n for n in INNER if part(n) == "commands"),
    ],
)
def test_what_help_needs_imports_nothing_heavy(name):
    light = {"__future__", "click", "collections", "contextlib", "dataclasses", "functools", "importlib", "pathlib",
             "shlex", "signal", "spdexport", "sys", "threading", "traceback", "types", "typing"}  # fmt: skip
    top = [node for node in _tree(name).body if isinstance(node, ast.Import | ast.ImportFrom)]
    names = {(node.module or "") if isinstance(node, ast.ImportFrom) else a.name for node in top for a in node.names}
    assert {n.split(".")[0] for n in names} <= light
    own = {n.removeprefix("spdexport.") for n in names if n.startswith("spdexport.")}
    known = {"report.formats"} & own
    assert {part(n) for n in own - known} <= {*CLI, "commands", "errors", "invocation", "speech", "text"}


@pytest.mark.parametrize("name", MODULES)
def test_modules_stay_small(name):
    assert len(MODULES[name].read_text(encoding="utf-8").splitlines()) <= LINES


@pytest.mark.parametrize("name", MODULES)
def test_modules_say_what_they_are(name):
    assert ast.get_docstring(_tree(name))


def test_public_names_are_listed_once():
    tree = _tree("__init__")
    typed = {
        alias.name
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("spdexport.")
        for alias in node.names
    }
    assert typed == set(spdexport._HOME) == set(spdexport.__all__) - {"__version__"}


NO_VERBS = frozenset(
    (
        "A",
        "All",
        "Also",
        "An",
        "As",
        "By",
        "Each",
        "For",
        "From",
        "How",
        "In",
        "Its",
        "Nothing",
        "Of",
        "One",
        "That",
        "The",
        "There",
        "This",
        "What",
        "Where",
        "Whether",
        "Which",
        "Why",
    )
)
"""First words of docstrings that say what something is, and not what it does."""


@pytest.mark.parametrize("name", INNER)
def test_functions_say_what_they_do(name):
    """The docstring of a public function begins with a verb; a property is a noun."""
    for node in ast.walk(_tree(name)):
        if not isinstance(node, ast.FunctionDef) or node.name.startswith("_"):
            continue
        decorators = {getattr(d, "id", getattr(d, "attr", "")) for d in node.decorator_list}
        first = (ast.get_docstring(node) or "Return").split()[0]
        assert first not in NO_VERBS or decorators & {"property", "cached_property"}, f"line {node.lineno}: {first} ..."
