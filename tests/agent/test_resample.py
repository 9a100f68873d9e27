"""Resizing: what torchvision computes, and the same bits on every processor."""

import hashlib
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from patience import HANG_S

from agent.model.images import PUBLISHED_STATISTICS, crop_center
from agent.model.resample import Taps, fused_add, resize_bicubic, resize_lanczos

HERE = Path(__file__).parent
SHAPES = [(256, 256, 224), (64, 64, 48), (30, 100, 64), (20, 17, 32), (480, 640, 224)]
"""Height, width and the side that they are brought to [pixels]."""
FINGERPRINT = "d8120bb22cafdcd65a66a64c65a0dd137029ba3622394defe6efd8fde5cc7c78"


def noise(height: int, width: int) -> np.ndarray:
    """Seeded pictures, uint8 (1, height, width, 3)."""
    return np.random.default_rng(7).integers(0, 256, (1, height, width, 3), dtype=np.uint8)


def fingerprint() -> str:
    """The digest of what the network sees of every shape, and of the stages before."""
    digest = hashlib.sha256()
    for height, width, size in SHAPES:
        for resize in (resize_bicubic, resize_lanczos):
            resized = resize(noise(height, width), size)
            cropped = crop_center(resized)
            pixels = PUBLISHED_STATISTICS.normalise(cropped)
            for stage in (resized, cropped, pixels.numpy()):
                digest.update(stage.tobytes())
    return digest.hexdigest()


def test_every_processor_gives_these_pixels() -> None:
    assert fingerprint() == FINGERPRINT, (
        "an agent and a learner on another machine would refuse each other's pictures"
    )


@pytest.mark.slow
def test_the_processors_abilities_have_no_influence() -> None:
    simd = np.show_config(mode="dicts")["SIMD Extensions"]["found"]
    path, found = os.pathsep.join(map(str, (HERE, HERE.parent, HERE.parents[1]))), set()
    code = "import test_resample as shown; print(shown.fingerprint())"
    for abilities in (
        {"ATEN_CPU_CAPABILITY": "default", "OMP_NUM_THREADS": "1"},
        {"NPY_DISABLE_CPU_FEATURES": " ".join(simd), "OMP_NUM_THREADS": "2"},
    ):
        run = subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, "PYTHONPATH": path, **abilities},
            capture_output=True, text=True, check=True, timeout=HANG_S,
        )  # fmt: skip
        found.add(run.stdout.strip())
    assert found == {FINGERPRINT}


@given(height=st.integers(1, 90), width=st.integers(1, 90), size=st.integers(2, 70))
def test_bicubic_is_torchvisions_but_for_its_roundings(height: int, width: int, size: int) -> None:
    images = noise(height, width)
    planes = torch.from_numpy(np.moveaxis(images, -1, 1).astype(np.float64))
    exact = F.interpolate(planes, (size, size), mode="bicubic", antialias=True).clamp(0, 255)
    found = np.moveaxis(resize_bicubic(images, size), -1, 1)
    # float32 places the taps to 2**-24 of the side; a level is missed only next to a half.
    assert np.abs(found - exact.numpy()).max() < 0.5 + 2e-3


def test_rows_and_columns_are_alike() -> None:
    images = noise(40, 40)
    turned = images.swapaxes(1, 2)
    for resize in (resize_bicubic, resize_lanczos):
        found = resize(images, 30).astype(int) - resize(turned, 30).swapaxes(1, 2)
        assert np.abs(found).max() <= 1


def test_fused_add_rounds_once() -> None:
    factor = np.array([1 + 2**-12], np.float32)
    total = np.float32(-(1 + 2**-11))
    assert factor * factor + total == 0, "two roundings lose what is left"
    assert fused_add(factor, factor, total) == np.float32(2**-24)


def test_taps_are_added_in_their_order() -> None:
    big = np.float32(2**24)
    lines = np.array([[big], [1], [-big]], np.float32)
    weights = np.ones((3, 1, 1), np.float32)
    for order, expected in (([0, 1, 2], 0), ([0, 2, 1], 1)):
        sources = np.array(order)[:, None]
        for plain in (1, 3):
            taps = Taps(np.array([0]), sources, weights, plain)
            assert taps.apply(lines) == expected
