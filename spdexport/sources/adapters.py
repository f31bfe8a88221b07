"""Weights of adapters beside a dense model, LoRA and its kin, and factors whose names do not tell their order.

Adapters are added to the layer's weight, which then is one dense layer again. With alpha, the rank r, and the factors
in the layouts that peft, kohya's scripts and LyCORIS write, the weight that is added is, in float64::

    LoRA    alpha / r * up down            down a convolution of the layer's kernel or 1x1, up the other of the two
    LoCon   alpha / r * up mid down        mid the layer's kernel between 1x1 convolutions
    LoHa    alpha / r * (w1_a w1_b) * (w2_a w2_b)          elementwise; with t1 and t2, each a Tucker product
    LoKr    alpha / r * kron(w1, w2)                       each of the two a product, or whole

``<layer>.A`` with ``<layer>.B``, and ``U``, ``S`` with ``V``, are factors of the weight itself, as V and U are. Which
is which, and which way round, is told by the shapes where only one reading of them fits.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np

from spdexport.arrays import to_numpy
from spdexport.conv import ConvSpec
from spdexport.errors import ComponentsError
from spdexport.factors import Factors
from spdexport.forms import Form, Stage, compose, dense
from spdexport.forms.base import CannotComposeError
from spdexport.names import shape_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    import torch

    from spdexport.conv import Array, ConvSite, FloatArray

_PARTS = {
    "lora_A": ("lora", "down"), "lora_B": ("lora", "up"),
    "lora_down": ("lora", "down"), "lora_up": ("lora", "up"), "lora_mid": ("lora", "mid"),
    "hada_w1_a": ("loha", "w1_a"), "hada_w1_b": ("loha", "w1_b"), "hada_t1": ("loha", "t1"),
    "hada_w2_a": ("loha", "w2_a"), "hada_w2_b": ("loha", "w2_b"), "hada_t2": ("loha", "t2"),
    "lokr_w1": ("lokr", "w1"), "lokr_w1_a": ("lokr", "w1_a"), "lokr_w1_b": ("lokr", "w1_b"),
    "lokr_w2": ("lokr", "w2"), "lokr_w2_a": ("lokr", "w2_a"), "lokr_w2_b": ("lokr", "w2_b"),
    "lokr_t2": ("lokr", "t2"),
}  # fmt: skip
"""What the parts are called in files, and the kind of adapter and the part that each is."""

_NEEDED = {
    "lora": (("down",), ("up",)),
    "loha": (("w1_a",), ("w1_b",), ("w2_a",), ("w2_b",)),
    "lokr": (("w1", "w1_a"), ("w1", "w1_b"), ("w2", "w2_a"), ("w2", "w2_b")),
}
"""The parts that an adapter has to have, each under one of these names."""

_KEY = re.compile(rf"(?P<layer>.+)\.(?P<part>{'|'.join(_PARTS)})(\.(?P<adapter>\w+))??(\.weight)?", re.DOTALL)
_PEFT = "base_model.model."
_KOHYA = ("lora_unet_", "lora_te1_", "lora_te2_", "lora_te_", "lycoris_")
"""What stands in front of a layer's name; kohya's scripts and LyCORIS then write ``_`` for each dot."""

NAMES = {"lora": "LoRA", "loha": "LoHa", "lokr": "LoKr", "pair": "A and B", "svd": "U, S and V"}


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class RawAdapter:
    """What a file holds for one layer.

    Attributes:
        kind: A key of ``NAMES``.
        parts: By what ``_PARTS`` calls them; ``A`` and ``B``, or ``U``, ``S`` and ``V``.
        alpha: Over the rank, what the product is multiplied with; None for the rank itself.
        scale: The factor itself, where a configuration tells it; None to go by alpha.
    """

    kind: str
    parts: Mapping[str, torch.Tensor]
    alpha: float | None = None
    scale: float | None = None

    @property
    def is_added(self) -> bool:
        """Whether it is added to the weight, and no factors of it."""
        return self.kind not in ("pair", "svd")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class RawAdapters:
    """All adapters of a file.

    Attributes:
        layers: By the file's own layer name.
        underscored: Whether '.' was turned into '_' in the names, so that they are matched from the model's side.
    """

    layers: Mapping[str, RawAdapter] = field(default_factory=dict)
    underscored: bool = False


def read_adapters(
    tensors: Mapping[str, torch.Tensor], config: Mapping[str, object] | None, where: str
) -> RawAdapters | None:
    """Put the parts of each layer together.

    Args:
        tensors: By their names.
        config: The content of peft's ``adapter_config.json``, if there is one beside the file.
        where: The file, for messages.

    Returns:
        None where no name is one of an adapter.

    Raises:
        ComponentsError: A part is missing, is not known, or holds no finite floats, or the scale is not known.
    """
    found: dict[str, dict[str, torch.Tensor]] = {}
    kinds: dict[str, str] = {}
    alphas: dict[str, torch.Tensor] = {}
    rest: list[str] = []
    names: set[str] = set()
    for key, tensor in tensors.items():
        layer, _, last = key.rpartition(".")
        if last == "alpha" and layer:
            alphas[layer] = tensor
        elif match := _KEY.fullmatch(key):
            kind, part = _PARTS[match["part"]]
            if kinds.setdefault(match["layer"], kind) != kind or part in found.get(match["layer"], ()):
                raise _fault(f"{match['layer']} has two adapters.", match["layer"], where)
            found.setdefault(match["layer"], {})[part] = tensor
            names.add(match["part"])
        elif layer and last in ("A", "B", "U", "S", "V"):
            found.setdefault(layer, {})[last] = tensor
            kinds[layer] = "svd" if last in "USV" else "pair"
        else:
            rest.append(key)
    paired = {layer for layer, parts in found.items() if kinds[layer] in ("pair", "svd")}
    if not found or (
        not names and not all({"A", "B"} == set(found[x]) or {"U", "S", "V"} == set(found[x]) for x in paired)
    ):
        return None
    if rest or set(alphas) - set(found):
        odd = rest[0] if rest else f"{next(iter(set(alphas) - set(found)))}.alpha"
        raise ComponentsError(
            f"The file holds {odd}, which is no part of an adapter that is known.",
            where=where,
            hint="Known are LoRA, LoHa and LoKr as peft, kohya's scripts and LyCORIS write them; merge others first.",
        )
    layers: dict[str, RawAdapter] = {}
    is_peft = bool(names & {"lora_A", "lora_B"}) or any(layer.startswith(_PEFT) for layer in found)
    for layer, parts in found.items():
        _check_parts(layer, kinds[layer], parts, where)
        scale = None
        if is_peft and kinds[layer] in _NEEDED:
            scale = _peft_scale(layer, kinds[layer], config, layer in alphas, where)
        alpha = float(alphas[layer]) if layer in alphas and alphas[layer].numel() == 1 else None
        name = _bare(layer)
        if name in layers:
            raise _fault(f"{name} is named twice, with other prefixes.", layer, where)
        layers[name] = RawAdapter(kind=kinds[layer], parts=parts, alpha=alpha, scale=scale)
    return RawAdapters(layers=layers, underscored=any(layer.startswith(_KOHYA) for layer in found))


def _bare(layer: str) -> str:
    """A layer's name without what adapters put in front of it."""
    for prefix in (_PEFT, *_KOHYA):
        if layer.startswith(prefix):
            return layer.removeprefix(prefix)
    return layer


def _fault(
    what: str, layer: str, where: str, hint: str = "Write the file again, or leave the layer out."
) -> ComponentsError:
    return ComponentsError(what, where=f"{where}, layer {layer}", hint=hint)


def _check_parts(layer: str, kind: str, parts: Mapping[str, torch.Tensor], where: str) -> None:
    needed = _NEEDED.get(kind) or tuple((name,) for name in ("AB" if kind == "pair" else "USV"))
    for ways in needed:
        if not any(name in parts for name in ways):
            raise _fault(f"{layer} has no {' or '.join(ways)} of its {NAMES[kind]}.", layer, where)
    for name, tensor in parts.items():
        if not tensor.is_floating_point() or not tensor.numel() or not bool(tensor.isfinite().all()):
            shape = shape_of(tuple(tensor.shape))
            raise _fault(f"{name} of {layer}, {tensor.dtype} of shape {shape}, holds no finite floats.", layer, where)


def _peft_scale(
    layer: str,
    kind: str,
    config: Mapping[str, object] | None,
    has_alpha: bool,
    where: str,
) -> float | None:
    """What peft multiplies with, which its files of weights do not hold; None where an alpha is there all the same."""
    if has_alpha:
        return None
    key = "lora_alpha" if kind == "lora" else "alpha"
    alpha, rank = (None if config is None else config.get(name) for name in (key, "r"))
    if (
        not all(isinstance(number, int | float) and not isinstance(number, bool) for number in (alpha, rank))
        or not rank
    ):
        raise _fault(
            f"What the adapter of {layer} is multiplied with is not known: it has no alpha.",
            layer,
            where,
            hint=f"Put adapter_config.json, with {key} and r, beside the file, or write {layer}.alpha into it.",
        )
    assert config is not None and isinstance(alpha, int | float) and isinstance(rank, int | float)  # noqa: PT018
    for name in ("rank_pattern", "alpha_pattern", "use_dora"):
        if config.get(name):
            raise _fault(
                f"The configuration has {name}, which is not read.",
                layer,
                where,
                hint="Merge the adapter with peft first.",
            )
    return float(alpha) / float(rank) ** (0.5 if config.get("use_rslora") else 1)


def added_form(raw: RawAdapter, site: ConvSite, where: str) -> Form:
    """Return the dense layer with the adapter added to its weight, rounded once to the layer's dtype.

    Args:
        raw: The adapter.
        site: The layer.
        where: The file and layer, for messages.

    Raises:
        ComponentsError: It does not fit the layer.
    """
    about = f"{site.name} ({site.kind} {site.spec.describe()})"
    if site.spec.groups > 1 or site.spec.transposed:
        raise ComponentsError(
            f"{about} has groups or is transposed, and adapters of such layers are laid out in several ways.",
            where=where,
            hint=f"Merge the adapter first, or leave the layer out with --exclude {site.name}.",
        )
    shapes = ", ".join(f"{name} {shape_of(tuple(tensor.shape))}" for name, tensor in raw.parts.items())
    try:
        change = scale_of(raw) * _product(raw, site.spec)
        if change.shape != site.spec.weight_shape:
            raise ValueError("the product has another size")
    except (ValueError, CannotComposeError) as error:
        raise ComponentsError(
            f"The {NAMES[raw.kind]} of {shapes} does not fit {about}.",
            where=where,
            hint=f"Give the model that it was trained on, or leave the layer out with --exclude {site.name}.",
        ) from error
    with np.errstate(over="ignore"):
        weight = (np.asarray(site.weight, dtype=np.float64) + change).astype(site.weight.dtype)
    if not np.isfinite(weight.astype(np.float64)).all():
        raise ComponentsError(
            f"The weight of {about} with the adapter is beyond the range of {site.weight.dtype}.",
            where=where,
            hint=f"Convert the model in a wider dtype, or leave the layer out with --exclude {site.name}.",
        )
    return dense(site.spec, weight, site.bias)


def scale_of(raw: RawAdapter) -> float:
    """Return what an adapter's product is multiplied with."""
    if raw.scale is not None:
        return raw.scale
    rank = _rank(raw)
    return 1.0 if raw.alpha is None or rank is None else raw.alpha / rank


def _rank(raw: RawAdapter) -> int | None:
    """The rank; None for a LoKr of two whole factors, which LyCORIS does not scale."""
    match raw.kind:
        case "lora":
            return int(raw.parts["down"].shape[0])
        case "loha":
            return int(raw.parts["w1_b"].shape[0])
        case _:
            inner = raw.parts.get("w1_b", raw.parts.get("w2_b"))
            return None if inner is None else int(inner.shape[0])


def _product(raw: RawAdapter, spec: ConvSpec) -> FloatArray:
    parts = {name: _f64(tensor) for name, tensor in raw.parts.items()}
    match raw.kind:
        case "lora":
            return _composed([parts[name] for name in ("down", "mid", "up") if name in parts], spec)
        case "loha":
            first, second = (_factor(parts, name) for name in ("w1", "w2"))
            return (first * second).reshape(spec.weight_shape)
        case _:
            first, second = (_factor(parts, name) for name in ("w1", "w2"))
            first = first.reshape(*first.shape, *(1,) * (second.ndim - first.ndim))
            return np.asarray(np.kron(first, second)).reshape(spec.weight_shape)


def _factor(parts: Mapping[str, FloatArray], name: str) -> FloatArray:
    """One of the two factors of LoHa and LoKr: whole, a product, or a Tucker product with a core."""
    if name in parts:
        return parts[name]
    a, b, core = parts[f"{name}_a"], parts[f"{name}_b"], parts.get(f"t{name[1:]}")
    if core is None:
        return a @ b.reshape(b.shape[0], -1)
    return np.asarray(np.einsum("ij...,ip,jr->pr...", core, a, b))


def _composed(weights: list[FloatArray], spec: ConvSpec) -> FloatArray:
    """The weight of convolutions in a row that stand for one of this geometry; a matrix is a 1x1 convolution."""
    axes, stage = spec.axes, None
    for weight in weights:
        full = weight if weight.ndim == axes + 2 else weight.reshape(*weight.shape[:2], *(1,) * axes)
        own = replace(ConvSpec.pointwise(full.shape[1], full.shape[0], axes=axes), kernel=full.shape[2:])
        further = Stage(spec=own, weight=full)
        stage = further if stage is None else compose(stage, further)
    assert stage is not None, "an adapter has factors"
    return np.asarray(stage.weight, dtype=np.float64)


def read_factors(raw: RawAdapter, site: ConvSite, where: str) -> Factors:
    """Return V and U of A and B, or of U, S and V, in the layer's dtype.

    Args:
        raw: The factors.
        site: The layer.
        where: The file and layer, for messages.

    Raises:
        ComponentsError: They fit the layer in no way, or in several.
    """
    spec = site.spec
    shapes = ", ".join(f"{name} {shape_of(tuple(tensor.shape))}" for name, tensor in raw.parts.items())
    about = f"{site.name} ({site.kind} {spec.describe()})"
    needs = f"V ({spec.patch}, C) and U (C, {spec.out_channels})"
    if spec.groups > 1:
        ways: list[_Way] = []
    else:
        ways = list(_ways(raw, spec.patch, spec.out_channels))
    if not ways:
        raise ComponentsError(
            f"{NAMES[raw.kind]} of shapes {shapes} do not fit {about}.",
            where=where,
            hint=f"Write them as {needs}, or leave the layer out with --exclude {site.name}.",
        )
    if len(ways) > 1:
        told = "; or ".join(way.told for way in ways)
        raise ComponentsError(
            f"{NAMES[raw.kind]} of shapes {shapes} fit {about} in {len(ways)} ways: {told}.",
            where=where,
            hint=f"Write them as {needs}, whose names say which is which.",
        )
    (way,) = ways
    V, U = (part.astype(site.weight.dtype) for part in (way.V, way.U))
    return Factors(V=V, U=U)


def told_reading(raw: RawAdapter, site: ConvSite) -> str:
    """Return how the factors of a layer were read, in a clause."""
    (way,) = _ways(raw, site.spec.patch, site.spec.out_channels)
    return way.told


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Way:
    """A reading of two factors: V of shape (patch, C), U of shape (C, out), and what it takes them for."""

    V: Array
    U: Array
    told: str


def _ways(raw: RawAdapter, patch: int, out: int) -> Iterator[_Way]:
    """All readings of the factors whose shapes fit."""
    parts = {name: to_numpy(tensor) for name, tensor in raw.parts.items()}
    between = parts.get("S")
    if between is not None and between.ndim != 1:
        return
    pairs = [("A", "B"), ("B", "A")] if raw.kind == "pair" else [("V", "U")]
    for reads, writes in pairs:
        for V, reads_told in _turned(parts[reads], reads):
            for U, writes_told in _turned(parts[writes], writes):
                count = V.shape[-1]
                if V.shape == (patch, count) and U.shape == (count, out) and (between is None or len(between) == count):
                    scaled = U if between is None else between[:, None] * U
                    yield _Way(V=V, U=scaled, told=f"{reads_told} reads the input and {writes_told} writes the output")


def _turned(matrix: Array, name: str) -> Iterator[tuple[Array, str]]:
    """A factor as it is and transposed; one with a kernel counts as the matrix of its patches."""
    flat = matrix.reshape(matrix.shape[0], -1) if matrix.ndim > 2 else matrix
    if flat.ndim == 2:
        yield flat, name
        yield flat.T, f"{name} transposed"


def _f64(tensor: torch.Tensor) -> FloatArray:
    return np.asarray(to_numpy(tensor), dtype=np.float64)
