"""Camera images to model pixels, as the published evaluations prepare them.

Every resampling here repeats the arithmetic of the library that prepared the training and
evaluation images (TensorFlow's JPEG codec, antialiased lanczos3 and crop_and_resize; torchvision's
antialiased bicubic), in float32 and in the same order, so that its 8-bit results are equal.
"""

import io
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal, get_args

import numpy as np
import simplejpeg
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

PipelineKind = Literal["bicubic", "jpeg-lanczos-crop"]
MAX_SIDE = 4096
"""Largest accepted image side [pixels]; bounds the memory of one resize."""
JPEG_QUALITY = 95
CHROMA_HALVED = 2
"""Pillow's name for 4:2:0 chroma subsampling."""
LANCZOS_RADIUS = np.float32(3)
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


def resize_bicubic(images: np.ndarray, size: int) -> np.ndarray:
    """torchvision's antialiased bicubic of 8-bit images: uint8 (B, H, W, 3) to (B, size, size, 3).

    The float result is rounded and clipped, which equals the 8-bit fixed-point one.
    """
    pixels = torch.from_numpy(np.moveaxis(images, -1, 1).astype(np.float32))
    pixels = F.interpolate(pixels, (size, size), mode="bicubic", antialias=True)
    return np.moveaxis(pixels.round().clamp(0, 255).to(torch.uint8).numpy(), 1, -1)


def jpeg_round_trip(images: np.ndarray) -> np.ndarray:
    """TensorFlow's encode_jpeg and decode_jpeg with default options: uint8 (B, H, W, 3) to same.

    TensorFlow encodes as Pillow does, but decodes with the fast integer DCT, which Pillow does
    not offer and which moves values by up to 11 levels.
    """
    decoded = np.empty(images.shape, np.uint8)
    for index, image in enumerate(images):
        data = io.BytesIO()
        Image.fromarray(image).save(data, "JPEG", quality=JPEG_QUALITY, subsampling=CHROMA_HALVED)
        decoded[index] = simplejpeg.decode_jpeg(
            data.getvalue(), "RGB", fastdct=True, fastupsample=False
        )
    return decoded


def resize_lanczos(images: np.ndarray, size: int) -> np.ndarray:
    """TensorFlow's antialiased lanczos3, rounded and clipped: (B, H, W, 3) to (B, size, size, 3).

    Rows first, then columns; taps are added one after the other, never as a matrix product, whose
    order of summation (and so an occasional level) would depend on the BLAS.
    """
    rows = _resample_axis(images.astype(np.float32), 1, size)
    return np.clip(np.round(_resample_axis(rows, 2, size)), 0, 255).astype(np.uint8)


def _resample_axis(images: np.ndarray, axis: int, size: int) -> np.ndarray:
    sources, weights = _lanczos_taps(images.shape[axis], size)
    shape = [1] * images.ndim
    shape[axis] = size
    resampled = np.take(images, sources[:, 0], axis) * weights[:, 0].reshape(shape)
    for tap in range(1, sources.shape[1]):
        resampled += np.take(images, sources[:, tap], axis) * weights[:, tap].reshape(shape)
    return resampled


@lru_cache(maxsize=16)
def _lanczos_taps(size_in: int, size_out: int) -> tuple[np.ndarray, np.ndarray]:
    """Source indices and float32 weights, both (size_out, taps), of TensorFlow's ScaleAndTranslate.

    Rows with fewer taps are filled with weight 0.
    """
    one, half = np.float32(1), np.float32(0.5)
    scale = one / (np.float32(size_out) / np.float32(size_in))
    stretch = max(scale, one)
    centers = (np.arange(size_out, dtype=np.float32) + half) * scale
    reach = LANCZOS_RADIUS * stretch
    first = np.clip(np.ceil(centers - reach - half), 0, size_in - 1).astype(np.int64)
    last = np.clip(np.floor(centers + reach - half), 0, size_in - 1).astype(np.int64)
    sources = first[:, None] + np.arange((last - first).max() + 1)
    offsets = sources.astype(np.float32) + half - centers[:, None]
    weights = _lanczos_kernel(np.abs(offsets * (one / stretch)))
    weights[sources > last[:, None]] = 0
    total = np.zeros(size_out, np.float32)
    for tap in range(weights.shape[1]):
        total += weights[:, tap]
    return np.minimum(sources, size_in - 1), weights * (one / total)[:, None]


def _lanczos_kernel(x: np.ndarray) -> np.ndarray:
    """sinc(x) sinc(x / 3) for |x| <= 3, in float32 with correctly rounded sines."""

    def sine(angle: np.ndarray) -> np.ndarray:
        return np.sin(angle.astype(np.float64)).astype(np.float32)

    pi, radius = np.float32(np.pi), LANCZOS_RADIUS
    inside = np.maximum(x, np.float32(1e-3))
    value = radius * sine(pi * inside) * sine(pi * inside / radius) / (pi * pi * inside * inside)
    value = np.where(x <= np.float32(1e-3), np.float32(1), value)
    return np.where(x > radius, np.float32(0), value)


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
