"""Progress, log lines and names on a terminal."""

import io
import json
import logging
import time

import pytest
from PIL import Image

from commands import call
from evle import terminal
from evle.terminal import PrintableStream, ProgressLine, Watch, log_to_terminal, printable
from retrieval_models import save_retrieval_model


def test_no_control_code_of_a_name_reaches_the_terminal(tmp_path):
    name = "a\x1b]0;owned\x07\x9b31m\u202eb.png"
    assert not terminal.CONTROL_CODES.search(printable(name))
    stream = io.StringIO()
    print(name, "line\nnext\tcell", file=PrintableStream(stream))  # type: ignore[arg-type]
    assert stream.getvalue().count("\ufffd") == 4
    assert stream.getvalue().endswith("line\nnext\tcell\n")

    (tmp_path / "a\x1b[31mb.png").write_bytes(b"no image")
    said = call("data", "check", tmp_path, code=1)
    assert "\x1b" not in said
    assert "a\ufffd[31mb.png" in said
    said = call("data", "check", tmp_path / "none\x1b[31m", code=2)
    assert "\x1b" not in said


def test_a_name_with_ends_of_lines_stays_one_line_and_loses_nothing(tmp_path):
    names = ["a\nb.png", "tab\there.png", "ls\u2028ls.png", "nel\x85.png", "esc\x1b[31m.png", "plain.png"]
    for name in names:
        Image.new("RGB", (16, 16), "red").save(tmp_path / name, format="PNG")
    (tmp_path / "bad\none.png").write_text("no image")
    index, model = tmp_path / "index", save_retrieval_model(tmp_path / "model")
    said = call("index", tmp_path, "-o", index, "--model", model)
    assert f"  {tmp_path}/bad\\none.png: is no image" in said
    assert f"  {tmp_path}/bad\\none.png: is no image" in call("data", "check", tmp_path, code=1)
    hits = call("search", index, "a red image", "-k", 9).splitlines()
    assert len(hits) == len(names)
    assert any(line.endswith("a\\nb.png") for line in hits)
    assert "a\\nb.png" in call("index", "-o", index, "--list").splitlines()
    assert "a\\nb.png  " in call("index", "-o", index, "--duplicates").splitlines()[0]
    for lines in (call("search", index, "red", "-k", 9, "--json"), call("index", "-o", index, "--list", "--json")):
        rows = [json.loads(line) for line in lines.splitlines()]
        assert {row["image"] for row in rows} == {*names}


def test_a_file_gets_a_line_now_and_then_with_the_time_left(caplog, monkeypatch):
    now = [0.0]
    monkeypatch.setattr(terminal.time, "monotonic", lambda: now[0])
    with caplog.at_level(logging.INFO, "evle"), ProgressLine(100, "steps", done=20) as progress:
        for step in range(21, 101):
            now[0] += 1.0
            progress.update(step, "loss 1.0")
        progress.say("step 100: score 3")
    assert caplog.messages == [
        "50/100 steps  loss 1.0  0:00:50 left",
        "80/100 steps  loss 1.0  0:00:20 left",
        "step 100: score 3",
    ]


def test_nothing_is_shown_where_it_is_not_visible(caplog, monkeypatch):
    monkeypatch.setattr(terminal, "SECONDS_BETWEEN_LINES", 0.0)
    with caplog.at_level(logging.INFO, "evle"), ProgressLine(2, "steps", visible=False) as progress:
        progress.advance()
        progress.say("a line")
    assert caplog.messages == []


def test_a_terminal_gets_a_bar_and_lines_above_it(monkeypatch, capsys):
    monkeypatch.setenv("FORCE_COLOR", "1")  # rich then takes stderr for a terminal
    monkeypatch.setenv("TERM", "xterm")
    log_to_terminal()
    with ProgressLine(3, "images") as progress:
        progress.advance(2)
        progress.update(3, "[bold]\x1b[31mname")
        progress.say("[kept]")
    said = capsys.readouterr().err
    assert "3/3" in said
    assert "[kept]" in said
    assert "[bold]\ufffd[31mname" in said


@pytest.mark.parametrize("level", ["info", "warning"])
def test_log_lines_go_to_stderr_of_the_moment_once(level, capsys, monkeypatch):
    for name in ("", "evle"):  # another test may have left one there
        monkeypatch.setattr(logging.getLogger(name), "handlers", [])
    log_to_terminal()
    log_to_terminal()
    getattr(logging.getLogger("evle.somewhere"), level)("a\x1bb")
    assert capsys.readouterr().err == ("a\ufffdb\n" if level == "info" else "evle: a\ufffdb\n")


def test_slow_work_is_named_once_per_doubling_and_quick_work_never(caplog):
    watch = Watch(seconds=0.2)
    for _ in range(5):
        watch.begin(lambda: "quick work")
        watch.end()
    watch.begin(lambda: "slow work")
    time.sleep(1.0)
    watch.end()
    watch.close()
    slow = [line for line in caplog.messages if "slow work" in line]
    assert 1 <= len(slow) <= 3
    assert not any("quick" in line for line in caplog.messages)
