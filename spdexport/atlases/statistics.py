"""What is remembered of a layer's components while a data set goes by. Pure numpy; what it holds does not grow."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from spdexport.conv import Array, FloatArray


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Tops:
    """The samples that fire each component most, the strongest first; all arrays are (C, k).

    A sample is as strong as its strongest place: the greatest ``|importance * activation|``, which is what the
    component hands on to U; without importances, the greatest ``|activation|``. Of equal samples, and of equal places,
    the first counts.

    Attributes:
        strength: 0 where there are fewer than k samples that fire it.
        sample: Index in the data set; -1 where there is none.
        place: Index among the layer's places, in C order.
        activation: Of V, there.
        importance: There; 1 without importances.
    """

    strength: FloatArray
    sample: Array
    place: Array
    activation: FloatArray
    importance: FloatArray


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Statistics:
    """What was found of one layer's components over a data set.

    Attributes:
        places: The sizes of the axes between batch and components; empty where the layer has one place.
        mean_importance: Over samples and places, (C,); None without importances.
        peak_importance: The greatest, (C,); None likewise.
        mean_activation: The mean of ``|activation|``, (C,).
        peak_activation: The greatest ``|activation|``, (C,).
        tops: The samples that fire each most.
    """

    places: tuple[int, ...]
    mean_importance: FloatArray | None
    peak_importance: FloatArray | None
    mean_activation: FloatArray
    peak_activation: FloatArray
    tops: Tops


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Firing:
    """How often and where components fire.

    Attributes:
        density: The share of samples and places, (C,).
        map: The share of samples at each place, (C, *places).
    """

    density: FloatArray
    map: FloatArray


def flat(values: Array) -> Array:
    """Return (samples, *places, C) with all places on one axis: (samples, places, C)."""
    return values.reshape(len(values), -1, values.shape[-1])


class RunningStatistics:
    """Takes in one layer's activations and importances batch by batch.

    Args:
        components: C.
        samples: How many of the strongest samples are kept of each component.

    Attributes:
        places: The sizes of the axes of places; None as long as nothing was taken in.
    """

    def __init__(self, components: int, samples: int) -> None:
        self._number = samples
        self.places: tuple[int, ...] | None = None
        self._importance, self._activation = np.zeros(components), np.zeros(components)
        self._peaks = np.zeros((2, components))
        self._peaks[0] = -np.inf
        self._has_importances = False
        self._count = self._samples = 0
        self._tops = {
            "strength": np.zeros((components, 0)),
            "sample": np.zeros((components, 0), np.int64),
            "place": np.zeros((components, 0), np.int64),
            "activation": np.zeros((components, 0)),
            "importance": np.zeros((components, 0)),
        }

    def add(self, activation: Array, importance: Array | None) -> None:
        """Take in a batch.

        Args:
            activation: What V gives, shape (samples, *places, C), with the places of the batches before.
            importance: Of the same shape; None for ones.
        """
        self.places = activation.shape[1:-1]
        a = flat(activation)
        size = np.abs(a)
        self._activation += size.sum(axis=(0, 1), dtype=np.float64)
        self._peaks[1] = np.maximum(self._peaks[1], size.max(axis=(0, 1), initial=0.0))
        strength = size
        if importance is not None:
            self._has_importances = True
            m = flat(importance)
            self._importance += m.sum(axis=(0, 1), dtype=np.float64)
            self._peaks[0] = np.maximum(self._peaks[0], m.max(axis=(0, 1), initial=-np.inf))
            strength = np.abs(m * a)
        place = strength.argmax(axis=1)[:, None, :]

        def at(values: Array) -> Array:
            return np.asarray(np.take_along_axis(values, place, axis=1)[:, 0, :].T)

        batch = {
            "strength": at(strength),
            "sample": np.broadcast_to(self._samples + np.arange(len(a)), (a.shape[-1], len(a))),
            "place": place[:, 0, :].T,
            "activation": at(a),
            "importance": np.ones((a.shape[-1], len(a))) if importance is None else at(flat(importance)),
        }
        joined = {name: np.concatenate([self._tops[name], batch[name]], axis=1) for name in self._tops}
        # Stable, so that of equal samples the earlier ones stay.
        order = np.argsort(-joined["strength"], axis=1, kind="stable")[:, : self._number]
        self._tops = {name: np.take_along_axis(values, order, axis=1) for name, values in joined.items()}
        self._samples += len(a)
        self._count += a.shape[0] * a.shape[1]

    def result(self) -> Statistics:
        """Return what was found; at least one batch was taken in."""
        assert self.places is not None, "a batch was taken in"
        fires = self._tops["strength"] > 0
        tops = {**self._tops, "sample": np.where(fires, self._tops["sample"], -1)}
        known = self._has_importances
        return Statistics(
            places=self.places,
            mean_importance=self._importance / self._count if known else None,
            peak_importance=self._peaks[0] if known else None,
            mean_activation=self._activation / self._count,
            peak_activation=self._peaks[1],
            tops=Tops(**tops),
        )


class RunningFiring:
    """Counts where components fire.

    Args:
        limit: What fires is greater, (C,) or a number; it is compared in the values' own dtype.
    """

    def __init__(self, limit: Array | float) -> None:
        self._limit = limit
        self._fired: Array | None = None
        self._samples = 0

    def add(self, values: Array) -> None:
        """Take in importances, or absolute activations: shape (samples, *places, C)."""
        limit = np.asarray(self._limit, values.dtype)
        fired = (values > limit).sum(axis=0, dtype=np.int64)
        self._fired = fired if self._fired is None else self._fired + fired
        self._samples += len(values)

    def result(self) -> Firing:
        """Return what was found; at least one batch was taken in."""
        assert self._fired is not None, "a batch was taken in"
        found = np.moveaxis(self._fired / self._samples, -1, 0)
        return Firing(density=found.reshape(len(found), -1).mean(axis=1), map=found)
