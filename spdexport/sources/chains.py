"""Forms that a file brings whole: chains of stages by layer, and state dicts of modules that ``factorize`` made.

A file of chains holds ``LAYER.stages.N.weight`` for each stage in turn, stored as PyTorch and ONNX store the weight of
such a layer; perhaps ``LAYER.bias``, which takes the place of the layer's own; and in the metadata of safetensors,
under ``spdexport.forms``, the kind of each layer's form. Without metadata, as torch saves a state dict, the kind is
told from the shapes, and everything else that the file holds must be what the model holds already, but for weights and
biases of layers.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import safetensors.torch

from spdexport.arrays import to_numpy, to_torch
from spdexport.conv import canonical_weight, stored_weight
from spdexport.errors import ComponentsError
from spdexport.factors import Factors, expected_shapes
from spdexport.files.atomic import replacing
from spdexport.files.writing import writing
from spdexport.forms import FAMILIES, Form, FormKind, dense, pair_form
from spdexport.forms.families import stage_name
from spdexport.names import count, did_you_mean, layer_of_call, shape_of

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping, Sequence
    from pathlib import Path

    import torch

    from spdexport.conv import Array, ConvSite, ConvSpec
    from spdexport.forms import Family

METADATA = "spdexport.forms"
"""The key of the metadata under which the kinds stand, as JSON."""

_STAGE = re.compile(r"(?P<layer>.+)\.stages\.(?P<number>0|[1-9]\d{0,3})\.weight", re.DOTALL)
_AGAIN = "Write the file again, or leave the layer out."


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class RawChain:
    """The form of one layer as a file holds it.

    Attributes:
        kind: Its kind; None where the shapes are to tell.
        stages: The weight of each stage, as it is stored.
        bias: What takes the place of the layer's bias; None to leave that as it is.
    """

    kind: FormKind | None
    stages: tuple[torch.Tensor, ...]
    bias: torch.Tensor | None = None


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class RawChains:
    """All that a file of chains holds.

    Attributes:
        chains: By the file's own layer name.
        rest: What belongs to no chain, by its name in the file.
    """

    chains: Mapping[str, RawChain] = field(default_factory=dict)
    rest: Mapping[str, torch.Tensor] = field(default_factory=dict)


def is_chain_file(names: Collection[str]) -> bool:
    """Return whether tensors of these names are chains, or a state dict that holds V and U among other things."""
    if any(_STAGE.fullmatch(name) for name in names):
        return True
    split = [name.rpartition(".") for name in names]
    layers = {layer for layer, _, part in split if part in ("V", "U")}
    others = [(layer, part) for layer, _, part in split if part not in ("V", "U")]
    # What else stands under the name of such a layer is a mistake in a file of components, but for a bias.
    return bool(layers and others) and all(layer not in layers or part == "bias" for layer, part in others)


def read_chains(tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, str], where: str) -> RawChains:
    """Put the stages of each layer together.

    Args:
        tensors: By their names.
        metadata: That of the file; empty where it has none.
        where: The file, for messages.

    Raises:
        ComponentsError: A stage is missing, a kind is not known, or a tensor is not of finite floats.
    """
    kinds = _kinds(metadata, where)
    found: dict[str, dict[int, torch.Tensor]] = {}
    rest = dict(tensors)
    for name in tensors:
        layer, number = name.rpartition(".")[0], {"V": 0, "U": 1}.get(name.rpartition(".")[2])
        if match := _STAGE.fullmatch(name):
            layer, number = match["layer"], int(match["number"])
        if number is not None and layer:
            if number in found.setdefault(layer, {}):
                raise ComponentsError(
                    f"{layer} has V and U beside numbered stages.", where=f"{where}, layer {layer}", hint=_AGAIN
                )
            found[layer][number] = rest.pop(name)
    chains = {}
    for layer, stages in found.items():
        missing = next((number for number in range(max(stages)) if number not in stages), None)
        if missing is not None or len(stages) < 2:
            missing = max(stages) + 1 if missing is None else missing
            raise ComponentsError(
                f"{layer} has {count(len(stages), 'stage')}, and stage {missing} is missing.",
                where=f"{where}, layer {layer}",
                hint=f"Write {layer}.{stage_name(missing)} too, or leave the layer out.",
            )
        bias = rest.pop(f"{layer}.bias", None)
        parts = [stages[number] for number in sorted(stages)]
        for tensor in (*parts, *([] if bias is None else [bias])):
            _check_numbers(tensor, layer, where)
        chains[layer] = RawChain(kind=kinds.pop(layer, None), stages=tuple(parts), bias=bias)
    if kinds:
        layer = next(iter(kinds))
        raise ComponentsError(
            f"The metadata tell the form of {layer}, of which the file has no stage.",
            where=f"{where}, layer {layer}",
            hint=_AGAIN,
        )
    return RawChains(chains=chains, rest=rest)


def _kinds(metadata: Mapping[str, str], where: str) -> dict[str, FormKind]:
    text = metadata.get(METADATA)
    if text is None:
        return {}
    try:
        content: object = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ComponentsError(f"The metadata {METADATA} are no JSON.", where=where, hint=_AGAIN) from error
    if not isinstance(content, dict):
        raise ComponentsError(f"The metadata {METADATA} are no object of names.", where=where, hint=_AGAIN)
    for layer, kind in content.items():
        if not isinstance(kind, str) or kind not in set(FAMILIES):
            raise ComponentsError(
                f"The form of {layer} is {kind!r}, which is not known.",
                where=f"{where}, layer {layer}",
                hint=f"Forms of files are {', '.join(FAMILIES)}.",
            )
    return {layer: FormKind(kind) for layer, kind in content.items()}


def _check_numbers(tensor: torch.Tensor, layer: str, where: str) -> None:
    what = None
    if not tensor.is_floating_point():
        what = f"is of {tensor.dtype}, not of a float type"
    elif not tensor.numel():
        what = "holds nothing"
    elif bad := int((~tensor.isfinite()).sum()):
        what = f"holds NaN or infinity ({bad} values)"
    if what is not None:
        shape = shape_of(tuple(tensor.shape))
        raise ComponentsError(
            f"A tensor of {layer}, shape {shape}, {what}.", where=f"{where}, layer {layer}", hint=_AGAIN
        )


def form_of(raw: RawChain, site: ConvSite, where: str) -> Form:
    """Return the form of a layer, its stages and bias in the layer's dtype; a bias that is the same is the layer's own.

    Args:
        raw: What the file holds for it.
        site: The layer.
        where: The file and layer, for messages.

    Raises:
        ComponentsError: The stages are of no form that the layer can take, or do not fit its dtype.
    """
    bias = _bias(raw.bias, site, where)
    if (pair := _as_factors(raw, site.spec)) is not None:
        V, U = (_cast(tensor, site, where) for tensor in pair)
        return pair_form(site.spec, Factors(V=V, U=U), bias)
    known = [FAMILIES[raw.kind]] if raw.kind is not None else list(FAMILIES.values())
    for family in known:
        chain = _fits(raw, site.spec, family)
        if chain is not None:
            weights = [_cast(tensor, site, where) for tensor in raw.stages]
            canonical = [
                canonical_weight(weight, own.groups) if own.transposed else weight
                for weight, own in zip(weights, chain, strict=True)
            ]
            return family.form(site.spec, canonical, bias)
    raise _unfit(raw, site, known, where)


def _unfit(raw: RawChain, site: ConvSite, known: Sequence[Family], where: str) -> ComponentsError:
    about = f"{site.name} ({site.kind} {site.spec.describe()})"
    shapes = ", ".join(shape_of(tuple(stage.shape)) for stage in raw.stages)
    reasons = [reason for family in known if (reason := family.without(site.spec)) is not None]
    if raw.kind is not None and reasons:
        what = f"{about} cannot take the form {raw.kind}: {reasons[0]}."
    else:
        what = f"Stages of {shapes} are no {raw.kind or 'form'} of {about}."
    hint = "Give stages whose channels go into each other, with the layer's kernel, groups, inputs and outputs"
    return ComponentsError(what, where=where, hint=f"{hint}, or --exclude {site.name}.")


def _as_factors(raw: RawChain, spec: ConvSpec) -> tuple[torch.Tensor, ...] | None:
    """V and U where the stages are (patch, C) and (C, out), as a file of components has them."""
    if raw.kind is not None or len(raw.stages) != 2 or _fits(raw, spec, FAMILIES[FormKind.RECOMPRESSED]) is not None:
        return None
    given = tuple(tuple(stage.shape) for stage in raw.stages)
    return raw.stages if given[0] and given == expected_shapes(spec, given[0][-1]) else None


def _fits(raw: RawChain, spec: ConvSpec, family: Family) -> tuple[ConvSpec, ...] | None:
    """The geometries of the stages as a form of this kind; None where they are none."""
    if family.without(spec) is not None or any(stage.ndim != spec.axes + 2 for stage in raw.stages):
        return None
    numbers = (number for number in family.numbers if len(family.specs(spec, (1,) * number)) == len(raw.stages))
    number = next(numbers, None)
    if number is None:
        return None
    channels = [
        stage.shape[1] if own.transposed else stage.shape[0] // own.groups
        for stage, own in zip(raw.stages[:number], family.specs(spec, (1,) * number), strict=False)
    ]
    chain = family.specs(spec, tuple(channels))
    given = [tuple(stage.shape) for stage in raw.stages]
    return chain if given == [stored_shape(own) for own in chain] else None


def stored_shape(spec: ConvSpec) -> tuple[int, ...]:
    """Return the shape in which PyTorch and ONNX store the weight of a layer."""
    return stored_weight(np.broadcast_to(np.zeros(1), spec.weight_shape), spec).shape


def _cast(tensor: torch.Tensor, site: ConvSite, where: str) -> Array:
    dtype = site.weight.dtype
    with np.errstate(over="ignore"):
        values = to_numpy(tensor).astype(dtype)
    if not np.isfinite(values.astype(np.float64)).all():
        raise ComponentsError(
            f"The form of {site.name} has values beyond the range of {dtype}, the dtype of the layer's weight.",
            where=where,
            hint=f"Convert the model in a wider dtype, or leave the layer out with --exclude {site.name}.",
        )
    return values


def _bias(given: torch.Tensor | None, site: ConvSite, where: str) -> Array | None:
    if given is None:
        return site.bias
    if tuple(given.shape) != (site.spec.out_channels,):
        raise ComponentsError(
            f"The bias of {site.name} has shape {shape_of(tuple(given.shape))}, and the layer gives "
            f"{site.spec.out_channels} channels.",
            where=where,
            hint=_AGAIN,
        )
    bias = _cast(given, site, where)
    if site.bias is None and site.is_product:
        raise ComponentsError(
            f"{site.name} is a matrix product, whose bias is added by another operator, if there is one.",
            where=where,
            hint="Leave the bias out, or give a model whose layer has it.",
        )
    return site.bias if site.bias is not None and np.array_equal(bias, site.bias) else bias


def changed_layers(
    rest: Mapping[str, torch.Tensor], sites: Sequence[ConvSite], held: Callable[[str], Array | None], where: str
) -> dict[str, Form]:
    """Return the dense forms of layers without a chain whose weight or bias a state dict has changed, by site.

    Args:
        rest: What belongs to no chain.
        sites: The layers without one.
        held: What the model holds under a name, in whichever dtype; None for nothing.
        where: The file, for messages.

    Raises:
        ComponentsError: The model has no such tensor, or another one that is no weight or bias of a layer.
    """
    by_layer: dict[str, list[ConvSite]] = {}
    for site in sites:
        by_layer.setdefault(layer_of_call(site.name), []).append(site)
    changed: dict[str, dict[str, torch.Tensor]] = {}
    for name, tensor in rest.items():
        layer, _, part = name.rpartition(".")
        of_layer = part in ("weight", "bias") and layer in by_layer
        own = held(name)
        if own is not None and own.shape == tuple(tensor.shape) and np.array_equal(own, _as(tensor, own)):
            continue
        if not of_layer:
            if own is None:
                what = f"The file holds {name}, which is no stage of a form, and the model has nothing of that name."
                hint = did_you_mean(name, by_layer) + " Names are LAYER.stages.N.weight and LAYER.bias."
            else:
                what = f"The file has other numbers in {name} than the model, and only layers take forms."
                hint = "Give the model with these numbers as the source, or leave the tensor out of the file."
            raise ComponentsError(what, where=where, hint=hint)
        changed.setdefault(layer, {})[part] = tensor
    forms = {}
    for layer, parts in changed.items():
        for site in by_layer[layer]:
            forms[site.name] = _dense(parts, site, f"{where}, layer {layer}")
    return forms


def _dense(parts: Mapping[str, torch.Tensor], site: ConvSite, where: str) -> Form:
    bias, weight, spec = _bias(parts.get("bias"), site, where), site.weight, site.spec
    if (given := parts.get("weight")) is not None:
        if tuple(given.shape) != stored_shape(spec):
            raise ComponentsError(
                f"The weight of {site.name} has shape {shape_of(tuple(given.shape))}, and the layer's is stored as "
                f"{shape_of(stored_shape(spec))}.",
                where=where,
                hint=_AGAIN,
            )
        _check_numbers(given, site.name, where)
        values = _cast(given, site, where)
        weight = canonical_weight(values, spec.groups) if spec.transposed else values
    return dense(spec, weight, bias)


def _as(tensor: torch.Tensor, like: Array) -> Array:
    return to_numpy(tensor).astype(like.dtype)


def write_chains(path: Path, forms: Mapping[str, Form]) -> None:
    """Write a file of chains, whole or not at all, which ``--components`` takes.

    Args:
        path: The file.
        forms: By layer, each one chain of a kind of ``FAMILIES`` without masks, or a dense layer with another weight.
            The bias of the last stage is written where there is one.

    Raises:
        OutputError: It cannot be written.
    """
    tensors: dict[str, torch.Tensor] = {}
    kinds = {layer: FormKind(form.name).value for layer, form in forms.items() if form.name != FormKind.DENSE}
    for layer, form in forms.items():
        (chain,) = form.chains
        for number, stage in enumerate(chain):
            assert stage.mask is None, "a chain of a file has no masks"
            weight = np.ascontiguousarray(stored_weight(np.asarray(stage.weight), stage.spec))
            part = stage_name(number) if layer in kinds else "weight"
            tensors[f"{layer}.{part}"] = to_torch(weight)
        if chain[-1].bias is not None:
            tensors[f"{layer}.bias"] = to_torch(np.ascontiguousarray(chain[-1].bias))
    content = safetensors.torch.save(tensors, metadata={METADATA: json.dumps(kinds)})
    with replacing(path) as temporary, writing(path, size=len(content)):
        temporary.write_bytes(content)
