"""The HTTP side of a process: /metrics, /healthz and /readyz, on threads of its own."""

from __future__ import annotations

import logging
import socket
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from socketserver import TCPServer
from typing import Any

from prometheus_client import CONTENT_TYPE_LATEST

from agent.metric_set import ScrapeBusy
from agent.process.shown import printable
from agent.wire.endpoints import is_loopback
from agent.wire.errors import ConfigError

log = logging.getLogger(__name__)

_PLAIN = "text/plain; charset=utf-8"
_SOCKET_TIMEOUT_S = 10.0
HTTP_CONNECTIONS_MAX = 32
_NO_DESCRIPTORS_PAUSE_S = 0.1


@dataclass(frozen=True, slots=True)
class Health:
    """`alive`: the main loop turns. `ready`: requests are answered. `reason`: why not, or ""."""

    alive: bool
    ready: bool
    reason: str = ""

    @property
    def serving(self) -> bool:
        """Whether /readyz answers 200."""
        return self.alive and self.ready


class HttpServer:
    """Serves a process's metrics and health; `port` 0 takes any free one.

    Args:
        metrics: makes the text of /metrics, on the thread of the request; may raise ScrapeBusy.
        is_open: whether `host` may be reachable from other machines: nothing is encrypted.

    Raises ConfigError if the address cannot be bound.
    """

    def __init__(
        self,
        host: str,
        port: int,
        metrics: Callable[[], bytes],
        health: Callable[[], Health],
        *,
        is_open: bool = False,
    ) -> None:
        host = host.strip("[]")
        if not is_open and not is_loopback(host):
            raise ConfigError(
                f"http_host={host}: other machines could read metrics and health there, in clear; "
                "use 127.0.0.1, or set http_open=true (they hold no secret)"
            )
        handler = type(
            "Handler",
            (_Handler,),
            {"metrics": staticmethod(metrics), "health": staticmethod(health)},
        )
        server = _ServerV6 if ":" in host else _Server
        try:
            self._server = server((host, port), handler)
        except (OSError, OverflowError, UnicodeError) as error:
            reason = getattr(error, "strerror", None) or "no such host or port"
            raise ConfigError(
                f"cannot serve HTTP on {host}:{port}: {reason}; "
                "choose another port, or 0 for any free one"
            ) from error
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
        name = str(host).replace("%", "%25")  # as a URL has the zone of an address
        return f"http://[{name}]:{port}" if ":" in name else f"http://{name}:{port}"

    def start(self) -> None:
        """Serves until `close`."""
        self._thread.start()

    def close(self) -> None:
        """Stops serving."""
        if self._thread.is_alive():
            self._server.shutdown()
            self._thread.join(timeout=5)
        self._server.server_close()


class _Server(ThreadingHTTPServer):
    """Bounds its connections: where there is one too many, the oldest goes, which says nothing."""

    daemon_threads = True
    request_queue_size = 128  # connections that wait to be taken

    def __init__(self, address: tuple[str, int], handler: type[BaseHTTPRequestHandler]) -> None:
        self._lock = threading.Lock()
        self._open: dict[socket.socket, None] = {}  # the oldest first
        super().__init__(address, handler)

    def get_request(self) -> tuple[socket.socket, Any]:
        """Without descriptors the next attempt is not at once: it would take all of a core."""
        try:
            return super().get_request()
        except OSError:
            time.sleep(_NO_DESCRIPTORS_PAUSE_S)
            raise

    def process_request(self, request: Any, client_address: Any) -> None:
        with self._lock:
            self._open[request] = None
            oldest = next(iter(self._open))
            is_surplus = len(self._open) > HTTP_CONNECTIONS_MAX
            if is_surplus:
                del self._open[oldest]
        if is_surplus:
            with suppress(OSError):  # it has gone
                oldest.shutdown(socket.SHUT_RDWR)
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        with self._lock:
            self._open.pop(request, None)
        super().shutdown_request(request)

    def server_bind(self) -> None:
        """Binds without asking for the host's name, which takes long where there is no DNS."""
        TCPServer.server_bind(self)
        self.server_name, self.server_port = str(self.server_address[0]), self.server_address[1]

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that went away is nothing to report."""
        error = sys.exception()
        if not isinstance(error, ConnectionError | TimeoutError):
            log.error("HTTP request failed", exc_info=error)


class _ServerV6(_Server):
    address_family = socket.AF_INET6


class _Handler(BaseHTTPRequestHandler):
    metrics: Callable[[], bytes]
    health: Callable[[], Health]
    timeout = _SOCKET_TIMEOUT_S
    server_version = "perennial"
    sys_version = ""

    def do_GET(self) -> None:
        """Answers the three paths; anything else is 404."""
        path = self.path.partition("?")[0]
        if path == "/metrics":
            self._answer_metrics()
        elif path == "/healthz":
            health = self.health()
            self._answer_health(health.alive, health.reason)
        elif path == "/readyz":
            health = self.health()
            self._answer_health(health.serving, health.reason)
        else:
            self._answer(404, _PLAIN, b"not found; try /metrics, /healthz or /readyz\n")

    def log_message(self, format: str, *args: object) -> None:
        """Scrapes are not logged."""

    def _answer_metrics(self) -> None:
        try:
            text = self.metrics()
        except ScrapeBusy as error:
            self._answer(503, _PLAIN, f"unavailable: {error}\n".encode())
        else:
            self._answer(200, CONTENT_TYPE_LATEST, text)

    def _answer_health(self, good: bool, reason: str) -> None:
        reason = printable(reason, 1000)
        text = f"unavailable: {reason}"
        if good:
            text = f"ok, but {reason}" if reason else "ok"
        self._answer(200 if good else 503, _PLAIN, f"{text}\n".encode())

    def _answer(self, status: int, content_type: str, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
