"""The key layouts of SPD checkpoints, one row for each generation of the SPD code."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    import torch

    State = Mapping[str, torch.Tensor]

INSERTED = "pre_identity"
"""What SPD calls the module that it puts inside of a layer, and in front of it, to decompose an identity."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FactorKey:
    """What the key of a V or U says.

    Attributes:
        layer: The layer's name as the file has it.
        factor: ``V`` or ``U``, in today's words.
        identity: Whether the factor belongs to an identity inserted in front of the layer.
    """

    layer: str
    factor: str
    identity: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """One generation of keys.

    Attributes:
        name: The date, branch or code it was first seen in.
        factors: Matches the whole key of a factor, with the groups ``layer`` and ``factor``.
        needs: Each has to match the beginning of some key: they tell layouts apart whose other keys agree, and keep an
            ordinary state dict with submodules called ``model`` and ``components`` from being taken for a run.
        dense_of: Gives the dense weights by the model's own parameter names; it is given the layers with factors.
        dashed: Whether '.' is '-' in layer names.
        sigmoid: The one that all runs of this generation have, as ``sigmoid_type`` calls it; None where runs choose.
    """

    name: str
    factors: re.Pattern[str]
    needs: tuple[re.Pattern[str], ...]
    dense_of: Callable[[State, frozenset[str]], dict[str, torch.Tensor]]
    dashed: bool = True
    sigmoid: str | None = None

    modern_names: ClassVar[Mapping[str, str]] = {"A": "V", "B": "U", "V": "V", "U": "U"}

    def read(self, key: str) -> FactorKey | None:
        """Return what a key says, or None where it is no factor's key."""
        match = self.factors.fullmatch(key)
        if match is None:
            return None
        layer, suffix = match["layer"], ("-" if self.dashed else ".") + INSERTED
        inserted = layer.endswith(suffix)
        return FactorKey(
            layer=layer.removesuffix(suffix),
            factor=self.modern_names[match["factor"]],
            identity=inserted or bool(match.groupdict().get("identity")),
        )

    def fits(self, keys: Iterable[str]) -> bool:
        """Return whether the keys are of this layout."""
        keys = tuple(keys)
        return all(any(need.match(key) for key in keys) for need in self.needs) and any(
            self.factors.fullmatch(key) for key in keys
        )

    def dense(self, state: State) -> dict[str, torch.Tensor]:
        """Return the dense weights by the model's own parameter names; none where only what was learned is there."""
        layers = frozenset(read.layer for key in state if (read := self.read(key)) is not None)
        return self.dense_of(state, layers)

    def inserted(self, layer: str) -> str:
        """Return the name of the identity in front of a layer, as the file would have it."""
        return layer + ("-" if self.dashed else ".") + INSERTED


def _below(prefix: str) -> Callable[[State, frozenset[str]], dict[str, torch.Tensor]]:
    """All that has a prefix, without it."""
    return lambda state, _: {k.removeprefix(prefix): t for k, t in state.items() if k.startswith(prefix)}


def _nothing(_: State, __: frozenset[str]) -> dict[str, torch.Tensor]:
    return {}


def _beside(state: State, layers: frozenset[str]) -> dict[str, torch.Tensor]:
    """The layer's module was replaced by one that holds the original beside the components.

    Only a module that has components is such a replacement: a model may have a submodule called ``original`` itself.
    """
    dense = {}
    for name, tensor in _below("patched_model.")(state, layers).items():
        match = _REPLACED.fullmatch(name)
        if match is None or match["layer"] not in layers:
            dense[name] = tensor
        elif match["part"] == "original":
            dense[f"{match['layer']}.{match['rest']}"] = tensor
    return dense


def _componentized(state: State, layers: frozenset[str]) -> dict[str, torch.Tensor]:
    """The layer's module was replaced by one with the components inside, and the dense weight as ``target_weight``."""
    below = _below("model.")(state, layers)
    if not any(name.endswith(".target_weight") for name in below):
        return {}
    dense = {}
    for name, tensor in below.items():
        layer, _, last = name.rpartition(".")
        if layer in layers and last == "target_weight":
            dense[f"{layer}.weight"] = tensor
        elif layer.removesuffix(".components") in layers and layer.endswith(".components"):
            if last == "bias":
                dense.setdefault(f"{layer.removesuffix('.components')}.bias", tensor)
        else:
            dense[name] = tensor
    return dense


def _fused(state: State, layers: frozenset[str]) -> dict[str, torch.Tensor]:
    """The layer's module was replaced by one that holds V and U beside the original, called ``linear``."""
    dense = {}
    for name, tensor in _below("target_model.")(state, layers).items():
        layer, _, last = name.rpartition(".")
        outer = layer.removesuffix(".linear")
        if outer in layers and outer != layer:
            dense[f"{outer}.{last}"] = tensor
        elif not (layer in layers and last in ("V", "U")):
            dense[name] = tensor
    return dense


def _nano(prefix: str) -> Callable[[State, frozenset[str]], dict[str, torch.Tensor]]:
    """The layer's module was replaced by one that holds V, U and the dense weight as ``W_target``."""

    def dense_of(state: State, layers: frozenset[str]) -> dict[str, torch.Tensor]:
        dense = {}
        for name, tensor in _below(prefix)(state, layers).items():
            layer, _, last = name.rpartition(".")
            if layer in layers and last in ("V", "U"):
                continue
            dense[f"{layer}.weight" if layer in layers and last == "W_target" else name] = tensor
        return dense

    return dense_of


_DASHED_AB = re.compile(r"components\.(?P<layer>[^.]+)\.(?P<factor>[AB])")
_DASHED_VU = re.compile(r"components\.(?P<layer>[^.]+)\.(?P<factor>[VU])")
_HIDDEN_VU = re.compile(r"_components\.(?P<layer>[^.]+)\.(?P<factor>[VU])")
_IN_PLACE = re.compile(r"patched_model\.(?P<layer>.+)\.(?P<identity>identity_)?components\.(?P<factor>[VU])")
_REPLACED = re.compile(r"(?P<layer>.+?)\.(?P<part>original|components|identity_components)\.(?P<rest>.+)")
_IN_TREE = re.compile(r"model\.(?P<layer>.+)\.components\.(?P<factor>[VU])")
_FUSED = re.compile(r"target_model\.(?P<layer>.+)\.(?P<factor>[VU])")
_NANO = re.compile(r"(?P<layer>.+)\.(?P<factor>[VU])")
_NANO_TARGET = re.compile(r"target\.(?P<layer>.+)\.(?P<factor>[VU])")

_WRAPPED = 3
"""Wrappers around wrappers that are seen through."""


def _starts(*prefixes: str) -> tuple[re.Pattern[str], ...]:
    return tuple(re.compile(re.escape(prefix)) for prefix in prefixes)


_TARGET = _below("target_model.")

LAYOUTS = (
    Layout(name="dev", factors=_HIDDEN_VU, needs=_starts("target_model.", "ci_fn."), dense_of=_TARGET),
    Layout(name="2025-09-23", factors=_HIDDEN_VU, needs=_starts("target_model.", "_gates."), dense_of=_TARGET),
    # Its causal-importance functions (``_ci_fns.``) are not asked for: a run from which they were removed loads too.
    Layout(name="current", factors=_HIDDEN_VU, needs=_starts("target_model."), dense_of=_TARGET),
    # What was learned alone: the dense weights are those of the model that the configuration names.
    Layout(name="learned", factors=_HIDDEN_VU, needs=_starts("ci_fn."), dense_of=_nothing),
    Layout(
        name="2025-07-22", factors=_IN_PLACE, needs=_starts("patched_model."), dense_of=_beside, dashed=False,
    ),
    Layout(name="2025-07-16", factors=_DASHED_VU, needs=_starts("model.", "gates."), dense_of=_below("model.")),
    Layout(
        name="paper", factors=_DASHED_AB, needs=_starts("model.", "gates."), dense_of=_below("model."), sigmoid="paper",
    ),
    Layout(
        name="language model", factors=_IN_TREE, needs=(re.compile(r"model\..+\.target_weight$"),),
        dense_of=_componentized, dashed=False,
    ),
    Layout(name="language model", factors=_IN_TREE, needs=_starts("ci_fn."), dense_of=_componentized, dashed=False),
    Layout(
        name="fused", factors=_FUSED, needs=(re.compile(r"target_model\..+\.linear\.weight$"),), dense_of=_fused,
        dashed=False,
    ),
    Layout(
        name="nano", factors=_NANO_TARGET, needs=(re.compile(r"target\..+\.W_target$"),), dense_of=_nano("target."),
        dashed=False, sigmoid="leaky_hard",
    ),
    Layout(
        name="nano", factors=_NANO, needs=(re.compile(r".+\.W_target$"),), dense_of=_nano(""), dashed=False,
        sigmoid="leaky_hard",
    ),
)  # fmt: skip
"""All layouts; the first that fits is the one."""


def recognize(keys: Iterable[str]) -> Layout | None:
    """Return the layout of these keys, or None where they are not those of an SPD checkpoint."""
    keys = tuple(keys)
    return next((layout for layout in LAYOUTS if layout.fits(keys)), None)


def without_wrappers(state: Mapping[str, torch.Tensor]) -> Mapping[str, torch.Tensor]:
    """Return a checkpoint without what DataParallel and torch.compile put before all of its keys."""
    keys = list(state)
    for _ in range(_WRAPPED):
        wrapper = next((w for w in ("module.", "_orig_mod.") if keys and all(key.startswith(w) for key in keys)), None)
        if wrapper is None:
            break
        keys = [key.removeprefix(wrapper) for key in keys]
    return dict(zip(keys, state.values(), strict=True))
