"""What is at work in a file whatever an ablation does: gates, weight deltas, fixed masks. Every report tells it."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from spdexport.model_files import read_metadata
from spdexport.names import some

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    import onnx_ir as ir

_GATE = re.compile(r"(?:.+\.gate\d+\.(?:weight|bias)|ci_fn\.part\d+)")
"""The names of parameters of gates, which a file has even where its metadata were removed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Active:
    """What is at work in each run.

    Attributes:
        has_gates: Whether the file computes masks itself, which those from outside multiply.
        told: Clauses for the reports; empty where the masks from outside are all there is.
        is_changed: Whether fixed masks or edits changed the model before it became this file.
    """

    has_gates: bool
    told: tuple[str, ...]
    is_changed: bool = False


def read_active(model: ir.Model, masked: Collection[str]) -> Active:
    """Tell what is at work in a file beside the masks that it takes.

    Args:
        model: The file. What its metadata say is told as what they say; gates are known by their parameters too.
        masked: The layers with run-time masks.
    """
    metadata = read_metadata(model)
    options = metadata.get("options")
    options = options if isinstance(options, dict) else {}
    named = any(_GATE.fullmatch(name) for name in model.graph.initializers)
    has_gates = bool(options.get("gates")) or named
    told = []
    if has_gates:
        told.append(f"the file's gates{_kind(options)}, which the masks multiply")
    layers = recorded_layers(metadata)
    kept = [name for name in masked if layers.get(name, {}).get("delta") == "kept"]
    if kept:
        told.append(f"the weight delta of {some(kept)}, which no ablation of components removes")
    hashes = metadata.get("sha256")
    what = {"masks": "the fixed masks that the file was made with", "edit": "the edits that the file was made with"}
    changes = [said for name, said in what.items() if isinstance(hashes, dict) and name in hashes]
    return Active(has_gates=has_gates, told=(*told, *changes), is_changed=bool(changes))


def _kind(options: Mapping[str, Any]) -> str:
    kind, threshold = options.get("gates"), options.get("gate_threshold")
    if kind not in ("exact", "local"):
        return ""
    above = f", 1 above {threshold} and 0 elsewhere" if isinstance(threshold, int | float) else ""
    return f" ({kind}{above})"


def recorded_layers(metadata: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """Return what the plan in a file's metadata says of each layer, by name; nothing of it was checked."""
    plan = metadata.get("plan")
    listed = plan.get("layers") if isinstance(plan, dict) else None
    found = [x for x in listed if isinstance(x, dict)] if isinstance(listed, list) else []
    return {str(x.get("name")): x for x in found}
