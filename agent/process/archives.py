"""What numpy and the archive below it raise for a file that is no whole archive of arrays."""

from __future__ import annotations

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
