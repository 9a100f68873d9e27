"""`perennial run`: agent, learner and simulators as processes, with live progress and a summary."""

from __future__ import annotations

import argparse
import errno
import shlex
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from agent.durable import StorageError
from agent.process import BAD_INPUT, FAILED, Ended, OutputFailed, StopFlag, die_with, stoppable
from agent.process.errors import ConfigError
from agent.process.shown import complain
from deploy.local.processes import (
    ProcessFailed,
    ProcessRefused,
    module_command,
    module_environment,
)
from deploy.local.versions import installed_versions

if TYPE_CHECKING:
    from deploy.local.runfolder import RunFolder
    from deploy.local.settings import RunConfig

INTERRUPTED = 130  # as a shell reports Ctrl-C
_EPILOG = """\
settings (Hydra overrides; configs/run.yaml has all of them):
  suite=tabletop|toy         which tasks
  task_order=[0,1,2]         which of the suite's train_tasks, in which order
  seed=0                     everything random derives from it
  run_dir=runs/NAME          where the run lives; the same folder again resumes it
  budget=demo|smoke|eval     how long to train and how much to evaluate
  method=sequential|ewc|...  how to learn and not to forget; configs/method has all of them
  algorithm=grpo-nano|ppo-nano   how to learn; there are more in configs/algorithm
  preset=vlacrl-spatial      a paper's whole configuration; first: perennial dry-run preset=NAME
  model=nano-tabletop        the policy to start from; model.model_dir=FOLDER for your own
  learner.algorithm.learning_rate=0.001   any setting of a process, by section
"""


def main(argv: list[str] | None = None) -> int:
    """Returns the exit status: 0 finished, 2 bad input, 1 failed, 130 interrupted."""
    parser = argparse.ArgumentParser(
        prog="perennial run",
        description=__doc__,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="settings to change")
    arguments = parser.parse_args(argv)

    from deploy.local.supervisor import Interrupted

    try:
        return _run(arguments.overrides)
    except ConfigError as error:
        complain("perennial run", error)
        return BAD_INPUT
    except ProcessFailed as error:
        complain("perennial run", error)
        return BAD_INPUT if isinstance(error, ProcessRefused) else FAILED
    except StorageError as error:
        complain("perennial run", error)
        return FAILED
    except OSError as error:  # its own files: the disk filled up, a folder may not be written
        complain("perennial run", _explain(error))
        return FAILED
    except (Interrupted, Ended):
        print("Stopped. The same command goes on from here.", file=sys.stderr)
        return INTERRUPTED


def _run(overrides: list[str]) -> int:
    from agent.process.terminal import new_console, telling
    from deploy.local.conditions import Conditions
    from deploy.local.ledgers import ActivationTail
    from deploy.local.live import new_view
    from deploy.local.preflight import preflight
    from deploy.local.progress import Plan, Progress
    from deploy.local.runfolder import RunFolder
    from deploy.local.settings import compose_run
    from deploy.local.shapes import END, EVENT, EVENTS
    from deploy.local.supervisor import StopSignal, Supervisor
    from deploy.local.tail import JsonTail

    stop = StopSignal()
    config = compose_run(overrides)
    if config.settings.parent_pid is not None:
        die_with(config.settings.parent_pid)
    console = new_console()
    folder = RunFolder(config.settings.run_dir)
    with folder.lock(), folder.sockets():
        if folder.is_finished():
            place = shlex.quote(str(folder.path))  # to be pasted into a shell
            console.print(
                f"This run is finished. For its summary: perennial report {place}\n"
                f"To start afresh: rm -r {place}, or choose another run_dir=FOLDER",
                highlight=False,
                markup=False,
            )
            return 0
        resumes = folder.prepare(config, installed_versions())
        with _taken_back_if_refused(folder, config, is_new=not resumes):
            with telling(lambda: "looking at model and settings", console):
                preflight(folder.path / "config", config.processes)
            console.print("Resuming." if resumes else "Starting: loading the policy.", style="dim")
        learner = config.processes["learner"]
        progress = Progress(Plan.from_learner(learner))
        under = str(Conditions.of_learner(learner))
        events = JsonTail(folder.path / "learner" / "progress.jsonl", EVENT, EVENTS)
        activations = ActivationTail(folder.path / "agent" / "agent.db")
        ends = [JsonTail(path, END) for path in folder.client_logs(config.settings.workers)]
        title = f"{learner['suite']['name']}, seed {config.settings.seed}, {folder.path}"
        flag = StopFlag()
        with flag.working(), flag.finishing(), Supervisor(config, stop) as supervisor:
            passing = supervisor.passing
            with new_view(console, title, under, progress) as view:

                def look() -> None:
                    progress.add_events(events.read())
                    progress.add_activations(activations.read())
                    for tail in ends:
                        progress.add_ends(tail.read())

                look()
                progress.forget_milestones()

                def tick() -> None:
                    with passing.borne("the run's progress is not read", folder.path):
                        look()
                    with passing.borne("the run's state is not written", folder.state_path):
                        folder.keep(supervisor.restarts())
                    with passing.borne("the progress is not shown", Path("stdout")):
                        view.refresh(supervisor.describe(), supervisor.trouble())

                supervisor.start()
                supervisor.run(tick)
                tick()

                def keep() -> bool:
                    kept = False
                    with passing.borne("the run's end is not written", folder.state_path):
                        folder.keep(supervisor.restarts(), finished=True)
                        kept = True
                    return kept

                supervisor.finish(keep, tick)
    return _report(folder.path) if config.settings.report else 0


@contextmanager
def _taken_back_if_refused(folder: RunFolder, config: RunConfig, *, is_new: bool) -> Iterator[None]:
    """Leaves no trace of a new run that cannot begin, or whose beginning nobody would see."""
    from deploy.local.placement import BadSetting

    try:
        with StopFlag().unwinding():
            yield
    except (BadSetting, Ended, OutputFailed):
        if is_new:
            folder.withdraw(config)
        raise


def _explain(error: OSError) -> str:
    """One line for a file or folder that could not be used, with the way out."""
    reason = error.strerror or str(error)
    where = f"{error.filename}: {reason}" if error.filename else f"run_dir: {reason}"
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return f"{where}; free disk space, then the same command goes on from here"
    return f"{where}; check who may write there, or choose another run_dir=FOLDER"


def _report(run_dir: Path) -> int:
    """Runs `perennial report` in its own process: plotting needs the memory only now."""
    words = module_command("deploy.local.report", [str(run_dir)])
    with StopFlag().unwinding():
        return subprocess.run(words, env=module_environment(), check=False).returncode


if __name__ == "__main__":
    with stoppable("perennial run", INTERRUPTED):
        sys.exit(main())
