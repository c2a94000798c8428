"""What used to be read as something else without a word: each kind is read right or refused, in one line."""

import io
import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from evle.data.custom.folder import folder
from evle.data.custom.saved_datasets import saved_dataset
from evle.data.custom.shards import shards
from evle.data.exclusion import read_exclusion
from evle.data.images import open_image
from evle.errors import DataError, SampleError
from evle.inspection.folder_check import check_folder
from tars import encoded, write_tar


def draw(path, *names):
    for number, name in enumerate(names):
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (4, 4), (number, 0, 0)).save(path / name)
    return path


def question(path, **fields):
    draw(path, "0.jpg", "1.jpg")
    records = [{"image": f"{number}.jpg", "question": "which?", **fields} for number in range(2)]
    (path / "questions.jsonl").write_text("".join(json.dumps(each) + "\n" for each in records))
    return folder(path, "vqa")[0].answers


def table(path, text, name="captions.csv", images=("0.jpg", "1.jpg", "2.jpg")):
    draw(path, *images)
    (path / name).write_text(text, newline="")
    return path


# --- lists of images to leave out


@pytest.mark.parametrize(
    "content",
    [
        "1\n2\n".encode("utf-16"), b"1.0\n2.0\n", b"id\n1,\n2,\n", b'"1"\n"2"\n', b"1\r2\r",
        b"COCO_val2014_000000000001.jpg\n000000000002.jpg\n",
    ],
)  # fmt: skip
def test_a_list_of_images_is_read_as_programs_write_it(tmp_path, content):
    (tmp_path / "out.txt").write_bytes(content)
    excluded = read_exclusion(tmp_path / "out.txt")
    assert [number for number in range(4) if excluded.holds(coco_id=number)] == [1, 2]


@pytest.mark.parametrize("line", ["1, 2", "[1, 2]", "1 2", "1\t2", "a.jpg;b.jpg"])
def test_a_line_with_several_images_is_refused(tmp_path, line):
    (tmp_path / "out.txt").write_text(f"3\n{line}\n")
    with pytest.raises(DataError, match=r"out.txt:2: .* is not one COCO number or file name; write one per line"):
        read_exclusion(tmp_path / "out.txt")


# --- choices and weights


@pytest.mark.parametrize(
    "fields",
    [
        {"options": {"A": "cat", "B": "dog"}, "answer": "B"},
        {"choices": {"text": ["cat", "dog"], "label": ["A", "B"]}, "answer": "A"},
        {"options": "{'A': 'cat', 'B': 'dog'}", "answer": "B"},
        {"options": "A. cat, B. dog", "answer": "B"},
        {"options": "(A) cat (B) dog", "answer": "(B)"},
        {"options": "A. cat\nB. dog", "answer": "b"},
        {"options": "cat or dog", "answer": "2"},
        {"choice_list": ["cat", "dog"], "answer": 1},
        {"option_a": "cat", "option_b": "dog", "answer": "option_b"},
        {"question": "which?\n(A) cat\n(B) dog", "answer": "B"},
        {"multiple_choice": ["cat", "dog"], "answer": 1},
        {"option": "cat, dog", "answer": "A"},
    ],
)
def test_a_letter_is_no_answer_however_the_choices_are_written(tmp_path, fields):
    with pytest.raises(DataError, match=r"seems to be the number or letter of a choice \(.*write the text"):
        question(tmp_path, **fields)


def test_answers_among_choices_of_any_form_are_answers(tmp_path):
    assert question(tmp_path / "a", options="1, 2, 3", answer="2") == ("2",)
    assert question(tmp_path / "b", options={"x": "1", "y": "2"}, answer=2) == ("2",)
    assert question(tmp_path / "c", options="A. cat, B. dog", answer="dog") == ("dog",)
    assert question(tmp_path / "d", question="A or B?", answer="B") == ("B",)
    assert question(tmp_path / "e", multiple_choice=True, answer="2") == ("2",)
    assert question(tmp_path / "f", multiple_choice="two", choice="B", answer="2") == ("2",)


@pytest.mark.parametrize(
    "fields",
    [
        {"answers": "[['yes', 3], ['no', 7]]"},
        {"answers": [["dog", 0.9]]},
        {"answers": "[{'answer': 'yes', 'score': .3}, {'answer': 'no', 'score': .9}]"},
        {"answers": {"answer": ["yes", "no"], "weight": [0.1, 0.9]}},
        {"answers": ["yes", "no"], "weights": "[0.2 0.8]"},
        {"answers": ["yes", "no"], "counts": {"yes": 3, "no": 7}},
        {"answers": ["yes", "no"], "answer_frequency": [3, 7]},
        {"answers": ["yes", "no"], "probs": [0.9, 0.1]},
        {"answers": ["yes", "no"], "soft": [0.9, 0.1]},
        {"answers": [["yes", "0.9"], ["no", "0.1"]]},
        {"answers": [{"answer": "yes", "answer_count": 3}, {"answer": "no", "answer_count": 7}]},
    ],
)
def test_weights_in_any_form_are_refused(tmp_path, fields):
    with pytest.raises(DataError, match=r"weights are not read; repeat|as of a weight, which is not read"):
        question(tmp_path, **fields)


def test_a_number_beside_a_caption_is_no_caption(tmp_path):
    draw(tmp_path, "0.jpg")
    (tmp_path / "captions.jsonl").write_text('{"image": "0.jpg", "captions": [["a dog", 0.9], ["a cat", 0.2]]}\n')
    with pytest.raises(DataError, match=r"a text with a number beside it, .*as of a weight"):
        folder(tmp_path)


@pytest.mark.parametrize("where", ["folder", "hub"])
def test_parquet_is_as_strict_with_choices_as_other_tables(tmp_path, where):
    picture = encoded()
    columns = {"question": ["which?"] * 4, "choices": [["cat", "dog"]] * 4, "answer": [1] * 4}
    if where == "folder":
        draw(tmp_path, "0.jpg")
        pq.write_table(pa.table({"image": ["0.jpg"] * 4, **columns}), tmp_path / "questions.parquet")
        with pytest.raises(DataError, match="number or letter of a choice"):
            folder(tmp_path, "vqa")
        return
    (tmp_path / "data").mkdir()
    embedded = pa.table({"image": [{"bytes": picture, "path": None}] * 4, **columns})
    pq.write_table(embedded, tmp_path / "data" / "train-00000-of-00001.parquet")
    with pytest.raises(DataError, match="number or letter of a choice"):
        saved_dataset(tmp_path, "vqa")


# --- several texts in one


@pytest.mark.parametrize("sign", ["\r", "\\n", "##", " // ", " / ", "[SEP]", "<sep>", "</s>", "<br/>", "&&", "•", "¦"])
@pytest.mark.parametrize("task", ["captions", "vqa"])
def test_joined_texts_are_refused_until_the_sign_is_named(tmp_path, task, sign):
    draw(tmp_path, "0.jpg", "1.jpg")
    name, extra = ("captions", {}) if task == "captions" else ("questions", {"question": "what?"})
    field = "caption" if task == "captions" else "answer"
    lines = [json.dumps({"image": f"{n}.jpg", **extra, field: f"one dog {n}{sign}two dogs"}) for n in range(2)]
    (tmp_path / f"{name}.jsonl").write_text("\n".join(lines))
    with pytest.raises(DataError, match=r"2 of 2 \w+ hold .*; set caption_separator"):
        folder(tmp_path, task)
    sample = folder(tmp_path, task, caption_separator=sign)[1]
    assert (sample.captions if task == "captions" else sample.answers) == ("one dog 1", "two dogs")


@pytest.mark.parametrize("text", ["[a dog, a brown dog]", '"a dog", "a brown dog"', "[“a”, “b”]"])
def test_lists_in_no_known_form_are_refused(tmp_path, text):
    quoted = '"' + text.replace('"', '""') + '"'
    table(tmp_path, f"image,caption\n0.jpg,{quoted}\n1.jpg,{quoted}\n")
    with pytest.raises(DataError, match=r"2 of 2 captions look like lists, .*write lists as JSON"):
        folder(tmp_path)


def test_a_few_joined_texts_are_named_by_the_check(tmp_path):
    names = [f"{number}.jpg" for number in range(10)]
    rows = "".join(f"{name},a thing{'|another' if number < 4 else ''}\n" for number, name in enumerate(names))
    table(tmp_path, "image,caption\n" + rows, images=names)
    assert len(folder(tmp_path)) == 10
    assert any(
        "4 of 10 captions hold '|', such as 'a thing|another'" in each for each in check_folder(tmp_path).lines()
    )


def test_shards_are_as_strict_as_tables(tmp_path):
    members = []
    for number, split in enumerate(["train", "test", "train", "val"]):
        members += [(f"{number}.jpg", encoded()), (f"{number}.txt", f"a dog {number}\na brown dog")]
        members.append((f"{number}.json", {"split": split}))
    path = write_tar(tmp_path / "a.tar", members)
    with pytest.raises(DataError, match=r"4 of 4 captions hold '\\n'; set caption_separator"):
        shards(path)
    assert shards(path, caption_separator="\n")[1].captions == ("a dog 1", "a brown dog")
    with pytest.raises(DataError, match="the JSON of its samples says split 'train', 'test', 'val', which a division"):
        shards(path, split="train", caption_separator="\n")


# --- tables that lose text or rows


def test_text_under_no_name_is_refused_and_an_index_of_pandas_is_not(tmp_path):
    table(tmp_path / "a", "image,caption,,\n0.jpg,a dog, on a beach,\n")
    with pytest.raises(DataError, match=r"captions.csv:2: ' on a beach' is in a column without a name"):
        folder(tmp_path / "a")
    table(tmp_path / "b", ",image,caption,,\n0,0.jpg,a dog,,\n")
    assert folder(tmp_path / "b")[0].captions == ("a dog",)


@pytest.mark.parametrize(
    "text",
    [
        'caption,image\n"a dog,0.jpg\na cat",1.jpg\na cow,2.jpg\n',
        'image,caption\n0,"a dog\n1,a cat\n2,a cow"\n',
        'image,caption\nimg_0,"a dog\nimg_1,a cat"\n',
        'caption,image\n"a dog,0\na cat,1\na cow",2\n',
    ],
)
def test_a_quote_that_takes_in_rows_is_refused(tmp_path, text):
    table(tmp_path, text, images=("0.jpg", "1.jpg", "2.jpg", "img_0.jpg", "img_1.jpg"))
    with pytest.raises(DataError, match=r"captions.csv:2: a quote opens here and takes in .*close the quote"):
        folder(tmp_path, caption_separator="")


def test_a_text_of_several_lines_stays_a_text(tmp_path):
    table(tmp_path, 'image,caption,year\n0.jpg,"a dog, brown\nand 2 cats, grey",2001\n')
    assert folder(tmp_path, caption_separator="")[0].captions == ("a dog, brown\nand 2 cats, grey",)


# --- splits


@pytest.mark.parametrize(
    ("column", "values"),
    [
        ("subset", ["tr", "te", "va", "tr"]), ("dataset", ["coco_train", "coco_val", "coco_test", "coco_train"]),
        ("phase", ["training set", "test set", "training set", "test set"]), ("holdout", [True, False, False, False]),
    ],
)  # fmt: skip
@pytest.mark.parametrize("form", ["csv", "parquet"])
def test_columns_of_splits_in_other_words_are_refused_until_named(tmp_path, column, values, form):
    names = [f"{number}.jpg" for number in range(4)]
    draw(tmp_path, *names)
    held = pa.table({"image": names, "caption": list("abcd"), column: values})
    if form == "parquet":
        pq.write_table(held, tmp_path / "captions.parquet")
    else:
        held.to_pandas().to_csv(tmp_path / "captions.csv", index=False)
    with pytest.raises(DataError, match=f"no column 'split', but '{column}' holds .* set split_column={column}"):
        folder(tmp_path, split="train")


@pytest.mark.parametrize("folders", [("train2014", "val2014"), ("images_train", "images_val"), ("01_Train", "02_Val")])
def test_folders_of_splits_may_have_numbers_and_words_for_images(tmp_path, folders):
    names = [f"{each}/{number}.jpg" for each in folders for number in range(2)]
    table(tmp_path, "image,caption\n" + "".join(f"{name},{name[-5]}\n" for name in names), images=names)
    assert [sample.key for sample in folder(tmp_path, split="val")] == names[2:]


def test_folders_of_classes_are_no_splits(tmp_path):
    names = ["bullet_train/0.jpg", "test_tube/1.jpg", "train_station/2.jpg"]
    table(tmp_path, "image,caption\n" + "".join(f"{name},x\n" for name in names), images=names)
    assert check_folder(tmp_path).splits_from == "hash"


def test_images_named_after_splits_are_not_divided_by_a_hash(tmp_path):
    names = ["COCO_train2014_000000000001.jpg", "COCO_val2014_000000000002.jpg", "train_3.jpg"]
    table(tmp_path, "image,caption\n" + "".join(f"{name},x\n" for name in names), images=names)
    with pytest.raises(DataError, match=r"the images are named after splits .*add a column `split`"):
        folder(tmp_path, split="train")
    assert len(folder(tmp_path, split="train", split_column=None, shares=[1, 0, 0])) == 3


def test_a_table_beside_one_of_another_form_holds_its_split(tmp_path):
    table(tmp_path, "image,caption\n0.jpg,a\n1.jpg,b\n", name="train.csv")
    (tmp_path / "test.jsonl").write_text('{"image": "2.jpg", "caption": "c"}\n')
    assert len(folder(tmp_path / "train.csv", split="train")) == 2


def test_rows_of_one_image_inside_a_table_are_in_one_split(tmp_path):
    images = [encoded(size=(4, 4 + number)) for number in range(12)]
    held = [{"bytes": image, "path": None} for image in images for _ in range(4)]
    pq.write_table(
        pa.table({"image": held, "caption": [f"text {n}" for n in range(48)]}), tmp_path / "captions.parquet"
    )
    seen = {}
    for split in ("train", "val", "test"):
        try:
            samples = folder(tmp_path, split=split, shares=[0.5, 0.25, 0.25])
        except DataError:
            continue
        for sample in samples:
            seen.setdefault(sample.image.read(), set()).add(split)
    assert len(seen) == 12
    assert set(map(len, seen.values())) == {1}


def test_ids_that_begin_again_in_each_split_are_no_duplicates(tmp_path):
    draw(tmp_path, "0.jpg", "1.jpg")
    lines = [
        {"image": f"{n}.jpg", "question": "a?", "id": 1, "answer": "b", "split": each}
        for n, each in enumerate(["train", "val"])
    ]
    (tmp_path / "questions.jsonl").write_text("\n".join(map(json.dumps, lines)))
    assert check_folder(tmp_path, "vqa").ok
    assert len(folder(tmp_path, "vqa", split="val")) == 1


# --- values


def test_numbers_of_classes_are_their_names(tmp_path):
    features = {"answer": {"names": ["cat", "dog", "cow"], "_type": "ClassLabel"}}
    meaning = {b"huggingface": json.dumps({"info": {"features": features}}).encode()}
    columns = {"question": ["what?"] * 3, "answer": [2, 0, -1]}
    draw(tmp_path, "0.jpg")
    plain = pa.table({"image": ["0.jpg"] * 3, **columns}).replace_schema_metadata(meaning)
    pq.write_table(plain, tmp_path / "questions.parquet")
    assert [sample.answers for sample in folder(tmp_path, "vqa")] == [("cow",), ("cat",), ()]
    inside = tmp_path / "hub" / "data"
    inside.mkdir(parents=True)
    held = pa.table({"image": [{"bytes": encoded(), "path": None}] * 3, **columns}).replace_schema_metadata(meaning)
    pq.write_table(held, inside / "train-00000-of-00001.parquet")
    assert [sample.answers for sample in saved_dataset(tmp_path / "hub", "vqa")] == [("cow",), ("cat",), ()]


def test_bytes_and_marks_of_no_value_in_a_text_are_read_as_what_they_are(tmp_path):
    table(tmp_path, "image,caption\n0.jpg,b'a dog'\n1.jpg,\"[b'a cat', b'cats']\"\n2.jpg,N/A\n")
    assert [sample.captions for sample in folder(tmp_path)] == [("a dog",), ("a cat", "cats")]


def test_the_image_is_the_column_that_holds_names_of_files(tmp_path):
    table(tmp_path / "a", "image,file_name,caption\n1,0.jpg,x\n2,1.jpg,y\n")
    assert [sample.key for sample in folder(tmp_path / "a")] == ["0.jpg", "1.jpg"]
    table(tmp_path / "b", "filepath,filename,caption\nval2014,0.jpg,x\n", images=["val2014/0.jpg"])
    assert folder(tmp_path / "b")[0].key == "val2014/0.jpg"


def test_a_pair_may_be_a_record(tmp_path):
    draw(tmp_path, "a.jpg", "b.jpg")
    record = {"images": {"left": "a.jpg", "right": "b.jpg"}, "sentence": "both", "label": True}
    (tmp_path / "pairs.jsonl").write_text(json.dumps(record))
    assert [image.rpartition("/")[2] for image in folder(tmp_path, "nlvr2")[0].images] == ["a.jpg", "b.jpg"]


# --- images


def test_a_scan_that_is_white_at_zero_is_not_inverted():
    scan = io.BytesIO()
    Image.fromarray(np.full((4, 4), 1000, np.uint16)).save(scan, "TIFF", tiffinfo={262: 0})
    assert np.asarray(open_image(scan.getvalue()))[0, 0, 0] == 251


@pytest.mark.parametrize("form", ["PNG", "JPEG"])
def test_a_file_that_ends_in_zeros_was_not_fetched_to_its_end(form):
    noise = np.random.default_rng(0).integers(0, 256, (200, 200, 3), np.uint8)
    written = io.BytesIO()
    Image.fromarray(noise).save(written, form)
    whole = written.getvalue()
    cut = whole[: len(whole) // 2] + bytes(len(whole) - len(whole) // 2)
    with pytest.raises(SampleError, match="ends in zeros, as a file not fetched to its end; fetch it again"):
        open_image(cut)
    assert open_image(whole + bytes(5000)).size == (200, 200)  # some cameras write zeros after the end


# --- words and numbers as programs write them


def test_na_of_r_is_neither_a_caption_nor_a_split(tmp_path):
    table(tmp_path, "image,caption\n0.jpg,a dog\n1.jpg,NA\n2.jpg,(null)\n")
    samples = folder(tmp_path)
    assert [sample.captions for sample in samples] == [("a dog",)]
    assert samples.skipped[0].endswith("captions.csv:3: no caption for 1.jpg")
    table(tmp_path, "image,caption,split\n0.jpg,a dog,train\n1.jpg,a cat,NA\n2.jpg,a cow,val\n")
    with pytest.raises(DataError, match=r"captions\.csv:3: no split, while other rows name one"):
        folder(tmp_path, split="train")
    assert "captions.csv:3: no split" in str(check_folder(tmp_path).broken_rows.lines)
    table(tmp_path, "image,caption,split\n0.jpg,a dog,train\n1.jpg,a cat,none\n")
    assert check_folder(tmp_path).unusual.lines == ["'none' (1 row)"]


def test_true_and_false_are_answers_and_no_captions(tmp_path):
    assert question(tmp_path, answer=False) == ("no",)
    (tmp_path / "captions.jsonl").write_text('{"image": "0.jpg", "caption": false}\n')
    with pytest.raises(DataError, match=r"captions\.jsonl:1: caption: false is no text; write a text"):
        folder(tmp_path)


def test_numbers_in_the_short_form_of_r_have_all_their_digits(tmp_path):
    rows = "image,question,answer,question_id\n0.jpg,how many?,{},{}\n1.jpg,how many?,NA,2e+05\n"
    samples = folder(table(tmp_path, rows.format("1e+05", "1e+05"), "questions.csv"), "vqa")
    assert [(sample.key, sample.answers) for sample in samples] == [("100000", ("100000",)), ("200000", ("NA",))]
    table(tmp_path, rows.format("1", "7.02E+06"), "questions.csv")
    with pytest.raises(DataError, match=r"questions\.csv:2: the id '7.02E\+06' lacks digits.*; write all digits"):
        folder(tmp_path, "vqa")


def test_lists_of_postgres_are_refused(tmp_path):
    table(tmp_path, 'image,caption\n0.jpg,"{dog,cat}"\n1.jpg,"{cow,""a horse""}"\n')
    with pytest.raises(DataError, match=r"2 of 2 captions look like lists, such as '\{dog,cat\}'; write lists as JSON"):
        folder(tmp_path)


@pytest.mark.parametrize(
    ("text", "task"),
    [
        ("image|number|comment\n0.jpg|0|a dog\n1.jpg|1 a cat\n", "captions"),
        ("image,question,answer\n0.jpg,which?,a dog\n1.jpg,which?;a cat\n", "vqa"),
    ],
    ids=["kaggle", "mixed"],
)
def test_a_row_with_too_few_fields_is_named_as_one(tmp_path, text, task):
    name = "captions.csv" if task == "captions" else "questions.csv"
    table(tmp_path, text, name)
    with pytest.raises(DataError, match=rf"{name}:3: 2 fields where the header has 3; add the missing ones"):
        folder(tmp_path, task, caption_column="comment" if task == "captions" else None)


def test_a_spreadsheet_may_leave_out_empty_cells_at_the_end(tmp_path):
    table(tmp_path, "image,caption,tags\n0.jpg,a dog,x\n1.jpg,a cat\n")
    assert folder(tmp_path)[1].captions == ("a cat",)


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (["Why", "is", 0, "smiling"], "question holds 0, a bare number"),
        (
            ["Why", "is", "[0]", "smiling"],
            r"question holds '\[0\]', .* a reference as a text; write \[0\]",
        ),
        (["How", "many", 2, "dogs", [0]], ""),
        (["Is", [0], "number", "0"], ""),
    ],
    ids=["bare", "text", "too-large", "word"],
)
def test_a_reference_without_its_brackets_is_refused(tmp_path, words, why):
    draw(tmp_path, "0.jpg")
    people = [{"label": "person", "box": [0, 0, 4, 4]}]
    row = {"image": "0.jpg", "objects": people, "question": words, "answer_choices": ["a", "b", "c", "d"]}
    (tmp_path / "choices.jsonl").write_text(json.dumps(row) + "\n")
    if why:
        with pytest.raises(DataError, match=rf"choices\.jsonl:1: {why}"):
            folder(tmp_path, "vcr")
    else:
        assert len(folder(tmp_path, "vcr")[0].question) == len(words)
