"""What someone meets who has a model and has read nothing: what can be worked out is, and one error names all else."""

import os
import shlex
import shutil
import subprocess
import sys

import onnx
import onnx_models
import pytest
import torch
from cli_command import EXAMPLE, RUN, spdexport
from safetensors.torch import save_file
from torch import nn

import spdexport as package
from spdexport.loading.guessing import blanks_in, guess_factory, shape_like, shape_that_runs, work_out_inputs

CODE = """
import torch
from torch import nn

class Other(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(1, 4, 3)

class Net(nn.Module):
    def __init__(self, width=4):
        super().__init__()
        self.conv, self.unused = nn.Conv2d(1, width, 3, stride=2), 0
        self.head: nn.Module = nn.Linear(width * 7 * 7, 10)

    def forward(self, x):
        return self.head(torch.relu(self.conv(x)).flatten(1))

class NeedsWidth(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.conv = self.head = None

def pooled():
    return nn.Sequential(nn.Conv2d(3, 2, 3), nn.AdaptiveAvgPool2d(1))

def plain():
    return nn.Sequential(nn.ReLU())

raise SystemExit("this file was run")
"""


@pytest.fixture
def weights(tmp_path, monkeypatch):
    """A state dict beside the code of its model."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "nets.py").write_text(CODE.replace('raise SystemExit("this file was run")', ""))
    torch.manual_seed(0)
    state = {"head.weight": torch.randn(10, 196) / 14, "head.bias": torch.zeros(10)}
    save_file({**state, "conv.weight": torch.randn(4, 1, 3, 3), "conv.bias": torch.zeros(4)}, "weights.safetensors")
    return tmp_path / "weights.safetensors"


def to_do(result):
    assert result.exit_code in (2, 4), result.output
    what, _, hint = result.stderr.splitlines()
    assert what.startswith("error: ")
    return hint


def test_one_error_names_all_that_is_missing_and_the_command_that_it_gives_works(weights):
    result = spdexport("convert", "weights.safetensors", "-q")
    assert "it has weights but not the model's code" in result.stderr
    hint = to_do(result)
    assert "nets.py:Net, whose layers have these names" in hint
    assert "--input-shape 2x1xHxW" in hint
    assert "224" not in hint  # nothing tells the size
    command = hint.partition("The command, with your own H and W: spdexport ")[2].replace("HxW", "16x16")
    done = spdexport(*shlex.split(command))
    assert done.exit_code == 0, done.output
    assert (weights.parent / "weights.onnx").exists()


def test_what_is_given_is_not_named_among_what_is_missing(weights):
    result = spdexport("convert", "weights.safetensors", "--input-shape", "2x1x16x16")
    hint = to_do(result)
    assert "and if it returns no example inputs" not in hint
    assert "For example: spdexport convert weights.safetensors --input-shape" in hint


def test_code_is_looked_at_and_not_run(tmp_path):
    (tmp_path / "nets.py").write_text(CODE)
    (tmp_path / "broken.py").write_text("def (:")
    (tmp_path / "binary.py").write_bytes(b"\xff\xfe\x00")
    assert guess_factory(["conv.weight", "head.bias"], [tmp_path]).endswith("nets.py:Net")
    assert guess_factory(["elsewhere.weight"], [tmp_path]) is None
    assert guess_factory(["weight"], [tmp_path]) is None
    assert guess_factory(["conv.weight"], [tmp_path / "none"]) is None
    (tmp_path / "copy.py").write_text(CODE)
    assert guess_factory(["conv.weight", "head.bias"], [tmp_path]) is None  # two would do


def test_the_input_shape_is_worked_out_where_one_size_alone_runs(weights):
    result = spdexport("convert", "weights.safetensors", "--factory", "nets.py:Net", "--provider", "cpu")
    assert result.exit_code == 0, result.output
    assert "the input shape 2x1x16x16 was worked out" in result.stdout
    assert "there was no -o: the file is weights.onnx, beside its source" in result.stdout


@pytest.mark.parametrize(
    ("module", "shape"),
    [
        (nn.Sequential(nn.Linear(7, 3)), (2, 7)),
        (nn.Sequential(nn.Conv1d(3, 2, 3), nn.Flatten(), nn.Linear(28, 1)), (2, 3, 16)),
        (nn.Sequential(nn.Conv2d(3, 2, 3), nn.AdaptiveAvgPool2d(1)), None),  # any size will do
        (nn.Sequential(nn.Embedding(9, 4)), None),
        (nn.Sequential(nn.Conv2d(3, 2, 3), nn.Flatten(), nn.Linear(5, 1)), None),  # none does
    ],
)
def test_shapes_that_are_worked_out(module, shape):
    module.train()
    found = work_out_inputs(module, seed=0)
    assert (None if found is None else tuple(found[0].args[0].shape)) == shape
    assert module.training


def test_a_module_brings_the_example_that_it_keeps():
    module = nn.Sequential(nn.Conv2d(3, 2, 3), nn.AdaptiveAvgPool2d(1))
    module.example_input_array = torch.randn(2, 3, 9, 9)
    assert package.inspect(module).plan.layers[0].macs_before == 7 * 7 * 2 * 27


@pytest.mark.parametrize(
    ("shapes", "form"),
    [
        ([(10, 16), (8, 3, 5, 5), (16, 8, 3, 3)], "2x3xHxW"),
        ([(64, 32, 1, 1), (32, 1, 3, 3), (32, 3, 3, 3)], "2x3xHxW"),  # one of them is depthwise
        ([(32, 16, 3, 3), (16, 1, 3, 3)], "2x1xHxW"),
        ([(256, 64, 1, 1), (64, 3, 7, 7), (128, 4, 3, 3), (128, 256, 1, 1)], "2xCxHxW"),  # one of them is grouped
        ([(8, 2, 5), (4, 8, 3)], "2x2xL"),
        ([(8, 2, 3, 3, 3)], "2x2xDxHxW"),
        ([(64, 16), (10, 64)], "2x16"),
        ([(32, 784), (784, 32)], "2xN"),
        ([(5,)], "SHAPE"),
        ([], "SHAPE"),
    ],
)
def test_forms_of_inputs_that_weights_tell(shapes, form):
    state = {f"{i}.weight": torch.zeros(shape) for i, shape in enumerate(shapes)}
    biases = {f"{i}.bias": torch.zeros(shape[0]) for i, shape in enumerate(shapes)}
    assert shape_like({**biases, **state}) == form
    assert blanks_in(form) == [x for x in form.split("x") if not x.isdigit()]


def test_a_matrix_without_a_bias_may_be_of_embeddings():
    assert shape_like({"embed.weight": torch.zeros(100, 16), "head.weight": torch.zeros(16, 16)}) == "SHAPE"


@pytest.mark.parametrize(
    ("module", "told"),
    [
        (nn.Sequential(nn.Conv2d(3, 2, 3), nn.AdaptiveAvgPool2d(1)), "2x3x224x224"),
        (nn.Sequential(nn.Embedding(9, 4), nn.Linear(4, 2)), "2x32:int64"),
        (nn.Sequential(nn.Conv2d(3, 2, 3), nn.Flatten(), nn.Linear(5, 1)), None),
        (nn.Sequential(nn.ReLU()), None),
    ],
)
def test_a_shape_that_is_named_is_one_that_runs(module, told):
    assert shape_that_runs(module) == told
    with pytest.raises(package.errors.ExampleInputError) as caught:
        package.inspect(module)
    hint, words = caught.value.hint, caught.value.missing
    if told is None:
        assert "with sizes that the model takes" in hint
        assert caught.value.blanks
    else:
        assert f"{told}, which is one that the model runs on" in hint
        assert words == ("--input-shape", told)
        package.inspect(module, input_shape=[told])


def test_the_command_that_is_named_can_be_run(weights):
    made = ("--factory", "nets.py:pooled", "--provider", "cpu", "--dry-run")
    hint = to_do(spdexport("convert", *made))
    assert spdexport(*shlex.split(hint.partition("For example: spdexport ")[2])).exit_code == 0


def test_the_folder_of_a_run_is_looked_through_for_its_class(tmp_path, monkeypatch):
    shutil.copytree(RUN, tmp_path / "run")
    shutil.copy(EXAMPLE / "digits_cnn.py", tmp_path / "run")
    monkeypatch.chdir(tmp_path)
    assert "--factory run/digits_cnn.py:DigitsCNN, whose layers have these names" in to_do(spdexport("convert", "run"))


def test_what_is_to_be_filled_in_is_told(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    save_file({"conv.weight": torch.randn(4, 1, 3, 3), "conv.bias": torch.zeros(4)}, "w.safetensors")
    hint = to_do(spdexport("convert", "w.safetensors"))
    assert "The command, with your own FILE.py:NAME, H and W: spdexport convert w.safetensors --factory" in hint


def test_verify_takes_the_shapes_of_the_file(weights):
    """Of a model that any size fits, so that none can be worked out."""
    made = ("--factory", "nets.py:pooled", "--provider", "cpu")
    assert "needs example inputs" in spdexport("convert", *made, "-o", "o.onnx").stderr
    done = spdexport(
        "convert", *made, "--input-shape", "2x3x9x9", "--static-batch", "-o", "o.onnx", "--no-verify", "-q"
    )
    assert done.exit_code == 0, done.output
    result = spdexport("verify", "o.onnx", *made)
    assert result.exit_code == 0, result.output


def test_where_the_output_goes_and_what_it_leaves_alone(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    onnx_models.saved(onnx_models.network(), tmp_path / "m.onnx")
    for _ in range(2):  # what spdexport wrote is replaced
        assert spdexport("convert", "m.onnx", "--no-verify").exit_code == 0
    onnx.load("m.converted.onnx")
    onnx_models.saved(onnx_models.network(), tmp_path / "m.converted.onnx")
    result = spdexport("convert", "m.onnx", "--no-verify")
    assert result.exit_code == 2
    assert "was not written by spdexport" in result.stderr
    assert "-o OUT.onnx" in to_do(result)


def test_a_dry_run_shows_the_plan_and_writes_no_model(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    onnx_models.saved(onnx_models.network(), tmp_path / "m.onnx")
    result = spdexport("convert", "m.onnx", "--dry-run", "--form", "auto", "--save-plan", "p.json")
    assert result.exit_code == 0, result.output
    assert result.stdout.startswith("planned: no file was written\n")
    assert "MACs for one sample: " in result.stdout
    assert sorted(path.name for path in tmp_path.iterdir()) == ["m.onnx", "p.json"]


def test_what_will_cost_more_is_told_before_the_work_with_what_would_gain(tmp_path):
    torch.manual_seed(0)
    weight = torch.randn(64, 4) @ torch.randn(4, 64) + 0.01 * torch.randn(64, 64)
    module = nn.Sequential(nn.Linear(64, 64))
    module[0].weight.data = weight
    said = []
    package.convert(module, tmp_path / "o.onnx", inputs=torch.randn(2, 64), verify=False, progress=said.append)
    told = next(text for text in said if "will cost" in text)
    assert told == (
        "V and U of the exact SVD will cost 2.00 times the dense model. "
        "The same command with --form auto --energy 0.999 comes to 0.12 times, as an approximation; spdexport "
        "compress, given data, finds forms that lose less."
    )
    assert said.index(told) < said.index("exporting to ONNX")
    truncated = package.inspect(module, inputs=torch.randn(2, 64), form="auto", energy=0.999).plan
    assert truncated.macs_after / truncated.macs_before == pytest.approx(0.125)
    module[0].weight.data = torch.eye(64)
    said.clear()
    package.convert(module, tmp_path / "o.onnx", inputs=torch.randn(2, 64), verify=False, progress=said.append)
    assert any(
        text.endswith(
            "The same command with --form auto leaves each layer in its cheapest form; spdexport compress, given data, "
            "finds forms that cost less."
        )
        for text in said
    )
    said.clear()
    package.convert(
        module, tmp_path / "o.onnx", inputs=torch.randn(2, 64), verify=False, progress=said.append, form="auto"
    )
    assert not any("will cost" in text for text in said)


def test_a_model_without_layers_to_decompose_gets_a_sentence(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "nets.py").write_text(CODE.replace('raise SystemExit("this file was run")', ""))
    result = spdexport("convert", "--factory", "nets.py:plain", "--input-shape", "2x3", "--provider", "cpu")
    assert result.exit_code in (0, 3), result.output
    assert "No layer could be decomposed: the file holds the model as it is" in result.stdout
    assert (tmp_path / "plain.onnx").exists()


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_shells_are_told_how_to_complete_commands(shell):
    environment = {**os.environ, "_SPDEXPORT_COMPLETE": f"{shell}_source"}
    program = "import sys; sys.argv[0] = 'spdexport'; from spdexport.cli import main; main(prog_name='spdexport')"
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, "_SPDEXPORT_COMPLETE" in done.stdout) == (0, True), done.stderr
