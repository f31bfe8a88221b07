import random
import sys

import numpy as np
import pytest
import torch

from spdexport.errors import ExampleInputError, SourceError, UsageError
from spdexport.loading.factory import call_factory

CODE = """
import random
import numpy, torch
from sibling import WIDTH

class Net(torch.nn.Linear):
    def __init__(self):
        super().__init__(WIDTH, 2)

def make():
    return Net()

def make_with_inputs():
    return Net(), torch.ones(3, WIDTH)

def make_with_names():
    return Net(), {"input": torch.ones(3, WIDTH)}

def make_with_none():
    return Net(), None

def draws():
    net = Net()
    net.drawn = (random.random(), float(numpy.random.rand()), float(torch.rand(())))
    return net

def fails():
    return helper()

def helper():
    raise RuntimeError("weights are\\nmissing")

def exits():
    raise SystemExit(3)

def wrong():
    return 3

def gives_class():
    return Net

def bad_inputs():
    return Net(), "text"

number = 3
"""


@pytest.fixture
def file(tmp_path):
    (tmp_path / "sibling.py").write_text("WIDTH = 4\n")
    path = tmp_path / "zoo.py"
    path.write_text(CODE)
    yield path
    sys.modules.pop("sibling", None)


def test_function_and_class(file):
    before = list(sys.path)
    for name in ("make", "Net"):
        result = call_factory(f"{file}:{name}", seed=0)
        assert result.module.in_features == 4
        assert result.inputs is None
    assert sys.path == before


def test_inputs(file):
    inputs = call_factory(f"{file}:make_with_inputs", seed=0).inputs
    assert [x.shape for x in inputs.args] == [(3, 4)]
    assert inputs.origin == "factory"
    assert list(call_factory(f"{file}:make_with_names", seed=0).inputs.kwargs) == ["input"]
    assert call_factory(f"{file}:make_with_none", seed=0).inputs is None


def test_the_seed_fixes_all_three_generators(file):
    def drawn(seed):
        random.seed()
        np.random.seed()
        torch.seed()
        return call_factory(f"{file}:draws", seed=seed).module.drawn

    first, again, other = drawn(5), drawn(5), drawn(6)
    assert first == again
    assert all(a != b for a, b in zip(first, other, strict=True))


def test_an_importable_module_and_the_working_directory(file, monkeypatch):
    monkeypatch.chdir(file.parent)
    try:
        assert call_factory("zoo:make", seed=0).module.out_features == 2
    finally:
        sys.modules.pop("zoo", None)
    assert isinstance(call_factory("torch.nn:Identity", seed=0).module, torch.nn.Identity)


@pytest.mark.parametrize(
    ("name", "line", "text"), [("fails", 31, "RuntimeError: weights are missing"), ("exits", 34, "SystemExit: 3")]
)
def test_the_users_exception_has_the_users_line(file, name, line, text):
    assert CODE.splitlines()[line - 1].strip().startswith("raise")
    with pytest.raises(SourceError, match=text) as caught:
        call_factory(f"{file}:{name}", seed=0)
    assert caught.value.where.startswith(f"{file}, line {line}")
    assert str(caught.value).count("\n") == 2


def test_code_that_cannot_be_imported(file):
    (file.parent / "bad.py").write_text("x = 1\ndef make(:\n")
    with pytest.raises(SourceError, match="SyntaxError") as caught:
        call_factory(f"{file.parent / 'bad.py'}:make", seed=0)
    assert caught.value.where.endswith("bad.py, line 2")
    (file.parent / "needs.py").write_text("import no_such_package\n")
    with pytest.raises(SourceError, match="no_such_package") as caught:
        call_factory(f"{file.parent / 'needs.py'}:make", seed=0)
    assert caught.value.where.startswith(f"{file.parent / 'needs.py'}, line 1")
    with pytest.raises(SourceError, match="There is no Python module 'no_such_zoo'"):
        call_factory("no_such_zoo.models:make", seed=0)


def test_the_error_raised_inside_a_library_names_the_users_line(file):
    path = file.parent / "lib.py"
    path.write_text("import torch\ndef make():\n    return torch.nn.Linear('a', 2)\n")
    with pytest.raises(SourceError, match="TypeError") as caught:
        call_factory(f"{path}:make", seed=0)
    assert caught.value.where == f"{path}, line 3, in make"


@pytest.mark.parametrize(
    ("name", "message", "hint"),
    [
        ("mkae", "There is no 'mkae'", "Did you mean make?"),
        ("zzz", "There is no 'zzz'", "It offers: Net, bad_inputs"),
        ("number", "'number' is not callable", "It offers: Net"),
        ("wrong", "returned int, not a module", "Return the torch.nn.Module"),
        ("gives_class", "returned the class Net", "Return the torch.nn.Module"),
    ],
)
def test_wrong_names_and_results(file, name, message, hint):
    with pytest.raises(SourceError, match=message) as caught:
        call_factory(f"{file}:{name}", seed=0)
    assert hint in caught.value.hint


def test_inputs_that_are_no_tensors(file):
    with pytest.raises(ExampleInputError, match="is of type str, not a tensor"):
        call_factory(f"{file}:bad_inputs", seed=0)


@pytest.mark.parametrize("spec", ["zoo.py", "zoo.py:", ":make", "zoo.py:a-b"])
def test_the_form_of_the_spec(spec):
    with pytest.raises(UsageError, match="not of the form"):
        call_factory(spec, seed=0)


def test_a_missing_file(tmp_path):
    with pytest.raises(SourceError, match="file does not exist"):
        call_factory(f"{tmp_path / 'none.py'}:make", seed=0)
