"""What loading a source gives: a module or a program, its example inputs, and the components that came with it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    import torch
    from torch.export import ExportedProgram

    from spdexport.sources.components import ComponentSet


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ExampleInputs:
    """Inputs with which a module can be called: ``module(*args, **kwargs)``.

    Attributes:
        args: Positional inputs.
        kwargs: Keyword inputs.
        origin: Where they come from, for the summary, such as ``--input-shape`` or ``factory``.
    """

    args: tuple[torch.Tensor, ...] = ()
    kwargs: Mapping[str, torch.Tensor] = field(default_factory=dict)
    origin: str = ""


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
