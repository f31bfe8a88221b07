"""The float64 reference against ONNX Runtime (float32 rounding apart), against torch in float64, and against numpy."""

from __future__ import annotations

import math
import subprocess
import sys
import weakref

import ml_dtypes
import numpy as np
import onnx
import onnx.parser
import pytest

from spdexport.errors import ExampleInputError
from spdexport.ort.sessions import SessionSettings, open_session
from spdexport.reference.noise import Noise
from spdexport.reference.onnx_reference import OnnxReference
from spdexport.reference.unavailable import ReferenceUnavailable

rng = np.random.default_rng(0)


def model_of(text: str, opset: int = 20, initializers: dict[str, np.ndarray] | None = None) -> onnx.ModelProto:
    model = onnx.parser.parse_model(f'<ir_version: 9, opset_import: ["" : {opset}]> {text}')
    model.graph.initializer.extend(onnx.numpy_helper.from_array(v, k) for k, v in (initializers or {}).items())
    onnx.checker.check_model(model)
    return model


def ort_run(model: onnx.ModelProto, inputs: dict[str, np.ndarray]) -> list[np.ndarray]:
    return list(open_session(model.SerializeToString(), SessionSettings()).run(inputs).values())


def assert_close_to_ort(model: onnx.ModelProto, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    results = OnnxReference(model).run(inputs)
    for (name, ours), theirs in zip(results.items(), ort_run(model, inputs), strict=True):
        assert ours.shape == theirs.shape, name
        if theirs.dtype.kind == "f":
            assert ours.dtype == np.float64
            assert np.abs(ours - theirs).max() <= 1e-5 * max(np.abs(ours).max(), 1e-3)
        else:
            assert ours.dtype == theirs.dtype
            np.testing.assert_array_equal(ours, theirs)
    return results


# Each takes a float32 x of (2, 6, 10, 12).
OPERATORS = {
    "average_pool": "y = AveragePool <kernel_shape=[3,3], strides=[2,2], pads=[1,1,1,1]> (x)",
    "average_pool_counting": (
        "y = AveragePool <kernel_shape=[3,2], strides=[2,3], pads=[1,0,1,1], count_include_pad=1, ceil_mode=1> (x)"
    ),
    "average_pool_same": 'y = AveragePool <kernel_shape=[3,3], strides=[2,2], auto_pad="SAME_UPPER"> (x)',
    "max_pool": "y = MaxPool <kernel_shape=[3,3], strides=[2,2], pads=[1,1,1,1]> (x)",
    "max_pool_dilated": "y = MaxPool <kernel_shape=[2,3], dilations=[2,3], strides=[1,2], ceil_mode=1> (x)",
    "max_pool_indices": "y, i = MaxPool <kernel_shape=[2,2], strides=[2,2]> (x)",
    "global_average_pool": "y = GlobalAveragePool (x)",
    "softmax": "y = Softmax <axis=1> (x)",
    "log_softmax": "y = LogSoftmax <axis=-2> (x)",
    "layer_norm": "s = Constant <value_floats=[1.5]> ()  y = LayerNormalization <axis=-1, epsilon=0.001> (x, s)",
    "instance_norm": (
        "s = Constant <value_floats=[1.,2.,3.,4.,5.,6.]> ()  y = InstanceNormalization <epsilon=0.01> (x, s, s)"
    ),
    "erf": "y = Erf (x)",
    "gelu": "y = Gelu (x)",
    "gelu_tanh": 'y = Gelu <approximate="tanh"> (x)',
    "hard_swish": "y = HardSwish (x)",
    "mish": "y = Mish (x)",
    "elu": "y = Elu <alpha=0.7> (x)",
    "clip_upper_only": "m = Constant <value_float=0.25> ()  y = Clip (x, , m)",
    "clip_none": "y = Clip (x)",
    "reduce_mean": "a = Constant <value_ints=[2,3]> ()  y = ReduceMean <keepdims=0> (x, a)",
    "reduce_l2": "a = Constant <value_ints=[1]> ()  y = ReduceL2 (x, a)",
    "split": "y, z = Split <axis=1, num_outputs=2> (x)",
    "where": "c = Constant <value_float=0.1> ()  b = Less (x, c)  y = Where (b, c, x)",
    "argmax": "y = ArgMax <axis=1> (x)",
    "expand": "s = Shape (x)  o = Constant <value_float=0.3> ()  e = Expand (o, s)  y = Mul (x, e)",
    "reshape_dynamic": (
        "s = Shape <start=0, end=1> (x)  m = Constant <value_ints=[-1]> ()  t = Concat <axis=0> (s, m)"
        "  y = Reshape (x, t)"
    ),
    "constant_of_shape": "s = Shape (x)  z = ConstantOfShape <value = float[1] {0.1}> (s)  y = Add (x, z)",
    "casts": "h = Cast <to=7> (x)  f = Cast <to=1> (h)  y = CastLike (f, x)",
    "resize_scales": (
        's = Constant <value_floats=[1.,1.,1.3,0.6]> ()  y = Resize <mode="linear", '
        'coordinate_transformation_mode="half_pixel"> (x, , s)'
    ),
    "resize_nearest": (
        's = Constant <value_floats=[1.,1.,2.,2.]> ()  y = Resize <mode="nearest", '
        'coordinate_transformation_mode="asymmetric", nearest_mode="floor"> (x, , s)'
    ),
    "matmul": "t = Transpose <perm=[0,1,3,2]> (x)  m = MatMul (x, t)  y = Softmax (m)",
    "einsum": 'y = Einsum <equation="bchw,bdhw->bcd"> (x, x)',
    "pad_reflect": 'p = Constant <value_ints=[0,0,1,2,0,0,2,1]> ()  y = Pad <mode="reflect"> (x, p)',
}


@pytest.mark.parametrize("name", OPERATORS)
def test_operators_agree_with_onnx_runtime(name):
    body = OPERATORS[name]
    kind = "int64" if name == "argmax" else "float"
    outputs = {"split": "float[] y, float[] z", "max_pool_indices": "float[] y, int64[] i"}.get(name, f"{kind}[] y")
    text = f"g (float[b,6,h,w] x) => ({outputs}) {{ {body} }}".replace("float[]", "float[a,c,d,e]")
    model = onnx.parser.parse_model(f'<ir_version: 9, opset_import: ["" : 20]> {text}')
    for value in model.graph.output:
        value.type.tensor_type.ClearField("shape")
    assert_close_to_ort(model, {"x": rng.normal(size=(2, 6, 10, 12)).astype(np.float32)})


@pytest.mark.parametrize(
    ("op", "attributes", "weight", "shape"),
    [
        ("Conv", "pads=[1,0,2,1], strides=[2,1], dilations=[1,2], group=2", (6, 2, 3, 2), (2, 4, 9, 8)),
        ("Conv", 'auto_pad="SAME_LOWER", strides=[2,2]', (3, 4, 2, 2), (1, 4, 7, 6)),
        ("Conv", "pads=[2,1]", (5, 4, 3), (2, 4, 11)),
        ("Conv", "strides=[1,2,1]", (2, 3, 2, 2, 2), (1, 3, 4, 5, 6)),
        ("ConvTranspose", "pads=[1,0,0,1], strides=[2,3], output_padding=[1,0], group=2", (4, 3, 3, 2), (2, 4, 5, 4)),
        ("ConvTranspose", "output_shape=[10,8], strides=[2,2], dilations=[2,1]", (4, 3, 2, 2), (1, 4, 4, 4)),
        ("ConvTranspose", "output_shape=[10,8], strides=[3,2]", (4, 3, 3, 3), (1, 4, 3, 3)),
        ("ConvTranspose", 'auto_pad="SAME_UPPER", strides=[2,2]', (4, 3, 3, 3), (1, 4, 3, 3)),
    ],
)
def test_convolutions_agree_with_onnx_runtime(op, attributes, weight, shape):
    channels = weight[0] if op == "Conv" else weight[1] * (2 if "group" in attributes else 1)
    values = {
        "w": rng.normal(size=weight).astype(np.float32),
        "b": rng.normal(size=channels).astype(np.float32),
    }
    dims = ",".join(map(str, shape))
    out = ",".join(["n", "c", "d", "e", "f"][: len(shape)])
    model = model_of(f"g (float[{dims}] x) => (float[{out}] y) {{ y = {op} <{attributes}> (x, w, b) }}", 20, values)
    assert_close_to_ort(model, {"x": rng.normal(size=shape).astype(np.float32)})


@pytest.mark.parametrize(
    ("body", "opset"),
    [
        ("y = Softmax (x)", 11),  # all axes from 1 on are one
        ("y = LogSoftmax <axis=2> (x)", 11),
        ("y = BatchNormalization (x, s, s, s, s)", 9),  # onnx's own computes the training form
        ("y = BatchNormalization <epsilon=0.01> (x, s, s, s, s)", 15),
        ("y = GroupNormalization <num_groups=3, epsilon=0.01> (x, s, s)", 21),
    ],
)
def test_old_and_new_opsets_agree_with_onnx_runtime(body, opset):
    scale = np.array([1.0, 0.5, 2.0, 3.0, 0.25, 1.5], np.float32)
    model = model_of(f"g (float[2,6,4,5] x) => (float[2,6,4,5] y) {{ {body} }}", opset, {"s": scale})
    assert_close_to_ort(model, {"x": rng.normal(size=(2, 6, 4, 5)).astype(np.float32)})


# What torch.nn.functional (f) computes on x of (2, 4, 4, 4) with a scale s of (4,), all in float64.
TORCH_CASES = {
    "y = Gelu (x)": lambda f, x, _s: f.gelu(x),
    'y = Gelu <approximate="tanh"> (x)': lambda f, x, _s: f.gelu(x, approximate="tanh"),
    "y = HardSwish (x)": lambda f, x, _s: f.hardswish(x),
    "y = Mish (x)": lambda f, x, _s: f.mish(x),
    "y = Erf (x)": lambda _f, x, _s: x.erf(),
    "y = Sigmoid (x)": lambda _f, x, _s: x.sigmoid(),
    "y = Softplus (x)": lambda f, x, _s: f.softplus(x),
    "y = Softmax (x)": lambda f, x, _s: f.softmax(x, -1),
    "y = LogSoftmax <axis=1> (x)": lambda f, x, _s: f.log_softmax(x, 1),
    "y = BatchNormalization <epsilon=0.5> (x, s, s, s, s)": lambda f, x, s: f.batch_norm(x, s, s, s, s, eps=0.5),
    "y = LayerNormalization <epsilon=0.5> (x, s)": lambda f, x, s: f.layer_norm(x, (4,), s, eps=0.5),
    "y = InstanceNormalization <epsilon=0.5> (x, s, s)": (
        lambda f, x, s: f.instance_norm(x, weight=s, bias=s, eps=0.5)
    ),
    "y = GroupNormalization <num_groups=2, epsilon=0.5> (x, s, s)": (lambda f, x, s: f.group_norm(x, 2, s, s, eps=0.5)),
    'k = Constant <value_ints=[2,4,8,8]> ()  y = Resize <mode="linear"> (x, , , k)': (
        lambda f, x, _s: f.interpolate(x, size=(8, 8), mode="bilinear")
    ),
    'k = Constant <value_ints=[2,4,8,8]> ()  y = Resize <mode="cubic"> (x, , , k)': (
        lambda f, x, _s: f.interpolate(x, size=(8, 8), mode="bicubic")
    ),
    "y = AveragePool <kernel_shape=[3,3], strides=[2,2], ceil_mode=1> (x)": (
        lambda f, x, _s: f.avg_pool2d(x, 3, 2, ceil_mode=True)
    ),
    "t = Transpose <perm=[0,2,3,1]> (x)  i = Constant <value_ints=[0,1]> ()  h = Gather <axis=3> (t, i)"
    "  y = GridSample (x, h)": lambda f, x, _s: f.grid_sample(x, x.permute(0, 2, 3, 1)[..., :2], align_corners=False),
}


@pytest.mark.parametrize("body", TORCH_CASES)
def test_operators_have_the_accuracy_of_float64(body):
    torch = pytest.importorskip("torch")
    scale = np.array([1.0, 0.5, 2.0, 3.0], np.float32)
    values = {"s": scale} if "s)" in body else {}
    model = model_of(f"g (float[2,4,4,4] x) => (float[n,c,h,w] y) {{ {body} }}", 21, values)
    x = rng.normal(size=(2, 4, 4, 4))
    expected = TORCH_CASES[body](torch.nn.functional, torch.from_numpy(x), torch.from_numpy(scale).double()).numpy()
    np.testing.assert_allclose(OnnxReference(model).run({"x": x})["y"], expected, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("kind", [np.float16, ml_dtypes.bfloat16, np.float32])
def test_reduced_floats_are_promoted_everywhere(kind):
    element = onnx.helper.np_dtype_to_tensor_dtype(np.dtype(kind))
    node = onnx.helper.make_node
    third = onnx.numpy_helper.from_array(np.array([1 / 3], kind), "third")
    graph = onnx.helper.make_graph(
        [
            node("Constant", [], ["c"], value=onnx.numpy_helper.from_array(np.array(3, kind))),
            node("Mul", ["x", "third"], ["p"]),
            node("Cast", ["p"], ["q"], to=onnx.TensorProto.FLOAT16),
            node("Cast", ["q"], ["r"], to=element),
            node("Mul", ["r", "c"], ["y"]),
        ],
        "g",
        [onnx.helper.make_tensor_value_info("x", element, [2])],
        [onnx.helper.make_tensor_value_info("y", element, [2])],
        [third],
    )
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 20)])
    x = np.array([1.1, -2.3])
    stored = float(np.array(1 / 3, kind))
    np.testing.assert_array_equal(OnnxReference(model).run({"x": x})["y"], x * stored * 3)


CONVNET = """
agraph (float[b,3,8,8] x, int64[1] k) => (float[b,5] y, int64[1] k2)
<float[4] s = {1.0, 0.5, 2.0, 1.5}>
{
  c = Conv <pads=[1,1,1,1]> (x, w)
  n = BatchNormalization (c, s, s, s, s)
  r = Relu (n)
  p = GlobalAveragePool (r)
  f = Flatten (p)
  y = Gemm <transB=1, alpha=0.5, beta=-2.0> (f, v, bias)
  k2 = Add (k, k)
}
"""


@pytest.fixture(scope="module")
def convnet():
    local = np.random.default_rng(1)
    return model_of(
        CONVNET,
        20,
        {
            "w": local.normal(size=(4, 3, 3, 3)).astype(np.float32),
            "v": local.normal(size=(5, 4)).astype(np.float32),
            "bias": local.normal(size=5).astype(np.float32),
        },
    )


@pytest.fixture(scope="module")
def convnet_inputs():
    x = np.random.default_rng(2).normal(size=(3, 3, 8, 8)).astype(np.float32)
    return {"x": x, "k": np.array([21])}


def test_a_small_network_agrees_with_onnx_runtime(convnet, convnet_inputs):
    assert_close_to_ort(convnet, convnet_inputs)


def test_every_value_is_watched_in_order(convnet, convnet_inputs):
    seen = {}
    results = OnnxReference(convnet).run(convnet_inputs, watch=seen.__setitem__)
    assert list(seen) == ["c", "n", "r", "p", "f", "y", "k2"]
    np.testing.assert_array_equal(seen["r"], np.maximum(seen["n"], 0))
    np.testing.assert_array_equal(seen["y"], results["y"])


def test_intermediates_are_freed_after_their_last_use():
    model = model_of("g (float[n] x) => (float[n] y) { a = Neg (x)  b = Neg (a)  c = Neg (b)  y = Add (c, x) }")
    alive: list[weakref.ref] = []
    most = 0

    def watch(name, value):
        nonlocal most
        alive.append(weakref.ref(value))
        most = max(most, sum(ref() is not None for ref in alive))

    OnnxReference(model).run({"x": np.ones(3)}, watch=watch)
    assert len(alive) == 4
    assert most == 2


def test_noise_has_the_size_that_was_asked_for():
    text = "g (float[b,3,8,8] x) => (float[b,4,8,8] y) { y = Conv <pads=[1,1,1,1]> (x, w, b) }"
    values = {"w": rng.normal(size=(4, 3, 3, 3)).astype(np.float32), "b": rng.normal(size=4).astype(np.float32)}
    sizes = {name: np.abs(value) for name, value in values.items()}
    x = rng.normal(size=(2, 3, 8, 8))
    magnitude = OnnxReference(model_of(text, 20, sizes)).run({"x": np.abs(x)})["y"]
    reference = OnnxReference(model_of(text, 20, values))
    exact = reference.run({"x": x})["y"]
    draws = [reference.run({"x": x}, noise=Noise(seed=n, unit_rounding=2.0**-24))["y"] for n in range(20)]
    normal = (np.array(draws) - exact) / (2.0**-24 * magnitude)
    assert abs(normal.std() - 1) < 0.03
    assert abs(normal.mean()) < 0.03


def test_noise_of_a_gemm_counts_both_terms_whatever_their_signs():
    model = model_of(
        "g (float[1,2] x) => (float[1,1] y) { y = Gemm <alpha=-1.0, beta=2.0> (x, w, b) }",
        20,
        {"w": np.array([[1], [-2]], np.float32), "b": np.array([3], np.float32)},
    )
    x = np.array([[5.0, -7.0]])
    exact = -(5 + 14) + 6.0
    reference = OnnxReference(model)
    draws = [reference.run({"x": x}, noise=Noise(seed=s, unit_rounding=1e-6))["y"].item() for s in range(300)]
    assert np.std(np.array(draws) - exact) == pytest.approx(1e-6 * (19 + 6), rel=0.1)


def test_noise_repeats_with_its_seed_and_differs_between_nodes():
    model = model_of("g (float[3,3] x) => (float[3,3] y, float[3,3] z) { y = MatMul (x, x)  z = MatMul (x, x) }")
    reference, x = OnnxReference(model), {"x": rng.normal(size=(3, 3))}
    first = reference.run(x, noise=Noise(seed=1, unit_rounding=1e-3))
    again = reference.run(x, noise=Noise(seed=1, unit_rounding=1e-3))
    other = reference.run(x, noise=Noise(seed=2, unit_rounding=1e-3))
    np.testing.assert_array_equal(first["y"], again["y"])
    assert (first["y"] != other["y"]).any()
    assert (first["y"] != first["z"]).any()
    np.testing.assert_array_equal(reference.run(x)["y"], x["x"] @ x["x"])


IF_MODEL = """
g (float[2,2] x, bool cond) => (float[2,2] y)
<float[1] shift = {0.1}>
{
  a = Neg (x)
  y = If (cond) <
    then_branch = then_g () => (float[2,2] t) { m = MatMul (a, x)  t = Add (m, shift) },
    else_branch = else_g () => (float[2,2] e) { e = Identity (a) }
  >
}
"""


@pytest.mark.parametrize("cond", [True, False])
def test_branches_see_the_values_around_them(cond):
    inputs = {"x": rng.normal(size=(2, 2)).astype(np.float32), "cond": np.array(cond)}
    results = assert_close_to_ort(model_of(IF_MODEL), inputs)
    noisy = OnnxReference(model_of(IF_MODEL)).run(inputs, noise=Noise(seed=0, unit_rounding=1e-3))
    assert (noisy["y"] != results["y"]).any() == cond


def test_loops_carry_and_collect():
    text = """
    g (float[2] x, int64 trips) => (float[2] last, float[n] sums)
    {
      go = Constant <value_int=1> ()
      cond = Cast <to=9> (go)
      last, sums = Loop (trips, cond, x) <
        body = body_g (int64 i, bool c, float[2] v) => (bool c2, float[2] v2, float s)
        { c2 = Identity (c)  v2 = Add (v, x)  s = ReduceSum <keepdims=0> (v2) }
      >
    }
    """
    x = np.array([1.0, 0.1], np.float32)
    results = assert_close_to_ort(model_of(text), {"x": x, "trips": np.array(3)})
    assert results["sums"].shape == (3,)
    assert OnnxReference(model_of(text)).run({"x": x, "trips": np.array(0)})["sums"].shape == (0,)


def test_functions_of_the_model_are_evaluated_in_float64():
    text = """
    <ir_version: 9, opset_import: ["" : 20, "local" : 1]>
    g (float[4] x) => (float[4] y) { y = local.scaled <factor=0.5> (x) }
    <domain: "local", opset_import: ["" : 20]>
    scaled <factor> (v) => (w) { f = Constant <value_float: float = @factor> ()  e = Erf (v)  w = Mul (e, f) }
    """
    x = np.array([0.1, -0.7, 1.3, 2.0])
    expected = 0.5 * np.array([math.erf(v) for v in x])
    np.testing.assert_allclose(OnnxReference(onnx.parser.parse_model(text)).run({"x": x})["y"], expected, rtol=1e-15)


def test_external_data_is_read_when_a_node_needs_it(tmp_path, convnet, convnet_inputs):
    path = tmp_path / "m.onnx"
    copy = onnx.ModelProto()
    copy.CopyFrom(convnet)
    onnx.save(copy, path, save_as_external_data=True, size_threshold=0)
    lazy = OnnxReference(onnx.load(path, load_external_data=False), tmp_path)
    np.testing.assert_array_equal(lazy.run(convnet_inputs)["y"], OnnxReference(convnet).run(convnet_inputs)["y"])


def test_an_input_with_a_default_may_be_left_out():
    text = "g (float[1] x, float[1] d) => (float[1] y) <float[1] d = {2.0}> { y = Mul (x, d) }"
    model = model_of(text)
    assert [value.name for value in model.graph.input] == ["x", "d"]
    assert OnnxReference(model).run({"x": np.array([3.0])})["y"] == 6
    assert OnnxReference(model).run({"x": np.array([3.0]), "d": np.array([5.0])})["y"] == 15


def test_missing_and_unknown_inputs_are_named(convnet, convnet_inputs):
    with pytest.raises(ExampleInputError, match=r"lack k\.") as missing:
        OnnxReference(convnet).run({"x": convnet_inputs["x"]})
    assert len(str(missing.value).splitlines()) == 3
    with pytest.raises(ExampleInputError, match=r"have w, which the model does not\."):
        OnnxReference(convnet).run({**convnet_inputs, "w": np.ones(1)})


def test_an_unknown_operator_is_named():
    node = onnx.helper.make_node("NGramRepeatBlock", ["x", "x"], ["y"], name="conv7", domain="com.microsoft")
    value = onnx.helper.make_tensor_value_info
    graph = onnx.helper.make_graph([node], "g", [value("x", 1, [1])], [value("y", 1, [1])])
    opsets = [onnx.helper.make_opsetid("", 20), onnx.helper.make_opsetid("com.microsoft", 1)]
    for imports in (opsets, opsets[:1]):
        with pytest.raises(ReferenceUnavailable, match=r"com\.microsoft\.NGramRepeatBlock \(node conv7\)") as caught:
            OnnxReference(onnx.helper.make_model(graph, opset_imports=imports))
        assert (caught.value.op, caught.value.node) == ("com.microsoft.NGramRepeatBlock", "conv7")


def test_random_operators_have_no_reference():
    model = model_of("g (float[3] x) => (float[3] y) { y = RandomNormalLike (x) }")
    with pytest.raises(ReferenceUnavailable, match="its output is random"):
        OnnxReference(model)


def test_a_node_that_fails_is_named_with_the_cause():
    model = model_of("g (float[a,b] x) => (float[a,a] y) { y = MatMul (x, x) }")
    with pytest.raises(ReferenceUnavailable, match=r"MatMul \(node y\).*Unable to multiply shapes"):
        OnnxReference(model).run({"x": np.ones((2, 3))})


def test_not_a_number_comes_through():
    model = model_of("g (float[1,1,3] x) => (float[1,1,2] y) { y = MaxPool <kernel_shape=[2]> (x) }")
    x = np.array([[[1.0, 2.0, np.nan]]])
    np.testing.assert_array_equal(OnnxReference(model).run({"x": x})["y"], [[[2.0, np.nan]]])


def test_exported_networks_agree_with_onnx_runtime_and_with_torch_in_float64():
    torch = pytest.importorskip("torch")

    class Network(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = torch.nn.Conv2d(3, 8, 3, stride=2, padding=1)
            self.norm = torch.nn.BatchNorm2d(8)
            self.attention_norm = torch.nn.LayerNorm(8)
            self.qkv = torch.nn.Linear(8, 24)
            self.head = torch.nn.Linear(8, 5)

        def forward(self, x):
            x = torch.nn.functional.max_pool2d(torch.relu(self.norm(self.conv(x))), 2)
            x = self.attention_norm(x.flatten(2).transpose(1, 2))
            q, k, v = self.qkv(x).split(8, dim=-1)
            x = x + torch.softmax(q @ k.transpose(1, 2) / 8**0.5, dim=-1) @ v
            return self.head(torch.nn.functional.gelu(x).mean(1))

    torch.manual_seed(0)
    network = Network().eval()
    example = torch.randn(2, 3, 16, 16)
    program = torch.onnx.export(
        network, (example,), dynamo=True, verbose=False, dynamic_shapes=({0: torch.export.Dim("batch")},)
    )
    assert program is not None
    x = torch.randn(3, 3, 16, 16)
    (ours,) = assert_close_to_ort(program.model_proto, {"x": x.numpy()}).values()
    # The exporter folds batch norm in float32, so the file is not the module to the last bits of float64.
    np.testing.assert_allclose(ours, network.double()(x.double()).detach().numpy(), rtol=0, atol=3e-7)


def test_the_module_loads_without_torch():
    code = "import sys; sys.modules['torch'] = None; import spdexport.reference.onnx_reference"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_without_torch_numpy_takes_over(monkeypatch, convnet, convnet_inputs):
    with_torch = OnnxReference(convnet).run(convnet_inputs)
    monkeypatch.setitem(sys.modules, "torch", None)
    np.testing.assert_allclose(OnnxReference(convnet).run(convnet_inputs)["y"], with_torch["y"], rtol=1e-12)
    grid = model_of("g (float[1,1,2,2] x, float[1,2,2,2] g0) => (float[1,1,2,2] y) { y = GridSample (x, g0) }")
    with pytest.raises(ReferenceUnavailable, match="GridSample in float64 needs torch, which is not installed"):
        OnnxReference(grid).run({"x": np.ones((1, 1, 2, 2)), "g0": np.ones((1, 2, 2, 2))})
