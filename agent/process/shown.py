"""Text from outside, made harmless before a terminal, a log or a page shows it.

A client's name, a reason, a file's attribute or a line of another program may hold control
characters that move a cursor, forge a line of a log, or turn the reading direction around.
"""

from __future__ import annotations

import unicodedata

MAX_CHARS = 200
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


def shown(text: object, max_chars: int = MAX_CHARS) -> str:
    """Return `printable` text in quotes, for a message in which it must be told from the rest."""
    inner = printable(text, max_chars)
    quote = '"' if "'" in inner and '"' not in inner else "'"
    return f"{quote}{inner}{quote}"


def _escape(letter: str) -> str:
    if letter.isascii():
        return letter if letter.isprintable() else repr(letter)[1:-1]
    return repr(letter)[1:-1] if unicodedata.category(letter) in _UNSHOWN else letter
