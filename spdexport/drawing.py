"""The atlas as one function: what is known of every component is collected, and written as a page."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Unpack

from spdexport.atlases.build import Wanted, build
from spdexport.errors import UsageError
from spdexport.files.atomic import pending
from spdexport.files.hashing import sha256_file
from spdexport.files.writing import writing
from spdexport.overwriting import check_overwriting
from spdexport.report.atlas_page import to_page

if TYPE_CHECKING:
    from collections.abc import Callable

    from spdexport.atlases.result import Atlas
    from spdexport.files.batches import Data
    from spdexport.loading.source import Source
    from spdexport.options import OptionsDict

SAMPLES, TOP, EFFECT_SAMPLES, BATCH = 6, 64, 64, 32
THRESHOLD, MAX_SIZE = 0.1, 16.0


def atlas(
    source: Source,
    output: str | Path | None = None,
    *,
    data: str | Path | Data,
    labels: str | Path | None = None,
    samples: int = SAMPLES,
    top: int = TOP,
    effect_samples: int = EFFECT_SAMPLES,
    threshold: float = THRESHOLD,
    batch: int = BATCH,
    max_size: float = MAX_SIZE,
    progress: Callable[[str], None] = lambda _: None,
    **options: Unpack[OptionsDict],
) -> Atlas:
    """Collect what is to be known of every component, with pictures, and write it as one HTML page.

    A dense model is converted as ``convert`` does it, with run-time masks and, where the run has importance functions,
    with exact gates; the file that this gives is watched while the data go through it, and its components are removed
    one by one as ``ablate`` does it. A factorized ONNX file is watched itself.

    Args:
        source: As for ``convert``, or a factorized ONNX file. A source without components of its own needs
            ``components``, ``form="factorized"`` or ``rank``.
        output: The page, ``OUT.html``; None to write nothing.
        data: A .npz, .npy or safetensors file or a folder of such, which may be larger than memory; or batches, in
            something that can be gone through twice.
        labels: A table of components and what they are called, as ``derive_masks`` takes it: CSV, TSV, JSON or SQLite.
        samples: How many samples are shown of each component, those that fire it most.
        top: How many components are shown of each layer, the most important ones.
        effect_samples: The samples that removals are measured on, evenly over the data; 0 for none.
        threshold: What is above it fires: importances; without these, activations as a share of the component's
            greatest.
        batch: Samples that are run together, of a file.
        max_size: What thumbnails may add to the page, in MiB; they become smaller to keep it.
        progress: Told what is being done.
        **options: See ``spdexport.Options``; what is about masks at run time is decided here.

    Raises:
        UsageError: Options that do not go together, or a file that would overwrite what is read.
        ComponentsError: The source has no components.
        ExampleInputError: There are no data, or they do not fit the model.
        InputError: Another file that cannot be used.
        ModelError: The model cannot be traced or exported.
        OutputError: The page cannot be written.
    """
    path = None if output is None else Path(output)
    check_overwriting({"source": source, "output": path, "data": data, "labels": labels, **options}, verify=False)
    if path is not None and path.suffix not in (".html", ".htm"):
        raise UsageError(
            f"The atlas is an HTML page, and {path.name!r} does not end so.",
            where=f"-o {path}",
            hint="Name it OUT.html.",
        )
    wanted = Wanted(
        samples=samples,
        top=top,
        effect_samples=effect_samples,
        threshold=threshold,
        batch=batch,
        max_size=max_size,
    )
    table = None if labels is None else Path(labels)
    if path is None:
        return build(source, data, wanted, options, progress, table)
    # Opened first, so that a folder that cannot be written to is told before the long work.
    with pending(path) as page:
        found = build(source, data, wanted, options, progress, table)
        content = to_page(found).encode()
        with writing(path, size=len(content)):
            page.path.write_bytes(content)
    return replace(found, outputs=(path,), size=len(content), hashes={**found.hashes, path.name: sha256_file(path)})
