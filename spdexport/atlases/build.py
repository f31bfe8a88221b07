"""An atlas from a source and data: the file that is watched, what the data tell of it, effects, places, pictures."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from safetensors.numpy import save_file

from spdexport.ablation.ablate import ROWS, ablate
from spdexport.atlases.collect import Watched, collect, gather
from spdexport.atlases.labels import read_component_labels
from spdexport.atlases.pictures import places_picture, thumbnail, told_of_weights, weights_picture
from spdexport.atlases.receptive import find_fields
from spdexport.atlases.result import Atlas, AtlasLayer, Component, Top
from spdexport.atlases.samples import Samples
from spdexport.atlases.subject import check_options, make_subject
from spdexport.errors import UsageError
from spdexport.files.hashing import sha256_file
from spdexport.files.scratch import scratch_folder, writing_scratch
from spdexport.names import count
from spdexport.ort.installed import versions

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from spdexport.ablation.ablate import Ablations
    from spdexport.ablation.effects import Effect
    from spdexport.atlases.collect import Collected, Gathered
    from spdexport.atlases.observed import Factorized
    from spdexport.atlases.receptive import Fields
    from spdexport.atlases.result import Picture
    from spdexport.atlases.statistics import Firing, Statistics
    from spdexport.atlases.subject import Subject
    from spdexport.conv import Array
    from spdexport.files.batches import Data
    from spdexport.loading.source import Source
    from spdexport.options import OptionsDict

SIDES = (64, 48, 32, 24, 16)
"""Pixels of a thumbnail; the first with which the page is small enough."""

CHANNELS = 6
"""Outputs of U that are told of each component."""

MIB = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """How much is shown.

    Attributes:
        samples: The samples of each component.
        top: The components of each layer, the most important ones.
        effect_samples: The samples that effects are measured on; 0 for none.
        threshold: What is above it fires.
        batch: Samples that are run together.
        max_size: What the thumbnails may make the page, in MiB.
    """

    samples: int
    top: int
    effect_samples: int
    threshold: float
    batch: int
    max_size: float

    def check(self) -> None:
        """Refuse numbers that cannot be.

        Raises:
            UsageError: One of them is none.
        """
        for option, value, least in (
            ("--samples", self.samples, 0),
            ("--top", self.top, 1),
            ("--effect-samples", self.effect_samples, 0),
            ("--batch", self.batch, 1),
        ):
            if value < least:
                raise UsageError(f"{value} is too few.", where=option, hint=f"Give a number of at least {least}.")
        if not 0 <= self.threshold < math.inf:
            raise UsageError(
                f"The threshold is {self.threshold}.", where="--threshold", hint="Give a number of at least 0."
            )
        if not 0 < self.max_size < math.inf:
            raise UsageError(
                f"A page of {self.max_size:g} MiB holds nothing.", where="--max-size", hint="Give a number above 0."
            )


def build(
    source: Source,
    data: str | Path | Data,
    wanted: Wanted,
    options: OptionsDict,
    progress: Callable[[str], None],
    labels: Path | None = None,
) -> Atlas:
    """Return the atlas of a source; arguments and errors are those of ``spdexport.atlas``."""
    wanted.check()
    check_options(options)
    samples = Samples.of(data)
    example = samples.example()
    with scratch_folder() as folder:
        subject = make_subject(source, options, example, samples.origin, folder, progress)
        # Before the long work, for the table may be of another run.
        called, unplaced = _labels(labels, subject)
        watched = Watched(subject)
        shared = {"threshold": wanted.threshold, "batch": wanted.batch, "progress": progress}
        collected = collect(subject, watched, samples, tops=wanted.samples, **shared)  # type: ignore[arg-type]
        chosen = {layer.name: _chosen(collected.statistics[layer.name], wanted.top) for layer in subject.layers}
        shown = {int(i) for name, rows in chosen.items() for i in collected.statistics[name].tops.sample[rows].flat}
        gathered = gather(
            subject, watched, samples, collected, shown=shown, effect_samples=wanted.effect_samples, **shared  # type: ignore[arg-type]
        )  # fmt: skip
        ablations = _ablations(subject, gathered, chosen, folder, progress)
        fields = _fields(watched, samples, collected, options.get("seed", 0), wanted.batch, subject, progress)
    progress("drawing")
    effects = {} if ablations is None else {one.components.name: one.effect for one in ablations.found}
    layers = tuple(
        _layer(
            layer,
            chosen[layer.name],
            collected.statistics[layer.name],
            {**collected.firing, **gathered.firing}[layer.name],
            effects,
            fields.get(layer.name),
            called.get(layer.name, {}),
        )
        for layer in subject.layers
    )
    thumbnails, note = _thumbnails(layers, gathered.images, wanted.max_size)
    return Atlas(
        name=_name(source, options),
        layers=layers,
        samples=collected.samples,
        threshold=wanted.threshold,
        output=None if ablations is None else ablations.output,
        baseline=None if ablations is None else ablations.baseline,
        effect_samples=0 if ablations is None else ablations.samples,
        thumbnails=thumbnails,
        image=None if collected.image is None else collected.image.shape[1:],
        outputs=(),
        size=0,
        notes=(*subject.notes, *unplaced, *note),
        hashes={
            **subject.hashes,
            **_hashes(labels),
            **{f"data {file.name}": sha256_file(file) for file in samples.files},
        },
        seed=options.get("seed", 0),
        versions=versions(),
    )


def _name(source: Source, options: OptionsDict) -> str:
    if isinstance(source, str | Path):
        return Path(source).resolve().name
    factory = options.get("factory")
    return factory.rpartition(":")[2] if source is None and factory else type(source).__name__


def _labels(path: Path | None, subject: Subject) -> tuple[dict[str, dict[int, str]], tuple[str, ...]]:
    if path is None:
        return {}, ()
    return read_component_labels(path, {layer.name: len(layer.weights) for layer in subject.layers})


def _hashes(labels: Path | None) -> dict[str, str]:
    return {} if labels is None else {f"labels {labels.name}": sha256_file(labels)}


def _chosen(found: Statistics, most: int) -> Array:
    """Return the indices of the components that are shown, the most important first; of equal ones the first."""
    importance = found.mean_activation if found.mean_importance is None else found.mean_importance
    return np.argsort(-importance, kind="stable")[:most]


def _ablations(
    subject: Subject, gathered: Gathered, chosen: Mapping[str, Array], folder: Path, progress: Callable[[str], None]
) -> Ablations | None:
    """Remove each component that is shown, by itself; None where that is not wanted."""
    if gathered.feeds is None:
        return None
    names = [f"{layer}:{int(index)}" for layer, rows in chosen.items() for index in rows]
    data, sets = folder / "effects.safetensors", folder / "sets.json"
    with writing_scratch(data):
        save_file(dict(gathered.feeds), data)
        sets.write_text(json.dumps({"sets": {name: [name] for name in names}}), encoding="utf-8")
    return ablate(subject.path, data=data, sets=sets, rows=subject.fixed_batch or ROWS, progress=progress)


def _fields(
    watched: Watched,
    samples: Samples,
    collected: Collected,
    seed: int,
    batch: int,
    subject: Subject,
    progress: Callable[[str], None],
) -> dict[str, Fields]:
    """What the places of layers read of the image; empty where the data are none, or other inputs are beside it."""
    image = collected.image
    if image is None or len(subject.ports) > 1:
        return {}
    progress("places")
    return find_fields(
        lambda images: watched.run({image.name: images}, samples.origin, importances=False)[0],
        image.shape,
        image.low,
        image.high,
        batch=subject.fixed_batch or max(batch, 2),
        seed=seed,
        dtype=image.dtype,
    )


def _layer(
    layer: Factorized,
    chosen: Array,
    found: Statistics,
    firing: Firing,
    effects: Mapping[str, Effect | None],
    fields: Fields | None,
    labels: Mapping[int, str],
) -> AtlasLayer:
    components = []
    for index in map(int, chosen):
        written = layer.writes[:, index]
        channels = np.argsort(-np.abs(written), kind="stable")[:CHANNELS]
        components.append(
            Component(
                index=index,
                label=labels.get(index),
                mean_importance=_number(found.mean_importance, index),
                peak_importance=_number(found.peak_importance, index),
                mean_activation=float(found.mean_activation[index]),
                firing=float(firing.density[index]),
                most=float(firing.map[index].max(initial=0.0)),
                effect=effects.get(f"{layer.name}:{index}"),
                outputs=tuple((int(c), float(written[c])) for c in channels if written[c]),
                reads=weights_picture(layer.weights[index]),
                fires=places_picture(firing.map[index]) if firing.map[index].size > 1 else None,
                tops=_tops(found, index, fields, has_importances=layer.has_importances),
            )
        )
    return AtlasLayer(
        name=layer.name,
        components=tuple(components),
        number=len(layer.weights),
        alive=int(np.count_nonzero(firing.density)),
        reads=told_of_weights(layer.weights.shape[1:], flattened=layer.is_flattened),
        places=found.places,
        field=None if fields is None else fields.middle,
        has_importances=layer.has_importances,
    )


def _number(values: Array | None, index: int) -> float | None:
    return None if values is None else float(values[index])


def _tops(found: Statistics, index: int, fields: Fields | None, *, has_importances: bool) -> tuple[Top, ...]:
    tops = found.tops
    listed = []
    for rank in range(int(np.count_nonzero(tops.sample[index] >= 0))):
        place = tuple(int(i) for i in np.unravel_index(int(tops.place[index, rank]), found.places))
        listed.append(
            Top(
                sample=int(tops.sample[index, rank]),
                place=place,
                activation=float(tops.activation[index, rank]),
                importance=float(tops.importance[index, rank]) if has_importances else None,
                box=None if fields is None else fields.box(place),
            )
        )
    return tuple(listed)


def _thumbnails(
    layers: Sequence[AtlasLayer], images: Mapping[int, Array], max_size: float
) -> tuple[dict[int, Picture], list[str]]:
    """Return pictures of the samples that are shown, as large as the page may be, and what was made smaller."""
    samples = sorted({top.sample for layer in layers for c in layer.components for top in c.tops} & set(images))
    if not samples:
        return {}, []
    largest = max(max(images[sample].shape[:2]) for sample in samples)
    sides = [side for side in SIDES if side < largest]
    made: dict[int, Picture] = {}
    for side in [largest, *sides]:
        made = {sample: thumbnail(images[sample], side) for sample in samples}
        # A page holds them in base64: four characters for three bytes.
        if sum(len(picture.png) for picture in made.values()) * 4 / 3 <= max_size * MIB:
            return made, [] if side == largest else [f"thumbnails have {side} pixels, to keep the page small"]
    return made, [
        f"the {count(len(samples), 'thumbnail')} make the page larger than {max_size:g} MiB; --samples makes them fewer"
    ]
