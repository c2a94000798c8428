"""Tables, shards and boxes in forms of other programs: what could be misread is refused by name, the rest is read."""

import json
import unicodedata

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from evle.data.custom.folder import folder
from evle.data.custom.saved_datasets import saved_dataset
from evle.data.custom.shards import shards
from evle.data.images import open_image
from evle.errors import DataError, SampleError
from evle.inspection.folder_check import check_folder
from evle.inspection.sample_check import check_samples
from tars import encoded, write_tar

NAMES = [f"{letter}.jpg" for letter in "abcdef"]
SPLITS = ["train", "train", "train", "train", "val", "test"]


def draw(path, *names, size=(4, 4)):
    for number, name in enumerate(names):
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", size, (number, 0, 0)).save(path / name)
    return path


def rows(path, records, name="captions.jsonl"):
    path.mkdir(parents=True, exist_ok=True)
    (path / name).write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def keys(path, split, **options):
    return [sample.key for sample in folder(path, split=split, **options)]


# --- splits


@pytest.mark.parametrize(
    ("column", "values"),
    [
        ("partition", SPLITS),
        ("Set", SPLITS),
        ("usage", ["Training", "Training", "Training", "Training", "PublicTest", "PrivateTest"]),
        ("is_train", [1, 1, 1, 1, 0, 0]),
        ("is_valid", [False, False, False, False, True, True]),
        ("fold", [0, 1, 2, 3, 4, 0]),
        ("evaluation_status", [0, 0, 0, 0, 1, 2]),
    ],
)
@pytest.mark.parametrize("form", ["jsonl", "parquet"])
def test_a_column_of_splits_by_another_name_is_refused_until_it_is_named(tmp_path, column, values, form):
    draw(tmp_path, *NAMES)
    if form == "jsonl":
        rows(tmp_path, [{"image": n, "caption": "a dog", column: v} for n, v in zip(NAMES, values)])
    else:
        table = pa.table({"image": NAMES, "caption": ["a dog"] * 6, column: values})
        pq.write_table(table, tmp_path / "captions.parquet")
    with pytest.raises(DataError, match=rf"no column 'split', but '{column}' holds .*; set split_column={column}"):
        folder(tmp_path, split="train")
    checked = check_folder(tmp_path)
    assert not checked.ok
    assert "set split_column=" in checked.broken_rows.lines[0]
    assert len(folder(tmp_path)) == 6  # all rows: no division is asked for
    assert len(folder(tmp_path, split="train", split_column=None, shares=(1, 0, 0))) == 6
    if values is SPLITS:
        assert keys(tmp_path, "val", split_column=column) == ["e.jpg"]


def test_other_columns_are_no_columns_of_splits(tmp_path):
    draw(tmp_path, *NAMES)
    usage = ["Casual", "Sports", "Formal", "Casual", "Sports", "test"]
    rows(tmp_path, [{"image": n, "caption": "a dog", "usage": u, "type": "train"} for n, u in zip(NAMES, usage)])
    assert len(folder(tmp_path, split="train", shares=(1, 0, 0))) == 6
    assert check_folder(tmp_path).not_read == ("usage", "type")


def test_a_second_column_of_images_or_texts_is_named_as_not_read(tmp_path):
    draw(tmp_path, "a.jpg", "b.jpg")
    (tmp_path / "captions.csv").write_text("image,image_path,caption,text\na.jpg,b.jpg,one,two\n")
    assert check_folder(tmp_path).not_read == ("image_path", "text")
    assert check_folder(tmp_path, image_column="image_path", caption_column="text").not_read == ("image", "caption")
    (tmp_path / "captions.csv").rename(tmp_path / "questions.csv")
    (tmp_path / "questions.csv").write_text("image,question,answers,answer\na.jpg,what?,one,two\n")
    assert check_folder(tmp_path, "vqa").not_read == ("answer",)


def test_a_map_of_languages_is_no_list_of_captions(tmp_path):
    draw(tmp_path, "a.jpg")
    kind = pa.map_(pa.string(), pa.string())
    table = pa.table({"image": ["a.jpg"], "captions": pa.array([[("en", "a dog"), ("de", "ein Hund")]], kind)})
    pq.write_table(table, tmp_path / "captions.parquet")
    with pytest.raises(DataError, match="a record of en, de has none of raw, caption"):
        folder(tmp_path)


def test_a_name_without_its_ending_names_the_image(tmp_path):
    draw(tmp_path, "0.jpg", "1.jpg")
    (tmp_path / "captions.csv").write_text("image,caption\n0,a dog\n")
    assert check_folder(tmp_path).without_row.lines == ["1.jpg"]


def test_texts_beside_images_are_named_and_not_read(tmp_path):
    draw(tmp_path, "a.jpg", "b.jpg")
    for name in ("a.txt", "b.txt", "readme.txt"):
        (tmp_path / name).write_text("a dog")
    words = "2 texts beside their images, which are not read; write them into a table: a.txt, b.txt"
    assert words in check_folder(tmp_path).unread.lines


def test_a_column_of_splits_that_does_not_exist_is_refused(tmp_path):
    draw(tmp_path, *NAMES)
    rows(tmp_path, [{"image": n, "caption": "a dog", "partition": s} for n, s in zip(NAMES, SPLITS)])
    with pytest.raises(DataError, match=r"no column 'partitoin'; did you mean 'partition'\?"):
        folder(tmp_path, split="train", split_column="partitoin")


def test_folders_of_splits_divide_their_images(tmp_path):
    draw(tmp_path, "train/a.jpg", "train/b.jpg", "valid/c.jpg", "test/d.jpg")
    names = ["train/a.jpg", "train/b.jpg", "valid/c.jpg", "test/d.jpg"]
    rows(tmp_path, [{"file_name": n, "text": "a dog"} for n in names], "metadata.jsonl")
    assert [keys(tmp_path, split) for split in ("train", "val", "test")] == [names[:2], names[2:3], names[3:]]
    assert check_folder(tmp_path).splits == {"train": 2, "val": 1, "test": 1}
    assert keys(tmp_path, "train", split_column=None, shares=(1, 0, 0)) == names
    assert keys(tmp_path, "train", captions_from="filename") == names[:2]
    rows(draw(tmp_path, "e.jpg"), [{"file_name": n, "text": "a dog"} for n in [*names, "e.jpg"]], "metadata.jsonl")
    with pytest.raises(DataError, match="5: not in a folder train, val or test, while other images are"):
        folder(tmp_path, split="train")


def test_a_table_named_after_a_split_holds_that_split(tmp_path):
    draw(tmp_path, *NAMES)
    for split in ("train", "test"):
        (tmp_path / f"{split}.csv").write_text("image,caption\n" + f"{split[0]}.jpg,x\n" * 2 + "a.jpg,y\n")
    assert keys(tmp_path / "train.csv", "train") == ["t.jpg", "a.jpg"]
    with pytest.raises(DataError, match="no split 'test'"):
        folder(tmp_path / "train.csv", split="test")
    for split in ("train", "validation"):
        rows(tmp_path / "two" / split, [{"file_name": n, "text": "a dog"} for n in NAMES], "metadata.jsonl")
    assert len(folder(tmp_path / "two" / "validation", split="val")) == 6
    (tmp_path / "test.csv").unlink()
    assert keys(tmp_path / "train.csv", "test", shares=(0, 0, 1)) == ["t.jpg", "a.jpg"]  # nothing else is there


def test_tars_named_after_splits_are_not_divided_by_a_hash(tmp_path):
    for number, split in enumerate(("train", "val")):
        write_tar(tmp_path / f"{split}-000.tar", [("0.jpg", encoded(number)), ("0.txt", "a dog")])
    with pytest.raises(DataError, match=r"named after splits, train \(train-000\.tar\), val \(val-000\.tar\)"):
        shards(tmp_path, split="train")
    assert len(shards(str(tmp_path / "train-*.tar"))) == 1


def test_splits_of_images_inside_a_table_are_as_strict(tmp_path):
    images = [{"bytes": encoded(number), "path": name} for number, name in enumerate(NAMES)]
    table = pa.table({"image": images, "caption": ["a dog"] * 6, "fold": [0, 1, 2, 0, 1, 2]})
    pq.write_table(table, tmp_path / "captions.parquet")
    checked = check_samples(folder(tmp_path))
    assert not checked.ok
    assert "but 'fold' holds 0, 1, 2" in checked.refused.lines[0]
    (tmp_path / "captions.parquet").rename(tmp_path / "all-00000-of-00001.parquet")
    assert len(saved_dataset(tmp_path)) == 6
    with pytest.raises(DataError, match="all files are of the split 'all', but: no column 'split', but 'fold' holds"):
        saved_dataset(tmp_path, split="all")
    assert len(saved_dataset(tmp_path, split="all", split_column=None)) == 6
    (tmp_path / "all-00000-of-00001.parquet").rename(tmp_path / "all-00001-of-00003.parquet")
    with pytest.raises(DataError, match=r"no all-00000-of-00003\.parquet \(2 of 3 files of 'all' are missing\)"):
        saved_dataset(tmp_path)


# --- which table


def test_two_tables_of_one_name_are_refused(tmp_path):
    rows(draw(tmp_path, "a.jpg"), [{"image": "a.jpg", "caption": "old"}])
    (tmp_path / "captions.csv").write_text("image,caption\na.jpg,new\n")
    with pytest.raises(DataError, match=r"both captions\.jsonl and captions\.csv are there"):
        folder(tmp_path)
    assert not check_folder(tmp_path).ok


def test_the_check_names_tables_and_columns_that_are_not_read(tmp_path):
    draw(tmp_path, "a.jpg")
    (tmp_path / "questions.csv").write_text("question_id,image,question,caption_2\n1,a.jpg,what is it,x\n")
    (tmp_path / "answers.csv").write_text("question_id,answer\n1,a dog\n")
    checked = check_folder(tmp_path, "vqa")
    assert checked.other_tables.lines == ["answers.csv"]
    assert "columns that are not read: caption_2" in checked.lines()
    rows(tmp_path / "deep" / "in", [{"image": "a.jpg", "caption": "x"}])
    draw(tmp_path / "deep" / "in", "a.jpg")
    checked = check_folder(tmp_path / "deep")
    assert not checked.ok
    assert checked.other_tables.lines == ["in/captions.jsonl"]
    assert checked.lines()[-1] == "no table is read, so that a run is refused"


@pytest.mark.parametrize("text", ["a.jpg,a dog\nb.jpg,a cat\n", "a.jpg#0,a dog\n", f"1,{'A' * 2000}\n"])
def test_a_table_without_names_of_columns_is_named_as_one(tmp_path, text):
    (draw(tmp_path, *NAMES) / "captions.csv").write_text(text)
    with pytest.raises(DataError, match=r"the first line holds .* and no names of columns; write them there"):
        folder(tmp_path)


@pytest.mark.parametrize("image", ["data:image/png;base64,iVBORw0", "iVBORw0" * 1000])
def test_images_in_base64_are_refused_in_few_words(tmp_path, image):
    rows(tmp_path, [{"image": image, "caption": "a dog"}])
    with pytest.raises(DataError, match="as of an image in base64; write the images to files") as raised:
        folder(tmp_path)
    assert len(str(raised.value)) < 400


# --- texts


def captions(path, value, **options):
    rows(draw(path, "a.jpg", "b.jpg"), [{"image": name, "captions": value} for name in ("a.jpg", "b.jpg")])
    return folder(path, **options)[0].captions


def test_entities_of_html_are_read_as_their_signs(tmp_path):
    assert captions(tmp_path, "a dog &amp; a cat&#39;s &quot;toy&quot; AT&T") == ('a dog & a cat\'s "toy" AT&T',)
    assert captions(tmp_path, '["cats &amp; dogs", "x &lt; y"]') == ("cats & dogs", "x < y")
    rows(tmp_path, [{"image": "a.jpg", "caption": "x", "tags": "cats &amp; dogs; toys"}])
    assert folder(tmp_path)[0].tags == ("cats & dogs", "toys")
    write_tar(tmp_path / "0.tar", [("0.jpg", encoded()), ("0.txt", "a dog &amp; a cat")])
    assert shards(tmp_path / "0.tar")[0].captions == ("a dog & a cat",)


def test_a_list_that_was_written_as_json_twice_is_a_list(tmp_path):
    assert captions(tmp_path, json.dumps(json.dumps(["a dog", "a cat"]))) == ("a dog", "a cat")
    write_tar(tmp_path / "0.tar", [("0.jpg", encoded()), ("0.txt", '["a dog", "a cat"]')])
    assert shards(tmp_path / "0.tar")[0].captions == ("a dog", "a cat")


@pytest.mark.parametrize("sign", ["\n", "\t", "##", " // ", "[SEP]", "|"])
def test_signs_between_captions_are_refused_until_they_are_named(tmp_path, sign):
    with pytest.raises(DataError, match="2 of 2 captions hold"):
        captions(tmp_path, f"a dog{sign}a brown dog")
    assert captions(tmp_path, f"a dog{sign}a brown dog", caption_separator=sign) == ("a dog", "a brown dog")


def test_tokens_are_no_captions(tmp_path):
    with pytest.raises(DataError, match="2 of 2 rows hold lists of words, such as 'a', as captions"):
        captions(tmp_path, [["a", "dog", "runs"], ["the", "dog"]])
    assert captions(tmp_path, ["dog", "puppy", "animal"]) == ("dog", "puppy", "animal")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("<p>a dog</p>", "the tag <p>"),
        ("<image>what is it", "the tag <image>"),
        (r"a dog\non a beach", None),
        (r"a dog\u00e9", r"the escape \u00e9"),
        ("un cafÃ© noir", "UTF-8 that was decoded as Windows-1252"),
        ("a%20brown%20dog", "percent codes"),
        ("a dog\x1b[31m", "a control character"),
        ("Ângela e o cão", None),
        ("5 < 6 > 4, 50 % off", None),
    ],
)
def test_the_check_names_texts_that_hold_codes(tmp_path, text, words):
    rows(draw(tmp_path, "a.jpg"), [{"image": "a.jpg", "caption": text}])
    checked = check_folder(tmp_path)
    assert checked.ok
    assert [line.split(": ")[1] for line in checked.odd.lines] == ([] if words is None else [words])


# --- answers


def answered(path, **fields):
    record = {"image": "a.jpg", "question": "what is it", **fields}
    rows(draw(path, "a.jpg"), [{**record, "question_id": number} for number in (1, 2)], "questions.jsonl")
    return folder(path, "vqa")[0].answers


@pytest.mark.parametrize(
    "fields",
    [
        {"choices": ["red", "blue", "green"], "answer": 1},
        {"options": ["red", "blue", "green"], "answer": "B"},
        {"A": "red", "B": "blue", "C": "green", "answer": "C"},
        {"option_a": "red", "option_b": "blue", "answer": "(b)"},
        {"choices": "['red', 'blue']", "answer": "0"},
    ],
)
def test_the_number_of_a_choice_is_no_answer(tmp_path, fields):
    with pytest.raises(DataError, match="seems to be the number or letter of a choice"):
        answered(tmp_path, **fields)


def test_answers_that_are_choices_are_answers(tmp_path):
    assert answered(tmp_path, choices=["1", "2", "3"], answer=2) == ("2",)
    assert answered(tmp_path, choices=["red", "blue"], answer="blue") == ("blue",)
    assert answered(tmp_path, answer=7.0) == ("7",)


@pytest.mark.parametrize(
    "fields",
    [
        {"answers": ["yes", "no"], "scores": [0.3, 1.0]},
        {"answers": ["yes", "no"], "weights": "[1, 3]"},
        {"answers": [{"answer": "yes", "count": 3}, {"answer": "no", "count": 7}]},
        {"answers": '[{"answer": "yes", "score": 0.3}, {"answer": "no", "score": 1}]'},
        {"answers": [["yes", 0.3], ["no", 1.0]]},
    ],
)
def test_weights_of_answers_are_refused(tmp_path, fields):
    with pytest.raises(DataError, match=r"weights are not read; repeat|as of a weight, which is not read"):
        answered(tmp_path, **fields)


def test_equal_weights_and_confidences_in_words_are_no_weights(tmp_path):
    assert answered(tmp_path, answers=["yes", "no"], scores=[1, 1]) == ("yes", "no")
    assert answered(tmp_path, answers=[{"answer": "yes", "answer_confidence": "maybe"}]) == ("yes",)


@pytest.mark.parametrize("sign", ["|", ";", ","])
def test_answers_that_are_joined_are_refused_until_the_sign_is_named(tmp_path, sign):
    with pytest.raises(DataError, match=r"2 of 2 answers hold '\S'; set caption_separator"):
        answered(tmp_path, answers=f"yes{sign}no")
    assert folder(tmp_path, "vqa", caption_separator=sign)[0].answers == ("yes", "no")
    assert answered(tmp_path, answers="1,5") == ("1,5",)


# --- pairs, boxes, images


def test_pairs_need_labels_of_their_own_and_contradictions_are_named(tmp_path):
    pair = {"left": "a.jpg", "right": "b.jpg", "sentence": "both show a dog"}
    rows(draw(tmp_path, "a.jpg", "b.jpg"), [{**pair, "answer": True}], "pairs.jsonl")
    assert "no column 'label'" in check_folder(tmp_path, "nlvr2").broken_rows.lines[0]
    rows(tmp_path, [{**pair, "label": True}, {**pair, "label": False}], "pairs.jsonl")
    assert check_folder(tmp_path, "nlvr2").contradicting.count == 1


def test_boxes_in_shares_are_refused_and_boxes_outside_are_named(tmp_path):
    record = {"image": "a.jpg", "question": "Why is [0] here?", "answer_choices": ["a", "b", "c", "d"]}

    def check(box):
        rows(tmp_path, [{**record, "objects": [{"label": "person", "box": box}]}], "choices.jsonl")
        return check_folder(tmp_path, "vcr")

    draw(tmp_path, "a.jpg", size=(120, 100))
    assert not check([10, 20, 50, 60]).outside.count
    assert check([500, 500, 600, 600]).outside.lines[0].endswith("100 x 100 at (500, 500) of 120 x 100 pixels")
    assert "seem to be shares of the image's sides" in check([0.1, 0.2, 0.5, 0.6]).broken_rows.lines[0]


def test_two_files_whose_names_look_the_same_are_refused(tmp_path):
    names = [unicodedata.normalize(form, "é.jpg") for form in ("NFC", "NFD")]
    if len(list(draw(tmp_path, *names).iterdir())) < 2:
        pytest.skip("this file system knows one form of a name only")
    rows(tmp_path, [{"image": name, "caption": name} for name in names])
    with pytest.raises(DataError, match=r"captions\.jsonl:2: two files of .* are called .*, in different Unicode"):
        folder(tmp_path)


def test_the_pointer_of_git_lfs_is_named_in_place_of_an_image(tmp_path):
    (tmp_path / "a.jpg").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")
    with pytest.raises(SampleError, match="is a Git LFS pointer"):
        open_image(tmp_path / "a.jpg")
