import io

import pytest
from results import NO_DEVICE, SPEC, conversion, dear, edge, inspection, layer, left, verification
from rich.console import Console

from spdexport.conv import Skipped
from spdexport.folding import Folding
from spdexport.report.terminal import show
from spdexport.rewrite.fold_result import FoldedChain
from spdexport.verification.result import Status

LONG = "resnet.encoder.stages.0.layers.1.layer.2.convolution"


def shown(result, *, width=80, **options):
    """What is printed where there is no terminal."""
    file = io.StringIO()
    show(result, console=Console(file=file, width=width), **options)
    text = file.getvalue()
    assert "\x1b" not in text
    assert all(line == line.rstrip() for line in text.splitlines())
    return text


def joined(text):
    """The text without its line breaks."""
    return " ".join(text.split())


def row(text, name):
    return next(line.split() for line in text.splitlines() if line.startswith(name))


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "m.onnx"
    path.write_bytes(bytes(208_000))
    return path


def test_a_cheaper_model(file):
    text = shown(conversion(layer(), outputs=[file], found=verification()))
    assert "1 layer decomposed (factorized), components from the SPD run" in text
    assert " ".join(row(text, "conv1")) == "conv1 16>32 3x3 s2 p1 8 4 6 295 k 181 k 0.125 dropped"
    assert "MACs for one sample: 295 k -> 181 k, 0.61 times the dense cost" in text
    assert "spdexport fold" not in text
    assert f"  {file}, 208 kB\n" in text
    assert "equivalent: the file computes the intended model, to rounding" in text


def test_a_dearer_model_is_told_plainly_with_what_to_do(file):
    text = shown(conversion(dear("conv1"), layer("conv2"), outputs=[file]))
    assert "This costs more than" not in text
    assert "1 layer (conv1) costs more as V and U than dense" in joined(text)
    text = shown(conversion(dear("conv1"), dear("conv2"), outputs=[file]))
    assert "MACs for one sample: 590 k -> 724 k, 1.23 times the dense cost" in text
    assert "This costs more than the dense model. 2 layers (conv1, conv2)" in joined(text)
    assert f"  spdexport fold {file} -o OUT.onnx\n" in text
    assert "--form dense" in text


def test_different_forms_have_a_column():
    text = shown(conversion(layer("a"), layer("b", form="factorized+delta", delta="kept")), width=120)
    assert "factorized" in row(text, "a")
    assert "0.125 kept" in text
    assert "factorized +delta" in text


def test_a_delta_that_is_rounding_is_none():
    assert row(shown(conversion(layer(delta="none", delta_ratio=3e-8))), "conv1")[-1] == "none"


def test_a_big_model_shows_what_changes_most():
    layers = [layer(f"stage.{i}.conv", macs_after=295_000 - i) for i in range(50)]
    text = shown(conversion(*layers))
    assert "stage.0.conv" not in text
    assert "stage.49.conv" in text
    assert row(text, "38 more")[2:6] == ["11.2", "M", "11.2", "M"]
    assert "the 12 of 50 layers whose cost changes most" in text
    everything = shown(conversion(*layers), verbose=True)
    assert all(x.name in everything for x in layers)
    assert "38 more" not in everything


def test_layers_left_alone_are_grouped_by_reason():
    many = [left(f"fc{i}", "it has no components") for i in range(8)]
    text = shown(conversion(layer(), *many, skipped=[("emb", "embedding", "no convolution")]))
    assert "9 layers left as they are" in text
    assert "it has no components: fc0, fc1, fc2, fc3 and 4 more" in text
    assert "no convolution: emb (embedding)" in text
    assert "fc7" in shown(conversion(layer(), *many), verbose=True)


@pytest.mark.parametrize("width", [80, 60])
def test_long_names_are_folded_and_never_cut(width):
    text = shown(conversion(layer(LONG, geometry="512>512 3x3 s2 p1 g32")), width=width)
    cells = [line[: line.find("  ")] if "  " in line else line for line in text.splitlines() if line]
    assert LONG in "".join(cells)
    assert "…" not in text
    assert max(map(len, text.splitlines())) <= width


def test_names_with_brackets_are_no_markup():
    assert "a[bold]b" in shown(conversion(layer("a[bold]b"), notes=["[red]x"]))
    assert "[red]x" in shown(conversion(layer(), notes=["[red]x"]))


def test_a_failure_says_where_and_why(tmp_path):
    failed = tmp_path / "m.failed.onnx"
    failed.write_bytes(b"x")
    found = verification(
        edge("export", Status.FAIL, provider="cpu", noise_ratio=910.0, max_abs=0.25, first_divergence="conv2",
             reason="output logits differs, on input normal, batch 2"), NO_DEVICE)  # fmt: skip
    text = shown(conversion(dear(), outputs=[failed], found=found), width=200)
    assert "not equivalent: what the file computes differs by more than rounding" in text
    assert row(text, "export")[:4] == ["export", "(cpu)", "fail", "910"]
    assert "first diverges at conv2: output logits differs, on input normal, batch 2 (largest error 0.25)" in text
    assert "The check failed: the file has this name instead of the one asked for" in text
    assert "spdexport fold" not in text


def test_an_edge_that_did_not_run_says_why():
    assert "device not run - no provider beside the CPU was asked for" in joined(shown(verification()))


def test_approximation_is_intended():
    text = joined(shown(verification()))
    assert "approximation, intended: what masks and dropped deltas change of the dense model" in text
    assert "outputs differ by 25.0% in norm, at most 1.5" in text
    assert "the top class is the same for 93.8% of the samples" in text
    assert "approximation" not in shown(verification(approximation=None))


def test_a_file_by_itself_is_not_called_the_intended_model():
    nothing = edge("rewrite", Status.NOT_RUN, noise_ratio=None)
    text = shown(verification(nothing, edge("export", provider="cpu")))
    assert "equivalent to rounding, on the edges that ran" in text
    assert "intended model" not in text


def test_notes_of_both():
    text = shown(conversion(layer(), found=verification(), notes=["the model was in training mode"]))
    assert text.index("the model was in training mode") < text.index("discarded: large, batch 1")


def test_verbose_has_hashes_and_versions():
    text = shown(conversion(layer(), found=verification()), verbose=True)
    assert "  5e  source\n" in text
    assert "torch 2.13.0, onnxruntime-gpu 1.31.1" in text
    assert "seed 3" in text
    assert "SHA-256" not in shown(conversion(layer(), found=verification()))


def test_quiet_is_one_line_unless_something_is_wrong():
    assert shown(conversion(layer(), found=verification()), quiet=True).splitlines() == [
        "equivalent: the file computes the intended model, to rounding"
    ]
    wrong = shown(conversion(layer(), found=verification(edge("export", Status.INCONCLUSIVE))), quiet=True)
    assert wrong.startswith("inconclusive: the check could not decide\n")
    assert "export" in wrong


def test_inspect():
    text = shown(inspection(layer("conv1"), left("fc", "it has no components")))
    assert "2 layers, components from the exact SVD of the weights" in text
    assert " ".join(row(text, "conv1")) == "conv1 16>32 3x3 s2 p1 8 4 6 0.125 295 k 181 k"
    assert row(text, "fc")[-6:] == ["-", "6", "-", "295", "k", "-"]
    assert "it has no components: fc" in text


def test_inspect_of_a_model_without_layers():
    assert "0 layers" in shown(inspection())


def test_fold():
    chain = FoldedChain(name="conv1", nodes=("a", "b"), spec=SPEC, macs_before=1200, macs_after=600)
    declined = Skipped(name="conv2", kind="conv2d", reason="an output is used elsewhere")
    result = Folding(outputs=(), folded=(chain,), declined=(declined,), verification=None, hashes={}, notes=(),
                     versions={}, seed=0)  # fmt: skip
    text = shown(result)
    assert "1 layer folded" in text
    assert "conv1: 2>3, MACs at each output location 1.2 k -> 600" in text
    assert "an output is used elsewhere: conv2 (conv2d)" in text
    assert text.splitlines()[-1] == "not verified"


def test_colours_only_on_a_terminal():
    file = io.StringIO()
    show(verification(), console=Console(file=file, force_terminal=True, width=80, color_system="standard"))
    assert "\x1b[32m" in file.getvalue()
