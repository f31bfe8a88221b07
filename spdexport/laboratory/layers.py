"""What the page of a lab knows of the file: its layers, and the inputs and outputs that belong to each."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Switch:
    """An input that multiplies something of a layer: 1 leaves it, 0 removes it.

    Attributes:
        input: Its name in the copy.
        shape: Of one sample, with the batch of 1; an axis that is open has 1, which is broadcast.
    """

    input: str
    shape: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Threshold:
    """The input of the copy that sets the threshold of a layer's gate.

    Attributes:
        input: Its name. NaN there means that the importances themselves are the mask.
        value: The file's own threshold; None where its importances are the mask.
    """

    input: str
    value: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class LabLayer:
    """A layer whose components can be switched.

    Attributes:
        name: The layer's.
        components: C.
        mask: Of the components; None where the file has a gate and no run-time mask for the layer.
        delta: Of the weight delta, or None.
        routing: Of the components as a whole against the original layer, or None.
        threshold: Of the gate; None without a gate, or where the file does not give its importances out.
        importance: The output with the importances, (1, *locations, C), or None.
        activation: The output with the activations of V, or None.
        delta_use: What the file says of its delta: ``kept``, ``dropped`` or another word; empty for nothing.
    """

    name: str
    components: int
    mask: Switch | None
    delta: Switch | None
    routing: Switch | None
    threshold: Threshold | None
    importance: str | None
    activation: str | None
    delta_use: str = ""
