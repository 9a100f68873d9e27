"""The `perennial` command: one word, then the arguments of the program that does the work.

Nothing but argparse is imported here, and each program answers `--help` before it imports
anything heavy, so that help is instant.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Mapping
from dataclasses import dataclass, field

from agent.process.stopping import hold_back_interrupts
from agent.process.streams import prepare_streams, printing
from deploy.local.processes import module_command, module_environment


@dataclass(frozen=True)
class Command:
    """`module` is run with `fixed` and then the user's own arguments.

    inner: first argument -> the module that takes it and what follows instead.
    """

    module: str
    summary: str
    fixed: tuple[str, ...] = ()
    inner: Mapping[str, str] = field(default_factory=dict)


COMMANDS = {
    "run": Command("deploy.local.run", "the whole loop on this machine: serve, act, learn, report"),
    "serve": Command("agent", "the policy server"),
    "learn": Command("learner", "the learner, for a running server"),
    "sim": Command("sim_bridge", "a simulator worker, for a running server"),
    "robot": Command("sim_bridge.robots", "one robot in real time, for a running server"),
    "eval": Command("deploy.local.run", "measure the base policy, train nothing", ("budget=eval",)),
    "dry-run": Command(
        "deploy.local.dryrun", "memory, episodes and GPU-hours of a run, without a GPU"
    ),
    "bench": Command("deploy.bench", "several methods on the same tasks, and one report on all"),
    "plan": Command("learner.plan", "expected usable groups, episodes and hours of a training"),
    "setup": Command("deploy.setup", "settings and keys for services: compose or systemd"),
    "keys": Command("agent.cli_keys", "who may connect to a server, and what each may do"),
    "adapters": Command(
        "agent.cli_adapters", "list, activate, roll back and export adapter versions"
    ),
    "model": Command(
        "agent.cli_model",
        "inspect, verify, merge or convert a checkpoint",
        inner={"to-discrete": "learner.to_discrete"},
    ),
    "episodes": Command("agent.cli_episodes", "list and inspect recorded episodes"),
    "demos": Command(
        "sim_bridge.demos",
        "collect, import and export demonstrations",
        inner={"import": "learner.demos_import", "export": "learner.demos_export"},
    ),
    "report": Command("deploy.local.report", "summary, plots and recount of a finished run"),
}
_EPILOG = """\
examples:
  perennial run                                        the demo: three tabletop tasks in sequence
  perennial run suite=tabletop task_order=[0,1,2] seed=3
  perennial report runs/tabletop-seed3 --recount
  perennial bench suite=tabletop method=sequential,ewc seeds=3

`perennial COMMAND --help` shows a command's settings.
"""


def _parser() -> argparse.ArgumentParser:
    width = max(map(len, COMMANDS))
    commands = "\n".join(f"  {name:<{width}}  {c.summary}" for name, c in COMMANDS.items())
    parser = argparse.ArgumentParser(
        prog="perennial",
        usage="perennial [-h] COMMAND [key=value ...]",
        description=f"Keeps a robot's policy learning on the job.\n\ncommands:\n{commands}",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("command", choices=COMMANDS, metavar="COMMAND", help=argparse.SUPPRESS)
    parser.add_argument("arguments", nargs=argparse.REMAINDER, help=argparse.SUPPRESS)
    return parser


def main(argv: list[str] | None = None) -> None:
    """Replaces this process by the chosen program; returns only through SystemExit."""
    prepare_streams()
    with printing("perennial"):
        chosen = _parser().parse_args(argv)
    command = COMMANDS[chosen.command]
    module, arguments = command.module, [*command.fixed, *chosen.arguments]
    if arguments and arguments[0] in command.inner:
        module = command.inner[arguments.pop(0)]
    words = module_command(module, arguments)
    hold_back_interrupts()
    os.execve(words[0], words, module_environment())


if __name__ == "__main__":
    main()
