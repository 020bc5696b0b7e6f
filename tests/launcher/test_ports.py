"""Which port a server gets, among servers of this package and others."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pytest_infserver import CommandServer, PortInUseError, ServerStartupError, VLLMServer
from pytest_infserver.launcher.startup import launching, ports
from pytest_infserver.system.disk import places

pytestmark = pytest.mark.usefixtures("nothing_left")

FakeServer = Callable[..., CommandServer]
QUIET_PORT = 20_000 + os.getpid() % 10_000
"""A port that other runs of these tests do not choose."""


@pytest.fixture
def listener() -> socket.socket:
    return socket.create_server(("127.0.0.1", 0))


def port_of(listener: socket.socket) -> int:
    return int(listener.getsockname()[1])


def test_named_port_that_is_taken_is_an_immediate_error(fake_server: FakeServer, listener: socket.socket) -> None:
    with listener:
        server = fake_server(port=port_of(listener))
        with pytest.raises(PortInUseError) as caught:
            server.start()
    message = str(caught.value)
    assert f"port {port_of_message(message)} is taken by pid {os.getpid()} (" in message
    assert Path(sys.argv[0]).name in message or "python" in message
    assert server.launches == 0
    assert server.pid is None


def port_of_message(message: str) -> str:
    return message.partition("port ")[2].partition(" ")[0]


def test_what_answers_on_the_port_of_a_server_that_is_gone_is_another(listener: socket.socket) -> None:
    with listener:
        gone = subprocess.Popen([sys.executable, "-c", ""])
        gone.wait(60)
        assert ports.is_listener(port_of(listener), gone.pid, gone.pid) is False
        assert ports.is_listener(port_of(listener), None, None) is None


def test_named_port_of_a_server_of_ours(fake_server: FakeServer) -> None:
    first = fake_server().start()
    with pytest.raises(PortInUseError, match=rf"pid {first.pid} .*fake_engine"):
        fake_server(port=first.port).start()
    assert first.check_health()


def test_unnamed_port_is_8000_or_the_next(fake_server: FakeServer) -> None:
    first, second = fake_server().start(), fake_server().start()
    assert first.port in range(8000, 9000)
    assert second.port in range(8000, 9000)
    assert second.port != first.port
    assert fake_server().port == 8000


def test_port_that_is_listened_on_is_passed_over(monkeypatch: pytest.MonkeyPatch, listener: socket.socket) -> None:
    with listener:
        port = port_of(listener)
        monkeypatch.setattr(ports, "_SEARCH", range(port, port + 1))
        reservation = ports.reserve_port("127.0.0.1", None)
        assert reservation.port != port
        reservation.release()


def test_ports_to_avoid(monkeypatch: pytest.MonkeyPatch) -> None:
    first = ports.reserve_port("127.0.0.1", None)
    first.release()
    second = ports.reserve_port("127.0.0.1", None, avoid=[first.port])
    second.release()
    assert second.port != first.port


def test_reserved_port_is_kept_from_others_until_it_is_released(monkeypatch: pytest.MonkeyPatch) -> None:
    first = ports.reserve_port("127.0.0.1", QUIET_PORT)
    try:
        monkeypatch.setattr(ports, "_PATIENCE", 0)
        with pytest.raises(PortInUseError, match=f"another server of pytest-infserver .*started by pid {os.getpid()}"):
            ports.reserve_port("127.0.0.1", QUIET_PORT)
    finally:
        first.release()
    ports.reserve_port("127.0.0.1", QUIET_PORT).release()


def test_port_that_is_promised_to_another_server_is_not_even_probed(monkeypatch: pytest.MonkeyPatch) -> None:
    """To bind it for a moment may be in the way of that server's own bind."""
    monkeypatch.setattr(ports, "_SEARCH", range(QUIET_PORT, QUIET_PORT + 2))
    promised = ports.reserve_port("127.0.0.1", QUIET_PORT)
    probed: list[int] = []
    is_free = ports.is_free

    def note(host: str, port: int, **how: bool) -> bool:
        probed.append(port)
        return is_free(host, port, **how)

    monkeypatch.setattr(ports, "is_free", note)
    other = ports.reserve_port("127.0.0.1", None)
    other.release()
    promised.release()
    assert other.port == QUIET_PORT + 1
    assert probed == [QUIET_PORT + 1]


def test_port_that_is_held_for_a_restart_is_nobody_elses_in_between(
    fake_server: FakeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ports, "_SEARCH", range(QUIET_PORT, QUIET_PORT + 2))
    server = fake_server()
    server.runtime.holds_port = True
    over = threading.Event()

    def take_what_is_free() -> None:
        while not over.is_set():
            # The other two may have both.
            with contextlib.suppress(PortInUseError):
                ports.reserve_port("127.0.0.1", None).release()

    others = [threading.Thread(target=take_what_is_free) for _ in range(3)]
    try:
        server.start()
        port = server.port
        for other in others:
            other.start()
        for _ in range(5):
            os.kill(server.pid or 0, signal.SIGKILL)
            assert server.wait_death(30)
            server.start()
            assert server.port == port
    finally:
        over.set()
        for other in others:
            other.join()
        server.stop()
        server.runtime.release_port()


def test_port_of_a_server_that_is_about_to_be_gone_is_waited_for() -> None:
    leaving = ports.reserve_port("127.0.0.1", QUIET_PORT)
    timer = threading.Timer(0.3, leaving.release)
    timer.start()
    ports.reserve_port("127.0.0.1", QUIET_PORT).release()
    timer.join()


def test_no_port_at_all_is_an_error(fake_server: FakeServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ports, "is_free", lambda host, port, **how: False)
    with pytest.raises(PortInUseError, match="no free port"):
        fake_server().start()


def test_port_that_is_not_for_this_user(fake_server: FakeServer, monkeypatch: pytest.MonkeyPatch) -> None:
    class Unprivileged(socket.socket):
        """Refuses low ports, as the kernel does for anybody but root."""

        def bind(self, address: tuple[str, int]) -> None:  # type: ignore[override]
            raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(ports.socket, "socket", Unprivileged)
    with pytest.raises(ServerStartupError, match="port 1 cannot be used by this user"):
        fake_server(port=1).start()


@pytest.mark.parametrize("mine", ["127.0.0.1", "0.0.0.0"])
def test_taken_on_another_address_counts_where_it_collides(mine: str) -> None:
    # The listener of this test is on loopback only: the kernel refuses the wildcard address as well.
    with socket.create_server(("127.0.0.1", 0)) as listener:
        assert not ports.is_free(mine, port_of(listener))


@pytest.fixture
def resting() -> int:
    """A port on which nobody listens, and where a connection is in TIME_WAIT."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = port_of(listener)
        client = socket.create_connection(("127.0.0.1", port))
        accepted = listener.accept()[0]
        # Who closes first has it.
        accepted.close()
        client.close()
    return port


def test_connection_in_time_wait_does_not_take_a_named_port(resting: int) -> None:
    """Nearly all servers set SO_REUSEADDR."""
    assert ports.is_free("127.0.0.1", resting)
    ports.reserve_port("127.0.0.1", resting).release()


def test_a_port_of_our_choice_is_good_for_a_server_without_reuseaddr(resting: int) -> None:
    with socket.create_server(("127.0.0.1", 0)) as unused:
        other = port_of(unused)
    for search in ([resting, other], [other, resting]):
        reservation = ports.reserve_port("127.0.0.1", None, search=search, at_random=True)
        reservation.release()
        assert reservation.port == other
    # Nearly all servers can have it: better than none of those where one is looked for.
    reservation = ports.reserve_port("127.0.0.1", None, search=[resting], at_random=True)
    reservation.release()
    assert reservation.port == resting


WITHOUT_REUSEADDR = """
import os, socket, sys
mark, engine, port = sys.argv[1:]
if os.path.exists(mark):
    os.execv(sys.executable, [sys.executable, "-S", engine, "--port", port])
open(mark, "w").close()
with socket.socket() as listener:
    listener.bind(("127.0.0.1", int(port)))
    raise AssertionError("it could")
"""


def test_a_named_port_in_time_wait_is_waited_for_by_a_server_without_reuseaddr(
    resting: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its first launch fails. The system's minute is a short one here, and what is launched then does not need it."""
    engine = str(Path(__file__).parents[1] / "fake_engine.py")
    words = [sys.executable, "-S", "-c", WITHOUT_REUSEADDR, str(tmp_path / "mark"), engine, "{port}"]
    is_free = ports.is_free
    looks: list[int] = []

    def soon_rested(host: str, port: int, *, rested: bool = False) -> bool:
        looks.extend([port] * rested)
        return is_free(host, port, rested=rested and len(looks) < 3)

    monkeypatch.setattr(ports, "is_free", soon_rested)
    told: list[str] = []
    server = CommandServer(launch_command=words, output_dir=tmp_path, health_endpoint="/health", port=resting)
    server.on_progress = told.append
    with server:
        assert (server.port, server.launches) == (resting, 2)
    assert [text for text in told if "TIME_WAIT" in text] == told != []
    assert looks == [resting] * 3


def test_listeners_among_processes(listener: socket.socket) -> None:
    with listener:
        port = port_of(listener)
        assert ports.listener_pids(port, [os.getpid(), 2**22 + 1]) == {os.getpid()}
        assert ports.listener_pids(port, [2**22 + 1]) == set()


STARTER = """
import sys
from pytest_infserver import CommandServer
server = CommandServer(launch_command={command!r}, output_dir=sys.argv[1], name="race", startup_timeout=60)
sys.stdin.readline()
server.start()
print(server.port, server.log_path.parent.name, flush=True)
sys.stdin.readline()
server.stop()
"""


def test_servers_that_start_at_once_in_several_processes(fake_server: FakeServer, tmp_path: Path) -> None:
    """None of them gets the port or the log folder of another."""
    text = STARTER.format(command=list(fake_server().settings.launch_command or ()))
    starters = [
        subprocess.Popen(
            [sys.executable, "-c", text, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        for _ in range(3)
    ]
    try:
        for starter in starters:
            assert starter.stdin is not None
            starter.stdin.write("go\n")
            starter.stdin.flush()
        places = [starter.stdout.readline().split() for starter in starters if starter.stdout is not None]
        assert len({port for port, _ in places}) == len(starters)
        assert {folder for _, folder in places} == {"race", "race-2", "race-3"}
    finally:
        for starter in starters:
            starter.communicate("end\n", timeout=60)


LATE_LISTENER = """
import os, socket, sys
port = int(sys.argv[1])
if os.path.exists(sys.argv[2]):
    os.execv(sys.argv[3], [sys.argv[3], '-S', sys.argv[4], '--port', sys.argv[1]])
open(sys.argv[2], 'w').close()
print('OSError: [Errno 98] Address already in use', flush=True)
sys.exit(1)
"""


def late(tmp_path: Path, **settings: int) -> CommandServer:
    """Return a server that finds its port taken when it is launched for the first time."""
    engine = str(Path(__file__).parents[1] / "fake_engine.py")
    words = [sys.executable, "-I", "-S", "-c", LATE_LISTENER, "{port}", str(tmp_path / "mark"), sys.executable, engine]
    return CommandServer(launch_command=words, output_dir=tmp_path, startup_timeout=60, **settings)


def test_port_that_was_ours_to_choose_is_exchanged(tmp_path: Path, nothing_left: None) -> None:
    server = late(tmp_path).start()
    assert server.launches == 2
    assert server.check_health()
    server.stop()


def test_port_that_the_user_named_is_not_exchanged(tmp_path: Path, nothing_left: None) -> None:
    server = late(tmp_path, port=QUIET_PORT + 60)
    with pytest.raises(PortInUseError, match="Address already in use"):
        server.start()
    assert server.launches == 1


def test_port_is_not_exchanged_for_ever(fake_server: FakeServer) -> None:
    server = fake_server("--say", "OSError: [Errno 98] Address already in use", "--exit=1")
    with pytest.raises(PortInUseError):
        server.start()
    assert server.launches == 3


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_quick_look_agrees_with_the_thorough_one(host: str) -> None:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.create_server((host, 0), family=family) as listener, socket.create_server(("127.0.0.1", 0)):
        port = listener.getsockname()[1]
        assert ports._holds_listener(os.getpid(), port)
        assert not ports._holds_listener(os.getppid(), port)
        assert not ports._holds_listener(2**22 + 1, port)
    assert not ports._holds_listener(os.getpid(), port)


class TestPortsThatGoTogether:
    """An engine that derives further ports from its own gets all of them, or none."""

    @staticmethod
    def further(port: int) -> range:
        return range(port + 100, port + 103)

    def test_two_servers_share_none(self) -> None:
        first = ports.reserve_port("127.0.0.1", None, further=self.further)
        second = ports.reserve_port("127.0.0.1", None, further=self.further)
        blocks = [{one.port, *self.further(one.port)} for one in (first, second)]
        assert not blocks[0] & blocks[1]
        third = ports.reserve_port("127.0.0.1", None, avoid=range(8000, first.port + 100))
        assert third.port not in blocks[0] | blocks[1]
        for one in (first, second, third):
            one.release()
        again = ports.reserve_port("127.0.0.1", first.port, further=self.further)
        assert again.port == first.port
        again.release()

    def test_a_block_with_a_port_that_somebody_listens_on_is_passed_over(self) -> None:
        free = ports.reserve_port("127.0.0.1", None, further=self.further)
        free.release()
        with socket.create_server(("127.0.0.1", free.port + 101)):
            other = ports.reserve_port("127.0.0.1", None, further=self.further)
            other.release()
            assert other.port != free.port
        # Of the block that was passed over nothing stays locked.
        ports.reserve_port("127.0.0.1", free.port, further=self.further).release()

    def test_a_named_port_whose_block_is_taken_is_an_error_that_says_which(self) -> None:
        with socket.create_server(("127.0.0.1", QUIET_PORT + 102)):
            message = (
                rf"port {QUIET_PORT + 102}, which the engine uses beside {QUIET_PORT}, is taken by pid {os.getpid()} "
            )
            with pytest.raises(PortInUseError, match=message):
                ports.reserve_port("127.0.0.1", QUIET_PORT, further=self.further)
        ports.reserve_port("127.0.0.1", QUIET_PORT, further=self.further).release()

    def test_no_block_reaches_beyond_the_last_port(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(ports, "_SEARCH", range(65500, 65502))
        with pytest.raises(PortInUseError, match="no free port"):
            ports.reserve_port("127.0.0.1", None, further=lambda port: [65536])

    def test_a_named_port_whose_block_reaches_beyond_it_is_an_error_and_keeps_no_lock(self) -> None:
        for _ in range(2):
            with pytest.raises(PortInUseError, match="port 65536, which the engine uses beside 65530, does not exist"):
                ports.reserve_port("127.0.0.1", 65530, further=lambda port: [port + 1, port + 6])
        ports.reserve_port("127.0.0.1", 65530).release()

    def test_no_lock_stays_where_an_address_cannot_be_used(self) -> None:
        for port in (None, QUIET_PORT):
            with pytest.raises(ServerStartupError, match=r"nothing can listen on '203\.0\.113\.1'"):
                ports.reserve_port("203.0.113.1", port, further=self.further)
        ports.reserve_port("127.0.0.1", QUIET_PORT, further=self.further).release()

    def test_derived_ports_are_looked_for_on_the_loopback_address_too(self) -> None:
        with socket.create_server(("127.0.0.1", QUIET_PORT + 101)), pytest.raises(PortInUseError):
            ports.reserve_port("127.0.0.2", QUIET_PORT, further=self.further)
        with socket.create_server(("127.0.0.1", QUIET_PORT)):
            ports.reserve_port("127.0.0.2", QUIET_PORT, further=self.further).release()

    def test_a_running_server_keeps_its_block(self, fake_server: FakeServer, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(CommandServer, "derived_ports", lambda self, port: self.further_ports(port), raising=False)
        monkeypatch.setattr(CommandServer, "further_ports", lambda self, port: range(port + 5, port + 8), raising=False)
        # Where no other test looks for a port.
        monkeypatch.setattr(ports, "_SEARCH", range(QUIET_PORT + 100, QUIET_PORT + 200))
        first, second = fake_server().start(), fake_server().start()
        assert not set(range(first.port + 5, first.port + 8)) & set(range(second.port + 5, second.port + 8))
        first.stop()
        ports.reserve_port("127.0.0.1", first.port, further=lambda port: range(port + 5, port + 8)).release()


@pytest.mark.parametrize(
    ("line", "arguments", "launches"),
    [
        ("OSError: [Errno 98] Address already in use", [], 3),
        ("[Errno 98] error while attempting to bind on address ('127.0.0.1', {port}): address already in use", [], 3),
        # A port that the engine has drawn for itself: another start draws another one.
        ("tcp://127.0.0.1:45123 Address already in use (addr='tcp://127.0.0.1:45123')", [], 3),
        # A port that the user has named, or that another start would want again.
        ("tcp://127.0.0.1:45123 Address already in use (addr='tcp://127.0.0.1:45123')", ["--zmq-port", "45123"], 1),
        ("metrics on 127.0.0.1:9090: address already in use", [], 1),
        ("ValueError: out of memory", [], 1),
    ],
)
def test_a_start_that_fails_on_a_port_of_our_choice_is_tried_on_others(
    tmp_path: Path, line: str, arguments: list[str], launches: int
) -> None:
    engine = tmp_path / "engine.py"
    engine.write_text(f"import sys\nsys.exit({line!r}.replace('{{port}}', sys.argv[1]))\n")
    command = [sys.executable, "-S", str(engine), "{port}", *arguments]
    server = CommandServer(launch_command=command, output_dir=tmp_path / "logs", startup_timeout=30)
    with pytest.raises(ServerStartupError):
        server.start()
    assert server.launches == launches


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("45123", True),
        ("--port=45123", True),
        ("tcp://127.0.0.1:45123", True),
        ("http://host:45123/v1", True),
        ('{"port":45123}', True),
        ("45122,45123", True),
        ("[45123]", True),
        ("It is 45123.", True),
        ("145123", False),
        ("451230", False),
        ("0.45123", False),
        ("45123.5", False),
        ("sha256:ab45123f", False),
        ("/models/llama-3b_45123", False),
        ("", False),
    ],
)
def test_which_words_name_a_port(text: str, named: bool) -> None:
    assert ports.names_port(text, 45123) == named


@pytest.mark.parametrize(
    ("word", "drawn"), [("--tokens=145123", True), ("451230", True), ("--zmq=45123", False), ("tcp://a:45123", False)]
)
@pytest.mark.parametrize("place", ["command", "environment"])
def test_a_port_is_drawn_unless_the_user_has_named_it(place: str, word: str, drawn: bool, tmp_path: Path) -> None:
    env_vars = {"A": word} if place == "environment" else {}
    command = ["run", "{port}", *([word] if place == "command" else [])]
    server = CommandServer(launch_command=command, env_vars=env_vars, output_dir=tmp_path, port=QUIET_PORT)
    assert launching._is_drawn(server, 45123) == drawn


@pytest.mark.parametrize(
    ("settings", "launches"),
    [
        ({"port": QUIET_PORT}, 3),
        ({"env_vars": {"ZMQ": "45123"}}, 1),
        # It is in another number only.
        ({"env_vars": {"MAX_TOKENS": "145123"}}, 3),
    ],
)
def test_a_port_that_the_engine_draws_is_drawn_again(tmp_path: Path, settings: dict[str, Any], launches: int) -> None:
    engine = tmp_path / "engine.py"
    engine.write_text("import sys\nsys.exit('tcp://127.0.0.1:45123 Address already in use')\n")
    command = [sys.executable, "-S", str(engine), "{port}"]
    server = CommandServer(launch_command=command, output_dir=tmp_path / "logs", startup_timeout=30, **settings)
    with pytest.raises(ServerStartupError):
        server.start()
    assert server.launches == launches


def test_a_warning_of_vllm_that_it_takes_another_port_is_no_reason_to_start_again(tmp_path: Path) -> None:
    engine = tmp_path / "vllm"
    lines = (
        "WARNING 11-24 [parallel.py:746] Address already in use. Retrying with a new port.\nRuntimeError: CUDA is gone"
    )
    engine.write_text(f"#!/bin/sh\necho '{lines}'\nexit 1\n")
    engine.chmod(0o755)
    server = VLLMServer(model="m", binary_path=str(engine), output_dir=tmp_path / "logs")
    with pytest.raises(ServerStartupError) as caught:
        server.start()
    assert server.launches == 1
    assert "cause:   RuntimeError: CUDA is gone" in str(caught.value)


def test_a_start_that_fails_on_a_named_port_is_not_tried_again(fake_server: FakeServer) -> None:
    server = fake_server("--say", "[Errno 98] Address already in use", "--exit", "1", port=QUIET_PORT + 60)
    with pytest.raises(PortInUseError):
        server.start()
    assert server.launches == 1


# The files that promise ports.


@pytest.fixture
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "state"
    folder.mkdir(mode=0o700)
    monkeypatch.setenv("INFSERVER_STATE_DIR", str(folder))
    return folder


@pytest.mark.parametrize("port", [QUIET_PORT, None], ids=["quiet", "any"])
@pytest.mark.parametrize("planted", ["pipe", "link"])
def test_a_promise_that_cannot_be_made_is_an_error_with_words(state: Path, port: int | None, planted: str) -> None:
    name, precious = f"port-{port or ports.DEFAULT_PORT}.lock", state / "precious"
    precious.write_text("precious")
    file, shared = state / name, state / "pytest-infserver-devices" / name
    shared.parent.mkdir()
    for one in (file, shared):
        os.mkfifo(one) if planted == "pipe" else one.symlink_to(precious)
    with pytest.raises(ServerStartupError, match=rf"cannot be reserved: {file} is a {planted} and not .*: remove it"):
        ports.reserve_port("127.0.0.1", port)
    # Where only the place of all is spoilt, which anybody can do, this user's own is as good.
    file.unlink()
    ports.reserve_port("127.0.0.1", port).release()
    assert precious.read_text() == "precious"


def test_without_a_place_for_promises_no_port_is_reserved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("INFSERVER_STATE_DIR", "XDG_RUNTIME_DIR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setattr(places, "_FOR_ALL_USERS", str(tmp_path / "nothing"))
    (tmp_path / f"pytest-infserver-{os.getuid()}").symlink_to(tmp_path)
    with pytest.raises(ServerStartupError, match=r"cannot be reserved: .*this user alone.*INFSERVER_STATE_DIR"):
        ports.reserve_port("127.0.0.1", None)


def test_whom_a_promise_names(state: Path) -> None:
    reservation = ports.reserve_port("127.0.0.1", None)
    words = "another server of pytest-infserver that starts or stops"
    assert ports.describe_holder(reservation.port) == f"{words}, started by pid {os.getpid()}"
    (state / "pytest-infserver-devices" / f"port-{reservation.port}.lock").write_text("x" * 100)
    assert ports.describe_holder(reservation.port) == words
    reservation.release()


def test_promises_of_runs_with_other_places_for_temporary_files_meet(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As those of several users, and of runs to which a wrapper gives a TMPDIR and a HOME each."""
    common = tmp_path / "tmp"
    common.mkdir()
    monkeypatch.setattr(places, "_FOR_ALL_USERS", str(common))
    monkeypatch.setattr(ports, "_PATIENCE", 0.0)
    monkeypatch.delenv("INFSERVER_STATE_DIR", raising=False)

    def become(run: str) -> None:
        for name in ("XDG_RUNTIME_DIR", "HOME", "TMPDIR"):
            folder = tmp_path / run / name
            folder.mkdir(mode=0o700, parents=True)
            monkeypatch.setenv(name, str(folder))
        monkeypatch.setattr("tempfile.tempdir", str(folder))

    become("one")
    first = ports.reserve_port("127.0.0.1", QUIET_PORT)
    become("two")
    with pytest.raises(PortInUseError, match=f"started by pid {os.getpid()}"):
        ports.reserve_port("127.0.0.1", QUIET_PORT)
    other = ports.reserve_port("127.0.0.1", None, search=[QUIET_PORT, QUIET_PORT + 1])
    assert other.port != QUIET_PORT
    first.release()
    other.release()


def test_a_search_for_a_runs_server_begins_anywhere(state: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    numbers = range(QUIET_PORT, QUIET_PORT + 50)
    monkeypatch.setattr(os, "urandom", lambda size: (17).to_bytes(size, "big"))
    found = [ports.reserve_port("127.0.0.1", None, search=numbers, at_random=one) for one in (True, False)]
    assert found[0].port in range(QUIET_PORT + 17, QUIET_PORT + 22)
    assert found[1].port in range(QUIET_PORT, QUIET_PORT + 5)
    for one in found:
        one.release()
