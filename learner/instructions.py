"""What a policy is told: the task's instruction, or the same in other words.

A suite whose name has the part `instruction` (as in `tabletop-instruction`) is told in other words,
drawn for each init state. The templates were written by hand. Those for tables and drawers use no
word that the instructions themselves do not have, so that a policy with a small vocabulary can read
them; whether it understands them is what is measured.
"""

from __future__ import annotations

import hashlib
import re

from learner.config import LearnerConfig

REPHRASED = "instruction"  # the part of the suite's name

_WORDS = r"(?:(?! and ).)+?"  # of one thing or place: two deeds are one too many for a template
_WHERE = rf"(?P<where>(?:on|in|onto|into|at|to|under) {_WORDS})"
# The first pattern that the whole instruction matches; {all} is the instruction itself.
_TEMPLATES: tuple[tuple[str, tuple[str, ...]], ...] = (
    (
        rf"pick up (?P<what>.+?) and (?:place|put) it {_WHERE}",
        (
            "take {what} and put it {where}",
            "move {what} so that it ends up {where}",
            "i want {what} to be {where}",
            "put {what} {where}",
        ),
    ),
    (rf"put (?P<what>(?!both){_WORDS}) {_WHERE}", ("{where} put {what}",)),
    (
        rf"push (?P<what>{_WORDS}) onto (?P<where>{_WORDS})",
        ("onto {where} push {what}", "put {what} on {where}"),
    ),
    (
        rf"stack (?P<what>{_WORDS}) on (?P<where>{_WORDS})",
        ("put {what} on {where}", "on {where} stack {what}"),
    ),
    (r"open the (?P<what>drawer)", ("put the {what} open", "open {what}")),
    (r"close the (?P<what>drawer)", ("push the {what} in", "close {what}")),
    (rf"press (?P<what>{_WORDS})", ("push {what}", "push {what} in")),
    (
        rf"turn (?P<way>on|off) (?P<what>{_WORDS})",
        ("switch {way} {what}", "{what} should be {way}", "turn {what} {way}"),
    ),
    (
        rf"open (?P<what>{_WORDS})",
        ("pull {what} open", "{what} should be open", "please open {what}"),
    ),
    (
        rf"close (?P<what>{_WORDS})",
        ("shut {what}", "{what} should be closed", "please close {what}"),
    ),
    (r".+", ("please {all}", "your task is to {all}", "now {all}")),
)


def instruction_for(config: LearnerConfig, slug: str, split: str, init_state: int) -> str:
    """What the policy is told in an episode of task `slug`."""
    instruction = config.task(slug).instruction
    if REPHRASED not in config.suite.name.split("-")[1:]:
        return instruction
    choices = rephrasings(instruction)
    key = f"{REPHRASED}/{slug}/{split}/{init_state}".encode()
    return choices[int.from_bytes(hashlib.sha256(key).digest()[:8], "big") % len(choices)]


def rephrasings(instruction: str) -> tuple[str, ...]:
    """The same in other words; none of them is the instruction itself."""
    for pattern, templates in _TEMPLATES:
        match = re.fullmatch(pattern, instruction)
        if match:
            words = {"all": instruction, **match.groupdict()}
            return tuple(template.format(**words) for template in templates)
    raise ValueError(f"expected an instruction, got {instruction!r}")
