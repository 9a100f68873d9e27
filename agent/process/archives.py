"""What numpy and the archive below it raise for a file that is no whole archive of arrays."""

from __future__ import annotations

import os
import tokenize
import zipfile
import zlib

BAD_ARCHIVE = (
    OSError,
    ValueError,
    TypeError,
    KeyError,
    EOFError,
    RuntimeError,
    MemoryError,
    SyntaxError,  # these two of an array's header, which is a Python expression
    tokenize.TokenError,
    zipfile.BadZipFile,
    zlib.error,
)


def describe_bad_archive(error: BaseException, damaged: str = "is damaged or cut off") -> str:
    """What one of these says of the file, in words that follow its name.

    damaged: those for all that is neither the memory's fault nor the system's.
    """
    if isinstance(error, MemoryError):
        return "needs more memory than there is"
    if isinstance(error, OSError) and error.errno is not None:
        return f"cannot be read ({os.strerror(error.errno)})"
    return damaged
