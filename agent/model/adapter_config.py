"""What adapter_config.json says: the scale of the update, the modules it names, what we refuse.

Of PEFT's LoRA fields, some say how training started or ran (dropout, initialisation from a
distribution, megatron, revision, task type, ...) and cannot change an answer any more: they are
ignored. Those that change what the tensors mean are refused by name.
"""

import math
import re
from dataclasses import dataclass, field
from typing import Any

from agent.model.libraries import check_target_module_exists
from agent.wire.errors import PerennialError

RANK_MAX, ALPHA_MAX = 1 << 16, 1e100  # beyond, a file is damaged
ALL_LINEAR = "all-linear"
OUTSIDE_ALL_LINEAR = ("patch_embed.proj", "lm_head")
"""PEFT's all-linear takes no convolution, and an output head only in some releases."""

NEUTRAL_SWITCHES = {"use_rslora"}
REFUSED_IF_SET = (
    "alora_invocation_tokens",
    "alpha_pattern",
    "arrow_config",
    "fan_in_fan_out",
    "kasa_config",
    "layer_replication",
    "lora_bias",
    "modules_to_save",
    "monteclora_config",
    "rank_pattern",
    "target_parameters",
    "trainable_token_indices",
)
PLAIN_INITIALISATIONS = (None, True, False, "gaussian", "eva", "mica", "orthogonal")
"""Those that leave the base weights alone; PiSSA, OLoRA, CorDA, LoftQ and LoRA-GA change them."""


class AdapterError(PerennialError, ValueError):
    """An adapter does not fit the model; the message names tensor, expected and got."""


@dataclass(frozen=True)
class Targets:
    """Which modules an adapter names, under PEFT's field names and with its matching rules.

    Without `target_modules` every module counts as named.
    """

    target_modules: tuple[str, ...] | str | None = None
    exclude_modules: tuple[str, ...] | str | None = None
    layers_to_transform: tuple[int, ...] | None = None
    layers_pattern: tuple[str, ...] | None = None

    def name(self, module: str) -> bool:
        """Whether PEFT gave `module` an adapter."""
        if self.target_modules is None:
            return True
        if self.target_modules == ALL_LINEAR:
            return not module.endswith(OUTSIDE_ALL_LINEAR)
        return bool(check_target_module_exists(self, module))

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "Targets":
        """Parse the selection fields. Raises AdapterError for what PEFT would not write."""
        return cls(
            _strings(values, "target_modules"),
            _strings(values, "exclude_modules"),
            _layers(values.get("layers_to_transform")),
            _pattern(values.get("layers_pattern")),
        )


@dataclass(frozen=True)
class LoraSpec:
    """The part of adapter_config.json that decides what the tensors mean."""

    rank: int
    alpha: float
    use_rslora: bool = False
    targets: Targets = field(default_factory=Targets)

    @property
    def scale(self) -> float:
        """Factor on B A x: alpha / r, or alpha / sqrt(r) for rsLoRA."""
        return self.alpha / (math.sqrt(self.rank) if self.use_rslora else self.rank)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "LoraSpec":
        """Parse adapter_config.json content, of any PEFT release.

        Raises:
            AdapterError: not LoRA, or a variant this code would compute wrongly.
        """
        if values.get("peft_type") != "LORA":
            raise AdapterError(f"adapter peft_type must be LORA, got {values.get('peft_type')!r}")
        unsupported = _unsupported(values)
        if unsupported:
            raise AdapterError(
                f"adapter uses {unsupported}; only plain LoRA can be served: merge it into the "
                "base with PEFT's merge_and_unload, or train without it"
            )
        rank, alpha = values.get("r"), values.get("lora_alpha")
        if not isinstance(rank, int) or isinstance(rank, bool) or not 1 <= rank <= RANK_MAX:
            raise AdapterError(f"adapter rank r must be 1 to {RANK_MAX}, got {rank!r:.40}")
        if (
            not isinstance(alpha, int | float)
            or isinstance(alpha, bool)
            or not -ALPHA_MAX <= alpha <= ALPHA_MAX
        ):
            raise AdapterError(f"adapter lora_alpha must be a finite number, got {alpha!r:.40}")
        rslora = bool(values.get("use_rslora", False))
        return cls(rank, float(alpha), rslora, Targets.from_dict(values))


def _unsupported(values: dict[str, Any]) -> list[str]:
    found = [name for name in REFUSED_IF_SET if values.get(name)]
    # Also a switch of a PEFT release to come: on, it would change the computation unseen.
    found += sorted(k for k, v in values.items() if k.startswith("use_") and v)
    found = [name for name in found if name not in NEUTRAL_SWITCHES]
    if values.get("bias", "none") != "none":
        found.append("bias")
    start = values.get("init_lora_weights")
    if not any(start is plain or start == plain for plain in PLAIN_INITIALISATIONS):
        found.append(f"init_lora_weights={start}")
    return found


def _strings(values: dict[str, Any], name: str) -> tuple[str, ...] | str | None:
    """A list of module names, or a regular expression that must match a whole name."""
    value = values.get(name)
    if value is None:
        return None
    if isinstance(value, str):
        try:
            re.compile(value)
        except re.error as error:
            raise AdapterError(f"adapter {name} {value!r} is no valid pattern: {error}") from error
        return value
    if isinstance(value, list) and all(isinstance(item, str) for item in value):
        return tuple(value)
    raise AdapterError(f"adapter {name} must be names or one pattern, got {value!r}")


def _layers(value: Any) -> tuple[int, ...] | None:
    layers = [value] if isinstance(value, int) else value or []
    if not isinstance(layers, list) or not all(isinstance(layer, int) for layer in layers):
        raise AdapterError(f"adapter layers_to_transform must be layer numbers, got {value!r}")
    return tuple(layers) or None


def _pattern(value: Any) -> tuple[str, ...] | None:
    names = [value] if isinstance(value, str) else value or []
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise AdapterError(f"adapter layers_pattern must be names, got {value!r}")
    return tuple(names) or None
