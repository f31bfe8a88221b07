"""A plan that was written down: read again, and held against a model.

It states forms and ranks, never values: weights are computed anew from the source.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from enum import StrEnum
from typing import TYPE_CHECKING, Any, TypeVar

from spdexport.errors import PlanError
from spdexport.files.reading import reading
from spdexport.files.sniff import read_text
from spdexport.forms import FAMILIES, DeltaUse, FormKind
from spdexport.forms.families import NEW
from spdexport.names import count, did_you_mean
from spdexport.planning.choices import Delta, FormChoice, Objective, PlanOptions
from spdexport.planning.plan import SCHEMA_VERSION, Gain, Weighed
from spdexport.precision import Precision

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from spdexport.conv import ConvSite
    from spdexport.forms import Ranks

CHAINS = tuple(family.kind for family in NEW)
"""The kinds whose size is told by ranks."""

Word = TypeVar("Word", bound=StrEnum)


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerRecord:
    """What a plan says of one layer.

    Attributes:
        name: As ``LayerPlan.name``, as all others are.
        kind: The layer's kind.
        geometry: Its geometry.
        form: The form.
        components: C; None for a layer without factors.
        kept: Components of V and U in the form.
        delta: What became of the delta.
        truncated_to: The rank that the effective weight was truncated to as V and U; None for others.
        ranks: As ``LayerPlan.ranks``.
        truncates: Whether the effective weight is approximated, in whichever form.
        reason: Why.
        weighed: As ``LayerPlan.weighed``, for reports.
        gain: As ``LayerPlan.gain``, for reports.
    """

    name: str
    kind: str
    geometry: str
    form: FormKind
    components: int | None
    kept: int | None
    delta: DeltaUse
    truncated_to: int | None
    ranks: Ranks
    truncates: bool
    reason: str
    weighed: tuple[Weighed, ...]
    gain: Gain | None


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanRecord:
    """A plan as it was written down.

    Attributes:
        origin: The file, for messages.
        options: What it was made with.
        cost: The cost model that it was made by, and what its numbers count.
        layers: By name.
        precision: How the numbers of the file are stored; None for as they are.
        strict: Whether it must fit the model. The one that a file carries about itself is only a statement: where it
            does not fit, the layer is taken as dense, and comparing the weights tells what is wrong.
    """

    origin: str
    options: PlanOptions
    cost: tuple[str, str]
    layers: Mapping[str, LayerRecord]
    precision: Precision | None = None
    strict: bool = True

    def check(self, sites: Sequence[ConvSite]) -> None:
        """Refuse a plan of other layers.

        Raises:
            PlanError: Names the first layer that differs.
        """
        if not self.strict:
            return
        names = [site.name for site in sites]
        for name in self.layers:
            if name not in names:
                raise self.misfit(f"The plan has a layer {name!r}, and the model none.", did_you_mean(name, names))
        for site in sites:
            layer = self.layers.get(site.name)
            if layer is None:
                raise self.misfit(f"The model has a layer {site.name!r}, and the plan none.")
            if (layer.kind, layer.geometry) != (site.spec.kind, site.spec.describe()):
                raise self.misfit(
                    f"The layer {site.name!r} is {site.spec.kind} {site.spec.describe()}, and in the plan "
                    f"{layer.kind} {layer.geometry}."
                )

    def of(self, site: ConvSite) -> LayerRecord | None:
        """Return what it says of a layer; None where that cannot be said of it."""
        layer = self.layers.get(site.name)
        if layer is None or (layer.kind, layer.geometry) != (site.spec.kind, site.spec.describe()):
            return None
        return layer

    def misfit(self, what: str, hint: str = "Make a plan of this model: --save-plan FILE.") -> PlanError:
        """Return the error of a plan that does not fit."""
        return PlanError(what, where=self.origin, hint=hint)


def read_plan(path: Path) -> PlanRecord:
    """Read a plan file.

    Raises:
        PlanError: It cannot be read, is no JSON, or no plan of this schema version.
    """
    where, hint = f"--plan {path}", "Give a file that --save-plan wrote."
    text = read_text(path, error=PlanError, what="The plan is not text", hint=hint, where=where)
    with reading(where, error=PlanError, what="The plan is not JSON", hint=hint):
        content: object = json.loads(text)
    return parse_plan(content, where)


def parse_plan(content: object, origin: str, *, strict: bool = True) -> PlanRecord:
    """Return a plan from JSON values.

    Raises:
        PlanError: They are no plan of this schema version.
    """
    try:
        plan = _mapping(content)
        version = plan.get("schema_version")
        if version != SCHEMA_VERSION:
            raise ValueError(f"its schema version is {version!r}, and {SCHEMA_VERSION} is known")
        layers = [_layer(entry) for entry in _list(plan, "layers")]
        record = PlanRecord(
            origin=origin,
            options=_options(_mapping(plan.get("options"))),
            cost=_cost(_mapping(plan.get("cost"))),
            layers={layer.name: layer for layer in layers},
            precision=None if plan.get("precision") is None else Precision.from_json(plan["precision"]),
            strict=strict,
        )
        if len(record.layers) != len(layers):
            raise ValueError("a layer is there twice")
    except ValueError as error:
        raise PlanError(
            f"The file is no plan that can be used: {error}.",
            where=origin,
            hint="Give a file that --save-plan of this version wrote.",
        ) from error
    return record


def as_file(plan: Mapping[str, Any]) -> str:
    """Return the text of a plan file, of ``Plan.as_json()``; what is not finite is null."""
    return json.dumps(_finite(plan), indent=2, allow_nan=False, ensure_ascii=False) + "\n"


def _finite(value: Any) -> Any:
    match value:
        case float():
            return value if math.isfinite(value) else None
        case Mapping():
            return {key: _finite(item) for key, item in value.items()}
        case list() | tuple():
            return [_finite(item) for item in value]
    return value


def _layer(entry: object) -> LayerRecord:
    layer = _mapping(entry)
    name, kind, geometry, reason = (_of(layer, key, str) for key in ("name", "kind", "geometry", "reason"))
    form = _one_of(FormKind, layer.get("form"), f"layer {name!r} has the unknown form")
    delta = _one_of(DeltaUse, layer.get("delta"), f"the delta of layer {name!r} is")
    kept, components = (_count(layer, key) for key in ("kept", "components"))
    if form is FormKind.RECOMPRESSED and kept is None:
        raise ValueError(f"layer {name!r} is recompressed, and its rank is missing")
    ranks = _ranks(layer)
    if form in CHAINS and len(ranks) not in FAMILIES[form].numbers:
        raise ValueError(f"layer {name!r} is {form}, with {count(len(ranks), 'rank')}")
    return LayerRecord(
        name=name,
        kind=kind,
        geometry=geometry,
        form=form,
        components=components,
        kept=kept,
        delta=delta,
        truncated_to=_count(layer, "truncated_to"),
        ranks=ranks,
        truncates=layer.get("truncation") is not None,
        reason=reason,
        weighed=tuple(_weighed(_mapping(found)) for found in _list(layer, "weighed")),
        gain=None if layer.get("gain") is None else _gain(_mapping(layer["gain"])),
    )


def _weighed(found: Mapping[str, Any]) -> Weighed:
    form = _one_of(FormKind, found.get("form"), "it weighed the unknown form")
    return Weighed(form=form, components=_count(found, "components"), cost=_number(found, "cost"), ranks=_ranks(found))


def _gain(found: Mapping[str, Any]) -> Gain:
    error = found.get("paying_error")
    return Gain(
        rank=_of(found, "rank", int),
        macs=_of(found, "macs", int),
        paying_rank=_count(found, "paying_rank"),
        paying_error=None if error is None else _number(found, "paying_error"),
    )


def _ranks(found: Mapping[str, Any]) -> Ranks:
    """The channels between stages; plans that were written before there were such forms say nothing of them."""
    ranks = found.get("ranks", [])
    if not isinstance(ranks, list) or any(not isinstance(r, int) or isinstance(r, bool) or r < 1 for r in ranks):
        raise ValueError(f"'ranks' is {ranks!r}")
    return tuple(ranks)


def _one_of(words: type[Word], value: object, what: str) -> Word:
    """Return the member of an enumeration that a text is.

    Raises:
        ValueError: It is none of them; the message is ``what`` with the value behind it.
    """
    if not isinstance(value, str) or value not in set(words):
        raise ValueError(f"{what} {value!r}")
    return words(value)


def _cost(found: Mapping[str, Any]) -> tuple[str, str]:
    return _of(found, "model", str), _of(found, "unit", str)


def _options(values: Mapping[str, Any]) -> PlanOptions:
    known = {field.name for field in fields(PlanOptions)}
    if unknown := sorted(values.keys() - known):
        raise ValueError(f"its option {unknown[0]!r} is not known")
    default = asdict(PlanOptions())
    made: dict[str, Any] = {}
    kinds: dict[str, type[StrEnum]] = {"form": FormChoice, "delta": Delta, "optimize_for": Objective}
    for name, value in values.items():
        if name in kinds:
            made[name] = kinds[name](value)
        elif isinstance(default[name], tuple):
            if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
                raise ValueError(f"its option {name} is no list of texts")
            made[name] = tuple(value)
        elif name in ("energy", "max_error"):
            made[name] = None if value is None else _number(values, name)
        else:
            made[name] = _of(values, name, type(default[name]))
    return PlanOptions(**made)


def _mapping(value: object) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise ValueError(f"there is {type(value).__name__} where an object is expected")
    return value


def _list(values: Mapping[str, Any], key: str) -> list[object]:
    found = values.get(key)
    if not isinstance(found, list):
        raise ValueError(f"{key!r} is no list")
    return found


def _of(values: Mapping[str, Any], key: str, kind: type | tuple[type, ...]) -> Any:
    found = values.get(key)
    if not isinstance(found, kind) or (isinstance(found, bool) and kind is not bool):
        raise ValueError(f"{key!r} is {found!r}")
    return found


def _number(values: Mapping[str, Any], key: str) -> float:
    found = _of(values, key, (int, float))
    try:
        return float(found)
    except OverflowError:
        raise ValueError(f"{key!r} is greater than any number of it can be") from None


def _count(values: Mapping[str, Any], key: str) -> int | None:
    found = values.get(key)
    if found is None:
        return None
    if not isinstance(found, int) or isinstance(found, bool) or found < 1:
        raise ValueError(f"{key!r} is {found!r}")
    return found
