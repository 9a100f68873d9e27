"""The published OpenVLA `config.json` plus the few facts that published configs leave out.

Token ids are derived, never written down: the reference takes the unpadded vocabulary as
`text_config.vocab_size - pad_to_multiple_of` and puts the action bins at its end.
"""

import dataclasses
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from transformers import LlamaConfig


class ModelFolderError(ValueError):
    """A model folder or its config cannot be used; the message names the field and the way out."""


@dataclass(frozen=True)
class TowerConfig:
    """Geometry of one vision tower.

    `depth` counts the stored blocks; the last one is stored but never run. `registers` counts
    DINOv2 register tokens (a SigLIP tower has none, and no cls token either).
    """

    kind: Literal["dinov2", "siglip"]
    dim: int
    depth: int
    heads: int
    mlp_dim: int
    patch_size: int
    registers: int = 0

    def __post_init__(self) -> None:
        if self.kind not in ("dinov2", "siglip"):
            raise ModelFolderError(f"vision_towers.kind must be dinov2 or siglip, got {self.kind}")
        if self.dim % self.heads:
            raise ModelFolderError(
                f"vision_towers: dim {self.dim} is not divisible by heads {self.heads}"
            )
        if self.depth < 2:
            raise ModelFolderError(
                f"vision_towers.depth must be at least 2 (the last block never runs), got "
                f"{self.depth}"
            )
        if self.kind == "siglip" and self.registers:
            raise ModelFolderError("vision_towers: a siglip tower has no registers")


PUBLISHED_TOWERS = {
    "vit_large_patch14_reg4_dinov2": TowerConfig("dinov2", 1024, 24, 16, 4096, 14, registers=4),
    "vit_so400m_patch14_siglip_224": TowerConfig("siglip", 1152, 27, 16, 4304, 14),
}


@dataclass(frozen=True)
class OpenVLAConfig:
    """Everything the architecture depends on.

    The first block holds published fields. The second holds extension fields, absent from
    published configs; their defaults describe the published single-image LIBERO fine-tunes.
    """

    text_config: dict[str, Any]
    timm_model_ids: tuple[str, ...]
    image_sizes: tuple[int, ...]
    pad_token_id: int
    pad_to_multiple_of: int
    n_action_bins: int = 256
    norm_stats: dict[str, Any] = field(default_factory=dict)
    use_fused_vision_backbone: bool = True
    timm_override_act_layers: tuple[str | None, ...] = (None, None)
    image_resize_strategy: str = "resize-naive"
    arch_specifier: str = "no-align+fused-gelu-mlp"
    vision_backbone_id: str = "dinosiglip-vit-so-224px"
    llm_backbone_id: str = "llama2-7b-pure"
    hf_llm_id: str = "meta-llama/Llama-2-7b-hf"
    llm_max_length: int = 2048

    vision_towers: tuple[TowerConfig, ...] = ()
    num_images: int = 1
    use_proprio: bool = False
    proprio_dim: int = 8
    chunk_size: int = 8
    action_dim: int = 7
    keep_stop_token: bool = True
    """True: moojink and SimpleVLA-RL append STOP after the placeholders. False: RLinf."""
    empty_token: str = "▁"
    """Vocabulary entry that must end a prompt; the first action's logits are read there."""

    def __post_init__(self) -> None:
        if not self.use_fused_vision_backbone:
            raise ModelFolderError("use_fused_vision_backbone must be true: one tower is untested")
        if len(self.image_sizes) != 2 or self.image_sizes[0] != self.image_sizes[1]:
            raise ModelFolderError(
                f"image_sizes must hold two equal sizes, one a tower, got {self.image_sizes}"
            )
        if any(act is not None for act in self.timm_override_act_layers):
            raise ModelFolderError(
                "timm_override_act_layers must be null (exact GELU), got "
                f"{self.timm_override_act_layers}"
            )
        kinds = [tower.kind for tower in self.towers]
        if kinds != ["dinov2", "siglip"]:
            raise ModelFolderError(f"vision towers must be [dinov2, siglip], got {kinds}")
        for tower in self.towers:
            if self.image_size % tower.patch_size:
                raise ModelFolderError(
                    f"image_sizes {self.image_size} is not divisible by patch_size "
                    f"{tower.patch_size}"
                )
        if len({tower.patch_size for tower in self.towers}) != 1:
            raise ModelFolderError("vision_towers must share one patch_size")
        if self.action_vocab_start < 0:
            raise ModelFolderError(
                f"n_action_bins {self.n_action_bins} exceeds the unpadded vocabulary "
                f"{self.action_vocab_end}"
            )

    @property
    def towers(self) -> tuple[TowerConfig, ...]:
        """Tower geometry: the extension field, else the table of published timm ids."""
        if self.vision_towers:
            return self.vision_towers
        towers = [PUBLISHED_TOWERS.get(name.split(".")[0]) for name in self.timm_model_ids]
        known = tuple(tower for tower in towers if tower is not None)
        if len(known) != len(towers):
            raise ModelFolderError(
                f"timm_model_ids {list(self.timm_model_ids)} are not the published pair "
                f"{sorted(PUBLISHED_TOWERS)}: state the geometry in the config field "
                "`vision_towers` (kind, dim, depth, heads, mlp_dim, patch_size, registers)"
            )
        return known

    @property
    def image_size(self) -> int:
        """Side of the square input image in pixels."""
        return self.image_sizes[0]

    @property
    def patches_per_image(self) -> int:
        """Patch tokens that one image contributes to the sequence."""
        return (self.image_size // self.towers[0].patch_size) ** 2

    @property
    def action_tokens(self) -> int:
        """K * A, the number of placeholder positions."""
        return self.chunk_size * self.action_dim

    @property
    def action_vocab_end(self) -> int:
        """One past the last action token id: the size of the unpadded vocabulary."""
        return int(self.text_config["vocab_size"]) - self.pad_to_multiple_of

    @property
    def action_vocab_start(self) -> int:
        """First action token id."""
        return self.action_vocab_end - self.n_action_bins

    @property
    def bos_token_id(self) -> int:
        """First token of every prompt (a LlamaConfig default in published configs)."""
        return int(self.llama_config().bos_token_id)

    @property
    def stop_token_id(self) -> int:
        """Token after the placeholders when `keep_stop_token` (likewise a LlamaConfig default)."""
        return int(self.llama_config().eos_token_id)

    def llama_config(self) -> LlamaConfig:
        """The language model's config, attention bidirectional."""
        text = {k: v for k, v in self.text_config.items() if k not in ("torch_dtype", "dtype")}
        text["pad_token_id"] = self.pad_token_id
        return LlamaConfig(**text, is_causal=False, attn_implementation="sdpa")

    def sequence_length(self, prompt_length: int) -> int:
        """Positions the language model sees for a prompt of `prompt_length` tokens."""
        vision = self.num_images * self.patches_per_image
        tail = self.action_tokens + int(self.keep_stop_token)
        return prompt_length + vision + int(self.use_proprio) + tail

    def to_dict(self) -> dict[str, Any]:
        """The config as `config.json` holds it."""
        return {
            "model_type": "openvla",
            "architectures": ["OpenVLAForActionPrediction"],
            **dataclasses.asdict(self),
        }

    @classmethod
    def from_dict(cls, values: dict[str, Any], **overrides: Any) -> "OpenVLAConfig":
        """Build from `config.json` content; unknown published fields are ignored.

        Args:
            values: parsed config.json.
            overrides: extension fields (or published ones) that replace the file's.

        Raises:
            ModelFolderError: a required field is missing or a value is impossible.
        """
        names = {f.name for f in dataclasses.fields(cls)}
        unknown = sorted(set(overrides) - names)
        if unknown:
            raise ModelFolderError(f"unknown model override {unknown}; known: {sorted(names)}")
        chosen = {k: v for k, v in {**values, **overrides}.items() if k in names}
        required = ("text_config", "timm_model_ids", "image_sizes", "pad_token_id")
        missing = [k for k in (*required, "pad_to_multiple_of") if chosen.get(k) is None]
        if missing:
            raise ModelFolderError(f"config.json lacks the published fields {missing}")
        if "vocab_size" not in chosen["text_config"]:
            raise ModelFolderError("config.json lacks text_config.vocab_size")
        for name in ("timm_model_ids", "image_sizes", "timm_override_act_layers"):
            if name in chosen:
                chosen[name] = tuple(chosen[name])
        chosen["vision_towers"] = tuple(
            t if isinstance(t, TowerConfig) else _parse_tower(t)
            for t in chosen.get("vision_towers", ())
        )
        return cls(**chosen)

    @classmethod
    def from_folder(cls, folder: Path, **overrides: Any) -> "OpenVLAConfig":
        """Read `config.json` and let `dataset_statistics.json`, if there, update `norm_stats`.

        Raises:
            ModelFolderError: no config.json, not JSON, or impossible values.
        """
        values = _read_json(folder / "config.json")
        statistics = folder / "dataset_statistics.json"
        if statistics.exists():
            values["norm_stats"] = {**(values.get("norm_stats") or {}), **_read_json(statistics)}
        return cls.from_dict(values, **overrides)


def _parse_tower(values: dict[str, Any]) -> TowerConfig:
    try:
        return TowerConfig(**values)
    except TypeError as error:
        raise ModelFolderError(f"vision_towers entry {values}: {error}") from error


def _read_json(path: Path) -> dict[str, Any]:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ModelFolderError(
            f"{path} does not exist: expected an OpenVLA-OFT folder with config.json"
        ) from error
    except json.JSONDecodeError as error:
        raise ModelFolderError(f"{path} is not JSON: {error}") from error
    if not isinstance(values, dict):
        raise ModelFolderError(f"{path} must hold a JSON object, got {type(values).__name__}")
    return values
