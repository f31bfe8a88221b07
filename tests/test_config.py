"""A configuration has the words of the command line, gives no permission, and is read only where it is named."""

import re
from pathlib import Path

import onnx_models
import pytest
from cli_command import spdexport

from spdexport.cli import main


@pytest.fixture
def model(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return onnx_models.saved(onnx_models.network(), tmp_path / "m.onnx")


def configured(text, *arguments):
    Path("c.toml").write_text(text, encoding="utf-8")
    return spdexport(*arguments, "--config", "c.toml")


def test_options_and_arguments_under_the_same_words(model):
    text = """
    seed = 7
    provider = "cpu"
    [convert]
    source = "m.onnx"
    output = ["o.onnx"]
    form = "auto"
    verify = false
    rank = [3]
    report = "r.json"
    [bench]
    rounds = 3
    """
    result = configured(text, "convert")
    assert result.exit_code == 0, result.output
    assert "not verified" in result.stdout
    from onnx import load

    kept = {p.key: p.value for p in load("o.onnx").metadata_props}["spdexport.options"]
    assert '"seed": 7' in kept
    assert '"form": "auto"' in kept
    assert '"rank": ["3"]' in kept


def test_the_command_line_goes_before_the_file(model):
    result = configured('output = "a.onnx"\nverify = false\n', "convert", model, "-o", "b.onnx")
    assert result.exit_code == 0, result.output
    assert not (model.parent / "a.onnx").exists()
    assert (model.parent / "b.onnx").exists()


def test_a_file_in_the_folder_is_not_read_by_itself(model):
    (model.parent / "spdexport.toml").write_text("nonsense = 1")
    assert spdexport("inspect", model).exit_code == 0


@pytest.mark.parametrize(
    ("text", "what", "hint"),
    [
        ("trust = true", "The configuration gives trust, which only a command line can give.", "give --trust"),
        ("limit = 'nodes=9'", "The configuration gives limit, which only a command line can give.", "--limit"),
        ("[convert]\nfactroy = 'x'", "The configuration has 'factroy', which is no option.", "Did you mean factory"),
        ("[conv]\nseed = 1", "The configuration has 'conv', which is no command.", "Did you mean convert?"),
        ("thorough = 1", "The configuration gives thorough as 1.", "true or false"),
        ("components = ['a', 'b']", "The configuration gives components as ['a', 'b'].", "one value"),
        ("layers = [true]", "The configuration gives layers as True.", "a text or a number"),
        ("layers = [[1]]", "The configuration gives layers as [1].", "a text or a number"),
        ("seed = 'a\\n", "The configuration cannot be read: ", "Write it as TOML"),
        ("a = " + "[" * 5000, "The configuration cannot be read", "Write it as TOML"),
        ("#" + "a" * (1 << 20), "The configuration cannot be read: it is longer than", "Write it as TOML"),
    ],
)
def test_what_a_configuration_cannot_say(model, text, what, hint):
    result = configured(text, "convert", model, "-o", "o.onnx")
    assert result.exit_code == 4, result.output
    first, where, to_do = result.stderr.splitlines()
    assert first.startswith(f"error: {what}")
    assert where.startswith("  where: c.toml")
    assert hint in to_do
    assert not (model.parent / "o.onnx").exists()


def test_a_value_that_is_wrong_is_told_as_one_of_the_command_line(model):
    result = configured("form = 'thin'", "convert", model, "-o", "o.onnx")
    assert result.exit_code == 2
    assert "thin" in result.stderr


def test_a_configuration_that_is_missing(model):
    result = spdexport("convert", model, "-o", "o.onnx", "--config", "none.toml")
    assert result.exit_code == 4
    assert "none.toml" in result.stderr


@pytest.mark.parametrize("name", main.commands)
def test_help_has_groups_and_examples_that_are_commands_with_options_that_exist(name):
    result = spdexport(name, "--help")
    assert "What is said, and limits:\n" in result.stdout
    examples = re.findall(r"^ +spdexport (.*)$", result.stdout.partition("Examples:")[2], flags=re.MULTILINE)
    assert examples
    for example in examples:
        command, *words = example.split()
        assert command == name
        main.commands[name].make_context(name, words)
