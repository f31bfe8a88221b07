"""Atlases: in words, as a table, and as JSON values."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from rich.text import Text

from spdexport.names import count
from spdexport.report.made import made_json
from spdexport.report.numbers import ratio, size
from spdexport.report.tables import results_table
from spdexport.text import one_line

if TYPE_CHECKING:
    from spdexport.atlases.result import Atlas, AtlasLayer, Component
    from spdexport.report.console import FittingTable


def title(result: Atlas) -> str:
    """Return what is shown of what."""
    number = sum(layer.number for layer in result.layers)
    alive = sum(layer.alive for layer in result.layers)
    of = f"{count(number, 'component')} of {count(len(result.layers), 'layer')}"
    return f"{of} on {count(result.samples, 'sample')}: {alive} fire"


def written(result: Atlas) -> str:
    """Return what was written and how large it is; empty where nothing was."""
    return f"{result.outputs[0]}: {size(result.size)}" if result.outputs else ""


def importance_name(layer: AtlasLayer) -> str:
    """Return what the components of a layer are ranked by."""
    return "mean importance" if layer.has_importances else "mean |activation|"


def legend(result: Atlas) -> list[str]:
    """Return what the pictures and numbers are, in sentences without a stop."""
    gated = any(layer.has_importances for layer in result.layers)
    fires = (
        f"a component fires where its causal importance is above {result.threshold:g}"
        if gated
        else f"a component fires where its absolute activation is above {result.threshold:g} of its own greatest; the "
        "source has no causal importances"
    )
    said = [
        "reads: V, the pattern in a layer's input that the component detects, on a scale of its own",
        "writes to: the output channels with the greatest weights in U",
        f"fires: {fires}; the picture has the share of samples at each place, the brightest is the figure below it",
    ]
    if any(c.tops for layer in result.layers for c in layer.components):
        strength = "importance times activation" if gated else "activation"
        marked = ", and the marked part is what that place reads" if result.thumbnails else ""
        said.append(f"samples: those with the greatest {strength} at any place{marked}")
    if result.effect_samples:
        said.append(
            f"removal: what the outputs ({result.output}) do without the component, from {result.baseline}, on "
            f"{count(result.effect_samples, 'sample')}: KL divergence of the softmax in nats, and how many samples "
            "change their top class"
        )
    return said


def table(result: Atlas) -> FittingTable:
    """Return a row for each layer."""
    made = results_table("layer", "C", "fire", "most important", "importance", "greatest effect")
    for layer in result.layers:
        first = layer.components[0]
        effects = [(_size(one), one.index) for one in layer.components if one.effect is not None]
        greatest = max(effects, key=lambda pair: pair[0], default=None)
        made.add_row(
            Text(one_line(layer.name)),
            str(layer.number),
            str(layer.alive),
            str(first.index),
            ratio(first.importance),
            "-" if greatest is None else f"{ratio(greatest[0])} ({greatest[1]})",
        )
    return made


def remarks(result: Atlas) -> list[str]:
    """Return what the columns of the table are."""
    kinds = dict.fromkeys(importance_name(layer) for layer in result.layers)
    said = [f"importance: {' or '.join(kinds)}, over all samples and places"]
    if result.effect_samples:
        of = "KL divergence of the softmax, in nats" if _has_classes(result) else "2-norm of the change"
        samples = count(result.effect_samples, "sample")
        said.append(f"effect: of removing the component in brackets, from {result.baseline}, on {samples}: {of}")
    return said


def _has_classes(result: Atlas) -> bool:
    return any(c.effect is not None and c.effect.kl is not None for layer in result.layers for c in layer.components)


def _size(one: Component) -> float:
    assert one.effect is not None, "those without an effect are left out"
    return one.effect.change if one.effect.kl is None else one.effect.kl


def atlas_json(result: Atlas) -> dict[str, Any]:
    """Return the names of the JSON report: all facts of the page, without its pictures."""
    return {
        "name": result.name,
        "samples": result.samples,
        "threshold": result.threshold,
        "effects": None
        if not result.effect_samples
        else {"output": result.output, "baseline": result.baseline, "samples": result.effect_samples},
        "layers": [
            {
                "name": layer.name,
                "components": layer.number,
                "alive": layer.alive,
                "places": list(layer.places),
                "reads_pixels": None if layer.field is None else list(layer.field),
                "importance": importance_name(layer),
                "shown": [_component_json(one) for one in layer.components],
            }
            for layer in result.layers
        ],
        **made_json(result),
    }


def _component_json(one: Component) -> dict[str, Any]:
    return {
        "index": one.index,
        "alive": one.is_alive,
        "mean_importance": one.mean_importance,
        "peak_importance": one.peak_importance,
        "mean_activation": one.mean_activation,
        "firing": one.firing,
        "effect": None if one.effect is None else asdict(one.effect),
        "outputs": [{"channel": channel, "weight": weight} for channel, weight in one.outputs],
        "samples": [
            {
                "sample": top.sample,
                "place": list(top.place),
                "activation": top.activation,
                "importance": top.importance,
                "box": None if top.box is None else asdict(top.box),
            }
            for top in one.tops
        ],
    }
