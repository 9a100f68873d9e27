"""What all tests share: reproducible random numbers, and one core for each worker."""

import gc
import os
import sys

import pytest
from hypothesis import settings

# Examples have no time limit: how long one takes says how busy the machine is.
settings.register_profile("local", deadline=None)
# In CI the examples are a function of the test alone: a red run is red again when repeated.
settings.register_profile("ci", deadline=None, derandomize=True)
settings.load_profile("ci" if os.environ.get("CI") == "true" else "local")

# Set before torch is imported: workers that use each other's cores are slower than one alone.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup() -> None:
    """What a test draws follows from the test, not from those that its worker had before."""
    if "torch" in sys.modules:
        sys.modules["torch"].manual_seed(0)


def pytest_collection_finish() -> None:
    """What imports have made stays to the end: the garbage collector need not look through it."""
    gc.freeze()
