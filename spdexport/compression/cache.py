"""Work of a search that is kept in a folder, so that one that was interrupted goes on where it was.

Everything stands in a folder of its own for each source, data and settings, by their hash, so that nothing is ever
taken for the work of another search. The files come from disk like any other: what cannot be read is worked out again.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from spdexport import __version__
from spdexport.compression.losses import Lost
from spdexport.compression.moments import Moments
from spdexport.errors import ExampleInputError
from spdexport.files.atomic import replacing
from spdexport.files.npz import read_npz, write_npz
from spdexport.files.writing import writing

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from spdexport.compression.candidates import Candidate
    from spdexport.conv import Array, ConvSite
    from spdexport.forms import Form
    from spdexport.forms.base import Stage

_Made = TypeVar("_Made")

LETTERS = 24
"""Of the hash that a folder is named after."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Cache:
    """A folder of kept work; or none, which keeps nothing.

    Attributes:
        folder: The folder of this search; None for no cache.
        told: Told what could not be read.
    """

    folder: Path | None
    told: Callable[[str], None]

    @classmethod
    def of(cls, root: Path | None, settings: Mapping[str, Any], told: Callable[[str], None]) -> Cache:
        """Return the cache of a search, whose folder is made.

        Args:
            root: The folder that the user named; None for no cache.
            settings: All that the work depends on, as JSON values.
            told: As the attribute.

        Raises:
            OutputError: The folder cannot be made.
        """
        if root is None:
            return cls(folder=None, told=told)
        text = json.dumps({**settings, "version": __version__}, sort_keys=True, default=str)
        folder = root / hashlib.sha256(text.encode()).hexdigest()[:LETTERS]
        with writing(folder):
            folder.mkdir(parents=True, exist_ok=True)
        return cls(folder=folder, told=told)

    def has_moments(self, number: int) -> bool:
        """Return whether moments of a layer are kept, as far as one can tell without reading them."""
        return self.folder is not None and (self.folder / f"{_layer(number)}.npz").exists()

    def moments(self, number: int) -> Moments | None:
        """Return the moments of a layer, by its number; None where they are not kept."""
        return self._made(_layer(number), Moments.from_arrays)

    def keep_moments(self, number: int, found: Moments) -> None:
        """Keep them."""
        self._keep(_layer(number), found.arrays())

    def trial(
        self, sites: Sequence[ConvSite], taken: Sequence[Candidate], power: int
    ) -> tuple[dict[str, Form], Lost] | None:
        """Return the forms of a choice and what they lose; None where they are not kept."""

        def made(arrays: Mapping[str, Array]) -> tuple[dict[str, Form], Lost]:
            forms = {
                site.name: _form(arrays, number, site, candidate)
                for number, (site, candidate) in enumerate(zip(sites, taken, strict=True))
                if candidate.ranks or f"{number}/0/weight" in arrays  # a dense layer that was fitted
            }
            sizes, scales = arrays["sizes"], arrays["scales"]
            if sizes.ndim != 1 or sizes.shape != scales.shape or {sizes.dtype, scales.dtype} != {np.dtype(np.float64)}:
                raise ValueError("the losses are not those of samples")
            return forms, Lost.of(sizes, scales, power=power)

        return self._made(_name(taken), made)

    def keep_trial(
        self, sites: Sequence[ConvSite], taken: Sequence[Candidate], forms: Mapping[str, Form], lost: Lost
    ) -> None:
        """Keep them; a form of several chains, which are few, is worked out again."""
        arrays: dict[str, Array] = {"sizes": lost.sizes, "scales": lost.scales}
        for number, site in enumerate(sites):
            form = forms.get(site.name)
            if form is None:
                continue
            if len(form.chains) > 1:
                return
            for index, stage in enumerate(form.chains[0]):
                arrays[f"{number}/{index}/weight"] = np.asarray(stage.weight)
                if stage.bias is not None:
                    arrays[f"{number}/{index}/bias"] = stage.bias
        self._keep(_name(taken), arrays)

    def _made(self, name: str, make: Callable[[Mapping[str, Array]], _Made]) -> _Made | None:
        if self.folder is None or not (path := self.folder / f"{name}.npz").exists():
            return None
        try:
            return make(dict(read_npz(path)))
        except (ExampleInputError, ValueError, KeyError) as error:
            self.told(f"kept work cannot be read and is done again: {path.name}: {error}")
            return None

    def _keep(self, name: str, arrays: Mapping[str, Array]) -> None:
        if self.folder is None:
            return
        path = self.folder / f"{name}.npz"
        with replacing(path) as temporary, writing(path):
            write_npz(temporary, arrays, {})


def _layer(number: int) -> str:
    return f"layer-{number}"


def _name(taken: Sequence[Candidate]) -> str:
    text = json.dumps([[candidate.kind.value, *candidate.ranks] for candidate in taken])
    return f"trial-{hashlib.sha256(text.encode()).hexdigest()[:LETTERS]}"


def _form(arrays: Mapping[str, Array], number: int, site: ConvSite, candidate: Candidate) -> Form:
    """The form that was kept.

    Raises:
        ValueError, KeyError: Arrays are missing, or are not what the candidate's stages hold.
    """
    like = candidate.make()
    stages: list[Stage] = []
    for index, stage in enumerate(like.chains[0]):
        weight = arrays[f"{number}/{index}/weight"]
        bias = arrays.get(f"{number}/{index}/bias")
        if any(not np.isfinite(v).all() or v.dtype != site.weight.dtype for v in (weight, bias) if v is not None):
            raise ValueError("the weights are not of the layer's type")
        stages.append(replace(stage, weight=weight, bias=bias))
    return replace(like, chains=(tuple(stages),))
