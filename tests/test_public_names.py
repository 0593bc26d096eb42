"""The public face: what is listed exists, and what exists is listed once."""

import ast
from importlib import import_module
from pathlib import Path

import pytest

import streaming_vb


def imports_for_types() -> dict[str, str]:
    """Name -> module of the imports under TYPE_CHECKING, from which editors and mypy learn the names."""
    tree = ast.parse(Path(streaming_vb.__file__).read_text())
    (block,) = (node for node in tree.body if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING")
    found = {}
    for node in block.body:
        assert isinstance(node, ast.ImportFrom)
        for alias in node.names:
            assert alias.asname == alias.name
            found[alias.name] = str(node.module)
    return found


def test_all_lists_the_lazy_names() -> None:
    assert set(streaming_vb.__all__) == set(streaming_vb._HOMES)
    assert len(streaming_vb.__all__) == len(set(streaming_vb.__all__))


def test_types_see_the_same_names_in_the_same_places() -> None:
    assert imports_for_types() == {name: f"streaming_vb.{home}" for name, home in streaming_vb._HOMES.items()}


@pytest.mark.parametrize("name", streaming_vb.__all__)
def test_every_name_resolves_to_what_its_home_defines(name: str) -> None:
    found = getattr(streaming_vb, name)
    assert found is getattr(import_module(f"streaming_vb.{streaming_vb._HOMES[name]}"), name)
    assert found.__module__ == f"streaming_vb.{streaming_vb._HOMES[name]}"
    assert found.__doc__


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="'streaming_vb' has no attribute 'Trainer'"):
        streaming_vb.Trainer  # noqa: B018


def test_the_version_is_that_of_the_package() -> None:
    project = (Path(streaming_vb.__file__).parent.parent / "pyproject.toml").read_text()
    assert f'version = "{streaming_vb.__version__}"' in project
