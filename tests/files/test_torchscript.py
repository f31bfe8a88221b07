"""A TorchScript archive runs nothing unseen: what has effects is refused by name and place, and nothing else is."""

import contextlib
import re
import struct
import zipfile

import pytest
import torch
from torch import Tensor, nn
from torchscript_models import MADE, SCRIPTED, ControlFlow

from spdexport.capture import DynamicAxes, capture
from spdexport.errors import PickleRefusedError, SourceError, SpdExportError
from spdexport.files.limits import reading_limits
from spdexport.files.torchscript import checked_torchscript
from spdexport.files.torchscript.operators import CLASSES, OPERATORS
from spdexport.loading import load
from spdexport.loading.inputs import as_example_inputs

pytestmark = pytest.mark.filterwarnings("ignore")  # torch's own: that TorchScript is old, that quantization moves


class Part(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * 2


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.part = Part()
        self.weight = nn.Parameter(torch.arange(3.0))

    def forward(self, x: Tensor) -> Tensor:
        return self.part(x) + self.weight


@pytest.fixture(scope="module")
def archive(tmp_path_factory):
    """A harmless archive: its members by their names inside of its folder."""
    path = tmp_path_factory.mktemp("archive") / "m.pt"
    torch.jit.script(Model().eval()).save(str(path))
    with zipfile.ZipFile(path) as file:
        return {name.partition("/")[2]: file.read(name) for name in file.namelist()}


@pytest.fixture
def saved(archive, tmp_path):
    """Writes an archive with some members exchanged, added, or left out (None), and gives its path."""

    def save(changes):
        path = tmp_path / "model.pt"
        with zipfile.ZipFile(path, "w") as file:
            for name, content in {**archive, **changes}.items():
                if content is not None:
                    file.writestr(f"m/{name}", content)
        return path

    return save


def code_of(archive):
    (name,) = (name for name in archive if name.endswith(".py") and b"class Model" in archive[name])
    return name, archive[name].decode()


# What works


def graphs(module):
    """The graphs of all methods, without what tells where they come from and what local values are called."""
    strange = re.compile(r"___torch_mangle_\d+\.|\s*# .*|warn_id=\d+|object\(0x\w+\)|(?<=%)(_print_|print)(\.\d+)?\b")
    return [
        (name, strange.sub("", part._c._get_method(name).graph.str(False)))
        for part in module.modules()
        for name in sorted(part._c._method_names())
    ]


@pytest.mark.parametrize("kind", [*(made.__name__ for made in SCRIPTED), *MADE])
def test_what_torch_writes_is_loaded_as_torch_loads_it(tmp_path, kind):
    """The graphs are those of the archive itself, although the code that torch gets is written anew."""
    scripted = {made.__name__: made for made in SCRIPTED}
    torch.backends.quantized.engine = "fbgemm"
    module = torch.jit.script(scripted[kind]()) if kind in scripted else MADE[kind]()
    path = tmp_path / "m.pt"
    module.save(str(path))
    plain, loaded = torch.jit.load(path), load(path).module
    assert graphs(loaded) == graphs(plain)
    for name, tensor in plain.state_dict().items():
        assert torch.equal(
            loaded.state_dict()[name].to_dense().dequantize().float(), tensor.to_dense().dequantize().float()
        )


def test_results_are_the_same(tmp_path):
    path = tmp_path / "m.pt"
    torch.jit.script(ControlFlow()).save(str(path))
    x, bias = torch.arange(6.0).reshape(2, 3), torch.ones(3)
    for arguments in ((x, 2), (x, 5), (x, 0, bias)):
        expected = torch.jit.load(path)(*(a.clone() if isinstance(a, Tensor) else a for a in arguments))
        assert torch.equal(load(path).module(*arguments), expected)


def test_what_loading_does_not_need_is_left_out(saved, archive):
    path = saved({"extra/notes.txt": b"anything", "bytecode.pkl": b"no pickle", "more": b"x"})
    with zipfile.ZipFile(checked_torchscript(path)) as file:
        names = {name.partition("/")[2] for name in file.namelist()}
    assert names <= set(archive)
    assert not any(name.endswith(".debug_pkl") for name in names)
    assert any(name.endswith(".debug_pkl") for name in archive)


def test_settings_of_the_process_are_as_before(tmp_path):
    class Changes(nn.Module):
        def __init__(self):
            super().__init__()
            self.w = torch.ones(1)

        @torch.jit.export
        def __getstate__(self) -> Tensor:
            return self.w

        @torch.jit.export
        def __setstate__(self, w: Tensor):
            self.w = w
            self.training = False
            torch.set_grad_enabled(False)

        def forward(self, x: Tensor) -> Tensor:
            return x

    torch.jit.script(Changes()).save(str(tmp_path / "m.pt"))
    load(tmp_path / "m.pt")
    assert torch.is_grad_enabled()


# The list


GONE = {"aten::cholesky", "aten::qr"}
"""What torch 2.13 has and 2.14 has no more."""


def test_every_operator_of_the_list_exists():
    known = {schema.name for schema in torch._C._jit_get_all_schemas()}
    listed = {f"{space}::{name}" for space, names in OPERATORS.items() for name in names}
    assert listed - known <= GONE
    for name in CLASSES:
        assert torch._C._get_custom_class_python_wrapper(*name.split(".")[-2:])


@pytest.mark.parametrize(
    "name",
    [
        "aten::save", "aten::from_file", "aten::_print", "aten::set_", "aten::set_data", "aten::backward",
        "aten::manual_seed", "aten::seed", "aten::to_here", "aten::owner", "aten::record_stream", "aten::_foobar",
        "aten::_sparse_coo_tensor_unsafe", "aten::_cufft_set_plan_cache_max_size", "prim::Print", "prim::PythonOp",
        "prim::IgnoredPythonOp", "prim::rpc_sync", "prim::rpc_async", "prim::rpc_remote", "prim::TimePoint",
        "c10d::send", "symm_mem::nvshmem_put", "debugprims::load_tensor", "profiler::_record_function_enter",
    ],
)  # fmt: skip
def test_operators_with_effects_are_not_on_the_list(name):
    assert name in {schema.name for schema in torch._C._jit_get_all_schemas()}, "the name is not what it was"
    space, _, operator = name.partition("::")
    assert operator not in OPERATORS.get(space, ())


def test_nothing_on_the_list_computes_gradients_or_is_given_a_file():
    for schema in torch._C._jit_get_all_schemas():
        space, _, name = schema.name.partition("::")
        if name in OPERATORS.get(space, ()):
            assert "backward" not in name
            assert not {"filename", "file"} & {argument.name for argument in schema.arguments}, schema.name


# Code


HOSTILE = {
    "a function": ('torch.save(x, "{out}")', "aten::save"),
    "of a namespace": ('ops.aten.save(x, "{out}")', "aten::save"),
    "of a module in torch": ('torch.autograd.save(x, "{out}")', "torch.autograd.save"),
    "under another name": ('f = torch.save\n    f(x, "{out}")', "aten::save"),
    "torch under another name": ('t = torch\n    t.save(x, "{out}")', "the name torch"),
    "looked up": ('getattr(torch, "save")(x, "{out}")', "the name torch"),
    "looked up in a namespace": ('getattr(ops.aten, "save")(x, "{out}")', "ops.aten"),
    "inside of an expression": ('y = [x, torch.from_file("/etc/passwd", False, 9, dtype=0)]', "aten::from_file"),
    "a file that is read": ('y = torch.from_file("/etc/passwd", False, 9, dtype=0)', "aten::from_file"),
    "printed": ('print("\\033]0;owned\\007")', "print"),
    "printed by an operator": ('ops.prim.Print("owned")', "prim::Print"),
    "a method of a tensor": ("y = x.set_(x)", "aten::set_"),
    "another's storage": ("y = torch.set_(x, x)", "aten::set_"),
    "the generator": ("torch.manual_seed(1)", "aten::manual_seed"),
    "another process": ('ops.prim.rpc_sync("a", "b", (x,))', "prim::rpc_sync"),
    "an unknown operator": ("y = ops.mine.run(x)", "mine::run"),
    "Python": ("y = ops.prim.PythonOp(x)", "prim::PythonOp"),
    "a C++ class": ('y = __torch__.torch.classes.profiling.SourceStats("a")', "__torch__.torch.classes.profiling"),
    "a C++ class as a type": ("y = annotate(Optional[__torch__.torch.classes._nnapi.Compilation], None)", "_nnapi"),
    "a function of nowhere": ("y = __torch__.nowhere.run(x)", "__torch__.nowhere.run"),
    "in a list": ("y = [torch.save(x, z) for z in ['a']]".replace("'", '"'), "aten::save"),
    "in a default": ('def g(y: Tensor=torch.from_file("/etc/passwd")) -> Tensor:\n      return y', "aten::from_file"),
    "in another thread": ('def g():\n      return torch.save(x, "{out}")\n    f = fork(g)', "aten::save"),
    "a second statement": ('y = 1; torch.save(x, "{out}")', "';'"),
    "a triple quote": ('"""\n    y = 1\n    """', "cannot be read"),
    "a quote that is none": ("y = 'a'", '"\'"'),
    "a continued line": ("y = 1 \\\n  + 2", "cannot be read"),
    "a lambda": ("y = lambda z: z", "cannot be read"),
    "an import": ("import os", "Import"),
    "a global": ("global torch", "cannot be read"),
    "a format": ('y = f"{x}"', "cannot be read"),
    "a walrus": ("y = (z := 1)", "NamedExpr"),
    "absurd nesting": (f"y = {'(' * 300}x{')' * 300}", "cannot be read"),
    "absurd depth": (f"y = {'-' * 3000}1", "nested too deep"),
    "no text at all": ("y = \xff\xfe", "cannot be read"),
}
"""What stands in the code, and what the refusal names."""


def with_line(archive, line, out):
    name, code = code_of(archive)
    return name, code.replace("    return", f"    {line.replace('{out}', str(out))}\n    return", 1)


@pytest.mark.parametrize("kind", HOSTILE)
def test_code_with_effects_is_refused_before_it_runs(archive, saved, tmp_path, kind, capfd):
    line, said = HOSTILE[kind]
    name, code = with_line(archive, line, tmp_path / "out")
    path = saved({name: code.encode("latin-1")})
    with pytest.raises(PickleRefusedError) as caught:
        load(path)
    assert said in caught.value.what
    assert f"{path}, m/{name}" in caught.value.where
    assert "--trust" in caught.value.hint
    assert list(tmp_path.iterdir()) == [path]
    assert capfd.readouterr().out == ""


def test_the_place_is_told_with_its_line(archive, saved, tmp_path):
    name, code = with_line(archive, 'torch.save(x, "{out}")', tmp_path / "out")
    number = code.split("\n").index(f'    torch.save(x, "{tmp_path / "out"}")') + 1
    with pytest.raises(PickleRefusedError) as caught:
        load(saved({name: code.encode()}))
    assert caught.value.where.endswith(f"m/{name}, line {number}")


METHODS = {
    "a method that nothing calls": "  def never(self, x: Tensor) -> Tensor:\n    {}\n    return x\n",
    "__setstate__": "  def __setstate__(self, state: Tensor) -> NoneType:\n    {}\n    return None\n",
    "a function": "def helper(x: Tensor) -> Tensor:\n  {}\n  return x\n",
    "a class": "class Other:\n  n : int\n  def __init__(self, n: int) -> NoneType:\n    {}\n    return None\n",
    "an interface": "class Other(ModuleInterface):\n  def forward(self, x: Tensor) -> Tensor:\n    {}\n",
    "an enumeration": "class Other(Enum):\n  A = {}\n",
    "a constant of a class": "class Other(Module):\n  a : Final[Tensor] = {}\n",
    "nowhere": "{}\n",
}


def test_a_local_name_does_not_become_the_function_print(archive, saved, capfd):
    """In torch it does where it is set on another way through the function."""
    line = 'if bool(torch.gt(torch.sum(x), 100)):\n      print = 1\n    print("owned")'
    name, code = with_line(archive, line, "")
    torch.jit.load(saved({name: code.encode()}))(torch.ones(3))
    assert "owned" in capfd.readouterr().out
    with pytest.raises(SourceError):
        load(saved({name: code.encode()})).module(torch.ones(3))
    assert "owned" not in capfd.readouterr().out


@pytest.mark.parametrize("kind", METHODS)
def test_all_code_is_looked_at(archive, saved, tmp_path, kind):
    name, code = code_of(archive)
    path = saved({name: (code + METHODS[kind].format('torch.from_file("/etc/passwd", False, 9)')).encode()})
    with pytest.raises(PickleRefusedError):
        load(path)


def test_a_file_of_code_that_nothing_names_is_looked_at(saved):
    code = b'def run(x: Tensor) -> Tensor:\n  torch.save(x, "out")\n  return x\n'
    with pytest.raises(PickleRefusedError, match="aten::save") as caught:
        load(saved({"code/__torch__/beside/it.py": code}))
    assert caught.value.where.endswith("m/code/__torch__/beside/it.py, line 2")


DECOY = """class Decoy:
  n : int
  def set_(self: __torch__.Decoy, x: Tensor) -> Tensor:
    return x
"""


def test_a_method_of_the_name_of_an_operator_hides_none(archive, saved):
    """That the archive has a harmless method of the name does not make the operator harmless."""
    for call in ("y = x.set_(x)", "y = (x).set_(x)", 'y = getattr(x, "set_")(x)', "z = x\n    y = z.set_(x)"):
        name, code = with_line(archive, call, "")
        with pytest.raises(PickleRefusedError, match="aten::set_"):
            load(saved({name: (code + DECOY).encode()}))


def test_an_archive_cannot_define_what_torch_takes_from_itself(archive, saved):
    name, code = with_line(archive, 'y = __torch__.torch.classes.profiling.SourceStats("a")', "")
    own = b"class SourceStats:\n  n : int\n"
    with pytest.raises(PickleRefusedError, match="torch's own"):
        load(saved({name: code.encode(), "code/__torch__/torch/classes/profiling.py": own}))


@pytest.mark.parametrize("line", ['  __annotations__["a\\"), b"] = int', '  __annotations__["a\\x22"] = int'])
def test_names_that_torch_would_write_into_a_program_are_plain(archive, saved, line):
    """torch puts names of parts between quotes into the source of a program that it runs, and does not escape them."""
    name, code = code_of(archive)
    with pytest.raises(PickleRefusedError, match="a name that is not plainly written"):
        load(saved({name: (code + f"class Other(Module):\n{line}\n").encode()}))


def test_a_great_deal_of_code_is_not_read(saved):
    path = saved({"code/__torch__/more.py": b"#" * (1 << 21)})
    with reading_limits(code=2), pytest.raises(SourceError, match="have 3 MiB, and the limit is 2 MiB"):
        load(path)
    load(path)


def test_code_of_the_first_versions(archive, saved):
    name, code = code_of(archive)
    load(saved({name: f"op_version_set = 1\n{code}".encode()}))


# Loops


@pytest.mark.parametrize("loop", ["while True:", "while 1:", "y = True\n    while y:"])
def test_a_loop_without_an_end_is_refused(archive, saved, loop):
    name, code = with_line(archive, f"{loop}\n      z = x", "")
    with pytest.raises(SourceError, match="never ends") as caught:
        load(saved({name: code.encode()}))
    assert ", line " in caught.value.where


@pytest.mark.parametrize(
    "trips", ["9223372036854775807", "0, 9223372036854775807, 2", "9223372036854775807, 0, -1", "100001"]
)
def test_a_loop_of_too_many_trips_is_refused(archive, saved, trips):
    for line in (f"for i in range({trips}):", f"n = {trips}\n    for i in range(n):"):
        if "," in trips and "n =" in line:
            continue
        name, code = with_line(archive, f"{line}\n      z = x", "")
        path = saved({name: code.encode()})
        with pytest.raises(SourceError, match=r"makes \d+ trips, and the limit is 100000") as caught:
            load(path)
        assert "--limit trips=" in caught.value.hint


def counting(start, compare, stop, step):
    """A loop as torch writes ``while i < stop: i += step``."""
    lines = [f"i = {start}", "more = True", "while more:", f"  j = torch.add(i, {step})"]
    return "\n    ".join([*lines, f"  more, i = torch.{compare}(j, {stop}), j"])


@pytest.mark.parametrize(
    ("loop", "trips"),
    [
        (("0", "lt", "4611686018427387904", "1"), 4611686018427387904),
        (("0", "le", "100000", "1"), 100001),
        (("5", "lt", "400006", "4"), 100001),
        (("0", "gt", "-100001", "-1"), 100001),
        (("0", "ge", "-100000", "-1"), 100001),
    ],
)
def test_a_loop_that_counts_too_far_is_refused(archive, saved, loop, trips):
    name, code = with_line(archive, counting(*loop), "")
    with pytest.raises(SourceError, match=f"makes {trips} trips, and the limit is 100000"):
        load(saved({name: code.encode()}))
    start, compare, stop, step = loop
    for other in (counting(int(start) + int(step), compare, stop, step), counting(start, compare, "x.dim()", step)):
        if trips == 100001 or "dim" in other:
            name, code = with_line(archive, other, "")
            load(saved({name: code.encode()}))


def test_a_loop_as_torch_writes_it_is_counted(tmp_path):
    def counted(x: torch.Tensor) -> torch.Tensor:
        i = 0
        while i < 123456:
            i += 1
        return x + i

    torch.jit.script(counted).save(str(tmp_path / "m.ts"))
    with pytest.raises(SourceError, match="makes 123456 trips"):
        load(tmp_path / "m.ts")


def test_the_limit_of_trips_is_the_users(archive, saved):
    name, code = with_line(archive, "for i in range(100001):\n      z = x", "")
    path = saved({name: code.encode()})
    with reading_limits(trips=100_001):
        load(path)


# Pickles


def unicode_(text):
    return b"X" + struct.pack("<I", len(text)) + text.encode()


def global_(name):
    module, _, rest = name.rpartition(".")
    return f"c{module}\n{rest}\n".encode()


def tensor(sizes, strides, *, offset=0, elements=3, kind="FloatStorage", key="0"):
    """A tensor as torch's pickler writes it."""

    def integers(values):
        return b"(" + b"".join(b"J" + struct.pack("<i", value) for value in values) + b"t"

    storage = b"(" + unicode_("storage") + global_(f"torch.{kind}") + unicode_(key) + unicode_("cpu")
    storage += b"J" + struct.pack("<i", elements) + b"tQ"
    rest = b"J" + struct.pack("<i", offset) + integers(sizes) + integers(strides) + b"\x89"
    rest += global_("collections.OrderedDict") + b")Rt"
    return global_("torch._utils._rebuild_tensor_v2") + b"(" + storage + rest + b"R"


def constants(value):
    return {"constants.pkl": b"\x80\x02(" + value + b"t.", "constants/0": bytes(12)}


def test_a_plain_constant_is_read(saved):
    load(saved(constants(tensor([3], [1]))))


PICKLES = {
    "a function": (global_("os.system") + unicode_("true") + b"\x85R", "os.system"),
    "a function of torch": (global_("torch.load") + unicode_("m.pt") + b"\x85R", "torch.load"),
    "a class of nowhere": (global_("__torch__.nowhere.Class") + b")\x81}b", "__torch__.nowhere.Class"),
    "a C++ class": (global_("__torch__.torch.classes.profiling.InstructionStats") + b")\x81}b", "InstructionStats"),
    "a C++ class as a type": (
        global_("torch.jit._pickle.restore_type_tag")
        + b"]" + unicode_("List[__torch__.torch.classes._nnapi.Compilation]") + b"\x86R",
        "_nnapi.Compilation",
    ),
    "a name from the stack": (unicode_("os") + unicode_("system") + b"\x93", "STACK_GLOBAL"),
    "an old kind of object": (b"(ios\nsystem\n", "INST"),
    "a list that holds itself": (b"]q\x00h\x00a", "holds itself"),
    "lists in lists": (b"]" * 600 + b"a" * 599, "500 deep"),
}  # fmt: skip


@pytest.mark.parametrize("kind", PICKLES)
def test_a_pickle_of_something_else_is_refused(saved, kind):
    value, said = PICKLES[kind]
    with pytest.raises(PickleRefusedError) as caught:
        load(saved(constants(value)))
    assert said in caught.value.what
    assert caught.value.where.endswith("m/constants.pkl")
    assert "--trust" in caught.value.hint


DAMAGED = {
    "more elements than bytes": tensor([3], [1], elements=4),
    "fewer than none": tensor([3], [1], elements=-1),
    "no bytes": tensor([3], [1], key="1"),
    "beyond the end": tensor([4], [1]),
    "strides beyond the end": tensor([3], [2]),
    "before the beginning": tensor([3], [1], offset=-1),
    "backwards": tensor([3], [-1], offset=2),
    "fewer strides": tensor([3, 1], [1]),
    "a negative size": tensor([-3], [1]),
    "a kind of its own": global_("torch.FloatStorage") + tensor([3], [1]).replace(global_("torch.FloatStorage"), b"N"),
    "a far memo": b"Nr" + struct.pack("<I", 1 << 31),
    "no mark": b"tt",
    "an empty stack": b"0",
    "cut off": b"X\xff\xff\x00\x00ab",
}


@pytest.mark.parametrize("kind", DAMAGED)
def test_a_pickle_that_fits_nothing_is_damaged(saved, kind):
    with pytest.raises(SourceError, match=r"pickle is damaged|pickle operation POP"):
        load(saved(constants(DAMAGED[kind])))


def sparse(rows, sizes, count):
    indices = tensor([1, count], [count, 1], elements=count, kind="LongStorage", key="1")
    values = tensor([3], [1])
    lengths = b"(" + b"".join(b"J" + struct.pack("<i", size) for size in sizes) + b"t"
    state = b"(K\x01" + lengths + b"\x89" + indices + values + global_("collections.OrderedDict") + b")Rt"
    value = global_("torch._utils._rebuild_sparse_tensor") + state + b"R"
    return {**constants(value), "constants/1": struct.pack(f"<{len(rows)}q", *rows)}


def test_indices_of_sparse_tensors(saved):
    load(saved(sparse([0, 1, 2], [3], 3)))
    for rows, sizes, count in (
        ([0, 1, 3], [3], 3),
        ([0, -1, 2], [3], 3),
        ([0, 1], [3], 2),
        ([0, 1, 2], [3, 4], 3),
        ([0, 1, 2], [], 3),
    ):
        with pytest.raises(SourceError, match="a sparse tensor"):
            load(saved(sparse(rows, sizes, count)))


def test_members_outside_of_the_folder(saved, archive, tmp_path):
    path = saved({})
    with zipfile.ZipFile(path, "a") as file:
        file.writestr("other/data.pkl", archive["data.pkl"])
    with pytest.raises(SourceError, match="outside of its folder"):
        load(path)


@pytest.mark.parametrize("cut", range(0, 200, 7))
def test_pickles_that_are_cut_off_are_told(saved, archive, cut):
    content = archive["data.pkl"]
    if cut < len(content):
        with pytest.raises(SourceError):
            load(saved({"data.pkl": content[:cut]}))


# Trust


def test_what_is_trusted_runs(archive, saved, tmp_path):
    name, code = with_line(archive, 'torch.save(x, "{out}")', tmp_path / "out")
    path = saved({name: code.encode()})
    for keyword in ({"trust": True},):
        loaded = load(path, **keyword)
        assert "--trust" in loaded.notes[0]
        loaded.module(torch.ones(3))
        assert (tmp_path / "out").exists()


@pytest.mark.parametrize("function", ["torch", "ops.aten"])
def test_a_warning_of_the_archive_is_not_heard(archive, saved, capfd, function):
    """torch writes them onto standard error itself, where nothing makes their text harmless."""
    name, code = with_line(archive, f'{function}.warn(torch.format("\\033]0;{{}}owned", x), 2)', "")
    loaded = load(saved({name: code.encode()}))
    captured = capture(loaded, as_example_inputs(torch.ones(2, 3), "inputs"), DynamicAxes(batch=False))
    assert "owned" not in "".join(capfd.readouterr())
    x = torch.ones(2, 3)
    assert torch.equal(captured.program.module()(x), 2 * x + torch.arange(3.0))


def test_a_warning_that_is_no_statement_is_refused(archive, saved):
    for line in ("y = torch.warn", 'y = torch.warn("owned", 2)', "y = ops.aten.warn"):
        name, code = with_line(archive, line, "")
        with pytest.raises(PickleRefusedError, match="aten::warn"):
            load(saved({name: code.encode()}))


def test_every_byte_of_the_code_changed_loads_or_is_refused(archive, saved):
    """Nothing but the package's own errors, whatever stands in the code."""
    name, code = code_of(archive)
    content = code.encode()
    for place in range(0, len(content), 5):
        for byte in (0, 0x22, 0x28, 0x5C, 0xC3):
            changed = bytes([*content[:place], byte, *content[place + 1 :]])
            with contextlib.suppress(SpdExportError):
                checked_torchscript(saved({name: changed}))
