"""ONNX Runtime as the package sees it: what is installed, what can run, and sessions."""

from __future__ import annotations

import ctypes
import dataclasses
import sys
import warnings

import ml_dtypes
import numpy as np
import onnx
import onnx.parser
import pytest

from spdexport.errors import UsageError
from spdexport.ort import cuda
from spdexport.ort.installed import import_onnxruntime, versions
from spdexport.ort.providers import CPU, CUDA, OPENVINO, PROVIDERS, TENSORRT, WEBGPU, Provider, Purpose
from spdexport.ort.sessions import (
    PlacedNode,
    RuntimeFailure,
    SessionSettings,
    open_session,
    provider_status,
    usable_provider,
)


def parse(text: str, **initializers: np.ndarray) -> onnx.ModelProto:
    model = onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["" : 17]> {text}')
    model.graph.initializer.extend(onnx.numpy_helper.from_array(v, k) for k, v in initializers.items())
    for index, node in enumerate(model.graph.node):
        node.name = f"{node.op_type.lower()}_{index}"
    return model


@pytest.fixture(scope="module")
def convolution() -> bytes:
    weight = np.random.default_rng(0).normal(size=(4, 3, 3, 3)).astype(np.float32)
    text = "g (float[batch,3,h,8] x) => (float[batch,4,p,6] y) { c = Conv (x, w)  y = Relu (c) }"
    return parse(text, w=weight).SerializeToString()


@pytest.mark.parametrize("inside", [False, True])
@pytest.mark.parametrize("stored", [False, True])
def test_a_node_that_would_end_the_process_is_refused(inside, stored, tmp_path):
    norm = "BatchNormalization (x, s, s, s, s)"
    body = f"y = If (b) <then_branch = t () => (u) {{ u = {norm} }}, else_branch = e () => (v) {{ v = {norm} }}>"
    text = f"g (float[1,3,4,4] x, bool b) => (float[1,3,4,4] y) {{ {body if inside else f'y = {norm}'} }}"
    model = parse(text, s=np.ones(3, np.float32))
    model.opset_import[0].version = 9
    (tmp_path / "m.onnx").write_bytes(model.SerializeToString())
    if not inside:
        open_session(tmp_path / "m.onnx" if stored else model.SerializeToString(), SessionSettings())
    node = model.graph.node[0]
    (node.attribute[0].g.node[0] if inside else node).output.extend(["", "", "", ""])
    (tmp_path / "m.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(
        RuntimeFailure, match="outputs without a name, on which ONNX Runtime would end the process"
    ) as e:
        open_session(tmp_path / "m.onnx" if stored else model.SerializeToString(), SessionSettings())
    assert e.value.code == "NOT_IMPLEMENTED"


# ---- what can run ----


def test_the_cpu_runs():
    assert provider_status(CPU) is None


@pytest.mark.parametrize("provider", [CUDA, TENSORRT, OPENVINO, WEBGPU], ids=lambda p: p.name)
def test_a_build_without_a_provider_says_which_package_to_install(provider):
    if provider.ort_name in import_onnxruntime().get_available_providers():
        pytest.skip("it is in this build")
    package = versions()["onnxruntime"].split()[0]
    assert provider_status(provider) == (
        f"the installed {package} has no {provider.ort_name}: run `pip uninstall -y {package}`, "
        f"then `pip install {provider.package}`"
    )


def test_a_provider_that_cannot_run_is_refused_by_name():
    provider = next(row for row in PROVIDERS.values() if provider_status(row) is not None)
    with pytest.raises(UsageError) as caught:
        usable_provider(provider.name)
    assert str(provider_status(provider)) in caught.value.what
    with pytest.raises(UsageError, match="no provider 'gpu'"):
        usable_provider("gpu")


def test_cuda_that_cannot_run_is_a_failure_and_no_cpu_session(convolution):
    reason = provider_status(CUDA)
    if reason is None:
        pytest.skip("CUDA runs here")
    with warnings.catch_warnings(action="error"), pytest.raises(RuntimeFailure) as caught:
        open_session(convolution, SessionSettings(provider=CUDA))
    assert str(caught.value) == reason


class FakeDriver:
    def __init__(self, *, init: int = 0, devices: int = 1, version: int = 13020) -> None:
        self.init, self.devices, self.version = init, devices, version

    def cuInit(self, _flags):  # noqa: N802
        return self.init

    def cuDeviceGetCount(self, count):  # noqa: N802
        count._obj.value = self.devices

    def cuDriverGetVersion(self, version):  # noqa: N802
        version._obj.value = self.version

    def cuDeviceGet(self, device, index):  # noqa: N802
        device._obj.value = index

    def cuDeviceGetName(self, name, _size, _device):  # noqa: N802
        name.value = b"NVIDIA Test"


def with_libraries(monkeypatch, driver: FakeDriver | None, *present: str) -> None:
    monkeypatch.setattr(sys, "platform", "linux")

    def load(name):
        if name == "libcuda.so.1" and driver is not None:
            return driver
        if name in present:
            return object()
        raise OSError(f"{name}: cannot open shared object file")

    monkeypatch.setattr(ctypes, "CDLL", load)


@pytest.mark.parametrize(
    ("driver", "reason"),
    [
        (None, "no NVIDIA driver is installed (libcuda.so.1 is missing)"),
        (FakeDriver(init=100), "the NVIDIA driver sees no usable device (cuInit returns 100)"),
        (FakeDriver(devices=0), "the NVIDIA driver sees no device"),
        (
            FakeDriver(version=12040),
            "the NVIDIA driver runs CUDA up to 12.4, and onnxruntime-gpu needs 13: update the driver",
        ),
        (
            FakeDriver(),
            (
                "missing libcublasLt.so.13, libcublas.so.13, libcurand.so.10: "
                "`pip install nvidia-cublas nvidia-curand` brings them"
            ),
        ),
    ],
)
def test_what_cuda_lacks_is_named(monkeypatch, driver, reason):
    with_libraries(monkeypatch, driver, "libcudart.so.13")
    assert cuda.missing(cuda.CUDA_LIBRARIES, "13") == reason


def test_one_missing_library_is_named_with_its_package(monkeypatch):
    with_libraries(monkeypatch, None)
    assert cuda.missing_libraries(cuda.CUDNN_LIBRARIES, "13") == (
        "missing libcudnn.so.9: `pip install nvidia-cudnn-cu13` brings it"
    )


def test_nothing_missing_is_none_and_the_device_is_named(monkeypatch):
    with_libraries(monkeypatch, FakeDriver(), *(name.format(cuda="13") for name, _ in cuda.CUDA_LIBRARIES))
    assert cuda.missing(cuda.CUDA_LIBRARIES, "13") is None
    assert cuda.first_device() == cuda.Device("NVIDIA Test", (13, 2))
    assert versions()["cuda_device"] == "NVIDIA Test"


def on_the_cpu(monkeypatch: pytest.MonkeyPatch, provider: Provider) -> Provider:
    """A row like another one that seems to be all there, and whose sessions are the CPU's.

    So it is with onnxruntime-gpu where the CUDA provider does not start: a CPU session, and no error.
    """
    available = [*import_onnxruntime().get_available_providers(), provider.ort_name]
    monkeypatch.setattr(import_onnxruntime(), "get_available_providers", lambda: available)
    monkeypatch.setattr(Provider, "chain", lambda *_: [("CPUExecutionProvider", {})])
    return dataclasses.replace(provider, missing=lambda _: None)


@pytest.mark.parametrize("provider", [CUDA, TENSORRT, OPENVINO, WEBGPU], ids=lambda p: p.name)
def test_a_session_that_ran_on_another_provider_is_told(monkeypatch, provider):
    row = dataclasses.replace(on_the_cpu(monkeypatch, provider), missing_kernels=lambda _: None)
    assert provider_status(row) == (
        f"ONNX Runtime ran a small convolution on CPUExecutionProvider when asked for {provider.ort_name}"
    )


def test_cudnn_is_blamed_only_where_the_convolution_did_not_run(monkeypatch):
    row = on_the_cpu(monkeypatch, CUDA)
    with_libraries(monkeypatch, FakeDriver())
    status = provider_status(row)
    assert status is not None
    assert status.startswith("missing libcudnn.so.9: `pip install nvidia-cudnn-cu")


# ---- sessions ----


@pytest.mark.parametrize("optimized", [False, True])
def test_a_session_tells_its_ports_placement_and_settings(convolution, optimized):
    session = open_session(convolution, SessionSettings(optimized=optimized, threads=1, spinning=False))
    assert [(port.name, port.shape, port.dtype) for port in session.inputs] == [("x", ("batch", 3, "h", 8), np.float32)]
    assert [(port.name, port.shape) for port in session.outputs] == [("y", ("batch", 4, "p", 6))]
    assert session.placement() == {"CPUExecutionProvider": ("conv_0", "relu_1")}
    assert session.placed_nodes()[0] == PlacedNode("CPUExecutionProvider", "conv_0", "Conv", "")
    assert session.settings == {"CPUExecutionProvider": {}}
    assert session.requested.optimized is optimized


def test_a_runtime_that_does_not_tell_where_nodes_ran_gives_no_placement(convolution):
    session = open_session(convolution, SessionSettings())
    session._inference = object()  # as before ONNX Runtime 1.24
    assert session.placed_nodes() is None
    assert session.placement() == {}


def test_outputs_come_by_name_in_the_order_asked_for():
    model = parse("g (float[2] x) => (float[2] a, int64[1] b) { a = Neg (x)  b = Shape (x) }").SerializeToString()
    session = open_session(model, SessionSettings())
    x = np.array([[1, 9], [2, 9]], np.float32)[:, 0]  # not contiguous
    everything = session.run({"x": x})
    assert list(everything) == ["a", "b"]
    np.testing.assert_array_equal(everything["a"], [-1, -2])
    assert list(session.run({"x": x}, ["b"])) == ["b"]
    assert list(session.run({"x": x}, ["b", "a"])) == ["b", "a"]


def test_a_path_with_external_data_is_opened(tmp_path, convolution):
    model = onnx.load_from_string(convolution)
    onnx.save(model, tmp_path / "m.onnx", save_as_external_data=True, location="m.bin", size_threshold=0)
    x = {"x": np.random.default_rng(1).normal(size=(2, 3, 8, 8)).astype(np.float32)}
    from_path = open_session(tmp_path / "m.onnx", SessionSettings()).run(x)
    np.testing.assert_array_equal(from_path["y"], open_session(convolution, SessionSettings()).run(x)["y"])


def test_bfloat16_goes_in_and_out():
    model = parse(
        "g (bfloat16[2,2] x) => (bfloat16[2,2] y, float[2,2] f) { f = Cast <to=1> (x)  y = Cast <to=16> (f) }"
    )
    session = open_session(model.SerializeToString(), SessionSettings())
    assert [port.dtype for port in session.outputs] == [ml_dtypes.bfloat16, np.float32]
    x = np.array([[1.5, -2.25], [3e38, 0]], ml_dtypes.bfloat16)
    result = session.run({"x": x})
    assert result["y"].dtype == ml_dtypes.bfloat16
    np.testing.assert_array_equal(result["y"], x)
    np.testing.assert_array_equal(result["f"], x.astype(np.float32))


def test_inputs_with_defaults_are_listed_as_not_required(capfd):
    model = parse("g (float[1] x, float[1] d) => (float[1] y) <float[1] d = {2.0}> { y = Mul (x, d) }")
    session = open_session(model.SerializeToString(), SessionSettings())
    assert [(port.name, port.required) for port in session.inputs] == [("x", True), ("d", False)]
    assert session.run({"x": np.array([3], np.float32)})["y"] == 6
    assert session.run({"x": np.array([3], np.float32), "d": np.array([5], np.float32)})["y"] == 15
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({}, "x"),
        ({"z": np.ones((1, 3, 8, 8), np.float32)}, "x"),
        ({"x": np.ones((1, 3, 8), np.float32)}, "Invalid rank for input: x"),
        ({"x": np.ones((1, 5, 8, 8), np.float32)}, "Got invalid dimensions for input: x"),
        ({"x": np.ones((1, 3, 8, 8))}, "Unexpected input data type"),
    ],
)
def test_inputs_that_do_not_fit_are_failures(convolution, inputs, message, capfd):
    with pytest.raises(RuntimeFailure, match=message) as caught:
        open_session(convolution, SessionSettings()).run(inputs)
    assert "ONNXRuntimeError" not in str(caught.value)
    assert capfd.readouterr() == ("", "")


def test_an_output_that_is_not_there_is_a_failure(convolution):
    with pytest.raises(RuntimeFailure, match="no output z, only y"):
        open_session(convolution, SessionSettings()).run({"x": np.ones((1, 3, 8, 8), np.float32)}, ["z"])


def test_a_node_that_fails_is_a_failure_without_words_on_stderr(capfd):
    model = parse("g (float[n] x, int64[k] s) => (float[m] y) { y = Reshape (x, s) }").SerializeToString()
    session = open_session(model, SessionSettings())
    with pytest.raises(RuntimeFailure, match="reshape_0") as caught:
        session.run({"x": np.ones(6, np.float32), "s": np.array([4])})
    assert caught.value.code
    assert capfd.readouterr() == ("", "")


def test_a_file_that_is_no_model_is_a_failure(tmp_path):
    with pytest.raises(RuntimeFailure, match=r"^Failed to load model because protobuf parsing failed\.$") as caught:
        open_session(b"no model", SessionSettings())
    assert caught.value.code == "INVALID_PROTOBUF"
    with pytest.raises(RuntimeFailure, match="absent"):
        open_session(tmp_path / "absent.onnx", SessionSettings())


# ---- on a GPU ----


@pytest.fixture
def needs_cuda():
    if reason := provider_status(CUDA):
        pytest.skip(reason)


@pytest.fixture(scope="module")
def wide_convolution():
    local = np.random.default_rng(0)
    weight = local.normal(size=(64, 128, 3, 3)).astype(np.float32)
    model = parse("g (float[4,128,34,34] x) => (float[4,64,32,32] y) { c = Conv (x, w)  y = Relu (c) }", w=weight)
    return model, {"x": local.normal(size=(4, 128, 34, 34)).astype(np.float32)}


def relative_error(model: onnx.ModelProto, inputs, settings: SessionSettings) -> float:
    from spdexport.reference.onnx_reference import OnnxReference

    expected = OnnxReference(model).run(inputs)["y"]
    got = open_session(model.SerializeToString(), settings).run(inputs)["y"]
    return float(np.abs(got - expected).max() / np.abs(expected).max())


def test_the_cpu_is_within_float32_rounding_of_the_reference(wide_convolution):
    assert relative_error(*wide_convolution, SessionSettings()) < 2e-6


@pytest.mark.gpu
def test_cuda_without_tf32_runs_the_nodes_within_float32_rounding(needs_cuda, wide_convolution):
    model, inputs = wide_convolution
    settings = SessionSettings(provider=CUDA, purpose=Purpose.CHECK)
    session = open_session(model.SerializeToString(), settings)
    assert session.placement() == {"CUDAExecutionProvider": ("conv_0", "relu_1")}
    assert session.settings["CUDAExecutionProvider"]["use_tf32"] == "0"
    assert session.settings["CUDAExecutionProvider"]["cudnn_conv_algo_search"] == "DEFAULT"
    assert relative_error(model, inputs, settings) < 5e-6


@pytest.mark.gpu
def test_tf32_differs_by_more(needs_cuda, wide_convolution):
    exact = relative_error(*wide_convolution, SessionSettings(provider=CUDA, purpose=Purpose.CHECK))
    tf32 = relative_error(*wide_convolution, SessionSettings(provider=CUDA, purpose=Purpose.COARSE))
    assert tf32 > 10 * exact


@pytest.mark.gpu
def test_the_cuda_device_is_among_the_versions(needs_cuda):
    assert versions()["cuda_device"]


@pytest.mark.parametrize(
    ("node", "why"),
    [
        ("RandomNormalLike <scale = 0.0> (x)", "a scale that is not above 0"),
        ("RandomUniform <low = 2.0, high = 1.0, shape = [1,3,4,4]> ()", "a low that is above its high"),
    ],
)
def test_random_numbers_of_no_spread_would_end_the_process(node, why):
    model = parse(f"g (float[1,3,4,4] x) => (float[1,3,4,4] y) {{ r = {node} y = Add (x, r) }}")
    with pytest.raises(RuntimeFailure, match=f"has {why}, on which ONNX Runtime would end the process"):
        open_session(model.SerializeToString(), SessionSettings())
