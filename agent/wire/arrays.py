"""Numpy arrays to bytes and back, with every claim of the sender checked first.

Pickle and object arrays are refused in both directions: decoding bytes from outside must never run
code. Non-finite floats are refused on decoding: no number on the wire has a use for NaN.
"""

from __future__ import annotations

import math
import reprlib
from typing import Any

import numpy as np

from agent.wire.errors import WireError

DTYPES = ("|b1", "|u1", "<u2", "<i4", "<i8", "<f4", "<f8")
MAX_DIMS = 8


def brief(value: object) -> str:
    """`repr` for error messages, bounded in length and depth whatever a peer has sent."""
    return reprlib.repr(value)[:200]


def array_bytes(array: np.ndarray) -> memoryview:
    """The array's bytes in C order; copies only if it is not contiguous."""
    if array.dtype.str not in DTYPES:
        raise WireError(
            "bad_array", f"dtype {array.dtype.str!r} cannot travel, use one of {DTYPES}"
        )
    if array.ndim > MAX_DIMS:
        raise WireError("bad_array", f"{array.ndim} dimensions, at most {MAX_DIMS} can travel")
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8).data


def array_from(dtype: Any, shape: Any, buffer: bytes | memoryview, path: str) -> np.ndarray:
    """A read-only array over `buffer`; raises WireError("bad_array") unless everything fits."""
    if type(dtype) is not str or dtype not in DTYPES:
        raise WireError("bad_array", f"{path}: dtype {brief(dtype)}, expected one of {DTYPES}")
    if type(shape) is not list or len(shape) > MAX_DIMS:
        raise WireError("bad_array", f"{path}: shape must be a list of at most {MAX_DIMS} sizes")
    if any(type(size) is not int or size < 0 for size in shape):
        raise WireError("bad_array", f"{path}: sizes must be integers >= 0, got {brief(shape)}")
    expected_bytes = math.prod(shape) * np.dtype(dtype).itemsize
    if expected_bytes != len(buffer):
        raise WireError(
            "bad_array",
            f"{path}: {dtype}{brief(shape)} needs {expected_bytes} bytes, got {len(buffer)}",
        )
    try:
        array = np.frombuffer(buffer, np.dtype(dtype)).reshape(shape)
    except (ValueError, OverflowError) as error:  # sizes beyond the platform's index range
        raise WireError("bad_array", f"{path}: {error}") from error
    array.flags.writeable = False
    if dtype == "|b1" and np.any(array.view(np.uint8) > 1):
        raise WireError("bad_array", f"{path}: booleans must be 0 or 1")
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        raise WireError("bad_array", f"{path}: has NaN or infinite values")
    return array
