"""Images inside tables: what `datasets` saved and what Parquet files hold is read an image at a time."""

import json
import pickle

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from evle.data.custom.folder import folder
from evle.data.custom.packing import pack
from evle.data.custom.saved_datasets import saved_dataset
from evle.data.custom.shards import shards
from evle.data.formats import embedded
from evle.data.images import open_image
from evle.data.samples import VQASample
from evle.data.sources import source_of
from evle.errors import ConfigError, DataError, SampleError
from saved_tables import IMAGE, rows, save, table
from tars import encoded


@pytest.fixture
def saved(tmp_path):
    save(tmp_path / "saved" / "train", [table(rows(0, 1, 2)), table(rows(3, 4))])
    save(tmp_path / "saved" / "validation", [table(rows(5))])
    (tmp_path / "saved" / "dataset_dict.json").write_text('{"splits": ["train", "validation"]}')
    return tmp_path / "saved"


def pictures(samples):
    return [sample.image.read() for sample in samples]


def test_a_saved_data_set_becomes_samples(saved):
    samples = saved_dataset(saved, split="train")
    assert [sample.key for sample in samples] == ["#0", "a.jpg#1", "#2", "a.jpg#3", "#4"]
    assert [sample.captions for sample in samples] == [(f"image {n}",) for n in range(5)]
    assert pictures(samples) == [encoded(n) for n in range(5)]
    assert open_image(samples[3].image).size == (20, 16)
    again = pickle.loads(pickle.dumps(samples))
    assert again[4] == samples[4]
    assert pictures(again) == pictures(samples)
    assert len(pickle.dumps(samples[4].image)) < 500


def test_splits_are_the_data_sets_own(saved):
    assert pictures(saved_dataset(saved, split="val")) == [encoded(5)]
    assert len(saved_dataset(saved)) == len(saved_dataset(saved, split=["validation", "train"])) == 6
    assert saved_dataset(saved).fingerprint != saved_dataset(saved, split="train").fingerprint
    with pytest.raises(DataError, match="saved: no split 'test'; choose one of: train, validation"):
        saved_dataset(saved, split="test")


def test_a_data_set_without_splits_is_divided_by_image(tmp_path):
    save(tmp_path / "saved", [table(rows(*range(40)))])
    parts = [saved_dataset(tmp_path / "saved", split=split) for split in ("train", "val", "test")]
    assert sum(map(len, parts)) == 40
    named = [{sample.key.startswith("a.jpg") for sample in part} for part in parts]
    assert sum(True in each for each in named) == 1  # images of one name fall into one split


def test_the_hubs_parquet_files_are_read_with_their_splits(tmp_path):
    (tmp_path / "data").mkdir()
    for number in range(2):
        name = f"train-{number:05d}-of-00002-0123abcd.parquet"
        pq.write_table(table(rows(3 * number, 3 * number + 1)), tmp_path / "data" / name, row_group_size=1)
    pq.write_table(table(rows(9)), tmp_path / "data" / "test-00000-of-00001.parquet")
    assert pictures(saved_dataset(tmp_path, split="train")) == [encoded(n) for n in (0, 1, 3, 4)]
    assert pictures(saved_dataset(tmp_path, split="test")) == [encoded(9)]


def test_a_folder_of_the_hubs_files_may_be_a_link(tmp_path):
    (tmp_path / "disk").mkdir()
    pq.write_table(table(rows(1)), tmp_path / "disk" / "train-00000-of-00001.parquet")
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "data").symlink_to(tmp_path / "disk")
    (tmp_path / "set" / "loop").symlink_to(tmp_path / "set")
    assert pictures(saved_dataset(tmp_path / "set", split="train")) == [encoded(1)]


@pytest.mark.parametrize(
    "names",
    [
        ("data/train.parquet", "data/test.parquet"),
        ("train.parquet", "test.parquet"),
        ("data/train-0.parquet", "data/train-1.parquet", "data/test.parquet"),
        ("train/0000.parquet", "train/0001.parquet", "test/0000.parquet"),
        ("default/train/0000.parquet", "default/test/0000.parquet"),
        ("default/train/0000.parquet", "default/test/0000.parquet", "default/testA/0000.parquet"),
        ("de/train-00000-of-00001.parquet", "de/test-00000-of-00001.parquet"),
        ("data/train-00000-of-00002-0123456789abcdef.parquet", "data/train-00001-of-00002-fedcba9876543210.parquet",
         "data/test-00000-of-00001-0123456789abcdef.parquet"),
        ("data/train/train-00000-of-00001.parquet", "data/test/test-00000-of-00001.parquet"),
    ],
)  # fmt: skip
def test_every_form_of_the_hubs_files_is_read_with_its_splits(names, tmp_path):
    for number, name in enumerate(names):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(table(rows(2 * number, 2 * number + 1)), tmp_path / name, row_group_size=1)
    assert source_of(tmp_path) == "saved-dataset"
    for split in ("train", "test"):
        numbers = [number for number, name in enumerate(names) if split in name.replace("testA", "")]
        expected = [encoded(2 * number + each) for number in numbers for each in (0, 1)]
        assert pictures(saved_dataset(tmp_path, split=split)) == expected


@pytest.mark.parametrize(
    ("names", "words"),
    [
        (("de/train-00000-of-00001.parquet", "en/train-00000-of-00001.parquet"), r"2 configurations .*\(de, en\)"),
        (("de/train/0000.parquet", "en/train/0000.parquet"), r"2 configurations of a data set \(de, en\); name"),
        (("default/partial-train/0000.parquet",), "partial-train is a part of a split"),
        (("train/0000.parquet", "train/0002.parquet"), r"no file 1 of 'train' \(1 of 3 files of 'train' are missing\)"),
        (("data/train-00000-of-00002-aa.parquet",), r"no train-00001-of-00002.parquet \(1 of 2 files"),
        (("data/train-00000-of-00001.parquet", "data/train-00000-of-00001-aa.parquet"), "files of several uploads"),
        (("data/train-00000-of-00001.parquet", "data/train-00000-of-00002.parquet"), "files of several uploads"),
    ],
)
def test_files_of_the_hub_that_are_no_whole_data_set_are_named(names, words, tmp_path):
    for number, name in enumerate(names):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(table(rows(number)), tmp_path / name)
    assert source_of(tmp_path) == "saved-dataset"
    with pytest.raises(DataError, match=words):
        saved_dataset(tmp_path, split="train")


def test_tables_without_images_inside_are_no_data_set_of_the_hub(tmp_path):
    for name in ("train.parquet", "train/0000.parquet", "embeddings/x-00000-of-00001.parquet"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.table({"image": ["a.jpg"], "caption": ["a dog"]}), tmp_path / name)
    assert source_of(tmp_path) == "folder"


def test_questions_are_read_as_from_any_table(tmp_path):
    questions = pa.Table.from_pylist(
        [{"image": {"bytes": encoded(n), "path": None}, "question": f"what is {n}?", "answer": f"{n}"} for n in (1, 2)]
    )
    save(tmp_path / "saved", [questions])
    samples = saved_dataset(tmp_path / "saved", "vqa")
    assert isinstance(samples[1], VQASample)
    assert (samples[1].key, samples[1].question, samples[1].answers) == ("#1#2", "what is 2?", ("2",))
    assert pictures(samples) == [encoded(1), encoded(2)]


@pytest.mark.parametrize(("name", "kind"), [("image", IMAGE), ("jpg", pa.binary()), ("picture", pa.large_binary())])
@pytest.mark.parametrize("row_group_size", [1, 3, 100])
def test_a_parquet_table_may_hold_its_images(tmp_path, name, kind, row_group_size):
    held = [{"bytes": encoded(n), "path": "x"} if kind is IMAGE else encoded(n) for n in range(7)]
    columns = {name: pa.array(held, kind), "caption": [f"image {n}" for n in range(7)], "thumb": [b"x"] * 7}
    pq.write_table(pa.table(columns), tmp_path / "captions.parquet", row_group_size=row_group_size)
    samples = folder(tmp_path)
    assert [sample.captions for sample in samples] == [(f"image {n}",) for n in range(7)]
    assert pictures(samples) == [encoded(n) for n in range(7)]
    assert samples[0].key == ("x#0" if kind is IMAGE else "#0")


@pytest.mark.parametrize(
    ("damaged", "reader"),
    [("caption", "folder"), ("caption", "saved-dataset"), ("image.path", "folder"), ("image.bytes", "digests")],
)
def test_a_damaged_page_of_a_parquet_file_is_named_by_file_and_row(tmp_path, damaged, reader):
    held = [{"bytes": encoded(n), "path": "x.jpg"} for n in range(9)]
    file = tmp_path / ("captions.parquet" if reader != "saved-dataset" else "data/train-00000-of-00001.parquet")
    file.parent.mkdir(exist_ok=True)
    columns = {"image": pa.array(held, IMAGE), "caption": [f"image {n}" for n in range(9)]}
    pq.write_table(pa.table(columns), file, row_group_size=3, use_dictionary=False)
    group = pq.read_metadata(file).row_group(1)
    chunks = (group.column(index) for index in range(group.num_columns))
    place = next(chunk.data_page_offset for chunk in chunks if chunk.path_in_schema == damaged)
    content = bytearray(file.read_bytes())
    content[place : place + 60] = b"\xff" * 60
    file.write_bytes(content)
    readers = {
        "digests": lambda: embedded.EmbeddedImages([file], "image").digests(),
        "folder": lambda: folder(tmp_path),
        "saved-dataset": lambda: saved_dataset(tmp_path),
    }
    with pytest.raises(DataError, match=rf"{file.name}: cannot be read after row 3 \(.*\); write or fetch it again"):
        readers[reader]()


def test_a_parquet_table_of_paths_is_still_one_of_paths(tmp_path):
    pq.write_table(pa.table({"image": ["1.jpg"], "caption": ["a dog"]}), tmp_path / "captions.parquet")
    assert folder(tmp_path)[0].image == str(tmp_path / "1.jpg")


def test_no_image_is_read_before_it_is_asked_for(saved, monkeypatch):
    monkeypatch.setattr(embedded.Cell, "read", lambda self: pytest.fail("an image was read"))
    assert len([sample.captions for sample in saved_dataset(saved)]) == 6


def test_a_row_without_a_image_is_named(tmp_path):
    save(tmp_path / "saved", [table([*rows(1), {"image": {"bytes": None, "path": "/x/y.jpg"}, "caption": "gone"}])])
    with pytest.raises(SampleError, match=r"00001.arrow, row 2: no image inside the table, only the path /x/y.jpg;"):
        open_image(saved_dataset(tmp_path / "saved")[1].image)


def test_large_row_groups_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(embedded, "MAX_GROUP_BYTES", 3000)
    pq.write_table(table(rows(*range(9))), tmp_path / "captions.parquet")
    with pytest.raises(DataError, match=r"captions.parquet: a row group holds .* MB .*row_group_size=100"):
        folder(tmp_path)


def test_a_data_set_with_parts_missing_says_which(saved, tmp_path):
    (saved / "train" / "data-00001-of-00002.arrow").unlink()
    with pytest.raises(DataError, match=r"data-00001-of-00002.arrow: no such data file; copy the whole folder again"):
        saved_dataset(saved)
    (saved / "train" / "state.json").write_text("{")
    with pytest.raises(DataError, match=r"state.json: not usable JSON"):
        saved_dataset(saved)
    (saved / "validation" / "data-00000-of-00001.arrow").write_bytes(b"12345678" * 10)
    (saved / "dataset_dict.json").write_text('{"splits": ["validation"]}')
    with pytest.raises(DataError, match=r"data-00000-of-00001.arrow: not a readable Arrow file"):
        saved_dataset(saved)
    with pytest.raises(DataError, match=r"neither state.json nor dataset_dict.json"):
        saved_dataset(tmp_path)
    state = json.dumps({"_data_files": [], "_indices_data_files": [{"filename": "indices.arrow"}]})
    (saved / "validation" / "state.json").write_text(state)
    with pytest.raises(DataError, match=r"call flatten_indices\(\) before save_to_disk"):
        saved_dataset(saved)


def test_columns_that_are_not_there_are_named(saved):
    with pytest.raises(DataError, match="no column 'bild' with images inside; set image_column"):
        saved_dataset(saved, image_column="bild")
    with pytest.raises(DataError, match=r"saved:1: no column 'titel'"):
        saved_dataset(saved, caption_column="titel")
    with pytest.raises(ConfigError, match="task='nlvr2'"):
        saved_dataset(saved, "nlvr2")
    with pytest.raises(DataError, match=r"saved:1: no column 'question'"):
        saved_dataset(saved, "vcr")


def test_a_saved_data_set_is_packed_into_shards(saved, tmp_path):
    pack(saved_dataset(saved), tmp_path / "packed")
    packed = shards(tmp_path / "packed")
    assert [(sample.key, sample.captions) for sample in packed] == [
        (sample.key, sample.captions) for sample in saved_dataset(saved)
    ]
    assert pictures(packed) == [encoded(n) for n in range(6)]
