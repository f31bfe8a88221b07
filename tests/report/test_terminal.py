import io
import re

import pytest
from results import NO_DEVICE, SPEC, check, conversion, dear, edge, inspection, layer, left, verification
from rich.console import Console

from spdexport.conv import Skipped
from spdexport.folding import Folding
from spdexport.report.console import SafeConsole
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


def test_a_terminal_gets_styles_and_what_commands_it_in_names_is_shown():
    file = io.StringIO()
    console = SafeConsole(file=file, width=80, force_terminal=True, color_system="standard")
    show(conversion(layer("conv1"), layer("evil\x1b[2J")), console=console)
    text = file.getvalue()
    assert "\x1b[2mplanned" in text
    assert "\\x1b[2mplanned" not in text
    assert "evil\\x1b[2J" in text
    assert "\x1b[2J" not in text
    # Nothing but colours and weights.
    assert set(re.findall(r"\x1b.*?[A-Za-z]", text)) <= {f"\x1b[{code}m" for code in (0, 1, 2, *range(30, 38), "1;31")}
    plain = re.sub(r"\x1b\[[\d;]*m", "", text)
    assert all(line == line.rstrip() for line in plain.splitlines())


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
    assert " ".join(row(text, "conv1")) == "conv1 16>32 3x3 s2 p1 8 4 6 295 k 181 k 4.64 k 2.85 k 0.125"
    assert "MACs for one sample: 295 k -> 181 k, 0.61 times the dense cost" in text
    assert "spdexport fold" not in text
    assert f"  {file}, 208 kB (dense 215 kB)\n" in text
    assert "parameters of these layers: 4.64 k -> 2.85 k" in text
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
    assert "--form auto" in text


def test_different_forms_have_a_column():
    text = shown(conversion(layer("a"), layer("b", form="factorized+delta", delta="kept")), width=120)
    assert "factorized" in row(text, "a")
    assert "0.125 kept" in text
    assert "factorized +delta" in text


def test_a_delta_that_is_rounding_is_none():
    both = conversion(layer(), layer("conv2", delta="none", delta_ratio=3e-8))
    assert row(shown(both), "conv2")[-1] == "none"
    assert "delta: what V U leaves of the weight, dropped" in joined(shown(both))
    alone = shown(conversion(layer(delta="none", delta_ratio=3e-8)))
    assert "delta" not in alone


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
    assert "1 layer left as it is\n" in shown(conversion(layer(), left("fc", "it has no components")))
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


ALIKE = {"approximation": None, "notes": ()}

WEIGHTS_GOLDEN = """\
not equivalent: what the file computes differs by more than rounding
edge          status      noise
capture       pass          0.5  6 inputs compared
weights       fail     3.45e+06  first diverges at conv2: conv2.weight[0, 7, 2,
                                 1] is 0.248897538 where 0.0934757069 is right:
                                 3.45e+06 times what rounding explains (largest
                                 error 0.155)
export (cpu)  fail     5.16e+04  first diverges at conv2: output[0, 2] is
                                 -2251.69897 where -2186.71609 is right: off by
                                 65, 5.16e+04 times what rounding explains, on
                                 input large, batch 1
device        not run         -  no provider beside the CPU was asked for

1 layer of 2 failed
  conv2: weights: an error of 3.45e+06 times what rounding explains, above 8
  fails; the error of the weights moves the output by at most 651

weights: what this means
  the file does not hold the weights and operators of the intended model
  to do: if the file was edited, or its source has changed since, convert again;
  if the file is new, report it

noise: the largest error over what rounding alone explains; above 8 fails
inputs: normal, batch 2
"""


def test_golden_a_weight_that_was_changed():
    found = verification(
        edge("capture"),
        edge("weights", Status.FAIL, noise_ratio=3.45e6, max_abs=0.155, first_divergence="conv2",
             reason="conv2.weight[0, 7, 2, 1] is 0.248897538 where 0.0934757069 is right: "
             "3.45e+06 times what rounding explains"),
        edge("export", Status.FAIL, provider="cpu", noise_ratio=5.16e4, max_abs=65.0, first_divergence="conv2",
             reason="output[0, 2] is -2251.69897 where -2186.71609 is right: off by 65, "
             "5.16e+04 times what rounding explains, on input large, batch 1"),
        NO_DEVICE,
        layers=(check("conv1"), check("conv2", Status.FAIL, weights_ratio=3.45e6, output_ratio=None, bound=651.0)),
        **ALIKE,
    )  # fmt: skip
    assert shown(found) == WEIGHTS_GOLDEN


OPTIMIZE_GOLDEN = """\
not equivalent: what the file computes differs by more than rounding
edge            status   noise
export (cpu)    pass       0.5  6 inputs compared
optimize (cpu)  fail       212  output[0, 2] is 1.25 where 1.125 is right: off
                                by 0.125, 212 times what rounding explains, on
                                input normal, batch 2; with every layer tapped,
                                which prevents fusions, no layer diverges
device          not run      -  no provider beside the CPU was asked for

optimize (cpu): what this means
  ONNX Runtime's graph optimizations change what the file computes; without them
  it is right
  to do: set graph_optimization_level to ORT_DISABLE_ALL in the SessionOptions,
  or try another version of ONNX Runtime

noise: the largest error over what rounding alone explains; above 8 fails
inputs: normal, batch 2
"""


def test_golden_an_optimization_that_is_wrong():
    found = verification(
        edge("export", provider="cpu"),
        edge("optimize", Status.FAIL, provider="cpu", noise_ratio=212.0, max_abs=0.125,
             reason="output[0, 2] is 1.25 where 1.125 is right: off by 0.125, 212 times what rounding explains, on "
             "input normal, batch 2; with every layer tapped, which prevents fusions, no layer diverges"),
        NO_DEVICE,
        **ALIKE,
    )  # fmt: skip
    assert shown(found) == OPTIMIZE_GOLDEN


CUDA_GOLDEN = """\
inconclusive: the check could not decide
edge            status        noise
export (cpu)    pass            0.5  6 inputs compared
optimize (cpu)  pass            0.5  6 inputs compared
device (cuda)   inconclusive      -  missing libcudnn.so.9: `pip install
                                     nvidia-cudnn-cu13` brings it

device (cuda): what this means
  nothing was shown about this provider, neither for nor against it
  to do: mend what is named above and check again, or check the CPU alone with
  --provider cpu

noise: the largest error over what rounding alone explains; above 8 fails
inputs: normal, batch 2
"""


def test_golden_cuda_that_cannot_run():
    found = verification(
        edge("export", provider="cpu"),
        edge("optimize", provider="cpu"),
        edge("device", Status.INCONCLUSIVE, provider="cuda", noise_ratio=None, max_abs=None,
             reason="missing libcudnn.so.9: `pip install nvidia-cudnn-cu13` brings it"),
        **ALIKE,
    )  # fmt: skip
    assert shown(found) == CUDA_GOLDEN


VACUOUS_GOLDEN = """\
inconclusive: the check could not decide
edge          status        noise
weights       pass            0.5  6 inputs compared
export (cpu)  inconclusive      -  no output reacts to the inputs, so that they
                                   agree shows nothing
device        not run           -  no provider beside the CPU was asked for

export (cpu): what this means
  the check ran and shows nothing, neither for nor against the file
  to do: give inputs of your own, such as the model meets in use, with verify
  --inputs FILE

noise: the largest error over what rounding alone explains; above 8 fails
inputs: normal, batch 2
"""


def test_golden_an_output_that_does_not_react():
    found = verification(
        edge("weights"),
        edge("export", Status.INCONCLUSIVE, provider="cpu", noise_ratio=None, max_abs=None,
             reason="no output reacts to the inputs, so that they agree shows nothing"),
        NO_DEVICE,
        **ALIKE,
    )  # fmt: skip
    assert shown(found) == VACUOUS_GOLDEN


def test_many_failing_layers_are_not_all_listed():
    many = verification(edge("weights", Status.FAIL), layers=tuple(check(f"conv{i}", Status.FAIL) for i in range(20)))
    assert "20 layers of 20 failed" in shown(many)
    assert "and 16 more; --verbose shows all" in shown(many)
    assert "conv19: " in shown(many, verbose=True)


def test_a_tolerance_of_the_users_own_is_called_theirs():
    assert "tolerance: atol 1e-05, set by the user" in joined(shown(verification(atol=1e-5)))


def test_an_edge_that_did_not_run_says_why():
    assert "device not run - no provider beside the CPU was asked for" in joined(shown(verification()))


def test_approximation_is_intended():
    text = joined(shown(verification()))
    assert "approximation, intended: what masks, ranks and dropped deltas change of the dense model" in text
    assert "outputs differ by 25.0% in norm, at most 1.5" in text
    assert "the top class is the same for 93.8% of the check's 16 samples" in text
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
    assert text.splitlines()[0] == "not verified"


def test_colours_only_on_a_terminal():
    file = io.StringIO()
    show(verification(), console=Console(file=file, force_terminal=True, width=80, color_system="standard"))
    assert "\x1b[32m" in file.getvalue()
