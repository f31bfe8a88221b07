"""The one dense graph that a search works on, whatever the source is, and how forms get back to the source.

Of a torch source it is what the exporter makes of it, with batch norm folded into the layers. A form that was found
there belongs to the folded layer, y = s (W x + b) + t for each output channel, and the source's own layer is W x + b:
so the last stage is divided by s, and from its bias t is taken first. An ONNX source is its own graph, with batch norm
that stands behind a convolution folded likewise.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from spdexport.compression.data import BATCH
from spdexport.conv import Skipped
from spdexport.errors import UsageError
from spdexport.forms import Form, FormKind, factorized
from spdexport.masks import fit_masks, read_masks
from spdexport.names import layer_of_call
from spdexport.onnx_prepare import read_source
from spdexport.ort.installed import require_torch
from spdexport.planning import check_patterns, matches
from spdexport.prepare import components_of
from spdexport.rewrite.onnx_norms import fold_norms
from spdexport.rewrite.onnx_shapes import value_sizes
from spdexport.rewrite.onnx_sites import list_onnx_sites
from spdexport.routes import is_onnx
from spdexport.sources.match import match_components
from spdexport.verification.data_feeds import data_feeds
from spdexport.verification.ports import input_ports

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    import onnx_ir as ir

    from spdexport.conv import Array, ConvSite
    from spdexport.loading.source import Source
    from spdexport.options import Options
    from spdexport.sources.components import ComponentSet
    from spdexport.verification.ports import Port

ALIKE = 1e-3
"""The relative difference up to which a folded weight is the source's own but for a factor of each channel."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class DenseModel:
    """A dense graph, and where it comes from.

    Attributes:
        model: The graph.
        sites: Its layers that forms may replace.
        skipped: The others, each with its reason.
        own: The same layers as the source has them, by name.
        ports: The graph's inputs.
        hashes: SHA-256 of the source, by name.
        notes: What the user should know.
        foreign: V and U of an SPD run, with what masks leave of them, by layer: forms that it might take too.
    """

    model: ir.Model
    sites: tuple[ConvSite, ...]
    skipped: tuple[Skipped, ...]
    own: Mapping[str, ConvSite]
    ports: tuple[Port, ...]
    hashes: Mapping[str, str]
    notes: tuple[str, ...]
    foreign: Mapping[str, tuple[Form, ...]]

    @property
    def batch(self) -> int | None:
        """The only size that axis 0 of the inputs may have; None where it may change."""
        return batch_of(self.ports)

    @property
    def together(self) -> int:
        """Samples that run together."""
        return self.batch or BATCH

    def alone(self) -> DenseModel:
        """Return the graph with its layers, without what only leads back to the source."""
        return replace(self, own={}, skipped=(), notes=(), foreign={})

    def in_source(self, site: ConvSite, form: Form) -> Form:
        """Return the form for the layer as the source has it."""
        own = self.own[site.name]
        if form.name == FormKind.FACTORIZED:
            form = replace(form, name=FormKind.RECOMPRESSED)  # V and U, and no longer the run's own
        if own is site:
            return form
        scale, shift = _folded(own, site)
        dtype = own.weight.dtype
        (*front, last), *others = form.chains
        assert not others, "a search finds chains, and no sums of them"
        weight = np.asarray(last.weight, dtype=np.float64)
        bias = np.zeros(len(scale)) if last.bias is None else last.bias.astype(np.float64)
        # A channel that the folded layer has no factor for is constant, and stays so.
        inverse = np.where(scale == 0, 0.0, 1 / np.where(scale == 0, 1.0, scale))
        weight = weight * inverse.reshape(-1, *(1,) * (weight.ndim - 1))
        moved: Array | None = ((bias - shift) * inverse).astype(dtype)
        if own.bias is None and last.bias is None:
            moved = None
        stage = replace(last, weight=weight.astype(dtype), bias=moved)
        return replace(form, chains=((*front, stage),))


def dense_model(
    source: Source,
    options: Options,
    batch: Mapping[str, Array],
    progress: Callable[[str], None],
) -> DenseModel:
    """Bring a source to its dense graph.

    Args:
        source: As for ``convert``.
        options: How it is read; ``layers`` and ``exclude`` tell which layers are left alone.
        batch: A few samples of the data, with which a torch model is traced, and which tell sizes.
        progress: Told what is being done.

    Raises:
        UsageError, InputError, CaptureError: As ``convert`` does.
    """
    original: ir.Model | None = None
    if is_onnx(source):
        read = read_source(Path(str(source)), options, progress)
        original = model = read.model
        hashes, notes = read.hashes, read.notes
        skipped: Sequence[Skipped] = read.skipped
        own = {site.name: site for site in read.sites}
        model = fold_norms(model)
        components = components_of(None, options)
    else:
        require_torch()
        from spdexport.dense_export import DenseExport
        from spdexport.prepare import trace

        found = trace(source, options, progress)
        progress("exporting to ONNX")
        captured = found.captured
        model = DenseExport(captured.program, opset=options.opset, axes=captured.axes).model(())
        own, hashes = {site.name: site for site in found.sites}, {"source": found.sha256}
        notes, skipped = (*found.loaded.notes, *captured.notes), found.skipped
        components = found.components
    ports = input_ports(model)
    feeds = data_feeds(ports, batch, "the data")
    sites, others = list_onnx_sites(model, value_sizes(model, feeds))
    for option, patterns in (("--layers", options.layers), ("--exclude", options.exclude)):
        check_patterns(patterns, [s.name for s in sites] + [s.name for s in (*skipped, *others)], option)
    skipped = tuple({s.name: s for s in (*skipped, *others)}.values())
    if model is original:
        own = {site.name: site for site in sites}
    kept, left = _usable(sites, own, options)
    return DenseModel(
        model=model,
        sites=kept,
        skipped=(*skipped, *left),
        own=own,
        ports=ports,
        hashes=hashes,
        notes=notes,
        foreign=_foreign(kept, own, skipped, components, options),
    )


def _foreign(
    sites: Sequence[ConvSite],
    own: Mapping[str, ConvSite],
    skipped: Sequence[Skipped],
    components: ComponentSet | None,
    options: Options,
) -> dict[str, tuple[Form, ...]]:
    """V and U of a run for the layers of the graph, with fixed masks where there are some."""
    if components is None or not components.components:
        return {}

    def excluded(name: str) -> bool:
        return matches(name, options.exclude)

    factors = match_components(components, list(own.values()), skipped, excluded=excluded)
    if options.masks is not None:
        masks = read_masks(options.masks, threshold=options.mask_threshold)
        factors = fit_masks(masks, factors, layers=list(own), left=skipped, excluded=excluded)
    found: dict[str, tuple[Form, ...]] = {}
    for site in sites:
        if (its := factors.get(site.name)) is None or own[site.name].is_lookup:
            continue
        (chain,) = factorized(site.spec, its, site.bias).chains
        scale = np.ones(site.spec.out_channels) if own[site.name] is site else _folded(own[site.name], site)[0]
        *front, last = chain
        weight = np.asarray(last.weight) * scale.reshape(-1, *(1,) * site.spec.axes, 1)
        last = replace(last, weight=weight.astype(site.weight.dtype))
        found[site.name] = (Form(name=FormKind.FACTORIZED, chains=((*front, last),)),)
    return found


def _usable(
    sites: Sequence[ConvSite], own: Mapping[str, ConvSite], options: Options
) -> tuple[tuple[ConvSite, ...], tuple[Skipped, ...]]:
    """The layers that may take a form, and why others may not."""
    calls = Counter(layer_of_call(site.name) for site in sites)
    kept, left = [], []
    for site in sites:
        reason = None
        if site.inside:
            reason = f"it runs inside of {site.inside}, where no data is seen"
        elif calls[layer_of_call(site.name)] > 1:
            reason = "its weight is shared by several calls, whose inputs differ"
        elif matches(site.name, options.exclude):
            reason = "excluded by --exclude"
        elif options.layers and not matches(site.name, options.layers):
            reason = "not named by --layers"
        elif site.name not in own:
            reason = "the source has no layer of that name"
        elif own[site.name] is not site and not _is_folded(own[site.name], site):
            reason = "what the exporter made of it is another layer than the source's"
        if reason is None:
            kept.append(site)
        else:
            left.append(Skipped(name=site.name, kind=site.kind, reason=reason))
    if not kept:
        raise UsageError(
            "No layer is left to compress.",
            where="--layers" if options.layers else "--exclude" if options.exclude else "the model",
            hint="spdexport inspect lists the layers.",
        )
    return tuple(kept), tuple(left)


def _folded(own: ConvSite, site: ConvSite) -> tuple[Array, Array]:
    """S and t of each output channel: the layer in the graph is s (W x + b) + t of the source's."""
    before = np.asarray(own.weight, dtype=np.float64).reshape(len(own.weight), -1)
    after = np.asarray(site.weight, dtype=np.float64).reshape(len(site.weight), -1)
    norm = (before**2).sum(axis=1)
    scale = (before * after).sum(axis=1) / np.where(norm > 0, norm, 1.0)
    bias = [np.zeros(len(norm)) if b is None else b.astype(np.float64) for b in (own.bias, site.bias)]
    return scale, bias[1] - scale * bias[0]


def _is_folded(own: ConvSite, site: ConvSite) -> bool:
    """Whether the layer in the graph is the source's but for a factor and a shift of each output channel."""
    if own.spec.weight_shape != site.spec.weight_shape or own.spec.moves != site.spec.moves:
        return False
    scale, _ = _folded(own, site)
    after = np.asarray(site.weight, dtype=np.float64).reshape(len(scale), -1)
    made = np.asarray(own.weight, dtype=np.float64).reshape(len(scale), -1) * scale[:, None]
    return bool(np.linalg.norm(made - after) <= ALIKE * np.linalg.norm(after))


def batch_of(ports: Sequence[Port]) -> int | None:
    """Return the only size that axis 0 of some inputs may have; None where it may change."""
    sizes = [port.shape[0] for port in ports if port.shape]
    return sizes[0] if sizes and isinstance(sizes[0], int) else None


def some_of(batches: Iterable[Mapping[str, Array]]) -> Mapping[str, Array]:
    """Return the first two samples of some batches, with which a model is traced."""
    return {name: array[:2] for name, array in next(iter(batches)).items()}
