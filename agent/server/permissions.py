"""What a client's key must allow for each message that it sends."""

from __future__ import annotations

from agent.wire import messages as m
from agent.wire.client_list import Client, Permission, brief_key
from agent.wire.errors import WireError

# Every message type that a server answers; a test compares the two.
NEEDED: dict[type, Permission] = {
    m.Hello: Permission.ACT,
    m.Assign: Permission.ACT,
    m.Telemetry: Permission.ACT,
    m.EpisodeStart: Permission.ACT,
    m.Act: Permission.ACT,
    m.EpisodeEnd: Permission.REPORT,  # ACT if it is aborted: that counts for nothing
    m.LearnerHello: Permission.OPERATE,
    m.PostOrders: Permission.OPERATE,
    m.FetchEpisodes: Permission.OPERATE,
    m.FetchPart: Permission.OPERATE,
    m.RejectEpisodes: Permission.OPERATE,
    m.AckEpisodes: Permission.OPERATE,
    m.Activate: Permission.OPERATE,
    m.Rollback: Permission.OPERATE,
    m.Status: Permission.OPERATE,
}


def check_kind(kind: type, sender: Client) -> None:
    """Check, before a message is read, that the sender may send any of its kind.

    Raises:
        WireError: forbidden.
    """
    may_be_any = kind is m.EpisodeEnd and Permission.ACT in sender.may
    if not may_be_any:
        _require(NEEDED[kind], kind.__name__, sender)


def needed_for(message: object) -> Permission:
    """The permission that this message needs."""
    if isinstance(message, m.EpisodeEnd) and message.outcome == m.Outcome.ABORTED:
        return Permission.ACT
    return NEEDED[type(message)]


def check_permission(message: object, sender: Client) -> None:
    """Raises WireError("forbidden") that names the client, what it lacks and the way out."""
    _require(needed_for(message), type(message).__name__, sender)


def _require(needed: Permission, what: str, sender: Client) -> None:
    if needed in sender.may:
        return
    if not sender.name:
        raise WireError(
            "forbidden",
            f"{what}: the key {brief_key(sender.key)} is no longer let in; have the server's "
            f"operator run: perennial keys allow KEYS NAME '{sender.key}' --may {needed}",
        )
    wanted = ",".join(sorted(sender.may | {needed}))
    raise WireError(
        "forbidden",
        f"{what}: client {sender.name!r} may not {needed} (it may {_listed(sender)}); have the "
        f"server's operator run: perennial keys add KEYS {sender.name} --may {wanted}",
    )


def check_episode_owner(episode_id: str, owner: str, sender: str) -> None:
    """Raises WireError("forbidden") for anybody but the client that opened the episode."""
    if sender != owner:
        raise WireError(
            "forbidden",
            f"episode {episode_id} belongs to another client than {sender!r}; only the key that "
            "opened it may go on with it",
        )


def _listed(sender: Client) -> str:
    return ", ".join(sorted(sender.may)) or "nothing"
