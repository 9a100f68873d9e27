"""The published OpenVLA `config.json` plus the few facts that published configs leave out.

Token ids are derived, never written down: the reference takes the unpadded vocabulary as
`text_config.vocab_size - pad_to_multiple_of` and puts the action bins at its end.
"""

import dataclasses
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_args

from agent.model.errors import ModelFolderError
from agent.model.images import PipelineKind
from agent.model.libraries import LlamaConfig
from agent.model.towers import PUBLISHED_TOWERS, TowerConfig, check_towers, parse_tower
from agent.process.json_files import json_fault
from agent.process.stand_ins import describe_stand_in

VARIANTS = ("openvla", "oft-l1", "oft-discrete", "cnn")
CHOICES = {
    "variant": VARIANTS,
    "greedy_range": ("bins", "vocabulary"),
    "norm_bounds": ("q99", "minmax"),
    "gripper": ("libero", "simpler", "continuous"),
    "image_pipeline": get_args(PipelineKind),
}


@dataclass(frozen=True)
class OpenVLAConfig:
    """Everything the computation depends on.

    The first block holds published fields. The second holds extension fields, absent from
    published configs: whoever loads a published folder states those that the files do not show.
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

    variant: str = ""
    """openvla: causal, one token after another. oft-l1: parallel, actions by regression.
    oft-discrete: parallel, one token per action dimension. cnn: no published model but a small
    convolutional baseline, which takes its vocabulary and width from text_config."""
    vision_towers: tuple[TowerConfig, ...] = ()
    num_images: int = 1
    use_proprio: bool = False
    proprio_dim: int = 8
    use_film: bool = False
    """The instruction modulates every vision block (FiLM)."""
    chunk_size: int = 8
    action_dim: int = 7
    keep_stop_token: bool = True
    """True: moojink and SimpleVLA-RL append STOP after the placeholders. False: RLinf."""
    greedy_range: str = "bins"
    """What a greedy token is chosen among. vocabulary: as openvla and openvla-oft do, an id
    outside the action bins counts as the nearest bin."""
    laplace_scale: float = 0.05
    """oft-l1: spread of sampled actions around the head's, in normalised units, at T = 1."""
    norm_bounds: str = "q99"
    """Statistics that map to [-1, 1]: 1% and 99% quantiles, or minimum and maximum (ALOHA)."""
    gripper: str = "libero"
    """libero: closed is +1, binarised. simpler: open is +1, binarised. continuous: as it is."""
    image_pipeline: PipelineKind = "bicubic"
    center_crop: bool = False
    rotate_180: bool = False
    empty_token: str = "▁"
    """Vocabulary entry that must end a prompt; the first action's logits are read there."""

    def __post_init__(self) -> None:
        for name, choices in CHOICES.items():
            if getattr(self, name) not in choices:
                raise ModelFolderError(
                    f"{name}: expected one of {', '.join(choices)}, got {getattr(self, name)!r}"
                    + (_WHICH_VARIANT if name == "variant" else "")
                )
        self._check_vision()
        for name in ("num_images", "proprio_dim", "chunk_size", "action_dim"):
            if getattr(self, name) < 1:
                raise ModelFolderError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.n_action_bins < 2:
            raise ModelFolderError(f"n_action_bins must be at least 2, got {self.n_action_bins}")
        if self.action_vocab_start < 0:
            raise ModelFolderError(
                f"n_action_bins {self.n_action_bins} exceeds the unpadded vocabulary "
                f"{self.action_vocab_end}"
            )
        if self.is_convolutional and (self.use_film or self.greedy_range != "bins"):
            raise ModelFolderError(
                "variant cnn has no FiLM and greedy_range bins; got use_film "
                f"{self.use_film}, greedy_range {self.greedy_range}"
            )
        if not self.laplace_scale > 0:
            raise ModelFolderError(f"laplace_scale must be > 0, got {self.laplace_scale}")
        extras = (self.num_images != 1, self.use_proprio, self.use_film, self.chunk_size != 1)
        if self.is_autoregressive and any(extras):
            raise ModelFolderError(
                "variant openvla has one image, chunk_size 1, no proprio and no FiLM; got "
                f"num_images {self.num_images}, chunk_size {self.chunk_size}, use_proprio "
                f"{self.use_proprio}, use_film {self.use_film}"
            )

    def _check_vision(self) -> None:
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
        if not self.is_convolutional:
            check_towers(self.towers, self.image_size)
        elif self.towers:
            raise ModelFolderError("variant cnn has no towers: leave timm_model_ids empty")

    @property
    def is_autoregressive(self) -> bool:
        """Tokens are generated one after another under a causal mask."""
        return self.variant == "openvla"

    @property
    def is_regression(self) -> bool:
        """Actions come from the L1 head; there are no action tokens."""
        return self.variant == "oft-l1"

    @property
    def is_convolutional(self) -> bool:
        """The network is no OpenVLA but the small convolutional policy."""
        return self.variant == "cnn"

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
        """K * A, the number of action positions."""
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
        """The language model's config; attention is bidirectional unless autoregressive."""
        text = {k: v for k, v in self.text_config.items() if k not in ("torch_dtype", "dtype")}
        text["pad_token_id"] = self.pad_token_id
        return LlamaConfig(**text, is_causal=self.is_autoregressive, attn_implementation="sdpa")

    def sequence_length(self, prompt_length: int) -> int:
        """Positions the language model sees for a prompt of `prompt_length` tokens."""
        if self.is_convolutional:
            return prompt_length  # its words are summed, without any other position
        vision = self.num_images * self.patches_per_image
        # The last of several generated tokens is never fed back.
        last = -1 if self.is_autoregressive else int(self.keep_stop_token)
        return prompt_length + vision + int(self.use_proprio) + self.action_tokens + last

    def to_dict(self) -> dict[str, Any]:
        """The config as `config.json` holds it."""
        kind, name = "openvla", "OpenVLAForActionPrediction"
        if self.is_convolutional:
            kind, name = "cnn", "CnnPolicy"
        return {"model_type": kind, "architectures": [name], **dataclasses.asdict(self)}

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
        _check_types(overrides)
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
            t if isinstance(t, TowerConfig) else parse_tower(t)
            for t in chosen.get("vision_towers", ())
        )
        if chosen.get("variant") == "openvla":
            chosen.setdefault("chunk_size", 1)
        return cls(**chosen)

    @classmethod
    def from_folder(cls, folder: Path, **overrides: Any) -> "OpenVLAConfig":
        """Read `config.json`; `dataset_statistics.json`, if there, replaces its `norm_stats`.

        A fine-tune's config still lists the data sets of its base.

        Raises:
            ModelFolderError: no config.json, not JSON, or impossible values.
        """
        values = read_json(folder / "config.json")
        statistics = folder / "dataset_statistics.json"
        if statistics.exists():
            values["norm_stats"] = read_json(statistics)
        return cls.from_dict(values, **overrides)


_WHICH_VARIANT = (
    ". config.json does not tell a causal OpenVLA from a discrete OpenVLA-OFT: state "
    "architecture.variant (model.architecture.variant of a run; --set variant=... of "
    "`perennial model`)"
)


def _check_types(overrides: dict[str, Any]) -> None:
    """A number in quotes must not get as far as the network."""
    for name, value in overrides.items():
        default = getattr(OpenVLAConfig, name, None)
        kinds = (int, float) if isinstance(default, float) else (type(default),)
        if isinstance(default, bool | int | float | str) and type(value) not in kinds:
            raise ModelFolderError(
                f"{name}: expected {kinds[-1].__name__}, e.g. {default!r}, got {value!r}"
            )


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in a file of a model folder. Raises ModelFolderError."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        what = describe_stand_in(path) or (
            "does not exist: expected an OpenVLA folder with config.json"
        )
        raise ModelFolderError(f"{path} {what}") from error
    except OSError as error:
        what = describe_stand_in(path) or f"cannot be read ({error.strerror}): fetch it again"
        raise ModelFolderError(f"{path} {what}") from error
    except (ValueError, RecursionError) as error:
        what = describe_stand_in(path) or f"is not JSON ({json_fault(error)}): fetch it again"
        raise ModelFolderError(f"{path} {what}") from error
    if not isinstance(values, dict):
        raise ModelFolderError(f"{path} must hold a JSON object, got {type(values).__name__}")
    return values
