"""What of a form is known only at run time: masks that are inputs of the model, or that it computes itself.

Masks have SPD's layout, components last: (batch, C), the same at every location, or (batch, *locations, C), where
locations are the output's spatial axes, and the tokens of a linear layer over a sequence.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from spdexport.conv import Array
    from spdexport.gates import GateFunction, GlobalShare


class Role(StrEnum):
    """What an input does to its layer; the first part of its name."""

    MASK = "mask"
    DELTA_MASK = "delta_mask"
    ROUTING = "routing"


class GateMode(StrEnum):
    """Whose activations the causal importances are computed from: the dense model's, or those of the masked one."""

    EXACT = "exact"
    LOCAL = "local"


@dataclass(frozen=True, slots=True, kw_only=True)
class LiveInput:
    """An input of the model beside its own.

    Attributes:
        role: What it does.
        layer: The layer, without the number of a call: all calls of a module share it.
        per_location: Whether it has the axes of the layer's output locations behind the batch.
        channels: Components on its last axis; 0 for an input without that axis (delta masks, routing).
    """

    role: Role
    layer: str
    per_location: bool
    channels: int = 0

    @property
    def name(self) -> str:
        """The name in an ONNX file: ``mask/layer1.0.conv1``."""
        return f"{self.role}/{self.layer}"

    @property
    def keyword(self) -> str:
        """The keyword in a torch program, whose names are identifiers: ``mask_layer1_0_conv1``."""
        return re.sub(r"\W", "_", self.name)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class VariableMask:
    """Factors on the channels of a stage that are no constant number for each channel.

    They multiply: ``y = input * gate * located * (weight conv x)``, each as far as it is there.

    Attributes:
        layer: The layer, without the number of a call.
        input: An input of the model, or None.
        located: A constant for each location, shape (*locations, channels), or None.
        gate: The layer's causal-importance function, or its share of one of all layers; None for none.
        mode: Whose activations the gate reads.
        threshold: The importances become 1 where they are greater and 0 elsewhere; None leaves them as they are.
        shows_importance: Whether the importances are an output too.
        shows_activation: Whether the stage's own output, before the mask, is one.
    """

    layer: str
    input: LiveInput | None = None
    located: Array | None = None
    gate: GateFunction | GlobalShare | None = None
    mode: GateMode = GateMode.EXACT
    threshold: float | None = None
    shows_importance: bool = False
    shows_activation: bool = False

    @property
    def size(self) -> int:
        """The numbers that a model stores for it."""
        return 0 if self.located is None else int(self.located.size)

    def told(self) -> str:
        """Return what it is, in a clause."""
        gates = f"computed by the layer's gate ({self.mode})" if self.gate is not None else ""
        parts = ["an input" if self.input is not None else "", gates]
        parts.append("another one at each location" if self.located is not None else "")
        return " and ".join(part for part in parts if part) or "one, with its activations as an output"


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class RunTime:
    """All of a layer that is known only at run time.

    Attributes:
        mask: On the components.
        delta_mask: On the weight delta; None for 1, or where no delta is kept.
        routing: Whether the components or the original layer are used; None for the components.
    """

    mask: VariableMask
    delta_mask: VariableMask | None = None
    routing: LiveInput | None = None

    @property
    def reads_dense(self) -> bool:
        """Whether the mask comes from a gate that reads the dense model's activations, which is another pass."""
        return self.mask.gate is not None and self.mask.mode is GateMode.EXACT

    @property
    def inputs(self) -> tuple[LiveInput, ...]:
        """The inputs of the model that it needs."""
        masks = (self.mask, self.delta_mask)
        return tuple(i for i in (*(m.input for m in masks if m is not None), self.routing) if i is not None)
