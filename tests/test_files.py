"""JSON whose faults are one line, and files that are replaced whole."""

import pytest

from evle.errors import CheckpointError, DataError
from evle.files import opened_whole, parse_json, read_json, write_whole


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"[" * 100_000, "nested too deeply"),
        (b'{"a": ' + b"1" * 5000 + b"}", "thousands of digits"),
        (b'"\xff"', "not UTF-8: byte 1"),
        (b"", "is empty"),
        (b"\0\0\0", "Expecting value"),
        (b"[]", "holds a list, where an object is needed"),
        (b"null", "holds null"),
        (b"5", "holds a number"),
    ],
)
def test_every_fault_of_json_is_one_line_that_names_the_file(tmp_path, data, words):
    (tmp_path / "a.json").write_bytes(data)
    with pytest.raises(CheckpointError, match=words) as caught:
        read_json(tmp_path / "a.json", kind=dict, error=CheckpointError)
    assert str(caught.value).startswith(str(tmp_path / "a.json"))
    assert "\n" not in str(caught.value)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(DataError, match=r"b\.json: cannot be read \(No such file"):
        read_json(tmp_path / "b.json")


def test_values_are_read_with_and_without_a_byte_order_mark():
    assert parse_json(b"\xef\xbb\xbf[1]", "x", kind=list) == [1]
    assert parse_json('{"a": null}', "x") == {"a": None}


def test_a_file_that_is_written_in_parts_appears_whole_or_not_at_all(tmp_path):
    with opened_whole(tmp_path / "a") as file:
        file.write(b"1\n")
        assert not (tmp_path / "a").exists()
        file.write(b"2\n")

    def write_and_fail():
        with opened_whole(tmp_path / "a") as file:
            file.write(b"3\n")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_and_fail()
    assert (tmp_path / "a").read_bytes() == b"1\n2\n"
    assert [each.name for each in tmp_path.iterdir()] == ["a"]


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path, monkeypatch):
    target = tmp_path / "status.json"
    write_whole(target, "old \udcff")
    assert target.read_text() == "old ?"

    def full(handle):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="No space"):
        write_whole(target, b"new")
    assert target.read_text() == "old ?"
    assert [path.name for path in tmp_path.iterdir()] == ["status.json"]
