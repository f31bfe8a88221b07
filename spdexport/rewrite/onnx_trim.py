"""The last step on the way to a file that is deployed: dead channels go, and what is left is padded to whole lanes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from spdexport.rewrite.match import in_chains
from spdexport.rewrite.onnx_dead import remove_dead
from spdexport.rewrite.onnx_lanes import pad_lanes

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    import onnx_ir as ir

    from spdexport.conv import Array
    from spdexport.rewrite.match import Chain
    from spdexport.rewrite.onnx_dead import Removal, RemovedChannels


@dataclass(frozen=True, slots=True, kw_only=True)
class Trimming:
    """What was removed from a model and what was added to it, without the model.

    Attributes:
        layers: The layers from which something was removed: V and U of a layer are two.
        nodes: Operators and names of the removed nodes that are no layers.
        padded: Components after padding, by the names of the values between V and U.
        bytes_saved: Bytes of weights that the model has less; negative where padding adds more than was removed.
    """

    layers: tuple[RemovedChannels, ...]
    nodes: tuple[str, ...]
    padded: Mapping[str, int]
    bytes_saved: int

    @property
    def channels(self) -> int:
        """Channels that no layer gives any more."""
        return sum(len(layer.outputs) for layer in self.layers)

    def share_left(self, layer: str) -> float:
        """Return the share of a layer's multiply-accumulates that is left, of those that its form has.

        Args:
            layer: The layer's name, without the number of a call.
        """
        own = [found for found in self.layers if found.layer == layer]
        before = sum(found.weight_before for found in own)
        return sum(found.weight_after for found in own) / before if before else 1.0

    def as_json(self) -> dict[str, Any]:
        """Return the same as JSON values."""
        return {
            "layers": [layer.as_json() for layer in self.layers],
            "nodes": list(self.nodes),
            "padded": dict(self.padded),
            "bytes_saved": self.bytes_saved,
        }


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Trimmed:
    """A model as it is deployed, and how it came to be.

    Attributes:
        whole: The model before.
        removal: What was removed from it.
        model: The model without that, and padded.
        trimming: What to tell of both.
    """

    whole: ir.Model
    removal: Removal
    model: ir.Model
    trimming: Trimming

    def meant(self, name: str, value: Array) -> Array | None:
        """Return what the deployed model has for a value of the whole one; None where that does not tell.

        Args:
            name: The value's name.
            value: What the whole model has.
        """
        kept = self.removal.kept.get(name)
        left = value if kept is None else kept.of(value)
        channels = self.trimming.padded.get(name)
        if left is None or channels is None:
            return left
        return np.pad(left, [(0, channels - left.shape[1] if axis == 1 else 0) for axis in range(left.ndim)])


def trim(model: ir.Model, *, lane: int, chains: Collection[Chain] = ()) -> Trimmed:
    """Return a model without dead channels, and with whole lanes between V and U.

    Args:
        model: The model; it is not changed.
        lane: Channels that the target computes together; 1 pads nothing.
        chains: The stages of the forms of several kernels that layers have.
    """
    removal = remove_dead(model)
    deployed, padded = pad_lanes(removal.model, lane, in_chains(chains, channels=False) if chains else None)
    return Trimmed(
        whole=model,
        removal=removal,
        model=deployed,
        trimming=Trimming(
            layers=removal.removed,
            nodes=removal.nodes,
            padded=padded,
            bytes_saved=_stored(model) - _stored(deployed),
        ),
    )


def _stored(model: ir.Model) -> int:
    tensors = [value.const_value for value in model.graph.initializers.values()]
    return sum(tensor.nbytes for tensor in tensors if tensor is not None)
