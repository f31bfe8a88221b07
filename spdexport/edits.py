"""Permanent edits of components: scaling what one writes, and reading or writing something else in its place.

The weight delta stays what V and U leave of the weight as they were trained, so that an edit changes the layer::

    W_edited = W + (V_edited U_edited - V U)^T reshaped        without masks, the delta kept

Causal importances that are read off a component's activation are read off what it reads then.
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

FORM = '{"layer:3": {"scale": 0}, "layer:7": {"V": [...], "U": [...]}}'

_DIGITS = 18
"""More than any index has; Python refuses to read numbers of thousands of digits."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Edit:
    """What becomes of one component.

    Attributes:
        scale: What it writes is multiplied with this; 0 removes it.
        V: What it reads in the place of its own, shape (patch,) in the order (in, *kernel); None for its own.
        U: What it writes in the place of its own, shape (out,); None for its own.
    """

    scale: float = 1.0
    V: FloatArray | None = None
    U: FloatArray | None = None

    def told(self) -> str:
        """Return what becomes of it, in a few words."""
        told = {(True, True): ["reads and writes something else"], (True, False): ["reads something else"]}
        told[False, True] = ["writes something else"]
        parts = told.get((self.V is not None, self.U is not None), [])
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
        source: A file, or what one holds: an object from ``layer:index`` to ``scale``, a number, ``V``, what the
            component is to read, and ``U``, what it is to write; one of them suffices, and the scale multiplies what it
            writes.

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

    if not isinstance(value, dict) or not value or not set(value) <= {"scale", "V", "U"}:
        raise fault("has not scale, V and U alone")
    scale = value.get("scale", 1.0)
    if isinstance(scale, bool) or not isinstance(scale, int | float) or not _is_finite(scale):
        raise fault("has a scale that is no finite number")
    given: dict[str, FloatArray] = {}
    for part in ("V", "U"):
        if part not in value:
            continue
        numbers = value[part] if isinstance(value[part], list) else []
        if not numbers or not all(isinstance(x, int | float) and not isinstance(x, bool) for x in numbers):
            raise fault(f"has a {part} that is no list of numbers")
        if not all(_is_finite(x) for x in numbers):
            raise fault(f"has a {part} with NaN, infinity, or what no float holds")
        given[part] = np.array(numbers, np.float64)
    return Edit(scale=float(scale), **given)


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
    """Give the factors of each layer with its edits, which remember the V and U that they had.

    An edit reaches all calls of its module. Layer names may have '-' where the model's have '.'.

    Args:
        edits: What was read.
        factors: By site name.
        layers: All layers of the model, so that a message can tell those without components apart.
        excluded: Whether the user left a layer out by name; its edits are passed over, as its components are.

    Raises:
        InputError: An edit names no layer with components, no component of it, or has a V or U of another length.
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
                result[site] = _edited(layer, result[site], values, edits.where)
    return result


def _edited(layer: str, factors: Factors, values: Mapping[int, Edit], where: str) -> Factors:
    columns, U = np.array(np.swapaxes(factors.V, -1, -2)), np.array(factors.U)
    reads, writes = columns.reshape(-1, columns.shape[-1]), U.reshape(-1, U.shape[-1])
    for index, edit in values.items():
        if index >= len(writes):
            raise InputError(
                f"There is an edit of {layer}:{index}, and {layer} has the components 0 to {len(writes) - 1}.",
                where=where,
                hint="Use edits that were made for these components.",
            )
        for given, row, does, has in (
            (edit.V, reads[index], "reads", "inputs and taps"),
            (edit.U, writes[index], "writes", "outputs"),
        ):
            if given is not None and given.shape != row.shape:
                raise InputError(
                    f"The edit of {layer}:{index} {does} {given.size} values, and the layer has {row.size} {has}.",
                    where=where,
                    hint=f"Give one number for each of the {has} of the layer, or of its group.",
                )
        if edit.V is not None:
            reads[index] = _rounded(edit.V, layer, index, reads.dtype, where)
        written = writes[index].astype(np.float64) if edit.U is None else edit.U
        with np.errstate(over="ignore"):
            scaled = edit.scale * written
        writes[index] = _rounded(scaled, layer, index, writes.dtype, where)
    V = np.ascontiguousarray(np.swapaxes(reads.reshape(columns.shape), -1, -2))
    # A layer may be named twice, with '-' and with '.': what it was trained to be is in front of both.
    return replace(factors, V=V, U=writes.reshape(U.shape), trained=factors.trained or (factors.V, factors.U))


def _rounded(values: FloatArray, layer: str, index: int, dtype: np.dtype[Any], where: str) -> Array:
    """The values in a dtype, in which all of them have to be finite."""
    with np.errstate(over="ignore"):
        rounded: Array = values.astype(dtype)
    if not np.isfinite(rounded.astype(np.float64)).all():
        raise InputError(
            f"The edit of {layer}:{index} makes values beyond the range of {dtype}, the layer's dtype.",
            where=where,
            hint="Use smaller numbers, or convert the model in a wider dtype.",
        )
    return rounded


def edits_note(edits: EditSet) -> str:
    """Return what the user should know of edits: all of them, in a line."""
    told = [f"{layer}:{index} {edit.told()}" for layer, found in edits.values.items() for index, edit in found.items()]
    return f"{count(len(told), 'component')} edited for good: {some(told)}"
