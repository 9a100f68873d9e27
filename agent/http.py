"""The HTTP side of a process: /metrics, /healthz and /readyz, on a thread of its own."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest

from agent.wire.errors import ConfigError

_PLAIN = "text/plain; charset=utf-8"
_SOCKET_TIMEOUT_S = 10.0


@dataclass(frozen=True, slots=True)
class Health:
    """`alive`: the main loop turns. `ready`: requests are answered. `reason`: why not, or ""."""

    alive: bool
    ready: bool
    reason: str = ""


class HttpServer:
    """Serves a metrics registry and the process's health; `port` 0 takes any free one.

    Raises ConfigError if the address cannot be bound.
    """

    def __init__(
        self,
        host: str,
        port: int,
        registry: CollectorRegistry,
        health: Callable[[], Health],
        *,
        insecure: bool = False,
    ) -> None:
        if not insecure and host not in ("127.0.0.1", "localhost", "::1"):
            raise ConfigError(
                f"http host {host} is reachable from other machines; use 127.0.0.1, or set "
                "insecure=true if the network is trusted"
            )
        handler = type(
            "Handler", (_Handler,), {"registry": registry, "health": staticmethod(health)}
        )
        try:
            self._server = ThreadingHTTPServer((host, port), handler)
        except OSError as error:
            raise ConfigError(
                f"cannot serve HTTP on {host}:{port}: {error.strerror or error}; "
                "choose another port, or 0 for any free one"
            ) from error
        self._server.daemon_threads = True
        self._thread = threading.Thread(
            target=self._server.serve_forever,
            name="http",
            daemon=True,
            kwargs={"poll_interval": 0.2},
        )

    @property
    def url(self) -> str:
        """http://HOST:PORT as bound."""
        host, port = self._server.server_address[:2]
        return f"http://{host if isinstance(host, str) else host.decode()}:{port}"

    def start(self) -> None:
        """Serves until `close`."""
        self._thread.start()

    def close(self) -> None:
        """Stops serving."""
        if self._thread.is_alive():
            self._server.shutdown()
            self._thread.join(timeout=5)
        self._server.server_close()


class _Handler(BaseHTTPRequestHandler):
    registry: CollectorRegistry
    health: Callable[[], Health]
    timeout = _SOCKET_TIMEOUT_S
    server_version = "perennial"
    sys_version = ""

    def do_GET(self) -> None:
        """Answers the three paths; anything else is 404."""
        path = self.path.partition("?")[0]
        if path == "/metrics":
            self._answer(200, CONTENT_TYPE_LATEST, generate_latest(self.registry))
        elif path == "/healthz":
            health = self.health()
            self._answer_health(health.alive, health.reason)
        elif path == "/readyz":
            health = self.health()
            self._answer_health(health.alive and health.ready, health.reason)
        else:
            self._answer(404, _PLAIN, b"not found; try /metrics, /healthz or /readyz\n")

    def log_message(self, format: str, *args: object) -> None:
        """Scrapes are not logged."""

    def _answer_health(self, good: bool, reason: str) -> None:
        text = "ok" if good else f"unavailable: {reason}"
        self._answer(200 if good else 503, _PLAIN, f"{text}\n".encode())

    def _answer(self, status: int, content_type: str, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
