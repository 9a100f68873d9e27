"""A model folder with everything between its network and a robot, as server and learner need it."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from agent.model.actions import (
    FAR_ACTION,
    FAR_STATE,
    ActionCodec,
    NormBounds,
    normalise_proprio,
)
from agent.model.checkpoint import check_folder, load_model, read_config
from agent.model.config import OpenVLAConfig, read_json
from agent.model.errors import ModelFolderError
from agent.model.folder import ModelFolder, hash_folder
from agent.model.images import ImagePipeline
from agent.model.network import PolicyNetwork
from agent.model.preprocessor import read_preprocessor
from agent.model.processing import PromptEncoder
from agent.process.shown import printable

NANO_FOLDER = Path(__file__).parents[1] / "assets" / "nano"


@dataclass(frozen=True)
class PolicyModel:
    """A loaded checkpoint.

    cameras: names of the network's images, in its order. base_sha256: identity of the base.
    proprio: None for a policy that sees no robot state.
    """

    name: str
    base_sha256: str
    network: PolicyNetwork
    prompts: PromptEncoder
    images: ImagePipeline
    actions: ActionCodec
    proprio: NormBounds | None
    cameras: tuple[str, ...]

    @property
    def config(self) -> OpenVLAConfig:
        """The network's."""
        return self.network.config

    @property
    def device(self) -> torch.device:
        """Where the network is."""
        return next(self.network.parameters()).device

    def proprio_input(self, proprio_BP: np.ndarray) -> Tensor | None:
        """Robot state in robot units to the network's input, float32 on its device."""
        if self.proprio is None:
            return None
        return torch.from_numpy(normalise_proprio(proprio_BP, self.proprio)).to(self.device)

    def stray_state(self, proprio_P: np.ndarray) -> str:
        """What is far outside the statistics of a robot's state, in words; "" if nothing is."""
        if self.proprio is None:
            return ""
        far = self.proprio.far_outside(self.proprio.normalise(proprio_P), FAR_STATE)
        if not far.any():
            return ""
        first = int(far.argmax())
        low, high = self.proprio.low[first], self.proprio.high[first]
        return f"proprio[{first}] is {proprio_P[first]:g}, the data had {low:g} to {high:g}" + (
            f", and {far.sum() - 1} more" if far.sum() > 1 else ""
        )

    def strays(self, choices_KA: np.ndarray) -> bool:
        """Whether a chunk's normalised actions lie far outside all that the data had."""
        if np.issubdtype(choices_KA.dtype, np.integer):
            return False  # every action bin lies between the bounds
        return bool(self.actions.bounds.far_outside(choices_KA, FAR_ACTION).any())


def load_policy_model(
    model_dir: str,
    architecture: dict[str, Any],
    cameras: Sequence[str],
    unnorm_key: str,
    dtype: torch.dtype = torch.float32,
    device: str = "cpu",
) -> PolicyModel:
    """Load a model folder.

    Args:
        model_dir: "" is the nano model that comes along.
        architecture: config fields that the folder's files do not show; None is unstated.
        cameras: at least as many as the network has images; the first ones are used. Without
            `num_images` in the config their number decides.
        unnorm_key: whose statistics turn the network's output into robot units; "" takes the
            only ones there are.

    Raises:
        ModelFolderError: the folder or a setting cannot be used.
    """
    folder, config, stated = _open(model_dir, architecture, cameras)
    # Whatever small files can be wrong with is said before 15 GB are read.
    surroundings = _read_surroundings(folder, config, cameras, unnorm_key)
    network = load_model(folder, dtype, device, **stated)
    base_sha256 = hash_folder(folder, stated)
    return PolicyModel(network=network, base_sha256=base_sha256, **surroundings)


def look_at_policy_model(
    model_dir: str, architecture: dict[str, Any], cameras: Sequence[str], unnorm_key: str
) -> PolicyModel:
    """The same model without its weights, of which only names and shapes are read.

    Its network is on the meta device, its identity "": what else `load_policy_model` can refuse a
    folder for is found in seconds.

    Raises:
        ModelFolderError: the folder or a setting cannot be used.
    """
    folder, config, _ = _open(model_dir, architecture, cameras)
    surroundings = _read_surroundings(folder, config, cameras, unnorm_key)
    network, _ = check_folder(ModelFolder.open(folder), config)
    return PolicyModel(network=network, base_sha256="", **surroundings)


def hash_policy_model(model_dir: str, architecture: dict[str, Any], cameras: Sequence[str]) -> str:
    """The identity that `load_policy_model` gives; reads all of the folder."""
    folder, _, stated = _open(model_dir, architecture, cameras)
    return hash_folder(folder, stated)


def _open(
    model_dir: str, architecture: dict[str, Any], cameras: Sequence[str]
) -> tuple[Path, OpenVLAConfig, dict[str, Any]]:
    """The folder, the network's config, and what of it the folder's files do not show."""
    folder = Path(model_dir) if model_dir else NANO_FOLDER
    stated = {name: value for name, value in architecture.items() if value is not None}
    if "num_images" not in {*stated, *read_json(folder / "config.json")}:
        stated["num_images"] = len(cameras)
    return folder, read_config(ModelFolder.open(folder), stated), stated


def wrap_network(
    network: PolicyNetwork, folder: Path, cameras: Sequence[str], unnorm_key: str, base_sha256: str
) -> PolicyModel:
    """A network with the tokenizer and the preprocessor of `folder`; see `load_policy_model`."""
    surroundings = _read_surroundings(folder, network.config, cameras, unnorm_key)
    return PolicyModel(network=network, base_sha256=base_sha256, **surroundings)


def _read_surroundings(
    folder: Path, config: OpenVLAConfig, cameras: Sequence[str], unnorm_key: str
) -> dict[str, Any]:
    """All of a PolicyModel but the network and its identity."""
    if len(cameras) < config.num_images:
        raise ModelFolderError(
            f"cameras: the model sees {config.num_images} images, got {list(cameras)}"
        )
    bounds = norm_bounds(config, unnorm_key, "action")
    return {
        "name": folder.resolve().name,
        "prompts": PromptEncoder(folder, config),
        "images": image_pipeline(folder, config),
        "actions": ActionCodec(bounds, config.n_action_bins, config.gripper),
        "proprio": norm_bounds(config, unnorm_key, "proprio") if config.use_proprio else None,
        "cameras": tuple(cameras[: config.num_images]),
    }


def image_pipeline(folder: Path, config: OpenVLAConfig) -> ImagePipeline:
    """How the folder's images are prepared."""
    return ImagePipeline(
        config.image_size,
        config.image_pipeline,
        config.center_crop,
        config.rotate_180,
        read_preprocessor(folder, config.image_size),
    )


def norm_bounds(config: OpenVLAConfig, unnorm_key: str, modality: str) -> NormBounds:
    """The bounds that map to [-1, 1]; as wide as the network's actions or state.

    Raises:
        ModelFolderError: unknown or ambiguous key, missing statistics, or another width.
    """
    keys = sorted(config.norm_stats)
    if not unnorm_key:
        if len(keys) != 1:
            raise ModelFolderError(f"unnorm_key: the model has {keys or 'no statistics'}; name one")
        unnorm_key = keys[0]
    try:
        # The causal OpenVLA divides by the plain span.
        bounds = NormBounds.from_stats(
            config.norm_stats, unnorm_key, modality, config.norm_bounds,
            **({"epsilon": 0.0} if config.is_autoregressive else {}),
        )  # fmt: skip
    except KeyError as error:
        raise ModelFolderError(f"unnorm_key: {error.args[0]}") from error
    except (ValueError, TypeError, AttributeError) as error:
        raise ModelFolderError(
            f"norm_stats of {unnorm_key!r}: {modality} is no table of statistics "
            f"({printable(error)}); fetch dataset_statistics.json again"
        ) from error
    wanted = config.action_dim if modality == "action" else config.proprio_dim
    if len(bounds.low) != wanted:
        raise ModelFolderError(
            f"norm_stats of {unnorm_key!r}: {modality} has {len(bounds.low)} dimensions, the "
            f"config {wanted}; state {'action' if modality == 'action' else 'proprio'}_dim"
        )
    return bounds
