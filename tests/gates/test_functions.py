"""Causal-importance functions against an evaluation of their own, written after SPD's module code in torch."""

import itertools

import numpy as np
import pytest
import torch
from torch.nn import functional

from spdexport.gates import GateFunction, GateKind, GateLayer, Sigmoid, evaluate, squash

C, D = 5, 7
X = np.concatenate([np.linspace(-3, 3, 61), [-1e4, 0.0, 0.5, 1.0, 1e4]])

SIGMOIDS = {
    Sigmoid.LEAKY_HARD: lambda x: x.clamp(0, 1),
    Sigmoid.HARD: lambda x: x.clamp(0, 1),
    Sigmoid.LOWER_LEAKY_HARD: lambda x: x.clamp(0, 1),
    Sigmoid.NORMAL: torch.sigmoid,
    Sigmoid.UPPER_LEAKY_HARD: lambda x: torch.where(x > 1, 1 + 0.01 * (x - 1), x.clamp(0, 1)),
    Sigmoid.PAPER: lambda x: torch.where(x > 0, x.clamp(max=1), 0.01 * x),
    Sigmoid.SWISH_HARD: lambda x: swish_hard(x),
}


def swish_hard(x, beta=10.0, scale=0.5, xshift=0.5, yshift=0.5):
    def s(z):
        return z * torch.sigmoid(beta * z)

    def d(z):
        return z * torch.sigmoid(-beta * z)

    x = x - xshift
    return yshift + (d(x - scale) - s(x)) + (s(x + scale) - d(x))


def parallel(rng, *sizes):
    return tuple(
        GateLayer(weight=rng.standard_normal((C, i, o)), bias=rng.standard_normal((C, o)))
        for i, o in itertools.pairwise(sizes)
    )


def shared(rng, *sizes):
    return tuple(
        GateLayer(weight=rng.standard_normal((i, o)), bias=rng.standard_normal(o)) for i, o in itertools.pairwise(sizes)
    )


GATES = {
    "linear": (GateKind.LINEAR, lambda rng: parallel(rng, 1, 1)),
    "mlp": (GateKind.MLP, lambda rng: parallel(rng, 1, 4, 1)),
    "deep mlp": (GateKind.MLP, lambda rng: parallel(rng, 1, 4, 3, 1)),
    "vector_mlp": (GateKind.VECTOR_MLP, lambda rng: parallel(rng, D, 4, 1)),
    "deep vector_mlp": (GateKind.VECTOR_MLP, lambda rng: parallel(rng, D, 4, 3, 1)),
    "shared_mlp": (GateKind.SHARED_MLP, lambda rng: shared(rng, D, 6, C)),
    "shared_mlp without hidden layers": (GateKind.SHARED_MLP, lambda rng: shared(rng, D, C)),
}


def expected(kind, layers, sigmoid, activations, inputs):
    """SPD's ParallelLinear: einsum("... C i, C i o -> ... C o") + b; an exact GELU between two of them."""
    if kind is GateKind.SHARED_MLP:
        x = inputs
        for n, layer in enumerate(layers):
            x = functional.linear(
                functional.gelu(x) if n else x, torch.tensor(layer.weight).T, torch.tensor(layer.bias)
            )
        return SIGMOIDS[sigmoid](x)
    x = inputs[..., None, :].expand(*inputs.shape[:-1], C, D) if kind is GateKind.VECTOR_MLP else activations[..., None]
    for n, layer in enumerate(layers):
        x = functional.gelu(x) if n else x
        x = torch.einsum("...ci,cio->...co", x, torch.tensor(layer.weight)) + torch.tensor(layer.bias)
    return SIGMOIDS[sigmoid](x[..., 0])


@pytest.mark.parametrize("sigmoid", Sigmoid)
def test_sigmoids(sigmoid):
    np.testing.assert_allclose(squash(X, sigmoid), SIGMOIDS[sigmoid](torch.tensor(X)).numpy(), rtol=0, atol=1e-12)


@pytest.mark.parametrize("sigmoid", Sigmoid)
@pytest.mark.parametrize("name", GATES)
@pytest.mark.parametrize("shape", [(3,), (3, 2, 4)], ids=["vectors", "locations"])
def test_functions(name, sigmoid, shape):
    rng = np.random.default_rng(list(GATES).index(name))
    kind, make = GATES[name]
    gate = GateFunction(kind=kind, layers=make(rng), sigmoid=sigmoid)
    activations, inputs = rng.standard_normal((*shape, C)), rng.standard_normal((*shape, D))
    found = evaluate(gate, activations, inputs)
    right = expected(kind, gate.layers, sigmoid, torch.tensor(activations), torch.tensor(inputs))
    assert gate.components == C
    assert found.shape == (*shape, C)
    np.testing.assert_allclose(found, right.numpy(), rtol=0, atol=1e-12)


def test_a_function_of_the_input_needs_it():
    gate = GateFunction(kind=GateKind.SHARED_MLP, layers=shared(np.random.default_rng(0), D, C), sigmoid=Sigmoid.HARD)
    with pytest.raises(ValueError, match="a function of kind shared_mlp reads the layer's input"):
        evaluate(gate, np.ones((2, C)))


def layer(weight, bias):
    return GateLayer(weight=np.zeros(weight), bias=np.zeros(bias))


@pytest.mark.parametrize(
    ("kind", "layers", "what"),
    [
        (GateKind.MLP, [], "gives 1 values|gives None"),
        (GateKind.MLP, [layer((C, 1), (C,))], "map 0 has a weight"),
        (GateKind.MLP, [layer((C, 1, 1), (C, 2))], "map 0 has a weight"),
        (GateKind.MLP, [layer((C, 2, 1), (C, 1))], "map 0 takes 2 values and is given 1"),
        (GateKind.MLP, [layer((C, 1, 4), (C, 4)), layer((C, 3, 1), (C, 1))], "map 1 takes 3 values and is given 4"),
        (GateKind.MLP, [layer((C, 1, 4), (C, 4)), layer((2, 4, 1), (2, 1))], "map 1 is of 2 components, not 5"),
        (GateKind.VECTOR_MLP, [layer((C, D, 4), (C, 4))], "gives 4 values for each component, not one"),
        (GateKind.SHARED_MLP, [layer((D, 4), (4,)), layer((3, C), (C,))], "map 1 takes 3 values and is given 4"),
    ],
)
def test_maps_that_do_not_fit(kind, layers, what):
    with pytest.raises(ValueError, match=what):
        GateFunction(kind=kind, layers=tuple(layers), sigmoid=Sigmoid.HARD)
