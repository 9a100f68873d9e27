"""Camera images to pixels: the published 8-bit stages, and what the configuration may say."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from closeness import assert_near
from PIL import Image
from safetensors.torch import load_file

from agent.model.errors import ModelFolderError
from agent.model.images import (
    MAX_SIDE,
    PUBLISHED_STATISTICS,
    ImagePipeline,
    PixelStatistics,
    crop_center,
    images_to_pixels,
    jpeg_round_trip,
)
from agent.model.preprocessor import FILE_NAME, read_preprocessor
from agent.model.resample import resize_bicubic, resize_lanczos

GOLDEN = Path(__file__).parents[1] / "golden" / "openvla_oft"
SIZE = 224
TENSORFLOW = ImagePipeline(SIZE, "jpeg-lanczos-crop")


def read_stage(name: str) -> np.ndarray:
    """A golden picture as a batch of one, uint8 (1, H, W, 3)."""
    return np.asarray(Image.open(GOLDEN / name).convert("RGB"))[None]


def random_images(*shape: int, seed: int = 0) -> np.ndarray:
    """Seeded uint8 noise (*shape, 3)."""
    return np.random.default_rng(seed).integers(0, 256, (*shape, 3), dtype=np.uint8)


def gradient(height: int, width: int) -> np.ndarray:
    """A smooth picture whose channels run in different directions, uint8 (height, width, 3)."""
    y, x = np.mgrid[0 : 1 : height * 1j, 0 : 1 : width * 1j]
    return np.round(np.stack([y, x, 1 - y], axis=-1) * 255).astype(np.uint8)


def levels(a: np.ndarray, b: np.ndarray) -> int:
    """Largest difference in 8-bit levels."""
    return int(np.abs(a.astype(int) - b.astype(int)).max())


@pytest.mark.golden
@pytest.mark.parametrize(
    ("stage", "given", "expected"),
    [
        (jpeg_round_trip, "pre_0_raw256.png", "pre_1_jpeg256.png"),
        (lambda x: resize_lanczos(x, SIZE), "pre_1_jpeg256.png", "pre_2_lanczos224.png"),
        (crop_center, "pre_2_lanczos224.png", "pre_3_crop224.png"),
        (lambda x: resize_bicubic(x, SIZE), "pre_0_raw256.png", "pre_rlinf_224.png"),
    ],
    ids=["jpeg", "lanczos", "crop", "bicubic"],
)
def test_stage_is_exact(
    stage: Callable[[np.ndarray], np.ndarray], given: str, expected: str
) -> None:
    np.testing.assert_array_equal(stage(read_stage(given)), read_stage(expected))


@pytest.mark.golden
@pytest.mark.parametrize(
    ("pipeline", "expected"),
    [
        (TENSORFLOW, "pre_3_crop224.png"),
        (ImagePipeline(SIZE, "jpeg-lanczos-crop", center_crop=False), "pre_2_lanczos224.png"),
        (ImagePipeline(SIZE), "pre_rlinf_224.png"),
    ],
    ids=["crop", "no-crop", "bicubic"],
)
def test_pipeline_is_exact_from_end_to_end(pipeline: ImagePipeline, expected: str) -> None:
    raw, wanted = read_stage("pre_0_raw256.png"), read_stage(expected)
    np.testing.assert_array_equal(pipeline.prepare(raw), wanted)
    upside_down = ImagePipeline(SIZE, pipeline.kind, pipeline.center_crop, rotate_180=True)
    np.testing.assert_array_equal(upside_down.prepare(raw[:, ::-1, ::-1]), wanted)


@pytest.mark.golden
def test_leaving_a_stage_out_is_seen() -> None:
    raw, expected = read_stage("pre_0_raw256.png"), read_stage("pre_3_crop224.png")
    without_jpeg = crop_center(resize_lanczos(raw, SIZE))
    without_crop = ImagePipeline(SIZE, "jpeg-lanczos-crop", center_crop=False).prepare(raw)
    turned = ImagePipeline(SIZE, "jpeg-lanczos-crop", rotate_180=True).prepare(raw)
    crop_first = resize_lanczos(jpeg_round_trip(crop_center(raw)), SIZE)
    bicubic = ImagePipeline(SIZE).prepare(raw)
    for wrong in (without_jpeg, without_crop, turned, crop_first, bicubic):
        assert levels(wrong, expected) > 1


@pytest.mark.golden
def test_pixels_equal_the_reference_and_swapped_towers_do_not() -> None:
    statistics = read_preprocessor(GOLDEN, SIZE)
    assert statistics == PUBLISHED_STATISTICS
    cases = load_file(GOLDEN / "cases_oft.safetensors")
    image = read_stage("image_0.png")
    pixels = images_to_pixels(image, SIZE, statistics)
    assert_near(
        pixels[0, :, ::16, ::16], cases["pixel_values.0.strided"].view(6, 14, 14), share=1e-6
    )
    swapped = PixelStatistics(statistics.means[::-1], statistics.stds[::-1])
    assert (images_to_pixels(image, SIZE, swapped) - pixels).abs().max() > 0.1


def test_rotation_turns_both_axes_before_all_else() -> None:
    images = random_images(2, 20, 12)
    turned = ImagePipeline(20, rotate_180=True).prepare(images)
    np.testing.assert_array_equal(turned, ImagePipeline(20).prepare(images[:, ::-1, ::-1]))
    same_size = random_images(16, 16)
    np.testing.assert_array_equal(
        ImagePipeline(16, rotate_180=True).prepare(same_size), np.rot90(same_size, 2)
    )
    pixels = ImagePipeline(16, rotate_180=True).pixels(same_size)
    assert_near(pixels, images_to_pixels(same_size, 16).flip(-1, -2), share=1e-6)


def test_images_at_the_models_size_are_cropped_but_not_coded() -> None:
    images = random_images(3, 32, 32)
    np.testing.assert_array_equal(ImagePipeline(32).prepare(images), images)
    uncropped = ImagePipeline(32, "jpeg-lanczos-crop", center_crop=False)
    np.testing.assert_array_equal(uncropped.prepare(images), images)
    cropped = ImagePipeline(32, "jpeg-lanczos-crop").prepare(images)
    np.testing.assert_array_equal(cropped, crop_center(images))


@pytest.mark.parametrize("kind", ["bicubic", "jpeg-lanczos-crop"])
@pytest.mark.parametrize("height_width", [(48, 48), (30, 64), (16, 80), (200, 17)])
def test_batch_equals_its_images_one_by_one(kind: Any, height_width: tuple[int, int]) -> None:
    pipeline = ImagePipeline(32, kind)
    images = random_images(2, 3, *height_width)
    batch = pipeline.prepare(images)
    assert batch.shape == (2, 3, 32, 32, 3)
    assert batch.dtype == np.uint8
    for row in range(2):
        for column in range(3):
            alone = pipeline.prepare(images[row, column])
            np.testing.assert_array_equal(alone, batch[row, column])


@pytest.mark.parametrize("height_width", [(48, 48), (20, 80), (32, 7)])
def test_resizing_and_cropping_keep_flat_colour_and_symmetry(
    height_width: tuple[int, int],
) -> None:
    flat = np.full((1, *height_width, 3), 137, np.uint8)
    for resize in (resize_lanczos, resize_bicubic):
        np.testing.assert_array_equal(resize(flat, 32), np.full((1, 32, 32, 3), 137))
    np.testing.assert_array_equal(crop_center(resize_lanczos(flat, 32)), 137)
    images = gradient(*height_width)[None]
    straight, mirrored = resize_lanczos(images, 32), resize_lanczos(images[:, :, ::-1], 32)
    assert levels(straight, mirrored[:, :, ::-1]) <= 1


def test_crop_keeps_the_square_root_of_nine_tenths_of_each_side() -> None:
    side = 101
    ramp = np.broadcast_to(np.arange(side, dtype=np.uint8)[None, None, :, None], (1, side, side, 3))
    cropped = crop_center(ramp)[0, 0, :, 0].astype(float)
    margin = (1 - 0.9**0.5) / 2 * (side - 1)
    assert abs(cropped[0] - margin) <= 1
    assert abs(cropped[-1] - (side - 1 - margin)) <= 1


def test_cameras_keep_their_order_whatever_their_sizes() -> None:
    pipeline = ImagePipeline(32, "jpeg-lanczos-crop")
    front, wrist = random_images(2, 64, 48, seed=1), random_images(2, 20, 20, seed=2)
    pixels = pipeline.camera_pixels([front, wrist])
    assert pixels.shape == (2, 2, 6, 32, 32)
    torch.testing.assert_close(pixels[:, 0], pipeline.pixels(front), atol=0, rtol=0)
    torch.testing.assert_close(pixels[:, 1], pipeline.pixels(wrist), atol=0, rtol=0)
    swapped = pipeline.camera_pixels([wrist, front])
    torch.testing.assert_close(swapped.flip(1), pixels, atol=0, rtol=0)
    assert (swapped - pixels).abs().max() > 0.1


def test_normalisation_follows_the_file(tmp_path: Path) -> None:
    values = golden_preprocessor()
    values["means"] = [[0.1, 0.2, 0.3], [0.4, 0.5, 0.6]]
    values["stds"] = [[0.5, 0.25, 0.2], [0.4, 0.3, 0.1]]
    del values["tvf_normalize_params"]
    statistics = read_preprocessor(write_preprocessor(tmp_path, values), SIZE)
    images = random_images(2, 8, 8)
    pixels = images_to_pixels(images, 8, statistics).numpy()
    for tower in range(2):
        for channel in range(3):
            mean, std = values["means"][tower][channel], values["stds"][tower][channel]
            expected = (images[..., channel] / 255 - mean) / std
            assert_near(pixels[:, 3 * tower + channel], expected, share=1e-6)


def golden_preprocessor() -> dict[str, Any]:
    """The published layout of preprocessor_config.json at 224 pixels."""
    values: dict[str, Any] = json.loads((GOLDEN / FILE_NAME).read_text(encoding="utf-8"))
    return values


def write_preprocessor(folder: Path, values: object) -> Path:
    """The folder, now with this preprocessor_config.json."""
    (folder / FILE_NAME).write_text(json.dumps(values), encoding="utf-8")
    return folder


def test_folder_without_the_file_has_the_published_statistics(tmp_path: Path) -> None:
    assert read_preprocessor(tmp_path, 64) == PUBLISHED_STATISTICS


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("image_resize_strategy", "letterbox"),
        ("use_fused_vision_backbone", False),
        ("input_sizes", [[3, 384, 384]] * 2),
        ("input_sizes", [[SIZE, SIZE, 3]] * 2),
        ("input_sizes", [[3, SIZE, SIZE]]),
        ("image_processor_type", "CLIPImageProcessor"),
        ("interpolations", ["bicubic", "bilinear"]),
        ("tvf_do_letterbox", True),
        ("tvf_crop_params", [{"output_size": [200, 200]}] * 2),
        ("tvf_resize_params", [{"antialias": False, "interpolation": 3, "size": [224, 224]}] * 2),
        ("means", [[0.5, 0.5, 0.5]]),
        ("means", [[124, 116, 104], [128, 128, 128]]),
        ("means", [[0.5, 0.5, float("nan")], [0.5] * 3]),
        ("means", "imagenet"),
        ("stds", [[0.5, 0.5, 0.5], [0.5, 0.5, 0]]),
        ("stds", [[0.5, 0.5, True], [0.5, 0.5, 0.5]]),
        ("tvf_normalize_params", [{"mean": [0.5] * 3, "std": [0.5] * 3}] * 2),
        ("tvf_normalize_params", {"mean": [0.5] * 3}),
    ],
)
def test_preprocessor_that_we_would_not_follow_is_refused(
    tmp_path: Path, name: str, value: object
) -> None:
    folder = write_preprocessor(tmp_path, {**golden_preprocessor(), name: value})
    with pytest.raises(ModelFolderError, match=rf"{name}.*expected .* got .*; copy this file"):
        read_preprocessor(folder, SIZE)


@pytest.mark.parametrize(
    "name", ["image_resize_strategy", "use_fused_vision_backbone", "input_sizes", "means", "stds"]
)
def test_preprocessor_must_state_what_has_another_default(tmp_path: Path, name: str) -> None:
    values = golden_preprocessor()
    del values[name]
    with pytest.raises(ModelFolderError, match=rf"{name}: expected .* got None"):
        read_preprocessor(write_preprocessor(tmp_path, values), SIZE)


def test_preprocessor_disagreeing_with_the_config_is_refused(tmp_path: Path) -> None:
    folder = write_preprocessor(tmp_path, golden_preprocessor())
    with pytest.raises(ModelFolderError, match=r"input_sizes: expected .*384"):
        read_preprocessor(folder, 384)


@pytest.mark.parametrize("content", [b'{"means": [', b"[1]", b"\xff\xfe\x00", b"null"])
def test_corrupt_preprocessor_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / FILE_NAME).write_bytes(content)
    with pytest.raises(ModelFolderError, match=rf"{FILE_NAME}.*copy this file"):
        read_preprocessor(tmp_path, SIZE)


@pytest.mark.parametrize(
    "images",
    [
        np.zeros((8, 8, 3), np.float32),
        np.zeros((8, 8, 4), np.uint8),
        np.zeros((3, 8, 8), np.uint8),
        np.zeros((8, 3), np.uint8),
        np.zeros((0, 8, 8, 3), np.uint8),
        np.zeros((8, 0, 3), np.uint8),
        np.zeros((1, MAX_SIDE + 1, 3), np.uint8),
    ],
    ids=["float", "alpha", "channels-first", "flat", "no-image", "no-column", "too-wide"],
)
def test_bad_images_are_refused(images: np.ndarray) -> None:
    with pytest.raises(ValueError, match=r"images: expected .* got .*: (send|scale)"):
        TENSORFLOW.prepare(images)


def test_impossible_pipelines_are_refused() -> None:
    with pytest.raises(ValueError, match="image_pipeline: expected one of"):
        ImagePipeline(SIZE, "lanczos")  # type: ignore[arg-type]
    for size in (0, 1, MAX_SIDE + 1):
        with pytest.raises(ValueError, match="image size: expected"):
            ImagePipeline(size)
