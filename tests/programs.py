"""Programs that tests need and Python does not bring along."""

import os
import shutil

import pytest


def find_program(name: str, package: str) -> str:
    """Path of the program; without it the test is skipped, but fails in CI."""
    found = shutil.which(name)
    if found is None:
        message = f"no {name} on PATH; on Debian: apt-get install {package}"
        if os.environ.get("CI") == "true":
            pytest.fail(message)
        pytest.skip(message)
    return found
