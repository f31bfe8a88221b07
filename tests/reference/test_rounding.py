"""The error models against arithmetic in float32: numpy's, one operation after another, and ONNX Runtime's kernels."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
import torch

from spdexport.ort.sessions import SessionSettings, open_session
from spdexport.reference.noise import Draw, Magnitudes, Noise, undisturbed
from spdexport.reference.onnx_reference import OnnxReference
from spdexport.reference.rounding import Affine, added_up, contracted, normalized
from spdexport.reference.torch_reference import evaluate
from spdexport.verification.compare import FACTOR, floor_of

U = 2.0**-24
TERMS = {
    "equal": lambda rng, n: np.broadcast_to(rng.uniform(0.1, 2, (6, 1)), (6, n)),
    "normal": lambda rng, n: rng.normal(size=(6, n)),
    "positive": lambda rng, n: rng.uniform(0, 1, (6, n)),
    "halves": lambda rng, n: np.where(np.arange(n) < n // 2, 1.0, -1.0) * rng.uniform(0.1, 2, (6, 1)),
}


def draws(u: float = U, runs: int = 3) -> list[Draw]:
    return [Noise(seed=seed, unit_rounding=u).draw("node", 0) for seed in range(runs)]


def one_by_one(terms: np.ndarray) -> np.ndarray:
    """The float32 sums of rows, of plain additions."""
    total = np.zeros(len(terms), np.float32)
    for column in terms.T.astype(np.float32):
        total = total + column
    return total


@pytest.mark.parametrize("kind", TERMS)
@pytest.mark.parametrize("n", [2, 100, 4096, 65536])
def test_sums_of_float32_err_as_is_simulated(kind: str, n: int) -> None:
    rng = np.random.default_rng(n)
    terms = TERMS[kind](rng, n).astype(np.float32).astype(np.float64)
    error = np.abs(one_by_one(terms) - terms.sum(1)).max()
    simulated = max(np.abs(added_up(terms, draw)).max() for draw in draws())
    ulp = U * np.abs(terms.sum(1)).max()
    assert error <= 3 * simulated + ulp
    # Nor is it more than a sum of that many terms can be off.
    assert simulated <= n * U * np.abs(terms).sum(1).max()
    if kind == "normal":
        assert simulated <= 8 * np.sqrt(n) * U * np.sqrt((terms**2).sum(1)).max() + ulp


def test_sums_of_equal_terms_reach_a_quarter_of_the_bound() -> None:
    terms = np.broadcast_to(np.random.default_rng(0).uniform(1, 2, (200, 1)), (200, 4096))
    errors = np.abs(added_up(terms, draws()[0])) / (4096 * U * terms.sum(1))
    assert 0.2 < errors.max() < 0.27


def test_sums_of_whole_numbers_are_exact() -> None:
    assert not added_up(np.ones((2, 5000)), draws()[0]).any()
    assert added_up(np.full((2, 5000), 0.1), draws()[0]).any()


@pytest.mark.parametrize("u", [2.0**-11, 2.0**-8])
def test_short_types_are_added_up_in_float32(u: float) -> None:
    terms = np.full((1, 65536), 0.37)
    assert np.abs(added_up(terms, draws(u)[0])) <= 0.3 * 65536 * U * terms.sum()


def test_results_that_are_numbers_of_the_type_are_exact() -> None:
    values = np.array([1.0, 3.0, 0.5, 2.0**20 + 1, 1 / 3])
    for u, wrong in ((U, [4]), (2.0**-11, [3, 4])):
        errors = draws(u)[0].relative(values)
        assert list(np.flatnonzero(errors)) == wrong
        assert np.abs(errors[4]) == pytest.approx(u / 3)


def test_equal_values_err_alike_and_others_by_chance() -> None:
    draw = draws()[0]
    signs = draw.signs(np.random.default_rng(0).normal(size=100_000))
    assert abs(signs.mean()) < 0.02
    assert set(np.unique(signs)) == {-1.0, 1.0}
    neighbours = draw.signs(np.linspace(1, 2, 100_000))
    assert abs(neighbours.mean()) < 0.05
    assert abs((neighbours[1:] * neighbours[:-1]).mean()) < 0.1
    assert len(np.unique(draw.signs(np.full(100, 0.3)))) == 1
    assert (draws()[1].signs(np.arange(1.0, 100)) != draw.signs(np.arange(1.0, 100))).any()


def test_errors_depend_on_seed_node_and_call_alone() -> None:
    noise = Noise(seed=1, unit_rounding=U)
    keys = {noise.draw("a", 0).key, noise.draw("a", 1).key, noise.draw("b", 0).key}
    keys.add(Noise(seed=2, unit_rounding=U).draw("a", 0).key)
    assert len(keys) == 4
    assert noise.draw("a", 0) == Noise(seed=1, unit_rounding=U, magnitudes=Magnitudes()).draw("a", 0)


def test_sizes_of_products_are_kept_within_their_budget() -> None:
    calls: list[int] = []

    def compute() -> np.ndarray:
        calls.append(1)
        return np.ones(100)

    kept, none = Magnitudes(), Magnitudes(399)
    for _ in range(3):
        np.testing.assert_array_equal(kept.of(("a", 0), compute), np.ones(100))
    assert len(calls) == 1
    for _ in range(3):
        none.of(("a", 0), compute)
    assert len(calls) == 4
    # What float32 cannot hold is not kept.
    tiny = kept.of(("b", 0), lambda: np.full(3, 1e-60))
    np.testing.assert_array_equal(kept.of(("b", 0), lambda: np.full(3, 1e-60)), tiny)


def test_the_error_of_a_mean_goes_on_through_a_norm() -> None:
    # Equal terms but one: the mean is off by what adding them up is, and the small deviation makes it large.
    x = np.full((4, 4096), 0.3) * np.array([[1.0], [1.3], [1.7], [1.9]])
    x[:, 0] += 1e-4
    y = (x - x.mean(1, keepdims=True)) / np.sqrt(x.var(1, keepdims=True) + 1e-5)
    none = Affine(scale=None, bias=None)
    low = x.astype(np.float32)
    mean = (one_by_one(low) / np.float32(4096))[:, None]
    centered = low - mean
    variance = (one_by_one(centered**2) / np.float32(4096))[:, None]
    found = centered / np.sqrt(variance + np.float32(1e-5))
    errors = max(np.abs(normalized(x, y, lambda a: a, 1e-5, none, draw)).max() for draw in draws())
    assert np.abs(found - y).max() <= 3 * errors
    assert errors > 1000 * U


def test_what_computes_sizes_is_left_alone() -> None:
    nodes = [
        (["x"], ["shape"], True, False),
        (["shape"], ["float"], False, False),
        (["float", "scale"], ["scaled"], False, False),
        (["scaled"], ["size"], False, True),
        (["x", "size"], ["y"], False, False),
        (["float"], ["angle"], False, False),
        (["angle", "y"], ["z"], False, False),
    ]
    assert undisturbed(nodes, {"x"}) == {0, 1, 2}


def model_of(
    op: str, weights: list[np.ndarray], opset: int = 21, *, kind: type = np.float32, **attributes: Any
) -> onnx.ModelProto:
    names = [f"w{i}" for i in range(len(weights))]
    element = onnx.helper.np_dtype_to_tensor_dtype(np.dtype(kind))
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node(op, ["x", *names], ["y"], **attributes)],
        "g",
        [onnx.helper.make_tensor_value_info("x", element, None)],
        [onnx.helper.make_tensor_value_info("y", element, None)],
        [onnx.numpy_helper.from_array(w, name) for w, name in zip(weights, names, strict=True)],
    )
    return onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", opset)], ir_version=10)


def ratio(model: onnx.ModelProto, x: np.ndarray, seed: int = 0) -> float:
    """The largest error of ONNX Runtime over the floor, as a verification measures it."""
    reference = OnnxReference(model)
    (exact,) = reference.run({"x": x}).values()
    u = float(np.finfo(x.dtype).eps) / 2
    runs = [Noise(seed=1000 * seed + run, unit_rounding=u, magnitudes=Magnitudes()) for run in range(3)]
    noisy = [next(iter(reference.run({"x": x}, noise=noise).values())) for noise in runs]
    (got,) = open_session(model.SerializeToString(), SessionSettings()).run({"x": x}).values()
    finite = np.isfinite(exact)
    floor = floor_of(exact[finite], exact[finite].astype(x.dtype), [n[finite] for n in noisy])
    return float(np.abs(got[finite] - exact[finite]).max(initial=0.0)) / floor


def ones(n: int, value: float = 1.0) -> np.ndarray:
    return np.full(n, value, np.float32)


AXES = np.array([2, 3])
SUMS: dict[str, tuple[str, list[np.ndarray], dict[str, Any]]] = {
    "global_average_pool": ("GlobalAveragePool", [], {}),
    "average_pool": ("AveragePool", [], {"kernel_shape": [16, 16], "strides": [16, 16]}),
    "mean": ("ReduceMean", [AXES], {}),
    "sum": ("ReduceSum", [AXES], {}),
    "l1": ("ReduceL1", [AXES], {}),
    "l2": ("ReduceL2", [AXES], {}),
    "sum_square": ("ReduceSumSquare", [AXES], {}),
    "log_sum_exp": ("ReduceLogSumExp", [AXES], {}),
    "cumsum": ("CumSum", [np.array(3)], {}),
    "cumsum_reverse": ("CumSum", [np.array(2)], {"reverse": 1, "exclusive": 1}),
    "instance_norm": ("InstanceNormalization", [ones(4), ones(4, 0.5)], {}),
    "group_norm": ("GroupNormalization", [ones(4), ones(4, 0.5)], {"num_groups": 2}),
    "layer_norm": ("LayerNormalization", [ones(64)], {"axis": -1}),
    "lp_norm": ("LpNormalization", [], {"axis": 3}),
    "softmax": ("Softmax", [], {"axis": 3}),
    "log_softmax": ("LogSoftmax", [], {"axis": 3}),
    "batch_norm": ("BatchNormalization", [ones(4), ones(4, 0.3), ones(4, 20), ones(4, 0.01)], {}),
}
INPUTS = {
    "equal": lambda rng, n: np.broadcast_to(rng.uniform(0.1, 2, (1, 4, 1, 1)), (1, 4, n, n)),
    "normal": lambda rng, n: rng.normal(size=(1, 4, n, n)),
    "offset": lambda rng, n: rng.normal(size=(1, 4, n, n)) + 10,
    "relu": lambda rng, n: np.maximum(rng.normal(size=(1, 4, n, n)), 0),
}


@pytest.mark.parametrize("inputs", INPUTS)
@pytest.mark.parametrize("name", SUMS)
def test_sums_of_onnx_runtime_are_within_the_floor(name: str, inputs: str) -> None:
    op, weights, attributes = SUMS[name]
    model = model_of(op, weights, **attributes)
    for seed in range(3):
        x = INPUTS[inputs](np.random.default_rng(seed), 64).astype(np.float32)
        assert ratio(model, x, seed) <= FACTOR / 2


@pytest.mark.parametrize("name", ["global_average_pool", "mean", "l2", "instance_norm"])
def test_sums_of_65536_terms_are_within_the_floor(name: str) -> None:
    op, weights, attributes = SUMS[name]
    model = model_of(op, weights, **attributes)
    for inputs in INPUTS.values():
        x = inputs(np.random.default_rng(0), 256).astype(np.float32)
        assert ratio(model, x) <= FACTOR / 2


ELEMENTWISE = (
    "Sigmoid", "Tanh", "Erf", "Exp", "Softplus", "Gelu", "Mish", "Elu", "Selu", "Celu", "Sin", "Cos", "HardSwish",
    "HardSigmoid", "Softsign", "Atan", "Asinh", "Sinh", "Cosh", "Log", "Sqrt", "Reciprocal",
)  # fmt: skip
RANGES = ((-80, -20), (-20, -8), (-8, -1), (-1, 1), (-1e-3, 1e-3), (1, 8), (8, 20), (20, 80))


@pytest.mark.parametrize("op", ELEMENTWISE)
def test_elementwise_functions_of_onnx_runtime_are_within_the_floor(op: str) -> None:
    model = model_of(op, [], 22)
    rng = np.random.default_rng(0)
    for low, high in RANGES:
        x = rng.uniform(low, high, 20_000).astype(np.float32)
        x = np.abs(x) if op in ("Log", "Sqrt") else x
        assert ratio(model, x) <= FACTOR / 2, (low, high)


@pytest.mark.parametrize("op", ["Sigmoid", "Tanh", "Exp", "Softplus", "Gelu", "HardSwish"])
def test_a_single_value_is_within_the_floor(op: str) -> None:
    # A head of one logit: no other value lends it its floor.
    model = model_of(op, [], 22)
    values = np.random.default_rng(0).uniform(-20, 20, 60).astype(np.float32)
    assert max(ratio(model, values[i : i + 1], i) for i in range(len(values))) <= FACTOR


def test_a_probability_near_0_may_be_0() -> None:
    model = model_of("Sigmoid", [])
    for logit in (-16.0, -19.9, -40.0):
        assert ratio(model, np.array([logit], np.float32)) <= FACTOR


@pytest.mark.parametrize("op", ["Sigmoid", "Exp", "Softmax", "Softplus"])
def test_rounding_makes_nothing_negative(op: str) -> None:
    reference = OnnxReference(model_of(op, []))
    x = np.linspace(-80, 0, 1000).reshape(10, 100)
    for seed in range(5):
        assert reference.run({"x": x}, noise=Noise(seed=seed, unit_rounding=1e-3))["y"].min() >= 0


def test_floors_stay_near_what_rounding_does() -> None:
    """A loose floor hides faults: on ordinary values each is a few times the error of ONNX Runtime at most."""
    x = np.random.default_rng(0).normal(size=(1, 4, 64, 64)).astype(np.float32)
    for name, limit in {"mean": 60, "relu mean": 40, "instance_norm": 40, "softmax": 10, "batch_norm": 10}.items():
        op, weights, attributes = SUMS[name.removeprefix("relu ")]
        values = np.maximum(x, 0) if name.startswith("relu") else x
        assert 1 / limit <= ratio(model_of(op, weights, **attributes), values) <= 1.5, name


def test_half_precision_is_judged_as_such() -> None:
    # In float16 the bound n u of a mean over 64 x 64 would be 2: nothing could fail.
    model = model_of("GlobalAveragePool", [], kind=np.float16)
    x = np.full((1, 4, 64, 64), 0.37, np.float16)
    exact = OnnxReference(model).run({"x": x})["y"]
    noisy = OnnxReference(model).run({"x": x}, noise=Noise(seed=0, unit_rounding=2.0**-11))["y"]
    assert np.abs(noisy - exact).max() <= 2.0**-11


def described(op: str, inputs: list[str], constants: dict[str, np.ndarray], **attributes: Any) -> onnx.ModelProto:
    """A model of one operator with constants by name."""
    proto = model_of(op, [], 20, **attributes)
    proto.graph.node[0].input[:] = inputs
    proto.graph.initializer.extend(onnx.numpy_helper.from_array(array, name) for name, array in constants.items())
    return proto


@pytest.mark.parametrize("size", [7, 16, 40, 100, 250])
def test_fourier_transforms_of_any_size_are_within_the_floor(size: int) -> None:
    proto = described("DFT", ["x", "", "axis"], {"axis": np.array(3)})
    for seed in range(3):
        x = np.random.default_rng(seed).normal(size=(1, 2, 3, size, 1)).astype(np.float32)
        assert 0.02 < ratio(proto, x, seed) <= FACTOR / 2


@pytest.mark.parametrize("mode", ["linear", "cubic"])
def test_interpolation_of_values_that_are_nearly_equal_is_within_the_floor(mode: str) -> None:
    proto = described("Resize", ["x", "", "s"], {"s": np.array([1, 1, 1.7, 1.7], np.float32)}, mode=mode)
    for size in (8, 17, 40):
        x = 5 + 0.01 * np.random.default_rng(size).normal(size=(2, 3, size, size))
        assert ratio(proto, x.astype(np.float32)) <= FACTOR / 2


def test_products_of_a_summation_count() -> None:
    shapes = [(2, 8, 40, 30), (2, 5, 40, 30)]
    assert contracted("bchw,bdhw->bcd", shapes) == 1200
    assert contracted("bchw, bdhw -> bchd", shapes) == 30
    assert contracted("...hw,...hw", [(2, 40, 30)] * 2) == 1200
    assert contracted("ij,jk", [(2, 3), (3, 4)]) == 3


@pytest.mark.parametrize("op", ["Einsum", "MatMul"])
def test_products_of_equal_values_are_within_the_floor(op: str) -> None:
    summed = described("Einsum", ["x", "x"], {}, equation="bchw,bdhw->bcd")
    for seed in range(5):
        value = np.random.default_rng(seed).uniform(0.1, 1)
        if op == "Einsum":
            assert ratio(summed, np.full((1, 3, 64, 64), value, np.float32), seed) <= FACTOR / 2
        else:
            x = np.full((2, 64, 64), value, np.float32)
            long = np.full((2, 1, 4096), value, np.float32)
            assert ratio(described("MatMul", ["x", "x"], {}), x, seed) <= FACTOR / 2
            proto = described("MatMul", ["x", "b"], {"b": long.swapaxes(1, 2).copy()})
            assert ratio(proto, long, seed) <= FACTOR / 2


RECURRENT = {
    "LSTM": ([(1, 32, 3), (1, 32, 8), (1, 64)], {"hidden_size": 8}),
    "GRU": ([(1, 24, 3), (1, 24, 8), (1, 48)], {"hidden_size": 8}),
    "RNN": ([(1, 8, 3), (1, 8, 8), (1, 16)], {"hidden_size": 8}),
}


@pytest.mark.parametrize("op", RECURRENT)
def test_recurrent_layers_are_within_the_floor(op: str) -> None:
    shapes, attributes = RECURRENT[op]
    rng = np.random.default_rng(0)
    model = model_of(op, [rng.normal(size=shape).astype(np.float32) for shape in shapes], **attributes)
    x = rng.normal(size=(40, 2, 3)).astype(np.float32)
    assert 0.05 <= ratio(model, x) <= 2


def test_the_states_of_recurrent_layers_are_within_the_floor() -> None:
    # Gates multiply states that are given, so that their absolute errors are of these states' size.
    rng = np.random.default_rng(0)
    shapes, size = {"w": (1, 512, 128), "r": (1, 512, 128), "b": (1, 1024)}, 128
    weights = [onnx.numpy_helper.from_array(rng.normal(size=s).astype(np.float32) / 8, n) for n, s in shapes.items()]
    floats = onnx.TensorProto.FLOAT
    node = onnx.helper.make_node("LSTM", ["x", *shapes, "", "h", "c"], ["y", "hn", "cn"], hidden_size=size)
    given = [onnx.helper.make_tensor_value_info(n, floats, [1, 1, size]) for n in ("x", "h", "c")]
    ends = [onnx.helper.make_tensor_value_info(n, floats, None) for n in node.output]
    graph = onnx.helper.make_graph([node], "g", given, ends, weights)
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 16)], ir_version=10)
    reference, session = OnnxReference(model), open_session(model.SerializeToString(), SessionSettings())
    worst = 0.0
    for seed in range(5):
        rng = np.random.default_rng(seed)
        inputs = {name: (100 * rng.normal(size=(1, 1, size))).astype(np.float32) for name in ("x", "h", "c")}
        exact, got = reference.run(inputs), session.run(inputs)
        noisy = [reference.run(inputs, noise=Noise(seed=run, unit_rounding=U)) for run in range(3)]
        for name in ("hn", "cn"):
            floor = floor_of(exact[name], exact[name].astype(np.float32), [n[name] for n in noisy])
            worst = max(worst, float(np.abs(got[name] - exact[name]).max()) / floor)
    assert 0.05 < worst <= FACTOR / 2


def test_noise_is_in_functions_and_subgraphs_too() -> None:
    text = """
    <ir_version: 9, opset_import: ["" : 20, "local" : 1]>
    g (float[4] x, bool c) => (float[4] y) {
      a = local.third (x)
      y = If (c) < then_branch = t () => (float[4] u) { u = Tanh (a) },
                   else_branch = e () => (float[4] v) { v = Identity (a) } >
    }
    <domain: "local", opset_import: ["" : 20]>
    third (v) => (w) { f = Constant <value_float = 3.0> ()  w = Div (v, f) }
    """
    reference = OnnxReference(onnx.parser.parse_model(text))
    x = np.array([0.1, -0.7, 1.3, 2.0])
    for branch in (True, False):
        inputs = {"x": x, "c": np.array(branch)}
        exact = reference.run(inputs)["y"]
        off = np.abs(reference.run(inputs, noise=Noise(seed=0, unit_rounding=1e-4))["y"] - exact) / np.abs(exact)
        assert (off > 0.5e-4).any()
        assert (off < (6e-4 if branch else 1.01e-4)).all()


def test_sizes_that_are_computed_in_floats_stay_what_they_are() -> None:
    text = """
    <ir_version: 9, opset_import: ["" : 20]>
    g (float[n] x) => (float[m] y) {
      s = Shape (x)  f = Cast <to=1> (s)  t = Constant <value_float = 3.0> ()
      d = Div (f, t)  p = Mul (d, t)  k = Cast <to=7> (p)  e = Expand (o, k)  y = Mul (e, e)
    }
    """
    model = onnx.parser.parse_model(text)
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.array([0.3], np.float32), "o"))
    reference = OnnxReference(model)
    for seed in range(4):
        noisy = reference.run({"x": np.ones(16)}, noise=Noise(seed=seed, unit_rounding=1e-3))["y"]
        assert noisy.shape == (16,)
        assert (noisy != 0.3**2).all()


MODULES: dict[str, tuple[torch.nn.Module, tuple[int, ...]]] = {
    "relu": (torch.nn.ReLU(), (2, 3, 8, 8)),
    "max_pool": (torch.nn.MaxPool2d(2), (2, 3, 8, 8)),
    "flatten": (torch.nn.Flatten(), (2, 3, 8, 8)),
}


@pytest.mark.parametrize("name", MODULES)
def test_what_only_selects_has_no_errors_in_a_program(name: str) -> None:
    module, shape = MODULES[name]
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    program = torch.export.export(module.eval(), (x,))
    (found,) = evaluate(program, (x,), noise=Noise(seed=0, unit_rounding=1e-2))
    assert torch.equal(found, module(x).double())


ROUNDING_MODULES: dict[str, tuple[torch.nn.Module, tuple[int, ...]]] = {
    "adaptive_pool": (torch.nn.AdaptiveAvgPool2d(1), (1, 4, 64, 64)),
    "adaptive_pool_3": (torch.nn.AdaptiveAvgPool2d(3), (1, 4, 64, 64)),
    "average_pool": (torch.nn.AvgPool2d(8), (1, 4, 64, 64)),
    "batch_norm": (torch.nn.BatchNorm2d(4), (2, 4, 8, 8)),
    "group_norm": (torch.nn.GroupNorm(2, 4), (2, 4, 32, 32)),
    "instance_norm": (torch.nn.InstanceNorm2d(4), (2, 4, 32, 32)),
    "layer_norm": (torch.nn.LayerNorm(64), (2, 4, 64)),
    "rms_norm": (torch.nn.RMSNorm(64), (2, 4, 64)),
    "softmax": (torch.nn.Softmax(-1), (2, 4, 64)),
    "log_softmax": (torch.nn.LogSoftmax(-1), (2, 4, 64)),
    "sigmoid": (torch.nn.Sigmoid(), (2, 64)),
    "silu": (torch.nn.SiLU(), (2, 64)),
    "gelu": (torch.nn.GELU(), (2, 64)),
    "tanh": (torch.nn.Tanh(), (2, 64)),
    "linear": (torch.nn.Linear(64, 5), (2, 64)),
    "conv_transpose": (torch.nn.ConvTranspose2d(4, 3, 3, stride=2), (2, 4, 8, 8)),
    "lstm": (torch.nn.LSTM(8, 8, batch_first=True), (2, 30, 8)),
    "attention": (torch.nn.TransformerEncoderLayer(16, 2, 32, batch_first=True), (2, 20, 16)),
    "upsample": (torch.nn.Upsample(scale_factor=1.7, mode="bilinear"), (1, 2, 20, 20)),
}


@pytest.mark.parametrize("name", ROUNDING_MODULES)
def test_float32_of_torch_is_within_the_noise_of_a_program(name: str) -> None:
    torch.manual_seed(0)
    module, shape = ROUNDING_MODULES[name]
    x = torch.randn(shape)
    program = torch.export.export(module.eval(), (x,))
    exact = evaluate(program, (x,))[0].detach()
    own = (evaluate(program, (x,), float64=False)[0].double() - exact).abs().max()
    runs = [evaluate(program, (x,), noise=Noise(seed=seed, unit_rounding=U))[0] - exact for seed in range(3)]
    noise = max(float(run.detach().abs().max()) for run in runs)
    assert float(own) <= 2.5 * noise
    assert noise <= 400 * U * float(exact.abs().max())
