"""`perennial dry-run`: what a run would take, without a GPU, a checkpoint or a run folder.

Composes the run, checks every process's settings against its schema, builds the network without
data, and prints parameters, GPU memory, episodes and estimated hours.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from agent.process import BAD_INPUT, StopFlag, stoppable
from agent.process.arguments import real_number, whole_number
from agent.process.settings import settings_text
from agent.process.shown import complain
from deploy.local.processes import module_command, module_environment

if TYPE_CHECKING:
    from deploy.local.settings import RunConfig

UNSTATED = "???"  # Hydra's mark of a setting that has to be given
PUBLISHED = "-7b"  # ends the names of models whose geometry is known without their folder
LATER = "CHECKPOINT"  # stands where the folder will be named
_EPILOG = """\
settings are those of `perennial run`; for a 7B model model.model_dir may be left out.

examples:
  perennial dry-run preset=vlacrl-spatial --gpu A100
  perennial dry-run preset=vlacrl-spatial workers=64 --mean-steps 200
"""


def main(argv: list[str] | None = None) -> int:
    """Returns the exit status: 0 printed, 2 bad input, else that of what failed."""
    arguments = _parser().parse_intermixed_args(argv)

    from deploy.local.placement import BadSetting

    try:
        config, published = compose_dry(arguments.overrides)
    except BadSetting as error:
        complain("perennial dry-run", error)
        return BAD_INPUT
    with tempfile.TemporaryDirectory(prefix="perennial-dry-run-") as folder:
        files = _write_settings(Path(folder), config.processes)
        if status := check_settings(files):
            return status
        print(f"settings: {', '.join(files)} fit their schemas\n", flush=True)
        words = _estimate_words(arguments, config.processes, files, published)
        command = module_command("learner.dryrun", words)
        with StopFlag().unwinding():
            return subprocess.run(command, env=module_environment(), check=False).returncode


def compose_dry(overrides: list[str]) -> tuple[RunConfig, bool]:
    """The run, and whether its 7B checkpoint is still to be named.

    Raises BadSetting as `compose_run` does.
    """
    from deploy.local.composition import compose_tree, compose_unresolved
    from deploy.local.settings import compose_run

    stand_in = [f"model.model_dir={LATER}", *overrides]
    compose_tree(stand_in)  # refuses typos before anything is read from the tree
    model = compose_unresolved(overrides)["model"]
    if model["model_dir"] == UNSTATED and model["name"].endswith(PUBLISHED):
        return compose_run(stand_in, find=Path), True
    return compose_run(overrides), False


def check_settings(files: Mapping[str, Path]) -> int:
    """Lets every process check its settings; returns the exit status of the first that refuses.

    files: process name -> its settings. What is wrong is on stderr.
    """
    from deploy.local.supervisor import MODULES

    checks = [
        subprocess.Popen(
            module_command(MODULES[name.partition("-")[0]], ["--config", str(path), "--check"]),
            env=module_environment(),
        )
        for name, path in files.items()
    ]
    return next((status for check in checks if (status := check.wait())), 0)


def _write_settings(folder: Path, processes: Mapping[str, dict[str, Any]]) -> dict[str, Path]:
    """A file for each process; simulators differ in their names alone, so one stands for all."""
    files = {}
    for name, values in processes.items():
        if name.startswith("sim-") and name != "sim-0":
            continue
        files[name] = folder / f"{name}.yaml"
        files[name].write_text(settings_text(values), encoding="utf-8")
    return files


def _estimate_words(
    arguments: argparse.Namespace,
    processes: Mapping[str, dict[str, Any]],
    files: Mapping[str, Path],
    published: bool,
) -> list[str]:
    sims = [values for name, values in processes.items() if name.startswith("sim-")]
    words = [f"--agent={files['agent']}", f"--learner={files['learner']}"]
    words += [f"--bodies={sum(sim['envs'] for sim in sims)}"]
    words += [f"--image-size={sims[0]['image_size']}"]
    words += [f"--gpu={arguments.gpu}", f"--utilisation={arguments.utilisation}"]
    if arguments.mean_steps is not None:
        words += [f"--mean-steps={arguments.mean_steps}"]
    return [*words, "--published"] if published else words


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="perennial dry-run",
        description=__doc__,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="settings of the run")
    parser.add_argument("--gpu", default="H100", help="part of its name (default: H100)")
    parser.add_argument(
        "--utilisation", type=real_number(0, 1, is_open=True), default=0.4, metavar="SHARE",
        help="of the GPU's peaks that is sustained; an assumption (default: 0.4)",
    )  # fmt: skip
    parser.add_argument(
        "--mean-steps", type=whole_number(1, 1_000_000), metavar="N",
        help="of an episode; without it, all run to the horizon: an upper bound",
    )  # fmt: skip
    return parser


if __name__ == "__main__":
    with stoppable("perennial dry-run"):
        sys.exit(main())
