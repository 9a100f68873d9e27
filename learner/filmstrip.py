"""A contact sheet of one episode: what the policy saw, from first to last observation."""

import io
from pathlib import Path

import numpy as np

from agent.durable import make_folder, replace_file, storage_errors
from agent.episode import Episode
from agent.process.optional import needing

FRAMES = 8
FRAME_PIXELS = 160
GAP_PIXELS = 4


def save_filmstrip(episode: Episode, cameras: list[str], path: Path) -> bool:
    """Write a PNG with one row a camera and up to 8 evenly spaced frames.

    Returns False, and writes nothing, when the episode was kept without images.

    Raises:
        PackageError: Pillow, which draws it, is missing or broken.
    """
    with needing("server"):
        from PIL import Image
    chunks = [chunk for chunk in episode.chunks if all(name in chunk.images for name in cameras)]
    if not chunks:
        return False
    picks = np.unique(np.linspace(0, len(chunks) - 1, FRAMES).round().astype(int))
    cell = FRAME_PIXELS + GAP_PIXELS
    sheet = Image.new("RGB", (cell * len(picks), cell * len(cameras)), "white")
    for row, camera in enumerate(cameras):
        for column, pick in enumerate(picks):
            frame = Image.fromarray(np.ascontiguousarray(chunks[pick].images[camera]))
            frame = frame.resize((FRAME_PIXELS, FRAME_PIXELS), Image.Resampling.LANCZOS)
            sheet.paste(frame, (column * cell, row * cell))
    picture = io.BytesIO()
    sheet.save(picture, "PNG")
    with storage_errors(path.parent):
        make_folder(path.parent)
    replace_file(path, picture.getvalue())  # one that is there is not made again, so never half
    return True
