"""Recorded traces of the published loops, and the runs that are held to them."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from pages import ROOT, run_commands
from PIL import Image

from deploy.local.composition import CONFIGS

GOLDEN = ROOT / "tests" / "golden" / "libero_protocol"
CAMERAS = ("agentview", "wrist")
EPISODES, CHUNK = 3, 8
STATE_TOLERANCE = 1e-6


@dataclass(frozen=True)
class Trace:
    """One task's. What each array is: README.md of the folder."""

    suite: str
    index: int

    @property
    def stem(self) -> str:
        return f"{self.suite}_{self.index}"

    @cached_property
    def told(self) -> dict[str, Any]:
        values = json.loads((GOLDEN / f"{self.stem}.json").read_text())
        assert isinstance(values, dict)
        return values

    @property
    def slug(self) -> str:
        return str(self.told["name"]).lower()

    def arrays(self, part: str = "") -> dict[str, np.ndarray]:
        """part: "", crl or success."""
        name = f"{self.stem}.{part}.npz" if part else f"{self.stem}.npz"
        with np.load(GOLDEN / name) as file:
            return dict(file)

    def picture(self, episode: int, step: int, camera: str, stage: str) -> np.ndarray | None:
        """u8[H, W, 3], or None where none was kept."""
        path = GOLDEN / f"{self.stem}.e{episode}.t{step}.{camera}.{stage}.png"
        return np.asarray(Image.open(path).convert("RGB")) if path.exists() else None


TRACES = [
    Trace("libero_spatial", 0),
    Trace("libero_spatial", 3),
    Trace("libero_object", 0),
    Trace("libero_10", 2),
]
CRL_TRACES = [TRACES[0], TRACES[3]]
SEVEN_B = sorted(path.stem for path in (CONFIGS / "model").glob("*-7b.yaml"))
PRESETS = sorted(path.stem for path in (CONFIGS / "preset").glob("*.yaml"))


def needs_folder(settings: list[str]) -> bool:
    """Whether the chosen model is none that comes with the package."""
    return any(word.startswith("preset=") or word.endswith("-7b") for word in settings)


def seven_b_settings() -> list[list[str]]:
    """The settings of every shipped way to run a 7B model on LIBERO, but for its folder."""
    protocols = ([], ["suite/protocol=openvla", "budget=eval"], ["suite/protocol=vlacrl"])
    runs = [[f"preset={name}"] for name in PRESETS]
    for model, trace in zip(SEVEN_B, TRACES, strict=True):
        given = [f"suite={trace.suite}", f"model={model}"]
        runs += [[*given, *protocol] for protocol in protocols]
    for words in run_commands():
        if any(word.startswith("suite=libero") for word in words) and needs_folder(words):
            runs.append([word for word in words if not word.startswith("model.model_dir=")])
    return [list(each) for each in dict.fromkeys(map(tuple, runs))]
