"""Whether the verdict can be trusted: faults that it must catch and place, correct files that it must let pass.

    python benchmarks/verdict.py > benchmarks/results/verdict.md

Faults are planted in converted files of many kinds of model. A fault counts if the file computes something else with it
(in float64, or as ONNX Runtime runs it unoptimized) or says something else of its outputs. Beside the verdict stand the
default rules of other tools, applied to the same files on the same inputs.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import gc
import sys
import tempfile
import time
from collections import Counter, defaultdict
from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import torch
from planted_elsewhere import plant_elsewhere
from planted_faults import Fault, faults, padded_otherwise, round_activations
from planting import one_off, planted, to_bfloat16, weight
from small_nets import SMALL, TRANSFORMERS, conv_bn, five_convs
from subjects import DIGITS, make_subject

from spdexport import pipeline
from spdexport.arrays import to_numpy
from spdexport.ort.installed import versions
from spdexport.ort.sessions import RuntimeFailure, SessionSettings, open_session
from spdexport.reference.onnx_reference import OnnxReference
from spdexport.reference.torch_reference import evaluate
from spdexport.verification import locate, sessions
from spdexport.verification.check import Check
from spdexport.verification.inputs import cases, feeds
from spdexport.verification.result import Status
from spdexport.verification.torch_source import verify_subject

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from spdexport.conv import Array
    from spdexport.verification.result import Verification
    from spdexport.verification.torch_source import Subject

Values = "Mapping[str, Array]"

DEEP = 10
"""Layers from which on only the first and the last get faults, for time."""

FLOAT32 = [make for make in (*SMALL, *TRANSFORMERS) if not make.__name__.startswith(("half", "linear_double"))]
RUN = {"factory": f"{DIGITS / 'digits_cnn.py'}:DigitsCNN", "input_shape": ["2x1x16x16"]}
MASKED = {**RUN, "masks": DIGITS / "run" / "fixed_masks.safetensors"}


def allclose(rtol: float, atol: float, *, equal_nan: bool = False) -> Callable[[Array, Array], bool]:
    """The rule of ``numpy.allclose``."""
    return lambda got, right: np.allclose(got, right, rtol=rtol, atol=atol, equal_nan=equal_nan)


def polygraphy(got: Array, right: Array) -> bool:
    """An element fails where both its absolute and its relative error are too large, or not numbers."""
    error = np.abs(got.astype(np.float64) - right)
    with np.errstate(all="ignore"):
        relative = error / np.abs(right)
    return not (~(error <= 1e-5) & ~(relative <= 1e-5)).any()


def torch_verify(got: Array, right: Array) -> bool:
    """Warns from an absolute error of 5e-3, or a relative one of 1e-1; NaN is neither."""
    error = np.abs(got.astype(np.float64) - right)
    with np.errstate(all="ignore"):
        relative = error / (np.abs(right) + 1e-7)
    return not (error.max(initial=0) >= 5e-3 or relative.max(initial=0) >= 1e-1)


RULES: dict[str, tuple[Callable[[Array, Array], bool], bool]] = {
    "Polygraphy, 1e-5 absolute or relative": (polygraphy, True),
    "torch.onnx verify=True, 5e-3 and 1e-1": (torch_verify, False),
    "optimum, allclose atol 1e-5": (allclose(1e-5, 1e-5), True),
    "onnxsim, allclose 1e-4, 1e-5": (allclose(1e-4, 1e-5), False),
    "onnxslim, allclose 1e-3, 1e-4": (allclose(1e-3, 1e-4, equal_nan=True), True),
}
"""By tool and rule: whether an output passes, and whether the tool notices outputs that are missing.

Sources: polygraphy/comparator/compare.py (CompareFunc.simple), torch/onnx/_internal/exporter/_core.py (2.13),
optimum/exporters/onnx/convert.py (validate_model_outputs), onnxsim/model_checking.py, onnxslim/core (check_result).
Applied to what an optimized session of the file computes, and what torch computes in float32.
"""


class Model:
    """A converted model, its inputs, and what is right on them.

    Attributes:
        name: Of the model.
        subject: What is verified.
        right: By the name of a case, what torch computes in the model's dtype.
        feeds: By the name of a case, its inputs by the file's names.
    """

    def __init__(self, name: str, subject: Subject) -> None:
        self.name, self.subject = name, subject
        self.feeds: dict[str, dict[str, Array]] = {}
        self.right: dict[str, dict[str, Array]] = {}
        names = [v.name or "" for v in subject.plain().graph.outputs]
        for case in cases(subject.intended, subject.example, own=subject.own_inputs, seed=0):
            flat = evaluate(subject.intended, case.inputs.args, case.inputs.kwargs, float64=False)
            values = [to_numpy(v) for v in flat if isinstance(v, torch.Tensor)]
            self.feeds[case.name] = dict(feeds(subject.intended, case.inputs))
            self.right[case.name] = dict(zip(names, values, strict=True))
        assert subject.file is not None
        self.before = outputs(subject.file, self.feeds)
        self.exact = exact(subject.file, self.feeds)

    def verify(self, **changes: Any) -> Verification:
        """The verdict on a changed subject."""
        return verify_subject(replace(self.subject, **changes), Check())

    def is_changed(self, file: Path) -> bool:
        """Whether a file computes or says something else than the correct one."""
        try:
            after = outputs(file, self.feeds)
        except RuntimeFailure:
            return True
        if differ(self.before, after):
            return True
        return differ(self.exact, exact(file, self.feeds))

    def rules_that_fail(self, file: Path) -> list[str]:
        """The rules of other tools that do not let a file pass."""
        try:
            found = outputs(file, self.feeds, optimized=True)
        except RuntimeFailure:
            return list(RULES)
        return [rule for rule in RULES if not all(self._passes(rule, found[case], case) for case in self.right)]

    def _passes(self, rule: str, got: dict[str, Array], case: str) -> bool:
        check, notices_missing = RULES[rule]
        right = self.right[case]
        if notices_missing and set(got) != set(right):
            return False
        # Tools that do not look at names take the outputs in their order.
        pairs = zip(got.values(), right.values(), strict=False)
        return all(a.shape == b.shape and check(a, b) for a, b in pairs)


def outputs(file: Path, inputs: Mapping[str, Values], *, optimized: bool = False) -> dict[str, dict[str, Array]]:  # type: ignore[valid-type]
    """What a session computes on all cases."""
    session = open_session(file, SessionSettings(optimized=optimized, spinning=False))
    return {case: session.run(values) for case, values in inputs.items()}


def exact(file: Path, inputs: Mapping[str, Values]) -> dict[str, dict[str, Array]]:  # type: ignore[valid-type]
    """The same in float64."""
    reference = OnnxReference(onnx.load(file))
    return {case: reference.run(values) for case, values in inputs.items()}


def differ(a: Mapping[str, Values], b: Mapping[str, Values]) -> bool:  # type: ignore[valid-type]
    """Whether two sets of outputs differ in names or in any bit."""
    return any(
        list(a[case]) != list(b[case])
        or any(not np.array_equal(a[case][n], b[case][n], equal_nan=True) for n in a[case])
        for case in a
    )


class Tally:
    """Counts, by kind of fault and in all."""

    def __init__(self) -> None:
        self.kinds: dict[str, Counter[str]] = defaultdict(Counter)
        self.wrong: list[str] = []
        self.skipped = 0

    def add(self, model: Model, kind: str, layer: str, edge: str, found: Verification, file: Path | None) -> None:
        """Take in what was found on a fault; of one in a file, what the rules of other tools say too."""
        self.add_found(model.name, kind, layer, edge, found)
        if file is not None:
            count = self.kinds[kind]
            count["files"] += 1
            for rule in model.rules_that_fail(file):
                count[rule] += 1

    def add_found(self, name: str, kind: str, layer: str, edge: str, found: Verification) -> None:
        """Take in what was found on a fault alone."""
        count = self.kinds[kind]
        count["planted"] += 1
        failing = [e for e in found.edges if e.status is Status.FAIL]
        first = failing[0] if failing else None
        named = {e.first_divergence for e in failing}
        right = {"caught": found.verdict is Status.FAIL, "layer": first is not None and first.first_divergence == layer,
                 "edge": first is not None and first.edge == edge}  # fmt: skip
        right["outputs"] = any(e.edge in ("capture", "rewrite", "export", "optimize") for e in failing)
        if layer == "output":
            right["layer"] = right["caught"] and (layer in named or layer in (first.reason if first else ""))
        for what, is_right in right.items():
            count[what] += is_right
        if not all(is_right for what, is_right in right.items() if what != "outputs"):
            told = [(e.edge, e.first_divergence, e.reason[:90]) for e in failing]
            self.wrong.append(f"{name}: {kind} in {layer}, at {edge}: {told}")

    def of(self, what: str) -> int:
        """A count over all kinds."""
        return sum(count[what] for count in self.kinds.values())


def models(folder: Path) -> Iterator[Model]:
    """All models, converted."""
    for make in FLOAT32:
        module, inputs = make()
        (folder / make.__name__).mkdir()
        yield Model(make.__name__, make_subject(folder / make.__name__, module, {"inputs": inputs}))
    for name, options in (("digits", MASKED), ("digits with visible masks", {**MASKED, "keep_masks": True})):
        (folder / name).mkdir()
        yield Model(name, make_subject(folder / name, DIGITS / "run", options))


def plant_in_files(model: Model, folder: Path, tally: Tally) -> None:
    """Every fault that this model's file has a place for, in its first, its last, and perhaps its middle layer."""
    subject = model.subject
    assert subject.file is not None
    names = {t.name for t in onnx.load(subject.file).graph.initializer}
    layers = [d.site.name for d in subject.plan.decisions if {f"{d.site.name}.V", f"{d.site.name}.U"} <= names]
    middle = layers[len(layers) // 2 :][:1] if len(layers) < DEEP else []
    chosen = list(dict.fromkeys([*layers[:1], *middle, *layers[-1:]]))
    stale = {name: tensor.detach().numpy() for name, tensor in subject.intended.state_dict.items()}
    for fault in [*faults(subject.file, chosen, stale), *mask_faults(model)]:
        try:
            file = planted(subject.file, fault.edit, folder / "planted.onnx")
        except AssertionError:  # the edit changes nothing, a bias of zeros for instance
            tally.skipped += 1
            continue
        if not model.is_changed(file):
            tally.skipped += 1
            continue
        tally.add(model, fault.kind, fault.layer, "weights", model.verify(file=file), file)


def mask_faults(model: Model) -> Iterator[Fault]:
    """Wrong indices in masks that are visible."""
    if not model.subject.plan.options.keep_masks:
        return
    for decision in model.subject.plan.decisions:
        layer = decision.site.name
        mask = None if decision.factors is None else decision.factors.mask
        if mask is None or mask.all():
            continue
        dead, live = int(np.flatnonzero(mask == 0)[0]), int(np.flatnonzero(mask)[-1])

        def swap(value: Array, dead: int = dead, live: int = live) -> Array:
            value[[dead, live]] = value[[live, dead]]
            return value

        def wake(value: Array, dead: int = dead) -> Array:
            value[dead] = 1
            return value

        yield Fault("wrong mask index", layer, weight(f"{layer}.mask", swap))
        yield Fault("a dead component alive", layer, weight(f"{layer}.mask", wake))


def plant_in_models(folder: Path, tally: Tally) -> None:
    """Faults of whole files, made by converting another model or with other options."""
    module, inputs = conv_bn()
    (folder / "base").mkdir()
    model = Model("conv_bn", make_subject(folder / "base", module, {"inputs": inputs}))
    for kind, layer, change in (("batch norm's epsilon", "0", _other_epsilon),
                                ("statistics moved by training mode", "0", _moved),
                                ("batch statistics of training mode", "1", _train_mode)):  # fmt: skip
        other = change(copy.deepcopy(module), inputs)
        place = folder / kind.replace(" ", "_").replace("'", "")
        place.mkdir()
        subject = make_subject(place, other, {"inputs": inputs})
        assert subject.file is not None
        assert model.is_changed(subject.file)
        tally.add(model, kind, layer, "weights", model.verify(file=subject.file), subject.file)
        # The same mistake before the trace: the module is not what was captured.
        found = model.verify(module=other)
        tally.add(model, f"{kind}, in the module", "1", "capture", found, None)
    subjects = {}
    for delta in ("keep", "drop"):
        (folder / delta).mkdir()
        subjects[delta] = make_subject(folder / delta, DIGITS / "run", {**RUN, "delta": delta})
    kept = Model("digits", subjects["keep"])
    file = subjects["drop"].file
    assert file is not None
    tally.add(kept, "delta left out", "conv1", "weights", kept.verify(file=file), file)


def _other_epsilon(module: torch.nn.Module, _: object) -> torch.nn.Module:
    module[1].eps = 1e-3  # type: ignore[index]
    return module


def _moved(module: torch.nn.Module, inputs: tuple[torch.Tensor, ...]) -> torch.nn.Module:
    module.train()(*inputs)
    return module.eval()


def _train_mode(module: torch.nn.Module, _: object) -> torch.nn.Module:
    module[1].track_running_stats = False  # type: ignore[index]
    module[1].running_mean = module[1].running_var = None  # type: ignore[index]
    return module


def plant_in_sessions(folder: Path, tally: Tally) -> None:
    """Faults of an optimizer, and of the rewrite: the file is right, and what is made of it is not."""
    module, inputs = five_convs()
    (folder / "session").mkdir()
    model = Model("five_convs", make_subject(folder / "session", module, {"inputs": inputs}))
    subject = model.subject
    assert subject.file is not None
    for kind, edit in (
        ("the optimizer rounds activations to float16", round_activations("4.V", "float16")),
        ("the optimizer rounds activations to bfloat16", round_activations("4.V", "bfloat16")),
        ("the optimizer rounds activations to TF32", round_activations("4.V", "TF32")),
        ("the optimizer rounds weights to bfloat16", weight("4.U", to_bfloat16)),
        ("the optimizer shifts padding", padded_otherwise("4.V", "edge")),
        ("the optimizer has one weight off by 1%", weight("4.V", one_off)),
    ):
        file = planted(subject.file, edit, folder / "optimized.onnx")
        with optimizing_to(file):
            found = model.verify()
        tally.add(model, kind, "4", "optimize", found, None)
    wrong = copy.deepcopy(module)
    with torch.no_grad():
        wrong[4].weight[0, 0, 0, 0] *= 1.01  # type: ignore[index]
    (folder / "rewrite").mkdir()
    other = make_subject(folder / "rewrite", wrong, {"inputs": inputs})
    found = model.verify(intended=other.intended, file=other.file, lowered=other.lowered, plain=other.plain)
    tally.add(model, "the rewrite has one weight off by 1%", "4", "rewrite", found, None)


@contextlib.contextmanager
def optimizing_to(file: Path) -> Iterator[None]:
    """Optimized sessions run another file than they were asked to."""
    opened, tapped = sessions.open_session, locate.tapped
    sessions.open_session = lambda model, settings: opened(file if settings.optimized else model, settings)  # type: ignore[assignment]
    locate.tapped = lambda path, names, inputs, settings: tapped(
        file if settings.optimized else path, names, inputs, settings
    )
    try:
        yield
    finally:
        sessions.open_session, locate.tapped = opened, tapped


SETTINGS: dict[str, dict[str, Any]] = {
    "defaults": {},
    "form dense": {"form": "dense"},
    "seed 1": {"seed": 1},
    "static batch": {"dynamic_batch": False},
}


def false_alarms(folder: Path) -> tuple[int, list[str]]:
    """How many correct combinations there were, and those that did not pass."""
    done, wrong = 0, []
    file = folder / "correct.onnx"
    for make in (*SMALL, *TRANSFORMERS):
        for label, options in SETTINGS.items():
            module, inputs = make()
            thorough = label == "defaults"
            found = pipeline.convert(module, file, inputs=inputs, thorough=thorough, providers=["cpu"], **options)
            verdicts = {label: found.verification}
            if thorough:
                verdicts["the file alone"] = pipeline.verify(found.outputs[0], thorough=True, providers=["cpu"])
            for setting, verification in verdicts.items():
                done += 1
                assert verification is not None
                if verification.verdict is not Status.PASS or any(x.status is Status.FAIL for x in verification.layers):
                    bad = [e for e in verification.edges if e.status not in (Status.PASS, Status.NOT_RUN)]
                    bad_layers = [x for x in verification.layers if x.status is Status.FAIL]
                    wrong.append(f"{make.__name__}, {setting}: {bad} {bad_layers}")
    for label, options in {
        "masks": MASKED, "masks kept": {**MASKED, "keep_masks": True}, "delta kept": {**RUN, "delta": "keep"},
        "delta dropped": {**RUN, "delta": "drop"}, "masks, dense": {**MASKED, "form": "dense"},
    }.items():  # fmt: skip
        result = pipeline.convert(DIGITS / "run", file, thorough=True, providers=["cpu"], **options)
        done += 1
        if result.verdict is not Status.PASS:
            wrong.append(f"digits, {label}")
    return done, wrong


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--date", default=date.today().isoformat())
    parser.add_argument("--models", type=int, default=None, help="only the first so many models")
    parser.add_argument("--only-elsewhere", action="store_true", help="only the faults that no input shows")
    arguments = parser.parse_args()
    started = time.perf_counter()
    torch.set_num_threads(1)  # tensors this small are only slowed down by more
    tally, names = Tally(), []
    if arguments.only_elsewhere:
        with tempfile.TemporaryDirectory() as name:
            for fault in plant_elsewhere(Path(name)):
                tally.add_found(fault.model, fault.kind, fault.layer, "weights", fault.verification)
        print("\n".join(f"{kind}: {dict(count)}" for kind, count in tally.kinds.items()))
        print("\n".join(tally.wrong))
        return
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for number, model in enumerate(models(folder)):
            gc.freeze()  # so that the collections of each verification need not look at all that was imported
            if arguments.models is not None and number >= arguments.models:
                break
            names.append(model.name)
            plant_in_files(model, folder, tally)
            print(f"{time.perf_counter() - started:.0f} s: {model.name}", file=sys.stderr)
        plant_in_models(folder, tally)
        plant_in_sessions(folder, tally)
        for fault in plant_elsewhere(folder):
            tally.add_found(fault.model, fault.kind, fault.layer, "weights", fault.verification)
        print(f"{time.perf_counter() - started:.0f} s: correct files", file=sys.stderr)
        correct, alarms = false_alarms(folder)
    report(tally, names, correct, alarms, arguments.date, time.perf_counter() - started)


def report(tally: Tally, names: list[str], correct: int, alarms: list[str], day: str, seconds: float) -> None:
    """Print the tables."""
    known = versions()
    total, files = tally.of("planted"), tally.of("files")
    print("# Whether the verdict can be trusted\n")
    print(f"`python benchmarks/verdict.py` on {day}, {seconds / 60:.1f} minutes, with", end=" ")
    print(", ".join(f"{name} {known[name]}" for name in ("torch", "onnx", "numpy", "python")), end=", ")
    print(f"{known['onnxruntime']}.\n")
    print(f"{total} faults, {files} of them in {len(names)} files: {', '.join(names)}.")
    print(f"{tally.skipped} further ones change nothing that the file computes or says, and do not count.\n")
    print("| | caught | of | share |\n|---|---|---|---|")
    shown = {"the verdict": "caught", "its layer named rightly": "layer", "its edge named rightly": "edge"}
    for label, what in {**shown, "the verdict, without the weights edge": "outputs"}.items():
        print(f"| {label} | {tally.of(what)} | {total} | {tally.of(what) / total:.1%} |")
    for rule in RULES:
        print(f"| {rule} | {tally.of(rule)} | {files} | {tally.of(rule) / files:.1%} |")
    print(f"\nFalse alarms: {len(alarms)} of {correct} correct combinations of model, inputs and settings.\n")
    print("The rules of the other tools are their defaults, on the same files and inputs: what an optimized session of")
    print("the file computes, against what torch computes in the model's own dtype.\n")
    print("| fault | planted | caught | layer | edge | at the outputs |\n|---|---|---|---|---|---|")
    for kind, count in sorted(tally.kinds.items()):
        cells = " | ".join(str(count[what]) for what in ("planted", "caught", "layer", "edge", "outputs"))
        print(f"| {kind} | {cells} |")
    for line in [*tally.wrong, *alarms]:
        print(f"\n- {line}")


if __name__ == "__main__":
    main()
