"""Whether two ways to compute numbers agree, as far as rounding lets them.

The tolerance is a share of the largest number that is compared: what a sum loses to rounding is a
share of its terms, and processors and numbers of threads add in different orders. Numbers are equal
to the bit only where one machine computes the same thing in the same way twice.
"""

from typing import Any

import numpy as np

FORWARD = 2e-5
"""Of float32 through a small network, in two orders of summation; 4e-6 was seen."""
REFERENCE = 5e-5
"""Of float32 through a small network, against another implementation of it; 1.5e-5 was seen."""
COMPILED = 2e-4
"""Of float32 through a small network, against code that a compiler generated for it."""
GRADIENT = 5e-4
"""Of float32 back through a small network; 6e-5 was seen."""


def difference(found: Any, expected: Any, scale: float | None = None) -> float:
    """Largest difference of two arrays or tensors of one shape, as a share of `scale`.

    Args:
        scale: of the numbers; the largest of `expected` where it is not given.
    """
    found, expected = as_array(found), as_array(expected)
    assert found.shape == expected.shape, f"shapes {found.shape} and {expected.shape}"
    if found.size == 0:
        return 0.0
    scale = float(np.abs(expected).max()) if scale is None else scale
    assert scale > 0, "zeros have no scale: say which numbers these come from"
    gap = float(np.abs(found - expected).max())
    return gap / scale if np.isfinite(gap) else np.inf


def assert_near(
    found: Any, expected: Any, share: float = FORWARD, scale: float | None = None, name: object = ""
) -> None:
    """Fail unless the `difference` is at most `share`; `name` says of what in the message."""
    gap = difference(found, expected, scale)
    assert gap <= share, f"{name} differs by {gap:.2g} of its largest number, allowed are {share:g}"


def as_array(values: Any) -> np.ndarray:
    """Numbers of any kind as float64."""
    if hasattr(values, "detach"):
        values = values.detach().cpu().double().numpy()
    return np.asarray(values, np.float64)
