"""Standard input, output and error as a program needs them, whatever it was started with."""

from __future__ import annotations

import os
import sys
from io import TextIOWrapper

_MODES = {"stdin": (0, "r"), "stdout": (1, "w"), "stderr": (2, "w")}


def prepare_streams() -> None:
    """Open those that are closed to nowhere, and let no letter be one that cannot be printed.

    Where `>&-` closed descriptor 1, the next file that the program opens would get its number,
    and what is printed would be written into that.
    """
    opened = os.open(os.devnull, os.O_RDWR)
    while opened <= max(number for number, _ in _MODES.values()):
        os.set_inheritable(opened, True)
        opened = os.open(os.devnull, os.O_RDWR)
    os.close(opened)
    for name, (number, mode) in _MODES.items():
        stream = getattr(sys, name)
        if stream is None:
            nowhere = open(number, mode, errors="backslashreplace", closefd=False)  # noqa: SIM115
            setattr(sys, name, nowhere)
        elif mode == "w" and isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
