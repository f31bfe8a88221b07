"""The public names: what they are, that they load late, and that they stay what they are."""

import importlib
import inspect
import subprocess
import sys

import pytest

import spdexport

NAMES = {
    "convert", "verify", "inspect", "fold", "factorize", "load_components",
    "Options", "OptionsDict", "Conversion", "Inspection", "Folding", "Verification", "EdgeResult", "Status",
    "compress", "Compression", "bench", "Bench", "derive_masks", "DerivedMasks", "ablate", "Ablations",
    "atlas", "Atlas", "lab", "Lab",
    "ComponentSet", "Factors", "ConvSpec", "Plan", "LayerPlan",
    "SpdExportError", "UsageError", "RuntimeMissingError", "InputError", "SourceError", "PickleRefusedError",
    "ComponentsError", "MaskError", "PlanError", "ExampleInputError", "ModelError", "CaptureError", "ExportError",
    "IncompleteError", "OutputError", "reading_limits",
    "__version__",
}  # fmt: skip


def test_all_is_what_is_documented():
    assert set(spdexport.__all__) == NAMES
    assert list(spdexport.__all__) == sorted(spdexport.__all__)


@pytest.mark.parametrize("name", sorted(NAMES - {"__version__"}))
def test_every_name_loads_and_is_explained(name):
    value = getattr(spdexport, name)
    assert value.__doc__
    assert value.__name__ == name


def test_all_errors_are_public():
    errors = importlib.import_module("spdexport.errors")
    assert {n for n, v in vars(errors).items() if inspect.isclass(v) and issubclass(v, Exception)} <= NAMES


def test_dir_offers_what_is_not_loaded_yet():
    assert set(dir(spdexport)) >= NAMES


def test_unknown_name():
    with pytest.raises(AttributeError, match="module 'spdexport' has no attribute 'fuld'"):
        _ = spdexport.fuld


def _python(script):
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    return done.stdout.strip()


def test_import_loads_nothing_heavy():
    heavy = "{'torch', 'onnx', 'onnx_ir', 'numpy', 'onnxruntime', 'click', 'rich'}"
    assert _python(f"import sys, spdexport; spdexport.__version__; print(*({heavy} & set(sys.modules)))") == ""


def test_verify_is_the_function_whatever_was_imported_before():
    script = (
        "import spdexport.verification.result, spdexport.pipeline, spdexport\n"
        "from spdexport import verify\n"
        "print(callable(spdexport.verify), callable(verify))"
    )
    assert _python(script) == "True True"


def test_errors_carry_their_status():
    named = {
        70: spdexport.SpdExportError,
        2: spdexport.UsageError,
        4: spdexport.InputError,
        5: spdexport.ModelError,
    }
    assert {status: error.exit_status for status, error in named.items()} == {70: 70, 2: 2, 4: 4, 5: 5}
