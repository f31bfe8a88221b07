"""Weights of adapters beside a dense model, LoRA and its kin, and factors whose names do not tell their order.

Adapters are added to the layer's weight, which then is one dense layer again (``adapter_products`` has the formulas).
``<layer>.A`` with ``<layer>.B``, and ``U``, ``S`` with ``V``, are factors of the weight itself, as V and U are. Which
is which, and which way round, is told by the shapes where only one reading of them fits.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from spdexport.arrays import to_numpy
from spdexport.errors import ComponentsError
from spdexport.factors import Factors
from spdexport.names import shape_of
from spdexport.sources.adapter_config import AdapterConfig

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    import torch

    from spdexport.conv import Array, ConvSite

_PARTS = {
    "lora_A": ("lora", "down"), "lora_B": ("lora", "up"),
    "lora_down": ("lora", "down"), "lora_up": ("lora", "up"), "lora_mid": ("lora", "mid"),
    "hada_w1_a": ("loha", "w1_a"), "hada_w1_b": ("loha", "w1_b"), "hada_t1": ("loha", "t1"),
    "hada_w2_a": ("loha", "w2_a"), "hada_w2_b": ("loha", "w2_b"), "hada_t2": ("loha", "t2"),
    "lokr_w1": ("lokr", "w1"), "lokr_w1_a": ("lokr", "w1_a"), "lokr_w1_b": ("lokr", "w1_b"),
    "lokr_w2": ("lokr", "w2"), "lokr_w2_a": ("lokr", "w2_a"), "lokr_w2_b": ("lokr", "w2_b"),
    "lokr_t2": ("lokr", "t2"),
    "lora_magnitude_vector": ("lora", "magnitude"),
}  # fmt: skip
"""What the parts are called in files, and the kind of adapter and the part that each is."""

_NEEDED = {
    "lora": (("down",), ("up",)),
    "loha": (("w1_a",), ("w1_b",), ("w2_a",), ("w2_b",)),
    "lokr": (("w1", "w1_a"), ("w1", "w1_b"), ("w2", "w2_a"), ("w2", "w2_b")),
}
"""The parts that an adapter has to have, each under one of these names."""

_KEY = re.compile(
    rf"(?P<layer>.+)\.(?P<part>{'|'.join(_PARTS)})(\.(?P<adapter>\w+))??(\.(?P<of>weight|bias))?", re.DOTALL
)
_PEFT = "base_model.model."
_KOHYA = ("lora_unet_", "lora_te1_", "lora_te2_", "lora_te_", "lycoris_")
"""What stands in front of a layer's name; kohya's scripts and LyCORIS then write ``_`` for each dot."""

NAMES = {"lora": "LoRA", "loha": "LoHa", "lokr": "LoKr", "pair": "A and B", "svd": "U, S and V"}


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class RawAdapter:
    """What a file holds for one layer.

    Attributes:
        kind: A key of ``NAMES``.
        parts: By what ``_PARTS`` calls them, and ``dora_scale``; ``A`` and ``B``, or ``U``, ``S`` and ``V``.
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
    magnitudes: dict[str, torch.Tensor] = {}
    rest: list[str] = []
    names: set[str] = set()
    for key, tensor in tensors.items():
        layer, _, last = key.rpartition(".")
        if last == "alpha" and layer:
            alphas[layer] = tensor
        elif last == "dora_scale" and layer:
            magnitudes[layer] = tensor
        elif (match := _KEY.fullmatch(key)) and (match["of"] != "bias" or match["part"] == "lora_B"):
            kind, part = _PARTS[match["part"]]
            part = "bias" if match["of"] == "bias" else part
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
    is_peft = bool(names & {"lora_A", "lora_B"}) or any(layer.startswith(_PEFT) for layer in found)
    settings = AdapterConfig(settings=config, where=where) if is_peft and config is not None else None
    rest += [f"{layer}.alpha" for layer in alphas if layer not in found]
    rest += [f"{layer}.dora_scale" for layer in magnitudes if layer not in found or layer in paired]
    if rest:
        odd = rest[0]
        raise ComponentsError(
            f"The file holds {odd}, which is no part of an adapter that is known.",
            where=where,
            hint="Known are LoRA, DoRA, LoHa and LoKr as peft, kohya's scripts and LyCORIS write them; merge others.",
        )
    layers: dict[str, RawAdapter] = {}
    for layer, parts in found.items():
        name, kind = _bare(layer), kinds[layer]
        if layer in magnitudes:
            parts["dora_scale"] = magnitudes[layer]
        _check_parts(layer, kind, parts, where)
        alpha = float(alphas[layer]) if layer in alphas and alphas[layer].numel() == 1 else None
        scale = None
        if is_peft and kind in _NEEDED:
            scale = _peft_scale(layer, RawAdapter(kind=kind, parts=parts, alpha=alpha), settings, where)
        if name in layers:
            raise _fault(f"{name} is named twice, with other prefixes.", layer, where)
        layers[name] = RawAdapter(kind=kind, parts=parts, alpha=alpha, scale=scale)
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


def _peft_scale(layer: str, raw: RawAdapter, settings: AdapterConfig | None, where: str) -> float | None:
    """What peft multiplies with, which its files of weights do not hold; None where an alpha is there all the same."""
    if settings is None and raw.alpha is not None:
        return None
    if settings is None:
        key = "lora_alpha" if raw.kind == "lora" else "alpha"
        raise _fault(
            f"What the adapter of {layer} is multiplied with is not known: it has no alpha.",
            layer,
            where,
            hint=f"Put adapter_config.json, with {key} and r, beside the file, or write {layer}.alpha into it.",
        )
    settings.check_parts(layer, raw.parts)
    return settings.scale(_bare(layer), raw.kind, raw.parts, raw.alpha)


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
