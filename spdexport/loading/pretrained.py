"""Models in folders that ``save_pretrained`` wrote: the class that the configuration names, with the folder's tensors.

The class is one of transformers' own, made from the configuration; code that the folder brings is never run, and
nothing is asked of a hub. The weights are read as all files are, by this package's own readers.
"""

from __future__ import annotations

import json
from pathlib import PurePath
from typing import TYPE_CHECKING, Any

import torch

from spdexport.errors import SourceError, UsageError
from spdexport.files.hashing import sha256_tensors
from spdexport.files.limits import check_limit
from spdexport.files.pretrained_folders import CONFIG, INDEX, WEIGHTS
from spdexport.files.reading import reading
from spdexport.files.sniff import read_text
from spdexport.files.tensors import read_tensors
from spdexport.loading.inputs import inputs_from_shapes
from spdexport.loading.model import ExampleInputs, LoadedModel
from spdexport.names import some
from spdexport.quiet import quiet

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

_FACTORY = "Make the model yourself: --factory FILE.py:NAME, with the file of weights as the source."
_LARGEST = 10**8
"""The greatest number that a configuration may hold: sizes of layers, of vocabularies, of images."""
_LENGTH, _SECOND = 16, 16_000
"""Tokens of an example text, and samples of a sound that lasts a second."""


def load_pretrained(folder: Path, *, seed: int) -> LoadedModel:
    """Load the model of a folder, with example inputs of the kind that it takes where the configuration tells them.

    Raises:
        UsageError: transformers is not installed.
        SourceError: The folder cannot be used; it says why.
    """
    config = _config(folder)
    architecture = _architecture(config, folder)
    state = _weights(folder)
    hint = f"Look at {CONFIG}. {_FACTORY}"
    with reading(folder / CONFIG, what="transformers makes no model of the configuration", hint=hint), quiet():
        made = architecture.config_class.from_dict({**config, "use_cache": False})
        torch.manual_seed(seed)
        # Without a name it asks for no file and no hub; it finds older names of layers, and ties what is tied. Of the
        # ways to compute attention, all but the eager one are kernels, which cannot be traced to operators.
        module, found = architecture.from_pretrained(
            None,
            config=made,
            state_dict=dict(state),
            attn_implementation="eager",
            local_files_only=True,
            trust_remote_code=False,
            output_loading_info=True,
        )
    _check_loaded(found, folder)
    return LoadedModel(
        kind="pretrained",
        module=module.eval().float(),
        inputs=_inputs(module, made, seed),
        path=folder,
        sha256=sha256_tensors(state),
        notes=(f"the model is transformers.{architecture.__name__}, as {CONFIG} names it",),
    )


def _check_loaded(found: Mapping[str, Any], folder: Path) -> None:
    """Refuse a model that has weights of its own beside those of the folder: they would be random."""
    missing = sorted(name for name in found["missing_keys"] if not name.endswith("num_batches_tracked"))
    unexpected, other = (sorted(map(str, found[kind])) for kind in ("unexpected_keys", "mismatched_keys"))
    listed = (("missing", missing), ("left over", unexpected), ("of another shape", other))
    told = [f"{len(names)} {label}: {some(names)}" for label, names in listed if names]
    if told:
        raise SourceError(
            f"The weights are not of the model that the configuration tells; {'; '.join(told)}.",
            where=str(folder),
            hint=f"Save both again with save_pretrained. {_FACTORY}",
        )


def _config(folder: Path) -> dict[str, Any]:
    path = folder / CONFIG
    hint = f"Save the model again with save_pretrained. {_FACTORY}"
    text = read_text(path, error=SourceError, what="The configuration is no text", hint=hint)
    with reading(path, what="The configuration is damaged", hint=hint):
        content = json.loads(text)
    if not isinstance(content, dict):
        raise SourceError("The configuration is no JSON object.", where=str(path), hint=hint)
    for name, number in _numbers(content):
        if abs(number) > _LARGEST:
            raise SourceError(f"The configuration gives {name} as {number:.3g}.", where=str(path), hint=hint)
    if content.get("quantization_config") is not None:
        raise SourceError("The weights are quantized, by a scheme of their own.", where=str(path), hint=_FACTORY)
    return content


def _numbers(value: object, name: str = "a value") -> Iterator[tuple[str, float]]:
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from _numbers(inner, str(key)[:60])
    elif isinstance(value, list):
        for inner in value:
            yield from _numbers(inner, name)
    elif isinstance(value, int | float) and not isinstance(value, bool):
        yield name, value


def _architecture(config: Mapping[str, Any], folder: Path) -> Any:
    try:
        import transformers
    except ModuleNotFoundError as exc:
        raise UsageError(
            "The folder is one of Hugging Face's, and transformers is not installed.",
            where=str(folder),
            hint=f"pip install 'spdexport[transformers]'. {_FACTORY}",
        ) from exc
    names = config.get("architectures")
    name = names[0] if isinstance(names, list) and names else None
    found = getattr(transformers, name, None) if isinstance(name, str) and name.isidentifier() else None
    if not (isinstance(found, type) and issubclass(found, transformers.PreTrainedModel)):
        own = ", but code in the folder or on a hub, which is not run" if config.get("auto_map") else ""
        raise SourceError(
            f"The configuration names the architecture {str(name)[:80]!r}, which is none of transformers'{own}.",
            where=str(folder / CONFIG),
            hint=_FACTORY,
        )
    return found


def _weights(folder: Path) -> dict[str, torch.Tensor]:
    if (folder / WEIGHTS).is_file():
        return read_tensors(folder / WEIGHTS, error=SourceError)
    index = folder / INDEX
    hint = "Save the model again with save_pretrained."
    with reading(index, what="The table of files is damaged", hint=hint):
        names = sorted({str(name) for name in json.loads(index.read_bytes())["weight_map"].values()})
    check_limit("tensors", len(names), f"The table names {len(names)} files", where=str(index), error=SourceError)
    state: dict[str, torch.Tensor] = {}
    for name in names:
        if PurePath(name).name != name or "\\" in name or not name.endswith(".safetensors"):
            raise SourceError(
                f"The table names {name[:80]!r}, which is no file of the folder.", where=str(index), hint=hint
            )
        state |= read_tensors(folder / name, error=SourceError)
    return state


def _inputs(module: Any, config: Any, seed: int) -> ExampleInputs | None:
    """Example inputs of what the model mainly takes: an image, a text or a sound; None where it is something else."""
    name = getattr(module, "main_input_name", "")
    shape = _shape(name, config)
    if shape is None:
        return None
    texts = [f"{name}={shape}"]
    if getattr(config, "is_encoder_decoder", False) and name == "input_ids":
        texts.append(f"decoder_input_ids={shape}")
    made = inputs_from_shapes(texts, seed)
    return ExampleInputs(kwargs=made.kwargs, origin=f"{some([t.partition(':')[0] for t in texts])}, by {CONFIG}")


def _shape(name: str, config: Any) -> str | None:
    match name:
        case "pixel_values":
            size = getattr(config, "image_size", None) or 224
            height, width = size if isinstance(size, list | tuple) else (size, size)
            return f"2x{getattr(config, 'num_channels', None) or 3}x{height}x{width}"
        case "input_ids":
            return f"2x{_LENGTH}:int64"
        case "input_values":
            return f"2x{_SECOND}"
    return None
