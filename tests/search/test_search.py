"""The image index: exact, resumable, growing, and clear about what it cannot do."""

import errno
import json
import os
import shutil

import pyarrow as pa
import pytest
import torch
from PIL import Image
from pyarrow import parquet

from evle.errors import CheckpointError, ConfigError, DataError, SampleError
from evle.pipelines import EmbedPipeline
from evle.search import Change, ImageIndex, build_index, store, write_contact_sheet
from evle.search import index as indexing
from retrieval_models import save_retrieval_model


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return save_retrieval_model(tmp_path_factory.mktemp("models") / "retrieval")


@pytest.fixture(scope="module")
def embed(model):
    return EmbedPipeline(model, batch_size=3)


@pytest.fixture(autouse=True)
def small_shards(monkeypatch):
    monkeypatch.setattr(store, "SHARD_ROWS", 4)
    monkeypatch.setattr(indexing, "SHARD_ROWS", 4)


def draw(path, number: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    generator = torch.Generator().manual_seed(number)
    pixels = torch.randint(0, 256, (4, 4, 3), dtype=torch.uint8, generator=generator)
    Image.fromarray(pixels.numpy()).resize((24, 24)).save(path)


@pytest.fixture
def photos(tmp_path):
    for number in range(10):
        draw(tmp_path / "photos" / ("sub" if number % 2 else ".") / f"{number}.png", number)
    return tmp_path / "photos"


@pytest.fixture
def index(photos, embed, tmp_path):
    return ImageIndex.build(embed, photos, tmp_path / "index", dtype="float32", progress=False)


def keys(hits):
    return [hit.key for hit in hits]


def test_search_is_exact_over_shards(index, embed, photos):
    texts = ["a red ball", "blue"]
    features = embed.images([photos / key for key in index.keys])
    scores, rows = (embed.texts(texts) @ features.T).sort(dim=1, descending=True)
    found = index.query_many(texts=texts, k=3)
    assert [keys(hits) for hits in found] == [[index.keys[row] for row in line] for line in rows[:, :3].tolist()]
    assert [hit.score for hit in found[1]] == pytest.approx(scores[1, :3].tolist(), abs=1e-5)
    assert keys(found[0]) == keys(index.query("a red ball", k=3))


def test_a_image_finds_itself_first(index, photos):
    for key in index.keys:
        hit = index.query(image=photos / key, k=1)[0]
        assert (hit.key, hit.path) == (key, photos / key)
        assert hit.score == pytest.approx(1.0, abs=1e-4)


def test_half_precision_stores_half_the_bytes_and_finds_the_same(index, embed, photos, tmp_path):
    half = ImageIndex.build(embed, photos, tmp_path / "half", progress=False)
    assert half.query(image=photos / "4.png", k=1)[0].key == "4.png"
    assert half.query("red", k=1)[0].score == pytest.approx(index.query("red", k=1)[0].score, abs=2e-3)


def test_more_hits_than_images_gives_all_of_them(index):
    assert sorted(keys(index.query("red", k=500))) == sorted(index.keys)


def test_a_loaded_index_answers_as_the_built_one_and_loads_its_model_itself(index):
    loaded = ImageIndex.load(index.path)
    assert len(loaded) == 10
    assert keys(loaded.query("a green ball", k=5)) == keys(index.query("a green ball", k=5))


def test_reranking_orders_the_first_by_match_and_leaves_the_rest(index):
    plain = index.query("a red ball", k=10)
    hits = index.query("a red ball", k=10, rerank=4)
    assert sorted(keys(hits[:4])) == sorted(keys(plain[:4]))
    assert keys(hits[4:]) == keys(plain[4:])
    matches = [hit.match for hit in hits[:4]]
    assert matches == sorted(matches, reverse=True)
    assert all(hit.match is None for hit in hits[4:])
    expected = {row["text"]: row["score"] for row in index.match(hits[0].path, "a red ball")}
    assert hits[0].match == pytest.approx(expected["a red ball"], abs=1e-5)
    assert len(index.query("a red ball", k=2, rerank=4)) == 2


def test_a_image_that_went_away_ranks_behind_those_that_could_be_judged(index):
    first = index.query("a red ball", k=4)
    first[0].path.unlink()
    hits = index.query("a red ball", k=4, rerank=4)
    assert hits[-1].key == first[0].key
    assert hits[-1].match is None


def test_adding_embeds_only_what_is_new_and_notes_what_vanished_or_changed(index, photos, monkeypatch):
    draw(photos / "sub" / "new.png", 77)
    draw(photos / "2.png", 78)
    os.utime(photos / "2.png", ns=(1, 1))
    (photos / "sub" / "3.png").unlink()
    (photos / "bad.jpg").write_bytes(b"no image")
    read = []
    monkeypatch.setattr(
        type(index.embed), "read", lambda self, s, old=EmbedPipeline.read: read.append(s) or old(self, s)
    )
    change = index.add(photos, progress=False)
    assert sorted(path.name for path in read) == ["2.png", "bad.jpg", "new.png"]
    assert (change.num_added, change.num_kept) == (2, 8)
    assert change.vanished == ["sub/3.png"]
    assert change.changed == ["2.png"]
    assert len(change.skipped) == 1
    assert "bad.jpg" in change.skipped[0]
    assert sorted(index.keys) == sorted(ImageIndex.load(index.path).keys)
    assert len(index) == len(set(index.keys)) == 10
    for key in index.keys:
        assert index.query(image=photos / key, k=1)[0].key == key


def test_a_change_says_its_counts_and_names_what_could_not_be_read():
    change = Change(3, 10, ["a.png"], ["b.png"], [f"{n}.jpg: damaged" for n in range(25)], 1.25)
    lines = str(change).splitlines()
    assert lines[0] == "3 added, 10 kept in 1.2 s, 1 changed, 1 gone, 25 could not be read"
    assert lines[1] == "  0.jpg: damaged"
    assert lines[-1] == "  ... and 5 more"


def test_adding_a_folder_below_the_root_leaves_the_rest_alone(index, photos):
    (photos / "4.png").unlink()
    draw(photos / "sub" / "new.png", 77)
    change = index.add(photos / "sub", progress=False)
    assert (change.num_added, change.vanished) == (1, [])
    assert "sub/new.png" in index.keys
    assert "4.png" in index.keys


def test_a_folder_outside_of_the_root_is_refused(index, tmp_path):
    draw(tmp_path / "elsewhere" / "1.png", 1)
    with pytest.raises(DataError, match="outside of the index's root"):
        index.add(tmp_path / "elsewhere", progress=False)


def test_an_interrupted_build_keeps_what_is_done_and_goes_on(photos, embed, tmp_path, monkeypatch):
    calls = []

    def failing(self, pixels, old=EmbedPipeline._embed):
        calls.append(len(pixels))
        if len(calls) == 3:
            raise KeyboardInterrupt
        return old(self, pixels)

    monkeypatch.setattr(EmbedPipeline, "_embed", failing)
    with pytest.raises(KeyboardInterrupt):
        ImageIndex.build(embed, photos, tmp_path / "index", progress=False)
    assert len(ImageIndex.load(tmp_path / "index")) == 6
    index = ImageIndex.build(embed, photos, tmp_path / "index", progress=False)
    assert (index.change.num_added, index.change.num_kept) == (4, 6)
    assert sum(calls[3:]) == 4
    assert index.query(image=photos / "sub" / "9.png", k=1)[0].key == "sub/9.png"


def test_a_full_disk_is_one_line_and_the_index_stays_whole(index, photos, monkeypatch):
    draw(photos / "new.png", 77)

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(store, "write_whole", full)
    with pytest.raises(DataError, match=r"\(No space left on device\); what was saved before is whole"):
        index.add(photos, progress=False)
    monkeypatch.undo()
    assert len(ImageIndex.load(index.path)) == 10
    assert index.add(photos, progress=False).num_added == 1


def test_no_file_of_an_earlier_state_is_left_over(index, photos):
    (photos / "0.png").unlink()
    index.add(photos, progress=False)
    names = {shard["name"] for shard in json.loads((index.path / "index.json").read_text())["shards"]}
    assert {file.stem for file in (index.path / "shards").iterdir()} == names
    assert len(list((index.path / "shards").iterdir())) == 2 * len(names)


def test_an_index_moves_with_its_images(index, photos, model, tmp_path):
    moved = tmp_path / "moved"
    moved.mkdir()
    shutil.move(photos, moved / "photos")
    shutil.move(index.path, moved / "index")
    loaded = ImageIndex.load(moved / "index", model=model)
    assert loaded.root == moved / "photos"
    assert loaded.query("red", k=1)[0].path.is_file()
    shutil.move(moved / "photos", tmp_path / "elsewhere")
    assert ImageIndex.load(moved / "index", model=model, root=tmp_path / "elsewhere").query("red")[0].path.is_file()


def test_another_model_is_refused(index, photos, tmp_path):
    other = save_retrieval_model(tmp_path / "other", seed=1)
    with pytest.raises(CheckpointError, match="made by another model than"):
        ImageIndex.load(index.path, model=other).query("red")
    with pytest.raises(CheckpointError, match="made by another model than"):
        ImageIndex.build(other, photos, index.path, progress=False)


def test_a_model_in_memory_must_be_given_again(photos, embed, tmp_path):
    in_memory = EmbedPipeline(model=embed.model, processor=embed.processor)
    ImageIndex.build(in_memory, photos, tmp_path / "index", progress=False)
    with pytest.raises(CheckpointError, match="model in memory"):
        ImageIndex.load(tmp_path / "index").query("red")
    assert ImageIndex.load(tmp_path / "index", model=in_memory).query("red")


def test_a_table_names_the_images(photos, embed, tmp_path):
    rows = [{"image": f"{n}.png", "caption": "x"} for n in (0, 2, 2, 98)]
    (photos / "captions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    index = build_index(embed, photos / "captions.jsonl", tmp_path / "index", progress=False)
    assert index.keys == ["0.png", "2.png"]
    assert len(index.change.skipped) == 1
    assert "98.png" in index.change.skipped[0]
    assert index.add(photos, progress=False).num_added == 8
    assert index.add(photos / "captions.jsonl", progress=False).vanished == []
    assert len(index) == 10


def test_a_table_needs_no_captions(photos, embed, tmp_path):
    (photos / "list.csv").write_text(f"image,caption\n0.png,\nsub/1.png,x\n./2.png,\n{photos / '4.png'},\n")
    (photos / "bare.csv").write_text("file_name\n6.png\n")
    index = build_index(embed, photos / "list.csv", tmp_path / "index", progress=False)
    assert index.keys == ["0.png", "sub/1.png", "2.png", "4.png"]
    assert index.add(photos / "bare.csv", progress=False).num_added == 1


def test_a_table_in_a_folder_by_another_name_is_that_folders(photos, embed, tmp_path):
    (photos / "sub" / "list.csv").write_text("image\n1.png\n3.png\n")
    (tmp_path / "link").symlink_to(photos / "sub")
    index = build_index(embed, photos, tmp_path / "index", progress=False)
    change = index.add(tmp_path / "link" / "list.csv", progress=False)
    assert (change.num_added, len(index)) == (0, 10)


def test_a_table_that_holds_its_images_is_refused(photos, embed, tmp_path):
    rows = [{"image": (photos / "0.png").read_bytes(), "caption": "x"}]
    parquet.write_table(pa.Table.from_pylist(rows), photos / "held.parquet")
    with pytest.raises(DataError, match=r"held\.parquet: holds the images themselves \(column 'image'\)"):
        build_index(embed, photos / "held.parquet", tmp_path / "index", progress=False)
    assert not (tmp_path / "index").exists()


@pytest.mark.parametrize(
    ("question", "message"),
    [
        ({}, "give one of the two"),
        ({"text": "a", "image": "b.png"}, "give one of the two"),
        ({"text": "a", "k": 0}, "k is 0"),
        ({"text": " "}, "the query is empty"),
        ({"image": "b.png", "rerank": 5}, "re-ranking reads a text"),
    ],
)
def test_impossible_questions_are_refused(index, question, message):
    with pytest.raises(ConfigError, match=message):
        index.query(**question)


def test_an_unreadable_query_image_is_named(index, tmp_path):
    (tmp_path / "query.png").write_bytes(b"")
    with pytest.raises(SampleError, match=r"query\.png"):
        index.query(image=tmp_path / "query.png")


def test_what_is_no_index_or_has_no_images_is_refused(index, photos, embed, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="no images there"):
        ImageIndex.build(embed, tmp_path / "empty", tmp_path / "new", progress=False)
    assert not (tmp_path / "new").exists()
    with pytest.raises(DataError, match="no such folder"):
        ImageIndex.build(embed, tmp_path / "nowhere", tmp_path / "new", progress=False)
    with pytest.raises(DataError, match="is no index"):
        ImageIndex.load(tmp_path)
    with pytest.raises(DataError, match="exists and is no index"):
        ImageIndex.build(embed, photos, photos, progress=False)
    draw(tmp_path / "elsewhere" / "1.png", 1)
    with pytest.raises(DataError, match="is an index of"):
        ImageIndex.build(embed, tmp_path / "elsewhere", index.path, progress=False)
    with pytest.raises(ConfigError, match="did you mean 'float16'"):
        ImageIndex.build(embed, photos, tmp_path / "new", dtype="floet16", progress=False)


def test_a_folder_inside_of_the_indexed_one_is_added_to_the_rest(index, photos, embed):
    draw(photos / "sub" / "new.png", 3)
    draw(photos / "left.png", 4)
    again = ImageIndex.build(embed, photos / "sub", index.path, progress=False)
    assert (again.change.num_added, again.change.num_kept, again.change.vanished) == (1, 10, [])


def test_only_unreadable_images_is_an_error_and_an_empty_index_says_so(embed, tmp_path):
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "1.png").write_bytes(b"x")
    with pytest.raises(DataError, match=r"none of 1 images could be read; first: .*1\.png"):
        ImageIndex.build(embed, tmp_path / "bad", tmp_path / "index", progress=False)
    with pytest.raises(DataError, match="the index is empty"):
        ImageIndex.load(tmp_path / "index", model=embed).query("red")


@pytest.mark.parametrize("damage", ["{", '{"format": 1}', "[]"])
def test_a_damaged_index_is_one_line(index, damage):
    (index.path / "index.json").write_text(damage)
    with pytest.raises(DataError, match=r"index\.json|damaged index"):
        ImageIndex.load(index.path)


def test_a_damaged_or_missing_shard_is_one_line(index):
    shard = min((index.path / "shards").glob("*.safetensors"))
    shard.write_bytes(b"torn")
    with pytest.raises(DataError, match="damaged shard"):
        index.query("red")
    shard.with_suffix(".jsonl").write_text("")
    with pytest.raises(DataError, match=r"0 images, but index\.json says 4"):
        ImageIndex.load(index.path)


def test_the_contact_sheet_shows_hits_and_names_lost_images(index, photos, tmp_path):
    hits = index.query("<red>", k=3, rerank=2)
    hits[2].path.unlink()
    page = write_contact_sheet(hits, "<red>", tmp_path / "out" / "sheet.html").read_text(encoding="utf-8")
    assert page.count("<img") == 2
    assert "Search: &lt;red&gt;" in page
    assert "cannot be shown" in page
    page = write_contact_sheet([], "q.png", tmp_path / "s.html", query_image=photos / "9.png").read_text("utf-8")
    assert "No image was found." in page
