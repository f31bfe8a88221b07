"""What the placing of forms, masks and gates asks of a graph; graphs of torch and of ONNX each answer it once.

A *value* is what one node computes and another reads. An *operation* is a node that is not made yet: an operator with
its operands and attributes. The last operation of a form takes over the node of the layer that it replaces, so
operations are made first and inserted when it is known that something follows.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from spdexport.conv import Array, ConvSpec
    from spdexport.forms import Stage

ValueT = TypeVar("ValueT")
OperationT = TypeVar("OperationT")
NodeT = TypeVar("NodeT")


class Nodes(Protocol[ValueT, OperationT]):
    """Operators of a graph, to be inserted in front of one of its nodes.

    Where an operand may be a number, it has the dtype of the other operand.
    """

    def insert(self, operation: OperationT, part: str) -> ValueT:
        """Insert an operation, and return its value; ``part`` is the end of its name."""

    def store(self, part: str, values: Array, *, is_parameter: bool = True) -> ValueT:
        """Store numbers under the name of what is placed and ``part``, in the dtype of the layer's weight.

        The same part with the same numbers is stored once.
        """

    def sizes(self, value: ValueT) -> tuple[Any, ...]:
        """Return the sizes of a value that the graph had: numbers, or symbols that have the same text where equal."""

    def add(self, a: ValueT, b: ValueT | float) -> OperationT:
        """Make ``a + b``."""

    def sub(self, a: ValueT, b: ValueT | float) -> OperationT:
        """Make ``a - b``."""

    def mul(self, a: ValueT, b: ValueT | float) -> OperationT:
        """Make ``a * b``."""

    def above(self, x: ValueT, threshold: float) -> OperationT:
        """Make 1 where x is greater than the threshold, which is rounded to its dtype, and 0 elsewhere."""

    def chosen(self, choice: ValueT, a: ValueT, b: ValueT) -> OperationT:
        """Make ``a`` where the choice is not 0, ``b`` where it is."""

    def clamp(self, x: ValueT, low: float | None, high: float | None) -> OperationT:
        """Make x within bounds."""

    def relu(self, x: ValueT) -> OperationT:
        """Make ``max(x, 0)``."""

    def leaky_relu(self, x: ValueT, slope: float) -> OperationT:
        """Make x, times the slope below 0."""

    def gelu(self, x: ValueT) -> OperationT:
        """Make ``x / 2 (1 + erf(x / sqrt 2))``."""

    def sigmoid(self, x: ValueT) -> OperationT:
        """Make ``1 / (1 + exp(-x))``."""

    def neg(self, x: ValueT) -> OperationT:
        """Make ``-x``."""

    def cos(self, x: ValueT) -> OperationT:
        """Make the cosine."""

    def sin(self, x: ValueT) -> OperationT:
        """Make the sine."""

    def rsqrt(self, x: ValueT) -> OperationT:
        """Make ``1 / sqrt x``."""

    def softmax(self, x: ValueT) -> OperationT:
        """Make shares along the last axis."""

    def mean(self, x: ValueT) -> OperationT:
        """Make the mean over the last axis, which stays with size 1."""

    def counted(self, x: ValueT) -> OperationT:
        """Make 1, 2, ... along axis 1 of a value whose other axes have size 1, in its dtype."""

    def matmul(self, a: ValueT, b: ValueT) -> OperationT:
        """Make the matrix product."""

    def linear(self, x: ValueT, weight: Array, bias: Array | None, *, parts: tuple[str, str]) -> OperationT:
        """Make ``x W' + b``; weight (outer, inner) and bias (outer,) are stored under ``parts``."""

    def grouped(
        self, x: ValueT, weight: Array, bias: Array, *, groups: int, axes: int, parts: tuple[str, str]
    ) -> OperationT:
        """Make a pointwise convolution: weight (outer, inner, 1, ...) and bias (outer,) are stored under ``parts``."""

    def lookup(self, table: ValueT, index: ValueT) -> OperationT:
        """Make the rows of a table."""

    def concat(self, values: Sequence[ValueT]) -> OperationT:
        """Make one value of several, along the last axis."""

    def slice(self, x: ValueT, axis: int, begin: int, end: int) -> OperationT:
        """Make a part of a value along an axis."""

    def permute(self, x: ValueT, order: Sequence[int]) -> OperationT:
        """Make the value with its axes in another order."""

    def unsqueeze(self, x: ValueT, axis: int) -> OperationT:
        """Make the value with a further axis of size 1."""

    def squeeze(self, x: ValueT, axis: int) -> OperationT:
        """Make the value without an axis of size 1."""

    def heads(self, x: ValueT, heads: int, size: int) -> OperationT:
        """Make (batch, tokens, heads, size) of (batch, tokens, heads * size)."""

    def joined(self, x: ValueT, size: int) -> OperationT:
        """Make (batch, tokens, size) of (batch, tokens, heads, size / heads)."""


class LayerNodes(Nodes[ValueT, OperationT], Protocol):
    """The same for one layer, whose node a form is put in the place of.

    Attributes:
        name: The node's name, for messages.
        data: The layer's input.
        output_sizes: Of its output, as ``sizes`` gives them.
    """

    @property
    def name(self) -> str: ...  # noqa: D102
    @property
    def data(self) -> ValueT: ...  # noqa: D102
    @property
    def output_sizes(self) -> tuple[Any, ...]: ...  # noqa: D102

    def stage(self, data: ValueT, stage: Stage, *, first: bool) -> OperationT:
        """Make a stage without its mask; ``first`` where ``data`` is the layer's input, or that of the dense model."""

    def channel_mask(self, mask: Array, axes: int) -> ValueT:
        """Store a mask of shape (channels,), for values with so many axes behind the channels."""

    def original(self) -> ValueT:
        """Insert the layer as it was, and return its value."""

    def add_input(self, keyword: str, shape: tuple[Any, ...]) -> ValueT:
        """Return a new input of the graph, in the dtype of the layer's output; the same keyword gives the same one.

        Raises:
            ValueError: The graph has a value of that name, or the same keyword was asked for with another shape.
        """

    def become(self, operation: OperationT) -> None:
        """Let the layer's node become an operation, and remove what only the layer used."""


class Edit(Protocol[ValueT, NodeT]):
    """A copy of a graph while it is changed.

    Attributes:
        batch: The first size of its first input that has axes; None where none has.
    """

    @property
    def batch(self) -> Any: ...  # noqa: D102

    def is_plain(self, size: Any) -> bool:
        """Return whether a size is a number or an axis of an input, rather than computed from one."""

    def add_output(self, name: str, value: ValueT, sizes: tuple[Any, ...]) -> None:
        """Give a value of these sizes out beside the graph's own outputs."""

    def node(self, key: str) -> NodeT:
        """Return the node of a layer by the key that its site has."""

    def outermost(self, node: NodeT) -> NodeT:
        """Return the node itself, or the one of the graph that it is in a body of."""

    def nodes(self) -> list[NodeT]:
        """Return all nodes of the graph in their order, those inside of others left out."""

    def sources(self, node: NodeT) -> list[NodeT]:
        """Return the nodes that a node reads of."""

    def input_of(self, node: NodeT) -> ValueT:
        """Return what the node of a layer reads beside its weights."""

    def is_computed(self, node: NodeT) -> bool:
        """Return whether a node is no input, parameter or output."""

    def unrepeatable(self, node: NodeT) -> str | None:
        """Return why a node cannot run twice; None where it can."""

    def node_name(self, node: NodeT) -> str:
        """Return what a node is called."""

    def copy(self, node: NodeT, copies: Mapping[NodeT, NodeT], before: NodeT) -> NodeT:
        """Insert a second node that does the same, on what ``copies`` compute where the first reads their originals."""

    def move(self, node: NodeT, before: NodeT) -> None:
        """Put a node in front of another one."""

    def copied(self, value: ValueT, copies: Mapping[NodeT, NodeT]) -> ValueT:
        """Return the same value of a node's copy; the value itself where its node has none."""


InFrontOf = Callable[[NodeT, str, Any], Nodes[ValueT, OperationT]]
"""Gives operators in front of a node, whose numbers are stored under a prefix in a dtype of numpy's."""


def locations(sizes: Sequence[Any], spec: ConvSpec) -> tuple[Any, ...]:
    """Return the sizes between batch and channels of a layer's output."""
    return tuple(sizes[2:] if spec.axes else sizes[1:-1])
