"""The key layouts of SPD checkpoints, one row for each generation of the SPD code."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    import torch

# Identity components of the newer layouts belong to a module of this name that SPD puts inside the layer.
_INSERTED = "-pre_identity"


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
        name: The date or branch it was first seen in.
        target: Prefix of the dense weights.
        factors: Matches the whole key of a factor, with the groups ``layer`` and ``factor``.
        also: A prefix that must occur too: it tells layouts apart whose other keys agree, and keeps an ordinary state
            dict with submodules called ``model`` and ``components`` from being taken for a run. Empty: none.
        dashed: Whether '.' is '-' in layer names.
    """

    name: str
    target: str
    factors: re.Pattern[str]
    also: str = ""
    dashed: bool = True

    modern_names: ClassVar[Mapping[str, str]] = {"A": "V", "B": "U", "V": "V", "U": "U"}

    def read(self, key: str) -> FactorKey | None:
        """What a key says, or None where it is no factor's key."""
        match = self.factors.fullmatch(key)
        if match is None:
            return None
        layer = match["layer"]
        inserted = self.dashed and layer.endswith(_INSERTED)
        return FactorKey(
            layer=layer.removesuffix(_INSERTED) if inserted else layer,
            factor=self.modern_names[match["factor"]],
            identity=inserted or bool(match.groupdict().get("identity")),
        )

    def fits(self, keys: Iterable[str]) -> bool:
        """Whether the keys are of this layout."""
        keys = tuple(keys)
        return (
            any(key.startswith(self.target) for key in keys)
            and any(key.startswith(self.also) for key in keys)
            and any(self.factors.fullmatch(key) for key in keys)
        )

    def dense(self, state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """The dense weights by the model's own parameter names."""
        if self.dashed:
            return {k.removeprefix(self.target): t for k, t in state.items() if k.startswith(self.target)}
        # The layer's module was replaced by one that holds the original beside the components. Only a module that
        # has components is such a replacement: a model may have a submodule called ``original`` of its own.
        replaced = {read.layer for key in state if (read := self.read(key)) is not None}
        dense = {}
        for key, tensor in state.items():
            if not key.startswith(self.target):
                continue
            name = key.removeprefix(self.target)
            match = _REPLACED.fullmatch(name)
            if match is None or match["layer"] not in replaced:
                dense[name] = tensor
            elif match["part"] == "original":
                dense[f"{match['layer']}.{match['rest']}"] = tensor
        return dense


_DASHED_AB = re.compile(r"components\.(?P<layer>[^.]+)\.(?P<factor>[AB])")
_DASHED_VU = re.compile(r"components\.(?P<layer>[^.]+)\.(?P<factor>[VU])")
_HIDDEN_VU = re.compile(r"_components\.(?P<layer>[^.]+)\.(?P<factor>[VU])")
_IN_PLACE = re.compile(r"patched_model\.(?P<layer>.+)\.(?P<identity>identity_)?components\.(?P<factor>[VU])")
_REPLACED = re.compile(r"(?P<layer>.+?)\.(?P<part>original|components|identity_components)\.(?P<rest>.+)")

_WRAPPED = 3
"""Wrappers around wrappers that are seen through."""

LAYOUTS = (
    Layout(name="dev", target="target_model.", factors=_HIDDEN_VU, also="ci_fn."),
    Layout(name="2025-09-23", target="target_model.", factors=_HIDDEN_VU, also="_gates."),
    # Its causal-importance functions (``_ci_fns.``) are not asked for: a run from which they were removed loads too.
    Layout(name="current", target="target_model.", factors=_HIDDEN_VU),
    Layout(name="2025-07-22", target="patched_model.", factors=_IN_PLACE, dashed=False),
    Layout(name="2025-07-16", target="model.", factors=_DASHED_VU, also="gates."),
    Layout(name="paper", target="model.", factors=_DASHED_AB, also="gates."),
)
"""All layouts; the first that fits is the one."""


def recognize(keys: Iterable[str]) -> Layout | None:
    """The layout of these keys, or None where they are not those of an SPD checkpoint."""
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
