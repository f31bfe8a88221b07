"""The kinds of input: a format, the place that reads it, and the command; and how a case of one is damaged."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING

from fuzz_archives import damage_code, damage_pickle, damage_zip
from fuzz_bytes import PLAIN, splice
from fuzz_onnx import damage_onnx
from fuzz_text import TEXT

if TYPE_CHECKING:
    from fuzz_bytes import Damage

OUT = "out"
"""The folder of a case that outputs go to."""

MAKE = ("--factory", "model.py:make")
ZIPS = ("zip", "zip", "pickle")
KNOWING: dict[str, Damage] = {
    **TEXT, "zip": damage_zip, "pickle": damage_pickle, "onnx": damage_onnx, "code": damage_code,
}  # fmt: skip
"""Damage that knows a format."""

FORMATS = {
    "safetensors": "safetensors", "npz": "zip", "stored.npz": "zip", "npy": "npy", "json": "json", "pt": "zip",
    "legacy.pt": "pickle", "pkl": "pickle", "pt2": "zip", "ts": "zip", "onnx": "onnx", "yaml": "yaml", "pth": "zip",
    "bin": "", "csv": "",
}  # fmt: skip
"""The damage that knows a file, by its ending."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Kind:
    """One kind of input.

    Attributes:
        name: Format, place and command.
        damaged: The file that is damaged, as the command names it.
        needs: The other files that the command needs, or folders.
        command: The command line, in a folder that holds them.
        share: How many cases it gets, of those that others get; slow ones get fewer.
    """

    name: str
    damaged: str
    needs: tuple[str, ...]
    command: tuple[str, ...]
    share: float

    @property
    def format(self) -> str:
        """The damage that knows the format; empty for plain bytes."""
        return FORMATS[next(e for e in sorted(FORMATS, key=len, reverse=True) if self.damaged.endswith(f".{e}"))]

    @property
    def outputs(self) -> tuple[str, ...]:
        """The files that the command writes."""
        return tuple(word for word in self.command if word.startswith(f"{OUT}/") and Path(word).suffix)

    @property
    def folders(self) -> tuple[str, ...]:
        """The folders that the command writes, which have no ending."""
        return tuple(word for word in self.command if word.startswith(f"{OUT}/") and not Path(word).suffix)


def _kind(name: str, damaged: str, *command: str, needs: tuple[str, ...] = (), share: float = 1.0) -> Kind:
    return Kind(name=name, damaged=damaged, needs=needs, command=command, share=share)


QUICK = ("--no-verify", "-o", f"{OUT}/m.onnx")
TORCH = ("model.py",)
LAB = ("--runtime", "package", "-o", f"{OUT}/lab")
ATLAS = ("--effect-samples", "2", "-o", f"{OUT}/a.html")


def _sources() -> list[Kind]:
    """Models that torch has part in."""
    found = []
    for name, file, model in (
        ("pt2", "m.pt2", ()),
        ("older-pt2", "older.pt2", ()),
        ("torchscript", "m.ts", ("--inputs", "inputs.npz")),
        ("state", "state.pt", MAKE),
        ("legacy-state", "state.legacy.pt", MAKE),
        ("pickle-state", "state.pkl", MAKE),
        ("safetensors-state", "state.safetensors", MAKE),
        ("checkpoint", "checkpoint.pt", MAKE),
        ("legacy-checkpoint", "checkpoint.legacy.pt", MAKE),
    ):
        needs = ("inputs.npz",) if "--inputs" in model else TORCH if model else ()
        found.append(_kind(f"{name}-inspect", file, "inspect", file, *model, needs=needs))
        if not name.startswith(("legacy", "older", "pickle")):
            found.append(_kind(f"{name}-convert", file, "convert", file, *model, *QUICK, needs=needs, share=0.4))
            against = ("verify", "net.onnx", "--against", file, *model)
            found.append(_kind(f"{name}-against", file, *against, needs=(*needs, "net.onnx"), share=0.3))
    folded = ("fold", "m.pt2", "-o", f"{OUT}/m.pt2", "--no-verify")
    run, checkpoint = ("run", *MAKE), "run/model_100.pth"
    config, data = "run/final_config.yaml", ("--data", "data.npy", "-o", f"{OUT}/masks.safetensors")
    return [
        *found,
        _kind("pt2-fold", "m.pt2", *folded, share=0.6),
        _kind("run-inspect", checkpoint, "inspect", *run, needs=("run", *TORCH)),
        _kind("run-masks", checkpoint, "masks", *run, *data, needs=("run", *TORCH, "data.npy"), share=0.6),
        _kind("config-masks", config, "masks", *run, *data, needs=("run", *TORCH, "data.npy"), share=0.6),
        _kind("config-convert", config, "convert", *run, "--gates", *QUICK, needs=("run", *TORCH), share=0.3),
        _kind("factory-inspect", "made.json", "inspect", "--factory", "model.py:told", needs=TORCH),
        _kind("factory-convert", "made.json", "convert", "--factory", "model.py:told", *QUICK, needs=TORCH, share=0.4),
    ]


def _beside() -> list[Kind]:
    """What stands beside a model: masks, components, inputs, plans."""
    found = []
    for ending in ("safetensors", "npz", "stored.npz", "json", "pt", "legacy.pt", "pkl"):
        for what in ("masks", "components"):
            file = f"{what}.{ending}"
            beside = ("--components", "components.safetensors") if what == "masks" else ()
            needs = ("net.onnx", *beside[1:])
            command = ("convert", "net.onnx", *beside, f"--{what}", file, *QUICK)
            found.append(_kind(f"{ending}-{what}-convert", file, *command, needs=needs))
        if ending != "pkl":
            masked = ("ablate", "runtime.onnx", "--data", "data.npy", "--baseline", f"masks.{ending}")
            found.append(_kind(f"{ending}-baseline-ablate", masked[-1], *masked, needs=("runtime.onnx", "data.npy")))
    for ending in ("safetensors", "npz", "stored.npz", "npy", "json", "pt", "legacy.pt"):
        file = f"inputs.{ending}"
        found.append(
            _kind(f"{ending}-inputs-verify", file, "verify", "net.onnx", "--inputs", file, needs=("net.onnx",))
        )
    against = ("verify", "masked.onnx", "--against", "net.onnx", "--components", "components.safetensors", "--masks")
    needs = ("masked.onnx", "net.onnx", "components.safetensors")
    run_needs = ("net.onnx", "run")
    planned = ("convert", "net.onnx", "--components", "components.safetensors", "--masks", "masks.safetensors")
    cached = (*planned, "--form", "auto", "--optimize-for", "latency", *QUICK)
    beside_needs = ("net.onnx", "components.safetensors", "masks.safetensors")
    return [
        *found,
        _kind("safetensors-masks-against", "masks.safetensors", *against, "masks.safetensors", needs=needs),
        _kind("pt-masks-inspect", "masks.pt", *("inspect", "run", *MAKE, "--masks", "masks.pt"), needs=("run", *TORCH)),
        _kind("run-components", "run/model_100.pth", "convert", "net.onnx", "--components", "run", *QUICK,
        needs=run_needs),
        _kind("plan-convert", "plan.json", *planned, "--plan", "plan.json", *QUICK, needs=beside_needs),
        _kind("cache-convert", "cache/latency/kept.json", *cached, needs=("cache", *beside_needs), share=0.5),
        _kind("inputs-convert", "inputs.npz", "convert", "state.pt", *MAKE, "--inputs", "inputs.npz", *QUICK,
              needs=(*TORCH, "state.pt"), share=0.3),
        _kind("inputs-bench", "inputs.npz", "bench", "net.onnx", "--inputs", "inputs.npz", "--rounds", "2",
              needs=("net.onnx",), share=0.2),
        _kind("repro-verify", "repro.npz", "verify", "masked.onnx", "--inputs", "repro.npz", needs=("masked.onnx",)),
        _kind("edit-convert", "edit.json", "convert", "net.onnx", "--components", "components.safetensors", "--edit",
              "edit.json", *QUICK, needs=("net.onnx", "components.safetensors"), share=0.5),
        _kind("harvest-masks", "harvest.bin", "masks", "run", "--harvest", "harvest.bin", "-o",
              f"{OUT}/masks.safetensors", needs=("run",), share=0.5),
        _kind("names-masks", "names.json", "masks", "run", "--names", "names.json", "-o",
              f"{OUT}/masks.safetensors", needs=("run",), share=0.2),
        _kind("labels-masks", "labels.csv", "masks", "run", "--labels", "labels.csv", "--label", "*", "-o",
              f"{OUT}/masks.safetensors", needs=("run",), share=0.2),
        _kind("classes-lab", "classes.json", "lab", "runtime.onnx", "--data", "data.npy", *LAB, "--classes",
              "classes.json", needs=("runtime.onnx", "data.npy", "package"), share=0.3),
        _kind("package-lab", "package/package.json", "lab", "runtime.onnx", "--data", "data.npy", *LAB,
              needs=("runtime.onnx", "data.npy", "package"), share=0.3),
        _kind("sets-ablate", "sets.json", "ablate", "runtime.onnx", "--data", "data.npy", "--sets", "sets.json",
              needs=("runtime.onnx", "data.npy")),
    ]  # fmt: skip


def _data() -> list[Kind]:
    """Data sets of ``masks`` and ``ablate``."""
    found = []
    for ending in ("npz", "stored.npz", "npy", "safetensors"):
        file = f"data.{ending}"
        ablated = ("ablate", "runtime.onnx", "--data", file)
        found.append(_kind(f"{ending}-data-ablate", file, *ablated, needs=("runtime.onnx",)))
        shown = ("lab", "runtime.onnx", "--data", file, *LAB)
        found.append(_kind(f"{ending}-data-lab", file, *shown, needs=("runtime.onnx", "package"), share=0.3))
        derived = ("masks", "run", *MAKE, "--data", file, "-o", f"{OUT}/masks.safetensors")
        found.append(_kind(f"{ending}-data-masks", file, *derived, needs=("run", *TORCH), share=0.5))
    drawn = ("atlas", "runtime.onnx", "--data", "data.npz", *ATLAS)
    found.append(_kind("npz-data-atlas", "data.npz", *drawn, needs=("runtime.onnx",), share=0.3))
    found.append(_kind("runtime-atlas", "runtime.onnx", *drawn, needs=("data.npz",), share=0.3))
    labelled = (*drawn, "--labels", "labels.csv")
    found.append(_kind("labels-atlas", "labels.csv", *labelled, needs=("runtime.onnx", "data.npz"), share=0.3))
    for name, command, needs in (
        ("folder-data-ablate", ("ablate", "runtime.onnx", "--data", "data"), ("runtime.onnx", "data")),
        ("folder-data-masks", ("masks", "run", *MAKE, "--data", "data", "-o", f"{OUT}/masks.safetensors"),
         ("run", *TORCH, "data")),
    ):  # fmt: skip
        found.append(_kind(name, "data/b.stored.npz", *command, needs=needs, share=0.5))
    return found


def _onnx() -> list[Kind]:
    """ONNX files of all sorts."""
    found = []
    for name, file, needs in (
        ("onnx", "net.onnx", ()),
        ("external-onnx", "external.onnx", ("external.bin",)),
        ("external-data", "external.bin", ("external.onnx",)),
        ("functions-onnx", "functions.onnx", ()),
        ("control-onnx", "control.onnx", ()),
        ("quantized-onnx", "quantized.onnx", ()),
    ):
        model = "external.onnx" if file == "external.bin" else file
        found.append(_kind(f"{name}-verify", file, "verify", model, needs=needs))
        found.append(_kind(f"{name}-convert", file, "convert", model, *QUICK, needs=needs))
        found.append(_kind(f"{name}-inspect", file, "inspect", model, needs=needs))
    masked = ("--components", "components.safetensors", "--masks", "masks.safetensors")
    beside = ("components.safetensors", "masks.safetensors")
    fold = ("-o", f"{OUT}/m.onnx", "--no-verify")
    for name, file in (("own", "masked.onnx"), ("own-auto", "auto.onnx")):
        against = ("verify", file, "--against", "net.onnx", *masked)
        found += [
            _kind(f"{name}-verify", file, "verify", file),
            _kind(f"{name}-against", file, *against, needs=("net.onnx", *beside)),
            _kind(f"{name}-fold", file, "fold", file, *fold),
            _kind(f"{name}-inspect", file, "inspect", file),
        ]
    return [
        *found,
        _kind("onnx-fold", "net.onnx", "fold", "net.onnx", *fold),
        _kind("onnx-against", "net.onnx", "verify", "masked.onnx", "--against", "net.onnx", *masked,
              needs=("masked.onnx", *beside)),
        _kind("onnx-bench", "net.onnx", "bench", "net.onnx", "--rounds", "2", share=0.2),
        _kind("own-bench-against", "masked.onnx", "bench", "net.onnx", "--against", "masked.onnx", "--rounds", "2",
              needs=("net.onnx",), share=0.2),
        _kind("runtime-ablate", "runtime.onnx", "ablate", "runtime.onnx", "--data", "data.npy", needs=("data.npy",)),
        _kind("runtime-lab", "runtime.onnx", "lab", "runtime.onnx", "--data", "data.npy", *LAB,
              needs=("data.npy", "package")),
        _kind("runtime-verify", "runtime.onnx", "verify", "runtime.onnx", share=0.5),
        _kind("runtime-against", "runtime.onnx", "verify", "runtime.onnx", "--against", "run", *MAKE,
              needs=("run", *TORCH), share=0.2),
    ]  # fmt: skip


KINDS = {kind.name: kind for kind in (*_sources(), *_beside(), *_data(), *_onnx())}
"""Every kind by its name."""


@dataclass(frozen=True, slots=True)
class Step:
    """One change: which damage, and the seed of its random numbers."""

    damage: str
    seed: int


def plan(kind: Kind, seed: int) -> tuple[Step, ...]:
    """Return the changes of a case, which depend on the kind's name and the seed alone."""
    random = Random(f"{kind.name}:{seed}")
    names = [damage.__name__ for damage in PLAIN]
    steps = []
    for _ in range(random.choice((1, 1, 1, 1, 2, 3))):
        draw = random.random()
        name = kind.format if kind.format and draw < 0.55 else "splice" if draw > 0.95 else random.choice(names)
        steps.append(Step(name, random.randrange(2**32)))
    return tuple(steps)


def damaged(content: bytes, steps: tuple[Step, ...], others: tuple[Path, ...]) -> bytes:
    """Return the content of a file after some changes.

    Args:
        content: Of the valid file.
        steps: The changes.
        others: The valid files that a splice takes its second half from.
    """
    plain = {damage.__name__: damage for damage in PLAIN}
    for number, step in enumerate(steps):
        random = Random(step.seed)
        if step.damage == "splice":
            content = splice(random, content, random.choice(others).read_bytes())
            continue
        try:
            content = (KNOWING.get(step.damage) or plain[step.damage])(random, content)
        # What is damaged already may be of no format any more; a whole file never fails here.
        except Exception:
            if number == 0:
                raise
    return content
