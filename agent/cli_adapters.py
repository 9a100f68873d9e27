"""`perennial adapters`: what was published, what is served, switching and exporting versions."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from agent.process.paths import user_path
from agent.process.shown import complain, printable, say

if TYPE_CHECKING:
    from agent.wire.messages import Activated, ServerStatus
from agent.process import run_command

TIMEOUT_S = 10.0
OPERATOR_EPOCH = 0


def main(argv: list[str] | None = None) -> int:
    """Exit status: 0 done, 1 refused or no answer, 2 nothing to work on."""
    arguments = _parser().parse_args(argv)

    from agent.wire.errors import ConfigError, PerennialError  # after the parser: help is instant

    try:
        if arguments.action == "list":
            _list(arguments)
        elif arguments.action == "activate":
            from agent.wire.messages import Activate

            _print_activated(_ask(arguments, Activate(OPERATOR_EPOCH, arguments.version)))
        elif arguments.action == "export":
            _export(arguments.folder, arguments.version, arguments.out, arguments.base)
        else:
            from agent.wire.messages import Rollback

            _print_activated(_ask(arguments, Rollback(arguments.again)))
    except ConfigError as error:
        complain("perennial adapters", error)
        return 2
    except PerennialError as error:
        complain("perennial adapters", error)
        return 1
    return 0


def _list(arguments: argparse.Namespace) -> None:
    """One line per published version; the server, if it runs, says which are loaded and active."""
    from agent.adapters import AdapterCorrupt, AdapterStore
    from agent.wire.errors import ConfigError, PerennialError
    from agent.wire.messages import Status

    folder: Path = arguments.folder
    store = AdapterStore(folder / "adapters")
    versions = store.versions()
    if not any((folder / name).is_dir() for name in ("adapters", "agent")):
        raise ConfigError(f"{folder} is no run: it holds neither adapters nor agent")
    status: ServerStatus | None = None
    try:
        status = _ask(arguments, Status())
        note = f"served by {status.policy}, active {status.active_version}"
    except PerennialError as error:
        note = f"not served now: {error}"
    say(f"{len(versions)} versions in {folder / 'adapters'}; {printable(note)}")
    for version in versions:
        try:
            manifest = store.manifest(version)
            what = f"{manifest.method:8} {manifest.task:24} from {manifest.parent}"
        except AdapterCorrupt as error:
            what = f"DAMAGED: {error}"
        say(f"  {version:20} {_mark(version, status):8} {printable(what)}")


def _export(folder: Path, version: str, out: Path, base_name: str) -> None:
    from agent.adapter_export import export_version
    from agent.adapters import AdapterStore

    export_version(AdapterStore(folder / "adapters"), version, out, base_name)
    say(f"{out}: {version} as a plain PEFT folder")


def _mark(version: str, status: ServerStatus | None) -> str:
    if status is None:
        return ""
    if version == status.active_version:
        return "active"
    return "loaded" if version in status.resident_versions else ""


def _print_activated(reply: Activated) -> None:
    held_ms = reply.hold_s * 1e3
    version, previous = printable(reply.version), printable(reply.previous)
    say(f"active: {version} (before: {previous}; inference held {held_ms:.1f} ms)")


def _ask(arguments: argparse.Namespace, message: object) -> Any:
    from agent.wire.keys import find_client_keys
    from agent.wire.sockets import DealerClient

    endpoint = arguments.endpoint or _operator_endpoint(arguments.folder)
    with DealerClient(endpoint, TIMEOUT_S, keys=find_client_keys(arguments.keys)) as client:
        return client.request(message)


def _operator_endpoint(folder: Path) -> str:
    from agent.process.json_files import DamagedFile, read_json
    from agent.wire.errors import ConfigError

    paths = [folder / "agent" / "endpoints.json", folder / "endpoints.json"]
    for path in paths:
        if path.is_file():
            try:
                way_out = "restart the server, or give --endpoint"
                return str(read_json(path, {"operator": str}, way_out)["operator"])
            except DamagedFile as error:
                raise ConfigError(str(error)) from error
    raise ConfigError(f"no server has run in {folder}: there is no {paths[0]}")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="perennial adapters", description=__doc__)
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    for name, summary in (
        ("list", "published versions, and which of them the server holds"),
        ("activate", "serve a version to new episodes of robots' own tasks"),
        ("rollback", "go back to the version that was active before"),
        ("export", "copy a verified version as a plain PEFT folder, for use elsewhere"),
    ):
        action = actions.add_parser(name, help=summary, description=summary)
        action.add_argument("folder", type=user_path, help="a run's folder")
        if name != "export":
            action.add_argument("--keys", default="", help="this operator's folder of keys")
            action.add_argument(
                "--endpoint", default="", help="operators' socket (default: endpoints.json's)"
            )
        if name == "rollback":
            action.add_argument(
                "--again", action="store_true", help="go further back after a rollback"
            )
        if name == "activate":
            action.add_argument("version", help="as `perennial adapters list` shows it, or base")
        if name == "export":
            action.add_argument("version", help="as `perennial adapters list` shows it")
            action.add_argument("out", type=user_path, help="the new folder")
            action.add_argument(
                "--base",
                default="",
                help="base model to name in adapter_config.json: path or hub id",
            )
    return parser


if __name__ == "__main__":
    run_command(main)
