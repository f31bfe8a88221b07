"""Every error is three lines with the right status, and leaves the folder as it was."""

import json
import logging
import os
import sys

import pytest
import torch
from cli_command import DIGITS, EXAMPLE, FACTORY, MASKS, RUN, SHAPE, spdexport, subprocess_of
from safetensors.torch import load_file, save_file

import spdexport as package

BEFORE = b"what was there before"


@pytest.fixture
def out(tmp_path):
    """A folder whose ``m.onnx`` exists already."""
    folder = tmp_path / "out"
    folder.mkdir()
    (folder / "m.onnx").write_bytes(BEFORE)
    return folder


@pytest.fixture
def fails(out):
    """Converts, expects an error, and gives its three lines."""

    def run(status, *arguments, command="convert"):
        written = ["-o", out / "m.onnx", "--report", out / "r.json"] if command == "convert" else []
        result = spdexport(command, *arguments, *written)
        lines = result.stderr.splitlines()
        assert result.exit_code == status, result.output
        assert result.stdout == ""
        assert len(lines) == 3, result.stderr
        assert lines[0].startswith("error: ")
        assert lines[1].startswith("  where: ")
        assert lines[2].startswith("  to do: ")
        assert (out / "m.onnx").read_bytes() == BEFORE
        assert {p.name for p in out.iterdir()} == ({"m.onnx", "r.json"} if written else {"m.onnx"})
        if written:
            report = json.loads((out / "r.json").read_text(encoding="utf-8"))
            assert (report["schema_version"], report["verdict"]) == (1, None)
            assert report["error"]["exit_status"] == status
            told = [" ".join(report["error"][part].split()) for part in ("what", "where", "hint")]
            assert lines == [f"error: {told[0]}", f"  where: {told[1]}", f"  to do: {told[2]}"]
        return lines

    return run


@pytest.fixture(scope="module")
def state():
    """A state dict that fits the digits model."""
    return torch.load(RUN / "target_model.pth", weights_only=True)


@pytest.fixture
def saved(tmp_path):
    """Saves tensors, or anything, and gives the path."""

    def save(content, name="content.pt"):
        path = tmp_path / name
        if path.suffix == ".safetensors":
            save_file(content, path)
        else:
            torch.save(content, path)
        return path

    return save


@pytest.fixture
def masks(saved):
    """The run's masks with some exchanged."""
    return lambda **changed: saved({**load_file(MASKS), **changed}, "masks.safetensors")


# Sources


def test_missing_file(fails, tmp_path):
    assert fails(4, tmp_path / "none.pt")[:2] == ["error: There is no such file.", f"  where: {tmp_path / 'none.pt'}"]


def test_garbage_file(fails, tmp_path):
    (tmp_path / "garbage.pt").write_bytes(b"\x01\x02 no model" * 40)
    assert "unknown kind" in fails(4, tmp_path / "garbage.pt")[0]


def test_pickled_module(fails, saved):
    what, _, hint = fails(4, saved(torch.nn.Conv2d(1, 2, 3)))
    assert "would run code" in what
    assert "--trust" in hint


def test_state_dict_without_a_factory(fails, saved, state):
    what, _, hint = fails(2, saved(state))
    assert "weights but not the model's code" in what
    assert "--factory" in hint


def test_no_source_at_all(fails):
    assert fails(2)[0] == "error: There is no model."


def test_missing_factory_file(fails):
    assert "does not exist" in fails(4, "--factory", "none.py:make")[0]


def test_missing_factory_name(fails):
    what, _, hint = fails(4, "--factory", f"{EXAMPLE / 'digits_cnn.py'}:DigitCNN")
    assert "DigitCNN" in what
    assert "Did you mean DigitsCNN?" in hint


def test_factory_that_raises_shows_the_users_own_line(fails, tmp_path):
    (tmp_path / "mine.py").write_text("def make():\n    raise ValueError('no\\nluck')\n")
    what, where, _ = fails(4, "--factory", f"{tmp_path / 'mine.py'}:make")
    assert what == "error: The factory raised ValueError: no luck"
    assert where == f"  where: {tmp_path / 'mine.py'}, line 2, in make"


def test_state_dict_that_does_not_fit(fails, saved, state):
    wrong = {**state, "extra": torch.zeros(2), "conv1.weight": torch.zeros(16, 2, 3, 3)}
    del wrong["fc1.bias"]
    what = fails(4, saved(wrong), "--factory", FACTORY, "--input-shape", SHAPE)[0]
    assert "missing: fc1.bias" in what
    assert "unexpected: extra" in what
    assert "conv1.weight (file 16x2x3x3, module 16x1x3x3)" in what


# Example inputs


def test_shape_that_is_none(fails):
    assert fails(2, RUN, "--factory", FACTORY, "--input-shape", "2xx3")[1] == "  where: --input-shape 2xx3"


def test_shape_that_the_model_does_not_take(fails):
    what = fails(4, RUN, "--factory", FACTORY, "--input-shape", "2x3x16x16")[0]
    assert "fails on the example inputs 2x3x16x16:float32" in what


def test_no_example_inputs(fails):
    what, _, hint = fails(4, "--factory", "torch.nn:Identity")
    assert "needs example inputs" in what
    assert "--input-shape" in hint


def test_inputs_given_twice(fails, saved):
    assert fails(2, *DIGITS, "--inputs", saved(torch.zeros(1)))[1] == "  where: --inputs and --input-shape"


# Masks and components


def test_mask_with_nan(fails, masks):
    mask = torch.ones(24)
    mask[3] = torch.nan
    assert "The mask of conv1 holds NaN" in fails(4, *DIGITS, "--masks", masks(conv1=mask))[0]


def test_mask_of_the_wrong_length(fails, masks):
    what = fails(4, *DIGITS, "--masks", masks(conv1=torch.ones(7)))[0]
    assert what == "error: The mask of conv1 has length 7, and the layer has 24 components."


def test_mask_of_an_unknown_layer(fails, masks):
    what, _, hint = fails(4, *DIGITS, "--masks", masks(conv9=torch.ones(7)))
    assert "conv9" in what
    assert "Did you mean" in hint


def test_threshold_without_masks(fails):
    assert fails(2, *DIGITS, "--mask-threshold", "0.5")[1] == "  where: --mask-threshold"


def test_missing_masks_file(fails, tmp_path):
    assert fails(4, *DIGITS, "--masks", tmp_path / "none.npz")[1] == f"  where: {tmp_path / 'none.npz'}"


@pytest.fixture
def with_components(fails, saved, state):
    """Converts the dense model with a file of components beside it."""

    def run(layer, V, U):
        file = saved({f"{layer}.V": torch.ones(V), f"{layer}.U": torch.ones(U)}, "components.safetensors")
        return fails(4, saved(state), "--factory", FACTORY, "--input-shape", SHAPE, "--components", file)

    return run


def test_components_of_an_unknown_layer(with_components):
    assert "conv9" in with_components("conv9", (9, 3), (3, 16))[0]


def test_components_that_do_not_fit(with_components):
    what = with_components("conv1", (8, 3), (3, 16))[0]
    assert "V (8, 3) and U (3, 16) do not fit conv1" in what


# Options


@pytest.mark.parametrize(
    ("options", "where"),
    [(["--exclude", "*"], "--exclude"), (["--layers", "conv1", "--exclude", "conv1"], "--layers")],
)
@pytest.mark.parametrize("source", [[RUN], []], ids=["run", "svd"])
def test_patterns_that_leave_no_layer(fails, source, options, where):
    what, found, hint = fails(2, *source, "--factory", FACTORY, "--input-shape", SHAPE, *options)
    assert what == "error: No layer is left to decompose."
    assert found == f"  where: {where}"
    assert "spdexport inspect" in hint


@pytest.mark.parametrize("option", ["--layers", "--exclude"])
def test_pattern_that_matches_nothing(fails, option):
    what, where, _ = fails(2, *DIGITS, option, "convv*")
    assert what == "error: The pattern 'convv*' matches no layer."
    assert where == f"  where: {option}"


def test_dynamic_axis_that_is_none(fails):
    assert fails(2, *DIGITS, "--dynamic", "x")[1] == "  where: --dynamic"


@pytest.mark.parametrize("option", ["--fatcory", "--plam", "--verfiy", "--repo"])
def test_unknown_option(fails, option):
    what, where, hint = fails(2, *DIGITS, option, "x")
    assert f"No such option '{option}'" in what
    assert where.endswith("convert")
    assert "--help" in hint


def test_value_that_is_no_choice(fails):
    assert "'cpu', 'cuda', 'tensorrt'" in fails(2, *DIGITS, "--provider", "metal")[0]


def test_repro_without_a_check(fails, tmp_path):
    what, where, _ = fails(2, *DIGITS, "--no-verify", "--repro", tmp_path / "r.npz")
    assert what == "error: --repro saves what a check found."
    assert where == "  where: --repro and --no-verify"


@pytest.mark.parametrize("option", ["--atol", "--rtol"])
def test_tolerance_below_zero(fails, option):
    assert "is not in the range x>=0" in fails(2, *DIGITS, option, "-1")[0]


@pytest.mark.parametrize("option", ["--report", "--junit", "--html", "--repro"])
def test_report_where_there_is_no_folder(tmp_path, option):
    result = spdexport("convert", *DIGITS, "-o", tmp_path / "m.onnx", option, tmp_path / "no" / "r")
    assert result.exit_code == 2
    assert result.stderr.startswith("error: The folder of the output does not exist.")
    assert not (tmp_path / "m.onnx").exists()


def test_on_github_an_error_annotates_the_run(tmp_path, monkeypatch):
    monkeypatch.setenv("GITHUB_ACTIONS", "true")
    result = spdexport("verify", tmp_path / "none.onnx")
    assert result.exit_code == 4
    assert len(result.stderr.splitlines()) == 3
    (line,) = result.stdout.splitlines()
    assert line.startswith(
        f"::error title=spdexport::There is no such file.%0Awhere: {tmp_path / 'none.onnx'}%0Ato do: "
    )


def test_verbose_and_quiet(fails):
    assert "contradict" in fails(2, *DIGITS, "-v", "-q")[0]


def test_unknown_command():
    result = spdexport("transmogrify")
    assert result.exit_code == 2
    assert "No such command 'transmogrify'" in result.stderr


def test_no_command_shows_the_help():
    result = spdexport()
    assert result.exit_code == 2
    assert "Commands:" in result.stderr


def test_opset_that_is_too_old(fails):
    assert fails(2, *DIGITS, "--opset", "11")[1] == "  where: --opset"


def test_opset_that_the_exporter_does_not_give(fails):
    assert "99" in fails(5, *DIGITS, "--opset", "99")[0]


# Outputs


def test_folder_that_is_not_there(fails, tmp_path):
    what, _, hint = fails(2, *DIGITS, "-o", tmp_path / "no" / "m.pt2")
    assert what == "error: The folder of the output does not exist."
    assert hint == f"  to do: Make it: mkdir -p {tmp_path / 'no'}"


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write everywhere")
def test_folder_that_cannot_be_written_to(fails, tmp_path):
    locked = tmp_path / "locked"
    locked.mkdir(mode=0o500)
    assert "cannot be written" in fails(74, *DIGITS, "-o", locked / "m.pt2")[0]


def test_ending_that_is_no_format(fails, tmp_path):
    assert "'m.txt' has no known format" in fails(2, *DIGITS, "-o", tmp_path / "m.txt")[0]


@pytest.mark.parametrize(
    ("words", "missing"),
    [
        (("masks", RUN, "--data", "x.npz"), "-o"),
        (("compress",), "-o and --data"),
        (("compress", "m.onnx", "-o", "n.onnx", "--macs", "0.5"), "--data"),
        (("atlas", RUN), "--data and -o"),
        (("lab", "-o", "lab"), "FILE and --data"),
        (("ablate",), "FILE and --data"),
        (("fold",), "FILE and -o"),
        (("verify", "--config", "none.toml"), None),
    ],
)
def test_all_that_a_command_lacks_is_told_at_once_with_an_example(words, missing):
    result = spdexport(*words)
    assert len(result.stderr.splitlines()) == 3, result.output
    what, where, hint = result.stderr.splitlines()
    if missing is None:
        assert (result.exit_code, what) == (4, "error: There is no such file.")
    else:
        assert (result.exit_code, what) == (2, f"error: The command needs {missing}.")
        assert where == f"  where: main {words[0]}"
        assert hint.startswith(f"  to do: For example: spdexport {words[0]} ")


def test_one_dash_before_a_word():
    result = spdexport("convert", "m.pt", "-factory", "nets.py:Net")
    assert result.exit_code == 2
    assert "Options that are words have two dashes: --factory. See main convert --help." in result.stderr
    assert "two dashes" not in spdexport("convert", "m.pt", "-fog").stderr


def test_a_shape_that_the_model_runs_on_is_named_where_another_does_not_fit(fails):
    _, where, hint = fails(4, RUN, "--factory", FACTORY, "--input-shape", "2x1x20x20")
    assert where == "  where: --input-shape"
    assert hint.endswith("It runs on --input-shape 2x1x16x16.")


def test_report_over_the_source(saved, state):
    path = saved(state)
    before = path.read_bytes()
    result = spdexport("inspect", path, "--factory", FACTORY, "--report", path)
    assert result.exit_code == 2
    assert "would overwrite" in result.stderr
    assert path.read_bytes() == before


# The model


UNTRACEABLE = """
import torch
class Branching(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = torch.nn.Conv2d(1, 2, 3)
    def forward(self, x):
        return self.conv(x) if x.sum() > 0 else x
def make():
    return Branching(), torch.ones(2, 1, 8, 8)
"""


def test_untraceable_model(fails, tmp_path):
    (tmp_path / "model.py").write_text(UNTRACEABLE)
    what, where, _ = fails(5, "--factory", f"{tmp_path / 'model.py'}:make")
    assert "torch.export cannot trace the model" in what
    assert where == "  where: Branching"


def test_nothing_of_torchs_own_reaches_the_real_standard_error(tmp_path):
    (tmp_path / "model.py").write_text(UNTRACEABLE)
    done = subprocess_of("convert", "--factory", "model.py:make", "-o", "m.onnx", cwd=tmp_path)
    assert done.returncode == 5
    assert done.stdout == ""
    assert len(done.stderr.splitlines()) == 3, done.stderr
    assert not (tmp_path / "m.onnx").exists()


# verify


@pytest.fixture(scope="module")
def masked(tmp_path_factory):
    """The digits run with its masks, as ONNX."""
    file = tmp_path_factory.mktemp("masked") / "digits.onnx"
    assert spdexport("convert", *DIGITS, "--masks", MASKS, "-o", file, "--no-verify").exit_code == 0
    return file


def test_verify_with_other_masks(fails, masked, masks):
    what = fails(2, masked, "--against", *DIGITS, "--masks", masks(conv1=torch.ones(24)), command="verify")[0]
    assert what.startswith("error: The file was made with other masks")


def test_verify_without_the_masks(fails, masked):
    what, _, hint = fails(2, masked, "--against", *DIGITS, command="verify")
    assert what == "error: The file was made with masks, and they are not given."
    assert hint == "  to do: Give --masks FILE."


def test_verify_with_another_delta(fails, masked):
    what = fails(2, masked, "--against", *DIGITS, "--masks", MASKS, "--delta", "keep", command="verify")[0]
    assert "made with delta = 'auto', not 'keep'" in what


def test_verify_a_missing_file(fails, tmp_path):
    assert "no such file" in fails(4, tmp_path / "none.onnx", "--against", *DIGITS, command="verify")[0]


def test_verify_what_is_not_onnx(fails, tmp_path):
    (tmp_path / "garbage.onnx").write_bytes(b"\x01\x02 no model" * 40)
    assert "not a valid ONNX model" in fails(4, tmp_path / "garbage.onnx", "--against", *DIGITS, command="verify")[0]


# Faults of spdexport's own


@pytest.fixture
def broken(monkeypatch):
    """An spdexport whose ``convert`` has a fault."""

    def convert(*_, **__):
        return 1 // 0

    monkeypatch.setattr(package, "convert", convert)


def test_own_fault_is_told_as_one(fails, broken):
    what, where, hint = fails(70, *DIGITS)
    assert "fault of spdexport itself: ZeroDivisionError: integer division or modulo by zero" in what
    assert "spdexport/commands/convert.py, line" in where
    assert "--debug" in hint


def test_debug_shows_the_traceback(broken, tmp_path):
    result = spdexport("convert", *DIGITS, "-o", tmp_path / "m.onnx", "--debug")
    assert result.exit_code == 70
    assert result.stderr.startswith("Traceback (most recent call last):")
    assert result.stderr.splitlines()[-3].startswith("error: ")


def test_debug_shows_the_traceback_of_the_users_own_code(tmp_path):
    (tmp_path / "mine.py").write_text("def make():\n    raise ValueError('no luck')\n")
    result = spdexport("inspect", "--factory", f"{tmp_path / 'mine.py'}:make", "--debug")
    assert result.exit_code == 4
    assert "    raise ValueError('no luck')" in result.stderr


def test_interrupt(monkeypatch, out):
    def convert(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(package, "convert", convert)
    result = spdexport("convert", *DIGITS, "-o", out / "m.onnx", "--report", out / "r.json")
    assert result.exit_code == 130
    assert result.stderr.strip() == "Interrupted."
    assert (out / "m.onnx").read_bytes() == BEFORE
    assert json.loads((out / "r.json").read_text())["error"]["exit_status"] == 130


def test_what_was_silenced_is_heard_again_after_an_error(broken, tmp_path):
    before = logging.root.manager.disable
    streams = sys.stdout, sys.stderr
    spdexport("convert", *DIGITS, "-o", tmp_path / "m.onnx")
    assert logging.root.manager.disable == before
    assert (sys.stdout, sys.stderr) == streams


def test_verify_is_for_onnx_files(fails, tmp_path):
    convert_to = tmp_path / "m.pt2"
    assert spdexport("convert", "--factory", FACTORY, "--input-shape", SHAPE, "-o", convert_to).exit_code == 0
    lines = fails(4, convert_to, command="verify")
    assert "An ONNX file is needed here, and this is a torch.export program (.pt2)." in lines[0]
    assert "--against" in lines[2]


def test_python_sources_that_are_none(tmp_path):
    with pytest.raises(package.UsageError, match="A source of type int is not known"):
        package.convert(3, tmp_path / "m.onnx")
    with pytest.raises(package.UsageError, match="The source is a module already, which needs no factory"):
        package.inspect(torch.nn.Linear(2, 2), factory=FACTORY)


def test_one_provider_may_be_given_by_its_name(tmp_path):
    module, x = torch.nn.Linear(2, 2), torch.rand(2, 2)
    assert package.convert(module, tmp_path / "m.onnx", inputs=x, providers="cpu").verdict is package.Status.PASS
    with pytest.raises(package.UsageError, match="no provider 'rocm'"):
        package.convert(module, tmp_path / "m.onnx", inputs=x, providers="rocm")


def test_the_seed_of_a_check_is_not_that_of_the_factory(tmp_path):
    """Random weights are those of the file's own seed, whatever the check draws."""
    nets = tmp_path / "nets.py"
    nets.write_text("import torch\n\ndef make():\n    return torch.nn.Linear(3, 3), (torch.rand(2, 3),)\n")
    factory = f"{nets}:make"
    package.convert(None, tmp_path / "m.onnx", factory=factory, seed=5)
    for seed in (0, 3):
        found = package.verify(tmp_path / "m.onnx", factory=factory, seed=seed)
        assert (found.verdict, found.seed) == (package.Status.PASS, seed)
    assert package.verify(tmp_path / "m.onnx", factory=factory).seed == 5
