"""What JSON reports say of files that were made: of what, and by what."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

    from spdexport.atlases.result import Atlas
    from spdexport.importance.result import DerivedMasks


def made_json(result: Atlas | DerivedMasks) -> dict[str, Any]:
    """Return the end of the report of a command that goes through a run and data."""
    return {
        "notes": list(result.notes),
        "outputs": [path.name for path in result.outputs],
        "seed": result.seed,
        "versions": dict(result.versions),
        "artifacts": artifacts_json(result.hashes),
    }


def artifacts_json(hashes: Mapping[str, str]) -> dict[str, dict[str, str]]:
    """Return the hashes of files as every JSON report has them."""
    return {name: {"sha256": value} for name, value in hashes.items()}
