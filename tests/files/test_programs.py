import io
import json
import zipfile

import pytest
import torch
from torch import nn

from spdexport.errors import PickleRefusedError, SourceError
from spdexport.files.programs import check_program


def _json_of(program) -> dict:
    buffer = io.BytesIO()
    torch.export.save(program, buffer)
    with zipfile.ZipFile(buffer) as archive:
        name = next(n for n in archive.namelist() if "/models/" in n)
        return json.loads(archive.read(name))


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, stride=2, padding=1)
        self.names = nn.ParameterDict({"a": nn.Parameter(torch.ones(1))})

    def forward(self, x, extra):
        y = self.conv(x)
        y = torch.nn.functional.interpolate(y, size=(y.shape[2] // 2 + 1, y.shape[3]), mode="nearest")
        for value in extra.values():
            y = y + value.sum()
        return {"out": y.flatten(1), "pair": (y & 1 if y.dtype is torch.int64 else y, self.names["a"])}


@pytest.fixture(scope="module")
def program():
    batch, height = torch.export.Dim("batch", max=64), torch.export.Dim.AUTO
    args, kwargs = (torch.ones(2, 3, 9, 9),), {"extra": {"k": torch.ones(4), "z-1": torch.ones(2)}}
    shapes = {"x": {0: batch, 2: height}, "extra": {"k": None, "z-1": None}}
    return _json_of(torch.export.export(Model(), args, kwargs, dynamic_shapes=shapes))


def _check(program) -> None:
    check_program(json.dumps(program).encode(), where="m.pt2, member models/model.json")


def test_what_torch_writes_passes(program):
    assert "expr_str" in json.dumps(program)
    _check(program)


@pytest.mark.parametrize(
    "guard",
    ["L['x'].size()[0] >= 2", "(L['x'].size()[2] % 2) == 0", "L['a']['k'].size()[0] < 3 and math.isnan(1.0)",
     "Eq(Mod(L['x'].size()[0], 2), 0)", "torch.sym_max(3, L['x'].stride()[0]) != 1"],
)  # fmt: skip
def test_guards_of_sizes_pass(program, guard):
    _check({**program, "guards_code": [guard]})


@pytest.mark.parametrize(
    "guard",
    ["__import__('os')", "torch.os.system('ls')", "L['x'].__class__", "eval('x')", "(lambda: 1)()", "open('x')",
     "[x for x in L]", "torch.sym_int(L['x'].backward())", "1)\nimport os\n(1"],
)  # fmt: skip
def test_guards_that_do_more_are_refused(program, guard):
    with pytest.raises(PickleRefusedError, match="text that torch would run as code"):
        _check({**program, "guards_code": [guard]})


@pytest.mark.parametrize(
    "expression",
    ["__import__('os').system('touch x')", "Symbol('s0').__class__", "eval('s0')", "Symbol('a b')", "[1]",
     "Symbol('__import__(1)')", "(lambda: 1)()"],
)  # fmt: skip
def test_sizes_that_do_more_are_refused(program, expression):
    text = json.dumps(program)
    first = program["graph_module"]["graph"]["tensor_values"]["x"]["sizes"][0]["as_expr"]["expr_str"]
    changed = json.loads(text.replace(json.dumps(first), json.dumps(expression), 1))
    assert changed != program
    with pytest.raises(PickleRefusedError, match="expr_str"):
        _check(changed)


@pytest.mark.parametrize(
    ("target", "fine"),
    [
        ("torch.ops.aten.__and__.Tensor", True),
        ("torch.ops.higher_order.cond", True),
        ("torch.ops._c10d_functional.wait_tensor.default", True),
        ("_operator.floordiv", True),
        ("math.trunc", True),
        ("torch.sym_max", True),
        ("torch.os.system", False),
        ("torch.load", False),
        ("torch.hub.load", False),
        ("torch.ops.load_library", False),
        ("torch.ops.load_library.__call__", False),
        ("torch.ops.aten.__class__.x", False),
        ("torch.ops.aten._unsafe_index.Tensor", True),
        ("torch.ops.aten.sym_size.int", True),
        ("torch.ops.a_library.not_imported.default", True),  # which torch tells
        ("torch.ops.aten._dir.append", False),
        ("torch.ops.aten.add", False),
        ("torch.ops.aten.from_file.default", False),
        ("torch.ops.aten._print.default", False),
        ("torch.ops.aten.save.default", False),
        ("torch.ops.aten.manual_seed.default", False),
        ("torch.ops.prim.PythonOp.default", False),
        ("torch.ops.prim.rpc_sync.default", False),
        ("torch.ops.profiler._record_function_enter_new.default", False),
        ("torch.ops.higher_order.print", False),
        ("_operator.methodcaller", False),
        ("_operator.__call__", False),
        ("os.system", False),
    ],
)
def test_operators_are_taken_from_known_places(program, target, fine):
    changed = json.loads(json.dumps(program))
    changed["graph_module"]["graph"]["nodes"][0]["target"] = target
    if fine:
        _check(changed)
        return
    with pytest.raises(PickleRefusedError, match="target"):
        _check(changed)


def test_operators_that_are_arguments_are_checked_as_those_that_are_called(program):
    changed = json.loads(json.dumps(program))
    node = changed["graph_module"]["graph"]["nodes"][0]
    node["target"] = "torch.ops.higher_order.wrap"
    for name in ("torch.os.system", "torch.ctypes.CDLL", "torch.ops.aten.save.default"):
        node["inputs"] = [{"name": "func", "arg": {"as_operator": name}, "kind": 1}]
        with pytest.raises(PickleRefusedError, match="as_operator"):
            _check(changed)
    node["inputs"] = [{"name": "func", "arg": {"as_operator": "torch.ops.aten.relu.default"}, "kind": 1}]
    _check(changed)


def test_names_that_are_source_text_are_refused(program):
    changed = json.loads(json.dumps(program).replace('"x"', '"x=print(1)"'))
    with pytest.raises(PickleRefusedError, match="name"):
        _check(changed)


@pytest.mark.parametrize("context", [{"__enum__": 1, "fqn": "os:x", "name": "y"}, ["a'b"], ["a\nb"], ['a"+print(1)+"']])
def test_trees_that_import_or_quote_are_refused(program, context):
    tree = [1, {"type": "builtins.dict", "context": json.dumps(context), "children_spec": []}]
    changed = json.loads(json.dumps(program))
    changed["graph_module"]["module_call_graph"][0]["signature"]["in_spec"] = json.dumps(tree)
    with pytest.raises(PickleRefusedError, match="in_spec"):
        _check(changed)


def test_text_that_is_no_json():
    with pytest.raises(SourceError, match="JSON cannot be read"):
        check_program(b"{", where="m.pt2")
    with pytest.raises(SourceError, match="JSON cannot be read"):
        check_program(b"[" * 100_000, where="m.pt2")


@pytest.mark.parametrize(
    "entry",
    [
        {"name": {"size": 1}, "arg": {"as_ints": [1]}},
        {"name": "size", "arg": {"as_ints": [{"as_int": []}, None, "2"]}},
    ],
)
def test_entries_of_any_type_are_no_fault_of_our_own(program, entry):
    _check({**program, "more": [entry]})


def test_sizes_whose_product_has_thousands_of_digits_are_refused(program):
    with pytest.raises(SourceError, match="more numbers than a machine can count"):
        _check({**program, "more": [{"sizes": [{"as_int": 2**63 - 1}] * 3000}]})
