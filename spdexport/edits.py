"""Permanent edits of components: scaling what one writes, or writing something else in its place.

The weight delta stays what V and U leave of the weight as they were trained, so that an edit changes the layer::

    W_edited = W + V (U_edited - U)^T reshaped        without masks, the delta kept
"""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from spdexport.errors import InputError
from spdexport.files.hashing import sha256_file
from spdexport.files.reading import reading
from spdexport.files.sniff import read_text
from spdexport.names import count, did_you_mean, layer_of_call, some

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping

    from spdexport.conv import Array, FloatArray
    from spdexport.factors import Factors

FORM = '{"layer:3": {"scale": 0}, "layer:7": {"U": [...]}}'

_DIGITS = 18
"""More than any index has; Python refuses to read numbers of thousands of digits."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Edit:
    """What becomes of one component.

    Attributes:
        scale: What it writes is multiplied with this; 0 removes it.
        U: What it writes in the place of its own, shape (out,); None for its own.
    """

    scale: float = 1.0
    U: FloatArray | None = None

    def told(self) -> str:
        """What becomes of it, in a few words."""
        parts = [] if self.U is None else ["writes something else"]
        if self.scale == 0:
            parts = ["removed"]
        elif self.scale != 1 or not parts:
            parts.append(f"scaled by {self.scale:g}")
        return ", ".join(parts)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class EditSet:
    """The edits of a file, not yet compared with any layer.

    Attributes:
        values: By layer and index; a layer with groups counts the components of all groups one after the other.
        where: The file, for messages.
        sha256: Hash of the file's content.
    """

    values: Mapping[str, Mapping[int, Edit]]
    where: str
    sha256: str


def read_edits(source: Path | Mapping[str, Any]) -> EditSet:
    """Read edits from a JSON file, or take them as they are.

    Args:
        source: A file, or what one holds: an object from ``layer:index`` to ``scale``, a number, and ``U``, what the
            component is to write; both are optional, and the scale multiplies whichever it is.

    Raises:
        InputError: The file cannot be read, is of another form, or holds numbers that are not finite.
    """
    if not isinstance(source, Path):
        text = json.dumps(source, sort_keys=True, default=_as_list)
        return EditSet(values=_edits(json.loads(text), "edit"), where="edit", sha256=_sha256(text))
    what, hint = "The edits cannot be read", f"Write {FORM}."
    text = read_text(source, error=InputError, what=what, hint=hint)
    with reading(source, error=InputError, what=what, hint=hint):
        content = json.loads(text)
    return EditSet(values=_edits(content, str(source)), where=str(source), sha256=sha256_file(source))


def _as_list(value: Any) -> Any:
    """Arrays and tensors as JSON values."""
    return value.tolist() if hasattr(value, "tolist") else str(value)


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _edits(content: object, where: str) -> dict[str, dict[int, Edit]]:
    if not isinstance(content, dict) or not content:
        raise InputError("There are no edits by component.", where=where, hint=f"Write {FORM}.")
    found: dict[str, dict[int, Edit]] = {}
    for name, value in content.items():
        layer, _, index = name.rpartition(":")
        if not layer or not (index.isascii() and index.isdecimal() and len(index) <= _DIGITS):
            raise InputError(f"{name!r} names no component.", where=where, hint=f"Write {FORM}.")
        found.setdefault(layer, {})[int(index)] = _edit(name, value, f"{where}, {name}")
    return found


def _edit(name: str, value: object, where: str) -> Edit:
    def fault(what: str) -> InputError:
        return InputError(f"The edit of {name} {what}.", where=where, hint=f"Write {FORM}.")

    if not isinstance(value, dict) or not value or not set(value) <= {"scale", "U"}:
        raise fault("has neither scale nor U alone")
    scale, written = value.get("scale", 1.0), value.get("U")
    if isinstance(scale, bool) or not isinstance(scale, int | float) or not _is_finite(scale):
        raise fault("has a scale that is no finite number")
    if "U" not in value:
        return Edit(scale=float(scale))
    numbers = written if isinstance(written, list) else []
    if not numbers or not all(isinstance(x, int | float) and not isinstance(x, bool) for x in numbers):
        raise fault("has a U that is no list of numbers")
    if not all(_is_finite(x) for x in numbers):
        raise fault("has a U with NaN, infinity, or what no float holds")
    return Edit(scale=float(scale), U=np.array(numbers, np.float64))


def _is_finite(number: int | float) -> bool:
    try:
        return math.isfinite(float(number))
    except OverflowError:
        return False


def apply_edits(
    edits: EditSet,
    factors: Mapping[str, Factors],
    *,
    layers: Collection[str] = (),
    excluded: Callable[[str], bool] = lambda _: False,
) -> dict[str, Factors]:
    """Give the factors of each layer with its edits in U, which remember the U that they had.

    An edit reaches all calls of its module. Layer names may have '-' where the model's have '.'.

    Args:
        edits: What was read.
        factors: By site name.
        layers: All layers of the model, so that a message can tell those without components apart.
        excluded: Whether the user left a layer out by name; its edits are passed over, as its components are.

    Raises:
        InputError: An edit names no layer with components, no component of it, or has a U of another length.
    """
    result = dict(factors)
    known = {layer_of_call(site) for site in factors}
    dashed = {layer.replace(".", "-"): layer for layer in known}
    for name, values in edits.values.items():
        layer = name if name in known else dashed.get(name, name)
        if layer not in known and excluded(name):
            continue
        if layer not in known:
            alone = ", which has no components" if name in layers else ", and the model has no such layer"
            raise InputError(f"There is an edit of {name}{alone}.", where=edits.where, hint=did_you_mean(name, known))
        for site in factors:
            if layer_of_call(site) == layer:
                result[site] = _edited(layer, factors[site], values, edits.where)
    return result


def _edited(layer: str, factors: Factors, values: Mapping[int, Edit], where: str) -> Factors:
    U = np.array(factors.U)
    rows = U.reshape(-1, U.shape[-1])
    for index, edit in values.items():
        if index >= len(rows):
            raise InputError(
                f"There is an edit of {layer}:{index}, and {layer} has the components 0 to {len(rows) - 1}.",
                where=where,
                hint="Use edits that were made for these components.",
            )
        if edit.U is not None and edit.U.shape != rows[index].shape:
            raise InputError(
                f"The edit of {layer}:{index} writes {edit.U.size} values, and the layer has {rows[index].size} "
                "outputs.",
                where=where,
                hint="Give one number for each output of the layer, or of its group.",
            )
        row = rows[index].astype(np.float64) if edit.U is None else edit.U
        with np.errstate(over="ignore"):
            changed: Array = (edit.scale * row).astype(U.dtype)
        if not np.isfinite(changed.astype(np.float64)).all():
            raise InputError(
                f"The edit of {layer}:{index} makes values beyond the range of {U.dtype}, the layer's dtype.",
                where=where,
                hint="Use smaller numbers, or convert the model in a wider dtype.",
            )
        rows[index] = changed
    return replace(factors, U=rows.reshape(U.shape), unedited=factors.U)


def edits_note(edits: EditSet) -> str:
    """Return what the user should know of edits: all of them, in a line."""
    told = [f"{layer}:{index} {edit.told()}" for layer, found in edits.values.items() for index, edit in found.items()]
    return f"{count(len(told), 'component')} edited for good: {some(told)}"
