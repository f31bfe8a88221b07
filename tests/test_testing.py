"""``spdexport.testing`` and the pytest plugin, as a test suite of someone else uses them."""

import importlib.metadata
import tomllib
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper

import spdexport
from spdexport.errors import SourceError
from spdexport.report.terminal import as_text
from spdexport.testing import WIDTH, NotEquivalentError, assert_equivalent
from spdexport.verification.result import Status

pytest_plugins = ["pytester"]

SUITE = """
    import torch

    def make_model():
        torch.manual_seed(0)
        return torch.nn.Sequential(torch.nn.Conv2d(2, 4, 3), torch.nn.ReLU(), torch.nn.Conv2d(4, 3, 3))

    def test_the_file(assert_equivalent):
        assert_equivalent({file!r}, make_model(), torch.ones(2, 2, 8, 8), providers=["cpu"])
"""


def make_model():
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Conv2d(2, 4, 3), torch.nn.ReLU(), torch.nn.Conv2d(4, 3, 3))


X = torch.ones(2, 2, 8, 8)


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    path = tmp_path_factory.mktemp("files") / "model.onnx"
    spdexport.convert(make_model(), path, inputs=X, verify=False)
    return path


@pytest.fixture(scope="module")
def changed(file):
    """The file with one weight off."""
    model = onnx.load(file)
    weight = next(t for t in model.graph.initializer if t.name == "2.U")
    values = numpy_helper.to_array(weight).copy()
    values.flat[0] += 0.5
    weight.CopyFrom(numpy_helper.from_array(values, weight.name))
    path = file.with_name("changed.onnx")
    onnx.save(model, path)
    return path


def test_torch_logs_nothing_behind_the_message(changed, caplog):
    caplog.set_level(0)
    with pytest.raises(NotEquivalentError):
        assert_equivalent(changed, make_model(), X, providers=["cpu"])
    assert caplog.records == []


def test_an_equivalent_file(file):
    found = assert_equivalent(file, make_model(), X, providers=["cpu"])
    assert found.verdict is Status.PASS
    assert found.inputs[0] == "given by inputs"


def test_a_changed_file_and_the_message(changed):
    with pytest.raises(NotEquivalentError) as error:
        assert_equivalent(changed, make_model(), X, providers=["cpu"])
    message = str(error.value)
    assert message.startswith("not equivalent: what the file computes differs by more than rounding\nedge ")
    assert "first diverges at 2: " in message
    assert "weights: what this means" in message
    assert "\x1b" not in message
    assert error.value.verification.verdict is Status.FAIL
    assert isinstance(error.value, AssertionError)
    assert as_text(error.value.verification, width=WIDTH) == message


def test_a_file_by_itself(file, changed):
    assert assert_equivalent(file, providers=["cpu"]).verdict is Status.PASS
    with pytest.raises(NotEquivalentError, match="changed since conversion"):
        assert_equivalent(changed, providers=["cpu"])


@pytest.fixture
def vacuous(tmp_path):
    """A file whose output does not depend on its input, which no comparison can say anything about."""
    zeros = onnx.helper.make_node("Constant", [], ["zero"], value=numpy_helper.from_array(np.zeros((1,), np.float32)))
    times = onnx.helper.make_node("Mul", ["x", "zero"], ["y"])
    shape = ["batch", 3]
    ports = [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, shape) for name in ("x", "y")]
    graph = onnx.helper.make_graph([zeros, times], "g", ports[:1], ports[1:])
    opsets = [onnx.helper.make_opsetid("", 20)]
    onnx.save(onnx.helper.make_model(graph, opset_imports=opsets, ir_version=10), tmp_path / "zero.onnx")
    return tmp_path / "zero.onnx"


def test_inconclusive_fails_unless_it_is_allowed(vacuous):
    with pytest.raises(NotEquivalentError, match="inconclusive: the check could not decide") as error:
        assert_equivalent(vacuous, providers=["cpu"])
    assert "no output reacts to the inputs" in " ".join(str(error.value).split())
    assert assert_equivalent(vacuous, providers=["cpu"], allow_inconclusive=True).verdict is Status.INCONCLUSIVE


def test_failing_is_never_allowed(changed):
    with pytest.raises(NotEquivalentError, match="not equivalent"):
        assert_equivalent(changed, providers=["cpu"], allow_inconclusive=True)


def test_what_cannot_be_checked_is_an_error_of_its_own(tmp_path):
    with pytest.raises(SourceError, match="no such file"):
        assert_equivalent(tmp_path / "none.onnx")


def test_the_fixture(pytester, file, changed):
    pytester.makepyfile(test_good=SUITE.format(file=str(file)), test_bad=SUITE.format(file=str(changed)))
    result = pytester.runpytest("-p", "spdexport.pytest_plugin")
    result.assert_outcomes(passed=1, failed=1)
    result.stdout.fnmatch_lines(
        [
            ">*assert_equivalent(*changed.onnx*",
            "E*NotEquivalentError: not equivalent: what the file computes differs by more than rounding",
            "E*weights * fail *first diverges at 2:*",
            "E*weights: what this means",
            "E*to do: if the file was edited*",
        ]
    )
    assert "spdexport/testing.py" not in result.stdout.str()  # the traceback ends at the user's own line


def test_the_plugin_is_installed_under_its_own_name():
    text = (Path(__file__).parents[1] / "pyproject.toml").read_text(encoding="utf-8")
    named = tomllib.loads(text)["project"]["entry-points"]["pytest11"]
    assert named == {"spdexport.pytest_plugin": "spdexport.pytest_plugin"}
    for name, value in named.items():
        assert importlib.metadata.EntryPoint(name, value, "pytest11").load().assert_equivalent


def test_the_plugin_loads_nothing_heavy(pytester):
    pytester.makepyfile(
        """
        import sys

        def test_it():
            assert not {"torch", "onnx", "onnxruntime", "rich"} & set(sys.modules)
        """
    )
    pytester.runpytest_subprocess("-p", "spdexport.pytest_plugin").assert_outcomes(passed=1)
