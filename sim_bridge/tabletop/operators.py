"""Who demonstrates: the scripted expert, or operators who misjudge places.

Demonstrations recorded by people through a camera carry errors of judgement that no amount of
cloning removes: a policy copies where they let go, not where they should have. The operators here
put things short of their goal, by a distance that depends on the goal and varies from episode to
episode. Physics, tolerances and the expert's skill are untouched.
"""

import numpy as np

from sim_bridge.tabletop.tasks import GOALS, TaskSpec

OPERATORS = ("expert", "misjudging")
# By goal: mean error in x and y and its standard deviation over episodes, m. The means lie at the
# edge of what the task forgives; other goals are not misjudged.
ERRORS_M = {
    "tray": ((-0.0425, 0.0), 0.006),
    "plate": ((-0.038, 0.0), 0.006),
    "mat_left": ((-0.027, 0.0), 0.004),
    "mat_right": ((0.027, 0.0), 0.004),
    "red": ((0.0, 0.0215), 0.008),
    "green": ((0.0, 0.0215), 0.008),
    "blue": ((0.0, 0.0215), 0.008),
}


def draw_misjudgement(operators: str, task: TaskSpec, rng: np.random.Generator) -> np.ndarray:
    """How far off one of the `operators` takes the goal of `task` to be: f64[3], m, world.

    Raises ValueError for operators there are none of.
    """
    if operators not in OPERATORS:
        raise ValueError(f"operators: expected one of {', '.join(OPERATORS)}, got {operators!r}")
    target = GOALS[task.slug].target
    if operators == "expert" or target not in ERRORS_M:
        return np.zeros(3)
    return np.array([*rng.normal(*ERRORS_M[target]), 0.0])
