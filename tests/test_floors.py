"""Imports point downwards only."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import streaming_vb

ROOT = Path(streaming_vb.__file__).parent
REPOSITORY = ROOT.parent
FLOORS = {
    "types": 0,
    "errors": 0,
    "seeding": 0,
    "buffers": 0,
    "failpoints": 0,
    "families": 1,
    "likelihoods": 1,
    "sources": 1,
    "layers": 2,
    "models": 3,
    "objectives": 4,
    "inference": 4,
    "streaming": 5,
    "streaming.run": 6,
    "streaming.engines": 6,
    "streaming.prepared": 6,
    "streaming.remote_engine": 6,
    "streaming.processes": 6,
    "evaluation": 6,
    "plots": 6,
    "reproduce": 7,
    "cli": 8,
}
HIGHEST_IMPORT = {"streaming": 1}
"""The recursion knows families and sources, and of inference only the type of a primitive."""
LEVEL = {("inference", "objectives"), ("seeding", "types"), ("buffers", "types"), ("types", "errors")}
"""Neighbours on a floor that may see each other, besides the files of one package."""
SERIALIZERS = {"pickle", "cPickle", "cloudpickle", "dill", "joblib", "marshal", "shelve"}

TORCH_FREE = ["types", "errors", "seeding", "buffers"] + [
    f"streaming.{name}" for name in (path.stem for path in sorted((ROOT / "streaming").glob("*.py")))
]
"""Modules that load without torch, besides the face of every package."""

FILES = sorted([*ROOT.rglob("*.py"), *(REPOSITORY / "workers").rglob("*.py")])
every_file = pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(REPOSITORY)))


def unit(module: str) -> str:
    """Place on a floor of a dotted name below streaming_vb: "families", "streaming.run", ..."""
    parts = module.split(".")[1:]
    longer = ".".join(parts[:2])
    return longer if longer in FLOORS else parts[0] if parts else ""


def name_of(path: Path) -> str:
    parts = path.relative_to(REPOSITORY).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def is_for_types_only(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING")


def imported(path: Path, *, lazy: bool) -> Iterator[str]:
    """Modules that a file imports when it runs; with `lazy` also those imported inside functions."""

    def visit(node: ast.AST) -> Iterator[str]:
        for child in ast.iter_child_nodes(node):
            if is_for_types_only(child) or (isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef) and not lazy):
                continue
            if isinstance(child, ast.Import):
                yield from (alias.name for alias in child.names)
            elif isinstance(child, ast.ImportFrom):
                assert child.level == 0, f"{path}: relative import"
                assert child.module is not None
                yield from (f"{child.module}.{alias.name}" for alias in child.names)
            else:
                yield from visit(child)

    return visit(ast.parse(path.read_text()))


def may_import(importer: str, target: str) -> bool:
    """Whether a unit may import another one of the library."""
    if importer.split(".")[0] == target.split(".")[0] and FLOORS[importer] >= FLOORS[target]:
        return True
    return FLOORS[target] <= HIGHEST_IMPORT.get(importer, FLOORS[importer] - 1) or (importer, target) in LEVEL


@every_file
def test_imports_point_downwards(path: Path) -> None:
    name = name_of(path)
    if name == "streaming_vb" or name.split(".")[0] == "workers":
        return
    importer = unit(name)
    for module in imported(path, lazy=True):
        if module.split(".")[0] == "streaming_vb" and (target := unit(module)) in FLOORS:
            assert may_import(importer, target), f"{name} imports {module}"


def test_the_rule_itself_tells_up_from_down() -> None:
    assert may_import("models", "families")
    assert may_import("streaming.run", "inference")
    assert may_import("streaming.run", "streaming")
    assert not may_import("streaming", "streaming.run")
    assert not may_import("streaming", "models")
    assert not may_import("families", "likelihoods")
    assert not may_import("sources", "models")
    assert not may_import("evaluation", "cli")


@every_file
def test_every_file_stands_on_a_floor(path: Path) -> None:
    name = name_of(path)
    assert name.split(".")[0] == "workers" or name == "streaming_vb" or unit(name) in FLOORS


@every_file
def test_ray_is_imported_by_the_workers_package_alone(path: Path) -> None:
    roots = {module.split(".")[0] for module in imported(path, lazy=True)}
    assert "ray" not in roots or name_of(path).split(".")[0] == "workers"


@every_file
def test_the_library_reaches_the_workers_package_only_lazily_from_the_command_line(path: Path) -> None:
    name = name_of(path)
    if name.split(".")[0] == "streaming_vb":
        assert "workers" not in {module.split(".")[0] for module in imported(path, lazy=False)}
        if not name.startswith("streaming_vb.cli"):
            assert "workers" not in {module.split(".")[0] for module in imported(path, lazy=True)}


@every_file
def test_nothing_is_pickled_into_files(path: Path) -> None:
    assert not SERIALIZERS & {module.split(".")[0] for module in imported(path, lazy=True)}


def test_the_ground_the_server_and_every_package_face_load_without_torch() -> None:
    faces = [name_of(path) for path in FILES if path.name == "__init__.py"]
    modules = [*faces, *(f"streaming_vb.{name}" for name in TORCH_FREE)]
    script = (
        "import importlib, sys\n"
        f"for name in {modules!r}:\n"
        "    importlib.import_module(name)\n"
        "    heavy = {'torch', 'ray', 'sklearn', 'matplotlib'} & set(sys.modules)\n"
        "    assert not heavy, f'{name} loads {heavy}'\n"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
