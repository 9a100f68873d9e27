"""The live view's numbers, from lines as the processes write them."""

import io
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from agent.process.terminal import LINE_CHARS, PLAIN_PERIOD_S, new_console
from deploy.local.live import LiveView, PlainView
from deploy.local.progress import Plan, Progress
from deploy.local.statistics import Rate
from deploy.local.tail import JsonTail
from learner.config import EvalConfig, LearnerConfig, SuiteConfig, TaskConfig
from learner.continual.settings import ContinualConfig
from learner.curriculum import stages
from learner.evaluation import GREEDY, plan_row


@pytest.fixture
def progress() -> Progress:
    return Progress(Plan(["push", "pick"], ["stack"], 2, 4, 100))


def end(slot_id: str, outcome: str = "success", unix_s: float = 0.0) -> dict[str, Any]:
    parts = slot_id.split("/")
    task = parts[3] if parts[0] == "eval" else ("push", "pick")[int(parts[1])]
    return {
        "slot_id": slot_id,
        "task": task,
        "phase": parts[0],
        "outcome": outcome,
        "counted": outcome != "aborted",
        "unix_s": unix_s,
    }


def test_a_plan_counts_what_the_learner_will_order() -> None:
    plan = Plan.from_learner(
        {
            "suite": {"train_tasks": ["a", "b"], "held_out_tasks": ["z"], "eval_init_states": 50},
            "algorithm": {"group_size": 8, "groups_per_iteration": 4, "iterations_per_task": 3},
            "continual": {"method": "sequential"},
            "evaluation": {
                "slots_per_state": 2,
                "held_out_slots_per_state": 1,
                "full_matrix": False,
                "greedy": True,
            },
        }
    )
    assert plan.train_episodes == 2 * 3 * 32
    # Base and final rows: two trained tasks at 100, one held out at 50; own row of the first task;
    # greedy on the trained tasks, before and after.
    assert plan.eval_episodes == 2 * 250 + 100 + 2 * 100


@pytest.mark.parametrize("middle_slots", [None, 1, 4])
@pytest.mark.parametrize("full_matrix", [False, True])
@pytest.mark.parametrize("greedy", [False, True])
def test_a_plan_counts_every_row(middle_slots: int | None, full_matrix: bool, greedy: bool) -> None:
    config = LearnerConfig(
        suite=SuiteConfig(
            "s",
            [TaskConfig(slug, slug, 9) for slug in "abcxy"],
            ["a", "b", "c"],
            ["x", "y"],
            eval_init_states=3,
        ),
        evaluation=EvalConfig(5, 2, middle_slots, greedy, full_matrix),
    )
    rows = [cell for row in range(4) for cell in plan_row(config, row, lambda task: "v")]
    ordered = sum(order.slots for cell in rows for order in cell.orders)
    assert Plan.from_learner(asdict(config)).eval_episodes == ordered
    together = replace(config, continual=ContinualConfig("multitask"))
    measured = [0, *(stage.row for stage in stages(together))]
    rows = [cell for row in measured for cell in plan_row(together, row, lambda task: "v")]
    joint = Plan.from_learner(asdict(together))
    assert joint.eval_episodes == sum(order.slots for cell in rows for order in cell.orders)
    assert joint.train_episodes == Plan.from_learner(asdict(config)).train_episodes
    middle = {
        order.slots for cell in plan_row(config, 2, lambda task: "v") for order in cell.orders
    }
    assert middle == ({middle_slots} if middle_slots else {5, 2} if full_matrix else {5})
    only_measured = replace(config, algorithm=replace(config.algorithm, iterations_per_task=0))
    base = plan_row(only_measured, 0, lambda task: "base")
    ordered = sum(order.slots for cell in base for order in cell.orders)
    assert Plan.from_learner(asdict(only_measured)).eval_episodes == ordered
    assert {cell.task for cell in base if cell.mode == GREEDY} == set("abcxy" if greedy else "")
    once = replace(only_measured, temperature=0.0)
    cells = plan_row(once, 0, lambda task: "base")
    assert [cell.task for cell in cells] == list("abcxy"), "what is greedy is measured once"
    assert {order.slots for cell in cells for order in cell.orders} == {1}
    assert Plan.from_learner(asdict(once)).eval_episodes == 5 * 3


def test_tasks_that_are_learned_together_share_their_updates(progress: Progress) -> None:
    progress.plan = replace(progress.plan, is_joint=True)
    tasks = progress.plan.train_tasks
    episodes = progress.plan.episodes_per_iteration
    played = [end(f"train/1/1/0/{i}#0") | {"task": tasks[i % 2]} for i in range(episodes)]
    progress.add_ends([*played, end("train/1/2/0/0#0")])
    total = 2 * progress.plan.iterations_per_task
    assert progress.stage() == (
        f"Training all 2 tasks, update 2 of {total}: 1 of {episodes} episodes"
    )


def test_successes_are_kept_by_task_and_purpose(progress: Progress) -> None:
    progress.add_ends(
        [
            end("eval/0/rollout/push/0#0"),
            end("eval/0/rollout/push/1#0", "timeout"),
            end("eval/0/greedy/push/0#0"),
            end("train/0/1/0/0#0"),
            end("train/0/1/0/0#1", "aborted"),
            end("train/0/2/0/0#0", "timeout"),
        ]
    )
    push = progress.tasks["push"]
    assert push.eval_rates == {0: Rate(1, 2)}
    assert push.update_rates == {1: Rate(1, 1), 2: Rate(0, 1)}
    assert progress.aborted == 1
    assert progress.episodes == {"eval": 3, "train": 2}


def test_the_stage_follows_the_latest_episode(progress: Progress) -> None:
    assert progress.stage() == "Starting"
    progress.add_ends([end("eval/0/rollout/stack/0#0")])
    assert progress.stage() == "Evaluating the base policy"
    progress.add_ends([end(f"train/1/3/0/0#{k}") for k in range(3)])
    assert progress.stage() == "Training pick (task 2 of 2), update 1 of 2: 3 of 4 episodes"
    progress.add_ends([end("train/1/3/0/0#3")])
    assert progress.stage().endswith("update 1 of 2: learning")
    progress.add_ends([end("eval/2/rollout/pick/0#0")])
    assert progress.stage() == "Evaluating after pick"
    progress.add_events([{"event": "done"}])
    assert progress.stage() == "Done"
    assert progress.share_done() == 1.0


def test_the_time_left_leaves_out_pauses(progress: Progress) -> None:
    slots = [f"eval/0/rollout/push/{i}#0" for i in range(80)]
    half = len(slots) // 2
    progress.add_ends(end(slot, unix_s=1000.0 + i) for i, slot in enumerate(slots[:half]))
    progress.add_ends(end(slot, unix_s=90_000.0 + i) for i, slot in enumerate(slots[half:]))
    # 20 evaluation episodes are left, and 16 of training at twice the price.
    assert progress.left_s() == pytest.approx(20 + 2 * 16, rel=0.05)


def test_a_terminal_shows_every_task_and_why_something_is_started_again(progress: Progress) -> None:
    progress.add_ends([end("eval/0/rollout/push/0#0"), end("eval/0/rollout/push/1#0", "timeout")])
    terminal = Console(file=io.StringIO(), force_terminal=True, width=120)
    with LiveView(terminal, "toy", "protocol disjoint, T = 1", progress) as view:
        view.refresh("agent up")
        view.refresh("agent up", "learner ended (exit status 1): no memory left")
    drawn = terminal.file.getvalue()  # type: ignore[attr-defined]
    assert all(word in drawn for word in ("push", "pick", "stack", "50% n=2", "T = 1", "agent up"))
    assert "Evaluating the base policy" in drawn
    assert "no memory left" in drawn


class Clock:
    now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


def printed(console: Console) -> list[str]:
    """The lines so far; the file is a stream of this test's own."""
    return console.file.getvalue().splitlines()  # type: ignore[attr-defined]


def events_of_a_long_run(tasks: list[str]) -> Iterator[tuple[list[dict[str, Any]], list[str]]]:
    """What comes in one tick after another: the learner's events, and versions made active."""
    for row in range(len(tasks) + 1):
        for mode in ("rollout", "greedy"):
            told = {"event": "eval", "row": row, "mode": mode, "successes": 30, "trials": 50}
            yield [told | {"task": task} for task in tasks], []
        for update in range(row * 10 + 1, row * 10 + 11) if row < len(tasks) else ():
            version = f"v{update:05d}-0123456789ab"
            made = {"event": "iteration", "version": version, "update": update}
            yield [made | {"task": tasks[row], "successes": 9, "trials": 32}], [version]


@pytest.mark.parametrize("slug", ["push", "pick_up_the_black_bowl_next_to_the_ramekin_" * 2])
def test_a_log_has_a_short_line_for_each_update_row_and_swap_and_few_besides(slug: str) -> None:
    tasks = [f"{slug}{index}" for index in range(3)]
    progress, clock = Progress(Plan(tasks, [], 10, 32, 900)), Clock()
    console = new_console(io.StringIO())
    ticks = 0
    with PlainView(console, "tabletop, seed 0", "T = 1", progress, clock) as view:
        for events, versions in events_of_a_long_run(tasks):
            progress.add_events(events)
            progress.add_activations(versions)
            for _ in range(200):  # 50 s of looking four times a second
                progress.add_events([])
                progress.add_ends([end(f"train/0/1/{ticks}/0#0") | {"task": tasks[0]}])
                view.refresh("agent up, learner up")
                clock.now_s += 0.25
                ticks += 1
    lines = printed(console)
    assert max(map(len, lines)) <= LINE_CHARS
    assert "".join(lines).isascii()
    assert "".join(lines).isprintable()
    told = [line for line in lines if "update " in line and "Training" not in line]
    assert len(told) == 3 * 10
    assert len([line for line in lines if "serving v" in line]) == 3 * 10
    assert len([line for line in lines if " row " in line]) == 4 * 2
    assert len(lines) <= 2 + 2 * 3 * 10 + 4 * 2 + clock.now_s / PLAIN_PERIOD_S
    assert sum(map(len, lines)) < 10_000


def test_a_log_tells_a_trouble_once_and_nothing_of_earlier_starts(progress: Progress) -> None:
    console, clock = new_console(io.StringIO()), Clock()
    cell = {"event": "eval", "row": 0, "mode": "rollout", "task": "push"}
    rates = {"successes": 1, "trials": 2}
    progress.add_events([cell | rates])
    progress.add_activations(["v00001-0123456789ab"])
    progress.forget_milestones()
    with PlainView(console, "toy", "T = 1", progress, clock) as view:
        head = len(printed(console))
        trouble = "learner, end 1 of 6, exit status 1: " + "no memory left; " * 19 + "the end"
        for _ in range(10):
            progress.add_events([cell | rates])  # a resume tells a complete row again
            view.refresh("", trouble)
        (line,) = printed(console)[head:]
        assert line.endswith(trouble), "whole: its end may be the reason"
        clock.now_s += PLAIN_PERIOD_S
        view.refresh("", trouble)
    _, again = printed(console)[head:]
    assert "no memory left" in again
    assert len(again) == LINE_CHARS


def test_a_tail_reads_whole_lines_once(tmp_path: Path) -> None:
    path = tmp_path / "lines.jsonl"
    tail = JsonTail(path)
    assert tail.read() == []
    path.write_text('{"a": 1}\n{"a": ')
    assert tail.read() == [{"a": 1}]
    with path.open("a") as file:
        file.write('2}\n{"torn\n{"a": 3}\n')
    assert tail.read() == [{"a": 2}, {"a": 3}]
