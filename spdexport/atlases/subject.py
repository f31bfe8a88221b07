"""From a source to a file that is watched: it has run-time masks, and gives activations and importances out."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from spdexport.ablation.masked_runs import BESIDE
from spdexport.atlases.observed import Factorized, masked_layers, read_factorized, with_masks
from spdexport.errors import ComponentsError, SourceError, UsageError
from spdexport.files.atomic import pending
from spdexport.files.hashing import sha256_file
from spdexport.files.onnx_reading import load_onnx
from spdexport.model_files import read_metadata, write_onnx
from spdexport.options import Options
from spdexport.ort.installed import require_torch
from spdexport.pipeline import convert
from spdexport.rewrite.onnx_shapes import value_sizes
from spdexport.routes import is_onnx
from spdexport.verification.ports import Port, input_ports

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    import onnx_ir as ir

    from spdexport.conv import Array
    from spdexport.loading.source import Source
    from spdexport.options import OptionsDict
    from spdexport.pipeline import Conversion
    from spdexport.sources.components import ComponentSet

DECIDED = (
    "activation_outputs", "gate_outputs", "gate_threshold", "gates", "keep_masks", "lane_width", "mask_inputs",
    "optimize_for", "plan", "runtime_delta_masks", "runtime_masks", "runtime_masks_per_location", "runtime_routing",
    "target",
)  # fmt: skip
"""Options of ``convert`` that an atlas decides itself, or has no use for."""

TRUNCATING = ("rank", "energy", "max_error")
"""Options that make components of the SVD, of a model's own weights or of what other components make of them."""

MAKES_COMPONENTS = ("components", "form", *TRUNCATING)
"""Options of which one has to be given where the source has no components of its own."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Subject:
    """A file to be watched.

    Attributes:
        path: The file: with an input ``mask/<layer>`` and an output ``activation/<layer>`` for every layer, and an
            output ``ci/<layer>`` where there are importances.
        layers: Its layers.
        ports: The inputs that the model itself has.
        hashes: SHA-256 of what it was made of, by name.
        notes: What the user should know.
    """

    path: Path
    layers: tuple[Factorized, ...]
    ports: tuple[Port, ...]
    hashes: Mapping[str, str]
    notes: tuple[str, ...]

    @property
    def fixed_batch(self) -> int | None:
        """The batch of a file that takes no other; None where it may change."""
        sizes = [port.shape[0] for port in self.ports if port.shape]
        return sizes[0] if sizes and isinstance(sizes[0], int) else None


def check_options(options: OptionsDict) -> None:
    """Refuse options that an atlas has no use for.

    Raises:
        UsageError: One of them is given, or another form than the factorized one, which alone has components.
    """
    name = next((name for name in DECIDED if name in options), None)
    if name is not None:
        raise UsageError(
            "The atlas decides that itself.",
            where=f"--{name.replace('_', '-')}",
            hint="Leave the option out; a file that was converted so can be the source.",
        )
    if options.get("form", "factorized") != "factorized":
        raise UsageError(
            f"The {options['form']} form has no components to show.",
            where=f"--form {options['form']}",
            hint="Give --form factorized, or --components with an SPD run.",
        )


def make_subject(
    source: Source,
    options: OptionsDict,
    example: Mapping[str, Array],
    origin: str,
    folder: Path,
    progress: Callable[[str], None],
) -> Subject:
    """Make the file that is watched, in a folder that does not last, or take the source itself where it is one.

    Args:
        source: As for ``convert``.
        options: As for ``convert``, those of ``DECIDED`` left out.
        example: A few samples, with which a torch model is traced.
        origin: Where they are from, for messages.
        folder: Where files may be written.
        progress: Told what is being done.

    Raises:
        UsageError: Options that do not go together, or have no use here.
        ComponentsError: The source has no components, and no option makes some.
        InputError: A file that cannot be used.
        ModelError: The model cannot be traced or exported.
    """
    if not is_onnx(source):
        require_torch()
        from spdexport.loading.inputs import inputs_from_arrays
        from spdexport.loading.source import load_source

        if "inputs" not in options and "input_shape" not in options:
            options = {**options, "inputs": inputs_from_arrays(example, origin)}
        chosen = Options.of(options)
        progress("loading")
        loaded = load_source(
            source,
            factory=chosen.factory,
            trust=chosen.trust,
            state_key=chosen.state_key,
            seed=chosen.seed,
            has_inputs=True,
        )
        return _converted(source, options, loaded.components, str(loaded.path or "the source"), folder, progress)
    path = Path(str(source))
    progress("loading")
    model = load_onnx(path)
    changed = with_masks(model)
    if masked_layers(changed):
        if unused := [name for name in options if name not in ("seed",)]:
            raise UsageError(
                f"{path.name} has components of its own.",
                where=f"--{unused[0].replace('_', '-')}",
                hint="Leave the option out, or give the dense model as the source.",
            )
        hashes = {path.name: sha256_file(path)}
        if masked_layers(changed) == masked_layers(model):
            return _subject(path, model, hashes, ())
        return _subject(_written(changed, folder), changed, hashes, ())
    if read_metadata(model) and not any(options.get(name) for name in MAKES_COMPONENTS):
        raise SourceError(
            "The file was converted, and its layers have no components: they are of a form without, or folded.",
            where=str(path),
            hint="Convert the model with --form factorized, or give the model itself as the source.",
        )
    return _converted(source, options, None, str(path), folder, progress)


def _converted(
    source: Source,
    options: OptionsDict,
    own: ComponentSet | None,
    where: str,
    folder: Path,
    progress: Callable[[str], None],
) -> Subject:
    """Convert a source, with everything that is to be watched; ``own`` are the components that it brings."""
    if own is None and not any(options.get(name) for name in MAKES_COMPONENTS):
        raise ComponentsError(
            "The source has no components of its own.",
            where=where,
            hint="Give --components RUN, or --form factorized for those of the SVD, with --rank N for the first N.",
        )
    if any(options.get(name) for name in TRUNCATING):
        return _plain(source, options, folder, progress)
    components = own
    if options.get("components"):
        require_torch()
        from spdexport.prepare import components_of

        components = components_of(own, Options.of(options))
    watched: dict[str, Any] = {"runtime_masks": ("all",), "activation_outputs": True}
    notes = []
    if components is not None and components.no_gates is None and len(components.gates):
        watched |= {"gates": "exact", "gate_outputs": True}
    elif components is not None:
        why = components.no_gates or "the components come without functions for them"
        notes.append(f"there are no causal importances: {why}")
    made = convert(source, folder / "watched.onnx", verify=False, progress=progress, **{**options, **watched})
    return _subject(made.outputs[0], load_onnx(made.outputs[0]), _own(made), (*made.notes, *notes))


def _plain(source: Source, options: OptionsDict, folder: Path, progress: Callable[[str], None]) -> Subject:
    """Convert without anything that is known only at run time, and put the masks into the file."""
    made = convert(source, folder / "plain.onnx", verify=False, progress=progress, **options)
    changed = with_masks(load_onnx(made.outputs[0]))
    return _subject(_written(changed, folder), changed, _own(made), made.notes)


def _own(made: Conversion) -> dict[str, str]:
    """Return the hashes of what was read; what was written does not last."""
    return {name: value for name, value in made.hashes.items() if name not in {path.name for path in made.outputs}}


def _written(model: ir.Model, folder: Path) -> Path:
    path = folder / "masked.onnx"
    with pending(path, durable=False) as file:
        write_onnx(model, file)
    return path


def _subject(path: Path, model: ir.Model, hashes: Mapping[str, str], notes: tuple[str, ...]) -> Subject:
    layers = read_factorized(model, value_sizes(model, None))
    if not layers:
        raise ComponentsError(
            "No layer of the model has components.",
            where=str(path.name),
            hint="Look at the layers with spdexport inspect; --form factorized makes components of the SVD.",
        )
    ports = tuple(port for port in input_ports(model) if not port.name.startswith(BESIDE))
    return Subject(path=path, layers=layers, ports=ports, hashes=hashes, notes=notes)
