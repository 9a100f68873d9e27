"""`perennial keys`: which clients a server lets in, and what each may do."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from agent.process import run_command
from agent.process.paths import user_path
from agent.process.shown import complain, say

MAY_HELP = "some of act (ask for actions), report (say how episodes ended), operate (learner, CLI)"


def main(argv: list[str] | None = None) -> int:
    """Exit status: 0 done or already so, 1 the disk refused, 2 something to be mended first."""
    words = sys.argv[1:] if argv is None else argv
    arguments = _parser().parse_args(_with_key_last(words))

    from agent.wire.errors import ConfigError, PerennialError  # after the parser: help is instant

    try:
        _ACTIONS[arguments.action](arguments)
    except ConfigError as error:
        complain("perennial keys", error)
        return 2
    except PerennialError as error:
        complain("perennial keys", error)
        return 1
    except OSError as error:  # of a folder that somebody else owns
        complain("perennial keys", error)
        return 1
    return 0


def _init(arguments: argparse.Namespace) -> None:
    from agent.wire.client_list import brief_key
    from agent.wire.keys import ensure_server_keys

    was_there = (arguments.folder / "server.key_secret").exists()
    pair = ensure_server_keys(arguments.folder)
    what = "already there" if was_there else "made"
    say(f"{arguments.folder}: the server's key {brief_key(pair.public)} is {what}")


def _add(arguments: argparse.Namespace) -> None:
    from agent.wire.keys import default_client_folder, ensure_client

    folder, name = arguments.folder, arguments.name
    out = arguments.out or default_client_folder(folder, name)
    was_there = (out / "client.key_secret").exists()
    if not ensure_client(folder, name, arguments.may, out):
        say(
            f"{name}: already there, may {', '.join(arguments.may)}; its folder is not {out}. If "
            f"its secret is lost: perennial keys remove {folder} {name}, then add it again"
        )
    elif was_there:
        say(f"{name}: may {', '.join(arguments.may)}; the key was already there, in {out}")
    else:
        say(
            f"{name}: may {', '.join(arguments.may)}. Move {out} to the client, readable for it "
            "alone, and set its keys_dir"
        )


def _allow(arguments: argparse.Namespace) -> None:
    from agent.wire.keys import allow_client, load_public_key

    text = arguments.public_key
    key = load_public_key(Path(text)) if Path(text).is_file() else text
    allow_client(arguments.folder, arguments.name, key, arguments.may)
    say(f"{arguments.name}: may {', '.join(arguments.may)}; it needs {arguments.folder}/server.key")


def _list(arguments: argparse.Namespace) -> None:
    from agent.wire.client_list import CLIENTS_FILE, read_clients

    clients = read_clients(arguments.folder / CLIENTS_FILE)
    say(f"{len(clients)} clients in {arguments.folder / CLIENTS_FILE}")
    for name, client in sorted(clients.items()):
        say(f"  {name:24} {client.key}  {', '.join(sorted(client.may)) or 'nothing'}")


def _remove(arguments: argparse.Namespace) -> None:
    from agent.wire.keys import remove_client

    done = remove_client(arguments.folder, arguments.name)
    say(
        f"{arguments.name}: refused from its next message on. Delete every copy of its folder: "
        "`add` would let the key that it finds there in again"
        if done
        else f"{arguments.name}: not there"
    )


_ACTIONS = {"init": _init, "add": _add, "allow": _allow, "list": _list, "remove": _remove}


def _with_key_last(words: list[str]) -> list[str]:
    """A public key may begin with a dash: it goes where it is not taken for an option."""
    keys = [word for word in words if word.startswith("-") and len(word) == 40]
    return [*(word for word in words if word not in keys), *(["--", *keys] if keys else [])]


def _permissions(text: str) -> list[str]:
    return [word for word in text.replace(" ", "").split(",") if word]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="perennial keys", description=__doc__)
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    for name, summary in (
        ("init", "make the server's key pair and an empty list of clients; what is there stays"),
        ("add", "let a client in and make its folder of keys; again: change what it may do"),
        ("allow", "let a client in by the public key of a pair that it made itself"),
        ("list", "who is let in, with public key and permissions"),
        ("remove", "refuse a client from its next message on"),
    ):
        action = actions.add_parser(name, help=summary, description=summary)
        action.add_argument("folder", type=user_path, help="the server's keys_dir")
        if name in ("add", "allow", "remove"):
            action.add_argument("name", help="the client's name in logs and permissions")
        if name == "allow":
            action.add_argument(
                "public_key", help="40 characters of Z85 in single quotes, or a .key file"
            )
        if name in ("add", "allow"):
            action.add_argument(
                "--may", type=_permissions, required=True, metavar="P,P", help=MAY_HELP
            )
        if name == "add":
            action.add_argument(
                "--out",
                type=user_path,
                help="the client's new folder (default: FOLDER/clients/NAME)",
            )
    return parser


if __name__ == "__main__":
    run_command(main)
