"""The axes of the tabletop suite, and what they need in its scene."""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar

from sim_bridge.perturb import tabletop_moves as moves
from sim_bridge.perturb import tabletop_things as things
from sim_bridge.perturb.axis import Axis
from sim_bridge.perturb.names import Perturbation
from sim_bridge.perturb.vision import Camera, Lighting, Stage, Texture
from sim_bridge.robot import Body, Suite
from sim_bridge.tabletop.body import TabletopBody, TabletopSuite
from sim_bridge.tabletop.env import TabletopEnv
from sim_bridge.tabletop.scene import FREE_BODIES
from sim_bridge.tabletop.tasks import GOALS

CAMERA_SHIFT_M = 0.025  # the camera is 0.65 m from the table's middle
PATTERNS = ("checker", "gradient", "flat")
_VISION = {"camera": Camera, "lighting": Lighting, "texture": Texture}
_OTHERS: dict[str, Callable[[float, TabletopEnv], Axis]] = {
    "object": things.Object,
    "receptacle": things.Receptacle,
    "distractor": things.Distractor,
    "start_pose": moves.StartPose,
    "position": moves.Position,
    "reposition": moves.Reposition,
}


class TabletopKit:
    """Every axis has a tabletop form; some need a thing that can be moved, or a place for it."""

    axes = (*_VISION, *_OTHERS)
    reasons: ClassVar[dict[str, str]] = {}

    def prepare(self, suite: Suite, perturbations: tuple[Perturbation, ...]) -> None:
        """Adds materials and bodies that only those axes use."""
        assert isinstance(suite, TabletopSuite)
        named = {each.axis for each in perturbations}
        assets = "".join(map(_material, PATTERNS)) if "texture" in named else ""
        bodies = things.DISTRACTORS if "distractor" in named else ""
        if assets or bodies:
            suite.extend_scene(assets, bodies)

    def applies(self, axis: str, task: str) -> bool:
        """Drawer and button are where they are, and are put nowhere."""
        if axis in ("object", "receptacle", "position", "reposition"):
            return GOALS[task].subject in FREE_BODIES
        return True

    def make(self, perturbation: Perturbation, body: Body, task: str) -> Axis:
        """The axis on this body."""
        assert isinstance(body, TabletopBody)
        if perturbation.axis in _OTHERS:
            return _OTHERS[perturbation.axis](perturbation.strength, body.env)
        return _VISION[perturbation.axis](perturbation.strength, _stage(body.env))


def _stage(env: TabletopEnv) -> Stage:
    model = env.scene.model
    named = {model.material(index).name: index for index in range(model.nmat)}
    return Stage(
        mujoco=env.scene.mujoco,
        model=model,
        camera="agentview",
        camera_shift_m=CAMERA_SHIFT_M,
        surfaces=(model.geom("table").id,),
        materials=tuple(named[pattern] for pattern in PATTERNS if pattern in named),
    )


def _material(pattern: str) -> str:
    """A grey material that a shape's own colour tints."""
    marks = ' mark="random" random="0.05" markrgb="0.3 0.3 0.3"' if pattern == "flat" else ""
    return (
        f'<texture name="{pattern}" type="2d" builtin="{pattern}" width="128" height="128" '
        f'rgb1="0.85 0.85 0.85" rgb2="0.5 0.5 0.5"{marks}/>'
        f'<material name="{pattern}" texture="{pattern}" texrepeat="8 8" specular="0"/>'
    )
