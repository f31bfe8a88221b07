"""Where the evaluation of a file stops: a node that would give too much, a loop that goes on, values that pile up."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from spdexport.files.limits import LIMITS, limit
from spdexport.files.onnx_sizes import GIB, too_large

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    import onnx

NODES_OF_A_TRIP = 5
"""Nodes that count as one more trip of a loop, since each takes its time."""

SIZED = frozenset(
    (
        "AffineGrid", "AveragePool", "BlackmanWindow", "CenterCropPad", "Col2Im", "ConstantOfShape", "Conv",
        "ConvTranspose", "DFT", "Expand", "HammingWindow", "HannWindow", "LpPool", "MaxPool", "MaxRoiPool", "MaxUnpool",
        "MelWeightMatrix", "OneHot", "Pad", "Range", "Resize", "RoiAlign", "STFT", "Tile", "Upsample",
    )
)  # fmt: skip
"""Operators whose output may have more elements than there are tuples of elements of its inputs."""


class BeyondLimitError(Exception):
    """An evaluation came to a limit; the text says which, and the option that raises it."""


class Allowance:
    """How much one evaluation of a model may still do inside of its loops."""

    def __init__(self) -> None:
        self._trips = self._nodes = 0

    def enter(self, nodes: int) -> None:
        """Count one run of an inner graph.

        Args:
            nodes: Those of the graph.

        Raises:
            BeyondLimitError: It is one too many.
        """
        self._trips, self._nodes = self._trips + 1, self._nodes + nodes
        allowed = limit("trips")
        if self._trips > allowed or self._nodes > NODES_OF_A_TRIP * allowed:
            raise BeyondLimitError(
                f"it goes on after {self._trips} trips of {nodes} nodes, and the limit is {allowed} "
                f"{LIMITS['trips'].unit}: --limit trips={10 * allowed} raises it"
            )


class Pile:
    """What a loop keeps of each of its trips."""

    def __init__(self) -> None:
        self._bytes = 0

    def add(self, values: Iterable[Any]) -> None:
        """Count what one trip adds.

        Raises:
            BeyondLimitError: It has become too much.
        """
        self._bytes += sum(value.nbytes for value in values if isinstance(value, np.ndarray))
        allowed = limit("value")
        if self._bytes > allowed * GIB:
            raise BeyondLimitError(
                f"what it collects takes more than {allowed} {LIMITS['value'].unit}: "
                f"--limit value={2 * allowed} raises it"
            )


def check_output(node: onnx.NodeProto, version: int, arguments: Sequence[Any]) -> None:
    """Refuse to run a node that would give more than the limit on these arguments.

    Raises:
        BeyondLimitError: It would.
    """
    pairs, largest = 1, GIB // 8
    for value in arguments:
        if isinstance(value, list):
            # The elements of a sequence may come out side by side.
            pairs *= max(sum(v.size for v in value if isinstance(v, np.ndarray)), 1)
        elif isinstance(value, np.ndarray | np.generic):
            pairs *= max(value.size, 1)
    if pairs < largest and node.op_type not in SIZED:
        return
    if (reason := too_large(node, version, arguments)) is not None:
        raise BeyondLimitError(reason)
