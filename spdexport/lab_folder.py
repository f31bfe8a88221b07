"""A lab: a folder with a page that runs a file with run-time masks in the browser, written from the parts of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import onnx_ir as ir

from spdexport.ablation.active import read_active
from spdexport.ablation.masked_runs import BESIDE
from spdexport.errors import SourceError, UsageError
from spdexport.files.folders import replacing_folder
from spdexport.files.hashing import sha256_file
from spdexport.files.onnx_reading import external_files, load_onnx, reload_onnx
from spdexport.files.writing import writing
from spdexport.laboratory.answers import check_copy, dense_answers, own_answers
from spdexport.laboratory.classes import read_classes
from spdexport.laboratory.content import DATA, MANIFEST, MODEL, RUNTIME, described
from spdexport.laboratory.copy import copied
from spdexport.laboratory.result import Lab
from spdexport.laboratory.runtime import NAME, find_runtime
from spdexport.laboratory.samples import SAMPLES, read_samples
from spdexport.ort.installed import versions
from spdexport.overwriting import check_overwriting
from spdexport.report.lab_page import PAGE, page_files
from spdexport.report.numbers import size
from spdexport.verification.ports import input_ports

if TYPE_CHECKING:
    from spdexport.laboratory.copy import Copied

LARGEST = 1_800_000_000
"""Bytes of a model that a browser can load: protobuf and WebAssembly both end a little above."""
_LARGE = 100_000_000
"""Bytes of a model or of samples above which the user is told what a browser has to load."""

Progress = Callable[[str], None]


def lab(
    file: str | Path,
    output: str | Path,
    *,
    data: str | Path,
    samples: int = SAMPLES,
    dense: str | Path | None = None,
    classes: str | Path | None = None,
    runtime: str | Path | None = None,
    progress: Progress = lambda _: None,
) -> Lab:
    """Write a folder with a page that runs a file with run-time masks in the browser.

    The page works from any static server, such as ``python -m http.server``, without a network. The copy of the file in
    it has its masks as plain inputs, and inputs for the thresholds of its gates; on every sample it was seen to compute
    what the file does, bit for bit.

    Args:
        file: An ONNX file with inputs ``mask/<layer>``, or with gates whose importances are outputs.
        output: The folder. One that a lab is in is replaced; no other is.
        data: The samples: a .npz, .npy or safetensors file, or a folder of such; right classes are called ``labels``.
        samples: How many of them are taken at most.
        dense: An ONNX file of the dense model, whose answers the outputs are shown beside; None for what the file
            gives with all components on.
        classes: The names of the classes: a text with one a line, or a JSON list.
        runtime: The npm package onnxruntime-web, unpacked or as its .tgz; None to look for it in the working directory.
        progress: Told what is being done.

    Raises:
        UsageError: The output is a folder of somebody else's, or an option names nothing.
        RuntimeMissingError: onnxruntime-web is nowhere; the error has the command that gets it.
        InputError: A file that cannot be used.
        OutputError: The folder cannot be written.
    """
    path, folder = Path(file), Path(output)
    if samples < 1:
        raise UsageError(
            f"A lab of {samples} samples shows nothing.", where="--samples", hint="Give a number of at least 1."
        )
    named = {"file": path, "output": folder, "data": data, "dense": dense, "classes": classes, "runtime": runtime}
    check_overwriting(named, verify=False)
    reads = [Path(value) for name, value in named.items() if name != "output" and value is not None]
    progress("looking for onnxruntime-web")
    web = find_runtime(runtime)
    progress("loading")
    model = load_onnx(path)
    external = external_files(model)
    _check_size(path, sum(file.stat().st_size for file in (path, *external)))
    names = read_classes(Path(classes)) if classes is not None else None
    with replacing_folder(folder, manifest=MANIFEST, reads=(*reads, *external)) as new:
        copy = copied(reload_onnx(path), path)
        ports = [port for port in input_ports(model) if not port.name.startswith(BESIDE)]
        taken = read_samples(data, ports, samples)
        content = _content(copy)
        progress("comparing the copy with the file")
        check_copy(path, content, copy, taken)
        active = read_active(model, [layer.name for layer in copy.layers])
        progress("running the dense model" if dense is not None else "writing")
        beside = dense_answers(Path(dense), copy, taken) if dense is not None else own_answers(model, copy, active)
        hashes = {path.name: sha256_file(path), **{f"data {f.name}": sha256_file(f) for f in taken.files}}
        if dense is not None:
            hashes[f"dense {Path(dense).name}"] = sha256_file(dense)
        files = {
            MODEL: content,
            **{f"{RUNTIME}/{name}": part for name, part in web.files.items()},
            **page_files(path.name),
        }
        notes = [*taken.notes, *copy.notes, *_advice(copy), *_runtime_notes(web.version, is_known=web.is_known)]
        text, arrays = described(
            file=path.name,
            sha256=hashes[path.name],
            copy=copy,
            samples=taken,
            dense=beside,
            classes=names,
            active=active.told,
            runtime=web,
            model_bytes=len(content),
            notes=notes,
            files=[*files, DATA],
        )
        files |= {DATA: arrays, MANIFEST: text.encode()}
        _write(files, new, folder)
    sizes = {name: len(part) for name, part in files.items()}
    large = [name for name in (MODEL, DATA) if sizes[name] > _LARGE]
    notes += [f"{name} has {size(sizes[name])}, which a browser loads before the page shows anything" for name in large]
    return Lab(
        folder=folder,
        file=path.name,
        layers=copy.layers,
        samples=taken.number,
        beside=beside.told,
        runtime=web.version,
        sizes=sizes,
        notes=tuple(notes),
        hashes=hashes,
        versions={**versions(), NAME: web.version},
    )


def _check_size(path: Path, number: int) -> None:
    if number > LARGEST:
        raise SourceError(
            f"The file has {size(number)}, and a browser loads {size(LARGEST)} at most.",
            where=str(path),
            hint="Use spdexport ablate, or convert a smaller model.",
        )


def _content(copy: Copied) -> bytes:
    """Return the copy as one file, with weights that are beside the original in it."""
    return bytes(ir.to_proto(ir.external_data.load_to_model(copy.model)).SerializeToString())


def _advice(copy: Copied) -> list[str]:
    if any(layer.importance is not None for layer in copy.layers):
        return []
    return ["the file gives no importances; of an SPD run, convert --gates --gate-outputs puts them in"]


def _runtime_notes(version: str, *, is_known: bool) -> list[str]:
    if is_known:
        return []
    return [f"onnxruntime-web {version} is not a version that spdexport knows, so that its files were not checked"]


def _write(files: Mapping[str, bytes], new: Path, folder: Path) -> None:
    with writing(folder, size=sum(map(len, files.values()))):
        for name, part in files.items():
            place = new / name
            place.parent.mkdir(exist_ok=True)
            place.write_bytes(part)


__all__ = ["PAGE", "lab"]
