"""Prints the packages that pyproject.toml asks for: those of the base, and of the extras named.

For image layers that hold packages but not our code: python3 requirements.py server report
"""

import sys
import tomllib
from pathlib import Path


def requirements(pyproject: Path, extras: list[str]) -> list[str]:
    """Requirement lines, base first. Raises KeyError for an unknown extra."""
    project = tomllib.loads(pyproject.read_text())["project"]
    optional = project["optional-dependencies"]
    return [*project["dependencies"], *(line for extra in extras for line in optional[extra])]


if __name__ == "__main__":
    print("\n".join(requirements(Path("pyproject.toml"), sys.argv[1:])))
