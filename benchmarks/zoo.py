"""What plain ``torch.onnx.export`` does on many architectures, and what spdexport does, with exact SVD and no mask.

    python benchmarks/zoo.py > benchmarks/results/zoo.md
    python benchmarks/zoo.py --rows rows.jsonl DPT GLPN     # these alone; rows that are in the file are not run again

"Plain" is the dynamo exporter with the same example inputs, and one run of its file on ONNX Runtime. Each file of ours
is verified by itself too, and the plain file is converted as an ONNX source, and what comes of it verified by itself:
where one verdict is "pass" and the other "fail", they contradict each other.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, Any

import onnxruntime
import torch
from zoo_rows import add_arguments, measured_rows

from spdexport import pipeline
from spdexport.errors import SpdExportError
from spdexport.ort.installed import versions
from spdexport.quiet import quiet

if TYPE_CHECKING:
    from zoo_entry import Entry


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_arguments(parser)
    print_table(measured_rows(parser.parse_args(), measure))


def measure(entry: Entry) -> dict[str, Any]:
    """One row: the plain export first, then ours, each on a module of its own made from the same seed."""
    with tempfile.TemporaryDirectory() as folder:
        plain = _plain(entry, Path(folder) / "plain.onnx")
        ours = _ours(entry, Path(folder) / "ours.onnx")
        verdicts = [ours["verdict"], _itself(Path(folder) / "ours.onnx")]
        if plain == "works":
            verdicts += _from_onnx(Path(folder) / "plain.onnx", Path(folder) / "again.onnx")
    return {"name": entry.name, "kind": entry.kind, "plain": plain, **ours, "verdicts": verdicts}


def _itself(file: Path) -> str:
    """The verdict on a file by itself; empty where there is none."""
    if not file.exists():
        return ""
    try:
        return pipeline.verify(file).verdict.value
    except Exception as error:
        return type(error).__name__


def _from_onnx(source: Path, file: Path) -> list[str]:
    """The verdicts on the conversion of an ONNX file, and on what came of it by itself."""
    try:
        done = pipeline.convert(source, file)
    except Exception as error:
        return [type(error).__name__, ""]
    return ["" if done.verdict is None else done.verdict.value, _itself(file)]


def _contradicts(row: dict[str, Any]) -> bool:
    found = row.get("verdicts", [])
    return any({"pass", "fail"} == set(found[i : i + 2]) for i in range(0, len(found), 2))


def _made(entry: Entry) -> Any:
    torch.manual_seed(0)
    module, inputs = entry.make()
    return module.eval(), inputs


def _plain(entry: Entry, file: Path) -> str:
    module, inputs = _made(entry)
    args, kwargs = ((), inputs) if isinstance(inputs, dict) else ((inputs,), {})
    try:
        with quiet(), torch.no_grad():
            torch.onnx.export(module, args, file, kwargs=kwargs, dynamo=True, verbose=False)
    # An exporter may fail with anything, and that it does is the result.
    except Exception as error:
        return f"export fails: {_root(error)}"
    try:
        session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
        values = inputs.values() if isinstance(inputs, dict) else [inputs]
        names = [value.name for value in session.get_inputs()]
        session.run(None, {n: v.numpy() for n, v in zip(names, values, strict=True)})
    except Exception as error:
        return f"ONNX Runtime fails: {_root(error)}"
    return "works"


def _ours(entry: Entry, file: Path) -> dict[str, Any]:
    module, inputs = _made(entry)
    start = time.perf_counter()
    try:
        result = pipeline.convert(module, file, inputs=inputs)
    # A fault of spdexport's own is a row too.
    except Exception as error:
        why = error.what if isinstance(error, SpdExportError) else f"a fault of spdexport's own: {_root(error)}"
        return {"verdict": type(error).__name__, "seconds": time.perf_counter() - start, "why": [why]}
    found = result.verification
    assert found is not None
    bad = [e for e in found.edges if e.status.value in ("fail", "inconclusive")]
    return {
        "verdict": found.verdict.value,
        "seconds": time.perf_counter() - start,
        "decomposed": sum(layer.form != "dense" for layer in result.plan.layers),
        "alone": sum(layer.form == "dense" for layer in result.plan.layers) + len(result.plan.skipped),
        "noise": max(e.noise_ratio or 0.0 for e in found.edges),
        "why": [
            *(f"{e.edge}: {e.reason}" + (f" (at {e.first_divergence})" if e.first_divergence else "") for e in bad),
            *result.notes,
            *found.notes,
        ],
    }


def _root(error: BaseException) -> str:
    while error.__cause__ is not None:
        error = error.__cause__
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0][:120] if lines else ''}"


def print_table(rows: list[dict[str, Any]]) -> None:
    """The table as Markdown, with versions and date."""
    found = versions()
    names = ("python", "torch", "onnx", "onnxruntime")
    stack = ", ".join(f"{name} {found[name]}" for name in names if name in found)
    print("# The zoo: architectures of transformers, converted and verified\n")
    print(f"`python benchmarks/zoo.py` on {date.today().isoformat()}, with {stack}, transformers {_transformers()}.\n")
    print(
        "Small configurations, random weights, exact SVD factors, no mask. Plain: what `torch.onnx.export` (dynamo) and"
    )
    print(
        "one run on ONNX Runtime do. Decomposed: layers as V and U; alone: layers left as they are. Noise: the largest"
    )
    print("error over what rounding explains, above 8 fails.\n")
    works = [row for row in rows if row["plain"] == "works"]
    passed = [row for row in works if row["verdict"] == "pass"]
    more = [row for row in rows if row["plain"] != "works" and row["verdict"] == "pass"]
    print(f"{len(rows)} architectures. The plain export works for {len(works)}; spdexport converts and verifies")
    print(f"{len(passed)} of these, and {len(more)} of the {len(rows) - len(works)} others.\n")
    wrong = sum(map(_contradicts, rows))
    print(f"Verdicts of a conversion and of its file by itself that contradict each other: {wrong}.\n")
    print("| architecture | kind | plain | spdexport | its file | from ONNX, its file | decomposed | alone", end=" ")
    print("| noise | seconds | remarks |")
    print("|---|---|---|---|---|---|---|---|---|---|---|")
    for row in rows:
        noise = f"{row['noise']:.2g}" if "noise" in row else ""
        _, itself, *onnx = [*row.get("verdicts", []), "", ""]
        cells = [row["name"], row["kind"], row["plain"], row["verdict"], itself,
                 ", ".join(filter(None, onnx)), row.get("decomposed", ""),
                 row.get("alone", ""), noise, f"{row['seconds']:.1f}", "; ".join(row["why"])]  # fmt: skip
        print("| " + " | ".join(str(cell).replace("|", "\\|") for cell in cells) + " |")


def _transformers() -> str:
    import transformers

    return str(transformers.__version__)


if __name__ == "__main__":
    main()
