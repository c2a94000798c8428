"""What is written to a URL arrives whole, survives the machine, and is never lost on the way."""

import json
import shutil
from pathlib import Path

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from evle.errors import EvleError, StorageError
from evle.storage import fetch, local, open_mirror, session, writing
from evle.storage.mirrors import Mirror
from stores import Lossy, empty_stores


@pytest.fixture(autouse=True)
def _stores(tmp_path, monkeypatch):
    with empty_stores(tmp_path / "cache", monkeypatch):
        yield


def lose_machine(tmp_path: Path) -> None:
    shutil.rmtree(tmp_path / "cache")


def write(url: str, **files: str) -> None:
    with writing(url) as folder:
        folder.mkdir(parents=True, exist_ok=True)
        for name, text in files.items():
            (folder / name.replace("__", "/")).parent.mkdir(parents=True, exist_ok=True)
            (folder / name.replace("__", "/")).write_text(text)


def texts(folder: Path) -> dict[str, str]:
    return {file.relative_to(folder).as_posix(): file.read_text() for file in folder.rglob("*") if file.is_file()}


@pytest.mark.parametrize("scheme", ["memory", "hdfs", "lossy"])
def test_an_output_is_uploaded_whole_and_comes_back_on_another_machine(scheme, tmp_path):
    url = f"{scheme}://bucket/run"
    write(url, a="1", sub__b="2", gone="3")
    lose_machine(tmp_path)
    with writing(url) as folder:
        assert texts(folder) == {"a": "1", "sub/b": "2", "gone": "3"}
        (folder / "a").write_text("changed")
        (folder / "gone").unlink()
    files = fsspec.filesystem(scheme)
    assert sorted(files.find("/bucket/run")) == [
        "/bucket/run/.evle/marker.json", "/bucket/run/.evle/owner.json", "/bucket/run/a", "/bucket/run/sub/b"
    ]  # fmt: skip
    assert files.cat_file("/bucket/run/a") == b"changed"
    assert texts(fetch(url)) == {"a": "changed", "sub/b": "2"}
    assert fetch(f"{url}/sub/b").read_text() == "2"


@pytest.mark.parametrize("writes", range(14))
def test_a_connection_lost_at_any_moment_leaves_the_old_state_or_the_new_one(writes, tmp_path):
    url = "lossy://bucket/run"
    write(url, a="old", b="old")
    Lossy.writes_left = writes
    problem = ""
    try:
        write(url, a="new", b="new", c="new")
    except StorageError as error:
        problem = str(error)
    is_whole = not problem
    assert is_whole or "connection was reset" in problem
    assert is_whole or writes < 2 or str(local(url)) in problem
    Lossy.writes_left = None
    if writes >= 2 and not is_whole:  # this machine still has everything, and uploads it the next time
        assert texts(local(url)) == {"a": "new", "b": "new", "c": "new"}
    assert texts(fetch(url)) in ({"a": "old", "b": "old"}, {"a": "new", "b": "new", "c": "new"})
    assert not is_whole or texts(fetch(url)) == {"a": "new", "b": "new", "c": "new"}
    lose_machine(tmp_path)
    write(url, d="later")
    assert texts(fetch(url)) in (
        {"a": "old", "b": "old", "d": "later"},
        {"a": "new", "b": "new", "c": "new", "d": "later"},
    )


def test_what_could_not_be_uploaded_is_uploaded_by_the_next_command():
    url = "lossy://bucket/run"
    Lossy.writes_left = 2  # the claim succeeds: a file is written and moved
    with pytest.raises(StorageError, match=r"connection was reset.*repeat the command"):
        write(url, a="1")
    Lossy.writes_left = None
    write(url, b="2")
    assert texts(fetch(url)) == {"a": "1", "b": "2"}


def test_a_failing_upload_in_the_background_is_made_up_for(caplog):
    mirror = Mirror("lossy://bucket/run")
    mirror.open()
    mirror.folder.mkdir(parents=True)
    (mirror.folder / "a").write_text("1")
    Lossy.writes_left = 0
    mirror.push()
    mirror.wait()
    assert "the next upload tries again" in caplog.text
    Lossy.writes_left = None
    (mirror.folder / "b").write_text("2")
    mirror.push()
    mirror.close()
    assert texts(fetch("lossy://bucket/run")) == {"a": "1", "b": "2"}


def test_a_copy_that_fails_there_costs_nothing_here(monkeypatch):
    url = "memory://bucket/run"
    write(url, a="step 10")

    def refuse(*_, **__):
        raise ConnectionResetError("the connection was reset")

    with monkeypatch.context() as patch:
        patch.setattr(MemoryFileSystem, "cp_file", refuse)
        mirror = Mirror(url)
        mirror.open()
        (mirror.folder / "a").write_text("step 20!")
        mirror.push()
        mirror.wait()  # the new version is there; giving it its plain name failed
        (mirror.folder / "a").write_text("step 300!")
        patch.setattr(MemoryFileSystem, "put_file", refuse)
        patch.setattr(MemoryFileSystem, "pipe_file", refuse)
        with pytest.raises(StorageError, match="repeat the command to upload it"):
            mirror.close()
    write(url, b="2")
    assert texts(fetch(url)) == {"a": "step 300!", "b": "2"}


# Single files


def remote_texts(url: str) -> dict[str, str]:
    files, path = fsspec.url_to_fs(url)
    return {name.removeprefix(f"{path}/"): files.cat_file(name).decode() for name in files.find(path)}


def test_a_file_is_uploaded_with_what_is_beside_it_and_nothing_else(tmp_path):
    url = "memory://bucket/out/scored.jsonl"
    with pytest.raises(KeyboardInterrupt), writing(url) as file:  # noqa: PT012
        (file.parent / "scored.jsonl.part").write_text("half")
        (file.parent / "scored2.jsonl").write_text("of another command")
        raise KeyboardInterrupt
    assert remote_texts("memory://bucket/out") == {"scored.jsonl.part": "half"}
    lose_machine(tmp_path)
    with writing(url) as file:
        assert (file.parent / "scored.jsonl.part").read_text() == "half"
        (file.parent / "scored.jsonl.part").unlink()
        file.write_text("whole")
        (file.parent / "scored.kept.jsonl").write_text("kept")
        (file.parent / "scored.report").mkdir()
        (file.parent / "scored.report" / "report.html").write_text("page")
    done = {"scored.jsonl": "whole", "scored.kept.jsonl": "kept", "scored.report/report.html": "page"}
    assert remote_texts("memory://bucket/out") == done


def test_files_that_were_not_uploaded_survive_the_next_command():
    url = "lossy://bucket/out/scored.jsonl"
    for attempt in range(3):
        with pytest.raises(StorageError), writing(url) as file:  # noqa: PT012
            Lossy.writes_left = 0  # the third attempt does not begin
            if attempt == 0:
                file.write_text("whole")
                (file.parent / "scored.jsonl.part").write_text("half")
            assert file.read_text() == "whole"
        assert local(url).read_text() == "whole"
        Lossy.writes_left = 2 if attempt == 0 else 0
    Lossy.writes_left = None
    with writing(url) as file:
        assert (file.parent / "scored.jsonl.part").read_text() == "half"
    assert remote_texts("lossy://bucket/out") == {"scored.jsonl": "whole", "scored.jsonl.part": "half"}


def test_a_failed_upload_does_not_hide_why_the_work_failed():
    with pytest.raises(KeyError, match="the reason"), session():  # noqa: PT012
        open_mirror("lossy://bucket/run").mkdir(parents=True)
        (local("lossy://bucket/run") / "a").write_text("1")
        Lossy.writes_left = 0
        raise KeyError("the reason")


def test_half_written_folders_and_locks_stay_here():
    write("memory://b/run", last__x="1", last_new="2")
    with writing("memory://b/run") as folder:
        for name in ("checkpoints/last.new/model", "checkpoints/last.old/model", ".lock", ".a.1.part"):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_text("no")
    assert texts(fetch("memory://b/run")) == {"last/x": "1", "last_new": "2"}


def test_a_newer_process_takes_over_and_the_older_one_stops():
    first, second = Mirror("memory://b/run"), Mirror("memory://b/run")
    first.open()
    second.open()
    first.folder.mkdir(parents=True)
    (first.folder / "a").write_text("1")
    with pytest.raises(StorageError, match="another process writes to it now"):
        first.close()
    second.close()
    assert fsspec.filesystem("memory").exists("/b/run/a")


def test_another_machines_state_replaces_an_old_one_here(tmp_path):
    write("memory://b/run", a="1", b="1")
    shutil.move(tmp_path / "cache", tmp_path / "first")
    write("memory://b/run", a="2", c="2")
    shutil.rmtree(tmp_path / "cache")
    shutil.move(tmp_path / "first", tmp_path / "cache")
    with writing("memory://b/run") as folder:
        assert texts(folder) == {"a": "2", "b": "1", "c": "2"}


def test_an_output_that_was_deleted_there_starts_empty_here():
    write("memory://b/run", a="1")
    fsspec.filesystem("memory").rm("/b/run", recursive=True)
    with writing("memory://b/run") as folder:
        assert not folder.exists()


def test_a_folder_that_another_tool_copied_is_taken_as_it_is():
    files = fsspec.filesystem("memory")
    files.pipe({"/b/copied/config.json": b"{}", "/b/copied/sub/x": b"1"})
    assert texts(fetch("memory://b/copied")) == {"config.json": "{}", "sub/x": "1"}
    with writing("memory://b/copied") as folder:
        assert texts(folder) == {"config.json": "{}", "sub/x": "1"}


def test_an_input_that_changed_is_downloaded_again_and_only_then(monkeypatch):
    files = fsspec.filesystem("memory")
    files.pipe({"/b/in/a": b"1", "/b/in/b": b"2"})
    fetch("memory://b/in")
    got: list[str] = []
    whole = type(files).get_file
    monkeypatch.setattr(type(files), "get_file", lambda self, a, b, **o: (got.append(a), whole(self, a, b, **o))[1])
    assert texts(fetch("memory://b/in")) == {"a": "1", "b": "2"}
    assert got == []
    files.pipe({"/b/in/b": b"3"})
    files.rm("/b/in/a")
    assert texts(fetch("memory://b/in")) == {"b": "3"}
    assert got == ["/b/in/b"]


def test_a_file_that_is_not_what_its_upload_was_is_refused():
    write("memory://b/run", a="1")
    fsspec.filesystem("memory").pipe({"/b/run/a": b"2"})
    shutil.rmtree(local("memory://b/run"))
    with pytest.raises(StorageError, match="does not match the checksum"):
        fetch("memory://b/run")


@pytest.mark.parametrize("text", ["", "[", "[]", '{"id": 1}', '{"id": "a", "files": {"../x": {}}}'])
def test_a_damaged_marker_is_one_line(text):
    fsspec.filesystem("memory").pipe({"/b/run/.evle/marker.json": text.encode() or b" ", "/b/run/a": b"1"})
    with pytest.raises(StorageError, match="damaged"):
        fetch("memory://b/run")


def test_a_marker_names_no_file_outside_of_its_folder():
    marker = {"id": "a", "files": {"../x": {"at": "a", "size": 1, "sha256": ""}}}
    fsspec.filesystem("memory").pipe({"/b/run/.evle/marker.json": json.dumps(marker).encode(), "/b/run/a": b"1"})
    with pytest.raises(StorageError, match="no file below it"):
        fetch("memory://b/run")


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("readonly://b/run", "cannot be written .*check the credentials and the permissions"),
        ("nosuch://b/run", "unknown scheme"),
        ("memory://", "names no folder"),
    ],
)
def test_an_output_that_cannot_be_written_is_refused_before_the_work(url, words):
    with pytest.raises(EvleError, match=words), writing(url):
        pytest.fail("the work began")


def test_an_input_that_is_not_there_is_one_line():
    with pytest.raises(StorageError, match=r"memory://b/none: no such file or folder"):
        fetch("memory://b/none")
