"""Perturbations of what is seen: camera, lighting, the surface's texture, noise on the images.

Physics never reads what they change.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from sim_bridge.perturb.axis import Axis, Change, unit_vector

CAMERA_TURN_RAD = 0.05
LIGHT_FACTOR = 0.6  # a light is dimmed to 1 / (1 + this), or brightened as much
LIGHT_TINT = 0.25  # by which its three colours differ
LIGHT_TURN_RAD = 0.5
SURFACE_TINT = 0.5  # by which a colour of the surface is darkened
NOISE_SHARE = 0.3  # of the picture that is laid over: RL4VLA's weak one; its strong one is 0.5
NOISE_MOST = 0.9
NOISE_CELLS = 8  # a side


@dataclass(frozen=True)
class Stage:
    """What of a compiled model can look different.

    camera: the third-person one's name. camera_shift_m: its standard displacement. surfaces: shapes
    that the things stand on. materials: that a surface can be made of instead of its own.
    """

    mujoco: Any
    model: Any
    camera: str
    camera_shift_m: float
    surfaces: tuple[int, ...]
    materials: tuple[int, ...]


class Camera(Axis):
    """The third-person camera is displaced and turned, each by half to all of its largest."""

    def __init__(self, strength: float, stage: Stage) -> None:
        super().__init__(strength)
        self._stage = stage

    def start(self, rng: np.random.Generator) -> list[Change]:
        """Draws its pose."""
        model, mujoco = self._stage.model, self._stage.mujoco
        camera = model.camera(self._stage.camera).id
        sizes = self.strength * rng.uniform(0.5, 1.0, 2)
        shift_m = unit_vector(rng, 3) * sizes[0] * self._stage.camera_shift_m
        turn, quat = np.empty(4), np.empty(4)
        mujoco.mju_axisAngle2Quat(turn, unit_vector(rng, 3), sizes[1] * CAMERA_TURN_RAD)
        mujoco.mju_mulQuat(quat, turn, model.cam_quat[camera])
        return [
            Change(model.cam_pos, camera, model.cam_pos[camera] + shift_m),
            Change(model.cam_quat, camera, quat),
        ]


class Lighting(Axis):
    """Every light is dimmed or brightened, tinted, and shines from elsewhere."""

    def __init__(self, strength: float, stage: Stage) -> None:
        super().__init__(strength)
        self._stage = stage

    def start(self, rng: np.random.Generator) -> list[Change]:
        """Draws one brightness and tint for all lights, and a turn."""
        model, mujoco = self._stage.model, self._stage.mujoco
        size = LIGHT_FACTOR * self.strength * rng.uniform(0.5, 1.0)
        factor = (1.0 + size) ** rng.choice([-1.0, 1.0])
        colour = factor * (1.0 + LIGHT_TINT * self.strength * rng.uniform(-1.0, 1.0, 3))
        colour = np.maximum(colour, 0.05)
        turn = np.empty(4)
        angle_rad = LIGHT_TURN_RAD * self.strength * rng.uniform(0.5, 1.0)
        mujoco.mju_axisAngle2Quat(turn, unit_vector(rng, 3), min(angle_rad, 1.0))
        changes = []
        for light in range(model.nlight):
            direction = np.empty(3)
            mujoco.mju_rotVecQuat(direction, model.light_dir[light], turn)
            changes += [
                Change(model.light_diffuse, light, model.light_diffuse[light] * colour),
                Change(model.light_dir, light, direction),
            ]
        for part in (model.vis.headlight.diffuse, model.vis.headlight.ambient):
            changes.append(Change(part, slice(None), part * colour))
        return changes


class Texture(Axis):
    """The surface is of another material of the scene where there is one, and of another tint."""

    def __init__(self, strength: float, stage: Stage) -> None:
        super().__init__(strength)
        self._stage = stage

    def start(self, rng: np.random.Generator) -> list[Change]:
        """Draws material and tint."""
        model = self._stage.model
        tint = 1.0 - min(0.9, SURFACE_TINT * self.strength) * rng.uniform(0.0, 1.0, 3)
        tint[rng.integers(3)] = 1.0
        pick = rng.random()
        changes = []
        for geom in self._stage.surfaces:
            others = [each for each in self._stage.materials if each != model.geom_matid[geom]]
            if others:
                material = others[int(pick * len(others))]
                changes.append(Change(model.geom_matid, geom, material))
            changes.append(Change(model.geom_rgba, geom, [*tint, 1.0]))
        return changes


class Noise(Axis):
    """A random pattern is laid over every image, another one for every image."""

    def see(self, images: dict[str, np.ndarray], rng: np.random.Generator) -> None:
        """Mixes in the pattern, its cells blurred into each other."""
        share = min(NOISE_MOST, NOISE_SHARE * self.strength)
        for camera in sorted(images):
            image = images[camera]
            cells = rng.uniform(0.0, 255.0, (NOISE_CELLS, NOISE_CELLS, 3))
            rows, columns = (_between(cells.shape[0], side) for side in image.shape[:2])
            pattern = np.einsum("hi,wj,ijc->hwc", rows, columns, cells)
            mixed = (1.0 - share) * image + share * pattern
            images[camera] = np.rint(mixed).astype(np.uint8)


def _between(cells: int, pixels: int) -> np.ndarray:
    """Linear interpolation of `cells` values over `pixels`, f64[pixels, cells]."""
    at = np.linspace(0.0, cells - 1.0, pixels)
    return np.maximum(0.0, 1.0 - np.abs(at[:, None] - np.arange(cells)))
