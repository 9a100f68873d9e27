"""The suite's tasks: instruction, goal and horizon of each, and the default split."""

from dataclasses import dataclass


@dataclass(frozen=True)
class TaskSpec:
    """One language-conditioned task. `horizon_steps` counts 20 Hz control steps."""

    id: int
    slug: str
    instruction: str
    skill: str
    horizon_steps: int


@dataclass(frozen=True)
class Goal:
    """What a task is about: the manipulated thing and the place or thing it must reach."""

    subject: str
    target: str


# (slug, instruction, skill, subject, target, horizon: 2 x the expert's 95th percentile,
# rounded to a multiple of 5, frozen)
_TABLE = (
    ("pick_red_tray", "put the red cube in the tray", "pick", "red", "tray", 50),
    ("pick_green_tray", "put the green cube in the tray", "pick", "green", "tray", 50),
    ("pick_blue_tray", "put the blue cube in the tray", "pick", "blue", "tray", 50),
    ("pick_red_plate", "put the red cube on the plate", "pick", "red", "plate", 55),
    ("pick_green_plate", "put the green cube on the plate", "pick", "green", "plate", 55),
    ("pick_blue_plate", "put the blue cube on the plate", "pick", "blue", "plate", 55),
    ("push_left", "push the puck onto the left mat", "push", "puck", "mat_left", 50),
    ("push_right", "push the puck onto the right mat", "push", "puck", "mat_right", 50),
    ("stack_red_blue", "stack the red cube on the blue cube", "stack", "red", "blue", 55),
    ("stack_green_red", "stack the green cube on the red cube", "stack", "green", "red", 55),
    ("stack_blue_green", "stack the blue cube on the green cube", "stack", "blue", "green", 55),
    ("drawer_open", "open the drawer", "drawer", "handle", "open", 35),
    ("drawer_close", "close the drawer", "drawer", "handle", "closed", 30),
    ("button_press", "press the button", "button", "button", "down", 25),
)

TASKS: tuple[TaskSpec, ...] = tuple(
    TaskSpec(i, slug, instruction, skill, horizon_steps)
    for i, (slug, instruction, skill, _, _, horizon_steps) in enumerate(_TABLE)
)
GOALS: dict[str, Goal] = {slug: Goal(subject, target) for slug, _, _, subject, target, _ in _TABLE}

TRAIN_TASKS: tuple[str, ...] = ("pick_red_tray", "stack_green_red", "push_right")
HELD_OUT_TASKS: tuple[str, ...] = ("pick_green_plate", "drawer_open")


def task_by_slug(slug: str) -> TaskSpec:
    """Return the task called `slug`; raises KeyError naming the tasks there are."""
    for task in TASKS:
        if task.slug == slug:
            return task
    known = ", ".join(task.slug for task in TASKS)
    raise KeyError(f"unknown tabletop task {slug!r}; known tasks: {known}")
