"""What the user can ask for, once: the command line and the Python functions both fill these in."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, TypedDict

from spdexport.errors import UsageError
from spdexport.forms import GateMode
from spdexport.gates.sigmoids import Sigmoid
from spdexport.planning import Delta, FormChoice, Objective, PlanOptions, PlanRecord, check_truncation, read_plan
from spdexport.planning.live_masks import LiveOptions, MaskInputs

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import torch

    from spdexport.loading.model import ExampleInputs


LARGEST_LANE = 1024
"""Channels of the widest lane: components are padded to whole lanes, and a file's metadata may ask for that."""

LATEST_OPSET = 999
"""A bound to what is asked of the exporter, which knows what it has."""


class OptionsDict(TypedDict, total=False):
    """The keyword arguments of ``convert``, ``verify``, ``inspect`` and ``factorize``; see ``Options``."""

    factory: str | None
    input_shape: Sequence[str]
    inputs: str | Path | ExampleInputs | torch.Tensor | tuple[torch.Tensor, ...] | dict[str, torch.Tensor] | None
    trust: bool
    allow_pickle: bool  # the older name of trust
    state_key: str | None
    seed: int
    dynamic_batch: bool
    dynamic: Sequence[str]
    components: str | Path | None
    sigmoid: str | None
    masks: str | Path | None
    edit: str | Path | Mapping[str, Any] | None
    mask_threshold: float | None
    keep_masks: bool
    delta: str
    form: str
    optimize_for: str
    lane_width: int
    target: str
    rank: int | str | Sequence[str]
    energy: float | None
    max_error: float | None
    plan: str | Path | PlanRecord | None
    layers: Sequence[str]
    exclude: Sequence[str]
    runtime_masks: Sequence[str]
    runtime_masks_per_location: bool
    runtime_delta_masks: bool
    runtime_routing: bool
    mask_inputs: str
    gates: str | None
    gate_threshold: float | None
    gate_outputs: bool
    activation_outputs: bool
    opset: int | None


@dataclass(frozen=True, kw_only=True)
class ModelOptions:
    """How a source is to be read and traced, where its components and masks come from, and what it becomes.

    Attributes:
        factory: ``FILE.py:NAME`` or ``package.module:NAME``, a callable that returns the module, or (module, inputs).
        input_shape: Example inputs as ``[NAME=]2x3x32x32[:dtype]``.
        inputs: A file of example inputs, or the inputs themselves; verification uses them too.
        trust: Whether code that the source brings may run: pickled objects, TorchScript with effects.
        state_key: The key of the state dict in a checkpoint that holds several, dotted for one inside of another.
        seed: Of every random number: a factory's, generated inputs, simulated rounding.
        dynamic_batch: Whether axis 0 of the inputs may change at run time, where the model can.
        dynamic: Further dynamic axes as ``NAME:AXIS=DIM``, with ``:LEAST..MOST`` behind for sizes that are to be.
        components: A file or run with V and U; where None, those of the source itself, or else the exact SVD.
        sigmoid: The ``sigmoid_type`` of the run's causal-importance functions, where no configuration tells it.
        masks: A file of fixed masks, one (C,) for each layer it names.
        edit: A JSON file of edits of components, or what is in it, such as ``{"layer:3": {"scale": 0}}``.
        mask_threshold: Where given, components are kept where their mask exceeds it.
        target: The ONNX Runtime provider that latency is measured on; ``convert`` takes the first of its providers.
        plan: A plan file to repeat, or what it holds; it brings the options of the plan with it.
        opset: The ONNX opset; None for the exporter's default.
    """

    factory: str | None = None
    input_shape: tuple[str, ...] = ()
    inputs: Path | ExampleInputs | None = None
    trust: bool = False
    state_key: str | None = None
    seed: int = 0
    dynamic_batch: bool = True
    dynamic: tuple[str, ...] = ()
    components: Path | None = None
    sigmoid: Sigmoid | None = None
    masks: Path | None = None
    edit: Path | Mapping[str, Any] | None = None
    mask_threshold: float | None = None
    target: str = "cpu"
    plan: PlanRecord | None = None
    opset: int | None = None

    @property
    def own_inputs(self) -> bool:
        """Whether the values of example inputs are the user's or the source's own, and not only of a shape given."""
        return self.inputs is not None or not self.input_shape


@dataclass(frozen=True, kw_only=True)
class Options(LiveOptions, PlanOptions, ModelOptions):
    """How a source is to be read, decomposed and exported: all options but those of the check.

    Each is told of where it belongs: ``ModelOptions``, ``PlanOptions``, and ``LiveOptions`` for what of the masks is
    known only at run time.
    """

    @classmethod
    def of(cls, keywords: OptionsDict) -> Self:
        """Options from keyword arguments, with plain strings and lists made what they stand for.

        Raises:
            UsageError: An argument has no such value, or two do not go together.
        """
        values: dict[str, Any] = dict(keywords)
        if values.pop("allow_pickle", False):
            values["trust"] = True
        if isinstance(values.get("rank"), int):
            values["rank"] = str(values["rank"])
        for name in ("input_shape", "dynamic", "layers", "exclude", "rank", "runtime_masks"):
            if name in values:
                values[name] = (values[name],) if isinstance(values[name], str) else tuple(values[name])
        for name in ("components", "masks"):
            if values.get(name) is not None:
                values[name] = Path(values[name])
        if isinstance(values.get("edit"), str):
            values["edit"] = Path(values["edit"])
        given = values.get("inputs")
        if isinstance(given, str | Path):
            values["inputs"] = Path(given)
        elif given is not None:
            from spdexport.loading.inputs import as_example_inputs  # needs torch, as such inputs do

            values["inputs"] = as_example_inputs(given, "inputs")
        if isinstance(values.get("plan"), str | Path):
            values = _with_plan(values, read_plan(Path(values["plan"])))
        for name, kind in CHOICES.items():
            if values.get(name) is not None:
                try:
                    values[name] = kind(values[name])
                except ValueError:
                    allowed = ", ".join(k.value for k in kind)
                    raise UsageError(
                        f"{values[name]!r} is no value of {name}.",
                        where=f"--{name.replace('_', '-')}",
                        hint=f"Choose one of {allowed}.",
                    ) from None
        unknown = values.keys() - set(_names(cls))
        if unknown:
            raise TypeError(f"unknown options: {', '.join(sorted(unknown))}")
        options = cls(**values)
        options._check()
        return options

    def _check(self) -> None:
        if self.masks is None and (self.mask_threshold is not None or self.keep_masks):
            option = "--keep-masks" if self.keep_masks else "--mask-threshold"
            raise UsageError(
                f"{option} has no masks to work on.", where=option, hint="Give --masks FILE, or leave it out."
            )
        if self.keep_masks and self.form.chain:
            raise UsageError(
                f"The {self.form.value} form has no components for a mask to stay visible on.",
                where=f"--keep-masks and --form {self.form.value}",
                hint="Give one of them.",
            )
        if not 1 <= self.lane_width <= LARGEST_LANE:
            raise UsageError(
                f"A lane has 1 to {LARGEST_LANE} channels, not {self.lane_width}.",
                where="--lane-width",
                hint="Give 16, or 8 without AVX-512.",
            )
        if not 0 <= self.seed < 2**63:
            raise UsageError(
                "The seed is not a number from 0 to 2^63 - 1.",
                where="--seed",
                hint="Give a number of at most 18 digits.",
            )
        if self.optimize_for is not Objective.MACS and self.form is not FormChoice.AUTO:
            raise UsageError(
                f"There is nothing to optimize: the form of all layers is {self.form.value}.",
                where="--optimize-for",
                hint="Give --form auto with it.",
            )
        check_truncation(self.planning)
        self._check_live_masks()
        if self.opset is not None and self.opset < 18:
            raise UsageError(
                f"Opset {self.opset} is older than the exporter supports.", where="--opset", hint="Ask for 18 or later."
            )
        if self.opset is not None and self.opset > LATEST_OPSET:
            raise UsageError("There is no such opset.", where="--opset", hint="Ask for one that ONNX has.")

    def _check_live_masks(self) -> None:
        needed = {
            "runtime_masks": ("runtime_masks_per_location", "runtime_delta_masks", "runtime_routing"),
            "gates": ("gate_threshold", "gate_outputs"),
        }
        for name, dependents in needed.items():
            for dependent in dependents:
                if getattr(self, dependent) not in (None, False) and not getattr(self, name):
                    raise UsageError(
                        f"{_option(dependent)} has nothing to work on.",
                        where=_option(dependent),
                        hint=f"Give {_option(name)} with it, or leave it out.",
                    )
        if self.requires_masks and not self.runtime_masks:
            raise UsageError(
                "There are no masks that are inputs.", where="--mask-inputs", hint="Give --runtime-masks with it."
            )
        if self.gate_threshold is not None and not math.isfinite(self.gate_threshold):
            raise UsageError(
                f"The gate threshold is {self.gate_threshold}, not a finite number.",
                where="--gate-threshold",
                hint="Give the importance above which a component is kept.",
            )
        if self.asks_for_live_masks and (self.form is FormChoice.DENSE or self.form.chain):
            raise UsageError(
                f"A {self.form.value} layer has no components for a mask to choose among.",
                where=f"--form {self.form.value}",
                hint="Leave it out: layers with run-time masks or gates are factorized.",
            )

    @property
    def live_masks(self) -> LiveOptions:
        """What is to be known only at run time."""
        return LiveOptions(**self._part(LiveOptions))

    @property
    def planning(self) -> PlanOptions:
        """The part that the planner needs, and that a plan keeps."""
        return PlanOptions(**self._part(PlanOptions))

    def _part(self, group: type) -> dict[str, Any]:
        return {name: getattr(self, name) for name in _names(group)}

    def recorded(self) -> dict[str, Any]:
        """Return what the file's metadata keeps of the options, as JSON values: those of ``RECORDED``."""
        return {name: _as_json(getattr(self, name)) for name in RECORDED}


def _names(group: type) -> tuple[str, ...]:
    """Return the names of the options of a group."""
    return tuple(field.name for field in fields(group))


RECORDED = tuple(
    sorted(
        (
            *_names(PlanOptions),
            *_names(LiveOptions),
            "dynamic",
            "dynamic_batch",
            "mask_threshold",
            "opset",
            "seed",
            "sigmoid",
        )
    )
)
"""The options that a file's metadata keeps: those that change what is in it, no path and no permission."""

NOT_RECORDED = (
    "components",
    "edit",
    "factory",
    "input_shape",
    "inputs",
    "masks",
    "plan",
    "state_key",
    "target",
    "trust",
)
"""The others: where the source is, what may be done with it, how it is measured. A file has no say in that."""

CHOICES: Mapping[str, Any] = {
    "delta": Delta,
    "form": FormChoice,
    "optimize_for": Objective,
    "gates": GateMode,
    "mask_inputs": MaskInputs,
    "sigmoid": Sigmoid,
}
"""The options with a few values that have names."""


def _as_json(value: Any) -> Any:
    """Return the JSON value of an option: enums as texts, tuples as lists."""
    if isinstance(value, StrEnum):
        return value.value
    return list(value) if isinstance(value, tuple) else value


def _option(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def _with_plan(values: Mapping[str, Any], record: PlanRecord) -> dict[str, Any]:
    """Options with those that a plan was made with; the plan decides about all of them.

    Raises:
        UsageError: One of them is given beside the plan.
    """
    decided = _names(PlanOptions)
    if given := [name for name in decided if name in values]:
        raise UsageError(
            "The plan decides that already.",
            where=f"--{given[0].replace('_', '-')} and --plan",
            hint="Leave the option out, or make another plan.",
        )
    return {**values, **{name: getattr(record.options, name) for name in decided}, "plan": record}
