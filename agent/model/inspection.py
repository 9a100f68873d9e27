"""What a model folder is, from file names, JSON and tensor headers: nothing of its size is read."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from agent.model.adapter_config import AdapterError, LoraSpec
from agent.model.checkpoint import check_folder, read_config
from agent.model.config import OpenVLAConfig, read_json
from agent.model.errors import ModelFolderError
from agent.model.folder import (
    ADAPTER_FOLDER,
    INDEX_FILE,
    ModelFolder,
    component_name,
    open_shard,
    read_component,
)
from agent.model.geometry import describe_geometry
from agent.model.policy_model import norm_bounds
from agent.model.preprocessor import FILE_NAME as PREPROCESSOR_FILE
from agent.model.preprocessor import read_preprocessor

STATISTICS_FILE = "dataset_statistics.json"
TOKENIZER_FILE = "tokenizer.json"
PARTS = {
    "vision_backbone.featurizer.": "dinov2",
    "vision_backbone.fused_featurizer.": "siglip",
    "projector.": "projector",
    "language_model.": "language_model",
    "words.": "words",
    "encoder.": "encoder",
    "decoder.": "decoder",
}
OTHER_PART = "other"
STORED_TYPES = {"bfloat16": "BF16", "float16": "F16", "float32": "F32", "float64": "F64"}
COMMON_FIELDS = ("norm_bounds", "gripper", "image_pipeline", "center_crop", "rotate_180")
PARALLEL_FIELDS = ("num_images", "use_proprio", "chunk_size", "keep_stop_token")
FIELDS = {
    "openvla": ("greedy_range", *COMMON_FIELDS),
    "oft-l1": (*PARALLEL_FIELDS, "laplace_scale", *COMMON_FIELDS),
    "oft-discrete": (*PARALLEL_FIELDS, "greedy_range", *COMMON_FIELDS),
    "cnn": ("num_images", "use_proprio", "chunk_size", *COMMON_FIELDS),
}
"""Extension fields that matter to a variant and that published files leave out."""


@dataclass(frozen=True)
class Inspection:
    """A folder as it would be loaded.

    Attributes:
        variants: the one there is, or those among which the caller must state one.
        parameters: stored ones by part; the `.pt` files are parts of their own.
        stored_types: stored type (as safetensors names it) -> tensors.
        geometry: of towers and language model, for people; "" where the config is unusable.
        num_images: None where nothing states it: then the number of cameras decides.
        chunk_size: None while the variant is open.
        unnorm_keys: whose statistics there are.
        components: component -> file name.
        adapter: what lora_adapter/ says of itself; "" without one.
        assumed: fields that nothing states, at the defaults that would be used.
        problems: what stands against loading it as it is.
        ignored: what is there and would not be used, and why.
    """

    path: str
    variants: tuple[str, ...]
    shards: int
    tensors: int
    size_bytes: int
    parameters: dict[str, int]
    stored_types: dict[str, int]
    geometry: tuple[str, ...]
    image_size: int | None
    num_images: int | None
    chunk_size: int | None
    action_dim: int | None
    proprio_dim: int | None
    unnorm_keys: tuple[str, ...]
    components: dict[str, str]
    adapter: str
    has_tokenizer: bool
    has_preprocessor: bool
    assumed: dict[str, Any]
    problems: tuple[str, ...]
    ignored: tuple[str, ...]


def inspect_folder(path: Path, architecture: dict[str, Any]) -> Inspection:
    """Look into a folder.

    Args:
        architecture: config fields that its files do not show.

    Raises:
        ModelFolderError: no model folder, or a file too damaged to say what it is.
    """
    folder = ModelFolder.open(path)
    stated = {**read_json(path / "config.json"), **architecture}
    variants = _possible_variants(folder, stated)
    config, problems = _read_config(folder, architecture, variants)
    parameters, types = _count_tensors(folder)
    if config is not None:
        problems += _find_problems(folder, config)
    is_open = len(variants) > 1
    files = [*folder.shards, *folder.components.values()]
    return Inspection(
        path=str(path),
        variants=variants,
        shards=len(folder.shards),
        tensors=sum(types.values()),
        size_bytes=sum(file.stat().st_size for file in files),
        parameters=parameters,
        stored_types=types,
        geometry=() if config is None else describe_geometry(config),
        image_size=None if config is None else config.image_size,
        num_images=_stated_images(config, stated),
        chunk_size=None if config is None or is_open else config.chunk_size,
        action_dim=None if config is None else config.action_dim,
        proprio_dim=config.proprio_dim if config is not None and config.use_proprio else None,
        unnorm_keys=() if config is None else tuple(sorted(config.norm_stats)),
        components={name: file.name for name, file in folder.components.items()},
        adapter=_describe_adapter(folder),
        has_tokenizer=(path / TOKENIZER_FILE).exists(),
        has_preprocessor=(path / PREPROCESSOR_FILE).exists(),
        assumed={} if config is None else _list_assumed(config, stated, variants),
        problems=tuple(problems),
        ignored=tuple(_list_ignored(folder, config)),
    )


def _possible_variants(folder: ModelFolder, stated: dict[str, Any]) -> tuple[str, ...]:
    if stated.get("variant"):
        return (str(stated["variant"]),)
    if "noisy_action_projector" in folder.components:
        return ()
    if "action_head" in folder.components:
        return ("oft-l1",)
    if folder.components:
        return ("oft-discrete",)  # the causal variant has neither proprio nor FiLM
    return ("openvla", "oft-discrete")


def _read_config(
    folder: ModelFolder, architecture: dict[str, Any], variants: tuple[str, ...]
) -> tuple[OpenVLAConfig | None, list[str]]:
    """The config, completed by a possible variant where none is stated, and what is against it."""
    problems = []
    try:
        return read_config(folder, architecture), []
    except ModelFolderError as error:
        problems.append(str(error))
    if architecture.get("variant") or not variants:
        return None, problems
    try:
        return read_config(folder, {**architecture, "variant": variants[-1]}), problems
    except ModelFolderError as error:
        return None, list(dict.fromkeys([*problems, str(error)]))


def _count_tensors(folder: ModelFolder) -> tuple[dict[str, int], dict[str, int]]:
    """Parameters by part, and tensors by stored type."""
    parameters: dict[str, int] = {}
    types: dict[str, int] = {}

    def count(part: str, numbers: int, kind: str) -> None:
        parameters[part] = parameters.get(part, 0) + numbers
        types[kind] = types.get(kind, 0) + 1

    for file in folder.shards:
        with open_shard(file) as shard:
            for key in shard.keys():  # noqa: SIM118 - no dictionary
                stored = shard.get_slice(key)
                count(_part_of(key), math.prod(stored.get_shape()), stored.get_dtype())
    for component, file in folder.components.items():
        for tensor in read_component(file).values():
            name = str(tensor.dtype).removeprefix("torch.")
            count(component, tensor.numel(), STORED_TYPES.get(name, name))
    order = [*PARTS.values(), *folder.components, OTHER_PART]
    return {part: parameters[part] for part in order if part in parameters}, types


def _part_of(key: str) -> str:
    return next((part for start, part in PARTS.items() if key.startswith(start)), OTHER_PART)


def _find_problems(folder: ModelFolder, config: OpenVLAConfig) -> list[str]:
    checks = (
        lambda: check_folder(folder, config),
        lambda: read_preprocessor(folder.path, config.image_size),
        lambda: _check_statistics(config),
        lambda: _check_tokenizer(folder.path),
    )
    problems = []
    for check in checks:
        try:
            check()
        except ModelFolderError as error:
            problems.append(str(error))
    return problems


def _check_statistics(config: OpenVLAConfig) -> None:
    """One usable unnorm key is enough: others may belong to other robots."""
    failures = []
    for key in sorted(config.norm_stats):
        try:
            norm_bounds(config, key, "action")
            if config.use_proprio:
                norm_bounds(config, key, "proprio")
        except ModelFolderError as error:
            failures.append(error)
        else:
            return
    if failures:
        raise failures[0]
    raise ModelFolderError(
        f"neither config.json's norm_stats nor {STATISTICS_FILE} says how to turn the network's "
        f"output into robot units: copy {STATISTICS_FILE} from the training"
    )


def _check_tokenizer(path: Path) -> None:
    if not (path / TOKENIZER_FILE).exists():
        hint = " (tokenizer.model alone is not read)" if (path / "tokenizer.model").exists() else ""
        raise ModelFolderError(
            f"{TOKENIZER_FILE} is missing{hint}: copy it from the published checkpoint"
        )


def _stated_images(config: OpenVLAConfig | None, stated: dict[str, Any]) -> int | None:
    if config is None or not (config.is_autoregressive or "num_images" in stated):
        return None
    return config.num_images


def _describe_adapter(folder: ModelFolder) -> str:
    if not folder.has_adapter:
        return ""
    try:
        spec = LoraSpec.from_dict(read_json(folder.path / ADAPTER_FOLDER / "adapter_config.json"))
    except (ModelFolderError, AdapterError) as error:
        return f"unreadable: {error}"
    return f"rank {spec.rank}, alpha {spec.alpha:g}"


def _list_assumed(
    config: OpenVLAConfig, stated: dict[str, Any], variants: tuple[str, ...]
) -> dict[str, Any]:
    # The cameras decide how many images there are, a projector file whether there is proprio.
    known = {*stated, "num_images", *(["use_proprio"] if config.use_proprio else [])}
    fields = dict.fromkeys(name for variant in variants for name in FIELDS.get(variant, ()))
    return {name: getattr(config, name) for name in fields if name not in known}


def _list_ignored(folder: ModelFolder, config: OpenVLAConfig | None) -> list[str]:
    used = {"action_head", "proprio_projector", "vision_backbone"}
    if config is not None:
        switches = {
            "action_head": config.is_regression,
            "proprio_projector": config.use_proprio,
            "vision_backbone": config.use_film,
        }
        used = {component for component, is_on in switches.items() if is_on}
    ignored = [
        f"{file.name}: the config does not use it"
        for component, file in folder.components.items()
        if component not in used
    ]
    if folder.has_adapter:
        ignored.append(f"{ADAPTER_FOLDER}/: published weights have it merged in already")
    known = {*(file.name for file in folder.shards), INDEX_FILE}
    names = sorted(file.name for file in folder.path.iterdir() if file.is_file())
    reasons = {
        ".py": "code of a folder is never run",
        ".bin": "pickled weights are never loaded",
        ".safetensors": "not among the weights that the folder names",
    }
    for ending, reason in reasons.items():
        found = [name for name in names if name.endswith(ending) and name not in known]
        if found:
            ignored.append(f"{', '.join(found)}: {reason}")
    components = {file.name for file in folder.components.values()}
    loose = [name for name in names if name.endswith(".pt") and name not in components]
    if loose:
        ignored.append(f"{', '.join(loose)}: not named like {component_name('action_head', 'N')}")
    return ignored
