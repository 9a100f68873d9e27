"""Choice of an OpenGL backend that really works on this machine."""

import os
import subprocess
import sys

BACKENDS = ("egl", "osmesa", "glfw")
PROBE_TIMEOUT_S = 60.0
_PROBE = (
    "import mujoco;"
    "m = mujoco.MjModel.from_xml_string('<mujoco/>');"
    "r = mujoco.Renderer(m, 8, 8);"
    "r.update_scene(mujoco.MjData(m)); r.render(); print('rendered')"
)


class NoRenderBackend(RuntimeError):
    """No OpenGL backend can render off screen here."""


def select_backend() -> str:
    """Return a backend name for MUJOCO_GL and set that variable for this process.

    A value already set wins and is not probed. Otherwise each candidate renders one frame in a
    subprocess, because a broken driver may crash rather than raise. Must run before `mujoco` is
    first imported, which reads the variable.

    Raises NoRenderBackend, with the command that installs one.
    """
    chosen = os.environ.get("MUJOCO_GL")
    if chosen:
        return chosen
    reasons = []
    for backend in BACKENDS:
        reason = _probe(backend)
        if reason is None:
            os.environ["MUJOCO_GL"] = backend
            return backend
        reasons.append(f"  {backend}: {reason}")
    raise NoRenderBackend(
        "no OpenGL backend can render off screen; tried\n"
        + "\n".join(reasons)
        + "\ninstall one and try again:\napt-get install -y libosmesa6\n"
        "or\napt-get install -y libegl1 libgl1-mesa-dri"
    )


def _probe(backend: str) -> str | None:
    """Render one frame with `backend` in a subprocess; None if it worked, else the reason."""
    env = {**os.environ, "MUJOCO_GL": backend}
    try:
        done = subprocess.run(
            [sys.executable, "-c", _PROBE],
            env=env,
            capture_output=True,
            text=True,
            timeout=PROBE_TIMEOUT_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return f"no frame within {PROBE_TIMEOUT_S:.0f} s"
    if "rendered" in done.stdout:
        return None
    lines = done.stderr.strip().splitlines()
    return lines[-1] if lines else f"exit status {done.returncode}"
