"""Which addresses may be bound and connected to, and that they work."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from agent.http import Health, HttpServer
from agent.wire.endpoints import address_of, check_endpoint, is_loopback
from agent.wire.errors import ConfigError
from agent.wire.messages import Status
from agent.wire.sockets import DealerClient, RouterSocket


def has_ipv6() -> bool:
    """Whether this machine has the loopback address of IPv6."""
    try:
        with socket.socket(socket.AF_INET6) as sock:
            sock.bind(("::1", 0))
    except OSError:
        return False
    return True


@pytest.mark.parametrize(
    ("endpoint", "expected"),
    [
        ("tcp://127.0.0.1:99999", "expected a port of 0 to 65535, got '99999'"),
        ("tcp://127.0.0.1:65536", "expected a port"),
        ("tcp://127.0.0.1:-1", "expected a port"),
        ("tcp://127.0.0.1:", "expected a port"),
        ("tcp://127.0.0.1:5x", "expected a port"),
        ("tcp://127.0.0.1:५५५५", "expected a port"),
        ("tcp://127.0.0.1", r"expected tcp://HOST:PORT"),
        ("tcp://::1:5555", r"in brackets: tcp://\[::1\]:5555"),
        ("tcp://[::1:5555", "in brackets"),
        ("tcp://[::g]:5555", "no address of IPv6"),
        ("tcp://[127.0.0.1]:5555", "no address of IPv6"),
        ("tcp://127.0.0.999:5555", "no address of IPv4"),
        ("tcp://127.1:5555", "no address of IPv4"),
        ("tcp://a b:5555", "is no host"),
        ("tcp://:5555", "is no host"),
        ("udp://127.0.0.1:5555", "expected tcp://HOST:PORT or ipc://PATH"),
        ("ipc://", "expected tcp://HOST:PORT or ipc://PATH"),
        ("127.0.0.1:5555", "expected tcp://HOST:PORT or ipc://PATH"),
        ("ipc:///nowhere/at/all.sock", "create it first"),
        ("ipc:///tmp/" + "x" * 120, "longer than the 107 bytes"),
        ("ipc://~nobody-at-all/x", "names no user's home"),
        *((f"tcp://{host}:5555", "reachable from other machines") for host in (
            "*", "0.0.0.0", "[::]", "10.0.0.1", "[fe80::1%eth0]", "robot.lan", "[::ffff:10.0.0.1]",
            "localhost.lan", "2130706433.lan",
        )),
    ],
)  # fmt: skip
def test_what_cannot_work_or_must_not_be_bound(endpoint: str, expected: str) -> None:
    with pytest.raises(ConfigError, match=expected) as refused:
        check_endpoint(endpoint, bind=True)
    assert "\n" not in str(refused.value)


def test_a_client_needs_a_port() -> None:
    for endpoint in ("tcp://127.0.0.1:0", "tcp://127.0.0.1:*", "tcp://*:5555"):
        with pytest.raises(ConfigError):
            check_endpoint(endpoint, bind=False)
    for host in ("robot.lan", "10.0.0.1", "[2001:db8::1]", "[fe80::1%eth0]", "localhost"):
        check_endpoint(f"tcp://{host}:65535", bind=False)


@pytest.mark.parametrize("host", ["127.0.0.1", "127.9.9.9", "LocalHost", "[::1]", "::1",
                                  "[::ffff:127.0.0.1]"])  # fmt: skip
def test_loopback_in_every_spelling(host: str) -> None:
    assert is_loopback(host)


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "[::1]"])
def test_an_address_is_bound_and_found(host: str) -> None:
    if host == "[::1]" and not has_ipv6():
        pytest.skip("this machine has no IPv6")
    with RouterSocket(f"tcp://{host}:0") as server, DealerClient(server.endpoint) as client:
        client.send(Status())
        assert is_received(server)


def test_the_path_of_a_socket_is_the_same_from_every_folder(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path_factory.mktemp("s")
    monkeypatch.chdir(folder)
    monkeypatch.setenv("HOME", str(folder))
    with RouterSocket("ipc://rel.sock") as server:
        assert server.endpoint == f"ipc://{folder}/rel.sock"
        monkeypatch.chdir("/")
        with DealerClient("ipc://~/rel.sock") as client:
            client.send(Status())
            assert is_received(server)
    assert address_of("ipc://@abstract") == "ipc://@abstract"


def is_received(server: RouterSocket) -> bool:
    """Waits as long as a busy machine may take."""
    import time

    ends = time.monotonic() + 60
    while time.monotonic() < ends:
        if server.receive() is not None:
            return True
        time.sleep(0.01)
    return False


@pytest.mark.parametrize(("host", "port"), [("127.0.0.1", 99999), ("nowhere.invalid", 0),
                                            ("x" * 100, 0)])  # fmt: skip
def test_http_that_cannot_be_served_is_one_line(host: str, port: int) -> None:
    with pytest.raises(ConfigError, match="cannot serve HTTP") as refused:
        HttpServer(host, port, bytes, lambda: Health(True, True), is_open=True)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("host", ["::1", "[::1]"])
def test_http_on_ipv6(host: str) -> None:
    if not has_ipv6():
        pytest.skip("this machine has no IPv6")
    server = HttpServer(host, 0, bytes, lambda: Health(True, True))
    try:
        assert server.url.startswith("http://[::1]:")
    finally:
        server.close()


def test_a_private_socket_has_a_short_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from contextlib import ExitStack

    from agent.server.endpoints import private_endpoint

    long = tmp_path / ("x" * 100)
    long.mkdir()
    for folder in (long, tmp_path / "missing"):
        monkeypatch.setenv("XDG_RUNTIME_DIR", str(folder))
        with ExitStack() as stack:
            check_endpoint(private_endpoint(stack), bind=True)
