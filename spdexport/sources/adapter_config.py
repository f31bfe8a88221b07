"""What peft's ``adapter_config.json`` says of the weights beside it: alpha and rank of each layer, and what is unusual.

Every setting is one of three: it is applied; it has a say in training, in loading, or in shapes that the file shows
anyway; or it makes something else of the weights than the formulas of ``adapter_products``, and is refused with what it
does. Settings that are not known are refused too, unless they are switched off.
"""

from __future__ import annotations

import math
import re
import warnings
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from spdexport.errors import ComponentsError

if TYPE_CHECKING:
    from collections.abc import Mapping

    import torch

_ALPHA = {"lora": "lora_alpha", "loha": "alpha", "lokr": "alpha"}
"""What alpha is called, by the kind of adapter; as upper case the kinds are peft's own names, too."""

_RANKED = {"lora": ("down",), "loha": ("w1_b", "w2_b"), "lokr": ("w1_b", "w2_b")}
"""Parts whose first axis is the rank, where they are there."""

_APPLIED = ("r", "lora_alpha", "alpha", "rank_pattern", "alpha_pattern", "use_rslora", "use_dora", "lora_bias")

_NO_MATTER = (
    *("auto_mapping", "base_model_name_or_path", "inference_mode", "peft_type", "peft_version"),
    *("revision", "task_type"),
    *("exclude_modules", "layers_pattern", "layers_to_transform", "target_modules"),
    *("lora_dropout", "module_dropout", "rank_dropout", "rank_dropout_scale", "runtime_config", "init_weights"),
    *("corda_config", "eva_config", "loftq_config", "lora_ga_config"),
    *("decompose_both", "decompose_factor", "use_effective_conv2d"),
    *("fan_in_fan_out", "megatron_core", "qalora_group_size"),
)  # fmt: skip
"""Where it came from; which layers have one; training; how training began (``init_lora_weights`` decides whether that
matters); shapes; and how the layer stores its weight, which is the layer's business here."""

_UNTOUCHED = (None, True, False, "gaussian", "eva", "orthogonal", "mica")
"""Ways to begin that leave the layer's own weight as it is."""

_REFUSED = {
    "alora_invocation_tokens": "the adapter acts on tokens behind an invocation alone",
    "arrow_config": "the adapter is chosen for each token",
    "bias": "biases were trained, too",
    "ensure_weight_tying": "the adapter is of several layers at once",
    "kasa_config": "singular values stand between the factors, and are taken from the layer's weight",
    "layer_replication": "the layers are those of a model in which some stand several times",
    "megatron_config": "the factors are parts of what several machines hold",
    "modules_to_save": "other layers were trained whole",
    "monteclora_config": "the factors are drawn at random",
    "target_parameters": "parameters have an adapter, and no layers",
    "trainable_token_indices": "rows of an embedding were trained, too",
    "use_bdlora": "the factors hold nothing but the blocks on their diagonals",
    "use_qalora": "the adapter reads means of several inputs",
    "velora_config": "the adapter was trained on compressed activations, whose settings are not known here",
}
"""Settings that make the weight another one, and what they do."""

_MOST_STEPS = 300_000_000
"""Of matching all patterns with all names, at the worst: some seconds."""

_STEPS_OF_A_CALL = 100

_QUANTIFIER = re.compile(r"[*+?]|\{\d*,?\d*\}")
_LITERALS = re.compile(r"\\.|\[\^?\]?[^\]]*\]", re.DOTALL)


@dataclass(slots=True, kw_only=True)
class AdapterConfig:
    """The settings of an adapter, checked.

    Attributes:
        settings: What the file says.
        where: The file of the weights, for messages.
    """

    settings: Mapping[str, object]
    where: str
    _steps: int = field(default=0, init=False)
    _compiled: dict[str, re.Pattern[str]] = field(default_factory=dict, init=False)

    def __post_init__(self) -> None:
        """Refuse what makes the weights other ones than the formulas do.

        Raises:
            ComponentsError: A setting is refused, or not known.
        """
        kind = self.settings.get("peft_type")
        if kind is not None and str(kind).lower() not in _ALPHA:
            raise self._fault(f"The configuration is that of another kind of adapter: peft_type is {kind}.")
        began = self.settings.get("init_lora_weights")
        if began not in _UNTOUCHED:
            raise self._fault(
                f"The configuration has init_lora_weights {began}, for which peft takes the adapter's first product "
                "off the layer's weight.",
                hint="Save it with path_initial_model_for_weight_conversion, or merge it with peft, and give the "
                "weights that come of that.",
            )
        for name, value in self.settings.items():
            if name in _APPLIED or name in _NO_MATTER or name == "init_lora_weights":
                continue
            if value in (None, False, "none") or value == [] or value == {}:
                continue
            does = _REFUSED.get(name, "it is not known here what that does to the weights")
            raise self._fault(f"The configuration has {name}: {does}.")

    def check_parts(self, layer: str, parts: Mapping[str, torch.Tensor]) -> None:
        """Refuse an adapter that lacks what the settings say that it has.

        Args:
            layer: Its name in the file.
            parts: Of the adapter, by what they are called in ``adapters``.

        Raises:
            ComponentsError: It has no magnitudes or no bias.
        """
        for setting, part, called in (
            ("use_dora", "magnitude", "lora_magnitude_vector"),
            ("lora_bias", "bias", "lora_B.bias"),
        ):
            if self.settings.get(setting) and part not in parts:
                raise self._fault(
                    f"The configuration has {setting}, and {layer} has no {called}.",
                    hint="Give the file that peft saved, or merge the adapter with peft first.",
                )

    def scale(self, layer: str, kind: str, parts: Mapping[str, torch.Tensor], alpha: float | None) -> float:
        """Return what peft multiplies the product of a layer with.

        Args:
            layer: Its name in the model.
            kind: Of the adapter.
            parts: Of the adapter, by what they are called in ``adapters``.
            alpha: What the file of the weights says of it; None where it says nothing.

        Raises:
            ComponentsError: Alpha or the rank are not there, are no numbers, or are not those of the weights.
        """
        configured = self._number("alpha", _ALPHA[kind], layer)
        if alpha is not None and alpha != configured:
            raise self._fault(
                f"The configuration gives {layer} the alpha {configured:g}, and the file of the weights {alpha:g}.",
                hint="Give the adapter_config.json that was saved with these weights, or none.",
            )
        rank = self._number("rank", "r", layer)
        found = {int(parts[name].shape[0]) for name in _RANKED[kind] if name in parts}
        if found - {rank}:
            told = ", ".join(map(str, sorted(found)))
            raise self._fault(
                f"The configuration gives {layer} the rank {rank:g}, and its factors have {told}.",
                hint="Give the adapter_config.json that was saved with these weights.",
            )
        rooted = bool(kind == "lora" and self.settings.get("use_rslora"))
        return configured / (math.sqrt(rank) if rooted else rank)

    def _number(self, what: str, general: str, layer: str) -> float:
        """Alpha or the rank of a layer: that of the first pattern which matches the end of its name, or of all."""
        patterns = self.settings.get(f"{what}_pattern") or {}
        if not isinstance(patterns, dict):
            raise self._fault(f"The configuration's {what}_pattern is no table of names and numbers.")
        name = next((p for p in patterns if self._matches(p, layer, f"{what}_pattern")), None)
        # peft looks a layer up by its whole name where no pattern matches
        name = layer if name is None and layer in patterns else name
        value = self.settings.get(general) if name is None else patterns[name]
        told = general if name is None else f"{what}_pattern of {name}"
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            raise self._fault(f"The configuration says no number for {layer}: {told} is {value!r}.")
        if what == "rank" and value <= 0:
            raise self._fault(f"The configuration gives {layer} a rank below 1: {told} is {value:g}.")
        return float(value)

    def _matches(self, pattern: str, layer: str, setting: str) -> bool:
        """Whether a pattern, a regular expression, is the end of a name, behind a dot or whole: peft's own rule.

        Raises:
            ComponentsError: It is no expression, or could take too long.
        """
        self._steps += _most_steps(pattern, len(layer))
        if self._steps > _MOST_STEPS:
            raise self._fault(
                f"To look for {pattern!r} of {setting} in the names of layers could take too long.",
                hint="Write whole names of layers into the configuration.",
            )
        if pattern not in self._compiled:
            self._compiled[pattern] = self._expression(pattern, setting)
        return self._compiled[pattern].match(layer) is not None

    def _expression(self, pattern: str, setting: str) -> re.Pattern[str]:
        try:
            with warnings.catch_warnings(action="ignore"):
                return re.compile(rf"(.*\.)?({pattern})$")
        except (re.error, OverflowError, RecursionError) as error:
            raise self._fault(f"{pattern!r} of {setting} is no regular expression: {error}.") from error

    def _fault(self, what: str, hint: str = "Merge the adapter with peft first.") -> ComponentsError:
        return ComponentsError(what, where=f"{self.where}, with adapter_config.json", hint=hint)


def _most_steps(pattern: str, length: int) -> int:
    """How many ways there are, at most, to match an expression with a name of a length; without end where it may be.

    Without repeated groups there is one way for each choice of alternatives, and of how many characters each
    quantifier takes. peft puts one quantifier of its own in front.
    """
    bare = _LITERALS.sub("x", pattern)
    groups = re.split(r"\(", bare)
    if re.search(r"\)(?:[*+]|\{)|\(\?(?!:)", bare) or re.search(r"\\\d", pattern) or len(pattern) > 1000:
        return _MOST_STEPS + 1
    quantifiers = len(_QUANTIFIER.findall(bare)) + 1
    choices = math.prod(group.count("|") + 1 for group in groups)
    return choices * (math.comb(length + quantifiers, quantifiers) + _STEPS_OF_A_CALL)
