"""What loading a source gives: a module or a program, its example inputs, and the components that came with it."""

from __future__ import annotations

import re
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import torch
from torch.utils import _pytree as pytree

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from torch.export import ExportedProgram

    from spdexport.sources.components import ComponentSet


LABELS = "labels"
"""The name that a file of inputs has the right classes under."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ExampleInputs:
    """Inputs with which a module can be called: ``module(*args, **kwargs)``.

    Each input is a tensor, or a list, tuple, dict or other pytree with tensors in it. What else is in it (None, a
    number, a text) keeps its value in the traced program, and has no place in an ONNX file.

    Attributes:
        args: Positional inputs.
        kwargs: Keyword inputs.
        origin: Where they come from, for the summary, such as ``--input-shape`` or ``factory``.
        labels: The right class of each sample, (batch,), which a file of inputs may hold beside them.
    """

    args: tuple[Any, ...] = ()
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    origin: str = ""
    labels: torch.Tensor | None = None

    def with_labels_as_input(self) -> ExampleInputs:
        """Return the same for a model that has an input of the name ``labels``."""
        return replace(self, kwargs={**self.kwargs, LABELS: self.labels}, labels=None)

    def tensors(self) -> list[torch.Tensor]:
        """Return the tensors in the order in which a program that was traced with these inputs has them."""
        leaves = pytree.tree_leaves((self.args, dict(self.kwargs)))
        return [leaf for leaf in leaves if isinstance(leaf, torch.Tensor)]

    def with_tensors(self, tensors: Sequence[torch.Tensor], *, origin: str | None = None) -> ExampleInputs:
        """Return the same structure with other tensors, as many as ``tensors()`` gives and in their order."""
        leaves, structure = pytree.tree_flatten((self.args, dict(self.kwargs)))
        places = [index for index, leaf in enumerate(leaves) if isinstance(leaf, torch.Tensor)]
        for index, tensor in zip(places, tensors, strict=True):
            leaves[index] = tensor
        args, kwargs = pytree.tree_unflatten(leaves, structure)
        return replace(self, args=args, kwargs=kwargs, origin=self.origin if origin is None else origin)

    def copied(self) -> ExampleInputs:
        """Return the same with a copy of each tensor, so that one given twice becomes two."""
        return self.with_tensors([tensor.clone() for tensor in self.tensors()])


def named_tensors(arguments: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    """Return the tensors among arguments by the names that torch.export gives them: the path, joined by underscores."""
    named: dict[str, torch.Tensor] = {}
    for name, value in arguments.items():
        for path, leaf in pytree.tree_flatten_with_path(value)[0]:
            if isinstance(leaf, torch.Tensor):
                parts = [str(getattr(k, "key", getattr(k, "name", getattr(k, "idx", "")))) for k in path]
                named["_".join([name, *(re.sub(r"[^a-zA-Z0-9]", "_", part) for part in parts)])] = leaf
    return named


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class LoadedModel:
    """A model as it was loaded; exactly one of ``module`` and ``program`` is set.

    Attributes:
        kind: ``pt2``, ``torchscript``, ``pickle``, ``state_dict``, ``spd_run``, ``factory`` or ``module``.
        module: The module with its weights, for every kind but ``pt2``. A ``torch.jit.ScriptModule`` for TorchScript.
        program: The program of a ``.pt2`` file.
        inputs: Example inputs that the source itself brought (a factory's, or those saved in a ``.pt2``), or None.
        components: The components of an SPD run or checkpoint given as the source, or None.
        path: The file or folder, or None for a factory's own module.
        sha256: Hash of the file's content, or None.
        notes: What the user should know about how it was loaded, for the summary.
    """

    kind: str
    module: torch.nn.Module | None = None
    program: ExportedProgram | None = None
    inputs: ExampleInputs | None = None
    components: ComponentSet | None = None
    path: Path | None = None
    sha256: str | None = None
    notes: tuple[str, ...] = ()
