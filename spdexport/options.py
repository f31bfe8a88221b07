"""What the user can ask for, once: the command line and the Python functions both fill these in."""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, TypedDict

from spdexport.errors import UsageError
from spdexport.planning import Delta, FormChoice, PlanOptions

if TYPE_CHECKING:
    from collections.abc import Sequence

    import torch

    from spdexport.loading.model import ExampleInputs


class OptionsDict(TypedDict, total=False):
    """The keyword arguments of ``convert``, ``verify``, ``inspect`` and ``factorize``; see ``Options``."""

    factory: str | None
    input_shape: Sequence[str]
    inputs: str | Path | ExampleInputs | torch.Tensor | tuple[torch.Tensor, ...] | dict[str, torch.Tensor] | None
    allow_pickle: bool
    seed: int
    dynamic_batch: bool
    dynamic: Sequence[str]
    components: str | Path | None
    masks: str | Path | None
    mask_threshold: float | None
    keep_masks: bool
    delta: str
    form: str
    layers: Sequence[str]
    exclude: Sequence[str]
    opset: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """How a source is to be read, decomposed and exported.

    Attributes:
        factory: ``FILE.py:NAME`` or ``package.module:NAME``, a callable that returns the module, or (module, inputs).
        input_shape: Example inputs as ``[NAME=]2x3x32x32[:dtype]``.
        inputs: A file of example inputs, or the inputs themselves; verification uses them too.
        allow_pickle: Whether pickled objects may be loaded, which runs their code.
        seed: Of every random number: a factory's, generated inputs, simulated rounding.
        dynamic_batch: Whether axis 0 of the inputs may change at run time, where the model can.
        dynamic: Further dynamic axes as ``NAME:AXIS=DIM``.
        components: A file or run with V and U; where None, those of the source itself, or else the exact SVD.
        masks: A file of fixed masks, one (C,) for each layer it names.
        mask_threshold: Where given, components are kept where their mask exceeds it.
        keep_masks: Whether masks stay visible between V and U.
        delta: ``auto``, ``keep`` or ``drop`` the weight delta.
        form: ``factorized`` or ``dense``.
        layers: Patterns of the layers to decompose; empty for all.
        exclude: Patterns of the layers to leave alone.
        opset: The ONNX opset; None for the exporter's default.
    """

    factory: str | None = None
    input_shape: tuple[str, ...] = ()
    inputs: Path | ExampleInputs | None = None
    allow_pickle: bool = False
    seed: int = 0
    dynamic_batch: bool = True
    dynamic: tuple[str, ...] = ()
    components: Path | None = None
    masks: Path | None = None
    mask_threshold: float | None = None
    keep_masks: bool = False
    delta: Delta = Delta.AUTO
    form: FormChoice = FormChoice.FACTORIZED
    layers: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    opset: int | None = None

    @classmethod
    def of(cls, keywords: OptionsDict) -> Self:
        """Options from keyword arguments, with plain strings and lists made what they stand for.

        Raises:
            UsageError: An argument has no such value, or two do not go together.
        """
        values: dict[str, Any] = dict(keywords)
        for name in ("input_shape", "dynamic", "layers", "exclude"):
            if name in values:
                values[name] = (values[name],) if isinstance(values[name], str) else tuple(values[name])
        for name in ("components", "masks"):
            if values.get(name) is not None:
                values[name] = Path(values[name])
        given = values.get("inputs")
        if isinstance(given, str | Path):
            values["inputs"] = Path(given)
        elif given is not None:
            from spdexport.loading.inputs import as_example_inputs  # needs torch, as such inputs do

            values["inputs"] = as_example_inputs(given, "inputs")
        for name, kind in (("delta", Delta), ("form", FormChoice)):
            if name in values:
                try:
                    values[name] = kind(values[name])
                except ValueError:
                    allowed = ", ".join(k.value for k in kind)
                    raise UsageError(
                        f"{values[name]!r} is no value of {name}.", where=f"--{name}", hint=f"Choose one of {allowed}."
                    ) from None
        unknown = values.keys() - {f.name for f in fields(cls)}
        if unknown:
            raise TypeError(f"unknown options: {', '.join(sorted(unknown))}")
        options = cls(**values)
        options._check()
        return options

    def _check(self) -> None:
        if self.inputs is not None and self.input_shape:
            raise UsageError(
                "Example inputs are given twice.",
                where="--inputs and --input-shape",
                hint="Give the file or the shapes.",
            )
        if self.masks is None and (self.mask_threshold is not None or self.keep_masks):
            option = "--keep-masks" if self.keep_masks else "--mask-threshold"
            raise UsageError(
                f"{option} has no masks to work on.", where=option, hint="Give --masks FILE, or leave it out."
            )
        if self.opset is not None and self.opset < 18:
            raise UsageError(
                f"Opset {self.opset} is older than the exporter supports.", where="--opset", hint="Ask for 18 or later."
            )

    @property
    def plan(self) -> PlanOptions:
        """The part that the planner needs."""
        return PlanOptions(
            form=self.form, delta=self.delta, keep_masks=self.keep_masks, layers=self.layers, exclude=self.exclude
        )

    def recorded(self) -> dict[str, Any]:
        """What the file's metadata keeps of the options: those that change what is in it, and no path."""
        return {
            "delta": self.delta.value,
            "dynamic": list(self.dynamic),
            "dynamic_batch": self.dynamic_batch,
            "exclude": list(self.exclude),
            "form": self.form.value,
            "keep_masks": self.keep_masks,
            "layers": list(self.layers),
            "mask_threshold": self.mask_threshold,
            "opset": self.opset,
            "seed": self.seed,
        }
