"""The page of an atlas: every component with its pictures, which a browser sorts and filters."""

from __future__ import annotations

import base64
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from spdexport import __version__
from spdexport.invocation import command_line
from spdexport.names import count, shape_of
from spdexport.report.atlases import importance_name, legend, title
from spdexport.report.numbers import ratio
from spdexport.report.pages import CARDS, date, page_environment
from spdexport.report.terminal import version_texts

if TYPE_CHECKING:
    from spdexport.atlases.result import Atlas, AtlasLayer, Box, Component, Picture, Top

WEIGHTS_SIZE, PLACES_SIZE = 104, 84
"""The sides, in pixels of the page, that pictures are enlarged to by whole numbers."""


def to_page(result: Atlas) -> str:
    """Return an atlas as one HTML page, which loads nothing."""
    environment = page_environment(CARDS)
    return environment.get_template("atlas.html.jinja").render(_values(result))


def _values(result: Atlas) -> dict[str, Any]:
    gated = any(layer.has_importances for layer in result.layers)
    orders = {"importance": "by importance" if gated else "by activation", "firing": "by firing"}
    orders |= {"effect": "by effect of removal"} if result.effect_samples else {}
    shown = sum(len(layer.components) for layer in result.layers)
    alive = sum(layer.alive for layer in result.layers)
    number = sum(layer.number for layer in result.layers)
    return {
        "name": result.name,
        "title": title(result),
        "tiles": [
            {"what": "layers", "after": str(len(result.layers))},
            {"what": f"of {count(number, 'component')} fire", "after": str(alive)},
            {"what": "components shown", "after": str(shown)},
            {"what": "samples", "after": str(result.samples)},
        ],
        "legend": legend(result),
        "orders": {**orders, "index": "by number"},
        "layers": [_layer(layer, result) for layer in result.layers],
        "shape": result.image,
        "thumbnails": {sample: _source(picture) for sample, picture in result.thumbnails.items()},
        "notes": result.notes,
        "hashes": result.hashes,
        "seed": result.seed,
        "versions": version_texts(result.versions),
        "command": command_line(),
        "date": date(),
        "made_by": f"spdexport {__version__}",
    }


def _layer(layer: AtlasLayer, result: Atlas) -> dict[str, Any]:
    left = layer.number - len(layer.components)
    told = [f"V: {layer.reads}"]
    if layer.places:
        told.append(f"{shape_of(layer.places)} places")
    if layer.field is not None:
        told.append(f"a place reads {shape_of(layer.field)} pixels")
    return {
        "name": layer.name,
        "anchor": quote(f"layer/{layer.name}"),
        "told": "; ".join(told),
        "number": layer.number,
        "alive": layer.alive,
        "components": [_component(layer, one, result) for one in layer.components],
        "left": f"{count(left, 'component')} of less importance not shown; --top shows more" if left else "",
    }


def _component(layer: AtlasLayer, one: Component, result: Atlas) -> dict[str, Any]:
    name = f"{layer.name}:{one.index}"
    greatest = max((abs(weight) for _, weight in one.outputs), default=1.0)
    effect = one.effect
    return {
        "name": name,
        "anchor": quote(name),
        "index": one.index,
        "label": one.label or "",
        "alive": one.is_alive,
        "importance": one.importance,
        "firing": one.firing,
        "effect": "" if effect is None else effect.change if effect.kl is None else effect.kl,
        "reads": _enlarged(one.reads, WEIGHTS_SIZE),
        "fires": None if one.fires is None else _enlarged(one.fires, PLACES_SIZE),
        "most": _share(one.most),
        "writes": [
            {
                "name": channel,
                "kind": "up" if weight > 0 else "down",
                "share": round(100 * abs(weight) / greatest, 1),
                "weight": f"{weight:+.2g}",
            }
            for channel, weight in one.outputs
        ],
        "facts": _facts(layer, one),
        "tops": [_top(top, result) for top in one.tops],
    }


def _facts(layer: AtlasLayer, one: Component) -> list[tuple[str, str]]:
    facts = []
    if one.mean_importance is not None:
        facts.append(("importance", f"{ratio(one.mean_importance)} mean, {ratio(one.peak_importance)} peak"))
    else:
        facts.append((importance_name(layer), ratio(one.mean_activation)))
    facts.append(("fires", f"{_share(one.firing)}{' of samples and places' if layer.places else ' of samples'}"))
    if one.effect is not None:
        effect = one.effect
        parts = [] if effect.kl is None else [f"KL {ratio(effect.kl)}"]
        parts += [] if effect.top_changed is None else [f"{_share(effect.top_changed)} change class"]
        parts += [f"outputs by {_share(effect.relative)}"] if effect.kl is None else []
        facts.append(("removal", ", ".join(parts)))
    return facts


def _share(share: float) -> str:
    """A share in percent, with no more digits than it is worth."""
    if 0 < share < 0.001:
        return f"{100 * share:.1g}%"
    return f"{100 * share:.0f}%" if share >= 0.1 or share == 0 else f"{100 * share:.1f}%"


def _top(top: Top, result: Atlas) -> dict[str, Any]:
    where = f", place {', '.join(map(str, top.place))}" if top.place else ""
    importance = "" if top.importance is None else f", importance {ratio(top.importance)}"
    return {
        "sample": top.sample,
        "title": f"sample {top.sample}{where}: activation {ratio(top.activation)}{importance}",
        "value": ratio(top.activation),
        "picture": top.sample in result.thumbnails,
        "box": None if top.box is None else _style(top.box),
    }


def _style(box: Box) -> str:
    sides = {"top": box.top, "left": box.left, "right": 1 - box.right, "bottom": 1 - box.bottom}
    return ";".join(f"{side}:{100 * share:.4g}%" for side, share in sides.items())


def _enlarged(picture: Picture, size: int) -> dict[str, Any]:
    times = max(min(size // picture.width, size // picture.height), 1)
    return {"src": _source(picture), "width": picture.width * times, "height": picture.height * times}


def _source(picture: Picture) -> str:
    return f"data:image/png;base64,{base64.b64encode(picture.png).decode()}"
