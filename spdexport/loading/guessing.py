"""What can be worked out where the user has not said it: example inputs that a module runs on, and a factory's name.

What is guessed is always told, and nothing of it runs code: Python files are parsed, and modules are given tensors
without values.
"""

from __future__ import annotations

import ast
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from spdexport.errors import ExampleInputError
from spdexport.loading.inputs import as_example_inputs, inputs_from_shapes
from spdexport.quiet import quiet

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from spdexport.loading.model import ExampleInputs

SIZES = (8, 16, 28, 32, 48, 56, 64, 84, 96, 112, 128, 160, 192, 224, 227, 256, 299, 320, 384, 512)
"""Sizes that images usually have: what a module is tried on."""
_LENGTHS = (8, 16, 32, 64, 77, 128, 256, 512, 1024)
"""Tokens of a text, the same."""
_FIRST = (224, 32, 16)
"""The sizes that are tried first where any may do."""
_AXES = {3: ("L",), 4: ("H", "W"), 5: ("D", "H", "W")}
"""What stands for the sizes of an input's axes, by the axes of the first layer's weight."""
_FILES, _LARGEST = 50, 1 << 18
"""Python files that are looked at in a folder, and the bytes of the longest of them."""
_POINTLESS = frozenset({"weight", "bias"})
"""Names of parameters that a module without layers has; they tell nothing about a class."""


def kept_inputs(module: nn.Module) -> ExampleInputs | None:
    """Return the example inputs that a module keeps itself, as Lightning's do; None where there are none to be used."""
    own = getattr(module, "example_input_array", None)
    try:
        return None if own is None else as_example_inputs(own, "example_input_array")
    except ExampleInputError:
        return None


def work_out_inputs(module: nn.Module, *, shapes: Sequence[str] = (), seed: int) -> tuple[ExampleInputs, str] | None:
    """Return example inputs of a module that nobody gave any for, and a note that tells where they come from.

    Those of the shapes given; else of the usual sizes the only one that the module runs on. None where there is none,
    or where several sizes would do: they differ in cost.

    Args:
        module: The module; it is run on tensors without values alone.
        shapes: As those of ``--input-shape``, from the file that is checked.
        seed: Of their values.
    """
    if isinstance(module, torch.jit.ScriptModule):
        return None  # a program of the file's own, which runs when somebody gives it inputs
    if shapes:
        made = replace(inputs_from_shapes(shapes, seed), origin="the file's inputs")
        return made, f"the shapes of the example inputs are those of the file: {', '.join(shapes)}"
    tried = [text for text in _candidates(module) if _runs(module, text, seed)]
    if len(tried) != 1:
        return None
    made = replace(inputs_from_shapes(tried, seed), origin="worked out")
    return made, f"the input shape {tried[0]} was worked out, for of the usual ones the model runs on it alone"


def shape_that_runs(module: nn.Module) -> str | None:
    """Return a shape for ``--input-shape`` that a module runs on, of the usual ones; None where none of them does."""
    tried = {size: rank for rank, size in enumerate(_FIRST)}
    shapes = sorted(_candidates(module), key=lambda shape: tried.get(_size(shape), len(tried)))
    return next((shape for shape in shapes if _runs(module, shape, 0)), None)


def shape_like(state: Mapping[str, torch.Tensor]) -> str:
    """Return the form of an input that a model with these weights may take, as ``--input-shape`` has it.

    What weights do not tell is a letter that the user fills in, as in ``2x3xHxW``; ``blanks_in`` lists these.
    """
    shapes = {name: tuple(weight.shape) for name, weight in state.items() if weight.ndim > 1}
    kernels = [shape for shape in shapes.values() if len(shape) in _AXES]
    if kernels:
        return "x".join(("2", _first_width(kernels) or "C", *_AXES[len(kernels[0])]))
    # A matrix without a bias may be a table of embeddings, whose input is something else.
    if shapes and all(f"{name.removesuffix('weight')}bias" in state for name in shapes):
        return f"2x{_first_width(list(shapes.values())) or 'N'}"
    return "SHAPE"


def blanks_in(shape: str) -> list[str]:
    """Return the letters in a form of ``shape_like`` that stand for what is not known."""
    return [part for part in shape.split("x") if part.isalpha()]


def _first_width(shapes: Sequence[tuple[int, ...]]) -> str | None:
    """Return the channels that the first of some layers reads, where one width alone is written by none of them.

    Files sort their weights by name, so that the order tells nothing. A kernel of one channel may be a depthwise one.
    """
    read, written = {shape[1] for shape in shapes}, {shape[0] for shape in shapes}
    found = read - written
    if len(found) > 1:
        found -= {1}
    return str(*found) if len(found) == 1 else None


def guess_factory(names: Iterable[str], folders: Iterable[Path]) -> str | None:
    """Return the only class of a Python file nearby that has layers of these names and is made without arguments.

    Args:
        names: Of the tensors of a state dict.
        folders: Where to look; files are parsed, and not run.
    """
    layers = {name.partition(".")[0] for name in names} - _POINTLESS
    if not layers:
        return None
    found = [spec for path in _python_files(folders) for spec in _classes(path, layers)]
    return found[0] if len(found) == 1 else None


def _size(shape: str) -> int:
    """The last size of a shape."""
    return int(shape.rpartition("x")[2].partition(":")[0])


def _candidates(module: nn.Module) -> Iterator[str]:
    if isinstance(module, torch.jit.ScriptModule):
        return
    kinds = nn.Linear | nn.Embedding | nn.modules.conv._ConvNd
    first = next((m for m in module.modules() if isinstance(m, kinds)), None)
    if isinstance(first, nn.Linear):
        yield f"2x{first.in_features}"
    elif isinstance(first, nn.Embedding):
        yield from (f"2x{size}:int64" for size in _LENGTHS)
    elif first is not None:
        axes = len(first.kernel_size)
        channels = first.in_channels
        yield from ("x".join(map(str, (2, channels, *(size for _ in range(axes))))) for size in SIZES)


def _runs(module: nn.Module, shape: str, seed: int) -> bool:
    """Whether a module takes one input of a shape; only shapes are computed."""
    training = [(m, m.training) for m in module.modules()]
    try:
        given = inputs_from_shapes([shape], seed)
        with quiet(), FakeTensorMode(allow_non_fake_inputs=True) as mode, torch.no_grad():
            module.eval()
            module(*(mode.from_tensor(x) for x in given.tensors()))
    except Exception:  # the code is the user's, and says with whatever it raises that it takes no such input
        return False
    finally:
        for m, was in training:
            m.training = was
    return True


def _python_files(folders: Iterable[Path]) -> Iterator[Path]:
    for folder in dict.fromkeys(folder.resolve() for folder in folders):
        try:
            files = sorted(path for path in folder.iterdir() if path.suffix == ".py")[:_FILES]
            yield from (path for path in files if path.is_file() and path.stat().st_size <= _LARGEST)
        except OSError:
            continue


def _classes(path: Path, layers: set[str]) -> Iterator[str]:
    """The classes of a file that assign attributes of all of these names and need no arguments."""
    try:
        tree = ast.parse(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, SyntaxError, RecursionError, MemoryError):
        return
    shown = _shown(path)
    for node in tree.body:
        if isinstance(node, ast.ClassDef) and layers <= _attributes(node) and not _needs_arguments(node):
            yield f"{shown}:{node.name}"


def _attributes(node: ast.ClassDef) -> set[str]:
    return {
        inner.attr
        for inner in ast.walk(node)
        if isinstance(inner, ast.Attribute) and isinstance(inner.ctx, ast.Store)
        if isinstance(inner.value, ast.Name) and inner.value.id == "self"
    }


def _needs_arguments(node: ast.ClassDef) -> bool:
    for inner in node.body:
        if isinstance(inner, ast.FunctionDef) and inner.name == "__init__":
            taken = inner.args
            positional = len(taken.posonlyargs) + len(taken.args) - 1 - len(taken.defaults)
            return positional > 0 or any(default is None for default in taken.kw_defaults)
    return False


def _shown(path: Path) -> str:
    """The path as a user in the working folder would write it."""
    try:
        return str(path.relative_to(Path.cwd()))
    except ValueError:
        return str(path)
