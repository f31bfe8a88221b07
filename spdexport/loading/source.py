"""Anything that a command may be about, loaded: a file, a module, a program, or what a factory returns."""

from __future__ import annotations

from pathlib import Path

import torch
from torch.export import ExportedProgram

from spdexport.errors import UsageError
from spdexport.loading import ExampleInputs, LoadedModel, load
from spdexport.loading.load import no_keys

Source = str | Path | torch.nn.Module | ExportedProgram | None
"""A file, a module, a program; or None, where a factory gives the module."""


def load_source(
    source: Source,
    *,
    factory: str | None,
    trust: bool,
    state_key: str | None,
    seed: int,
    has_inputs: bool = False,
) -> LoadedModel:
    """Load what a command is about, of whichever kind it is.

    Args:
        source: A file, a module, a program; None for the factory alone.
        factory: As ``ModelOptions.factory``, and so are the others.
        trust: Whether code that the file brings may run.
        state_key: Which state dict of a checkpoint.
        seed: Of the factory's random numbers.
        has_inputs: Whether example inputs are given beside the source.

    Raises:
        UsageError: Options do not go with the source, or it is of no known type.
        InputError: A file that cannot be used.
    """
    if factory is not None and isinstance(source, ExportedProgram | torch.nn.Module):
        kind = "a program" if isinstance(source, ExportedProgram) else "a module"
        raise UsageError(
            f"The source is {kind} already, which needs no factory.",
            where=f"--factory {factory}",
            hint="Leave out either the factory or the source.",
        )
    if state_key is not None and isinstance(source, ExportedProgram | torch.nn.Module):
        raise no_keys("no file", state_key)
    if isinstance(source, ExportedProgram):
        return LoadedModel(kind="program", program=source, inputs=_program_inputs(source))
    if isinstance(source, torch.nn.Module):
        return LoadedModel(kind="module", module=source)
    if source is None and factory is None:
        raise UsageError(
            "There is no model.", where="the command", hint="Name a source file, or give --factory FILE.py:NAME."
        )
    if not isinstance(source, str | Path | None):
        raise UsageError(
            f"A source of type {type(source).__name__} is not known.",
            where="the source",
            hint="Give the path of a file, an nn.Module, an ExportedProgram, or None with a factory.",
        )
    path = None if source is None else Path(source)
    return load(path, factory=factory, trust=trust, state_key=state_key, seed=seed, has_inputs=has_inputs)


def _program_inputs(program: ExportedProgram) -> ExampleInputs | None:
    if program.example_inputs is None:
        return None
    args, kwargs = program.example_inputs
    return ExampleInputs(args=tuple(args), kwargs=dict(kwargs), origin="the program")
