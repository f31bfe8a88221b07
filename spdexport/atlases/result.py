"""What an atlas is made of: numbers, and pictures as PNG files. Free of torch, which the reports do without."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from spdexport.ablation.effects import Effect


@dataclass(frozen=True, slots=True, kw_only=True)
class Picture:
    """An image file.

    Attributes:
        png: The file's content.
        width: In pixels of its own.
        height: The same.
    """

    png: bytes
    width: int
    height: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Box:
    """A part of an input image, from 0 to 1 of its height and width."""

    top: float
    left: float
    bottom: float
    right: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Top:
    """A sample that fires a component, at the place where it fires it most.

    Attributes:
        sample: Index in the data.
        place: Index on each of the layer's axes; empty where the layer has one place.
        activation: Of V, there.
        importance: There; None without importances.
        box: The part of the image that the place reads; None where that is all of it, or the data are no images.
    """

    sample: int
    place: tuple[int, ...]
    activation: float
    importance: float | None
    box: Box | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Component:
    """What is known of one component.

    Attributes:
        index: In its layer.
        label: What it is called in a table of labels; None where there is none.
        mean_importance: Over samples and places; None without importances.
        peak_importance: The greatest; None likewise.
        mean_activation: The mean of ``|activation|`` of V.
        firing: The share of samples and places where it fires.
        most: The share of samples that fire it at the place where most do.
        effect: What its removal does; None where that was not measured, or the component does nothing at all.
        outputs: The channels that U writes most to, with the weights, the greatest in size first.
        reads: V as a picture.
        fires: Where it fires, as a picture; None where the layer has one place.
        tops: The samples that fire it most.
    """

    index: int
    label: str | None = None
    mean_importance: float | None
    peak_importance: float | None
    mean_activation: float
    firing: float
    most: float
    effect: Effect | None
    outputs: tuple[tuple[int, float], ...]
    reads: Picture
    fires: Picture | None
    tops: tuple[Top, ...]

    @property
    def importance(self) -> float:
        """The mean importance, or where there is none, the mean absolute activation."""
        return self.mean_activation if self.mean_importance is None else self.mean_importance

    @property
    def is_alive(self) -> bool:
        """Whether it fires anywhere."""
        return self.firing > 0


@dataclass(frozen=True, slots=True, kw_only=True)
class AtlasLayer:
    """One layer.

    Attributes:
        name: Its name.
        components: Those that are shown, the most important first.
        number: How many it has.
        alive: How many of all of them fire anywhere.
        reads: What the picture of V shows, in a clause.
        places: The sizes of the layer's axes of places; empty where it has one place.
        field: Height and width of what a place in the middle reads of the image, in its pixels; None where the data are
            no images, or it is all of them.
        has_importances: Whether there are causal importances.
    """

    name: str
    components: tuple[Component, ...]
    number: int
    alive: int
    reads: str
    places: tuple[int, ...]
    field: tuple[int, int] | None
    has_importances: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Atlas:
    """Components in pictures.

    Attributes:
        name: What it is of.
        layers: In the model's order.
        samples: How many.
        threshold: What is above it fires: importances, or, without them, activations as a share of the component's
            greatest.
        output: The output that effects are about; None where none were measured.
        baseline: What they start from.
        effect_samples: On how many samples they were measured; 0 where they were not.
        thumbnails: By sample, those of all tops; empty where the data are no images.
        image: Height and width of the images; None where the data are no images.
        outputs: The file written, or none.
        size: Of the page, in bytes; 0 where none was written.
        notes: What the user should know.
        hashes: SHA-256 of what was read, by name.
        seed: Of every random number.
        versions: Of everything that took part.
    """

    name: str
    layers: tuple[AtlasLayer, ...]
    samples: int
    threshold: float
    output: str | None
    baseline: str | None
    effect_samples: int
    thumbnails: Mapping[int, Picture]
    image: tuple[int, int] | None
    outputs: tuple[Path, ...]
    size: int
    notes: tuple[str, ...]
    hashes: Mapping[str, str]
    seed: int
    versions: Mapping[str, str]
