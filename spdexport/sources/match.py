"""Giving each layer of a model the components that a file has for it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import ml_dtypes
import numpy as np

from spdexport.arrays import to_numpy
from spdexport.errors import ComponentsError
from spdexport.factors import Factors, expected_shapes, unit_rounding
from spdexport.gates import GlobalInput, GlobalShare
from spdexport.names import did_you_mean, layer_of_call, some
from spdexport.sources.adapter_products import added_form, told_change
from spdexport.sources.adapters import NAMES, read_factors, told_reading
from spdexport.sources.chains import changed_layers, form_of
from spdexport.sources.spd_gates import Gates
from spdexport.sources.spd_layouts import INSERTED

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from spdexport.conv import Array, ConvSite, FloatArray, Skipped
    from spdexport.forms import Form
    from spdexport.gates import GateFunction, Sigmoid
    from spdexport.sources.components import ComponentSet, RawComponent


def match_components(
    components: ComponentSet,
    sites: Sequence[ConvSite],
    skipped: Sequence[Skipped],
    *,
    excluded: Callable[[str], bool],
) -> dict[str, Factors]:
    """Return the factors of each site that the components name, by the site's name.

    V and U are cast to the dtype of the site's weight, since they are what goes into the graph: where the file's dtype
    is wider, that rounds them once. All calls of one module get the same factors.

    Args:
        components: What the file holds.
        sites: The layers that can take components.
        skipped: The layers that cannot, with their kind and reason.
        excluded: Whether the user left a layer out by name; its components are passed over in silence.

    Returns:
        Factors without masks; sites that the file does not name are not in it.

    Raises:
        ComponentsError: A component matches no layer, several layers, or one that it does not fit or that cannot take
            components.
    """
    lookup = _Lookup(components, sites, skipped, excluded)
    spd = components.kind == "spd"
    named = {
        site.name: _factors(raw, site, spd=spd, where=lookup.where(name))
        for name, raw in components.components.items()
        for site in lookup.sites_of(name)
    }
    told_by_shapes = {
        site.name: read_factors(raw, site, lookup.where(name))
        for name, raw in components.adapters.layers.items()
        if not raw.is_added
        for site in lookup.sites_of(name)
    }
    return named | told_by_shapes


def match_chains(
    components: ComponentSet,
    sites: Sequence[ConvSite],
    skipped: Sequence[Skipped],
    *,
    excluded: Callable[[str], bool],
    held: Callable[[str], Array | None],
) -> dict[str, Form]:
    """Return the forms that a file brings whole, by the sites' names; the arguments are those of ``match_components``.

    Args:
        components: What the file holds.
        sites: The layers that can take forms.
        skipped: The layers that cannot.
        excluded: Whether the user left a layer out by name.
        held: What the model holds under a name; None for nothing.

    Raises:
        ComponentsError: A form matches no layer, or one that it does not fit; or the file holds something else that is
            not the model's.
    """
    lookup = _Lookup(components, sites, skipped, excluded)
    result = {
        site.name: form_of(raw, site, lookup.where(name))
        for name, raw in components.chains.chains.items()
        for site in lookup.sites_of(name)
    }
    result |= {
        site.name: added_form(raw, site, lookup.where(name))
        for name, raw in components.adapters.layers.items()
        if raw.is_added
        for site in lookup.sites_of(name)
    }
    others = [site for site in sites if site.name not in result]
    rest = {name: t for name, t in components.chains.rest.items() if not excluded(name.rpartition(".")[0])}
    return result | changed_layers(rest, others, held, str(components.path or "components"))


def adapter_notes(components: ComponentSet, sites: Sequence[ConvSite]) -> tuple[str, ...]:
    """Return what the user should know of adapters, and of factors whose shapes told which is which."""
    by_name = {_file_name(layer_of_call(site.name), components): site for site in sites}
    notes: dict[str, list[str]] = {}
    for name, raw in components.adapters.layers.items():
        site = by_name.get(name)
        if site is None:
            continue  # the user left it out
        told = (
            told_change(raw)
            if raw.is_added
            else f"{NAMES[raw.kind]} are factors of the weight: {told_reading(raw, site)}"
        )
        notes.setdefault(told, []).append(site.name)
    return tuple(f"{told}: {some(layers)}" for told, layers in notes.items())


class _Lookup:
    """From a name in the file to layers of the model.

    Dashed names lose what was a '.', so every layer's name is turned into its dashed form, never the other way.
    """

    def __init__(
        self,
        components: ComponentSet,
        sites: Sequence[ConvSite],
        skipped: Sequence[Skipped],
        excluded: Callable[[str], bool],
    ) -> None:
        self.components = components
        self.excluded = excluded
        self.sites: dict[str, list[ConvSite]] = {}
        for site in sites:
            own = site.name in components.layers
            self.sites.setdefault(site.name if own else layer_of_call(site.name), []).append(site)
        left = {layer_of_call(skip.name): skip for skip in skipped}
        self.skipped = {layer: skip for layer, skip in left.items() if layer not in self.sites}
        self.by_name: dict[str, list[str]] = {}
        for layer in (*self.sites, *self.skipped):
            self.by_name.setdefault(_file_name(layer, components), []).append(layer)

    def sites_of(self, name: str) -> list[ConvSite]:
        """Return all calls of the layer that a name means; none where the user excluded it.

        Raises:
            ComponentsError: It means several layers, none, or one that was skipped.
        """
        found = [layer for layer in self.layers(name) if not self.excluded(layer)]
        if len(found) > 1:
            raise ComponentsError(
                f"{name} may mean {' or '.join(found)}: the run writes '.' in names as '-'.",
                where=self.where(name),
                hint="Leave all but one of them out with --exclude.",
            )
        for layer in found:
            if (skip := self.skipped.get(layer)) is not None:
                raise ComponentsError(
                    f"The file has components for {layer}, of kind {skip.kind}, which was skipped: {skip.reason}.",
                    where=self.where(name),
                    hint=f"Leave the layer out with --exclude {layer}.",
                )
        return [site for layer in found for site in self.sites[layer]]

    def layers(self, name: str) -> list[str]:
        """Return the layers that a name may mean; where there is none and the user did not exclude it, an error."""
        if name in self.by_name:
            return self.by_name[name]
        if self.excluded(name) or (self.components.dashed and self.excluded(name.replace("-", "."))):
            return []
        inserted = next((x for x in self.components.identity if name in (f"{x}-{INSERTED}", f"{x}.{INSERTED}")), None)
        if inserted is not None:
            if any(self.excluded(layer) for layer in self.by_name.get(inserted, ())):
                return []
            raise ComponentsError(
                f"The run inserted identity components in front of {inserted}: no layer of the model holds them.",
                where=self.where(name),
                hint=f"Give the run itself as the source, with --factory, or leave them out with --exclude {name}.",
            )
        raise ComponentsError(
            f"The file has components for {name}, and the model has no such layer.",
            where=self.where(name),
            hint=did_you_mean(name, self.by_name) + f" Or leave it out with --exclude {name}.",
        )

    def where(self, name: str) -> str:
        return f"{self.components.path or 'components'}, layer {name}"


def _file_name(layer: str, components: ComponentSet) -> str:
    if components.adapters.underscored:
        return layer.replace(".", "_")
    return layer.replace(".", "-") if components.dashed else layer


def _factors(raw: RawComponent, site: ConvSite, *, spd: bool, where: str) -> Factors:
    spec = site.spec
    about = f"{site.name} ({spec.kind} {spec.describe()})"
    leave = f"Leave the layer out with --exclude {site.name}."
    if spd and spec.groups > 1:
        raise ComponentsError(
            f"SPD decomposed {about} as if it had no groups, and it has {spec.groups}: the components were trained on "
            "another layer.",
            where=where,
            hint=leave,
        )
    if spd and site.padding_mode != "zeros":
        raise ComponentsError(
            f"SPD decomposed {about} with zeros as padding, and its padding_mode is {site.padding_mode}: the "
            "components were trained on another layer.",
            where=where,
            hint=leave,
        )
    given = tuple(raw.V.shape), tuple(raw.U.shape)
    needed = expected_shapes(spec, given[0][-1])
    if given != needed:
        raise ComponentsError(
            f"V {given[0]} and U {given[1]} do not fit {about}, which needs V {needed[0]} and U {needed[1]}.",
            where=where,
            hint="V has a row for each input of the patch, in (in / groups, *kernel) order, and U a column for each "
            f"output. {leave}",
        )
    dtype = site.weight.dtype
    # A value beyond the narrower dtype's range becomes infinite, which is reported; numpy's warning would say it twice.
    with np.errstate(over="ignore"):
        V, U = to_numpy(raw.V).astype(dtype), to_numpy(raw.U).astype(dtype)
    for name, values in (("V", V), ("U", U)):
        if not np.isfinite(values.astype(np.float64)).all():
            raise ComponentsError(
                f"{name} of {about} has values beyond the range of {dtype}, the dtype of the layer's weight.",
                where=where,
                hint=f"Convert the model in a wider dtype. {leave}",
            )
    return Factors(V=V, U=U)


def match_gates(
    components: ComponentSet, sites: Sequence[ConvSite], sigmoid: Sigmoid | None = None
) -> dict[str, GateFunction | GlobalShare]:
    """Return the causal-importance functions of a run by the model's own layer names.

    Only of layers that have components.

    Args:
        components: The run.
        sites: All layers of the model that can take components, those that the user leaves alone too.
        sigmoid: The one that the user tells.

    Raises:
        ComponentsError: A function cannot be read, or one of all layers reads a layer that the model has not, or runs
            more than once.
        UsageError: The sigmoid is not the run's.
    """
    if components.no_gates is not None:
        raise ComponentsError(
            f"The causal-importance functions are missing: {components.no_gates}.",
            where=str(components.path or "the run"),
            hint="Leave the gates out; masks can be given as a file, or come from a harvest.",
        )
    gates = components.gates
    layers = dict.fromkeys(layer_of_call(site.name) for site in sites)
    if isinstance(gates, Gates):
        gates = gates.with_sigmoid(sigmoid)
        if gates.is_global:
            return dict(_shares(components, gates, sites))
    named = {layer: gates.get(_file_name(layer, components)) for layer in layers}
    return {layer: gate for layer, gate in named.items() if gate is not None}


def _shares(components: ComponentSet, gates: Gates, sites: Sequence[ConvSite]) -> dict[str, GlobalShare]:
    """What the one function of all layers gives for each."""
    where = f"{components.path or 'the run'}, the global causal-importance function"
    named = [(_file_name(layer_of_call(site.name), components), site) for site in sites]
    found = dict(reversed(named))  # the first call of each
    missing = [name for name in components.components if name not in found]
    twice = [s.name for name, s in named if found[name] is not s and name in components.components]
    if missing or twice:
        what = f"reads {missing[0]}, which the model has no layer of" if missing else f"reads {twice[0]}, a second call"
        raise ComponentsError(
            f"The causal-importance function of all layers {what}.",
            where=where,
            hint="Give the model that the run decomposed; such a function needs all of its layers.",
        )
    order = {name: number for number, name in enumerate(components.target)}

    def place(name: str) -> int:
        return order.get(f"{found[name].name}.weight", len(order))

    names = {name: layer_of_call(found[name].name) for name in sorted(components.components, key=place)}
    function = gates.global_function(names)
    inputs = tuple(
        GlobalInput(
            layer=layer,
            site=site,
            V=to_numpy(components.components[_file_name(layer, components)].V) if site.is_lookup else None,
        )
        for layer in function.layers
        for site in (found[_file_name(layer, components)],)
    )
    return {layer: GlobalShare(function=function, layer=layer, inputs=inputs) for layer in function.layers}


def check_target(components: ComponentSet, sites: Sequence[ConvSite]) -> None:
    """Check that a run decomposed the weights that the sites have, to the rounding of the coarser dtype of the two.

    Sites without components are not looked at, nor is anything where the file brings no target weights. A linear
    layer's weight may be stored transposed, as Hugging Face's ``Conv1D`` does.

    Raises:
        ComponentsError: A weight differs, or the run has none for the layer.
    """
    if not components.target:
        return
    for site in sites:
        layer = layer_of_call(site.name)
        if _file_name(layer, components) not in components.components:
            continue
        target = components.target.get(f"{layer}.weight", components.target.get(layer))
        where = f"{components.path or 'components'}, layer {layer}"
        if target is None:
            raise ComponentsError(
                f"The run has components for {layer} and no dense weight {layer}.weight to compare the model's with.",
                where=where,
                hint="Give the complete checkpoint of the run.",
            )
        array = to_numpy(target)
        ways = [array] if site.spec.axes or array.ndim != 2 else [array, array.T]
        ways = [way for way in ways if way.shape == site.weight.shape]
        if not ways:
            raise ComponentsError(
                f"The run decomposed a weight of shape {array.shape} for {layer}, and the model's has "
                f"{site.weight.shape}.",
                where=where,
                hint="Give the model that the run decomposed.",
            )
        if any(_equal(way, site.weight) for way in ways):
            continue
        ratio = min(_ratio(way, site.weight) for way in ways)
        raise ComponentsError(
            f"The run decomposed other weights than the model's: at {layer} they differ by {ratio:.2e} of the weight's "
            "norm.",
            where=where,
            hint="Give the model that the run decomposed. The weight delta would otherwise hide the difference.",
        )


def _equal(a: Array, b: Array) -> bool:
    coarse = max(a.dtype, b.dtype, key=unit_rounding)
    x, y = _f64(a), _f64(b)
    # Below the normal numbers of a dtype its spacing is constant: float16 is there from 6e-5 down.
    bound = unit_rounding(coarse) * np.maximum(np.abs(x), np.abs(y))
    bound += float(ml_dtypes.finfo(coarse).smallest_subnormal) / 2
    return bool((np.abs(x - y) <= bound).all())


def _ratio(target: Array, weight: Array) -> float:
    norm = float(np.linalg.norm(_f64(weight)))
    difference = float(np.linalg.norm(_f64(target) - _f64(weight)))
    return difference / norm if norm else float("inf")


def _f64(values: Array) -> FloatArray:
    return np.asarray(values, dtype=np.float64)
