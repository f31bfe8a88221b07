"""Calling the user's function that makes the module."""

from __future__ import annotations

import difflib
import importlib
import importlib.util
import os
import random
import sys
import traceback
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from spdexport.errors import SourceError, UsageError
from spdexport.loading.inputs import as_example_inputs

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import ModuleType

    from spdexport.loading.model import ExampleInputs

_RESULT = "Return the torch.nn.Module, or (module, example inputs)."


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class FactoryResult:
    """What a factory returned.

    Attributes:
        module: The module.
        inputs: Its example inputs, or None if it returned the module alone.
    """

    module: torch.nn.Module
    inputs: ExampleInputs | None = None


def call_factory(spec: str, *, seed: int) -> FactoryResult:
    """Import the factory and call it without arguments.

    torch, numpy and random are seeded just before the call. While the file is imported and the factory runs, the folder
    of a ``FILE.py`` is on ``sys.path``, so that it may import its siblings; afterwards ``sys.path`` and the working
    folder are as before.

    Args:
        spec: ``FILE.py:NAME`` or ``package.module:NAME``; NAME is a function or a class of modules.
        seed: The seed.

    Raises:
        UsageError: ``spec`` has not this form.
        SourceError: The file or the name is missing, the user's code raises, or it returns something else.
    """
    with users_function(spec, "factory") as factory:
        random.seed(seed)
        np.random.seed(seed % 2**32)
        torch.manual_seed(seed)
        result = factory()
    return _checked(result, spec)


@contextmanager
def users_function(spec: str, what: str) -> Iterator[Callable[..., Any]]:
    """Import a function of the user's, and yield it; what it raises within the block is an error about its file.

    Args:
        spec: ``FILE.py:NAME`` or ``package.module:NAME``.
        what: What it is for, which is the name of its option: ``factory``, ``metric``.

    Raises:
        UsageError: ``spec`` has not this form.
        SourceError: The file or the name is missing, or the user's code raises.
    """
    target, _, name = spec.rpartition(":")
    if not target or not name.isidentifier():
        raise UsageError(
            f"The {what} is not of the form FILE.py:NAME or package.module:NAME.",
            where=f"--{what} {spec}",
            hint=f"For example --{what} model.py:make.",
        )
    is_file = target.endswith(".py") or "/" in target or "\\" in target
    path = Path(target).resolve() if is_file else None
    if path is not None and not path.is_file():
        state = "is a folder" if path.is_dir() else "does not exist"
        raise SourceError(f"The {what}'s file {state}.", where=target, hint=f"Check the path after --{what}.")
    folder = Path.cwd() if path is None else path.parent
    with _on_path(folder), _their_errors(spec, folder, what):
        module = importlib.import_module(target) if path is None else _import_file(path, what)
        yield _named(module, name, spec, what)


def _import_file(path: Path, what: str) -> ModuleType:
    # A name of its own: a user's file called `json.py` or `types.py` must not shadow or be shadowed.
    name = f"_spdexport_{what}_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise SourceError(f"The {what}'s file is not a Python file.", where=str(path), hint="Name a .py file.")
    module = importlib.util.module_from_spec(spec)
    # Dataclasses and pickles look their module up by name.
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def _named(module: ModuleType, name: str, spec: str, what: str) -> Any:
    found = getattr(module, name, None)
    if callable(found):
        return found
    offered = sorted(
        key
        for key, value in vars(module).items()
        if callable(value) and not key.startswith("_") and getattr(value, "__module__", None) == module.__name__
    )
    near = difflib.get_close_matches(name, offered, n=1)
    shown = ", ".join(offered[:8]) + (f" and {len(offered) - 8} more" if len(offered) > 8 else "")
    raise SourceError(
        f"The {what} {name!r} is not callable." if hasattr(module, name) else f"There is no {name!r} in it.",
        where=f"--{what} {spec}",
        hint=(f"Did you mean {near[0]}? " if near else "") + f"It offers: {shown or 'nothing'}.",
    )


@contextmanager
def _on_path(folder: Path) -> Iterator[None]:
    before, folder_before = list(sys.path), Path.cwd()
    sys.path.insert(0, str(folder))
    importlib.invalidate_caches()
    try:
        yield
    finally:
        sys.path[:] = before
        os.chdir(folder_before)


@contextmanager
def _their_errors(spec: str, folder: Path, what: str) -> Iterator[None]:
    """Turn whatever the user's code raises into an error with its own file and line."""
    try:
        yield
    except (SourceError, KeyboardInterrupt):
        raise
    # The code is the user's, so that any exception is theirs to see: SystemExit and their own kinds are no Exception.
    except BaseException as exc:
        if not isinstance(exc, Exception) and type(exc).__module__.startswith("spdexport."):
            raise  # a signal asked the program to end
        if isinstance(exc, ModuleNotFoundError) and exc.name and spec.partition(":")[0].startswith(exc.name):
            raise SourceError(
                f"There is no Python module {exc.name!r}.",
                where=f"--{what} {spec}",
                hint=f"Check the name, or name a file: --{what} FILE.py:NAME.",
            ) from exc
        raise SourceError(
            f"The {what} raised {type(exc).__name__}: {_one_line(exc)}",
            where=_user_frame(exc, folder) or f"--{what} {spec}",
            hint=f"Correct the {what}; --debug shows the whole traceback.",
        ) from exc


def _one_line(exc: BaseException) -> str:
    return " ".join(str(exc).split()) or "(no message)"


def _user_frame(exc: BaseException, folder: Path) -> str | None:
    """The file and line where the user's own code was, innermost; None if it never ran."""
    if isinstance(exc, SyntaxError) and exc.filename:
        return f"{exc.filename}, line {exc.lineno}"
    frames = [f for f in traceback.extract_tb(exc.__traceback__) if not f.filename.startswith("<frozen")]
    own = [f for f in frames if Path(f.filename).is_relative_to(folder) and "site-packages" not in f.filename]
    # This package's own frames come first, the user's after them.
    last = next((f for f in reversed(own) if Path(f.filename) != Path(__file__)), None)
    last = last or next((f for f in reversed(frames) if Path(f.filename) != Path(__file__)), None)
    return None if last is None else f"{last.filename}, line {last.lineno}, in {last.name}"


def _checked(result: object, spec: str) -> FactoryResult:
    where = f"--factory {spec}"
    if isinstance(result, torch.nn.Module):
        return FactoryResult(module=_with_values(result, where))
    if isinstance(result, tuple) and len(result) == 2 and isinstance(result[0], torch.nn.Module):
        module, inputs = result
        return FactoryResult(
            module=_with_values(module, where), inputs=None if inputs is None else as_example_inputs(inputs, "factory")
        )
    if isinstance(result, type) and issubclass(result, torch.nn.Module):
        raise SourceError(f"The factory returned the class {result.__name__}, not a module.", where=where, hint=_RESULT)
    got = f"({', '.join(type(x).__name__ for x in result)})" if isinstance(result, tuple) else type(result).__name__
    raise SourceError(f"The factory returned {got}, not a module.", where=where, hint=_RESULT)


def _with_values(module: torch.nn.Module, where: str) -> torch.nn.Module:
    """Return the module; one whose weights have no values is refused, for nothing could be loaded into it either."""
    for name, tensor in (*module.named_parameters(), *module.named_buffers()):
        if tensor.is_meta:
            raise SourceError(
                f"The factory's module has weights without values: {name} is on the meta device.",
                where=where,
                hint="Make the module without torch.device('meta').",
            )
    return module
