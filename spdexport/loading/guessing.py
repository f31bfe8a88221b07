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
    from collections.abc import Iterable, Iterator, Sequence

    from spdexport.loading.model import ExampleInputs

SIZES = (8, 16, 28, 32, 48, 56, 64, 84, 96, 112, 128, 160, 192, 224, 227, 256, 299, 320, 384, 512)
"""Sizes that images usually have: what a module is tried on."""
USUAL = 224
"""The size that is shown where any may do."""
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


def shape_like(weights: Iterable[torch.Tensor]) -> str:
    """Return a shape for ``--input-shape`` as a model with these weights may take it.

    The convolution with the fewest input channels is taken for the first layer: files sort their weights by name.
    """
    shapes = [tuple(weight.shape) for weight in weights if weight.ndim > 1]
    kernels = [shape for shape in shapes if len(shape) > 2]
    if kernels:
        _, channels, *kernel = min(kernels, key=lambda shape: shape[1])
        return "x".join(map(str, (2, channels, *(USUAL for _ in kernel))))
    return f"2x{shapes[0][1]}" if shapes else f"2x3x{USUAL}x{USUAL}"


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


def _candidates(module: nn.Module) -> Iterator[str]:
    if isinstance(module, torch.jit.ScriptModule):
        return
    first = next((m for m in module.modules() if isinstance(m, nn.Linear | nn.modules.conv._ConvNd)), None)
    if isinstance(first, nn.Linear):
        yield f"2x{first.in_features}"
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
