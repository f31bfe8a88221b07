"""The causal-importance functions of SPD checkpoints, in the layouts of all generations of its code."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar

import yaml

from spdexport.arrays import to_numpy
from spdexport.errors import ComponentsError
from spdexport.files.reading import reading
from spdexport.files.sniff import read_text
from spdexport.gates import GateFunction, GateKind, GateLayer, Sigmoid
from spdexport.sources.run_files import CONFIG

if TYPE_CHECKING:
    from pathlib import Path

    import numpy as np
    import torch

    from spdexport.sources.spd_layouts import Layout

_CONFIG_HINT = "Copy it again, or remove it: only the causal-importance functions need it."
_CONFIG_SIZE = 1 << 18
"""Characters of a configuration, and values with those that aliases repeat; SPD's have a few thousand."""

_PREFIXES = ("ci_fn._ci_fns.", "_ci_fns.", "_gates.", "gates.")
_GLOBAL = "ci_fn._global_ci_fn."
_PART = re.compile(r"(?:layers\.(?P<index>\d+)|(?P<linear>linear))\.(?P<what>[Wb]|weight|bias)")


class Gates(Mapping[str, GateFunction]):
    """The functions by the names that a run's components have, each read when it is asked for.

    Args:
        state: The checkpoint.
        layers: The names of the layers with components.
        layout: The checkpoint's layout.
        folder: Where the run's configuration is looked for; None for nowhere.
        where: The file, for messages.
    """

    default: ClassVar[Sigmoid] = Sigmoid.LEAKY_HARD

    def __init__(
        self,
        state: Mapping[str, torch.Tensor],
        layers: Iterable[str],
        *,
        layout: Layout,
        folder: Path | None,
        where: str,
    ) -> None:
        self._layout, self._folder, self._where = layout, folder, where
        self._is_global = any(key.startswith(_GLOBAL) for key in state)
        self._found: dict[str, dict[str, torch.Tensor]] = {}
        # '.' was turned into '-' in these names by every generation: they are found from the layer's side.
        dashed = {layer.replace(".", "-"): layer for layer in layers}
        for key, tensor in state.items():
            prefix = next((p for p in _PREFIXES if key.startswith(p)), None)
            if prefix is None:
                continue
            name, _, rest = key.removeprefix(prefix).partition(".")
            if name in dashed:
                self._found.setdefault(dashed[name], {})[rest] = tensor
        self._layers = list(dashed.values()) if self._is_global else list(self._found)

    def __getitem__(self, layer: str) -> GateFunction:
        """The function of a layer.

        Raises:
            KeyError: The run has none for it.
            ComponentsError: It cannot be read, or is one that belongs to no single layer.
        """
        if self._is_global:
            raise ComponentsError(
                "The run has one global causal-importance function for all layers, which is not supported.",
                where=f"{self._where}, {_GLOBAL}*",
                hint="Leave the gates out, or give a run with a function for each layer.",
            )
        try:
            return _function(self._found[layer], self._sigmoid, self._kind)
        except ValueError as error:
            raise ComponentsError(
                f"The causal-importance function of {layer} cannot be read: {error}.",
                where=f"{self._where}, layer {layer}",
                hint="Leave the gates out, or give the checkpoint as SPD wrote it.",
            ) from error

    def __iter__(self) -> Iterator[str]:
        """The layers that have one."""
        return iter(self._layers)

    def __len__(self) -> int:
        """How many layers have one."""
        return len(self._layers)

    @property
    def note(self) -> str | None:
        """What had to be guessed; None where the run tells all."""
        if not self._layers or self._layout.name == "paper" or self._told("sigmoid_type") is not None:
            return None
        return f"no {CONFIG} tells the sigmoid of the importances: {self.default}, the default of SPD, is taken"

    @cached_property
    def _config(self) -> Mapping[str, Any]:
        """The configuration, which is read for the first function that is asked for."""
        return {} if self._folder is None else read_config(self._folder)

    @property
    def _sigmoid(self) -> Sigmoid:
        if self._layout.name == "paper":
            return Sigmoid.PAPER
        told = self._told("sigmoid_type")
        if told is None:
            return self.default
        known = [sigmoid for sigmoid in Sigmoid if sigmoid is not Sigmoid.PAPER]
        if told not in [sigmoid.value for sigmoid in known]:
            raise ValueError(f"{CONFIG} has sigmoid_type {told!r}, and known are {', '.join(known)}")
        return Sigmoid(told)

    @property
    def _kind(self) -> GateKind | None:
        """The kind that the configuration tells; None where it tells none that is known."""
        ci_config = self._config.get("ci_config")
        nested = ci_config.get("fn_type") if isinstance(ci_config, Mapping) else None
        told = nested or self._told("ci_fn_type") or self._told("gate_type")
        return next((kind for kind in GateKind if kind.value == told), None)

    def _told(self, name: str) -> str | None:
        value = self._config.get(name)
        return value if isinstance(value, str) else None


def _function(parts: Mapping[str, torch.Tensor], sigmoid: Sigmoid, told: GateKind | None) -> GateFunction:
    """A function from its parameters by the names that they have behind the layer's.

    Raises:
        ValueError: Parameters are missing, of unknown names, or do not fit one another.
    """
    arrays = {name: to_numpy(tensor) for name, tensor in parts.items()}
    if "mlp_in" in arrays:
        layers = _paper_mlp(arrays)
        return GateFunction(kind=GateKind.MLP, layers=layers, sigmoid=sigmoid)
    if set(arrays) == {"weight", "bias"}:
        weight, bias = (arrays[name].reshape(-1) for name in ("weight", "bias"))
        only = GateLayer(weight=weight[:, None, None], bias=bias[:, None])
        return GateFunction(kind=GateKind.LINEAR, layers=(only,), sigmoid=sigmoid)
    found: dict[int, dict[str, np.ndarray[Any, Any]]] = {}
    is_linear = False
    for name, array in arrays.items():
        match = _PART.fullmatch(name)
        if match is None:
            raise ValueError(f"it has a parameter {name!r}, which no known function has")
        is_linear |= match["linear"] is not None
        what = {"weight": "W", "bias": "b"}.get(match["what"], match["what"])
        found.setdefault(int(match["index"] or 0), {})[what] = array
    for index, pair in found.items():
        if set(pair) != {"W", "b"}:
            raise ValueError(f"map {index} has {' and '.join(pair)} alone")
    layers = tuple(GateLayer(weight=found[i]["W"], bias=found[i]["b"]) for i in sorted(found))
    if not layers:
        raise ValueError("it has no parameters")
    return GateFunction(kind=GateKind.LINEAR if is_linear else _kind_of(layers, told), layers=layers, sigmoid=sigmoid)


def _kind_of(layers: tuple[GateLayer, ...], told: GateKind | None) -> GateKind:
    """The kind by the shapes, which tell all but a vector of one entry from an activation."""
    first = layers[0].weight
    if first.ndim == 2:
        return GateKind.SHARED_MLP
    if first.ndim == 3 and first.shape[1] != 1:
        return GateKind.VECTOR_MLP
    return GateKind.VECTOR_MLP if told is GateKind.VECTOR_MLP else GateKind.MLP


def _paper_mlp(arrays: Mapping[str, np.ndarray[Any, Any]]) -> tuple[GateLayer, ...]:
    """The two maps of the paper branch: mlp_in and in_bias (C, hidden), mlp_out (C, hidden), out_bias (C,)."""
    needed = ("mlp_in", "in_bias", "mlp_out", "out_bias")
    missing = [name for name in needed if name not in arrays]
    if missing or len(arrays) != len(needed):
        raise ValueError(f"it has {', '.join(arrays)} where {', '.join(needed)} belong together")
    inner, outer = arrays["mlp_in"], arrays["mlp_out"]
    if inner.ndim != 2 or inner.shape != outer.shape:
        raise ValueError(f"mlp_in is {inner.shape} and mlp_out is {outer.shape}")
    return (
        GateLayer(weight=inner[:, None, :], bias=arrays["in_bias"]),
        GateLayer(weight=outer[:, :, None], bias=arrays["out_bias"].reshape(-1, 1)),
    )


def read_config(folder: Path) -> Mapping[str, Any]:
    """The configuration of the run that a folder holds; empty where it holds none.

    Raises:
        ComponentsError: It is there and no YAML mapping.
    """
    path = folder / CONFIG
    if not path.is_file():
        return {}
    what, hint = "The configuration of the run is no YAML", _CONFIG_HINT
    text = read_text(path, error=ComponentsError, what=what, hint=hint)
    with reading(path, error=ComponentsError, what=what, hint=hint):
        _check_yaml(text)
        content: object = yaml.safe_load(text)
    if not isinstance(content, dict):
        raise ComponentsError(
            "The configuration of the run holds no names and values.",
            where=str(path),
            hint=_CONFIG_HINT,
        )
    return content


def _check_yaml(text: str) -> None:
    """Refuse a text that is far more than a configuration: in itself, or by what its aliases repeat.

    Raises:
        ValueError: It is.
        yaml.YAMLError: It is no YAML.
    """
    if len(text) > _CONFIG_SIZE:
        raise ValueError(f"it has {len(text)} characters, and no configuration has {_CONFIG_SIZE}")
    root = yaml.compose(text, Loader=yaml.SafeLoader)
    if root is not None and _expanded(root, {}) > _CONFIG_SIZE:
        raise ValueError("its aliases repeat too much")


def _expanded(node: yaml.Node, known: dict[int, int]) -> int:
    """How many nodes there would be if each alias were written out."""
    if id(node) in known:
        return known[id(node)]
    known[id(node)] = _CONFIG_SIZE  # what a node is worth that holds itself
    children: list[yaml.Node] = []
    if isinstance(node, yaml.SequenceNode):
        children = node.value
    elif isinstance(node, yaml.MappingNode):
        children = [child for pair in node.value for child in pair]
    known[id(node)] = 1 + sum(_expanded(child, known) for child in children)
    return known[id(node)]
