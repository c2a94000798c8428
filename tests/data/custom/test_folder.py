"""The user's own folder: every usual form is read, and what is wrong is named by file and line."""

import json
import pickle
from collections import Counter

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from evle.data.custom.folder import folder
from evle.data.formats.listing import list_folder
from evle.data.samples import hashed_split
from evle.errors import ConfigError, DataError

ROWS = [
    {"image": "a.png", "captions": ["a dog", "a brown dog"], "keywords": ["dog"], "split": "train"},
    {"image": "b.png", "captions": ["A Dog"], "keywords": [], "split": "train"},
    {"image": "c.png", "captions": ["a cat"], "keywords": ["cat", "pet"], "split": "test"},
]


def jsonl(path, rows):
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return path.parent


def write(path, text):
    path.write_text(text, encoding="utf-8")
    return path.parent


def test_a_jsonl_table_becomes_samples(tmp_path):
    samples = folder(jsonl(tmp_path / "captions.jsonl", ROWS))
    assert [sample.key for sample in samples] == ["a.png", "b.png", "c.png"]
    assert samples[0].image == str(tmp_path / "a.png")
    assert samples[0].captions == ("a dog", "a brown dog")
    assert samples[2].tags == ("cat", "pet")
    assert samples[-1] == samples[2] == samples[0:3][2]
    with pytest.raises(IndexError):
        samples[3]


def test_csv_tsv_and_parquet_hold_the_same(tmp_path):
    expected = [(sample.captions, sample.tags) for sample in folder(jsonl(tmp_path / "captions.jsonl", ROWS))]
    lines = [["image", "captions", "keywords"]]
    lines += [[row["image"], json.dumps(row["captions"]), "; ".join(row["keywords"])] for row in ROWS]
    (tmp_path / "t.tsv").write_text("\n".join("\t".join(line) for line in lines))
    quoted = [[f'"{cell.replace(chr(34), chr(34) * 2)}"' for cell in line] for line in lines]
    (tmp_path / "t.csv").write_text("\ufeff" + "\n".join(",".join(line) for line in quoted))
    pq.write_table(pa.Table.from_pylist(ROWS), tmp_path / "t.parquet")
    for name in ("t.tsv", "t.csv", "t.parquet"):
        samples = folder(tmp_path / name)
        assert [(sample.captions, sample.tags) for sample in samples] == expected, name


@pytest.mark.parametrize("header", ["image,caption", "file_name,text", "filepath,title"])
def test_usual_column_names_are_found_and_others_may_be_named(tmp_path, header):
    assert folder(write(tmp_path / "captions.csv", f"{header}\n1.png,a dog\n"))[0].captions == ("a dog",)
    write(tmp_path / "captions.csv", "bild,de,en\n1.png,ein Hund,a dog\n")
    sample = folder(tmp_path, image_column="bild", caption_column=["en", "de"])[0]
    assert sample.captions == ("a dog", "ein Hund")


def test_rows_of_one_image_become_one_sample(tmp_path):
    text = "image,caption\n1.png,a dog\n2.png,a cat\n1.png,a brown dog\n1.png,a dog\n"
    samples = folder(write(tmp_path / "captions.csv", text))
    assert [sample.captions for sample in samples] == [("a dog", "a brown dog"), ("a cat",)]
    assert samples.describe()["captions"] == 4


def test_samples_of_the_same_first_caption_match_unless_a_column_says_otherwise(tmp_path):
    rows = [{**row, "concept": name} for row, name in zip(ROWS, ("one", "two", "ONE"))]
    path = jsonl(tmp_path / "captions.jsonl", rows)
    assert [sample.match_id for sample in folder(path)] == ["a dog", "a dog", "a cat"]
    assert [sample.match_id for sample in folder(path, match_column="concept")] == ["one", "two", "one"]


def test_questions_carry_one_or_many_answers(tmp_path):
    rows = [
        {"image": "a.png", "question": "what?", "answers": ["dog"] * 10, "question_id": 7, "answer_type": "other"},
        {"image": "a.png", "question": "how many?", "answer": 2},
        {"image": "a.png", "question": "is it?", "answer": True},
        {"image": "a.png", "question": "why?"},
    ]
    samples = folder(jsonl(tmp_path / "questions.jsonl", rows), "vqa")
    assert [sample.answers for sample in samples] == [("dog",) * 10, ("2",), ("yes",), ()]
    assert [sample.key for sample in samples] == ["7", "a.png#2", "a.png#3", "a.png#4"]
    assert samples[0].answer_type == "other"


def test_splits_come_from_the_table(tmp_path):
    path = jsonl(tmp_path / "captions.jsonl", ROWS)
    assert [len(folder(path, split=split)) for split in ("train", "test", ["train", "test"], None)] == [2, 1, 3, 3]
    with pytest.raises(DataError, match=r"captions\.jsonl: no split 'tests'; did you mean 'test'"):
        folder(path, split="tests")


def test_a_table_without_splits_is_divided_by_the_images_name(tmp_path):
    rows = [{"image": f"{i}.png", "caption": "x"} for i in range(2000)]
    path = jsonl(tmp_path / "captions.jsonl", rows + rows[:50])
    parts = {split: {sample.key for sample in folder(path, split=split)} for split in ("train", "val", "test")}
    assert set.union(*parts.values()) == {row["image"] for row in rows}
    assert sum(map(len, parts.values())) == 2000
    assert 1530 <= len(parts["train"]) <= 1670
    assert 150 <= len(parts["val"]) <= 250
    assert len(folder(path, split="train", shares=(1, 0, 0))) == 2000
    # the same on every machine and in every version: users' scores depend on it
    assert [hashed_split(f"{i}.png") for i in (4, 5, 6, 7)] == ["train", "test", "train", "val"]
    with pytest.raises(DataError, match="no split 'dev'; choose one of: test, train, val"):
        folder(path, split="dev")


def test_captions_may_be_the_names_of_files_or_folders(tmp_path):
    (tmp_path / "brown_dogs" / ".hidden").mkdir(parents=True)
    for name in ("brown_dogs/a-big_dog.png", "brown_dogs/.hidden/x.png", "brown_dogs/notes.txt"):
        (tmp_path / name).write_bytes(b"")
    assert list_folder(tmp_path).images == ["brown_dogs/a-big_dog.png"]
    assert folder(tmp_path, captions_from="filename")[0].captions == ("a big dog",)
    assert folder(tmp_path, captions_from="folder")[0].captions == ("brown dogs",)
    with pytest.raises(DataError, match=r"no captions\.jsonl, .* there; .*captions_from=filename"):
        folder(tmp_path)


def test_rows_without_text_are_left_out_and_named(tmp_path):
    samples = folder(jsonl(tmp_path / "captions.jsonl", [*ROWS, {"image": "d.png", "captions": ["  "]}]))
    assert len(samples) == 3
    assert samples.skipped == [f"{tmp_path / 'captions.jsonl'}:4: no caption for d.png"]


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ('{"image": "d.png", "captions"', r"jsonl:4: not usable JSON \("),
        ("[1, 2]", r"jsonl:4: not an object but .*; write one object \{\.\.\.\} per line"),
        ("[" * 100_000, r"jsonl:4: not usable JSON \(nested too deeply\)"),
        ({"imge": "d.png", "captions": ["x"]}, r"jsonl:4: no column 'image' or .*did you mean 'imge'.*image_column"),
        ({"image": "d.png", "label": "x"}, r"jsonl:4: no column 'captions' or 'caption'"),
        ({"image": "d.png", "captions": {"en": "x"}}, r"jsonl:4: caption: a record of en has none of raw, caption"),
        ({"image": 7, "captions": ["x"]}, r"jsonl:4: the image must be a file name, not '7'"),
        ({"image": "", "captions": ["x"]}, r"jsonl:4: the image must be a file name"),
        ({"image": "../d.png", "captions": ["x"]}, r"jsonl:4: \.\./d\.png is outside of .*allow_outside"),
        ({"image": "/etc/d.png", "captions": ["x"]}, r"jsonl:4: /etc/d\.png is outside"),
        ({"image": "x/../../d.png", "captions": ["x"]}, r"jsonl:4: .*is outside"),
    ],
)
def test_a_broken_row_is_named_by_file_and_line(tmp_path, row, words):
    path = jsonl(tmp_path / "captions.jsonl", [*ROWS, row])
    with pytest.raises(DataError, match=words) as caught:
        folder(path)
    assert "\n" not in str(caught.value)


def test_images_outside_may_be_allowed_and_inside_need_no_permission(tmp_path):
    rows = [{"image": "x/../d.png", "caption": "a"}, {"image": str(tmp_path / "d.png"), "caption": "b"}]
    (sample,) = folder(jsonl(tmp_path / "captions.jsonl", rows))  # two names of one image
    assert (sample.key, sample.captions) == ("d.png", ("a", "b"))
    path = jsonl(tmp_path / "captions.jsonl", [{"image": "../d.png", "caption": "a"}])
    assert len(folder(path, allow_outside=True)) == 1


def test_broken_csv_and_parquet_files_are_named(tmp_path):
    with pytest.raises(
        DataError, match=r"captions\.csv:2: 3 fields where the header has 2; put quotes around texts with commas"
    ):
        folder(write(tmp_path / "captions.csv", "image,caption\n1.png,a dog, brown\n"))
    (tmp_path / "t.parquet").write_bytes(b"PAR1 nothing")
    with pytest.raises(DataError, match=r"t\.parquet: not a readable Parquet file"):
        folder(tmp_path / "t.parquet")


def test_a_folder_of_several_unknown_tables_asks_which(tmp_path):
    write(tmp_path / "one.csv", "image,caption\n")
    write(tmp_path / "two.csv", "image,caption\n")
    with pytest.raises(DataError, match=r"several tables \(one\.csv, two\.csv\); name one as path"):
        folder(tmp_path)
    with pytest.raises(DataError, match=r"one\.csv: no usable rows"):
        folder(tmp_path / "one.csv")
    with pytest.raises(DataError, match="no such folder"):
        folder(tmp_path / "nowhere")
    with pytest.raises(DataError, match=r"a table must be one of \.jsonl"):
        folder(write(tmp_path / "x.xlsx", "") / "x.xlsx")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"task": "chat"}, "task='chat' cannot be read from a folder"),
        ({"shares": (0.5, 0.1)}, "three shares"),
        ({"captions_from": "name"}, "did you mean 'filename'"),
    ],
)
def test_impossible_options_are_refused(tmp_path, options, words):
    with pytest.raises(ConfigError, match=words):
        folder(jsonl(tmp_path / "captions.jsonl", ROWS), **options)


def test_the_fingerprint_follows_the_table_and_the_options(tmp_path):
    path = jsonl(tmp_path / "captions.jsonl", ROWS)
    first = folder(path)
    assert first.fingerprint == folder(path).fingerprint != folder(path, split="train").fingerprint
    assert pickle.loads(pickle.dumps(first))[1] == first[1]
    jsonl(tmp_path / "captions.jsonl", ROWS[:2])
    assert folder(path).fingerprint != first.fingerprint


def test_reading_changes_nothing_on_disk(tmp_path):
    Image.new("RGB", (2, 2)).save(tmp_path / "a.png")
    path = jsonl(tmp_path / "captions.jsonl", ROWS)
    before = Counter((file.name, file.stat().st_mtime_ns, file.stat().st_size) for file in path.iterdir())
    list(folder(path))
    assert before == Counter((file.name, file.stat().st_mtime_ns, file.stat().st_size) for file in path.iterdir())


def test_half_a_character_in_a_text_becomes_a_replacement_sign(tmp_path):
    (tmp_path / "captions.jsonl").write_text('{"image": "a.png", "caption": "cut \\ud83d"}\n', encoding="utf-8")
    assert folder(tmp_path)[0].captions[0].startswith("cut \ufffd")


def test_what_a_table_is_not_is_said_with_the_cure(tmp_path):
    with pytest.raises(
        DataError, match=r"captions\.jsonl:1: not usable JSON .*; write one object per line, not one list"
    ):
        folder(write(tmp_path / "captions.jsonl", '[\n {"image": "a.png", "caption": "x"}\n]\n'))
    (tmp_path / "captions.jsonl").unlink()
    with pytest.raises(DataError, match=r"no captions\.jsonl, .* there \(captions\.json: of no kind that is read; "):
        folder(write(tmp_path / "captions.json", "[]"))


def test_two_questions_of_one_id_are_refused(tmp_path):
    rows = [{"image": "a.png", "question": q, "answer": "x", "question_id": 7} for q in ("who?", "where?")]
    with pytest.raises(DataError, match=r"questions\.jsonl: the id '7' is duplicated; give each row its own"):
        folder(jsonl(tmp_path / "questions.jsonl", rows), "vqa")


def test_nan_is_no_caption(tmp_path):
    path = write(
        tmp_path / "captions.jsonl", '{"image": "a.png", "caption": NaN}\n{"image": "b.png", "caption": "x"}\n'
    )
    assert len(folder(path)) == 1
