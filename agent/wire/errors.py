"""The errors of the wire. Errors are translated into ours once, at the edge where they appear."""

from __future__ import annotations

from agent.process.errors import ConfigError, PerennialError

FAULT_CODES = frozenset(
    {
        "bad_message",  # not decodable, or a field missing, extra or of the wrong type
        "too_large",  # more bytes, parts or nesting than the limits allow
        "unknown_type",  # a message type this endpoint does not answer
        "forbidden",  # the client's key lacks the permission, or the thing is another client's
        "version_mismatch",  # another protocol version
        "unknown_episode",
        "unknown_slot",
        "unknown_task",
        "unknown_version",  # an adapter version that the store does not hold intact
        "lease_lost",  # the slot was leased again after a silence
        "bad_array",  # dtype, shape, size or a non-finite value
        "bad_outcome",
        "wrong_step",  # neither the next step index nor a repeat of the last
        "episode_open_elsewhere",
        "stale_epoch",  # a newer learner, or a newer process of this client, has said hello
        "order_refused",  # a slot was aborted too often: the order cannot be carried out
        "conflict",  # the same identity with other content
        "server_restarted",
        "overloaded",  # ask again later
        "deadline",  # the request's own deadline passed before it was served
        "internal",  # a bug or a failing disk on the server's side; its log has the traceback
        "timeout",  # raised by the client: no reply in time
    }
)


class HandshakeRefused(ConfigError):
    """Server and client do not accept each other's keys; no waiting mends that."""


class WireError(PerennialError):
    """A message that was refused: by the codec, or by the peer with a `Fault`.

    `code` is one of FAULT_CODES. `request_id` is the id of the refused request where it could
    still be read, else 0.
    """

    def __init__(self, code: str, message: str, request_id: int = 0) -> None:
        if code not in FAULT_CODES:
            raise ValueError(f"unknown fault code {code!r}, expected one of {sorted(FAULT_CODES)}")
        super().__init__(f"{code}: {message}")
        self.code = code
        self.message = message
        self.request_id = request_id


class RequestTimeout(WireError):
    """No reply within the time allowed; the peer may or may not have seen the request."""

    def __init__(self, endpoint: str, elapsed_s: float, what: str) -> None:
        super().__init__("timeout", f"no reply to {what} from {endpoint} after {elapsed_s:.1f} s")
        self.endpoint = endpoint
        self.elapsed_s = elapsed_s
