"""Fixed masks from files about components: read, applied to what the run has, and told; no model runs."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from spdexport.errors import UsageError
from spdexport.files.hashing import sha256_file
from spdexport.importance.listed import Run, harvest_measure, read_harvest, read_labels, read_names
from spdexport.importance.result import DerivedMasks, LayerMask
from spdexport.importance.statistics import Measure, Rule
from spdexport.importance.written import write_masks
from spdexport.names import some
from spdexport.ort.installed import versions
from spdexport.overwriting import importances_name
from spdexport.planning import check_patterns, matches
from spdexport.sources.spd import load_components

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from spdexport.importance.statistics import Importances
    from spdexport.sources.components import ComponentSet

_TAKEN = ("components", "exclude", "seed")
"""The options that such masks have a use for: no model is loaded, and none is run."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Listed:
    """The file that tells which components are kept; one of the three is given.

    Attributes:
        harvest: A harvest of SPD's.
        names: A JSON file of components.
        labels: A table of components and their labels.
        patterns: Of labels, with ``labels``.
        remove: Whether what is named is removed, and all else of its layers kept.
    """

    harvest: Path | None = None
    names: Path | None = None
    labels: Path | None = None
    patterns: tuple[str, ...] = ()
    remove: bool = False

    @property
    def path(self) -> Path:
        """The file."""
        found = self.harvest or self.names or self.labels
        assert found is not None, "one is given"
        return found

    def check(self) -> None:
        """Refuse what does not go together.

        Raises:
            UsageError: It does not.
        """
        if self.labels is not None and not self.patterns:
            raise UsageError("Nothing tells which labels are meant.", where="--labels", hint="Give --label PATTERN.")
        if self.patterns and self.labels is None:
            raise UsageError("There are no labels to look at.", where="--label", hint="Give --labels FILE with it.")
        if self.remove and self.harvest is not None:
            raise UsageError(
                "A harvest names no components to remove.",
                where="--remove",
                hint="Leave it out: what is not above the threshold is removed.",
            )


def derive_listed(
    source: object,
    path: Path | None,
    listed: Listed,
    *,
    rule_of: Callable[[str], Rule],
    by: str | None,
    threshold: float | None,
    options: Mapping[str, Any],
) -> DerivedMasks:
    """Make masks from a file about components.

    Args:
        source: The run: a folder or a checkpoint.
        path: The masks' file; None to write nothing.
        listed: The file.
        rule_of: Gives the rule for what components are judged by.
        by: As the user says it; None for what the harvest has.
        threshold: The same.
        options: As for ``derive_masks``.

    Raises:
        UsageError: Options that have no use here, or do not go together.
        MaskError: The file cannot be used, or is of another run.
        ComponentsError: The run cannot be read.
    """
    listed.check()
    if unused := [name for name in options if name not in _TAKEN]:
        raise UsageError(
            "No model runs where a file tells which components are kept.",
            where=f"--{unused[0].replace('_', '-')}",
            hint="Leave the option out, or give --data in the place of the file.",
        )
    components = _components(source, options)
    run = Run(
        sizes={layer: int(raw.V.shape[-1]) for layer, raw in components.components.items()}, dashed=components.dashed
    )
    excluded = tuple(options.get("exclude", ()))
    rule: Rule | None = None
    importances: Mapping[str, Importances] = {}
    if listed.harvest is not None:
        importances = read_harvest(listed.harvest, run)
        rule = rule_of(harvest_measure(by, importances))
        if rule.by is Measure.MEAN and threshold is None and rule.top is None:
            raise UsageError(
                "Nothing tells how great a mean importance has to be, and those of a harvest are small.",
                where="--by mean",
                hint="Give --threshold T, or --top K.",
            )
        masks = {layer: found.mask(rule) for layer, found in importances.items()}
        told = listed.harvest.name
    else:
        kept = (
            read_names(listed.names, run)
            if listed.names is not None
            else read_labels(listed.path, run, listed.patterns)
        )
        masks = {layer: _mask(run.size(layer, str(listed.path)), found, listed) for layer, found in kept.items()}
        what = "named in" if listed.names is not None else f"labelled {' or '.join(listed.patterns)} in"
        told = f"{'all but those ' if listed.remove else 'those '}{what} {listed.path.name}"
    check_patterns(excluded, [*masks, *run.sizes], "--exclude")
    masks = {layer: mask for layer, mask in masks.items() if not matches(layer, excluded)}
    layers = tuple(LayerMask(name=x, importances=importances.get(x), mask=mask) for x, mask in masks.items())
    written: tuple[Path, ...] = ()
    if path is not None:
        written = (path, importances_name(path)) if importances else (path,)
        write_masks(layers, path, importances_name(path) if importances else None)
    named = {layer.replace(".", "-") if run.dashed else layer for layer in masks}
    whole = [layer for layer in run.sizes if layer not in named and not matches(layer, excluded)]
    notes = [f"left whole, for the file says nothing of them: {some(whole)}"] if whole else []
    hashes = {} if components.sha256 is None else {"components": components.sha256}
    return DerivedMasks(
        layers=layers,
        rule=rule,
        samples=0,
        outputs=written,
        notes=tuple(notes),
        hashes={**hashes, listed.path.name: sha256_file(listed.path), **{p.name: sha256_file(p) for p in written}},
        seed=int(options.get("seed", 0)),
        versions=versions(),
        told=told,
    )


def _components(source: object, options: Mapping[str, Any]) -> ComponentSet:
    chosen = options.get("components")
    if chosen is None and not isinstance(source, str | Path):
        raise UsageError("There is no run.", where="the command", hint="Name the folder of the run, or a checkpoint.")
    return load_components(str(source) if chosen is None else chosen)


def _mask(size: int, found: set[int], listed: Listed) -> np.ndarray[Any, Any]:
    mask = np.full(size, float(listed.remove), np.float32)
    mask[sorted(found)] = float(not listed.remove)
    return mask
