"""The axes of LIBERO's suites."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, ClassVar

import numpy as np

from sim_bridge.libero.body import LiberoBody
from sim_bridge.libero.env import LiberoEnv
from sim_bridge.perturb import libero_moves as moves
from sim_bridge.perturb.axis import Axis, Change
from sim_bridge.perturb.libero_table import Table
from sim_bridge.perturb.names import Perturbation
from sim_bridge.perturb.vision import Camera, Lighting, Stage, Texture
from sim_bridge.robot import Body, BridgeError, Suite

CAMERA_SHIFT_M = 0.06  # the largest of the continual-learning paper's shifted cameras
# What the things stand on: a table of the arena, or the mesh of a furnished scene, or the floor.
SURFACE_GEOM = "table_visual"
SURFACE_MATERIALS = ("living_room_table", "short_coffee_table", "desk")
DISTRACTOR_COUNT = 2
DISTRACTOR_HALF_M = (0.015, 0.030)
_VISION = {"camera": Camera, "lighting": Lighting, "texture": Texture}
_MOVES: dict[str, Callable[[float, LiberoEnv], Axis]] = {
    "start_pose": moves.StartPose,
    "position": moves.Position,
    "reposition": moves.Reposition,
}


class LiberoKit:
    """The axes that leave LIBERO's compiled scenes and published init states what they are."""

    axes = (*_VISION, *_MOVES, "distractor")
    reasons: ClassVar[dict[str, str]] = {
        "object": "its objects are meshes; LIBERO-PRO's suites NAME_object have others",
        "receptacle": "its places are meshes; LIBERO-PRO's suites NAME_object have other things",
    }

    def prepare(self, suite: Suite, perturbations: tuple[Perturbation, ...]) -> None:
        """Every body compiles its own scene, and nothing is added."""

    def applies(self, axis: str, task: str) -> bool:
        """Whether there is something to move shows in the init state."""
        return True

    def make(self, perturbation: Perturbation, body: Body, task: str) -> Axis:
        """The axis on this body."""
        assert isinstance(body, LiberoBody)
        if perturbation.axis in _MOVES:
            return _MOVES[perturbation.axis](perturbation.strength, body.env)
        if perturbation.axis == "distractor":
            return Distractor(perturbation.strength, body)
        return _VISION[perturbation.axis](perturbation.strength, _stage(body.env))


class Distractor(Axis):
    """Plain blocks, cylinders and balls are seen on the table; they cannot be touched.

    Real ones would need other scenes, which the published init states do not fit.
    """

    def __init__(self, strength: float, body: LiberoBody) -> None:
        super().__init__(strength)
        self._body = body
        self._things: list[tuple[int, np.ndarray, np.ndarray, np.ndarray]] = []

    def start(self, rng: np.random.Generator) -> list[Change]:
        """Draws shapes, colours and places. Raises BridgeError where there is no room."""
        env = self._body.env
        kinds, table = env.mujoco.mjtGeom, Table(env)
        shapes = (kinds.mjGEOM_BOX, kinds.mjGEOM_CYLINDER, kinds.mjGEOM_SPHERE)
        self._things = []
        taken: list[np.ndarray] = []
        for _ in range(max(1, round(DISTRACTOR_COUNT * self.strength))):
            half_m = float(rng.uniform(*DISTRACTOR_HALF_M))
            xy = table.find_room(rng, half_m, taken)
            if xy is None:
                break
            taken.append(np.array([*(xy - half_m), *(xy + half_m)]))
            position = np.array([*xy, table.height_m + half_m])
            colour = np.array([*rng.uniform(0.05, 0.95, 3), 1.0])
            shape = int(shapes[rng.integers(len(shapes))])
            self._things.append((shape, np.full(3, half_m), position, colour))
        if not taken:
            raise BridgeError(f"distractor: no room in this init state of {env.task.slug}")
        return []

    @contextmanager
    def showing(self) -> Iterator[None]:
        """Has the renderer draw them."""
        self._body.renderer.decorate = self._draw
        try:
            yield
        finally:
            self._body.renderer.decorate = None

    def _draw(self, scene: Any) -> None:
        for shape, size, position, colour in self._things:
            geom = scene.geoms[scene.ngeom]
            self._body.env.mujoco.mjv_initGeom(
                geom, shape, size, position, np.eye(3).ravel(), colour.astype(np.float32)
            )
            scene.ngeom += 1


def _stage(env: LiberoEnv) -> Stage:
    model = env.model
    geoms = {model.geom(index).name: index for index in range(model.ngeom)}
    materials = {model.material(index).name: index for index in range(model.nmat)}
    if SURFACE_GEOM in geoms:
        surfaces = [geoms[SURFACE_GEOM]]
        of_scene = set(model.geom_matid[model.geom_bodyid <= model.geom_bodyid[surfaces[0]]])
        others = sorted(int(each) for each in of_scene if each >= 0)
    else:
        named = [materials[name] for name in SURFACE_MATERIALS if name in materials]
        surfaces = np.flatnonzero(np.isin(model.geom_matid, named)).tolist() or [geoms["floor"]]
        others = []  # a mesh has a material drawn for it; a floor's scene has no other
    return Stage(
        mujoco=env.mujoco,
        model=model,
        camera="agentview",
        camera_shift_m=CAMERA_SHIFT_M,
        surfaces=tuple(surfaces),
        materials=tuple(others),
    )
