"""The causal-importance functions of SPD checkpoints, in the layouts of all generations of its code."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from functools import cached_property
from typing import TYPE_CHECKING, Any, Self

from spdexport.arrays import to_numpy
from spdexport.errors import ComponentsError, UsageError
from spdexport.gates import GateFunction, GateKind, GateLayer, Sigmoid
from spdexport.sources.run_config import RunConfig, read_config
from spdexport.sources.spd_global_gates import NANO, global_function

if TYPE_CHECKING:
    from pathlib import Path

    import numpy as np
    import torch

    from spdexport.gates import GlobalFunction
    from spdexport.sources.spd_layouts import Layout

_PREFIXES = ("ci_fn._ci_fns.", "_ci_fns.", "_gates.", "gates.")
_GLOBAL = ("ci_fn._global_ci_fn.", *(NANO,))
_PART = re.compile(r"(?:layers\.(?P<index>\d+)|(?P<linear>linear))\.(?P<what>[Wb]|weight|bias)")
_LEAVE = "Leave the gates out, or give the checkpoint as SPD wrote it."


class Gates(Mapping[str, GateFunction]):
    """The functions by the names that a run's components have, each read when it is asked for.

    Args:
        state: The checkpoint.
        layers: The names of the layers with components, with the C of each.
        layout: The checkpoint's layout.
        folders: Where the run's configuration is looked for, one after the other.
        where: The file, for messages.
        chosen: The sigmoid that the user tells; None where the configuration has to.
    """

    def __init__(
        self,
        state: Mapping[str, torch.Tensor],
        layers: Mapping[str, int],
        *,
        layout: Layout,
        folders: Iterable[Path],
        where: str,
        chosen: Sigmoid | None = None,
    ) -> None:
        self._state, self._layout, self._where, self._chosen = state, layout, where, chosen
        self._folders, self._sizes = tuple(folders), dict(layers)
        is_nano = layout.name == "nano"
        self._global = next(
            (p for p in _GLOBAL if (p != NANO or is_nano) and any(key.startswith(p) for key in state)), None
        )
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
        self._layers = list(layers) if self._global else list(self._found)

    def with_sigmoid(self, chosen: Sigmoid | None) -> Self:
        """Return the same functions with the sigmoid that the user tells; None leaves it to the configuration."""
        return type(self)(
            self._state, self._sizes, layout=self._layout, folders=self._folders, where=self._where, chosen=chosen
        )

    @property
    def is_global(self) -> bool:
        """Whether there is one function for all layers, which ``global_function`` gives."""
        return self._global is not None

    def __getitem__(self, layer: str) -> GateFunction:
        """The function of a layer.

        Raises:
            KeyError: The run has none for it alone.
            ComponentsError: It cannot be read, or nothing tells its sigmoid.
            UsageError: The sigmoid that was chosen is not the run's.
        """
        parts = self._found[layer]
        try:
            return _function(parts, self._sigmoid, self._kind)
        except ValueError as error:
            raise self._unreadable(f"The causal-importance function of {layer}", error, f"layer {layer}") from error

    def __iter__(self) -> Iterator[str]:
        """The layers that have one."""
        return iter(self._layers)

    def __len__(self) -> int:
        """How many layers have one."""
        return len(self._layers)

    def global_function(self, names: Mapping[str, str]) -> GlobalFunction:
        """Return the one function of all layers.

        Args:
            names: The model's own names of the layers, by those that the file has, in the order of the model's modules.

        Raises:
            ComponentsError: It cannot be read, or nothing tells its sigmoid.
            UsageError: The sigmoid that was chosen is not the run's.
        """
        assert self._global is not None, "asked for where there is one"
        arrays = {
            key.removeprefix(self._global): to_numpy(tensor)
            for key, tensor in self._state.items()
            if key.startswith(self._global)
        }
        sizes = {names[layer]: size for layer, size in self._sizes.items() if layer in names}
        order = {name: sizes[name] for name in names.values() if name in sizes}
        try:
            return global_function(arrays, order, self._config, self._sigmoid, nano=self._global == NANO)
        except ValueError as error:
            what = "The causal-importance function of all layers"
            raise self._unreadable(what, error, f"{self._global}*") from error

    def _unreadable(self, what: str, error: ValueError, place: str) -> ComponentsError:
        return ComponentsError(f"{what} cannot be read: {error}.", where=f"{self._where}, {place}", hint=_LEAVE)

    @property
    def note(self) -> str | None:
        """What the user should know of where the sigmoid comes from; None where the run tells it."""
        if not self._layers or self._chosen is None or self._layout.sigmoid is not None:
            return None
        if self._config.text("sigmoid_type") is not None:
            return None
        return f"the sigmoid of the importances is {self._chosen}, as --sigmoid says: {self._config.told} tells it"

    @property
    def alive_above(self) -> float | None:
        """The importance above which the run's own configuration counts a component as alive; None if it says none."""
        return self._config.number("ci_alive_threshold")

    @cached_property
    def _config(self) -> RunConfig:
        """The configuration, which is read for the first function that is asked for."""
        return read_config(*self._folders)

    @property
    def _sigmoid(self) -> Sigmoid:
        """The sigmoid that the run tells, or the user.

        Raises:
            ComponentsError: Neither does.
            UsageError: They differ.
            ValueError: The run tells one that is not known, or several.
        """
        told = self._layout.sigmoid or self._config.text("sigmoid_type")
        known = [sigmoid for sigmoid in Sigmoid if sigmoid is not Sigmoid.PAPER or self._layout.sigmoid == sigmoid]
        if told is not None and told not in [sigmoid.value for sigmoid in known]:
            names = ", ".join(sigmoid for sigmoid in known)
            raise ValueError(f"{self._config.told} has sigmoid_type {told!r}, and known are {names}")
        if told is None and self._chosen is None:
            raise ComponentsError(
                "Nothing tells the sigmoid of the run's causal-importance functions, and each gives other importances.",
                where=f"{self._where}: {self._config.told} has a sigmoid_type",
                hint="Put the run's configuration beside the checkpoint, or give --sigmoid leaky_hard (SPD's default) "
                "or another.",
            )
        if told is not None and self._chosen is not None and told != self._chosen:
            raise UsageError(
                f"The run's causal-importance functions have the sigmoid {told}, not {self._chosen}.",
                where=f"--sigmoid {self._chosen}, {self._where}",
                hint="Leave the option out.",
            )
        if told is not None:
            return Sigmoid(told)
        assert self._chosen is not None, "one of the two is there"
        return self._chosen

    @property
    def _kind(self) -> GateKind | None:
        """The kind that the configuration tells; None where it tells none that is known."""
        nested = self._config.section("ci_config").get("fn_type")
        told = nested if isinstance(nested, str) else self._config.text("ci_fn_type", "gate_type")
        return next((kind for kind in GateKind if kind.value == told), None)


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
