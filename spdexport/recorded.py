"""What a file records of how it was made, against what the user says of it.

The metadata holds options and hashes, not trusted values: an option that is not given is taken from it, one that is
given must agree with it, and components and masks are told by their hashes.
"""

from __future__ import annotations

from dataclasses import fields, replace
from typing import TYPE_CHECKING, Any

from spdexport.errors import UsageError
from spdexport.options import Options, OptionsDict
from spdexport.planning import FormChoice, parse_plan

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path


def as_recorded(given: OptionsDict, metadata: Mapping[str, Any], path: Path) -> Options:
    """The options given, completed by those that the file records; one that differs from the record is refused."""
    recorded = metadata.get("options")
    if not isinstance(recorded, dict):
        return Options.of(given)
    known = {f.name for f in fields(Options)}
    completed: dict[str, Any] = {k: v for k, v in recorded.items() if k in known}
    if given.get("masks") is None:
        # What only makes sense with masks; that they are missing is told by their hash.
        completed.pop("mask_threshold", None)
        completed.pop("keep_masks", None)
    if "seed" in completed:
        # The factory's, without which its random weights are others; the one that is given is the check's.
        given = {k: v for k, v in given.items() if k != "seed"}  # type: ignore[assignment]
    options = Options.of({**completed, **given})  # type: ignore[typeddict-item]
    if options.form is FormChoice.AUTO or options.planning.truncates:
        # What was chosen then is a statement that the file makes; what it computes is worked out anew.
        options = replace(options, plan=parse_plan(metadata.get("plan"), str(path), strict=False))
    for name, value in options.recorded().items():
        if name in given and name in recorded and value != recorded[name]:
            raise UsageError(
                f"The file was made with {name} = {recorded[name]!r}, not {value!r}.",
                where=f"{path}, --{name.replace('_', '-')}",
                hint="Leave the option out: it is read from the file.",
            )
    return options


def check_hashes(hashes: Mapping[str, str], metadata: Mapping[str, Any], path: Path) -> None:
    """Refuse components and masks that are not those that the file was made with."""
    recorded = metadata.get("sha256")
    if not isinstance(recorded, dict):
        return
    for what in ("components", "masks"):
        before, now = recorded.get(what), hashes.get(what)
        if before == now:
            continue
        if now is None:
            raise UsageError(
                f"The file was made with {what}, and none are given.", where=str(path), hint=f"Give --{what} FILE."
            )
        if before is None:
            raise UsageError(
                f"The file was made without {what}.", where=f"{path}, --{what}", hint=f"Leave --{what} out."
            )
        raise UsageError(
            f"The file was made with other {what}: their content has another hash.",
            where=f"{path}, --{what}",
            hint="Give the ones it was made with, or convert again.",
        )
