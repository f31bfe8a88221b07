"""What is installed, told clearly where it is missing or doubled."""

import importlib.metadata
import sys
import types

import pytest

from spdexport.errors import RuntimeMissingError
from spdexport.ort import installed
from spdexport.ort.installed import import_onnxruntime, versions


def with_installed(monkeypatch, **present: str) -> None:
    real = importlib.metadata.version

    def version(name: str) -> str:
        if name in installed.DISTRIBUTIONS:
            if name.replace("-", "_") in present:
                return present[name.replace("-", "_")]
            raise importlib.metadata.PackageNotFoundError(name)
        return real(name)

    monkeypatch.setattr(importlib.metadata, "version", version)


def test_two_packages_at_once_are_refused_with_the_commands_to_run(monkeypatch):
    with_installed(monkeypatch, onnxruntime="1.31.1", onnxruntime_gpu="1.31.1")
    with pytest.raises(RuntimeMissingError, match="both installed") as caught:
        import_onnxruntime()
    assert len(str(caught.value).splitlines()) == 3
    assert "pip uninstall -y onnxruntime onnxruntime-gpu" in caught.value.hint
    assert caught.value.exit_status == 2


def test_packages_of_other_providers_are_told_apart_too(monkeypatch):
    with_installed(monkeypatch, onnxruntime="1.31.1", onnxruntime_gpu="1.31.1", onnxruntime_openvino="1.24.1")
    with pytest.raises(RuntimeMissingError, match="are all installed") as caught:
        import_onnxruntime()
    assert "`pip uninstall -y onnxruntime onnxruntime-gpu onnxruntime-openvino`" in caught.value.hint


@pytest.mark.parametrize("name", ["onnxruntime_openvino", "onnxruntime_webgpu"])
def test_the_package_of_another_provider_is_among_the_versions(monkeypatch, name):
    with_installed(monkeypatch, **{name: "1.24.1"})
    assert versions()["onnxruntime"] == f"{name.replace('_', '-')} 1.24.1"


def test_a_missing_package_is_told(monkeypatch):
    with_installed(monkeypatch)
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(RuntimeMissingError, match="cannot be imported") as caught:
        import_onnxruntime()
    assert "pip install onnxruntime" in caught.value.hint


def test_what_is_left_after_uninstalling_one_of_two_is_told(monkeypatch):
    with_installed(monkeypatch, onnxruntime="1.31.1")
    left = types.ModuleType("onnxruntime")
    left.__path__ = ["/site-packages/onnxruntime"]
    monkeypatch.setitem(sys.modules, "onnxruntime", left)
    with pytest.raises(RuntimeMissingError, match="no InferenceSession") as caught:
        import_onnxruntime()
    assert caught.value.hint == "Run `pip install --force-reinstall onnxruntime`."


def test_versions_name_what_a_result_depends_on():
    found = versions()
    assert {"spdexport", "onnx", "numpy", "onnxruntime", "python", "platform"} <= set(found)
    name, version = found["onnxruntime"].split()
    assert importlib.metadata.version(name) == version
    assert found["python"] == ".".join(map(str, sys.version_info[:3]))
