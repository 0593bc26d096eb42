"""Finds what a law must hold for: every module of a subpackage that offers `example()`. A new file is on no list."""

import importlib
import inspect
import pkgutil
from collections.abc import Iterator
from types import ModuleType

import pytest
from _pytest.mark.structures import ParameterSet

import streaming_vb
from streaming_vb.errors import ConfigError
from streaming_vb.types import Model, Primitive


def modules(subpackage: str) -> Iterator[tuple[str, ModuleType]]:
    """Name and module of every file of `streaming_vb.<subpackage>`."""
    package = importlib.import_module(f"{streaming_vb.__name__}.{subpackage}")
    for found in pkgutil.iter_modules(package.__path__):
        yield found.name, importlib.import_module(f"{package.__name__}.{found.name}")


def examples(subpackage: str) -> list[ParameterSet]:
    """What `example()` of each module gives, for `parametrize`; the id is the module's name."""
    return [
        pytest.param(module.example(), id=name) for name, module in modules(subpackage) if hasattr(module, "example")
    ]


def names(subpackage: str) -> set[str]:
    """Ids of `examples`."""
    return {str(parameter.id) for parameter in examples(subpackage)}


REQUIRES = {"NeuralModel": "layout", "ConjugateModel": "evidence"}
"""What a model must have, by the type that `build(model)` of a primitive asks for."""


def primitives(**settings: object) -> list[ParameterSet]:
    """(model, primitive) for every `build` in `inference/` and every example model that it accepts."""
    found = []
    for name, module in modules("inference"):
        if not hasattr(module, "build"):
            continue
        parameters = inspect.signature(module.build).parameters
        required = REQUIRES[parameters["model"].annotation.__name__]
        known = {key: value for key, value in settings.items() if key in parameters}
        for example in examples("models"):
            model: Model = example.values[0]
            if hasattr(model, required):
                try:
                    primitive: Primitive = module.build(model, **known)
                except ConfigError:  # a primitive may refuse a model; test_discovery looks that it takes some
                    continue
                found.append(pytest.param(model, primitive, id=f"{name}-{example.id}"))
    return found
