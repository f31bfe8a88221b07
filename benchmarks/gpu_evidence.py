"""All that is to be known of one provider of ONNX Runtime on one machine, in minutes and without a network.

    python benchmarks/gpu_evidence.py --provider cuda --output benchmarks/results/cuda.md
    python benchmarks/gpu_evidence.py --provider openvino --output benchmarks/results/openvino.md

Each part runs in a process of its own under a time limit: one that crashes or hangs leaves what it had said until then,
and the others run. The limits add up to less than 8 minutes; ``--patience 3`` triples them for a slow machine. The exit
status is 0 where every part said all it had to say and found what it should.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from datetime import date
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import onnx
import onnx.parser
import torch
from planted_faults import faults
from safetensors.numpy import load_file, save_file
from small_nets import SMALL
from subjects import DIGITS, make_subject
from transformers import ResNetConfig, ResNetForImageClassification
from zoo_models import ZOO

import spdexport
from spdexport.errors import SpdExportError
from spdexport.latency import cpu_name
from spdexport.ort.installed import versions
from spdexport.ort.providers import PROVIDERS, Provider, Purpose, provider_named
from spdexport.ort.sessions import Session, SessionSettings, open_session, provider_status
from spdexport.reference.onnx_reference import OnnxReference
from spdexport.verification.result import Status
from spdexport.verification.torch_source import verify_subject

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from spdexport.verification.result import EdgeResult, Verification

ROOT = Path(__file__).parents[1]
TESTS = ROOT / "tests"
MODEL = {"factory": f"{DIGITS / 'digits_cnn.py'}:DigitsCNN", "input_shape": ["1x1x16x16"]}
MASKS = {"masks": DIGITS / "run" / "fixed_masks.safetensors"}
GOLDEN: dict[str, dict[str, Any]] = {
    "fixed_mask_output": MASKS,
    "fixed_mask_plus_delta_output": {**MASKS, "delta": "keep"},
    "unmasked_output": {"delta": "drop"},
    "unmasked_plus_delta_output": {},
    "dense_output": {"form": "dense"},
}
"""The outputs that SPD's own code gave for the digits run, and the options that give them."""

GOLDEN_TOLERANCE = 1e-5
"""Of a check, relative to the largest output; a deployment may have a coarser format and is only told."""

NETS = ("conv_bn", "five_convs", "geometries", "two_outputs", "half")
ARCHITECTURES = ("ResNet", "MobileNetV2", "ConvNeXt", "EfficientNet", "Swin", "ViT", "SegFormer", "BERT", "GPT-2")

MARKED = {
    "cuda": ("gpu", ("ort/test_ort_sessions.py", "verification/test_sessions.py")),
    "openvino": ("openvino", ("verification/test_openvino.py",)),
}
"""The marker of a provider's tests, and where they are."""

RUNS = 20
"""Of one session on one input, to see whether they agree."""


class Part(NamedTuple):
    """A part of the evidence.

    Attributes:
        title: Its heading.
        seconds: How long it may take.
        run: Says what there is to say, and returns whether it found what it should.
    """

    title: str
    seconds: float
    run: Callable[[Provider, Path], bool]


def table(*columns: str) -> None:
    row(*columns)
    row(*("---" for _ in columns))


def row(*cells: object) -> None:
    """Say a row at once, so that it is kept when the part is stopped."""
    print(f"| {' | '.join(str(cell).replace('|', '/') for cell in cells)} |", flush=True)


def relative_error(got: np.ndarray, right: np.ndarray) -> float:
    return float(np.abs(got.astype(np.float64) - right).max() / np.abs(right).max())


def placed(session: Session, provider: Provider) -> str:
    """How many nodes the provider ran, and which others ran elsewhere."""
    nodes = session.placed_nodes()
    if nodes is None:
        return "not told"
    elsewhere = sorted({node.op_type for node in nodes if node.provider != provider.ort_name})
    count = sum(node.provider == provider.ort_name for node in nodes)
    return f"{count} of {len(nodes)}" + (f"; elsewhere: {', '.join(elsewhere)}" if elsewhere else "")


def devices(found: Verification) -> list[EdgeResult]:
    return [edge for edge in found.edges if edge.edge == "device"]


def noise(edge: EdgeResult) -> str:
    return "-" if edge.noise_ratio is None else f"{edge.noise_ratio:.3g}"


def purposes(provider: Provider) -> Iterable[tuple[Purpose, str]]:
    """The purposes that the provider has options for, each told with them."""
    for purpose in Purpose:
        options = provider.options(purpose)
        if purpose is Purpose.DEPLOYMENT or options != provider.options(Purpose.DEPLOYMENT):
            yield purpose, ", ".join(f"{name}={value}" for name, value in options.items()) or "its defaults"


def marked_tests(provider: Provider, _: Path) -> bool:
    if provider.name not in MARKED:
        print(f"No tests are marked for {provider.name}.")
        return True
    marker, files = MARKED[provider.name]
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-m",
        marker,
        "--no-header",
        "-p",
        "no:cacheprovider",
        "--show-capture=no",
    ]
    done = subprocess.run(
        [*command, *(str(TESTS / file) for file in files)], capture_output=True, text=True, check=False, cwd=ROOT
    )
    said = done.stdout.strip().splitlines() or done.stderr.strip().splitlines() or ["nothing is said"]
    print(f"`pytest -m {marker}`: {said[-1]}\n")
    for line in said:
        if line.startswith(("FAILED", "ERROR", "SKIPPED")):
            print(f"- {line}")
    return done.returncode == 0


def golden_values(provider: Provider, folder: Path) -> bool:
    values = load_file(TESTS / "data" / "spd_digits_golden.safetensors")
    table("output", "check", "deployment", "nodes on the provider")
    fine = True
    for name, options in GOLDEN.items():
        file = folder / f"{name}.onnx"
        spdexport.convert(DIGITS / "run", file, verify=False, **MODEL, **options)
        errors = []
        for purpose in (Purpose.CHECK, Purpose.DEPLOYMENT):
            session = open_session(file, SessionSettings(provider=provider, optimized=True, purpose=purpose))
            (output,) = session.run({"x": values["input"]}).values()
            errors.append(relative_error(output, values[name]))
        row(name, f"{errors[0]:.2g}", f"{errors[1]:.2g}", placed(session, provider))
        fine &= errors[0] < GOLDEN_TOLERANCE
    return fine


def models(provider: Provider, folder: Path) -> bool:
    made: dict[str, Callable[[], tuple[Any, Any]]] = {make.__name__: make for make in SMALL if make.__name__ in NETS}
    made |= {entry.name: entry.make for entry in ZOO if entry.name in ARCHITECTURES}
    table("model", "status", "noise of the check", "noise of the deployment", "nodes on the provider", "s", "remarks")
    failures = 0
    for number, (name, make) in enumerate(made.items()):
        start = time.perf_counter()
        torch.manual_seed(0)
        module, inputs = make()
        file = folder / f"{number}.onnx"
        try:
            result = spdexport.convert(module.eval(), file, inputs=inputs, providers=[provider.name])
        except SpdExportError as error:
            row(name, "error", "-", "-", "-", f"{time.perf_counter() - start:.1f}", error.what)
            failures += 1
            continue
        edges = devices(result.verification)
        check = f"{noise(edges[0])}" if len(edges) > 1 else "-"
        session = open_session(result.outputs[0], SessionSettings(provider=provider, optimized=True))
        status = max((edge.status for edge in edges), key=(Status.PASS, Status.INCONCLUSIVE, Status.FAIL).index)
        told = "; ".join(
            dict.fromkeys(e.reason for e in edges if e.status is not Status.PASS or " not the model" in e.reason)
        )
        took = time.perf_counter() - start
        row(name, status.value, check, noise(edges[-1]), placed(session, provider), f"{took:.1f}", told)
        failures += status is Status.FAIL
    print(f"\n{len(made)} models, {failures} of them failed.")
    return not failures


def wide_network() -> tuple[torch.nn.Module, tuple[torch.Tensor, ...]]:
    """A network wide enough for the kernels that have coarser formats."""
    torch.manual_seed(0)
    widths, layers = (3, 32, 64, 32), []
    for before, after in pairwise(widths):
        layers += [torch.nn.Conv2d(before, after, 3, padding=1), torch.nn.ReLU()]
    return torch.nn.Sequential(*layers).eval(), (torch.randn(2, 3, 16, 16),)


def planted(provider: Provider, folder: Path) -> bool:
    module, inputs = wide_network()
    subject = make_subject(folder, module, {"inputs": inputs})
    table("fault", "where", "device edges", "layer named", "noise")

    def is_caught(kind: str, where: str, row_of_table: Provider, file: Path) -> bool:
        edges = devices(verify_subject(replace(subject, file=file), providers=(row_of_table,), seed=0))
        worst = max(edges, key=lambda edge: edge.noise_ratio or 0.0)
        row(kind, where, ", ".join(e.status.value for e in edges), worst.first_divergence or "-", noise(worst))
        return any(edge.status is Status.FAIL for edge in edges)

    is_clean = not is_caught("none", "nowhere", provider, subject.file)
    results = []
    for number, fault in enumerate(f for f in faults(subject.file, ["2"], {}) if f.layer == "2"):
        file = folder / f"{number}.onnx"
        model = onnx.load(subject.file)
        fault.edit(model)
        onnx.save(model, file)
        results.append(is_caught(fault.kind, "the file", provider, file))
    coarse = provider.coarse
    if coarse is not None and coarse.options is not None:
        x = inputs[0].numpy()
        outputs = []
        for purpose in (Purpose.CHECK, Purpose.COARSE):
            session = open_session(subject.file, SessionSettings(provider=provider, optimized=True, purpose=purpose))
            outputs.append(next(iter(session.run({session.inputs[0].name: x}).values())))
        if np.array_equal(*outputs):
            row(f"{coarse.name} in a check", "the device", "-", "-", "this device does not use it here")
        else:
            faulty = replace(provider, check=coarse.options)
            results.append(is_caught(f"{coarse.name} in a check", "the device", faulty, subject.file))
    print(
        f"\nThe correct file {'passes' if is_clean else 'fails'}; {sum(results)} of {len(results)} faults are caught."
    )
    return is_clean and all(results)


def wide_convolution() -> tuple[onnx.ModelProto, dict[str, np.ndarray]]:
    text = "g (float[4,128,34,34] x) => (float[4,64,32,32] y) { c = Conv (x, w)  y = Relu (c) }"
    model = onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["" : 17]> {text}')
    local = np.random.default_rng(0)
    weight = local.normal(size=(64, 128, 3, 3)).astype(np.float32)
    model.graph.initializer.append(onnx.numpy_helper.from_array(weight, "w"))
    return model, {"x": local.normal(size=(4, 128, 34, 34)).astype(np.float32)}


def number_formats(provider: Provider, _: Path) -> bool:
    model, inputs = wide_convolution()
    right = OnnxReference(model).run(inputs)["y"]
    print("A convolution of 128 channels, its largest error relative to its largest output:\n")
    table("purpose", "options", "error")
    errors = {}
    for purpose, told in purposes(provider):
        settings = SessionSettings(provider=provider, optimized=True, purpose=purpose)
        errors[purpose] = relative_error(open_session(model.SerializeToString(), settings).run(inputs)["y"], right)
        row(purpose.value, told, f"{errors[purpose]:.2g}")
    cpu = open_session(model.SerializeToString(), SessionSettings(optimized=True)).run(inputs)["y"]
    row("the CPU", "beside it", f"{relative_error(cpu, right):.2g}")
    return errors.get(Purpose.CHECK, 0.0) < GOLDEN_TOLERANCE


def nondeterminism(provider: Provider, _: Path) -> bool:
    model, inputs = wide_convolution()
    print(f"{RUNS} runs of one session on one input, and of {RUNS // 4} sessions one run each:\n")
    table("purpose", "different results of one session", "spread", "different results of sessions", "spread")
    exact = True
    for purpose, _told in purposes(provider):
        settings = SessionSettings(provider=provider, optimized=True, purpose=purpose)
        session = open_session(model.SerializeToString(), settings)
        same = [session.run(inputs)["y"] for _ in range(RUNS)]
        fresh = [open_session(model.SerializeToString(), settings).run(inputs)["y"] for _ in range(RUNS // 4)]
        cells = []
        for results in (same, fresh):
            cells += [len({r.tobytes() for r in results}), f"{max(relative_error(r, results[0]) for r in results):.2g}"]
        row(purpose.value, *cells)
        exact &= purpose is not Purpose.CHECK or max(float(cell) for cell in cells[1::2]) < GOLDEN_TOLERANCE
    return exact


def deployed(provider: Provider, folder: Path) -> bool:
    print("ResNet-10 has stages of 64 to 512 channels, random weights and images of 224 x 224.\n")
    table("model", "live", "factorized / dense", "auto / dense", "dense ms", "nodes on the provider")
    torch.manual_seed(0)
    config = ResNetConfig(embedding_size=64, hidden_sizes=[64, 128, 256, 512], depths=[1] * 4, layer_type="basic")
    source = folder / "resnet10.onnx"
    module = ResNetForImageClassification(config).eval()
    spdexport.convert(module, source, inputs=torch.randn(2, 3, 224, 224), form="dense", verify=False)
    _compared(provider, folder, "ResNet-10", source, 8, {})
    _compared(provider, folder, "digits", DIGITS / "run", 256, MODEL)
    return True


def _compared(
    provider: Provider, folder: Path, name: str, source: Path, batch: int, options: Mapping[str, Any]
) -> None:
    """Say how long each form of a model takes with a quarter of the components of every layer live."""
    layers = [x for x in spdexport.inspect(source, **options).plan.layers if x.components is not None]
    masks = folder / f"{name}.safetensors"
    quarter = {x.name: (np.arange(x.components) < max(x.components // 4, 1)).astype(np.float32) for x in layers}
    save_file(quarter, masks)
    files = {}
    for form in ("factorized", "auto", "dense"):
        files[form] = folder / f"{name}-{form}.onnx"
        spdexport.convert(
            source, files[form], masks=masks, form=form, delta="drop", verify=False,
            **({"target": provider.name, "lane_width": provider.lane} if form == "auto" else {}), **options,
        )  # fmt: skip
    ratios = []
    for form in ("factorized", "auto"):
        found = spdexport.bench(
            files[form], against=files["dense"], provider=provider.name, batch=batch, rounds=30, seconds=8
        )
        assert found.ratio is not None
        ratios.append(f"{found.ratio.median:.3f} ({found.ratio.low:.3f} to {found.ratio.high:.3f})")
    nodes = ", ".join(f"{count} {where}" for where, count in found.files[0].placement.items())
    row(f"{name}, batch {batch}", "25 %", *ratios, f"{1e3 * found.files[1].time.median:.3g}", nodes)


PARTS = {
    "tests": Part("Tests", 100, marked_tests),
    "golden": Part("The values that SPD's own code gave", 45, golden_values),
    "formats": Part("Number formats", 20, number_formats),
    "nondeterminism": Part("Whether runs agree", 25, nondeterminism),
    "faults": Part("Planted faults on the device edge", 80, planted),
    "models": Part("Models, converted and verified", 130, models),
    "bench": Part("Latency of the deployed forms", 70, deployed),
}
"""In the order they run in. The time limits, in seconds, add up to less than 8 minutes."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--provider", choices=[name for name in PROVIDERS if name != "cpu"], default="cuda")
    parser.add_argument("--output", type=Path, metavar="F.md", help="write here; default: standard output")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--patience", type=float, default=1.0, help="multiplies every time limit")
    parser.add_argument("--child", choices=PARTS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    provider = provider_named(options.provider)
    if options.child:
        with tempfile.TemporaryDirectory() as folder:
            sys.exit(0 if PARTS[options.child].run(provider, Path(folder)) else 1)
    if missing := provider_status(provider):
        sys.exit(f"{provider.name} cannot run here: {missing}")
    text, fine = _evidence(provider, options.parts, options.patience)
    if options.output:
        options.output.write_text(text, encoding="utf-8")
    else:
        print(text)
    sys.exit(0 if fine else 1)


def _evidence(provider: Provider, names: list[str], patience: float) -> tuple[str, bool]:
    """What the parts say, and whether all found what they should."""
    stack = ", ".join(f"{name} {version}" for name, version in versions().items())
    started, said, found = time.perf_counter(), [], []
    for name in names:
        part, start = PARTS[name], time.perf_counter()
        print(f"{name} ...", file=sys.stderr, flush=True)
        text, ending = _part(provider, name, part.seconds * patience)
        took = time.perf_counter() - start
        found.append((part.title, ending, took, part.seconds * patience))
        print(f"{name}: {ending}, {took:.0f} s", file=sys.stderr, flush=True)
        said.append(f"## {part.title}\n\n{text.strip()}\n")
    summary = "\n".join(f"| {title} | {how} | {took:.0f} | {most:.0f} |" for title, how, took, most in found)
    head = (
        f"# What {provider.name} does\n\n"
        f"`python benchmarks/{Path(__file__).name} {' '.join(sys.argv[1:])}` on {date.today().isoformat()}, "
        f"{versions().get('cuda_device') or cpu_name()}, with {stack}.\n\n"
        f"{provider.ort_name}; its device edge is explained in the README. A part that found what it should says so "
        f"below; all took {time.perf_counter() - started:.0f} s.\n\n"
        f"| part | result | s | at most |\n|---|---|---|---|\n{summary}\n\n"
    )
    return head + "\n".join(said), all(how == "as it should be" for _, how, _, _ in found)


def _part(provider: Provider, name: str, seconds: float) -> tuple[str, str]:
    """What one part says in a process of its own, and how it ended."""
    with tempfile.TemporaryFile("w+", encoding="utf-8") as out, tempfile.TemporaryFile("w+", encoding="utf-8") as err:
        command = [sys.executable, __file__, "--provider", provider.name, "--child", name]
        # A group of its own, so that what the part started ends with it.
        child = subprocess.Popen(command, stdout=out, stderr=err, start_new_session=True)
        try:
            status = child.wait(timeout=seconds)
            ending = {0: "as it should be", 1: "not as it should be"}.get(status, f"ended with status {status}")
        except subprocess.TimeoutExpired:
            os.killpg(child.pid, signal.SIGKILL)
            child.wait()
            ending = f"stopped after {seconds:.0f} s"
        out.seek(0)
        err.seek(0)
        said, last = out.read(), [line for line in err.read().splitlines() if line.strip()][-1:]
    if ending != "as it should be" and last:
        said += f"\n\n{ending}; its last words: `{last[0][:300]}`"
    return said, ending


if __name__ == "__main__":
    main()
