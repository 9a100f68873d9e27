"""Pictures of many observations: of one size, or each camera and robot with its own.

Axes: B observations, N cameras. Pictures of one size are one array, u8 (B, N, H, W, 3). Where sizes
differ they are an array (B, N) of objects, each u8 (H, W, 3). Both are indexed by rows alike.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from agent.model.images import ImagePipeline


def stack_pictures(pictures: Sequence[Sequence[np.ndarray]]) -> np.ndarray:
    """The pictures u8 (H, W, 3) of observations, the same number of cameras in each."""
    if len({picture.shape for observation in pictures for picture in observation}) == 1:
        return np.stack([np.stack(observation) for observation in pictures])
    return _as_objects(pictures, (len(pictures), len(pictures[0])))


def join_pictures(parts: Sequence[np.ndarray]) -> np.ndarray:
    """Pictures of further observations after those of the first, whatever their sizes."""
    parts = [part for part in parts if len(part)] or list(parts[:1])
    if len({part.shape[1:] for part in parts}) == 1:
        return np.concatenate(parts)
    return np.concatenate([_as_objects(part, part.shape[:2]) for part in parts])


def picture_pixels(pipeline: ImagePipeline, pictures: np.ndarray) -> Tensor:
    """What a policy sees of them, f32 (B, N, 6, size, size)."""
    if not _is_mixed(pictures):
        return pipeline.pixels(pictures)
    prepared = np.stack([pipeline.prepare(picture) for picture in pictures.flat])
    return pipeline.statistics.normalise(prepared.reshape(*pictures.shape, *prepared.shape[1:]))


def picture_bytes(pictures: np.ndarray) -> int:
    """What the pictures take in memory."""
    if not _is_mixed(pictures):
        return pictures.nbytes
    return sum(picture.nbytes for picture in pictures.flat)


def pack_pictures(name: str, pictures: np.ndarray) -> dict[str, Tensor]:
    """Tensors to keep in a file; of mixed sizes all bytes in a row, and (height, width) of each."""
    if not _is_mixed(pictures):
        return {name: torch.from_numpy(np.ascontiguousarray(pictures))}
    sizes = np.array([picture.shape[:2] for picture in pictures.flat], dtype=np.int64)
    flat = np.concatenate([picture.ravel() for picture in pictures.flat])
    return {
        name: torch.from_numpy(flat),
        _sizes_name(name): torch.from_numpy(sizes.reshape(*pictures.shape, 2)),
    }


def unpack_pictures(name: str, tensors: Mapping[str, Tensor]) -> np.ndarray:
    """As `pack_pictures` was given them."""
    flat = tensors[name].cpu().numpy()
    if _sizes_name(name) not in tensors:
        return flat
    sizes_BN2 = tensors[_sizes_name(name)].cpu().numpy()
    shapes = [(height, width, 3) for height, width in sizes_BN2.reshape(-1, 2)]
    ends = np.cumsum([height * width * 3 for height, width, _ in shapes])
    pictures = [part.reshape(s) for part, s in zip(np.split(flat, ends[:-1]), shapes, strict=True)]
    cameras = sizes_BN2.shape[1]
    rows = [pictures[start : start + cameras] for start in range(0, len(pictures), cameras)]
    return _as_objects(rows, sizes_BN2.shape[:2])


def _sizes_name(name: str) -> str:
    return f"{name}.sizes"


def _is_mixed(pictures: np.ndarray) -> bool:
    return pictures.dtype == object


def _as_objects(
    pictures: Sequence[Sequence[np.ndarray]] | np.ndarray, shape: tuple[int, ...]
) -> np.ndarray:
    objects_BN = np.empty(shape, dtype=object)
    for index in np.ndindex(*shape):
        objects_BN[index] = pictures[index[0]][index[1]]
    return objects_BN
