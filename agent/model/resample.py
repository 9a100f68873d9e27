"""Antialiased resizing of 8-bit images, the same to the last bit on every processor.

Server and learner prepare pictures on different machines and must see the same pixels. So no sum
here is left to a library: each is taken tap after tap, in float32, with an explicit rounding. The
order of taps and roundings is that of the code which prepared the published checkpoints' images:
TensorFlow's ScaleAndTranslate, and torchvision as built for processors with AVX2 (its build for
processors without differs by one level in some 0.1% of values, where a sum is nearly a half).
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

LANCZOS_RADIUS = np.float32(3)
CUBIC_RADIUS = np.float32(2)
VECTOR = 4
"""Taps whose products torchvision forms at once; those left over it multiplies and adds fused."""
BLOCK = 1024
"""Columns that are resampled at a time, so that their sums stay in the processor's cache."""


@dataclass(frozen=True)
class Taps:
    """What R output pixels of one axis are the sums of: equally many input pixels each.

    Args:
        outputs: int64 (R,), the output pixels.
        sources: int64 (T, R), their input pixels in the order of summation.
        weights: float32 (T, R, 1).
        plain: how many taps are rounded twice, after the product and after the sum; those behind
            are rounded once (a fused multiply-add).
    """

    outputs: np.ndarray
    sources: np.ndarray
    weights: np.ndarray
    plain: int

    def apply(self, lines: np.ndarray) -> np.ndarray:
        """Weighted sums of lines: float32 (size_in, N) to (R, N)."""
        total = lines[self.sources[0]] * self.weights[0]
        for source, weight in zip(
            self.sources[1 : self.plain], self.weights[1 : self.plain], strict=True
        ):
            term = lines[source]
            term *= weight
            total += term
        for source, weight in zip(
            self.sources[self.plain :], self.weights[self.plain :], strict=True
        ):
            total = fused_add(lines[source], weight, total)
        return total


def resize_bicubic(images: np.ndarray, size: int) -> np.ndarray:
    """torchvision's antialiased bicubic of 8-bit images: uint8 (B, H, W, 3) to (B, size, size, 3).

    Its float path: columns first, then rows, then rounded and clipped.
    """
    resized = np.empty((len(images), size, size, 3), np.uint8)
    for image, result in zip(images, resized, strict=True):
        wide = _resample_columns(image, size, _bicubic_taps)
        result[...] = _to_levels(_resample_rows(wide, size, _bicubic_taps))
    return resized


def resize_lanczos(images: np.ndarray, size: int) -> np.ndarray:
    """TensorFlow's antialiased lanczos3, rounded and clipped: (B, H, W, 3) to (B, size, size, 3).

    Rows first, then columns.
    """
    resized = np.empty((len(images), size, size, 3), np.uint8)
    for image, result in zip(images, resized, strict=True):
        high = _resample_rows(image, size, _lanczos_taps)
        result[...] = _to_levels(_resample_columns(high, size, _lanczos_taps))
    return resized


def fused_add(factor: np.ndarray, weight: np.ndarray, total: np.ndarray) -> np.ndarray:
    """Return factor * weight + total, rounded once, in float32.

    float64 holds the product of two float32 exactly, so a processor's own fused multiply-add
    changes nothing here, and neither does its absence.
    """
    term = np.multiply(factor, weight, dtype=np.float64)
    term += total
    return term.astype(np.float32)


def _resample_rows(
    image: np.ndarray, size: int, taps_of: Callable[[int, int], list[Taps]]
) -> np.ndarray:
    """Resample the first axis: (H, W, 3) to float32 (size, W, 3)."""
    height, width, channels = image.shape
    lines = image.astype(np.float32).reshape(height, -1)
    resampled = np.empty((size, lines.shape[1]), np.float32)
    for begin in range(0, lines.shape[1], BLOCK):
        block = lines[:, begin : begin + BLOCK]
        for taps in taps_of(height, size):
            resampled[taps.outputs, begin : begin + BLOCK] = taps.apply(block)
    return resampled.reshape(size, width, channels)


def _resample_columns(
    image: np.ndarray, size: int, taps_of: Callable[[int, int], list[Taps]]
) -> np.ndarray:
    """Resample the second axis: (H, W, 3) to float32 (H, size, 3)."""
    # A tap of the first axis reads whole lines of memory, one of the second three values.
    turned = np.ascontiguousarray(image.swapaxes(0, 1))
    return _resample_rows(turned, size, taps_of).swapaxes(0, 1)


def _to_levels(values: np.ndarray) -> np.ndarray:
    return np.clip(np.rint(values), 0, 255).astype(np.uint8)


@lru_cache(maxsize=16)
def _bicubic_taps(size_in: int, size_out: int) -> list[Taps]:
    """Keys' cubic (a = -0.5), stretched when the image shrinks, as ATen computes its weights."""
    scale = np.float32(size_in) / np.float32(size_out)
    stretch = max(scale, np.float32(1))
    centers = (np.float64(scale) * (np.arange(size_out) + 0.5)).astype(np.float32)
    reach = CUBIC_RADIUS * stretch
    first = np.maximum(((centers - reach).astype(np.float64) + 0.5).astype(np.int64), 0)
    end = np.minimum(((centers + reach).astype(np.float64) + 0.5).astype(np.int64), size_in)
    sources = first[:, None] + np.arange((end - first).max())
    offsets = (sources.astype(np.float32) - centers[:, None]).astype(np.float64) + 0.5
    inverse = np.float64(np.float32(1) / stretch)
    weights = _cubic_kernel(np.abs((offsets * inverse).astype(np.float32)))
    counts = end - first
    return _group_taps(sources, weights / _total(weights, counts), counts, VECTOR)


def _cubic_kernel(x: np.ndarray) -> np.ndarray:
    """Two cubic pieces on |x| < 1 and |x| < 2, by Horner's rule, each step rounded once."""

    def step(value: np.ndarray, constant: float) -> np.ndarray:
        return fused_add(value, x, np.full_like(x, constant))

    near = step(step(np.full_like(x, 1.5), -2.5) * x, 1)
    far = step(step(step(np.full_like(x, -0.5), 2.5), -4), 2)
    return np.where(x < 1, near, np.where(x < 2, far, np.float32(0)))


@lru_cache(maxsize=16)
def _lanczos_taps(size_in: int, size_out: int) -> list[Taps]:
    """TensorFlow's ScaleAndTranslate: lanczos3, stretched when the image shrinks."""
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
    counts = last - first + 1
    return _group_taps(sources, weights * (one / _total(weights, counts)), counts, 1)


def _lanczos_kernel(x: np.ndarray) -> np.ndarray:
    """sinc(x) sinc(x / 3) for |x| <= 3, in float32 with correctly rounded sines."""

    def sine(angle: np.ndarray) -> np.ndarray:
        return np.sin(angle.astype(np.float64)).astype(np.float32)

    pi, radius = np.float32(np.pi), LANCZOS_RADIUS
    inside = np.maximum(x, np.float32(1e-3))
    value = radius * sine(pi * inside) * sine(pi * inside / radius) / (pi * pi * inside * inside)
    value = np.where(x <= np.float32(1e-3), np.float32(1), value)
    return np.where(x > radius, np.float32(0), value)


def _total(weights: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Sum each row's first `counts` weights in their order: float32 (size_out, 1)."""
    total = np.zeros(len(weights), np.float32)
    for tap in range(weights.shape[1]):
        total += np.where(tap < counts, weights[:, tap], np.float32(0))
    return total[:, None]


def _group_taps(
    sources: np.ndarray, weights: np.ndarray, counts: np.ndarray, vector: int
) -> list[Taps]:
    """Put output pixels with equally many taps together.

    Behind the first tap, whole groups of `vector` taps are rounded twice, the rest once.
    """
    groups = []
    for count in np.unique(counts).tolist():
        (outputs,) = np.nonzero(counts == count)
        groups.append(
            Taps(
                outputs,
                np.ascontiguousarray(sources[outputs, :count].T),
                np.ascontiguousarray(weights[outputs, :count].T)[:, :, None],
                plain=1 + (count - 1) // vector * vector,
            )
        )
    return groups
