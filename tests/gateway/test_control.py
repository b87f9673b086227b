"""The control socket: who may open it, what it takes, and what it does not wait for."""

from __future__ import annotations

import asyncio
import json
import socket
import stat
import threading
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from gateway import control
from gateway.control import ControlServer, Request, call, socket_path, text, texts
from mtls.errors import ConfigFault, Fault


async def echo(request: Request) -> Any:
    return {"said": text(request, "word")}


async def refuse(request: Request) -> Any:
    raise ConfigFault("the file is broken", hint="mend it")


async def crash(request: Request) -> Any:
    raise ZeroDivisionError("secret")


HANDLERS = {"echo": echo, "refuse": refuse, "crash": crash}


def serving(path: Path, work: Callable[[], Any], **handlers: Callable[[Request], Awaitable[Any]]) -> Any:
    """Serve on a socket and run blocking work beside it."""

    async def run() -> Any:
        server = ControlServer(path, handlers or HANDLERS)
        await server.open()
        try:
            return await asyncio.to_thread(work)
        finally:
            await server.close()

    return asyncio.run(run())


def raw(path: Path, data: bytes) -> bytes:
    """Send bytes as they are and read to the end."""
    with socket.socket(socket.AF_UNIX) as channel:
        channel.settimeout(10)
        channel.connect(str(path))
        channel.sendall(data)
        channel.shutdown(socket.SHUT_WR)
        return b"".join(iter(lambda: channel.recv(65536), b""))


def test_a_command_is_answered(tmp_path: Path) -> None:
    """One request, one answer; several on one connection too."""
    path = tmp_path / "c.sock"
    assert serving(path, lambda: call(path, "echo", word="hi")) == {"said": "hi"}
    two = serving(path, lambda: raw(path, b'{"command":"echo","word":"a"}\n{"command":"echo","word":"b"}\n'))
    assert [json.loads(line)["result"]["said"] for line in two.splitlines()] == ["a", "b"]


def test_only_the_owner_can_open_it(tmp_path: Path) -> None:
    """Mode 0600, and gone when the server is closed."""
    path = tmp_path / "c.sock"
    assert serving(path, lambda: stat.S_IMODE(path.stat().st_mode)) == 0o600
    assert not path.exists()


def test_a_fault_keeps_its_sentence_hint_and_exit_code(tmp_path: Path) -> None:
    """The person at the command reads what the gateway found, not that something failed."""
    path = tmp_path / "c.sock"
    with pytest.raises(ConfigFault, match="the file is broken") as caught:
        serving(path, lambda: call(path, "refuse"))
    assert caught.value.hint == "mend it"


@pytest.mark.parametrize(
    ("request_", "says"),
    [
        (b"not json\n", "not JSON"),
        (b"[" * 60_000 + b"\n", "not JSON"),
        (b"[]\n", "unknown command"),
        (b'{"command": "stop"}\n', "unknown command"),
        (b'{"command": ["echo"]}\n', "command is not a string"),
        (b"{}\n", "command is not a string"),
        (b'{"command": "echo"}\n', "word is not a string"),
        (b'{"command": "echo", "word": 7}\n', "word is not a string"),
        (b'{"command": "crash"}\n', "ZeroDivisionError"),
    ],
)
def test_a_bad_request_is_answered_and_the_server_lives(tmp_path: Path, request_: bytes, says: str) -> None:
    """Nothing that is sent ends the server or shows what it holds."""
    path = tmp_path / "c.sock"

    def work() -> Any:
        answer = json.loads(raw(path, request_))
        assert call(path, "echo", word="alive") == {"said": "alive"}
        return answer

    answer = serving(path, work)
    assert answer["ok"] is False
    assert says in answer["error"]
    assert "secret" not in json.dumps(answer)


def test_a_request_without_end_is_cut_off(tmp_path: Path) -> None:
    """Beyond the limit there is no answer and no memory for it."""
    path = tmp_path / "c.sock"

    def work() -> bytes:
        try:
            return raw(path, b"a" * (2 * control.MAX_REQUEST_BYTES + 1))
        except ConnectionError:
            return b""

    assert serving(path, work) == b""


def test_a_silent_client_is_cut_off(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever opens the socket and says nothing, or half a line, does not keep it."""
    monkeypatch.setattr(control, "REQUEST_TIMEOUT_S", 0.1)
    path = tmp_path / "c.sock"

    def work() -> bytes:
        with socket.socket(socket.AF_UNIX) as channel:
            channel.settimeout(10)
            channel.connect(str(path))
            channel.sendall(b'{"command":')
            return channel.recv(10)

    assert serving(path, work) == b""


def test_many_clients_do_not_keep_an_operator_out_for_long(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Beyond the limit a client is closed at once; when the idle ones time out, the next is answered."""
    monkeypatch.setattr(control, "REQUEST_TIMEOUT_S", 0.3)
    path = tmp_path / "c.sock"

    def work() -> Any:
        idle = [socket.socket(socket.AF_UNIX) for _ in range(control.MAX_CLIENTS)]
        for channel in idle:
            channel.settimeout(10)
            channel.connect(str(path))
        for channel in idle:
            assert channel.recv(1) == b""
            channel.close()
        return call(path, "echo", word="in")

    assert serving(path, work) == {"said": "in"}


def test_a_socket_of_a_killed_gateway_is_replaced(tmp_path: Path) -> None:
    """Nobody answers on it, so it is stale."""
    path = tmp_path / "c.sock"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    assert path.exists()
    assert serving(path, lambda: call(path, "echo", word="hi")) == {"said": "hi"}


def test_a_socket_that_is_answered_is_left_alone(tmp_path: Path) -> None:
    """The twin: another gateway serves there."""
    path = tmp_path / "c.sock"

    def work() -> Any:
        with pytest.raises(ConfigFault, match="another gateway serves on it"):
            serving(path, lambda: None)
        return call(path, "echo", word="hi")

    assert serving(path, work) == {"said": "hi"}


def test_a_file_of_another_kind_is_left_alone(tmp_path: Path) -> None:
    """A mistyped path never costs a file."""
    path = tmp_path / "policy.toml"
    path.write_text("version = 1\n")
    with pytest.raises(ConfigFault, match="file of another kind"):
        serving(path, lambda: None)
    assert path.read_text() == "version = 1\n"


def test_a_folder_that_does_not_exist_is_a_configuration_fault(tmp_path: Path) -> None:
    """The gateway makes no folders for its socket: their permissions are the authorization."""
    with pytest.raises(ConfigFault, match="does not exist"):
        serving(tmp_path / "absent" / "c.sock", lambda: None)


def test_a_path_longer_than_a_socket_address_works(tmp_path: Path) -> None:
    """sun_path holds 108 bytes; folders can be deeper."""
    folder = tmp_path / ("d" * 90) / ("e" * 90)
    folder.mkdir(parents=True)
    path = folder / "c.sock"
    assert serving(path, lambda: call(path, "echo", word="deep")) == {"said": "deep"}


def test_asking_nobody_says_so(tmp_path: Path) -> None:
    """No gateway, no folder, a file: one sentence and a hint."""
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "c.sock", tmp_path / "absent" / "c.sock", tmp_path / "file"):
        with pytest.raises(Fault) as caught:
            call(path, "status")
        assert str(path) in str(caught.value)
        assert caught.value.hint


@pytest.mark.parametrize("said", [b"220 ready\n", b"[" * 100_000 + b"\n", b"\xff\n"], ids=["words", "deep", "bytes"])
def test_a_socket_of_another_program_is_no_traceback(tmp_path: Path, said: bytes) -> None:
    """`--socket` may name any socket there is: what answers there in another way is one sentence too."""
    path = tmp_path / "c.sock"
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(str(path))
        other.listen()

        def answer() -> None:
            channel, _ = other.accept()
            with channel:
                channel.sendall(said)

        speaker = threading.Thread(target=answer)
        speaker.start()
        with pytest.raises(Fault, match="gave no answer"):
            call(path, "status")
        speaker.join()


def test_a_request_that_is_too_large_is_not_sent(tmp_path: Path) -> None:
    """The limit is told before anything is asked."""
    with pytest.raises(Fault, match="too large"):
        call(tmp_path / "c.sock", "deny_add", ids=["a" * control.MAX_REQUEST_BYTES])


def test_the_socket_is_found_by_option_configuration_or_custom(tmp_path: Path) -> None:
    """What is said wins over the configuration, which wins over the packaged unit's path."""
    config = tmp_path / "gateway.toml"
    text_ = '[listener]\ncert_file="a"\nkey_file="b"\nca_file="c"\n[policy]\nfile="d"\n'
    config.write_text(text_ + '[control]\nsocket="c.sock"\n')
    assert socket_path(Path("x.sock"), config) == Path("x.sock")
    assert socket_path(None, config) == tmp_path / "c.sock"
    assert socket_path(None, None) == Path("/run/mqtt-gateway/control.sock")
    config.write_text(text_)
    with pytest.raises(ConfigFault, match="socket is not set"):
        socket_path(None, config)


def test_lists_of_strings_are_checked() -> None:
    """A handler never sees another type."""
    assert texts({"ids": ["a"]}, "ids") == ["a"]
    assert texts({}, "ids") == []
    for value in ("a", [1], {"a": 1}):
        with pytest.raises(Fault, match="list of strings"):
            texts({"ids": value}, "ids")
