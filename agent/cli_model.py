"""`perennial model`: what a model folder is, whether it loads and answers, merging adapters."""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass, field
from typing import Any

from agent.config import DTYPES
from agent.process import run_command
from agent.process.paths import user_path
from agent.process.shown import LINE_MAX_CHARS, complain, printable, say
from agent.process.terminal import counting

_EPILOG = """\
`perennial model to-discrete --help`: turn a checkpoint with an L1 head into one with action tokens.

examples:
  perennial model inspect openvla-7b
  perennial model verify openvla-7b --set variant=openvla --unnorm-key bridge_orig
  perennial model merge openvla-7b my-lora merged --set variant=openvla
"""


def main(argv: list[str] | None = None) -> int:
    """Exit status: 0 fine, 1 the folder or the adapter cannot be used, 2 nothing to work on."""
    arguments = _parser().parse_args(argv)

    from agent.wire.errors import ConfigError, PerennialError  # after the parser: help is instant

    try:
        if not arguments.folder.is_dir():
            raise ConfigError(f"{arguments.folder} is no folder")
        architecture = _parse_settings(arguments.set)
    except ConfigError as error:
        complain("perennial model", error)
        return 2

    actions = {"inspect": _inspect, "verify": _verify, "merge": _merge}
    try:
        actions[arguments.action](arguments, architecture)
    except ConfigError as error:
        complain("perennial model", error)
        return 2
    except (PerennialError, OSError) as error:
        complain("perennial model", error)
        return 1
    return 0


def _inspect(arguments: argparse.Namespace, architecture: dict[str, Any]) -> None:
    import dataclasses

    from agent.model.inspection import inspect_folder
    from agent.model_report import describe

    inspection = inspect_folder(arguments.folder, architecture)
    if arguments.json:
        print(json.dumps(dataclasses.asdict(inspection), indent=1))
    else:
        print("\n".join(printable(line, LINE_MAX_CHARS) for line in describe(inspection)))


def _verify(arguments: argparse.Namespace, architecture: dict[str, Any]) -> None:
    from agent.model_verify import verify_folder

    verify_folder(
        arguments.folder,
        architecture,
        unnorm_key=arguments.unnorm_key,
        instruction=arguments.instruction,
        device=arguments.device,
        dtype=arguments.dtype,
    )


def _merge(arguments: argparse.Namespace, architecture: dict[str, Any]) -> None:
    from agent.adapter_export import read_origin
    from agent.model.action_scale import FILE_NAME as SCALE_FILE
    from agent.model.errors import ModelFolderError
    from agent.model.folder import hash_folder
    from agent.model.merging import merge_adapter

    if not arguments.adapter.is_dir():
        raise ModelFolderError(f"{arguments.adapter} is no folder")
    origin = read_origin(arguments.adapter)
    if origin is not None:
        found = hash_folder(arguments.folder, architecture)
        if found != origin.base_sha256:
            raise ModelFolderError(
                f"{origin.version} was trained on the base {origin.base_sha256[:12]}, "
                f"{arguments.folder} is {found[:12]}: name its own base, and state with --set what "
                "the run's model.architecture states"
            )
    with counting("MiB merged", None) as count:
        merged = merge_adapter(
            arguments.folder,
            arguments.adapter,
            arguments.out,
            architecture,
            report=lambda done, total: count.update(done >> 20, total=total >> 20),
        )
    say(f"{arguments.out}: {merged.modules} modules merged")
    if merged.dead:
        say(f"left out: {merged.dead} modules of the adapter that no forward runs")
    if (arguments.adapter / SCALE_FILE).exists():
        say(f"left out: {SCALE_FILE}, the spread of sampled actions; greedy acting has none")


def _parse_settings(settings: list[str]) -> dict[str, Any]:
    """`name=value` to config fields. Raises ConfigError."""
    from agent.process import load_config
    from agent.process.errors import ConfigError

    try:
        words = [f"architecture.{setting}" for setting in settings]
        return load_config(_Stated, None, words).architecture
    except ConfigError as error:
        raise ConfigError(str(error).replace("architecture.", "--set ")) from error


@dataclass
class _Stated:
    """What `--set` states, read as any settings are."""

    architecture: dict[str, Any] = field(default_factory=dict)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="perennial model",
        description=__doc__,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    for name, summary in (
        ("inspect", "what a folder is and what it lacks, from its headers alone"),
        ("verify", "check every key and shape, load it, answer one generated observation"),
        ("merge", "write a new folder with a LoRA adapter merged into the weights"),
    ):
        action = actions.add_parser(name, help=summary, description=summary)
        action.add_argument(
            "folder", type=user_path, help="a published OpenVLA or OpenVLA-OFT folder"
        )
        if name == "merge":
            action.add_argument(
                "adapter",
                type=user_path,
                help="a PEFT folder, or a version of an adapter store",
            )
            action.add_argument("out", type=user_path, help="the new folder")
        action.add_argument(
            "--set",
            action="append",
            default=[],
            metavar="NAME=VALUE",
            help="a config field that the folder's files leave out, e.g. variant=oft-discrete",
        )
        if name == "inspect":
            action.add_argument("--json", action="store_true", help="for machines")
        if name == "verify":
            action.add_argument("--unnorm-key", default="", help="whose statistics; needed if many")
            action.add_argument("--instruction", help="what the robot is told")
            action.add_argument("--device", default="cpu", help="cpu, cuda, cuda:1, ...")
            action.add_argument("--dtype", choices=DTYPES, default="float32", help="of the weights")
    return parser


if __name__ == "__main__":
    run_command(main)
