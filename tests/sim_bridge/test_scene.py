"""A scene that nobody closed leaves no trace on stderr when the process ends."""

import subprocess
import sys
from pathlib import Path

import pytest
from patience import HANG_S

ROOT = Path(__file__).parents[2]
FORGETS_TO_CLOSE = """
import weakref


class Other:
    pass


other = Other()
weakref.finalize(other, int)  # so that weakref's exit handler is older than MuJoCo's
import mujoco

from sim_bridge.tabletop.scene import Scene

scene = Scene(16)
data = mujoco.MjData(scene.model)
mujoco.mj_forward(scene.model, data)
scene.render(data, "wrist")
"""


@pytest.mark.slow
def test_a_scene_left_open_is_closed_before_the_display_ends() -> None:
    script = "from sim_bridge.gl import select_backend; select_backend()\n"
    done = subprocess.run(
        [sys.executable, "-c", script + FORGETS_TO_CLOSE],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=HANG_S,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
