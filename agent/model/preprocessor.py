"""`preprocessor_config.json`: the towers' statistics, and proof that we compute what it says."""

import math
from pathlib import Path
from typing import Any

from agent.model.config import read_json
from agent.model.errors import ModelFolderError
from agent.model.images import PUBLISHED_STATISTICS, PixelStatistics

FILE_NAME = "preprocessor_config.json"
WAY_OUT = (
    "copy this file from the published checkpoint that the weights come from, or remove it to "
    "use the published defaults"
)
BICUBIC = 3
"""torchvision's number of the bicubic interpolation."""
STATISTICS_TOLERANCE = 1e-6
"""The file repeats the statistics after a trip through float32."""


def read_preprocessor(folder: Path, size: int) -> PixelStatistics:
    """Read the towers' statistics and check every other field against what we compute.

    Fields whose reference default differs from ours are required; the repeated `tvf_*` fields
    are checked where present.

    Args:
        folder: the model folder; without the file the published statistics hold.
        size: side of the model's input [pixels], `image_sizes` of config.json.

    Raises:
        ModelFolderError: not JSON, or a field that we would not follow.
    """
    path = Path(folder) / FILE_NAME
    if not path.exists():
        return PUBLISHED_STATISTICS
    try:
        values = read_json(path)
    except ModelFolderError as error:
        raise ModelFolderError(f"{error}; {WAY_OUT}") from error
    statistics = PixelStatistics(
        means=_read_triples(path, values, "means", positive=False),
        stds=_read_triples(path, values, "stds", positive=True),
    )
    _check_geometry(path, values, size)
    _check_repeated_statistics(path, values, statistics)
    return statistics


def _refuse(path: Path, name: str, expected: object, got: object) -> ModelFolderError:
    return ModelFolderError(f"{path}: {name}: expected {expected}, got {got!r}; {WAY_OUT}")


def _read_triples(
    path: Path, values: dict[str, Any], name: str, positive: bool
) -> tuple[tuple[float, ...], ...]:
    """One triple of numbers a tower; those of 8-bit pixels scaled to [0, 1] lie in [0, 1]."""
    triples = values.get(name)
    wanted = f"two lists (DINOv2, SigLIP) of 3 numbers in {'(' if positive else '['}0, 1]"
    if not (
        isinstance(triples, list)
        and len(triples) == 2
        and all(isinstance(triple, list) and len(triple) == 3 for triple in triples)
        and all(type(x) in (int, float) and 0 <= x <= 1 for triple in triples for x in triple)
        and not (positive and any(x == 0 for triple in triples for x in triple))
    ):
        raise _refuse(path, name, wanted, triples)
    return tuple(tuple(float(x) for x in triple) for triple in triples)


def _check_geometry(path: Path, values: dict[str, Any], size: int) -> None:
    required = {
        "image_resize_strategy": "resize-naive",
        "use_fused_vision_backbone": True,
        "input_sizes": [[3, size, size]] * 2,
    }
    if_present = {
        "image_processor_type": "PrismaticImageProcessor",
        "interpolations": ["bicubic"] * 2,
        "tvf_do_letterbox": False,
        "tvf_crop_params": [{"output_size": [size, size]}] * 2,
        "tvf_resize_params": [
            {"antialias": True, "interpolation": BICUBIC, "max_size": None, "size": [size, size]}
        ]
        * 2,
    }
    for name, expected in required.items():
        if values.get(name) != expected:
            raise _refuse(path, name, expected, values.get(name))
    for name, wanted in if_present.items():
        if name in values and values[name] != wanted:
            raise _refuse(path, name, wanted, values[name])


def _check_repeated_statistics(
    path: Path, values: dict[str, Any], statistics: PixelStatistics
) -> None:
    name = "tvf_normalize_params"
    if name not in values:
        return
    repeated = {
        "mean": _read_repeated(path, values[name], "mean"),
        "std": _read_repeated(path, values[name], "std"),
    }
    for key, expected in (("mean", statistics.means), ("std", statistics.stds)):
        pairs = zip(sum(expected, ()), sum(repeated[key], ()), strict=True)
        if not all(math.isclose(a, b, abs_tol=STATISTICS_TOLERANCE) for a, b in pairs):
            raise _refuse(path, f"{name}.{key}", f"{expected}, as {key}s say", repeated[key])


def _read_repeated(path: Path, towers: Any, key: str) -> tuple[tuple[float, ...], ...]:
    if not isinstance(towers, list) or not all(isinstance(tower, dict) for tower in towers):
        raise _refuse(path, "tvf_normalize_params", "two objects with mean and std", towers)
    name = f"tvf_normalize_params.{key}"
    return _read_triples(path, {name: [tower.get(key) for tower in towers]}, name, key == "std")
