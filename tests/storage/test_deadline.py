"""Storage that keeps a command waiting is given up after one limit, whatever it does in the meantime."""

import contextlib
import socket
import threading
import time

import pytest

from evle.errors import StorageError
from evle.storage import deadline, fetch
from evle.storage.deadline import TooSlowError, in_time
from evle.storage.remote import Remote

HEAD = b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\nAccept-Ranges: bytes\r\n\r\n"
BEHAVIOURS = {
    "nothing is sent": [],
    "headers that never end": [b"HTTP/1.1 200 OK\r\n", *[b"X-A: b\r\n"] * 1000],
    "endless 100 Continue": [b"HTTP/1.1 100 Continue\r\n\r\n"] * 1000,
    "a slow body": [HEAD, *[b"x"] * 1000],
    "a slow error": [b"HTTP/1.1 500 Oops\r\nContent-Length: 100000\r\n\r\n", *[b"x"] * 1000],
}


@pytest.fixture
def server(request):
    """The address of a server that sends one part of a behaviour after another, one per tenth of a second."""
    listener, over = socket.create_server(("127.0.0.1", 0)), threading.Event()

    def answer(connection):
        with contextlib.suppress(OSError), connection:
            connection.recv(65536)
            for part in request.param:
                connection.sendall(part)
                if over.wait(0.1):
                    return
            over.wait(20)

    def accept():
        with contextlib.suppress(OSError):
            while True:
                threading.Thread(target=answer, args=(listener.accept()[0],), daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    yield f"http://127.0.0.1:{listener.getsockname()[1]}/file.bin"
    over.set()
    listener.close()


@pytest.mark.parametrize("server", BEHAVIOURS.values(), ids=BEHAVIOURS, indirect=True)
@pytest.mark.parametrize("verb", ["read", "download"])
def test_a_server_that_hangs_is_given_up_in_time(server, verb, tmp_path, monkeypatch):
    pytest.importorskip("aiohttp")
    monkeypatch.setattr(deadline, "SECONDS", 0.7)
    monkeypatch.setattr("evle.storage.remote.PAUSES", ())
    remote = Remote(server)
    work = {
        "read": lambda: remote.read(""),
        "download": lambda: remote.download("", tmp_path / "file.bin"),
    }
    started = time.monotonic()
    with pytest.raises(StorageError, match=r"^http://127\.0\.0\.1:\d+/file\.bin: cannot be read \(.*(for 0\.7 s|500)"):
        work[verb]()
    assert time.monotonic() - started < 5
    assert list(tmp_path.iterdir()) == []


def test_a_transfer_may_take_as_long_as_bytes_arrive(monkeypatch):
    monkeypatch.setattr(deadline, "SECONDS", 0.1)
    started = time.monotonic()

    def received():
        return int((time.monotonic() - started) * 1e6)

    assert in_time(lambda: time.sleep(0.5) or "done", received) == "done"
    with pytest.raises(TooSlowError, match="fewer than 10,000 bytes per second"):
        in_time(lambda: time.sleep(0.5), lambda: 10)
    assert in_time(lambda: time.sleep(0.3) or "sent", size=10_000) == "sent"


def test_an_error_is_that_of_the_work():
    with pytest.raises(KeyError, match="x"):
        in_time(lambda: {}["x"])


def _free_port():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return listener.getsockname()[1]


def test_a_server_that_never_answered_is_not_tried_again(tmp_path, monkeypatch):
    pytest.importorskip("aiohttp")
    monkeypatch.setenv("EVLE_CACHE", str(tmp_path))
    monkeypatch.setattr("evle.storage.remote.PAUSES", (60.0,))
    url = f"http://127.0.0.1:{_free_port()}/photos/a.jpg"
    with pytest.raises(StorageError, match="check the connection and the URL") as caught:
        fetch(url)
    assert url in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_server_that_answered_before_is_tried_again(monkeypatch):
    pytest.importorskip("aiohttp")
    monkeypatch.setattr("evle.storage.remote.PAUSES", (0.0, 0.0))
    host = f"http://127.0.0.1:{_free_port()}"
    monkeypatch.setattr("evle.storage.remote._answered", {host})
    attempts = []
    monkeypatch.setattr("evle.storage.remote.in_time", lambda *work: attempts.append(1) or in_time(*work))
    with pytest.raises(StorageError, match="cannot be read"):
        Remote(f"{host}/a.jpg").read("")
    assert len(attempts) == 3
