"""Two ways through the data: statistics of all components, then the samples that are shown.

How often components without importances fire is told by their greatest activation, and so counted the second time.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from spdexport.ablation.masked_runs import MaskedRuns, opened_file, read_runtime_masks
from spdexport.atlases.observed import ACTIVATION, IMPORTANCE
from spdexport.atlases.pictures import as_pixels, smaller
from spdexport.atlases.samples import ImageRange
from spdexport.atlases.statistics import Firing, RunningFiring, RunningStatistics, Statistics
from spdexport.errors import ExampleInputError
from spdexport.files.onnx_reading import load_onnx
from spdexport.ort.providers import CPU, Purpose
from spdexport.ort.sessions import SessionSettings
from spdexport.steps import step
from spdexport.verification.bounded import Bounded

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping

    from spdexport.atlases.samples import Samples
    from spdexport.atlases.subject import Subject
    from spdexport.conv import Array

LARGEST_THUMBNAIL = 64
"""Pixels of a sample that is kept for its picture."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Collected:
    """What the first way through the data finds.

    Attributes:
        statistics: By layer.
        firing: By layer; only of those with importances.
        samples: How many.
        image: The input that is an image, with its range; None where there is none.
    """

    statistics: Mapping[str, Statistics]
    firing: Mapping[str, Firing]
    samples: int
    image: ImageRange | None


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Gathered:
    """What the second way through the data finds.

    Attributes:
        firing: By layer; of those without importances.
        images: By sample, small images of ``as_pixels``.
        feeds: The samples that effects are measured on, by the names of the file's inputs; None for none.
    """

    firing: Mapping[str, Firing]
    images: Mapping[int, Array]
    feeds: Mapping[str, Array] | None


class Watched:
    """A session of the file that is watched.

    Args:
        subject: The file.
        threads: Of one operator; None leaves it to ONNX Runtime.
    """

    def __init__(self, subject: Subject, threads: int | None = None) -> None:
        masks = read_runtime_masks(load_onnx(subject.path))
        settings = SessionSettings(provider=CPU, optimized=True, purpose=Purpose.DEPLOYMENT, threads=threads)
        start = {mask.layer: np.ones(mask.channels) for mask in masks.values()}
        session = opened_file(subject.path, settings)
        self._runs = MaskedRuns(session, masks, "", start, Bounded(subject.path), keep=False, rows=1)
        self._gated = [layer.name for layer in subject.layers if layer.has_importances]
        self._plain = [layer.name for layer in subject.layers]

    def run(
        self, feeds: Mapping[str, Array], where: str, *, importances: bool = True
    ) -> tuple[dict[str, Array], dict[str, Array]]:
        """Return activations and importances by layer, each (batch, *places, C).

        Raises:
            ExampleInputError: The file does not run on the data.
        """
        gated = self._gated if importances else []
        names = [ACTIVATION + name for name in self._plain] + [IMPORTANCE + name for name in gated]
        rows = max(len(array) for array in feeds.values())
        values = self._runs.values(names, feeds, rows, where)
        activations = {name: values[ACTIVATION + name] for name in self._plain}
        found = {name: values[IMPORTANCE + name] for name in gated}
        # Importances of one place are those of all places.
        spread = {n: m.reshape(len(m), *(1,) * (activations[n].ndim - m.ndim), *m.shape[1:]) for n, m in found.items()}
        return activations, {n: np.broadcast_to(m, activations[n].shape) for n, m in spread.items()}


def collect(
    subject: Subject,
    watched: Watched,
    data: Samples,
    *,
    tops: int,
    threshold: float,
    batch: int,
    progress: Callable[[str], None],
) -> Collected:
    """Go through the data once.

    Args:
        subject: What is watched.
        watched: Its session.
        data: The data.
        tops: Samples to keep of each component.
        threshold: Above which an importance fires.
        batch: Samples in each run.
        progress: Told what is being done.

    Raises:
        ExampleInputError: The data do not fit the file, or there are none.
    """
    running = {layer.name: RunningStatistics(len(layer.weights), tops) for layer in subject.layers}
    firing = {layer.name: RunningFiring(threshold) for layer in subject.layers if layer.has_importances}
    done, image = 0, None
    for number, feeds in data.feeds(subject.ports, batch, subject.fixed_batch):
        if done == 0:
            image = ImageRange.find(feeds)
        activations, importances = watched.run(feeds, data.origin)
        if image is not None:
            image.add({image.name: feeds[image.name][:number]})
        for name, values in activations.items():
            found = importances.get(name)
            if running[name].places not in (None, values.shape[1:-1]):
                raise ExampleInputError(
                    f"The data have several sizes, so that {name} has several numbers of places.",
                    where=data.origin,
                    hint="Give data of one size.",
                )
            running[name].add(values[:number], None if found is None else found[:number])
            if found is not None:
                firing[name].add(found[:number])
        done += number
        progress(step("activations", done=done, total=data.total, unit="sample"))
    if not done:
        raise ExampleInputError("There are no data.", where=data.origin, hint="Give at least one sample.")
    return Collected(
        statistics={name: one.result() for name, one in running.items()},
        firing={name: one.result() for name, one in firing.items()},
        samples=done,
        image=image,
    )


def gather(
    subject: Subject,
    watched: Watched,
    data: Samples,
    collected: Collected,
    *,
    shown: Collection[int],
    effect_samples: int,
    threshold: float,
    batch: int,
    progress: Callable[[str], None],
) -> Gathered:
    """Go through the data again, for what the first way told.

    Args:
        subject: What is watched.
        watched: Its session.
        data: The same data.
        collected: What the first way found.
        shown: The samples whose pictures are wanted.
        effect_samples: How many samples effects are measured on, evenly over the data; 0 for none.
        threshold: Components without importances fire above this share of their greatest activation.
        batch: Samples in each run.
        progress: Told what is being done.
    """
    firing = {
        layer.name: RunningFiring(threshold * collected.statistics[layer.name].peak_activation)
        for layer in subject.layers
        if not layer.has_importances
    }
    image, total = collected.image, collected.samples
    fixed = subject.fixed_batch
    wanted = np.unique(np.linspace(0, total - 1, min(effect_samples, total)).round().astype(np.int64))
    if fixed is not None:
        wanted = wanted[: len(wanted) // fixed * fixed]
    images: dict[int, Array] = {}
    kept: dict[str, list[Array]] = {}
    done = 0
    for number, feeds in data.feeds(subject.ports, batch, fixed):
        if firing:
            activations, _ = watched.run(feeds, data.origin, importances=False)
            for name, one in firing.items():
                one.add(np.abs(activations[name][:number]))
        for sample in range(done, done + number) if image is not None else ():
            if sample in shown and image is not None:
                pixels = as_pixels(feeds[image.name][sample - done], image.low, image.high)
                images[sample] = smaller(pixels, LARGEST_THUMBNAIL)
        rows = wanted[(wanted >= done) & (wanted < done + number)] - done
        for name, array in feeds.items():
            kept.setdefault(name, []).append(array[rows])
        done += number
        progress(step("pictures of samples", done=done, total=total, unit="sample"))
    joined = {name: np.concatenate(parts) for name, parts in kept.items()}
    return Gathered(
        firing={name: one.result() for name, one in firing.items()},
        images=images,
        feeds=joined if len(wanted) else None,
    )
