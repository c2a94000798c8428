"""Tables as people have them are read right, or refused by name; and a check passes nothing that a run refuses."""

import json
import os
import re
import unicodedata

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from evle.data.custom.corpus import read_texts
from evle.data.custom.folder import folder
from evle.data.custom.image_folder import ImageFolder
from evle.data.custom.saved_datasets import saved_dataset
from evle.data.formats.listing import list_folder
from evle.data.formats.table_files import kind_of_table, read_rows
from evle.data.images import open_image
from evle.errors import DataError, SampleError
from evle.inspection.folder_check import check_folder
from tars import encoded


def write(path, rows, name="captions.jsonl"):
    path.mkdir(parents=True, exist_ok=True)
    lines = (row if isinstance(row, str) else json.dumps(row) for row in rows)
    (path / name).write_text("".join(line + "\n" for line in lines), encoding="utf-8")
    return path


def draw(path, *names):
    for number, name in enumerate(names):
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (4, 4), (number, 0, 0)).save(path / name)
    return path


# --- splits


@pytest.mark.parametrize("missing", [{}, {"split": None}, {"split": ""}, {"split": "nan"}])
@pytest.mark.parametrize("position", [0, 2])
def test_a_row_without_a_split_is_named_wherever_it_is(tmp_path, missing, position):
    rows = [{"image": f"{n}.jpg", "caption": "x", "split": "train" if n < 4 else "test"} for n in range(6)]
    rows.insert(position, {"image": "odd.jpg", "caption": "x", **missing})
    write(draw(tmp_path, "odd.jpg", *(f"{n}.jpg" for n in range(6))), rows)
    words = rf"captions\.jsonl:{position + 1}: no split, while other rows name one \(1 row: {position + 1}\)"
    with pytest.raises(DataError, match=words):
        folder(tmp_path, split="train")
    check = check_folder(tmp_path)
    assert not check.ok
    assert f"captions.jsonl:{position + 1}: no split, while other rows name one" in check.broken_rows.lines[0]
    assert len(folder(tmp_path, split="train", split_column=None, shares=(1, 0, 0))) == 7


def test_a_split_may_be_called_by_another_usual_name(tmp_path):
    write(tmp_path, [{"image": f"{s}.jpg", "caption": "x", "Split": s} for s in ("Train", "validation", "TEST")])
    assert [[sample.key for sample in folder(tmp_path, split=split)] for split in ("train", "val", "test")] == [
        ["Train.jpg"],
        ["validation.jpg"],
        ["TEST.jpg"],
    ]


def test_splits_that_look_like_mistakes_are_named(tmp_path):
    splits = ["train"] * 3 + ["Train", "3"]
    write(draw(tmp_path, *(f"{n}.jpg" for n in range(5))), [
        {"image": f"{n}.jpg", "caption": "x", "split": split} for n, split in enumerate(splits)
    ])  # fmt: skip
    assert check_folder(tmp_path).unusual.lines == ["'3' (1 row)", "'Train' (1 row)"]


def test_names_of_a_split_that_differ_in_case_are_read_as_one(tmp_path):
    splits = ["train", "Train", "TRAIN", "val", "dev"]
    rows = [{"image": f"{n}.jpg", "caption": "x", "split": split} for n, split in enumerate(splits)]
    write(draw(tmp_path, *(f"{n}.jpg" for n in range(5))), rows)
    assert len(folder(tmp_path, split="train")) == 3
    assert check_folder(tmp_path).unusual.lines == ["'TRAIN' (1 row)", "'Train' (1 row)", "'dev' (1 row)"]


def test_two_columns_that_differ_in_case_are_refused_where_their_values_differ(tmp_path):
    write(draw(tmp_path, "a.jpg"), [{"image": "a.jpg", "caption": "a dog", "Caption": "a cat"}])
    with pytest.raises(DataError, match="the columns 'caption' and 'Caption' differ in case alone"):
        folder(tmp_path)
    assert not check_folder(tmp_path).ok
    write(tmp_path, [{"image": "a.jpg", "caption": "a dog", "Caption": None}])
    assert folder(tmp_path)[0].captions == ("a dog",)


def test_an_empty_split_of_few_images_is_named_at_once(tmp_path):
    write(draw(tmp_path, "4.png", "6.png"), [{"image": f"{n}.png", "caption": "x"} for n in (4, 6)])  # both in train
    with pytest.raises(
        DataError, match=r"the split 'val' is empty: .*\(train 2, val 0, test 0\); add a column `split`"
    ):
        folder(tmp_path, split="val")
    check = check_folder(tmp_path)
    assert [line.split(":")[0] for line in check.empty_splits.lines] == ["val", "test"]
    assert check.lines()[-1] == "every row can be used, but not every split"


def test_a_single_file_on_the_hub_follows_its_column(tmp_path):
    splits = ["train", "test", "val", "train"]
    held = [{"bytes": encoded(n), "path": None} for n in range(4)]
    (tmp_path / "data").mkdir()
    table = pa.table({"image": held, "caption": ["x"] * 4, "split": splits})
    pq.write_table(table, tmp_path / "data" / "test-00000-of-00001.parquet")
    assert [len(saved_dataset(tmp_path, split=split)) for split in ("train", "val", "test")] == [2, 1, 1]
    pq.write_table(table, tmp_path / "data" / "train-00000-of-00001.parquet")
    with pytest.raises(DataError, match="row 1 of the split 'test' says split 'train'"):
        saved_dataset(tmp_path, split="test")
    assert len(saved_dataset(tmp_path, split="test", split_column=None)) == 4


# --- one image, one name


def test_one_image_under_many_names_is_one_sample(tmp_path):
    draw(tmp_path, "sub/a.jpg", "sub/café.jpg")
    names = ["sub/a.jpg", "./sub/a.jpg", "sub/../sub/a.jpg", "sub//a.jpg", f"{tmp_path}/sub/a.jpg", "sub\\a.jpg"]
    names += ["sub/A.JPG", " sub/a.jpg ", "sub/a"]
    cafe = [unicodedata.normalize(form, "sub/café.jpg") for form in ("NFC", "NFD")]
    write(tmp_path, [{"image": name, "caption": f"text {n}"} for n, name in enumerate([*names, *cafe])])
    samples = list(folder(tmp_path))
    assert [len(sample.captions) for sample in samples] == [len(names), 2]
    assert samples[0].image == str(tmp_path / "sub" / "a.jpg")
    assert check_folder(tmp_path).ok
    assert sum(len(folder(tmp_path, split=s)) for s in ("train", "val", "test") if _has(tmp_path, s)) == 2


def _has(path, split):
    try:
        return bool(folder(path, split=split))
    except DataError:
        return False


def test_names_that_differ_in_case_and_are_two_files_are_two_images(tmp_path):
    draw(tmp_path, "a.jpg", "A.JPG")
    write(tmp_path, [{"image": name, "caption": name} for name in ("a.jpg", "A.JPG")])
    assert [sample.key for sample in folder(tmp_path)] == ["a.jpg", "A.JPG"]


@pytest.mark.parametrize(
    ("file", "written"),
    [
        (unicodedata.normalize("NFD", "café.jpg"), unicodedata.normalize("NFC", "café.jpg")),
        (unicodedata.normalize("NFC", "café.jpg"), unicodedata.normalize("NFD", "café.jpg")),
        ("a.JPG", "A.jpg"),
        ("0001.jpg", "0001"),
        ("sub/b.jpg", "sub\\b.jpg"),
        ("Sub/B.jpg", "sub/b.jpg"),
        ("c.jpg", "c.jpg "),
        ("c.jpg", "\u200bc.jpg\ufeff"),
        ("c.jpg", "\u00a0c.jpg"),
    ],
)
def test_an_image_named_in_another_form_is_found(tmp_path, file, written):
    write(draw(tmp_path, file), [{"image": written, "caption": "x"}])
    assert os.path.samefile(folder(tmp_path)[0].image, tmp_path / file)
    assert check_folder(tmp_path).ok


def test_a_name_that_two_files_could_mean_is_refused(tmp_path):
    write(draw(tmp_path, "a.jpg", "a.png"), [{"image": "a", "caption": "x"}])
    with pytest.raises(SampleError, match=r"a\.jpg and a\.png differ from it in form only"):
        folder(tmp_path)[0]
    assert not check_folder(tmp_path).ok


def test_an_image_in_a_folder_below_is_hinted_at(tmp_path):
    write(draw(tmp_path, "images/b.jpg", "x.jpg"), [{"image": "b.jpg", "caption": "x"}])
    assert "; images/b.jpg exists: write that name, or set images=" in check_folder(tmp_path).unreadable.lines[0]


@pytest.mark.parametrize(
    ("file", "written"), [("e.jpeg", "e.jpg"), ("f.png", "f.JPG"), ("c d.jpg", "c%20d.jpg"), ("x+y.jpg", "x%2By.jpg")]
)
def test_a_missing_image_is_hinted_at_where_its_ending_differs_or_its_name_is_encoded(tmp_path, file, written):
    write(draw(tmp_path, file, "z.jpg"), [{"image": written, "caption": "x"}])
    assert f"; {file} exists: write that name" in check_folder(tmp_path).unreadable.lines[0]


def test_links_to_folders_are_named_where_captions_are_made_of_names(tmp_path, caplog):
    draw(tmp_path / "here", "a.jpg")
    (tmp_path / "here" / "photos").symlink_to(draw(tmp_path / "there", "b.jpg"))
    assert [sample.key for sample in folder(tmp_path / "here", captions_from="filename")] == ["a.jpg"]
    assert "1 links to other folders, which are not followed" in caplog.text


def test_a_url_is_named_as_one(tmp_path):
    write(tmp_path, [{"image": "https://x.org/a.jpg", "caption": "x"}])
    with pytest.raises(SampleError, match=r"https://x\.org/a\.jpg: is a URL"):
        folder(tmp_path)[0]
    assert "is a URL; download the image" in check_folder(tmp_path).unreadable.lines[0]


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_a_link_out_of_the_folder_obeys_allow_outside(tmp_path, kind):
    draw(tmp_path / "there", "a.jpg")
    here = write(tmp_path / "here", [{"image": "a.jpg" if kind == "file" else "in/a.jpg", "caption": "x"}])
    if kind == "file":
        (here / "a.jpg").symlink_to(tmp_path / "there" / "a.jpg")
    else:
        (here / "in").symlink_to(tmp_path / "there")
    with pytest.raises(SampleError, match=r"is a link to a file outside of .*allow_outside=true"):
        folder(here)[0]
    assert not check_folder(here).ok
    assert folder(here, allow_outside=True)[0].captions == ("x",)
    assert check_folder(here, allow_outside=True).ok


# --- cells


def test_the_first_usual_column_that_says_something_counts_row_by_row(tmp_path):
    rows = [{"image": "a.jpg", "captions": [], "caption": "x"}, {"image": "b.jpg", "captions": ["y"], "caption": ""}]
    assert [sample.captions for sample in folder(write(tmp_path, rows))] == [("x",), ("y",)]


def test_the_first_column_of_answers_that_holds_one_counts(tmp_path):
    rows = [
        {"image": "a.jpg", "question": "q?", "answers": [], "answer": "x"},
        {"image": "b.jpg", "question": "q?", "answers": [{"answer": ""}], "multiple_choice_answer": "y"},
        {"image": "c.jpg", "question": "q?", "answers": ["z"], "answer": "other"},
    ]
    samples = folder(write(tmp_path, rows, "questions.jsonl"), "vqa")
    assert [sample.answers for sample in samples] == [("x",), ("y",), ("z",)]


def test_empty_columns_of_a_pair_give_way_to_the_others(tmp_path):
    rows = [
        {"images": [], "left": "a.jpg", "right": "b.jpg", "sentence": "", "statement": "x", "label": True},
        {"images": None, "left": "a.jpg", "right": "b.jpg", "sentence": ["..."], "statement": "y", "label": "no"},
    ]
    samples = folder(write(tmp_path, rows, "pairs.jsonl"), "nlvr2")
    assert [(sample.sentence, sample.label) for sample in samples] == [("x", True), ("y", False)]
    assert [os.path.basename(image) for image in samples[0].images] == ["a.jpg", "b.jpg"]
    with pytest.raises(DataError, match=r"pairs\.jsonl:1: 0 images instead of two"):
        folder(write(tmp_path, [{"images": [], "sentence": "x", "label": True}], "pairs.jsonl"), "nlvr2")


@pytest.mark.parametrize("text", ["...", "-", "!!!", "nan", "None", None, float("nan"), " ", "—", "\u200b"])
def test_a_caption_that_says_nothing_is_left_out_and_fails_the_check(tmp_path, text):
    rows = [{"image": "a.jpg", "caption": text}, {"image": "b.jpg", "caption": "x"}]
    samples = folder(write(draw(tmp_path, "a.jpg", "b.jpg"), rows))
    assert [sample.key for sample in samples] == ["b.jpg"]
    assert samples.skipped == [f"{tmp_path}/captions.jsonl:1: no caption for a.jpg"]
    check = check_folder(tmp_path)
    assert (check.empty.count, check.ok) == (1, False)


def test_answers_of_vqav2_on_the_hub_are_read_from_their_records(tmp_path):
    answers = [{"answer": word, "answer_confidence": "yes"} for word in ["yes"] * 9 + ["no"]]
    row = {"image": {"bytes": encoded(1), "path": None}, "question": "is it?", "answers": answers, "question_id": 7}
    (tmp_path / "data").mkdir()
    pq.write_table(pa.Table.from_pylist([row]), tmp_path / "data" / "validation-00000-of-00001.parquet")
    (sample,) = saved_dataset(tmp_path, "vqa", "val")
    assert (sample.key, sample.answers) == ("7", ("yes",) * 9 + ("no",))


def test_answers_in_a_column_of_another_name_fail_the_check_by_name(tmp_path):
    row = {"image": "a.jpg", "question": "who?", "ground_truth": "rex"}
    write(draw(tmp_path, "a.jpg"), [row], "questions.jsonl")
    check = check_folder(tmp_path, "vqa")
    assert not check.ok
    assert "no column 'answers' or 'answer'; set answer_column to the one that holds them" in check.broken_rows.lines[0]
    assert "ground_truth" in folder(tmp_path, "vqa").describe()["answers"]
    assert folder(tmp_path, "vqa", answer_column="ground_truth")[0].answers == ("rex",)
    with pytest.raises(DataError, match="no column 'truth'"):
        folder(tmp_path, "vqa", answer_column="truth")


def test_columns_are_known_in_any_case(tmp_path):
    write(tmp_path, [{"Image": "a.jpg", "Question": "who?", "Answer": "rex"}], "questions.jsonl")
    (sample,) = folder(tmp_path, "vqa")
    assert (sample.image, sample.answers) == (str(tmp_path / "a.jpg"), ("rex",))


def test_a_duplicate_key_in_json_is_refused(tmp_path):
    write(tmp_path, ['{"image": "a.jpg", "caption": "x", "caption": "y"}'])
    with pytest.raises(DataError, match="the key 'caption' is duplicated"):
        folder(tmp_path)


def test_json_lines_in_utf_16_are_read(tmp_path):
    (tmp_path / "captions.jsonl").write_text('{"image": "a.jpg", "caption": "café"}\n', encoding="utf-16")
    assert folder(tmp_path)[0].captions == ("café",)


@pytest.mark.parametrize(
    "line", ["[" * 100_000, '{"image": "a", "caption": ' + "1" * 5000 + "}", '{"image": "a", "caption": "\udcff"}']
)
def test_json_of_any_damage_is_one_line(tmp_path, line):
    (tmp_path / "captions.jsonl").write_bytes(line.encode("utf-8", "surrogateescape"))
    with pytest.raises(DataError, match=r"captions\.jsonl:1: not usable JSON") as caught:
        folder(tmp_path)
    assert "\n" not in str(caught.value)


# --- pairs and choices


def test_own_pairs_are_a_table(tmp_path):
    draw(tmp_path, "a.jpg", "b.jpg")
    rows = [
        {"left": "a.jpg", "right": "b.jpg", "sentence": "both are dark", "label": True, "set_id": "s"},
        {"images": ["b.jpg", "./a.jpg"], "sentence": "one is red", "label": "False", "id": 5},
        {"images": ["b.jpg", "a.jpg"], "sentence": "who knows?"},
    ]
    samples = list(folder(write(tmp_path, rows, "pairs.jsonl"), "nlvr2"))
    assert [sample.label for sample in samples] == [True, False, None]
    assert [sample.key for sample in samples] == ["a.jpg#1", "5", "b.jpg#3"]
    assert samples[0].set_id == "s"
    assert samples[1].images == (str(tmp_path / "b.jpg"), str(tmp_path / "a.jpg"))
    check = check_folder(tmp_path, "nlvr2")
    assert check.ok
    assert (check.images, check.texts, check.unanswered) == (2, 3, 1)
    assert kind_of_table(tmp_path) == "nlvr2"


def test_the_kind_and_the_rows_of_a_parquet_table_are_known_without_its_values(tmp_path):
    columns = {"image": ["a.jpg", "b.jpg"], "question": ["who?", "why?"], "answer": ["me", "you"]}
    pq.write_table(pa.table(columns), tmp_path / "data.parquet")
    assert kind_of_table(tmp_path) == "vqa"
    blank = dict.fromkeys(columns)
    assert list(read_rows(tmp_path / "data.parquet", lambda name: False)) == [(1, blank), (2, blank)]


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"images": ["a.jpg"], "sentence": "x"}, "1 images instead of two"),
        ({"left": "a.jpg", "right": None, "sentence": "x"}, "the image must be a file name"),
        ({"left": "a.jpg", "right": "b.jpg", "sentence": "x", "label": "maybe"}, "the label 'maybe' is neither"),
        ({"left": "a.jpg", "right": "b.jpg"}, "no column 'sentence'"),
    ],
)
def test_a_broken_pair_is_named(tmp_path, row, words):
    with pytest.raises(DataError, match=words):
        folder(write(tmp_path, [row], "pairs.jsonl"), "nlvr2")
    assert words.split(" ")[-1] in check_folder(tmp_path, "nlvr2").broken_rows.lines[0]


def test_pairs_that_share_images_fall_into_one_split(tmp_path):
    rows = [{"left": f"{n}.jpg", "right": f"{n + 1}.jpg", "sentence": f"text {n}"} for n in range(40)]
    rows += [{"left": f"x{n}.jpg", "right": f"y{n}.jpg", "sentence": f"other {n}"} for n in range(60)]
    write(tmp_path, rows, "pairs.jsonl")
    splits = [folder(tmp_path, "nlvr2", split) for split in ("train", "val", "test")]
    parts = [{image for sample in samples for image in sample.images} for samples in splits]
    assert len(set.union(*parts)) == sum(map(len, parts))


CHOICE = {
    "image": "a.jpg",
    "objects": [{"label": "person", "box": [0, 0, 2, 4]}, {"label": "dog", "x": 1, "y": 1, "width": 2, "height": 2}],
    "question": "Why is [0] looking at [1]?",
    "answer_choices": ["[0] likes it", ["No", [0, 1], "sleep"], "no", "rain"],
    "answer_label": 0,
    "rationale_choices": ["a", "b", "c", "[1] barks"],
    "rationale_label": "3",
}


@pytest.mark.parametrize("as_text", [False, True])
def test_own_choices_are_a_table(tmp_path, as_text):
    row = {name: json.dumps(value) if as_text and isinstance(value, list) else value for name, value in CHOICE.items()}
    write(draw(tmp_path, "a.jpg"), [row], "choices.jsonl")
    (sample,) = folder(tmp_path, "vcr")
    assert sample.question == ("Why", "is", (0,), "looking", "at", (1,), "?")
    assert sample.answer_choices[1] == ("No", (0, 1), "sleep")
    assert [(box.label, box.x, box.width) for box in sample.objects] == [("person", 0, 2), ("dog", 1, 2)]
    assert (sample.answer_label, sample.rationale_label) == (0, 3)
    assert check_folder(tmp_path, "vcr").ok
    assert kind_of_table(tmp_path) == "vcr"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"answer_choices": ["a", "b"]}, "2 answer_choices instead of 4"),
        ({"answer_label": 4}, "answer_label '4' is not one of 0 to 3"),
        ({"question": "Why is [2] there?"}, "question names the object 2, and there are 2"),
        ({"objects": [{"label": "person", "box": [3, 0, 1, 4]}]}, "has no area"),
        ({"objects": [{"box": [0, 0, 1, 4]}]}, "an object without a label"),
        ({"objects": "no list"}, "not usable JSON"),
    ],
)
def test_a_broken_choice_is_named(tmp_path, change, words):
    with pytest.raises(DataError, match=words):
        folder(write(tmp_path, [{**CHOICE, **change}], "choices.jsonl"), "vcr")


# --- what is not looked at, and what is no table


def test_what_a_folder_holds_and_nobody_reads_is_named(tmp_path):
    draw(tmp_path, "a.jpg")
    draw(tmp_path / "elsewhere", "b.jpg")
    home = draw(tmp_path / "home", "c.jpg")
    (home / "linked").symlink_to(tmp_path / "elsewhere")
    (home / "gone").symlink_to(tmp_path / "nowhere")
    for name in ("x.HEIC", "y.dng", "images.zip"):
        (home / name).write_bytes(b"x")
    (home / "IMG_1").write_bytes(encoded(1))
    (home / "captions.txt").write_text("image,caption\nc.jpg,a dog\n")
    listing = list_folder(home)
    assert listing.images == ["c.jpg"]
    text = "\n".join(listing.unread)
    for words in ("2 images of a kind that is not read", "x.HEIC", "images.zip", "linked", "gone", "IMG_1"):
        assert words in text
    assert "captions.txt: looks like a table; rename it to captions.csv" in text


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("captions.ndjson", b"{}", "a table of another ending; rename it to captions.jsonl"),
        ("captions.pq", b"PAR1", "a table of another ending; rename it to captions.parquet"),
        ("captions.avro", b"Obj", "of no kind that is read; save it as CSV or JSON lines"),
        ("captions.txt", b"a dog\ta.jpg\na cat\tb.jpg\n", "looks like a table; rename it to captions.tsv"),
        ("captions.txt", b"a.jpg a dog\nb.jpg a cat\n", "looks like a table; save it as captions.tsv, with tabs"),
        ("captions.txt", "a.jpg\ta dog\n".encode("utf-16"), "looks like a table; rename it to captions.tsv"),
        ("captions.txt", "a.jpg,a dog\n".encode("utf-16-le"), "looks like a table; rename it to captions.csv"),
    ],
    ids=["ndjson", "pq", "avro", "caption-first", "blanks", "utf-16", "utf-16-without-a-mark"],
)
def test_a_table_of_another_form_is_named_and_no_run_of_its_folder_is_promised(tmp_path, name, content, words):
    (draw(tmp_path, "a.jpg") / name).write_bytes(content)
    checked = check_folder(tmp_path)
    assert checked.other_tables.lines == [f"{name}: {words}"]
    assert not checked.ok


def test_files_that_may_hold_rows_are_named_and_texts_are_no_tables(tmp_path):
    draw(tmp_path, "a.jpg")
    for name in ("captions.xml", "captions.db", "captions.yaml", "captions.pkl"):
        (tmp_path / name).write_bytes(b"x")
    (tmp_path / "README.txt").write_text("These images are mine.\nThe best one is a.jpg\n")
    (tmp_path / "train.txt").write_text("a.jpg\nb.jpg\n")
    assert list_folder(tmp_path).unread == [
        "4 files that may hold rows, which are not read; save their rows as CSV or JSON lines: captions.db, "
        "captions.pkl, captions.xml, captions.yaml"
    ]
    assert check_folder(tmp_path).ok


@pytest.mark.parametrize(
    ("content", "words"),
    [(b"\x1f\x8b" + b"x" * 99, r"is compressed \(gzip\)"), ("el niño\n".encode("cp1252"), r"x\.txt:1: not UTF-8 text")],
)
def test_a_corpus_that_is_no_utf_8_text_is_refused_at_once(tmp_path, content, words):
    (tmp_path / "x.txt").write_bytes(content)
    with pytest.raises(DataError, match=words):
        read_texts([tmp_path / "x.txt"])


def test_a_corpus_in_utf_16_is_read(tmp_path):
    (tmp_path / "x.txt").write_text("el niño\n", encoding="utf-16")
    assert list(read_texts([tmp_path / "x.txt"])) == ["el niño"]


# --- Parquet


def test_parquet_values_that_python_cannot_hold_are_named_by_row(tmp_path):
    captions = pa.array([b"a dog", b"\xff", b"a cat"], pa.binary()).view(pa.string())
    far = pa.array([0, 2**62, 0], pa.int64()).view(pa.timestamp("us"))
    table = pa.table({"image": ["a", "b", "c"], "caption": captions, "when": far})
    pq.write_table(table, tmp_path / "captions.parquet")
    with pytest.raises(DataError, match=r"captions\.parquet:2: a value that cannot be read"):
        folder(tmp_path)
    captions = pa.array(["a dog", "b", "a cat"])
    table = pa.table({"image": ["a", "b", "c"], "caption": captions, "when": far})
    pq.write_table(table, tmp_path / "captions.parquet")
    assert len(folder(tmp_path)) == 3  # a column that nobody asked for is not read


def test_a_small_parquet_of_one_long_text_is_refused_in_little_memory(tmp_path):
    text = pa.DictionaryArray.from_arrays(pa.array([0] * 3000, pa.int32()), pa.array(["x" * 1_000_000]))
    images = [f"{n}.jpg" for n in range(3000)]
    pq.write_table(pa.table({"image": images, "caption": text}), tmp_path / "captions.parquet", compression="zstd")
    assert (tmp_path / "captions.parquet").stat().st_size < 100_000
    before = pa.default_memory_pool().max_memory()
    with pytest.raises(DataError, match="1,000,000 characters are more than the limit"):
        folder(tmp_path)
    check = check_folder(tmp_path)
    assert check.broken_rows.count == 3000
    assert pa.default_memory_pool().max_memory() - before < 200 << 20


@pytest.mark.parametrize(
    ("sign", "text"),
    [("|", "a dog {0}|the dog {0} runs"), (";", "a dog {0}; dog {0} runs ;"), ("\n", "a dog {0}\nthe dog {0} runs")],
)
def test_captions_joined_by_a_sign_are_divided_or_refused_and_never_one_caption(sign, text, tmp_path):
    rows = "".join(f'{number}.jpg,"{text.format(number)}",train\n' for number in range(4))
    draw(tmp_path, *(f"{number}.jpg" for number in range(4)))
    (tmp_path / "captions.csv").write_text("image,caption,split\n" + rows)
    words = f"4 of 4 captions hold {sign!r}; set caption_separator={sign!r} if it stands between"
    with pytest.raises(DataError, match=re.escape(words)):
        folder(tmp_path)
    checked = check_folder(tmp_path)
    assert not checked.ok
    assert any(words in line for line in checked.lines())
    samples = folder(tmp_path, caption_separator=sign)
    assert [len(sample.captions) for sample in samples] == [2] * 4
    assert all(sign not in caption and caption == caption.strip() for sample in samples for caption in sample.captions)
    assert check_folder(tmp_path, caption_separator=sign).ok
    whole = folder(tmp_path, caption_separator="")
    assert whole[0].captions == (text.format(0),)
    assert len({each.fingerprint for each in (samples, whole)}) == 2


def test_a_few_captions_with_a_sign_are_captions(tmp_path):
    texts = ["a dog; it runs", "a cat", "a | b", "c", "d", "e"]
    draw(tmp_path, *(f"{number}.jpg" for number in range(6)))
    rows = "".join(f'{number}.jpg,"{text}"\n' for number, text in enumerate(texts))
    (tmp_path / "captions.csv").write_text("image,caption\n" + rows)
    assert [sample.captions for sample in folder(tmp_path)] == [(text,) for text in texts]


def test_spellings_of_a_split_are_one_split_and_dev_is_another(tmp_path):
    names = ["train", "Training", "validation", " Val ", "valid", "dev", "TEST", "testing"]
    draw(tmp_path, *(f"{number}.jpg" for number in range(8)))
    rows = "".join(f"{number}.jpg,a {number},{name}\n" for number, name in enumerate(names))
    (tmp_path / "captions.csv").write_text("image,caption,split\n" + rows)

    def keys(split):
        return [int(sample.key[0]) for sample in folder(tmp_path, split=split)]

    assert (keys("train"), keys("val"), keys("test"), keys("dev")) == ([0, 1], [2, 3, 4], [6, 7], [5])
    assert keys(["val", "dev"]) == [2, 3, 4, 5]
    alone = tmp_path / "captions.csv"
    alone.write_text("image,caption,split\n0.jpg,a,train\n1.jpg,b,Dev\n")
    assert keys("val") == [1]


@pytest.mark.parametrize("name", ["12", "12.jpg", "0012.jpg"])
def test_a_number_that_lost_its_zeros_is_named_with_the_file(name, tmp_path):
    draw(tmp_path, "000012.jpg", "000120.jpg")
    (tmp_path / "captions.csv").write_text(f"image,caption\n{name},a dog\n")
    (sample,) = folder(tmp_path)
    with pytest.raises(SampleError, match=r"no such file, but there is .*000012\.jpg; correct the name"):
        open_image(sample.image)
    assert any("000012.jpg exists: write that name" in line for line in check_folder(tmp_path).lines())
    draw(tmp_path, "00012.jpg")  # two files may be meant
    assert not any("exists: write that name" in line for line in check_folder(tmp_path).lines())


@pytest.mark.parametrize("word", ["#NAME?", "#REF!", "#N/A", "#VALUE!", "#DIV/0!"])
def test_the_errors_of_a_spreadsheet_are_no_captions(word, tmp_path):
    draw(tmp_path, "0.jpg", "1.jpg")
    (tmp_path / "captions.csv").write_text(f"image,caption\n0.jpg,{word}\n1.jpg,number #1\n")
    samples = folder(tmp_path)
    assert [sample.captions for sample in samples] == [("number #1",)]
    assert samples.num_skipped == 1


def test_the_files_that_macos_puts_beside_a_table_are_no_tables(tmp_path):
    draw(tmp_path, "0.jpg", "1.jpg")
    (tmp_path / "mine.csv").write_text("image,caption\n0.jpg,a\n1.jpg,b\n")
    for name in ("._mine.csv", "._0.jpg", ".DS_Store", "__MACOSX/._mine.csv", "__MACOSX/._0.jpg"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"\0\5\x16\7")
    assert [sample.key for sample in folder(tmp_path)] == ["0.jpg", "1.jpg"]
    checked = check_folder(tmp_path)
    assert checked.ok
    assert not checked.unread.count


@pytest.mark.parametrize("name", ["captions.csv.gz", "captions.jsonl.zst", "captions.parquet.xz"])
def test_a_compressed_table_is_named_by_the_check_and_by_a_run(name, tmp_path):
    (draw(tmp_path, "0.jpg") / name).write_bytes(b"\x1f\x8b\x08")
    with pytest.raises(DataError, match=re.escape(f"{name}: a compressed table; unpack it")):
        folder(tmp_path)
    assert any(name in line for line in check_folder(tmp_path).lines())


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("a.txt", '{"text": "a dog"}\n{"text": "a cat"}\n', "holds JSON, whose signs would become tokens"),
        ("a.txt", '["a dog", "a cat"]\n', "holds JSON"),
        ("a.json", '[\n"a dog",\n"a cat"]\n', "holds JSON"),
        ("a.txt", "\n<!DOCTYPE html>\n<p>a dog</p>\n", "is the code of a web page"),
        ("a.xml", '<mediawiki xmlns="http://x">\n<page></page>\n', r"is markup \('<mediawiki"),
        ("wiki_00", '<doc id="12" title="A">\nA\n</doc>\n', r"is markup \('<doc id="),
        ("a.txt", '<div class="x">\n<p>a</p>\n', "is markup"),
        ("a.txt", r"{\rtf1\ansi a dog}", "is markup"),
    ],
)
def test_a_corpus_of_code_is_refused(name, text, words, tmp_path):
    (tmp_path / name).write_text(text)
    with pytest.raises(DataError, match=rf"{name}: {words}"):
        read_texts([tmp_path / name])


def test_a_damaged_corpus_is_named(tmp_path):
    (tmp_path / "a.txt").write_bytes("a dog\na cat".encode("utf-16")[:-1])
    with pytest.raises(DataError, match=r"a\.txt: damaged UTF-16 .*; save it as UTF-8"):
        list(read_texts([tmp_path / "a.txt"]))
    (tmp_path / "a.jsonl").write_text('{"text": "a dog", "Text": "a cat"}\n')
    with pytest.raises(DataError, match=r"a\.jsonl:1: the columns 'text' and 'Text' differ in case alone"):
        list(read_texts([tmp_path / "a.jsonl"]))


def test_a_corpus_may_be_a_table_of_texts_without_images(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"text": "a dog", "meta": {"url": "x"}}\n{"text": ["one", "two"]}\n')
    (tmp_path / "b.csv").write_text("question,answer\nwhat is it?,a dog\n")
    pq.write_table(pa.table({"content": ["a page"], "tags": ["x"]}), tmp_path / "c.parquet")
    (tmp_path / "d.txt").write_text("[a plain line]\n{another}\n")
    (tmp_path / "e.txt").write_text("<unk> said <b>\n")
    files = [tmp_path / name for name in ("a.jsonl", "b.csv", "c.parquet", "d.txt", "e.txt")]
    expected = ["a dog", "one", "two", "what is it?", "a page", "[a plain line]", "{another}", "<unk> said <b>"]
    assert list(read_texts(files)) == expected
    (tmp_path / "a.jsonl").write_text('{"text": "a dog"}\n{"text": \n')
    with pytest.raises(DataError, match=r"a\.jsonl:2: not usable JSON"):
        list(read_texts(files[:1]))


def test_a_short_table_in_shift_jis_is_not_read_as_windows_1252(tmp_path):
    (tmp_path / "captions.csv").write_bytes("image,caption\na.jpg,犬が走る\n".encode("shift-jis"))
    with pytest.raises(DataError, match=r"captions\.csv:2: not UTF-8 text; save the file as UTF-8"):
        folder(tmp_path)
    (tmp_path / "captions.csv").write_bytes("image,caption\na.jpg,Das ‚Öl‘ im café größer\n".encode("cp1252"))
    assert folder(tmp_path)[0].captions == ("Das ‚Öl‘ im café größer",)


@pytest.mark.parametrize("name", ["C:\\Users\\me\\a.jpg", "photos/a.jpg"])
def test_an_image_in_the_folder_itself_is_hinted_at_where_its_name_has_a_folder(tmp_path, name):
    Image.new("RGB", (4, 4)).save(tmp_path / "a.jpg")
    images = ImageFolder(tmp_path)
    assert images.hint_for(images.name_of(name, "captions.csv:2")) == "; a.jpg exists: write that name"
