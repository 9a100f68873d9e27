"""What a robot is told, in one spelling: the same task must never make two prompts.

Instructions come from settings, orders, data sets and command lines. Whoever takes one in passes it
through `clean_instruction`, so that what is recorded is what the policy was told.
"""

from __future__ import annotations

import unicodedata

from agent.process.shown import shown

MAX_CHARS = 1000
FULL_STOPS = ".…。"
"""Published prompts put the instruction into a question of their own: `... to {task}?`."""

# Letters that nobody sees and that are no format characters (category Cf) to Unicode:
# joiners, fillers and variation selectors, all "default ignorable", and the blank Braille cell.
_INVISIBLE = frozenset(
    map(
        chr,
        (
            *(0x034F, 0x115F, 0x1160, 0x17B4, 0x17B5, 0x2800, 0x3164, 0xFFA0),
            *range(0x180B, 0x1810),
            *range(0xFE00, 0xFE10),
            *range(0xE0100, 0xE01F0),
        ),
    )
)


def clean_instruction(text: str) -> str:
    """Return the one spelling of an instruction; a clean one comes back as it is.

    Invisible letters go, the rest is composed (NFC), every run of white space becomes one space,
    and the end carries neither space nor full stop.

    Raises:
        ValueError: it is empty, too long, or holds control characters; the message says which.
    """
    if len(text) > MAX_CHARS:
        raise ValueError(f"an instruction has at most {MAX_CHARS} characters, got {len(text)}")
    visible = "".join(
        letter
        for letter in text
        if letter not in _INVISIBLE and unicodedata.category(letter) != "Cf"
    )
    words = " ".join(unicodedata.normalize("NFC", visible).split())
    for letter in words:
        # White space among the control characters is gone by now.
        if unicodedata.category(letter) in ("Cc", "Cs", "Co", "Cn"):
            raise ValueError(
                f"instruction {shown(text)} holds {letter!r}, which no one can read: type it again"
            )
    cleaned = words.rstrip(" " + FULL_STOPS)
    if not any(letter.isalnum() for letter in cleaned):
        raise ValueError(
            f"instruction {shown(text)} says nothing: tell the robot what to do, "
            "e.g. 'put the red cube in the tray'"
        )
    return cleaned
