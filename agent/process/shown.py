"""Text from outside, made harmless before a terminal, a log or a page shows it.

A client's name, a reason, a file's attribute or a line of another program may hold control
characters that move a cursor, forge a line of a log, or turn the reading direction around.
"""

from __future__ import annotations

import logging
import sys
import unicodedata
from typing import Any

from agent.process.os_errors import describe_os_error

MAX_CHARS = 200
LINE_MAX_CHARS = 4000  # of a complaint, or of a line of a log
CUT = "…"
# Controls, format characters (bidirectional marks, zero width), surrogates, private, unassigned;
# line and paragraph separators.
_UNSHOWN = frozenset({"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"})


def printable(text: object, max_chars: int = MAX_CHARS) -> str:
    """Return `text` on one line, its unprintable characters escaped, cut at `max_chars`.

    Ordinary text comes back as it is. Bytes are read as UTF-8.
    """
    if isinstance(text, bytes):
        text = text[: 4 * max_chars].decode("utf-8", "backslashreplace")
    # Cut before escaping: what comes from outside may be huge.
    raw = str(text)
    kept = "".join(map(_escape, raw[: max_chars + 1]))
    if len(kept) <= max_chars and len(raw) <= max_chars:
        return kept
    return kept[: max_chars - len(CUT)] + CUT


def fitted(text: str, max_bytes: int) -> str:
    """Return `text` cut, with a mark, to `max_bytes` of UTF-8; surrogates are escaped."""
    # Cut before encoding: what comes from outside may be huge.
    data = text[: max_bytes + 1].encode("utf-8", "backslashreplace")
    if len(data) > max_bytes:
        mark = CUT.encode()
        data = data[: max_bytes - len(mark)].decode("utf-8", "ignore").encode() + mark
    return data.decode()


def shown(text: object, max_chars: int = MAX_CHARS) -> str:
    """Return `printable` text in quotes, for a message in which it must be told from the rest."""
    inner = printable(text, max_chars)
    quote = '"' if "'" in inner and '"' not in inner else "'"
    return f"{quote}{inner}{quote}"


def _escape(letter: str) -> str:
    if letter.isascii():
        return letter if letter.isprintable() else repr(letter)[1:-1]
    return repr(letter)[1:-1] if unicodedata.category(letter) in _UNSHOWN else letter


def say(text: str) -> None:
    """Print a line of a command's answer that holds names or texts from outside."""
    print(printable(text, LINE_MAX_CHARS))


def complain(program: str, error: object) -> None:
    """Print on stderr, in one line, what `program` cannot go on with."""
    if isinstance(error, OSError):
        error = describe_os_error(error)
    line = printable(" ".join(str(error).split()), LINE_MAX_CHARS)
    print(f"{program}: {line}", file=sys.stderr, flush=True)


def start_logging(level: int = logging.INFO) -> None:
    """Have the process log to stderr, whatever text is logged, a line for each record."""
    handler = logging.StreamHandler()
    handler.setFormatter(_Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    logging.basicConfig(handlers=[handler])  # nothing where there is one already
    logging.getLogger().setLevel(level)


class _Formatter(logging.Formatter):
    """A record's message cannot end its line, nor can a traceback's move the cursor."""

    def formatMessage(self, record: logging.LogRecord) -> str:
        return printable(super().formatMessage(record), LINE_MAX_CHARS)

    def formatException(self, ei: Any) -> str:
        return _printable_lines(super().formatException(ei))

    def formatStack(self, stack_info: str) -> str:
        return _printable_lines(super().formatStack(stack_info))


def _printable_lines(text: str) -> str:
    return "\n".join(printable(line, LINE_MAX_CHARS) for line in text.split("\n"))
