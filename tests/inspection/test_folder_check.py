"""Checking a folder names everything that would stop or thin out a training run, and goes on to the end."""

import json

import numpy as np
import pytest
from PIL import Image

from evle.data.custom.folder import folder
from evle.errors import DataError
from evle.inspection.folder_check import check_folder, is_latin
from evle.inspection.sample_check import check_samples


@pytest.fixture
def messy(tmp_path):
    """Seven rows, one of them not JSON; five images of which one is cut, one missing, and two have the same bytes."""
    for name, colour, size in (("a", "red", 8), ("b", "blue", 8), ("same", "red", 8), ("cut", "red", 64)):
        Image.new("RGB", (size, size), colour).save(tmp_path / f"{name}.png")
    data = (tmp_path / "cut.png").read_bytes()
    (tmp_path / "cut.png").write_bytes(data[: len(data) // 2])
    rows = [
        {"image": "a.png", "caption": "a dog", "split": "train"},
        {"image": "a.png", "caption": "собака", "split": "train"},
        {"image": "b.png", "caption": " ", "split": "train"},
        {"image": "same.png", "caption": "word " * 31, "split": "test"},
        {"image": "cut.png", "caption": "a cat", "split": "test"},
        {"image": "gone.png", "caption": "a fox", "split": "test"},
    ]
    (tmp_path / "captions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows) + '{"image": \n')
    return tmp_path


def test_everything_is_counted_and_named(messy):
    seen = []
    check = check_folder(messy, progress=lambda done, total: seen.append((done, total)))
    assert (check.rows, check.images, check.texts) == (7, 5, 5)
    assert check.splits == {"train": 2, "test": 3}
    assert check.texts_per_image == {2: 1, 0: 1, 1: 3}
    assert check.sizes == {(8, 8): 3}
    assert [line.split(":")[1] for line in check.empty.lines] == ["3"]
    assert [line.split(" (")[0] for line in check.broken_rows.lines] == [
        f"{messy / 'captions.jsonl'}:7: not usable JSON"
    ]
    assert [line.split(": ")[0] for line in check.unreadable.lines] == [f"{messy}/cut.png", f"{messy}/gone.png"]
    assert "no such file" in check.unreadable.lines[1]
    assert check.long.lines[0].startswith(f"{messy / 'captions.jsonl'}:4: 31 words")
    assert check.duplicates.lines == ["same.png = a.png"]
    assert check.leaks.lines == ["same.png = a.png: in test and train"]
    assert check.not_latin == pytest.approx(1 / 5)
    assert not check.ok
    assert seen[-1] == (5, 5)
    text = "\n".join(check.lines(most=1))
    for words in ("7 rows, 5 images, 5 captions", "unreadable images: 2", "... and 1 more", "20.0 %", "0 to 2"):
        assert words in text


def test_an_image_of_12_bits_in_16_is_named_once_by_both_checks(tmp_path):
    for name, most in (("a", 4000), ("b", 60000)):
        Image.fromarray(np.array([[0, most]], np.uint16)).save(tmp_path / f"{name}.png")
    (tmp_path / "captions.csv").write_text("image,caption\na.png,one\na.png,two\nb.png,three\n")
    words = "a.png: all values are below 4096: it looks like 12-bit data in a 16-bit file"
    for check in (check_folder(tmp_path), check_samples(folder(tmp_path, split="train", shares=(1, 0, 0)))):
        assert [line.partition(", and")[0].removesuffix("#0") for line in check.dark.lines] == [words]
        assert check.ok
        assert "images of more than 8 bits that are too dark: 1" in check.lines()


def test_an_image_named_in_two_splits_leaks(tmp_path):
    Image.new("RGB", (2, 2)).save(tmp_path / "a.png")
    (tmp_path / "captions.csv").write_text("image,caption,split\na.png,x,train\na.png,y,test\n")
    assert check_folder(tmp_path).leaks.lines == ["a.png: in test and train"]


def test_a_good_folder_is_said_to_be_good(tmp_path):
    Image.new("RGB", (2, 2)).save(tmp_path / "a.png")
    (tmp_path / "captions.csv").write_text("image,caption\na.png,x\n")
    check = check_folder(tmp_path)
    assert check.ok
    assert check.lines()[-1] == "every row can be used, but not every split"
    assert "by a hash of the name" in check.lines()[1]


def test_splits_of_which_none_is_for_training_are_named_with_the_key(tmp_path):
    Image.new("RGB", (2, 2)).save(tmp_path / "a.png")
    (tmp_path / "captions.csv").write_text("image,caption,split\na.png,x,0\n")
    check = check_folder(tmp_path)
    assert check.empty_splits.lines == [
        "train: no row; name the split to train on with data.train.split=NAME (the table's: 0)"
    ]
    assert check.lines()[-1] == "every row can be used, but not every split"


def test_questions_are_checked_too(tmp_path):
    Image.new("RGB", (2, 2)).save(tmp_path / "a.png")
    (tmp_path / "questions.csv").write_text("image,question,answer\na.png,what?,dog\na.png,,cat\n")
    check = check_folder(tmp_path, "vqa")
    assert (check.texts, check.empty.count) == (1, 1)
    assert "1 questions" in check.lines()[0]


def test_a_folder_without_a_table_has_its_images_checked(tmp_path):
    Image.new("RGB", (2, 2)).save(tmp_path / "a.png")
    (tmp_path / "b.png").write_bytes(b"")
    check = check_folder(tmp_path)
    assert (check.rows, check.images, check.unreadable.count) == (0, 2, 1)


def test_an_empty_folder_is_an_error(tmp_path):
    with pytest.raises(DataError, match=r"no captions\.jsonl"):
        check_folder(tmp_path)


def test_latin_means_mostly_latin_letters():
    assert all(is_latin(text) for text in ("naïve café", "犬 dog", "123!", ""))
    assert not is_latin("犬がいる dog")


def test_a_folder_without_a_table_is_no_training_set_and_says_so(tmp_path):
    Image.new("RGB", (2, 2)).save(tmp_path / "a.png")
    (tmp_path / "captions.json").write_text("[]")
    text = "\n".join(check_folder(tmp_path).lines())
    assert "only the images were checked: " in text
    assert (
        "(captions.json: of no kind that is read; save it as CSV or JSON lines); write one, or set captions_from"
        in text
    )
    assert text.endswith("no table is read, so that a run is refused")


def test_repeated_rows_ids_and_missing_answers_are_named(tmp_path):
    Image.new("RGB", (2, 2)).save(tmp_path / "a.png")
    row = '{"image": "a.png", "caption": "x"}\n'
    (tmp_path / "captions.jsonl").write_text(row + row)
    check = check_folder(tmp_path)
    assert check.repeated.lines == [f"{tmp_path / 'captions.jsonl'}:2: repeats line 1"]
    assert check.ok  # they become one
    rows = [{"image": "a.png", "question": "who?", "id": 1}, {"image": "a.png", "question": "where?", "id": 1}]
    (tmp_path / "questions.jsonl").write_text("".join(json.dumps(each) + "\n" for each in rows))
    check = check_folder(tmp_path, "vqa")
    assert check.unanswered == 2
    assert "questions.jsonl:2: duplicate id '1', already used in line 1" in check.broken_rows.lines[0]
    (tmp_path / "questions.jsonl").write_text("")
    assert check_folder(tmp_path, "vqa").lines()[-1] == "the table holds no row"


def test_the_words_of_a_table_that_is_read_as_windows_1252_are_shown(tmp_path):
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    (tmp_path / "captions.csv").write_bytes("image,caption\na.png,un café noir\n".encode("cp1252"))
    assert check_folder(tmp_path).read_as == "Windows-1252, such as 'un café noir'"
