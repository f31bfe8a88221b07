"""The two kinds of model with masks at run time that are verified: traced programs and ONNX files."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch

from spdexport.arrays import to_numpy, to_torch
from spdexport.forms import Role
from spdexport.reference.masked_reference import of_program
from spdexport.rewrite.onnx_scopes import node_keys
from spdexport.verification.inputs import Case, feeds
from spdexport.verification.ports import FileCase
from spdexport.verification.run_time_masks import MaskedModel

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    import onnx_ir as ir
    from torch.export import ExportedProgram

    from spdexport.conv import Array
    from spdexport.planning import Plan
    from spdexport.reference.masked_reference import Evaluate
    from spdexport.reference.noise import Noise
    from spdexport.verification.file_layers import Evaluated


class MaskedProgram(MaskedModel[Case]):
    """A traced program with masks.

    Args:
        dense: The program with the source's own weights.
        effective: The program with the plan's effective weights.
        intended: The program with the masks.
        plan: The decisions.
        required: Whether the file has no default for an input that is left out.
    """

    def __init__(
        self,
        *,
        dense: ExportedProgram,
        effective: ExportedProgram,
        intended: ExportedProgram,
        plan: Plan,
        required: bool,
    ) -> None:
        super().__init__(plan, required=required)
        self._dense, self._effective, self._intended = dense, effective, intended

    def dense(self, case: Case) -> Evaluate:
        """Return the program with the source's own weights."""
        return of_program(self._dense, case.unmasked.inputs.args, case.unmasked.inputs.kwargs)

    def effective(self, case: Case) -> Evaluate:
        """Return the program with the plan's effective weights."""
        return of_program(self._effective, case.unmasked.inputs.args, case.unmasked.inputs.kwargs)

    def masked(self, case: Case, name: str, given: Mapping[str, Array], *, omitted: bool) -> Case:
        """Return a case with masks, which are keywords of the program."""
        keywords = {i.name: i.keyword for i in self.plan.runtime_inputs}
        tensors = {keywords[name]: to_torch(array) for name, array in given.items()}
        inputs = replace(case.inputs, kwargs={**case.inputs.kwargs, **tensors})
        return replace(case, name=name, inputs=inputs, plain=case.inputs, given=given, omitted=omitted)

    def feeds(self, case: Case) -> Mapping[str, Array]:
        """Return the inputs of a case by the names that the file has for them; what is left out is not there."""
        return {**feeds(self._effective, case.unmasked.inputs), **({} if case.omitted else case.given)}

    def shapes(self, case: Case) -> Mapping[str, tuple[int, ...]]:
        """Return the shapes of the masks for a case, from the placeholders of the intended program."""
        wanted = {i.keyword for i in self.plan.runtime_inputs}
        placeholders = {n.name: n.meta["val"] for n in self._intended.graph.nodes if n.op == "placeholder"}
        sizes: dict[str, int] = {}
        for name, value in feeds(self._effective, case.inputs).items():
            sizes |= dict(zip(map(str, placeholders[name].shape), value.shape, strict=True))
        return {
            name: tuple(size if isinstance(size, int) else sizes[str(size)] for size in value.shape)
            for name, value in placeholders.items()
            if name in wanted
        }


class MaskedFile(MaskedModel[FileCase]):
    """An ONNX model with masks.

    Args:
        dense: The source's own model, evaluated.
        effective: The same with the plan's effective weights.
        model: The model of the first, whose nodes have the keys of sites.
        sizes: Those of the source's values by name: numbers and names of axes.
        plan: The decisions.
        required: Whether the file has no default for an input that is left out.
    """

    def __init__(
        self,
        *,
        dense: Evaluated,
        effective: Evaluated,
        model: ir.Model,
        sizes: Mapping[str, tuple[Any, ...]],
        plan: Plan,
        required: bool,
    ) -> None:
        super().__init__(plan, required=required)
        self._dense, self._effective = dense, effective
        nodes = node_keys(model.graph)
        self._names = {d.site.node: nodes[d.site.node].outputs[0].name or "" for d in plan.decisions}
        share = plan.global_share
        for one in () if share is None else share.inputs:
            self._names[one.site.node] = nodes[one.site.node].outputs[0].name or ""
        self._sizes = sizes
        self._layers = {d.run_time.mask.layer: d for d in self.decisions if d.run_time is not None}

    def dense(self, case: FileCase) -> Evaluate:
        """Return the source's own model."""
        return self._evaluation(self._dense, case)

    def effective(self, case: FileCase) -> Evaluate:
        """Return the model with the plan's effective weights."""
        return self._evaluation(self._effective, case)

    def masked(self, case: FileCase, name: str, given: Mapping[str, Array], *, omitted: bool) -> FileCase:
        """Return a case with masks, which are inputs of the file."""
        inputs = {**case.inputs, **({} if omitted else given)}
        return replace(case, name=name, inputs=inputs, plain=case.inputs, given=given)

    def shapes(self, case: FileCase) -> Mapping[str, tuple[int, ...]]:
        """Return the shapes of the masks for a case, from the sizes of the layers' outputs."""
        named: dict[str, int] = {}
        for name, value in case.inputs.items():
            named |= {str(s): n for s, n in zip(self._sizes.get(name, ()), value.shape, strict=False)}
        found = {}
        for wanted in self.plan.runtime_inputs:
            site = self._layers[wanted.layer].site
            sizes = self._sizes[self._names[site.node]]
            inner = (sizes[2:] if site.spec.axes else sizes[1:-1]) if wanted.per_location else ()
            inner = tuple(size if isinstance(size, int) else named[size] for size in inner)
            channels = (wanted.channels,) if wanted.role is Role.MASK else ()
            found[wanted.keyword] = (case.batch, *inner, *channels)
        return found

    def watched(self, watch: Callable[[str, torch.Tensor], None]) -> Callable[[str, Array], None]:
        """Return a watcher of the values of a file that tells those of layers, by the keys of their sites."""
        keys: dict[str, list[str]] = {}
        for key, name in self._names.items():
            keys.setdefault(name, []).append(key)

        def tell(name: str, value: Array) -> None:
            for key in keys.get(name, ()):
                watch(key, torch.from_numpy(value))

        return tell

    def _evaluation(self, model: Evaluated, case: FileCase) -> Evaluate:
        def evaluated(
            replaced: Mapping[str, Callable[[torch.Tensor], torch.Tensor]],
            *,
            watch: Callable[[str, torch.Tensor], None] | None = None,
            noise: Noise | None = None,
        ) -> Sequence[Any]:
            def computing(run: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[Array], Array]:
                return lambda data: to_numpy(run(torch.from_numpy(data)))

            outputs = model.run(
                case.unmasked,
                noise,
                watch=None if watch is None else self.watched(watch),
                replaced={self._names[key]: computing(run) for key, run in replaced.items()},
            )
            for error in model.hidden.values():
                raise error
            return [torch.from_numpy(value) for value in outputs.values()]

        return evaluated
