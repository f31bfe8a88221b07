"""A factorized model as a module to be trained, whose state dict ``--components`` takes back."""

from __future__ import annotations

from dataclasses import replace
from types import MethodType
from typing import TYPE_CHECKING

import torch

from spdexport.errors import UsageError
from spdexport.forms.families import stage_name

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from torch.export import ExportedProgram

    from spdexport.conv import ConvSite
    from spdexport.forms import Form


def numbered(forms: Iterable[tuple[ConvSite, Form]]) -> Iterator[tuple[ConvSite, Form]]:
    """Give the forms with their stages named as a file of chains names them; a layer of one stage keeps its weight.

    Raises:
        UsageError: A form has something beside its stages, which no file of chains holds.
    """
    for site, form in forms:
        beside = None
        if len(form.chains) > 1:
            beside = "the weight delta", "Give delta='drop', or form='auto'."
        elif any(stage.mask is not None for stage in form.stages):
            beside = "a mask", "Give fixed masks without keep_masks, so that they go into U."
        if beside is not None:
            raise UsageError(
                f"{site.name} has {beside[0]} beside its stages, which would not come back with what is trained.",
                where="factorize(trainable=True)",
                hint=beside[1],
            )
        (chain,) = form.chains
        if len(chain) == 1:
            yield site, form
            continue
        stages = tuple(replace(stage, name=stage_name(number)) for number, stage in enumerate(chain))
        yield site, replace(form, chains=(stages,))


def trainable_module(program: ExportedProgram) -> torch.nn.Module:
    """Return the module of a program with parameters of its own, all of which take gradients.

    ``train()`` and ``eval()`` may be called and set ``training``; what was traced stays as it was traced, in eval mode:
    batch norm takes its running statistics, and nothing is dropped out.
    """
    module: torch.nn.Module = program.module()
    # The program shares its tensors with the model that it was traced from.
    own: dict[int, torch.nn.Parameter] = {}
    for part in module.modules():
        for name, parameter in part.named_parameters(recurse=False, remove_duplicate=False):
            if id(parameter) not in own:
                trained = parameter.is_floating_point()
                own[id(parameter)] = torch.nn.Parameter(parameter.detach().clone(), requires_grad=trained)
            part.register_parameter(name, own[id(parameter)])
        for name, buffer in part.named_buffers(recurse=False):
            setattr(part, name, buffer.clone())
    # torch forbids both on the modules of its programs.
    module.train = MethodType(torch.nn.Module.train, module)  # type: ignore[method-assign]
    module.eval = MethodType(torch.nn.Module.eval, module)  # type: ignore[method-assign]
    return module
