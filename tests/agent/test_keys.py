"""Keys in files: private from the first moment on, checked when read, and never shown."""

import os
import stat
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path

import pytest
import yaml
import zmq
import zmq.auth
from hypothesis import example, given, settings
from hypothesis import strategies as st
from patience import HANG_S

from agent import cli_keys
from agent.wire import client_list, keys
from agent.wire.client_list import ClientList, Permission, parse_clients, read_clients
from agent.wire.errors import ConfigError

ROOT = Path(__file__).parents[2]
KEY = "Yne@$w-vo<fVvi]a<NY6T1ed:M$fCG*[IaLV{hID"


@pytest.fixture
def server(tmp_path):
    folder = tmp_path / "server"
    keys.ensure_server_keys(folder)
    return folder


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def add(server: Path, name: str = "arm-1", may=("act",), out: Path | None = None) -> Path:
    out = out or server.parent / name
    keys.ensure_client(server, name, may, out)
    return out


def entries(server: Path) -> dict:
    return read_clients(server / "clients.yaml")


# ---- making ----------------------------------------------------------------------------------


def test_files_are_private_even_with_an_open_umask(tmp_path):
    before = os.umask(0)
    try:
        keys.ensure_server_keys(tmp_path / "server")
        add(tmp_path / "server", out=tmp_path / "server" / "clients" / "arm-1")
    finally:
        os.umask(before)
    private = [p for p in tmp_path.rglob("*") if p.suffix != ".key"]
    assert {mode(p) for p in private if p.is_dir()} == {0o700}
    assert {mode(p) for p in private if p.is_file()} == {0o600}


def test_a_secret_file_is_never_open_to_others(tmp_path, monkeypatch):
    seen = []
    plain_open = os.open

    def spy(path, flags, *more, **options):
        descriptor = plain_open(path, flags, *more, **options)
        if flags & os.O_CREAT and "key_secret" in str(path):
            seen.append(stat.S_IMODE(os.fstat(descriptor).st_mode))
        return descriptor

    monkeypatch.setattr(os, "open", spy)
    before = os.umask(0)
    try:
        keys.ensure_server_keys(tmp_path / "server")
    finally:
        os.umask(before)
    assert seen == [0o600]


def test_certificates_are_those_of_pyzmq_in_both_directions(server, tmp_path):
    pair = keys.load_server_keys(server)
    assert zmq.auth.load_certificate(server / "server.key_secret") == (
        pair.public.encode(),
        pair.secret.encode(),
    )
    assert zmq.auth.load_certificate(server / "server.key") == (pair.public.encode(), None)
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    _, secret_path = zmq.auth.create_certificates(foreign, "server", metadata={"name": "x"})
    Path(secret_path).chmod(0o600)
    assert len(keys.load_server_keys(foreign).public) == 40


def test_making_again_changes_nothing(server):
    out = add(server)
    files = {p: p.read_bytes() for p in server.parent.rglob("*") if p.is_file()}
    keys.ensure_server_keys(server)
    assert add(server) == out
    assert {p: p.read_bytes() for p in server.parent.rglob("*") if p.is_file()} == files


def test_what_a_crash_left_out_is_made_up_for(server):
    out = add(server)
    pair = keys.load_client_keys(out).pair
    (out / "client.key").unlink()
    (out / "server.key").unlink()
    keys.remove_client(server, "arm-1")
    add(server)
    assert keys.load_client_keys(out).pair == pair
    assert entries(server)["arm-1"].key == pair.public


def test_a_client_whose_folder_has_moved_keeps_its_key(server, tmp_path):
    add(server).rename(tmp_path / "moved")
    before = entries(server)["arm-1"].key
    assert not keys.ensure_client(server, "arm-1", ["act", "report"], tmp_path / "arm-1")
    assert not (tmp_path / "arm-1").exists()
    assert entries(server)["arm-1"].key == before
    assert entries(server)["arm-1"].may == {Permission.ACT, Permission.REPORT}


def test_removing_forgets_the_pair_that_was_made_inside(server):
    inside = keys.default_client_folder(server, "arm-1")
    add(server, out=inside)
    before = entries(server)["arm-1"].key
    assert keys.remove_client(server, "arm-1")
    assert not inside.exists()
    assert not keys.remove_client(server, "arm-1")
    add(server, out=inside)
    assert entries(server)["arm-1"].key != before


def test_a_name_and_a_key_belong_together(server):
    out = add(server)
    with pytest.raises(ConfigError, match="has another key"):
        keys.allow_client(server, "arm-1", KEY, ["act"])
    with pytest.raises(ConfigError, match="have the same key"):
        keys.allow_client(server, "arm-2", entries(server)["arm-1"].key, ["act"])
    keys.allow_client(server, "own", KEY, ["act"])
    with pytest.raises(ConfigError, match="holds another"):
        keys.ensure_client(server, "own", ["act"], out)
    assert set(entries(server)) == {"arm-1", "own"}


@pytest.mark.parametrize("name", ["", "../x", "a b", "a/b", "x" * 65, ".hidden"])
def test_a_bad_name_makes_nothing(server, tmp_path, name):
    with pytest.raises(ConfigError, match="client name"):
        keys.ensure_client(server, name, ["act"], tmp_path / "out")
    assert not (tmp_path / "out").exists()


# ---- reading ---------------------------------------------------------------------------------


@pytest.mark.parametrize("open_mode", [0o640, 0o604, 0o644, 0o666])
def test_a_secret_that_others_can_read_is_refused(server, open_mode):
    path = server / "server.key_secret"
    path.chmod(open_mode)
    with pytest.raises(ConfigError, match=f"run: chmod 600 {path}$"):
        keys.load_server_keys(server)


def damaged(name: str, text: bytes):
    def damage(folder: Path) -> None:
        (folder / name).write_bytes(text)

    return damage


@pytest.mark.parametrize(
    ("damage", "text"),
    [
        (lambda f: (f / "client.key_secret").unlink(), "perennial keys add"),
        (lambda f: (f / "server.key").unlink(), "keys are made by"),
        (lambda f: (f / "client.key_secret").write_bytes((f / "server.key").read_bytes()),
         "holds only a public key"),
        (lambda f: (f / "server.key").write_bytes((f / "client.key_secret").read_bytes()),
         "holds a secret key where the public one"),
        (damaged("client.key_secret", b""), "no public-key"),
        (damaged("client.key_secret", b"public-key = 3\nsecret-key = 4\n"), "40 characters"),
        (damaged("client.key_secret", b"\xff" * 2000), "no public-key"),
        (damaged("server.key", b'public-key = "short"'), "40 characters"),
        (damaged("server.key", b'public-key = "' + b"#" * 40 + b'"'), "40 characters"),
    ],
)  # fmt: skip
def test_what_cannot_be_a_key_is_refused_in_one_line(server, damage, text):
    out = add(server)
    secret = keys.load_client_keys(out).pair.secret
    damage(out)
    with pytest.raises(ConfigError, match=text) as refusal:
        keys.load_client_keys(out)
    assert "\n" not in str(refusal.value)
    assert secret not in str(refusal.value)


def test_keys_that_do_not_belong_together_are_refused(server):
    public, _ = zmq.curve_keypair()
    _, secret = zmq.curve_keypair()
    text = b'public-key = "' + public + b'"\nsecret-key = "' + secret + b'"\n'
    (server / "server.key_secret").write_bytes(text)
    with pytest.raises(ConfigError, match="does not belong") as refusal:
        keys.load_server_keys(server)
    assert secret.decode() not in str(refusal.value)


@settings(max_examples=60, deadline=None)
@given(st.binary(max_size=200))
@example(b'public-key = "' + KEY.encode() + b'"\nsecret-key = "' + KEY.encode() + b'"')
def test_no_bytes_of_a_secret_file_escape_as_another_error(tmp_path_factory, text):
    folder = tmp_path_factory.mktemp("keys")
    path = folder / "server.key_secret"
    path.write_bytes(text)
    path.chmod(0o600)
    with pytest.raises(ConfigError):
        keys.load_server_keys(folder)


def test_no_repr_shows_a_secret(server):
    pair, client = keys.load_server_keys(server), keys.load_client_keys(add(server))
    assert pair.secret not in f"{pair!r} {pair}"
    assert client.pair.secret not in f"{client!r} {client}"


# ---- the list of clients ---------------------------------------------------------------------


@settings(max_examples=150, deadline=None)
@given(
    st.one_of(
        st.binary(max_size=300),
        st.text(alphabet="clientskeymayact:-[]{}#&*!|>'\"%@`?, \n\t01~<", max_size=200).map(
            lambda text: b"clients:\n" + text.encode()
        ),
        st.recursive(
            st.none() | st.booleans() | st.integers() | st.text(max_size=10) | st.just(KEY),
            lambda inner: (
                st.lists(inner, max_size=3)
                | st.dictionaries(
                    st.sampled_from(["clients", "key", "may", "a"]), inner, max_size=3
                )
            ),
            max_leaves=12,
        ).map(lambda tree: yaml.safe_dump(tree).encode()),
    )
)
@example(b"\n[" * 20_000)
@example(b"clients: {a: &a [*a]}")
@example(b"? [a]\n: b\nclients: {}")
@example(b"!!python/object/apply:os.system [true]")
@example(b"clients: {2001-99-99: {key: 0x, may: [=]}}")
@example(b"clients: {}\x00")
def test_no_bytes_of_the_list_escape_as_another_error(text):
    try:
        clients = parse_clients(text)
    except ConfigError as error:
        lines, clients = str(error).splitlines(), {}
    else:
        lines = [""]
    assert len(lines) == 1
    assert all(client.name == name for name, client in clients.items())


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "expected exactly clients"),
        ("clients: {}\nmore: 1", "expected exactly clients"),
        ("clients: []", "one for each client"),
        (f"clients: {{a: {{key: '{KEY}'}}}}", "expected exactly key and may"),
        (f"clients: {{a: {{key: '{KEY}', may: act}}}}", "expected a list"),
        (f"clients: {{a: {{key: '{KEY}', may: [fly]}}}}", "got 'fly'"),
        ("clients: {a: {key: abc, may: [act]}}", "40 characters"),
        (f"clients: {{'a b': {{key: '{KEY}', may: []}}}}", "client name"),
        (f"clients:\n  a: {{key: '{KEY}', may: []}}\n  b: {{key: '{KEY}', may: []}}", "same key"),
        (f"clients:\n  a: {{key: '{KEY}', may: []}}\n  a: {{key: '{KEY}', may: []}}", "twice"),
    ],
)  # fmt: skip
def test_the_list_is_checked_strictly(text, expected):
    with pytest.raises(ConfigError, match=expected):
        parse_clients(text.encode())


def test_changes_count_from_the_next_look_on_and_damage_changes_nothing(server, caplog):
    clients = ClientList(server / "clients.yaml")
    assert clients.find(KEY) is None
    keys.allow_client(server, "a", KEY, ["act"])
    assert clients.find(KEY).may == {Permission.ACT}
    keys.allow_client(server, "a", KEY, ["act", "operate"])
    assert clients.find(KEY).may == {Permission.ACT, Permission.OPERATE}
    good = (server / "clients.yaml").read_bytes()
    for damage in (b"clients: {", b"\xff"):
        (server / "clients.yaml").write_bytes(damage)
        assert clients.find(KEY).name == "a"
    (server / "clients.yaml").unlink()
    assert clients.find(KEY).name == "a"
    assert caplog.text.count("stay as they were") == 3
    (server / "clients.yaml").write_bytes(good)
    keys.remove_client(server, "a")
    assert clients.find(KEY) is None


def test_a_look_while_another_thread_reads_waits_for_the_new_list(server, monkeypatch):
    clients = ClientList(server / "clients.yaml")
    keys.allow_client(server, "a", KEY, ["act"])
    reading, go_on = threading.Event(), threading.Event()

    def read_slowly(path):
        reading.set()
        assert go_on.wait(HANG_S)
        return read_clients(path)

    monkeypatch.setattr(client_list, "read_clients", read_slowly)
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(clients.find, KEY)
        assert reading.wait(HANG_S)
        second = pool.submit(clients.find, KEY)
        assert not wait([second], timeout=0.2).done, "it has nothing to answer with yet"
        go_on.set()
        assert first.result(HANG_S) == second.result(HANG_S) is not None


def test_a_list_that_others_can_write_is_refused(server):
    (server / "clients.yaml").chmod(0o622)
    with pytest.raises(ConfigError, match="chmod 600"):
        ClientList(server / "clients.yaml")


# ---- the command -----------------------------------------------------------------------------


def test_the_command_says_what_it_did_and_nothing_secret(tmp_path, capsys):
    server, out = str(tmp_path / "s"), str(tmp_path / "o")
    for words in (
        ["init", server],
        ["init", server],
        ["add", server, "sim", "--may", "act,report", "--out", out],
        ["add", server, "sim", "--may", "act,report", "--out", out],
        ["allow", server, "own", "-" + KEY[1:], "--may", "act"],
        ["allow", server, "own", "--may", "act", "-" + KEY[1:]],
        ["list", server],
        ["remove", server, "own"],
        ["remove", server, "own"],
        ["remove", server, "sim"],
    ):
        assert cli_keys.main(words) == 0
    printed = capsys.readouterr()
    assert printed.out.count("already there") == 2
    assert printed.out.count("let the key that it finds there in again") == 2
    assert "-" + KEY[1:] in printed.out
    for path in tmp_path.rglob("*.key_secret"):
        _, secret = zmq.auth.load_certificate(path)
        assert secret.decode() not in printed.out + printed.err


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["add", "S", "sim", "--may", "fly"], "expected some of act, report, operate"),
        (["add", "nowhere", "sim", "--may", "act"], "perennial keys init"),
        (["allow", "S", "x", "abc", "--may", "act"], "40 characters"),
        (["list", "nowhere"], "perennial keys init"),
    ],
)
def test_the_command_refuses_in_one_line(server, capsys, words, expected):
    nowhere = str(server.parent / "nowhere")
    words = [str(server) if w == "S" else nowhere if w == "nowhere" else w for w in words]
    assert cli_keys.main(words) == 2
    printed = capsys.readouterr().err
    assert expected in printed
    assert printed.count("\n") == 1


def test_a_folder_of_somebody_else_is_named_in_one_line(server, capsys, monkeypatch):
    def refuse(path: Path) -> bool:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "exists", refuse)  # as for a folder that may not be entered
    assert cli_keys.main(["init", str(server)]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"perennial keys: {server}/server.key_secret: Permission denied; make")


@pytest.mark.slow
def test_the_command_answers_help_without_heavy_imports():
    code = "import agent.cli_keys, agent.wire.keys, sys; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, timeout=HANG_S)


def test_what_is_refused_changes_no_folder(server: Path, tmp_path: Path) -> None:
    half = tmp_path / "half"
    half.mkdir(mode=0o755)
    for name in ("server.key", "client.key"):
        (half / name).write_bytes((server / "server.key").read_bytes())
    with pytest.raises(ConfigError, match=r"without its server\.key_secret"):
        keys.ensure_server_keys(half)
    with pytest.raises(ConfigError, match=r"without its client\.key_secret"):
        add(server, out=half)
    assert mode(half) == 0o755
    assert {path.name for path in half.iterdir()} == {"server.key", "client.key"}
