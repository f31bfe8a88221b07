"""RNN, GRU and LSTM as the standard defines them, with all of their options, in float64.

onnx's own reference leaves out lengths of sequences, other activations, clipping and coupled gates.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from typing import TYPE_CHECKING, Any

import numpy as np
from onnx.reference.op_run import OpRun

from spdexport.reference.unavailable import UndefinedFormError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from spdexport.conv import Array


def _sigmoid(x: Array) -> Array:
    return np.asarray(np.exp(-np.logaddexp(0, -x)))


_ACTIVATIONS: dict[str, tuple[Callable[..., Array], tuple[float, ...]]] = {
    "affine": (lambda x, a, b: a * x + b, (1.0, 0.0)),
    "elu": (lambda x, a: np.where(x >= 0, x, a * np.expm1(np.minimum(x, 0))), (1.0,)),
    "hardsigmoid": (lambda x, a, b: np.clip(a * x + b, 0, 1), (0.2, 0.5)),
    "leakyrelu": (lambda x, a: np.where(x >= 0, x, a * x), (0.01,)),
    "relu": (lambda x: np.maximum(x, 0), ()),
    "scaledtanh": (lambda x, a, b: a * np.tanh(b * x), (math.nan, math.nan)),
    "sigmoid": (_sigmoid, ()),
    "softplus": (lambda x: np.logaddexp(0, x), ()),
    "softsign": (lambda x: x / (1 + np.abs(x)), ()),
    "tanh": (np.tanh, ()),
    "thresholdedrelu": (lambda x, a: np.where(x > a, x, 0), (math.nan,)),
}
"""By the names in small letters, with the defaults of alpha and beta for those that have them.

NaN where there is none to rely on: the standard has none for ScaledTanh, and ONNX Runtime another for ThresholdedRelu.
"""


def _functions(names: Sequence[str], alphas: Sequence[float], betas: Sequence[float]) -> list[Callable[..., Array]]:
    """The functions; each that has an alpha or a beta takes the next of those that are given."""
    given: tuple[Iterator[float], Iterator[float]] = iter(alphas), iter(betas)
    found = []
    for name in names:
        if name.lower() not in _ACTIVATIONS:
            raise UndefinedFormError(f"the activation {name}")
        function, defaults = _ACTIVATIONS[name.lower()]
        numbers = [next(source, default) for source, default in zip(given, defaults, strict=False)]
        if any(map(math.isnan, numbers)):
            raise UndefinedFormError(f"{name} without its alpha and beta, whose defaults runtimes do not agree on")
        found.append(lambda x, function=function, numbers=numbers: function(x, *numbers))
    return found


def _backwards(x: Array, lengths: Array) -> Array:
    """Each sequence of (T, N, ...) from its own end, with what is behind it left where it is."""
    times = np.arange(x.shape[0])[:, None]
    index = np.where(times < lengths, lengths - 1 - times, times)
    return np.asarray(np.take_along_axis(x, index.reshape(*index.shape, *(1,) * (x.ndim - 2)), axis=0))


class _Recurrent(OpRun):
    """What the three have in common: directions, lengths, layouts and optional inputs."""

    gates: int
    states: int = 1
    default: tuple[str, ...]

    @abstractmethod
    def _step(self, W: Array, R: Array, B: Array, P: Array, functions: Any, **attributes: Any) -> Any:
        """One time: from input (N, in) and states (N, H) to the next states, the first of which is the output."""

    def _run(
        self,
        X: Array,
        W: Array,
        R: Array,
        B: Array | None = None,
        lengths: Array | None = None,
        *rest: Array | None,
        activations: Sequence[Any] | None = None,
        activation_alpha: Sequence[float] | None = None,
        activation_beta: Sequence[float] | None = None,
        clip: float | None = None,
        direction: str | None = None,
        layout: int | None = None,
        **attributes: Any,
    ) -> tuple[Array, ...]:
        directions, hidden = R.shape[0], R.shape[2]
        if directions != (2 if direction == "bidirectional" else 1):
            raise ValueError(f"weights of {directions} directions for direction {direction}")
        X = X.swapaxes(0, 1) if layout else X
        times, batch = X.shape[:2]
        lengths = np.full(batch, times) if lengths is None else lengths
        given = [None if state is None else (state.swapaxes(0, 1) if layout else state) for state in rest]
        given += [None] * (self.states + 1 - len(given))
        zero = np.zeros((directions, batch, hidden))
        initial = [zero if state is None else state for state in given[: self.states]]
        if odd := [state.shape for state in initial if state.shape != zero.shape]:
            # numpy would take a state of one sample for that of all, which the operator does not.
            raise ValueError(f"an initial state of shape {odd[0]} where {zero.shape} is right")
        peepholes = given[self.states]
        P = np.zeros((directions, 3 * hidden)) if peepholes is None else peepholes
        B = np.zeros((directions, 2 * self.gates * hidden)) if B is None else B
        names = [n.decode() if isinstance(n, bytes) else n for n in activations or self.default * directions]
        functions = _functions(names, activation_alpha or (), activation_beta or ())
        limit = math.inf if clip is None else clip
        each, ys, ends = len(self.default), [], []
        for d in range(directions):
            back = direction == "reverse" or d == 1
            step = self._step(W[d], R[d], B[d], P[d], functions[d * each : (d + 1) * each], clip=limit, **attributes)
            y, end = _unrolled(step, _backwards(X, lengths) if back else X, [s[d] for s in initial], lengths)
            ys.append(_backwards(y, lengths) if back else y)
            ends.append(end)
        Y = np.stack(ys, axis=1)  # (T, D, N, H)
        last = [np.stack(states) for states in zip(*ends, strict=True)]
        if layout:
            Y, last = Y.transpose(2, 0, 1, 3), [state.swapaxes(0, 1) for state in last]
        return (Y, *last)[: max(len(self.output), 1)]


def _unrolled(
    step: Callable[[Array, tuple[Array, ...]], tuple[Array, ...]], X: Array, initial: Sequence[Array], lengths: Array
) -> tuple[Array, tuple[Array, ...]]:
    """The outputs (T, N, H), zero behind the end of a sequence, and the states at the ends."""
    states, outputs = tuple(initial), []
    for time, x in enumerate(X):
        alive = (time < lengths)[:, None]
        following = step(x, states)
        states = tuple(np.where(alive, new, old) for new, old in zip(following, states, strict=True))
        outputs.append(np.where(alive, following[0], 0))
    return np.stack(outputs) if outputs else np.zeros((0, *initial[0].shape)), states


class RNN(_Recurrent):
    """The simple recurrent layer: ``H = f(X W^T + H R^T + Wb + Rb)``."""

    gates = 1
    default = ("Tanh",)

    def _step(self, W: Array, R: Array, B: Array, P: Array, functions: Any, **attributes: Any) -> Any:  # noqa: ARG002
        (f,), bias, clip = functions, B.reshape(2, -1).sum(axis=0), attributes["clip"]
        return lambda x, states: (f(np.clip(x @ W.T + states[0] @ R.T + bias, -clip, clip)),)


class GRU(_Recurrent):
    """The gated recurrent unit, gates in the order z, r, h."""

    gates = 3
    default = ("Sigmoid", "Tanh")

    def _step(self, W: Array, R: Array, B: Array, P: Array, functions: Any, **attributes: Any) -> Any:  # noqa: ARG002
        clip, linear_before_reset = attributes["clip"], attributes.get("linear_before_reset")
        (f, g), hidden = functions, R.shape[1]
        (Wzr, Wh), (Rzr, Rh) = (np.split(m, [2 * hidden]) for m in (W, R))
        (Wbzr, Wbh), (Rbzr, Rbh) = (np.split(b, [2 * hidden]) for b in B.reshape(2, -1))

        def step(x: Array, states: tuple[Array, ...]) -> tuple[Array, ...]:
            (h,) = states
            z, r = np.split(f(np.clip(x @ Wzr.T + h @ Rzr.T + Wbzr + Rbzr, -clip, clip)), 2, axis=1)
            turned = r * (h @ Rh.T + Rbh) if linear_before_reset else (r * h) @ Rh.T + Rbh
            candidate = g(np.clip(x @ Wh.T + turned + Wbh, -clip, clip))
            return ((1 - z) * candidate + z * h,)

        return step


class LSTM(_Recurrent):
    """The long short-term memory, gates in the order i, o, f, c, peepholes in the order i, o, f."""

    gates = 4
    states = 2
    default = ("Sigmoid", "Tanh", "Tanh")

    def _step(self, W: Array, R: Array, B: Array, P: Array, functions: Any, **attributes: Any) -> Any:
        clip, input_forget = attributes["clip"], attributes.get("input_forget")
        (f, g, h), bias = functions, B.reshape(2, -1).sum(axis=0)
        pi, po, pf = np.split(P, 3)

        def step(x: Array, states: tuple[Array, ...]) -> tuple[Array, ...]:
            before, cell = states
            i, o, forget, c = np.split(x @ W.T + before @ R.T + bias, 4, axis=1)
            i = f(np.clip(i + pi * cell, -clip, clip))
            forget = 1 - i if input_forget else f(np.clip(forget + pf * cell, -clip, clip))
            cell = forget * cell + i * g(np.clip(c, -clip, clip))
            return f(np.clip(o + po * cell, -clip, clip)) * h(cell), cell

        return step


RECURRENT_OPERATORS: tuple[type[OpRun], ...] = (GRU, LSTM, RNN)
"""Those of this module."""
