"""What the documentation shows is what happens: its blocks are run, and their output compared."""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import click
import numpy as np
import pytest
import yaml
from click.testing import CliRunner, Result
from safetensors.numpy import load_file

from spdexport.cli import main

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = {path.name: path.read_text(encoding="utf-8") for path in sorted((ROOT / "docs").glob("*.md"))}
ALL_PAGES = README + "".join(PAGES.values())
EXAMPLE = (ROOT / "examples/01_digits/README.md").read_text(encoding="utf-8")
MASKS_FOLDER = ROOT / "examples/03_masks_and_ablation"
CI_FOLDER = ROOT / "examples/02_continuous_integration"
EXAMPLES = sorted(path.relative_to(ROOT).as_posix() for path in ROOT.glob("examples/*/README.md"))
RUNTIME = Path(os.environ.get("SPDEXPORT_LAB_RUNTIME") or ROOT / "build/lab-runtime/package")
RUN = ROOT / "examples/01_digits/run"
CI_EXAMPLE = (CI_FOLDER / "README.md").read_text(encoding="utf-8")


def blocks(text: str, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", text, flags=re.DOTALL)


def dialogues(block: str) -> list[tuple[str, str]]:
    """The commands of a console block, each with the output below it."""
    parts = re.split(r"^\$ (.*)\n", block, flags=re.MULTILINE)[1:]
    return list(zip(parts[::2], parts[1::2], strict=True))


def without_numbers(text: str) -> list[str]:
    """The words of each line. Noise ratios, and what the CUDA edge finds, differ from machine to machine."""
    lines = [" ".join(re.sub(r"-?[\d.]+", "0", line).split()) for line in text.strip().splitlines()]
    return [line for line in lines if not line.startswith("device")]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    copy = tmp_path / "digits"
    shutil.copytree(ROOT / "examples/01_digits", copy, ignore=shutil.ignore_patterns("out"))
    (copy / "out").mkdir()
    return copy


def run(command: str, folder: Path) -> str:
    """What a command prints, in 80 columns; one of spdexport runs in this process, which has torch already."""
    program, *words = command.split()
    environment = {"COLUMNS": "80", "PYTHONPATH": str(ROOT)}
    done: Result | subprocess.CompletedProcess[str]
    if program == "spdexport":
        with contextlib.chdir(folder):
            done = CliRunner(env=environment).invoke(main, words, prog_name="spdexport")
    else:
        assert program == "python", command
        done = subprocess.run(
            [sys.executable, *words], cwd=folder, env={**os.environ, **environment}, capture_output=True, text=True,
            check=False,
        )  # fmt: skip
    return done.stdout or done.stderr


def test_console_blocks_show_what_the_commands_print(folder: Path) -> None:
    """Those of the other pages work on the files that those of the first two write."""
    texts = (README, PAGES["runs.md"], *(text for name, text in PAGES.items() if name != "runs.md"), EXAMPLE)
    found = [dialogue for text in texts for block in blocks(text, "console") for dialogue in dialogues(block)]
    assert len(found) == 1 + 3 + 2 + 3
    for command, shown in found:
        assert without_numbers(run(command, folder)) == without_numbers(shown), command


def test_the_second_example_shows_what_its_commands_print(tmp_path: Path) -> None:
    folder = tmp_path / "example"
    shutil.copytree(CI_FOLDER, folder)
    found = [dialogue for block in blocks(CI_EXAMPLE, "console") for dialogue in dialogues(block)]
    assert len(found) == 3
    for command, shown in found:
        # Lines break elsewhere where a number is longer.
        assert " ".join(without_numbers(run(command, folder))) == " ".join(without_numbers(shown)), command
    assert {"report.xml", "report.html", "worst.npz"} <= {path.name for path in folder.iterdir()}


@pytest.mark.long
def test_the_third_example_shows_what_its_commands_print(folder: Path) -> None:
    folder = folder.rename(folder.with_name("01_digits")).with_name("03_masks_and_ablation")
    shutil.copytree(MASKS_FOLDER, folder, ignore=shutil.ignore_patterns("*.onnx", "*.npz"))
    text = (folder / "README.md").read_text(encoding="utf-8")
    found = [dialogue for block in blocks(text, "console") for dialogue in dialogues(block)]
    assert len(found) == 5
    for command, shown in found:
        assert without_numbers(run(command, folder)) == without_numbers(shown), command
    ours, theirs = (load_file(path) for path in (folder / "masks.safetensors", RUN / "fixed_masks.safetensors"))
    assert {name: mask.tolist() for name, mask in ours.items()} == {n: m.tolist() for n, m in theirs.items()}


@pytest.mark.long
def test_the_fourth_example_keeps_its_budget(tmp_path: Path) -> None:
    folder = tmp_path / "04_compress"
    shutil.copytree(ROOT / "examples/04_compress", folder)
    text = (folder / "README.md").read_text(encoding="utf-8").replace("\\\n", "")
    commands = re.findall(r"^    ((?:python|spdexport) .*)$", text, flags=re.MULTILINE)
    assert len(commands) == 4
    printed = [run(command, folder) for command in commands]
    assert "equivalent: the file computes the intended model, to rounding" in printed[1]
    loss, bound = re.findall(r"top-1 drop on the selection set ([\d.]+)%, at most\s+([\d.]+)%", printed[1])[0]
    assert float(loss) <= float(bound) <= 2
    assert "small.onnx takes" in printed[3]
    assert "<svg" in (folder / "out/report.html").read_text(encoding="utf-8")


def test_the_workflow_runs_the_command_of_its_readme() -> None:
    steps = yaml.safe_load((CI_FOLDER / "verify.yml").read_text(encoding="utf-8"))["jobs"]["model"]["steps"]
    commands = {step["name"]: " ".join(step["run"].split()) for step in steps if "run" in step}
    (shown, _), *_ = dialogues(blocks(CI_EXAMPLE, "console")[0])
    assert commands["Verify the file"].partition(" || ")[0] == f"{shown} --repro worst.npz"
    assert commands["Run the tests"] == "python -m pytest test_model.py"


def test_the_demo_runs_the_commands_of_the_readme() -> None:
    demo = (ROOT / "examples/01_digits/demo.sh").read_text(encoding="utf-8").replace("\\\n", "")
    lines = [" ".join(line.split()) for line in demo.splitlines()]
    for command, _ in dialogues(blocks(PAGES["runs.md"], "console")[0]):
        assert command in lines


def test_the_python_block_runs(tmp_path: Path) -> None:
    (block,) = blocks(PAGES["python.md"], "python")
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", block],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    verdict, folded, verified = done.stdout.splitlines()
    assert verdict.startswith("pass ")
    assert (folded, verified) == ("pass", "pass")


def commands_in(text: str) -> list[list[str]]:
    """The command lines of spdexport that indented and fenced blocks show."""
    lines = re.sub(r" *\\\n *", " ", text).splitlines()
    return [
        shlex.split(line, comments=True) for line in lines if re.match(r"(\$ |    )?spdexport (?!\.\.\.)[a-z]+ ", line)
    ]


@pytest.mark.parametrize("name", ["README.md", *(f"docs/{name}" for name in PAGES), *EXAMPLES])
def test_every_command_line_that_is_shown_is_one(name: str) -> None:
    """Whatever it works on: words and values are those that the command takes."""
    for words in commands_in((ROOT / name).read_text(encoding="utf-8")):
        command = main.commands[words[words.index("spdexport") + 1]]
        rest = words[words.index("spdexport") + 2 :]
        context = command.make_context(words[1], rest, parent=click.Context(main, info_name="spdexport"))
        assert context.args == [], words


@pytest.mark.long
@pytest.mark.parametrize("page", ["masks.md", "atlas.md", "lab.md"])
def test_the_commands_that_begin_a_page_run(page: str, folder: Path) -> None:
    shutil.copy(MASKS_FOLDER / "digits_data.py", folder)
    (first,) = re.findall(r"\A(?:#.*\n\n)+((?:    .*\n)+)", PAGES[page])
    lines = ["python digits_data.py", *(line.strip() for line in first.splitlines())]
    for line in dict.fromkeys(lines):
        if line.startswith(("npm ", "python -m http")):
            continue
        if line.startswith("spdexport lab"):
            if not (RUNTIME / "package.json").is_file():
                pytest.skip("no onnxruntime-web: make lab-runtime gets it")
            line = f"{line} --runtime {RUNTIME}"
        assert "error: " not in run(line, folder)
        written = [words[i + 1] for words in [line.split()] for i, word in enumerate(words) if word in ("-o", "--html")]
        assert all((folder / name).exists() for name in written), line


@pytest.mark.slow
@pytest.mark.long
def test_the_python_block_of_the_atlas_runs(folder: Path) -> None:
    (block,) = blocks(PAGES["atlas.md"], "python")
    np.savez(folder / "test.npz", x=load_file(ROOT / "tests/data/spd_digits_golden.safetensors")["input"])
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", block],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert [line.split()[0] for line in done.stdout.splitlines()] == ["conv1", "conv2", "conv3", "fc1", "fc2"]


def test_pictures_are_those_of_the_script_and_are_small() -> None:
    sys.path.insert(0, str(ROOT / "tools"))
    from pictures import PICTURES

    made = {path.stem: path.stat().st_size for path in (ROOT / "docs/pictures").glob("*.png")}
    assert set(made) <= {picture.name for picture in PICTURES}
    assert all(picture.command[0] in main.commands for picture in PICTURES if picture.name in made)
    assert sum(made.values()) < 700_000
    shown = {Path(name).stem for name in re.findall(r"pictures/(\w+\.png)", ALL_PAGES)}
    assert shown
    assert shown <= set(made)


def test_every_option_that_the_documentation_names_exists() -> None:
    parameters = [parameter for command in (main, *main.commands.values()) for parameter in command.params]
    # Those among them that help does not show are older names.
    existing = {"--help", "--version", *(name for p in parameters for name in (*p.opts, *p.secondary_opts))}
    texts = "".join(re.findall(r"`[^`]*`|^    .*$", ALL_PAGES + CI_EXAMPLE, flags=re.MULTILINE))
    named = set(re.findall(r"--[a-z][a-z0-9-]+", texts))
    of_others = {"--from", "--spec", "--with"}  # pipx and uv
    assert named - existing == of_others


def test_the_exit_statuses_of_the_readme_are_those_of_the_errors() -> None:
    import spdexport

    listed = {int(status) for status in re.findall(r"^\| (\d+) \|", PAGES["reports.md"], flags=re.MULTILINE)}
    errors = {value.exit_status for name, value in vars(spdexport.errors).items() if name.endswith("Error")}
    assert listed == errors | {0, 1, 3}


def test_the_pages_are_built_without_a_broken_link(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--site-dir", str(tmp_path / "site")],
        cwd=ROOT,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert {path.with_suffix(".md").name for path in (tmp_path / "site").glob("*.html")} >= set(PAGES)


def test_the_readme_links_to_files_that_exist() -> None:
    links = re.findall(r"\]\((?!https?:)([^)#]+)", README)
    assert links
    assert [link for link in links if not (ROOT / link).exists()] == []


def test_changelog_and_contributing_name_files_that_exist() -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    named = re.findall(r"`((?:[a-z_]+/)*[a-z_]+\.(?:py|txt|toml|safetensors))`", text)
    assert named
    for name in named:
        assert (ROOT / name).exists() or (ROOT / "spdexport" / name).exists(), name
