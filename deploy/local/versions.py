"""The versions that a run notes beside its results."""

from __future__ import annotations

import platform
from importlib.metadata import PackageNotFoundError, version

PACKAGES = ("perennial-vla", "torch", "transformers", "peft", "numpy", "mujoco", "pyzmq")


def installed_versions() -> dict[str, str]:
    """What the run ran on."""
    found = {
        "python": platform.python_version(),
        "platform": f"{platform.system()} {platform.machine()}",
    }
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    return found
