"""What a run will cost and how much of it can teach, before anything starts. Standard library only.

A group of G episodes teaches only if its outcomes differ: with success p that happens with
probability 1 - p^G - (1 - p)^G. Start states differ in difficulty, so p varies between groups and
the true share is lower; `spread` says by how much p varies (its standard deviation).
"""

import argparse
from dataclasses import dataclass
from statistics import fmean

from agent.process import run_command
from agent.process.arguments import real_number, whole_number
from agent.process.shown import printable, shown


@dataclass(frozen=True)
class PlanSettings:
    """The part of a learner's configuration that decides its cost."""

    group_size: int
    groups_per_iteration: int
    iterations_per_task: int
    extra_groups: int  # most resampled groups an iteration
    eval_episodes: int  # of the whole run
    seconds_per_episode: float  # wall time a collected episode costs, all clients together
    seconds_per_trained_episode: float  # learner time an episode of a usable group costs


@dataclass(frozen=True)
class TaskPlan:
    """Expectations for one task."""

    task: str
    success: float
    usable_share: float
    episodes: float
    trained_episodes: float
    hours: float


def usable_share(success: float, group_size: int, spread: float = 0.0) -> float:
    """Expected share of groups with mixed outcomes.

    spread: standard deviation of the success rate between start states, as a two-point mixture.

    Raises:
        ValueError: a success outside [0, 1], a group below 2 or a negative spread.
    """
    if not 0.0 <= success <= 1.0:
        raise ValueError(f"success must be in [0, 1], got {success}")
    if group_size < 2:
        raise ValueError(f"group_size must be at least 2, got {group_size}")
    if spread < 0.0:
        raise ValueError(f"spread must be >= 0, got {spread}")
    rates = [min(1.0, max(0.0, success + offset)) for offset in (-spread, spread)]
    return fmean(1.0 - p**group_size - (1.0 - p) ** group_size for p in rates)


def plan_task(task: str, success: float, settings: PlanSettings, spread: float = 0.0) -> TaskPlan:
    """Expected groups, episodes and hours of one task at its base success."""
    share = usable_share(success, settings.group_size, spread)
    degenerate = settings.groups_per_iteration * (1.0 - share)
    # Each degenerate group is drawn again, and again if still degenerate: a geometric series.
    wanted = degenerate / share if share > 0 else float("inf")
    groups = settings.groups_per_iteration + min(wanted, settings.extra_groups)
    episodes = groups * settings.group_size * settings.iterations_per_task
    trained = episodes * share
    seconds = (
        episodes * settings.seconds_per_episode + trained * settings.seconds_per_trained_episode
    )
    return TaskPlan(task, success, share, episodes, trained, seconds / 3600)


def format_plan(plans: list[TaskPlan], settings: PlanSettings) -> str:
    """A table for a terminal."""
    width = max(len("task"), *(len(plan.task) for plan in plans))
    lines = [f"{'task':<{width}}  success  usable groups  episodes  trained   hours"]
    lines += [
        f"{p.task:<{width}}  {p.success:7.0%}  {p.usable_share:13.0%}  {p.episodes:8.0f}"
        f"  {p.trained_episodes:7.0f}  {p.hours:6.2f}"
        for p in plans
    ]
    eval_hours = settings.eval_episodes * settings.seconds_per_episode / 3600
    lines.append(f"{'evaluation':<{width}}  {settings.eval_episodes:>32}  {eval_hours:>16.2f}")
    episodes = sum(p.episodes for p in plans) + settings.eval_episodes
    hours = sum(p.hours for p in plans) + eval_hours
    lines.append(f"{'total':<{width}}  {episodes:>32.0f}  {hours:>16.2f}")
    poor = [p.task for p in plans if p.usable_share < 0.25]
    if poor:
        lines.append(
            f"Warning: fewer than a quarter of the groups of {', '.join(poor)} can teach: raise "
            "group_size, or start from a policy that succeeds more often."
        )
    return "\n".join(lines)


def _parse_success(text: str) -> tuple[str, float]:
    task, separator, rate = text.partition("=")
    try:
        value = float(rate)
    except ValueError:
        value = -1.0
    if not task.strip() or not separator or not 0.0 <= value <= 1.0:
        raise argparse.ArgumentTypeError(
            f"expected task=rate with a rate in 0..1, got {shown(text)}"
        )
    return printable(task), value


def main(arguments: list[str] | None = None) -> None:
    """Print the plan for the given base success rates."""
    parser = argparse.ArgumentParser(prog="perennial plan", description=__doc__)
    count, seconds = whole_number(0, 1_000_000_000), real_number(0, 1e9)
    parser.add_argument("success", nargs="+", type=_parse_success, metavar="TASK=RATE")
    parser.add_argument("--group-size", type=whole_number(2, 10_000), default=8)
    parser.add_argument("--groups", type=count, default=16, help="groups an iteration")
    parser.add_argument("--iterations", type=count, default=10, help="iterations a task")
    parser.add_argument("--extra-groups", type=count, default=0, help="most resampled an iteration")
    parser.add_argument("--eval-episodes", type=count, default=0, help="of the whole run")
    parser.add_argument("--seconds-per-episode", type=seconds, default=1.0)
    parser.add_argument("--learn-seconds-per-episode", type=seconds, default=0.5)
    parser.add_argument(
        "--spread", type=real_number(0, 1), default=0.0, help="std of success between states"
    )
    args = parser.parse_args(arguments)
    settings = PlanSettings(
        args.group_size,
        args.groups,
        args.iterations,
        args.extra_groups,
        args.eval_episodes,
        args.seconds_per_episode,
        args.learn_seconds_per_episode,
    )
    plans = [plan_task(task, rate, settings, args.spread) for task, rate in args.success]
    print(format_plan(plans, settings))


if __name__ == "__main__":
    run_command(main)
