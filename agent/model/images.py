"""Camera images to model pixels, as the published evaluations prepare them.

Every stage repeats the arithmetic of the library that prepared the training and evaluation images
(TensorFlow's JPEG codec, antialiased lanczos3 and crop_and_resize; torchvision's antialiased
bicubic), in float32 and in the same order, so that its 8-bit results are equal, and equal on every
processor: an agent and a learner on different machines see the same pixels.
"""

import io
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal, get_args

import numpy as np
import torch
from torch import Tensor

from agent.model.resample import resize_bicubic, resize_lanczos
from agent.process.optional import needing

PipelineKind = Literal["bicubic", "jpeg-lanczos-crop"]
MAX_SIDE = 4096
"""Largest accepted image side [pixels]; bounds the memory of one resize."""
JPEG_QUALITY = 95
CHROMA_HALVED = 2
"""Pillow's name for 4:2:0 chroma subsampling."""
CROP_AREA = np.float32(0.9)


@dataclass(frozen=True)
class PixelStatistics:
    """Mean and standard deviation of each tower's channels, for pixels scaled to [0, 1].

    Each field holds one (R, G, B) triple for DINOv2, then one for SigLIP.
    """

    means: tuple[tuple[float, ...], ...] = ((0.485, 0.456, 0.406), (0.5, 0.5, 0.5))
    stds: tuple[tuple[float, ...], ...] = ((0.229, 0.224, 0.225), (0.5, 0.5, 0.5))

    def normalise(self, images: np.ndarray) -> Tensor:
        """Pixels at the model's size to its six input channels.

        Args:
            images: uint8 (..., S, S, 3).

        Returns:
            float32 (..., 6, S, S): channels 0..2 for DINOv2, 3..5 for SigLIP.
        """
        # Contiguous: convolutions take another kernel for the memory order of the images, and
        # server and learner would differ in the last bits.
        planes = np.ascontiguousarray(np.moveaxis(images, -1, -3), dtype=np.float32)
        scaled = torch.from_numpy(planes) / 255.0
        mean, std = torch.tensor(self.means), torch.tensor(self.stds)
        towers = [(scaled - mean[i].view(3, 1, 1)) / std[i].view(3, 1, 1) for i in range(len(mean))]
        return torch.cat(towers, dim=-3)


PUBLISHED_STATISTICS = PixelStatistics()
"""ImageNet statistics for DINOv2, [-1, 1] for SigLIP: every published OpenVLA checkpoint."""


@dataclass(frozen=True)
class ImagePipeline:
    """How a checkpoint's images are brought to the model's size.

    `bicubic` (RLinf): antialiased bicubic when the size differs; no JPEG, no crop.
    `jpeg-lanczos-crop` (openvla, openvla-oft, SimpleVLA-RL): when the size differs, a JPEG round
    trip at quality 95 and antialiased lanczos3; then the centre crop of 0.9 of the area.

    Args:
        size: side of the model's input [pixels].
        kind: which of the two.
        center_crop: crop in `jpeg-lanczos-crop`, for checkpoints trained with random crops;
            `bicubic` has no crop.
        rotate_180: turn the images first, for cameras that are mounted or rendered upside down.
        statistics: the towers' normalisation.

    Raises:
        ValueError: unknown kind or size out of range.
        PackageError: the JPEG round trip needs a package that is missing or broken.
    """

    size: int
    kind: PipelineKind = "bicubic"
    center_crop: bool = True
    rotate_180: bool = False
    statistics: PixelStatistics = PUBLISHED_STATISTICS

    def __post_init__(self) -> None:
        if self.kind not in get_args(PipelineKind):
            raise ValueError(
                f"image_pipeline: expected one of {list(get_args(PipelineKind))}, got {self.kind!r}"
            )
        if not 1 < self.size <= MAX_SIDE:
            raise ValueError(f"image size: expected 2..{MAX_SIDE} pixels, got {self.size}")
        if self.kind != "bicubic":
            jpeg_round_trip(np.zeros((1, 8, 8, 3), np.uint8))  # say now what it needs and lacks

    def prepare(self, images: np.ndarray) -> np.ndarray:
        """Resize (and rotate, and crop) images of one size.

        Args:
            images: uint8 (..., H, W, 3).

        Returns:
            uint8 (..., size, size, 3), new or a view of the given images.

        Raises:
            ValueError: not uint8, not (..., H, W, 3), empty, or a side above `MAX_SIDE`.
        """
        check_images(images)
        if self.rotate_180:
            images = images[..., ::-1, ::-1, :]
        flat = images.reshape(-1, *images.shape[-3:])
        differs = flat.shape[1:3] != (self.size, self.size)
        if self.kind == "bicubic":
            flat = resize_bicubic(flat, self.size) if differs else flat
        else:
            flat = resize_lanczos(jpeg_round_trip(flat), self.size) if differs else flat
            flat = crop_center(flat) if self.center_crop else flat
        return flat.reshape(*images.shape[:-3], self.size, self.size, 3)

    def pixels(self, images: np.ndarray) -> Tensor:
        """Images of one size (see `prepare`) to float32 (..., 6, size, size)."""
        return self.statistics.normalise(self.prepare(images))

    def camera_pixels(self, cameras: Sequence[np.ndarray]) -> Tensor:
        """One array (..., H, W, 3) a camera, each with its own H and W, leading axes equal.

        Returns:
            float32 (..., N, 6, size, size), the N cameras in the given order.
        """
        return self.statistics.normalise(
            np.stack([self.prepare(images) for images in cameras], axis=-4)
        )


def images_to_pixels(
    images: np.ndarray, size: int, statistics: PixelStatistics = PUBLISHED_STATISTICS
) -> Tensor:
    """Images (..., H, W, 3) to pixels (..., 6, size, size) by the plain `bicubic` pipeline."""
    return ImagePipeline(size, statistics=statistics).pixels(images)


def check_images(images: np.ndarray) -> None:
    """Refuse what is not a stack of 8-bit RGB images.

    Raises:
        ValueError: not uint8, not (..., H, W, 3), empty, or a side above `MAX_SIDE`.
    """
    if images.dtype != np.uint8 or images.ndim < 3 or images.shape[-1] != 3:
        raise ValueError(
            f"images: expected uint8 (..., H, W, 3), got {images.dtype} {images.shape}: "
            "send 8-bit RGB, channels last"
        )
    if images.size == 0 or max(images.shape[-3:-1]) > MAX_SIDE:
        raise ValueError(
            f"images: expected at least one, of 1..{MAX_SIDE} pixels a side, got {images.shape}: "
            "scale them down where they are recorded"
        )


def jpeg_round_trip(images: np.ndarray) -> np.ndarray:
    """TensorFlow's encode_jpeg and decode_jpeg with default options: uint8 (B, H, W, 3) to same.

    TensorFlow encodes as Pillow does, but decodes with the fast integer DCT, which Pillow does
    not offer and which moves values by up to 11 levels.

    Raises:
        PackageError: one of the two packages is missing or broken; `bicubic` needs neither.
    """
    with needing("server"):
        import simplejpeg
        from PIL import Image
    decoded = np.empty(images.shape, np.uint8)
    for index, image in enumerate(images):
        data = io.BytesIO()
        Image.fromarray(image).save(data, "JPEG", quality=JPEG_QUALITY, subsampling=CHROMA_HALVED)
        decoded[index] = simplejpeg.decode_jpeg(
            data.getvalue(), "RGB", fastdct=True, fastupsample=False
        )
    return decoded


def crop_center(images: np.ndarray) -> np.ndarray:
    """Centre crop of 0.9 of the area, brought back to the full size: uint8 (B, S, S, 3) to same.

    TensorFlow's crop_and_resize (bilinear, corners aligned) on pixels in [0, 1], as the
    evaluation code of openvla calls it; back to 8 bits by truncating x * 255.5.
    """
    low, high, share = _crop_positions(images.shape[1])
    pixels = images.astype(np.float32) * np.float32(1 / 255)
    share_x, share_y = share[:, None], share[:, None, None]

    def rows(index: np.ndarray) -> np.ndarray:
        lines = pixels[:, index]
        left = lines[:, :, low]
        return left + (lines[:, :, high] - left) * share_x

    top = rows(low)
    cropped = top + (rows(high) - top) * share_y
    return (np.clip(cropped, 0, 1) * np.float32(255.5)).astype(np.uint8)


@lru_cache(maxsize=16)
def _crop_positions(size: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Lower and upper source index and the upper one's share, each (size,)."""
    one, span = np.float32(1), np.float32(size - 1)
    side = np.sqrt(CROP_AREA)
    start = (one - side) / np.float32(2)
    step = ((start + side) - start) * span / span
    position = start * span + np.arange(size, dtype=np.float32) * step
    low = np.floor(position)
    return low.astype(np.int64), np.ceil(position).astype(np.int64), position - low
