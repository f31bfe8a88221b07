"""The JSON report. Its names are a promise to other programs: a change of them raises SCHEMA_VERSION."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from spdexport.ablation.ablate import Ablations
from spdexport.atlases.result import Atlas
from spdexport.compression.result import Compression
from spdexport.folding import Folding
from spdexport.importance.result import DerivedMasks
from spdexport.laboratory.result import Lab
from spdexport.measuring.bench import Bench
from spdexport.pipeline import Conversion, Inspection
from spdexport.ranges import ranges_json
from spdexport.report.ablations import ablations_json
from spdexport.report.atlases import atlas_json
from spdexport.report.bench import bench_json
from spdexport.report.derived import masks_json
from spdexport.report.lab import lab_json
from spdexport.report.made import artifacts_json
from spdexport.report.unfinished import SCHEMA_VERSION
from spdexport.text import json_text
from spdexport.verification.result import Status, Verification

if TYPE_CHECKING:
    from spdexport.conv import Skipped
    from spdexport.planning import Plan
    from spdexport.report.common import Result
    from spdexport.rewrite.fold_result import FoldedChain


def to_json(result: Result) -> dict[str, Any]:
    """Return a result as plain JSON values; the same keys for every command that checks something.

    ``verdict`` is ``pass``, ``fail`` or ``inconclusive``, and ``not_run`` where nothing was verified: with
    ``--no-verify``, and of ``inspect``. ``layers`` is empty for ``verify`` without a source, and ``edges`` where
    nothing was verified. ``layer_checks`` is what was found of each layer, those of a file without a source included;
    its ratios stand in ``layers`` too. Numbers that are not finite are null: that something failed, the status tells.
    """
    match result:
        case Verification():
            report = _verified(result, {}, result.versions, result.seed)
            if result.plan is not None:
                report |= _planned(result.plan, result)
        case Folding():
            report = _verified(result.verification, result.hashes, result.versions, result.seed, notes=result.notes)
            report["layers"] = [_folded_chain(chain) for chain in result.folded]
            report["skipped"] = _skipped(result.declined)
            report["outputs"] = [path.name for path in result.outputs]
        case Conversion():
            report = _verified(result.verification, result.hashes, result.versions, result.seed, notes=result.notes)
            report |= {"components": result.components, **_planned(result.plan, result.verification)}
            report["outputs"] = [path.name for path in result.outputs]
            report["trimming"] = None if result.trimming is None else result.trimming.as_json()
            report["ranges"] = ranges_json(result.ranges)
            if isinstance(result, Compression):
                report["search"] = asdict(result.search)
        case Bench():
            report = bench_json(result)
        case DerivedMasks():
            report = masks_json(result)
        case Atlas():
            report = atlas_json(result)
        case Ablations():
            report = ablations_json(result)
        case Lab():
            report = lab_json(result)
        case Inspection():
            report = _verified(None, result.hashes, result.versions, result.seed, notes=result.notes)
            report |= {"components": result.components, **_planned(result.plan, None)}
            report["ranges"] = ranges_json(result.ranges)
    report["schema_version"] = SCHEMA_VERSION
    return {key: _plain(value) for key, value in report.items()}


def as_text(result: Result) -> str:
    """Return the report as indented JSON, in which nothing commands a terminal that shows it."""
    return json_text(json.dumps(to_json(result), indent=2, allow_nan=False, ensure_ascii=False)) + "\n"


def _verified(
    verification: Verification | None,
    hashes: Mapping[str, str],
    versions: Mapping[str, str],
    seed: int,
    *,
    notes: Sequence[str] = (),
) -> dict[str, Any]:
    """What is common to all reports."""
    found = verification
    approximation = found.approximation if found else None
    return {
        "schema_version": SCHEMA_VERSION,
        "verdict": found.verdict if found else Status.NOT_RUN,
        "layers": [],
        "skipped": [],
        "edges": [asdict(edge) for edge in found.edges] if found else [],
        "layer_checks": [asdict(layer) for layer in found.layers] if found else [],
        "tolerance": {"atol": found.atol, "rtol": found.rtol} if found else None,
        "approximation": asdict(approximation) if approximation else None,
        "recorded_options": found.recorded if found else {},
        "inputs": found.inputs if found else [],
        "notes": [*notes, *(found.notes if found else ())],
        "seed": seed,
        "versions": versions,
        # A file that failed its check was moved after it was compared, so that one hash stands under both names.
        "artifacts": artifacts_json({**(found.artifacts if found else {}), **hashes}),
    }


def _planned(plan: Plan, found: Verification | None) -> dict[str, Any]:
    checks = {layer.name: layer for layer in found.layers} if found else {}
    layers = []
    for layer in plan.layers:
        check = checks.get(layer.name)
        ratios = {
            "weights_ratio": check.weights_ratio if check else None,
            "output_ratio": check.output_ratio if check else None,
        }
        layers.append({**layer.as_json(), **ratios})
    return {
        "layers": layers,
        "skipped": _skipped(plan.skipped),
        "macs_before": plan.macs_before,
        "macs_after": plan.macs_after,
    }


def _folded_chain(chain: FoldedChain) -> dict[str, Any]:
    """A folded chain under the names that layers have: its form is dense, and components are no longer there.

    A file alone does not tell how many locations a layer has, so that its cost is known for one of them only.
    """
    return {
        "name": chain.name,
        "kind": chain.spec.kind,
        "geometry": chain.spec.describe(),
        "form": "dense",
        "components": None,
        "live": None,
        "rank": None,
        "macs_before": None,
        "macs_after": None,
        "macs_before_per_location": chain.macs_before,
        "macs_after_per_location": chain.macs_after,
        "delta_ratio": None,
        "reason": f"folded from {', '.join(chain.nodes)}",
        "nodes": chain.nodes,
    }


def _skipped(skipped: Sequence[Skipped]) -> list[dict[str, Any]]:
    return [asdict(s) for s in skipped]


def _plain(value: Any) -> Any:
    """Tuples as lists, mappings as dicts, enums as their values, and None for what is not finite."""
    match value:
        case bool() | int() | None:
            return value
        case float():
            return float(value) if math.isfinite(value) else None
        case str():
            return str(value)
        case Mapping():
            return {str(key): _plain(item) for key, item in value.items()}
        case Sequence():
            return [_plain(item) for item in value]
    raise TypeError(f"no JSON form for {type(value).__name__}")
