"""Arrays of a JSON file are read an element at a time: as json reads them, at their places, in little memory."""

import gzip
import json
import random
import tracemalloc

import pytest

from evle.data.formats import json_arrays
from evle.data.formats.json_arrays import JsonArrays, read_element
from evle.data.formats.json_lines import JsonLines
from evle.errors import DataError


@pytest.fixture(params=[1, 7, 64, 1 << 20])
def chunk(request, monkeypatch):
    """Every element is cut by some end of what is read at once."""
    monkeypatch.setattr(json_arrays, "CHUNK", request.param)


def elements(path, names=("",)):
    return [tuple(each) for each in JsonArrays(path, names)]


def random_value(rng, depth=0):
    kinds = ["number", "text", "word", "float"] + (["list", "object"] if depth < 3 else [])
    match rng.choice(kinds):
        case "number":
            return rng.randint(-(10**9), 10**9)
        case "float":
            return rng.random() * 10 ** rng.randint(-20, 20)
        case "word":
            return rng.choice([True, False, None])
        case "text":
            return "".join(rng.choice('ab "\\\n\té犬😀,]}[{:') for _ in range(rng.randint(0, 12)))
        case "list":
            return [random_value(rng, depth + 1) for _ in range(rng.randint(0, 3))]
        case _:
            return {f"k{i}": random_value(rng, depth + 1) for i in range(rng.randint(0, 3))}


@pytest.mark.parametrize("indent", [None, 2])
@pytest.mark.parametrize("ascii_only", [True, False])
def test_any_list_is_read_as_json_reads_it_and_found_again_at_its_place(tmp_path, chunk, indent, ascii_only):
    rng = random.Random(0)
    values = [random_value(rng) for _ in range(60)]
    path = tmp_path / "list.json"
    path.write_text(json.dumps(values, indent=indent, ensure_ascii=ascii_only), encoding="utf-8")
    found = elements(path)
    assert [value for *_, value in found] == values
    assert [read_element(path, offset, length) for _, offset, length, _ in found] == values


def test_the_arrays_asked_for_are_handed_out_and_the_rest_is_stepped_over(tmp_path, chunk):
    path = tmp_path / "object.json"
    tree = {"info": {"a": [1]}, "images": [{"id": 1}], "year": 2014, "empty": [], "captions": ["é", "b"], "x": [3]}
    path.write_text("\ufeff" + json.dumps(tree, ensure_ascii=False), encoding="utf-8")
    found = elements(path, ["captions", "images", "empty"])
    assert [(name, value) for name, _, _, value in found] == [
        ("images", {"id": 1}),
        ("captions", "é"),
        ("captions", "b"),
    ]
    assert [read_element(path, offset, length) for _, offset, length, _ in found] == [{"id": 1}, "é", "b"]


def test_the_fingerprint_is_of_the_bytes(tmp_path):
    prints = []
    for text in ("[1]", "[1]", "[1] "):
        (tmp_path / "a.json").write_text(text)
        arrays = JsonArrays(tmp_path / "a.json")
        assert [each.value for each in arrays] == [1]
        prints.append(arrays.fingerprint)
    assert prints[0] == prints[1] != prints[2]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('[{"a": 1}, {"a": "cut he', "cut short in element 1, at byte 11; fetch or unpack the file again"),
        ('[{"a": 1}, {"a": 1}', "cut short before ']', at byte 19"),
        ('[{"a": 1} {"a": 1}]', "']' is needed where '{' is, at byte 10"),
        ('[{"a": oops, "b": [1, 2, 3, 4, 5, 6, 7, 8]}]', "element 0 is not JSON (Expecting value), at byte 1"),
        ("<html>not found</html>", "starts with '<' and is no JSON list or object"),
        ("", "is empty; fetch or unpack the file again"),
        ("[1] [2]", "there is text after its end"),
        ('{"images": [1]}', "no list of records in it: it holds 'images'; is it the right file?"),
    ],
)
def test_a_broken_file_is_named_with_the_place(tmp_path, text, message):
    path = tmp_path / "broken.json"
    path.write_text(text)
    with pytest.raises(DataError) as found:
        elements(path)
    assert str(found.value).startswith(f"{path}: ")
    assert message in str(found.value)


def test_a_missing_array_and_a_missing_file_are_named(tmp_path):
    (tmp_path / "a.json").write_text('{"imges": []}')
    with pytest.raises(DataError, match=r"no list 'images' in it: it holds 'imges'"):
        elements(tmp_path / "a.json", ["images"])
    with pytest.raises(DataError, match=r"b\.json: no such file"):
        elements(tmp_path / "b.json")


def test_text_that_is_not_utf8_is_refused(tmp_path):
    (tmp_path / "a.json").write_bytes(b'["\xe9\xe9"]')
    with pytest.raises(DataError, match="not UTF-8 text"):
        elements(tmp_path / "a.json")


def test_a_file_changed_since_is_not_read_as_if_it_were_the_same(tmp_path):
    path = tmp_path / "a.json"
    path.write_text('[{"a": 1}]')
    [(_, offset, length, _)] = elements(path)
    path.write_text('["another"]')
    with pytest.raises(DataError, match="changed at byte 1 since it was opened"):
        read_element(path, offset, length)


def test_memory_does_not_grow_with_the_file(tmp_path, monkeypatch):
    monkeypatch.setattr(json_arrays, "CHUNK", 1 << 14)
    peaks = []
    for count in (500, 5000):
        path = tmp_path / f"{count}.json"
        path.write_text(json.dumps([{"id": i, "text": "word " * 40} for i in range(count)]))
        tracemalloc.start()
        assert sum(1 for _ in JsonArrays(path)) == count
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 1.2 * peaks[0] < 1 << 20


@pytest.mark.parametrize(
    ("element", "words"),
    [("[" * 100_000, "is nested too deeply"), ("1" * 5000, "holds a number of thousands of digits")],
)
def test_json_that_python_cannot_hold_is_one_line(tmp_path, element, words):
    (tmp_path / "a.json").write_text(f"[{element}")
    with pytest.raises(DataError, match=rf"a\.json: element 0 {words}"):
        list(JsonArrays(tmp_path / "a.json"))


def test_half_a_character_becomes_a_replacement_sign(tmp_path, chunk):
    path = tmp_path / "a.json"
    path.write_text(r'[{"caption": "a dog \ud83d"}, "\ud83d\ude00", "\\ud83d"]')
    found = elements(path)
    assert [value for *_, value in found] == [{"caption": "a dog ���"}, "😀", r"\ud83d"]
    assert [read_element(path, offset, length) for _, offset, length, _ in found] == [value for *_, value in found]
    (tmp_path / "a.jsonl").write_text('{"caption": "a dog \\ud83d"}\n')
    assert [line.value for line in JsonLines(tmp_path / "a.jsonl")] == [{"caption": "a dog ���"}]


def test_a_duplicate_key_is_refused(tmp_path, chunk):
    path = tmp_path / "a.json"
    for text, words in (
        ('[{"a": 1}, {"caption": "a dog", "caption": "a cat"}]', "element 1 has a duplicate key, 'caption', at byte"),
        ('{"images": [1], "images": [2]}', "the key 'images' is duplicated"),
    ):
        path.write_text(text)
        with pytest.raises(DataError, match=words):
            elements(path, ["images"] if "images" in text else [""])
        with pytest.raises(DataError, match=r"a\.json:1: not usable JSON \(the key '\w+' is duplicated\)"):
            list(JsonLines(path))


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (gzip.compress(b"[]", mtime=0), "is compressed (gzip); unpack it first"),
        ("[]".encode("utf-16"), "is UTF-16 text; save it as UTF-8"),
        ("[]".encode("utf-16-le"), "holds zero bytes; save it as UTF-8 text, or fetch it again"),
    ],
    ids=["gzip", "utf-16", "utf-16-le"],
)
def test_compressed_files_and_other_encodings_are_named(tmp_path, data, words):
    path = tmp_path / "a.json"
    path.write_bytes(data)
    for read in (JsonArrays, JsonLines):
        with pytest.raises(DataError) as found:
            list(read(path))
        assert str(found.value) == f"{path}: {words}"


def test_lists_and_lines_that_are_the_other_form_are_named(tmp_path):
    path = tmp_path / "a.json"
    path.write_text('{"a": 1}\n{"a": 2}\n')
    with pytest.raises(DataError, match=r"as in JSON lines, at byte 9; write one list \[...\] of them"):
        elements(path)
    path.write_text('[{"a": 1}, {"a": 2}]')
    with pytest.raises(DataError, match="write one object per line, not one list of them"):
        list(JsonLines(path))
    path.write_text('{\n "a": 1\n}\n')
    with pytest.raises(DataError, match=r":1: one object over several lines; write each object on one line"):
        list(JsonLines(path))
