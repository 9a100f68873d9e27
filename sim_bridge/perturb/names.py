"""Which perturbations a suite's name asks for, and where their random draws come from.

A perturbed suite is another suite: `tabletop-camera-lighting_50` is `tabletop` seen by a moved
camera and, at half the standard strength, under other light. Orders, leases and records carry that
name, so rates with and without a perturbation never mix.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass

import numpy as np

from agent.wire.errors import ConfigError

# In the order in which they are applied.
AXES = (
    "camera", "lighting", "texture", "noise", "object", "receptacle", "instruction",
    "start_pose", "position", "reposition", "distractor",
)  # fmt: skip
SEPARATOR = "-"  # no suite's own name has it
STRONGEST_PERCENT = 400

_WORD = re.compile(r"([a-z][a-z_]*?)(?:_(\d{1,3}))?")


@dataclass(frozen=True, slots=True)
class Perturbation:
    """axis: of `AXES`. strength: 1 is the standard one; each axis says what it scales."""

    axis: str
    strength: float = 1.0


def split_suite(name: str) -> tuple[str, tuple[Perturbation, ...]]:
    """The unperturbed suite of that name and what perturbs it, in the order of `AXES`.

    Raises ConfigError for an axis that does not exist or is named twice, or a strength out of
    range.
    """
    suite, *words = name.split(SEPARATOR)
    perturbations = [_parse(word) for word in words]
    axes = [each.axis for each in perturbations]
    if len(set(axes)) != len(axes):
        raise ConfigError(f"perturb: each axis once, got {axes}")
    return suite, tuple(sorted(perturbations, key=lambda each: AXES.index(each.axis)))


def _parse(word: str) -> Perturbation:
    match = _WORD.fullmatch(word)
    axis, percent = (match[1], match[2]) if match else (word, None)
    if axis not in AXES:
        raise ConfigError(
            f"perturb: no axis '{word}' (what follows a '{SEPARATOR}' in a suite's name is one); "
            f"expected NAME or NAME_PERCENT with NAME one of {', '.join(AXES)}"
        )
    if percent is None:
        return Perturbation(axis)
    if axis == "instruction" or not 1 <= int(percent) <= STRONGEST_PERCENT:
        raise ConfigError(
            f"perturb: '{word}': expected 1 to {STRONGEST_PERCENT} percent of the standard "
            "strength; an instruction is rephrased or not"
        )
    return Perturbation(axis, int(percent) / 100)


def draws(axis: str, task: str, split: str, init_state: int, step: int = -1) -> np.random.Generator:
    """The random numbers of one axis in one episode, the same whenever and wherever it is played.

    step: of a perturbation that changes from picture to picture.
    """
    name = f"{axis}/{task}/{split}/{init_state}/{step}".encode()
    return np.random.default_rng(int.from_bytes(hashlib.sha256(name).digest()[:8], "big"))
