"""What the numbers and pictures in ROS 2 messages are to the bridge, and back."""

from __future__ import annotations

import time
from typing import Any

import numpy as np

from agent.process.optional import needing
from sim_bridge.robot import BridgeError
from sim_bridge.robots import cdr
from sim_bridge.robots.config import Ros2Topic

# Of a colour encoding, where red, green and blue are; of the rest of the pixel nothing is used.
CHANNELS = {"rgb8": [0, 1, 2], "bgr8": [2, 1, 0], "rgba8": [0, 1, 2], "bgra8": [2, 1, 0]}
# The numbers of a message in their order: field, field of that, and its axes.
_FIELDS = {
    cdr.POSE: (("pose", "position", "xyz"), ("pose", "orientation", "xyzw")),
    cdr.TWIST: (("twist", "linear", "xyz"), ("twist", "angular", "xyz")),
}


def numbers_of(source: Ros2Topic, message: dict[str, Any]) -> np.ndarray:
    """f64[n] of a message. Raises BridgeError for a joint it lacks, and what is not finite."""
    if source.type == cdr.JOINT_STATE:
        places = {name: k for k, name in enumerate(message["name"])}
        missing = [name for name in source.names if name not in places]
        if missing or len(message["position"]) != len(places):
            raise BridgeError(
                f"ros2: {source.topic}: expected the joints {source.names}, got {sorted(places)} "
                f"with {len(message['position'])} positions"
            )
        numbers = message["position"][[places[name] for name in source.names]]
    elif source.type == cdr.FLOATS:
        numbers = message["data"]
        if len(numbers) != source.size:
            raise BridgeError(
                f"ros2: {source.topic}: expected {source.size} numbers, got {len(numbers)}"
            )
    else:
        numbers = np.array(
            [
                message[outer][inner][axis]
                for outer, inner, axes in _FIELDS[source.type]
                for axis in axes
            ]
        )
    if not np.isfinite(numbers).all():
        raise BridgeError(f"ros2: {source.topic}: expected finite numbers, got {numbers}")
    return np.asarray(numbers, np.float64)


def command_of(command: Ros2Topic, share: np.ndarray) -> dict[str, Any]:
    """The message that commands these numbers, f64[n], stamped with the machine's time."""
    # Not with our own: other nodes compare the stamp with theirs.
    now_ns = time.time_ns()
    stamp = {"sec": now_ns // 1_000_000_000, "nanosec": now_ns % 1_000_000_000}
    if command.type == cdr.FLOATS:
        return {"data": share}
    if command.type == cdr.JOINT_STATE:
        return {"header": {"stamp": stamp}, "name": command.names, "position": share}
    message: dict[str, Any] = {"header": {"stamp": stamp, "frame_id": command.frame}}
    numbers = iter(share.tolist())
    for outer, inner, axes in _FIELDS[command.type]:
        message.setdefault(outer, {})[inner] = {axis: next(numbers) for axis in axes}
    return message


def picture_of(source: Ros2Topic, message: dict[str, Any]) -> np.ndarray:
    """u8[H, W, 3] RGB. Raises BridgeError for an encoding or a size that is not understood."""
    if source.type == cdr.COMPRESSED_IMAGE:
        return _decode_jpeg(source, message)
    encoding, height, step = message["encoding"], message["height"], message["step"]
    pixel_bytes = 4 if encoding in ("rgba8", "bgra8") else 3
    row_bytes = message["width"] * pixel_bytes
    if encoding not in CHANNELS or step < row_bytes or len(message["data"]) != height * step:
        raise BridgeError(
            f"ros2: {source.topic}: expected a picture of {', '.join(CHANNELS)}, got "
            f"'{encoding}' {message['width']}x{height} in {len(message['data'])} bytes"
        )
    rows = message["data"].reshape(height, step)[:, :row_bytes]
    pixels: np.ndarray = rows.reshape(height, message["width"], pixel_bytes)[
        :, :, CHANNELS[encoding]
    ]
    return pixels


def _decode_jpeg(source: Ros2Topic, message: dict[str, Any]) -> np.ndarray:
    with needing("ros2"):
        import simplejpeg
    try:
        pixels: np.ndarray = simplejpeg.decode_jpeg(message["data"].tobytes(), colorspace="RGB")
    except ValueError as error:
        raise BridgeError(
            f"ros2: {source.topic}: expected a JPEG, got format '{message['format']}' ({error})"
        ) from error
    return pixels


def size_of(source: Ros2Topic) -> int:
    """How many numbers are read from it or written to it."""
    sizes = {cdr.JOINT_STATE: len(source.names), cdr.FLOATS: source.size, cdr.POSE: 7, cdr.TWIST: 6}
    return sizes[source.type]
