"""A server on a real socket: what slow, many and broken clients get, and how it ends."""

import http.client
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager

import pytest

from commands import call
from evle.server import Limits, build_app
from evle.server.running import listen, server_of


@contextmanager
def running(models, **limits):
    """The port of a server in a thread, which is stopped at the end."""
    listening = listen("127.0.0.1", 0)
    server = server_of(build_app(models, limits=Limits(**limits)))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
    thread.start()
    try:
        yield listening.getsockname()[1]
    finally:
        server.should_exit = True
        thread.join(30)
        listening.close()
        assert not thread.is_alive()


def read_all(connection: socket.socket, seconds: float = 10) -> bytes:
    """What a connection gives until the server closes it."""
    connection.settimeout(seconds)
    parts = []
    while part := connection.recv(65536):
        parts.append(part)
    return b"".join(parts)


def ask(port: int, body: object) -> tuple[int, dict, dict]:
    with closing(http.client.HTTPConnection("127.0.0.1", port, timeout=30)) as connection:
        connection.request("POST", "/v1/ask", json.dumps(body), {"Content-Type": "application/json"})
        response = connection.getresponse()
        return response.status, dict(response.headers), json.loads(response.read())


@pytest.mark.parametrize("sent", [b"", b"POST /v1/ask HTTP/1.1\r\nHost: a\r\nX-Slow: "])
def test_a_connection_without_a_whole_head_is_closed(models, sent):
    with running(models, seconds=0.3) as port, socket.create_connection(("127.0.0.1", port)) as connection:
        connection.sendall(sent)
        started = time.monotonic()
        assert read_all(connection) == b""
        assert time.monotonic() - started < 5


def test_a_head_that_drips_is_closed_too(models):
    with running(models, seconds=0.5) as port, socket.create_connection(("127.0.0.1", port)) as connection:
        connection.sendall(b"POST /v1/ask HTTP/1.1\r\nHost: a\r\n")
        started = time.monotonic()

        def drip() -> None:
            while time.monotonic() - started < 10:
                connection.sendall(b"X: y\r\n")
                time.sleep(0.05)

        with pytest.raises(OSError, match=r"reset|Broken pipe"):
            drip()
        assert time.monotonic() - started < 8


def test_a_body_that_drips_is_408_and_the_connection_is_closed(models):
    with running(models, seconds=0.5) as port, socket.create_connection(("127.0.0.1", port)) as connection:
        head = b"POST /v1/ask HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\nContent-Length: 1000\r\n\r\n"
        connection.sendall(head)
        for _ in range(4):
            connection.sendall(b" ")
            time.sleep(0.05)
        answer = read_all(connection)
        assert answer.startswith(b"HTTP/1.1 408")
        assert b"the body did not arrive in 0.5 seconds" in answer


def test_a_body_above_the_limit_is_413_and_the_connection_is_closed(models):
    with running(models, body_bytes=1000) as port, socket.create_connection(("127.0.0.1", port)) as connection:
        connection.sendall(b"POST /v1/ask HTTP/1.1\r\nHost: a\r\nContent-Length: 2000\r\n\r\n")
        assert read_all(connection).startswith(b"HTTP/1.1 413")


def test_slow_clients_do_not_keep_others_waiting(models, red):
    with running(models, seconds=20, requests=8) as port:
        slow = [socket.create_connection(("127.0.0.1", port)) for _ in range(50)]
        for each in slow:
            each.sendall(b"POST /v1/ask HTTP/1.1\r\nHost: a\r\n")
        status, _, body = ask(port, {"image": red, "question": "what?"})
        assert status == 200
        assert body["results"][0]["question"] == "what?"
        for each in slow:
            each.close()


def test_requests_above_the_limit_are_429_with_retry_after(models, red):
    with running(models, requests=2, seconds=5) as port:
        head = b"POST /v1/ask HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\nContent-Length: 1000\r\n\r\n"
        held = [socket.create_connection(("127.0.0.1", port)) for _ in range(2)]
        for each in held:
            each.sendall(head)
        time.sleep(0.3)
        status, headers, body = ask(port, {"image": red, "question": "what?"})
        assert (status, headers["retry-after"]) == (429, "1")
        assert "2 requests are in work" in body["error"]["message"]
        for each in held:
            each.close()


def test_a_client_that_leaves_does_not_stop_the_server(models, red):
    with running(models) as port:
        body = json.dumps({"image": red, "question": "what?"}).encode()
        for length in (len(body), 2 * len(body)):
            with socket.create_connection(("127.0.0.1", port)) as connection:
                connection.sendall(
                    b"POST /v1/ask HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\n"
                    + f"Content-Length: {length}\r\n\r\n".encode()
                    + body
                )
        assert ask(port, {"image": red, "question": "still there?"})[0] == 200


@pytest.mark.slow
def test_64_clients_get_every_answer_and_their_own(models, red, blue):
    questions = [f"what colour is ball {number}?" for number in range(256)]
    with running(models, seconds=120) as port, ThreadPoolExecutor(64) as pool:
        answers = list(pool.map(lambda text: ask(port, {"image": red, "question": text}), questions))
    assert [status for status, _, _ in answers] == [200] * len(questions)
    assert [body["results"][0]["question"] for _, _, body in answers] == questions


def test_a_signal_to_stop_answers_what_was_taken_and_ends_with_0(folder, red):
    command = [sys.executable, "-m", "evle", "serve", f"vqa={folder / 'vqa'}", "--port", "0", "--wait-ms", "500"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert process.stderr is not None
    port = 0
    for line in process.stderr:
        if listening := re.search(r"listening at .* port (\d+)", line):
            port = int(listening[1])
            break
    threading.Thread(target=process.stderr.read, daemon=True).start()
    with ThreadPoolExecutor(4) as pool:
        waiting = [pool.submit(ask, port, {"image": red, "question": f"what {number}?"}) for number in range(4)]
        deadline = time.monotonic() + 60
        while metric(port) < 4 and time.monotonic() < deadline:
            time.sleep(0.02)
        process.send_signal(signal.SIGTERM)
        assert [answer.result()[0] for answer in waiting] == [200] * 4
    assert process.wait(60) == 0
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port))


def metric(port: int) -> float:
    """How many requests the server has taken: those in work, without this one, and those answered."""
    with closing(http.client.HTTPConnection("127.0.0.1", port, timeout=30)) as connection:
        connection.request("GET", "/metrics")
        text = connection.getresponse().read().decode()
    work = re.search(r"^evle_requests_in_flight (\S+)", text, re.MULTILINE)
    done = re.findall(r'^evle_requests_total\{path="/v1/ask".*\} (\S+)', text, re.MULTILINE)
    assert work is not None
    return float(work[1]) - 1 + sum(map(float, done))


def test_what_cannot_be_served_is_one_line(folder, monkeypatch):
    monkeypatch.delenv("EVLE_TEST_KEY", raising=False)
    with closing(listen("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        for arguments, words in (
            (["nowhere"], "nowhere"),
            ([folder / "vqa", "--key-variable", "EVLE_TEST_KEY"], "this environment variable is empty"),
            ([folder / "vqa", "--port", port], "is in use; choose another --port"),
            ([folder / "vqa", "--host", "no.such.host.invalid"], "cannot be used"),
            ([f"a={folder / 'vqa'}", f"a={folder / 'retrieval'}"], "a"),
        ):
            output = call("serve", *arguments, code=2)
            errors = [line for line in output.splitlines() if line.startswith("evle: ")]
            assert len(errors) == 1, output
            assert words in errors[0]
