"""The image index: exact, resumable, growing, and clear about what it cannot do."""

import errno
import hashlib
import json
import os
import shutil
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from PIL import Image
from pyarrow import parquet

from commands import call
from evle.errors import CheckpointError, ConfigError, DataError, SampleError
from evle.metrics import top_k
from evle.pipelines import EmbedPipeline
from evle.search import (
    Change,
    Filter,
    Hit,
    ImageIndex,
    build_index,
    find_duplicates,
    nearest,
    store,
    write_contact_sheet,
)
from evle.search import index as indexing
from evle.search.listing import list_entries
from processes import start_code
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
    monkeypatch.setattr(indexing, "FLUSH_ROWS", 4)


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


def test_an_image_finds_itself_first(index, photos):
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


def test_an_image_that_went_away_ranks_behind_those_that_could_be_judged(index):
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


def test_the_cure_of_a_moved_folder_keeps_the_index(index, photos, embed, tmp_path):
    moved = photos.rename(tmp_path / "moved")
    cure = f"photos is gone: if it moved, `evle index -o INDEX --root {moved}` remembers it"
    with pytest.raises(DataError, match=cure):
        index.add(moved, progress=False)
    with pytest.raises(DataError, match=cure):
        ImageIndex.build(embed, moved, index.path, progress=False)
    call("index", "-o", index.path, "--root", moved)
    assert ImageIndex.build(embed, moved, index.path, progress=False).change.num_kept == 10


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


@pytest.mark.parametrize("when", ["before", "after"])
def test_an_interrupt_while_the_index_is_written_loses_and_doubles_nothing(photos, embed, tmp_path, monkeypatch, when):
    append, calls = store.Store.append, []

    def interrupted(self, *arguments):
        calls.append(arguments)
        if len(calls) == 1 and when == "before":
            raise KeyboardInterrupt
        state = append(self, *arguments)
        if len(calls) == 1:
            raise KeyboardInterrupt
        return state

    monkeypatch.setattr(store.Store, "append", interrupted)
    with pytest.raises(KeyboardInterrupt):
        ImageIndex.build(embed, photos, tmp_path / "index", progress=False)
    rows = len(calls[0][1])
    assert rows >= indexing.FLUSH_ROWS
    assert ImageIndex.load(tmp_path / "index").keys == [entry.path for entry in calls[0][1]]
    change = ImageIndex.build(embed, photos, tmp_path / "index", progress=False).change
    assert (change.num_kept, change.num_added) == (rows, 10 - rows)


def test_a_full_disk_is_one_line_and_the_index_stays_whole(index, photos, monkeypatch):
    draw(photos / "new.png", 77)

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(store, "write_whole", full)
    with pytest.raises(DataError, match=r"\(No space left on device\); what was saved before is intact"):
        index.add(photos, progress=False)
    monkeypatch.undo()
    assert len(ImageIndex.load(index.path)) == 10
    assert index.add(photos, progress=False).num_added == 1


def committed(index):
    return {shard["name"] for shard in json.loads((index.path / "index.json").read_text())["shards"]}


def test_only_the_files_of_the_state_before_are_left_for_its_readers(index, photos):
    before = committed(index)
    (photos / "0.png").unlink()
    index.add(photos, progress=False)
    now = committed(index)
    assert {file.stem for file in (index.path / "shards").iterdir()} == before | now
    index.remove("2.png")
    assert {file.stem for file in (index.path / "shards").iterdir()} == now | committed(index)


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
        ({"text": "a", "k": 2.5}, "k is 2.5; a whole number of at least 1"),
        ({"text": "a", "k": "3"}, "k is '3'"),
        ({"text": "a", "rerank": None}, "rerank is None"),
        ({"text": "a", "where": "year>2000"}, "where is 'year>2000'; give a Filter"),
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
    with pytest.raises(DataError, match="is not an index"):
        ImageIndex.load(tmp_path)
    with pytest.raises(DataError, match="exists and is not an index"):
        ImageIndex.build(embed, photos, photos, progress=False)
    draw(tmp_path / "elsewhere" / "1.png", 1)
    with pytest.raises(DataError, match="is an index of"):
        ImageIndex.build(embed, tmp_path / "elsewhere", index.path, progress=False)
    with pytest.raises(ConfigError, match="did you mean 'float16'"):
        ImageIndex.build(embed, photos, tmp_path / "new", dtype="floet16", progress=False)


def test_a_folder_inside_of_the_indexed_one_is_added_to_the_rest(index, photos, embed):
    draw(photos / "sub" / "new.png", 33)
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


def test_the_verb_names_unreadable_images_at_the_end_and_fails_only_where_none_is_readable(model, photos, tmp_path):
    (photos / "bad.jpg").write_bytes(b"no image")
    lines = call("index", photos, "-o", tmp_path / "index", "--model", model).splitlines()
    place = next(number for number, line in enumerate(lines) if "10 images; 10 added, 0 kept" in line)
    assert lines[place].endswith("1 could not be read")
    assert "bad.jpg: is no image" in lines[place + 1]
    row = call("index", photos, "-o", tmp_path / "index", "--json").splitlines()[0]
    assert "bad.jpg" in json.loads(row)["skipped"][0]
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "1.png").write_bytes(b"x")
    said = call("index", tmp_path / "bad", "-o", tmp_path / "index-of-bad", "--model", model, code=2)
    assert "none of 1 images could be read" in said


@pytest.mark.parametrize("damage", ["{", '{"format": 1}', "[]", "[" * 100_000, '{"format": 2, "shards": 7}'])
def test_a_damaged_index_is_one_line(index, damage):
    (index.path / "index.json").write_text(damage)
    with pytest.raises(DataError, match=r"index\.json"):
        ImageIndex.load(index.path)


@pytest.mark.parametrize(
    "change",
    [
        {"root": {"path": 5, "from_index": "."}},
        {"root": {"path": "/photos", "from_index": None}},
        {"model": {"path": ["x"], "from_index": "."}},
        {"fingerprint": 7},
        {"model_name": 7},
    ],
)
def test_a_fact_that_is_no_text_is_named(index, change):
    file = index.path / "index.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    with pytest.raises(DataError, match=r"index\.json: damaged \(.*where a text is needed\)"):
        ImageIndex.load(index.path)


def test_a_shard_that_is_listed_twice_is_refused(index):
    file = index.path / "index.json"
    header = json.loads(file.read_text())
    file.write_text(json.dumps(header | {"shards": header["shards"] * 2}))
    with pytest.raises(DataError, match=r"index\.json: damaged \(a shard is listed twice\)"):
        ImageIndex.load(index.path)


def shard_files(index, ending):
    names = [shard["name"] for shard in json.loads((index.path / "index.json").read_text())["shards"]]
    return [index.path / "shards" / f"{name}.{ending}" for name in names]


@pytest.mark.parametrize("ending", ["npy", "arrow"])
@pytest.mark.parametrize("where", [0.3, 0.99])
def test_a_flipped_bit_in_a_shard_is_found_and_named(index, ending, where):
    file = shard_files(index, ending)[1]
    data = bytearray(file.read_bytes())
    data[int(where * len(data))] ^= 0x20
    file.write_bytes(data)
    with pytest.raises(DataError, match=f"{file.name}: damaged shard .*checksum"):
        ImageIndex.load(index.path, model=index.embed).query("red")


def rewrite(index, number, array=None, table=None):
    """Files of a shard replaced with their checksums, as a program with a fault would."""
    header = json.loads((index.path / "index.json").read_text())
    shard = header["shards"][number]
    for ending, name in (("npy", "vectors"), ("arrow", "entries")):
        file = index.path / "shards" / f"{shard['name']}.{ending}"
        if ending == "npy" and array is not None:
            np.save(file, array)
        if ending == "arrow" and table is not None:
            with pa.ipc.new_file(str(file), table.schema) as writer:
                writer.write_table(table)
        shard[name] = hashlib.sha256(file.read_bytes()).hexdigest()
    (index.path / "index.json").write_text(json.dumps(header))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda array: array[:2], r"\(2, 32\), not float32 \(4, 32\)"),
        (lambda array: array[:, :8], r"\(4, 8\), not float32 \(4, 32\)"),
        (lambda array: array.astype(np.float64), "float64"),
        (lambda array: array * np.nan, "not finite"),
    ],
)
def test_vectors_that_do_not_fit_are_named(index, change, message):
    rewrite(index, 0, array=change(np.load(shard_files(index, "npy")[0])))
    with pytest.raises(DataError, match=message):
        ImageIndex.load(index.path, model=index.embed).query("red")


def test_a_list_of_fewer_images_than_vectors_is_named(index):
    with pa.ipc.open_file(str(shard_files(index, "arrow")[0])) as file:
        table = file.read_all()
    rewrite(index, 0, table=table.slice(0, 3))
    with pytest.raises(DataError, match="lists 3 images, but there are 4 vectors"):
        ImageIndex.load(index.path, model=index.embed).query("red")


def test_a_missing_shard_is_named(index):
    shard_files(index, "npy")[0].unlink()
    with pytest.raises(DataError, match=r"damaged shard .it is missing"):
        ImageIndex.load(index.path, model=index.embed).query("red")


def test_a_model_that_gives_nan_is_refused(embed, photos, tmp_path, monkeypatch):
    monkeypatch.setattr(EmbedPipeline, "_embed", lambda self, pixels: torch.full((len(pixels), 32), torch.nan))
    with pytest.raises(DataError, match=r"0\.png: the model gives it a vector that is not finite"):
        ImageIndex.build(embed, photos, tmp_path / "new", progress=False)


# --- equal scores, and exactness


def store_of(folder, vectors, dtype) -> store.Store:
    facts = store.Facts(store.Place.of(folder, folder), None, "", vectors.shape[1], dtype)
    return store.Store(folder, facts).append(vectors, [store.Entry(str(n), 1, 1) for n in range(len(vectors))])


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_equal_scores_stand_in_the_order_of_the_index_for_every_k(tmp_path, dtype):
    generator = torch.Generator().manual_seed(0)
    two = torch.nn.functional.normalize(torch.randn(2, 37, generator=generator), dim=1)
    kinds = torch.randint(2, (41,), generator=generator)
    held = store_of(tmp_path, two[kinds], dtype)
    for query in torch.randn(5, 1, 37, generator=generator):
        first = int((two @ query[0]).argmax())
        expected = [*(kinds == first).nonzero().flatten().tolist(), *(kinds != first).nonzero().flatten().tolist()]
        for k in range(1, 42):
            assert nearest.nearest_rows(held, query, k)[1][0].tolist() == expected[:k]


def test_half_precision_is_searched_exactly(tmp_path):
    vectors = torch.nn.functional.normalize(torch.randn(5000, 64, generator=torch.Generator().manual_seed(0)), dim=1)
    held = store_of(tmp_path, vectors[:500], "float16")
    queries = torch.nn.functional.normalize(torch.randn(5, 64, generator=torch.Generator().manual_seed(1)), dim=1)
    scores, rows = nearest.nearest_rows(held, queries, 20)
    expected = top_k(queries, vectors[:500].half().float(), 20)
    assert torch.equal(torch.from_numpy(rows), expected[1])
    torch.testing.assert_close(torch.from_numpy(scores), expected[0])


def test_the_approximate_index_is_built_for_many_images_and_reports_its_recall(index, embed, photos, monkeypatch):
    pytest.importorskip("faiss")
    monkeypatch.setattr(nearest, "APPROXIMATE_FROM", 11)
    expected = keys(index.query("a red ball", k=3))
    for number in range(20, 60):
        draw(photos / f"{number}.png", number)
    change = index.add(photos, progress=False)
    assert change.recall == 1.0  # every row is a candidate here
    assert "approximate search finds 100.0%" in str(change)
    loaded = ImageIndex.load(index.path, model=embed)
    assert keys(loaded.query("a red ball", k=9)) == keys(loaded.query("a red ball", k=9, exact=True))
    monkeypatch.setattr(nearest, "APPROXIMATE_FROM", 10_000)
    index.remove("[2-5]?.png")
    assert keys(index.query("a red ball", k=3)) == expected  # that of the state before is not used


def test_without_faiss_a_large_index_says_that_it_searches_exactly(index, photos, monkeypatch):
    monkeypatch.setattr(nearest, "APPROXIMATE_FROM", 1)
    monkeypatch.setitem(sys.modules, "faiss", None)
    change = index.add(photos, progress=False)
    assert "; searching exactly: an approximate index needs the package faiss-cpu" in str(change)
    assert change.skipped == []


# --- several processes


CODE = """
import sys
from evle.search import build_index, index, store
store.SHARD_ROWS = index.FLUSH_ROWS = 2
print(build_index(sys.argv[1], sys.argv[2], sys.argv[3], progress=False, batch_size=2, num_workers=0).change)
"""


def test_two_processes_that_add_to_one_index_lose_nothing_and_readers_read_on(photos, model, embed, tmp_path):
    for number in range(100, 124):
        draw(photos / ("a" if number % 2 else "b") / f"{number}.png", number)
    index = ImageIndex.build(embed, photos / "sub" / "..", tmp_path / "index", dtype="float32", progress=False)
    index.remove("a", "b")
    processes = [start_code(CODE, model, photos / part, index.path) for part in ("a", "b")]
    while any(process.is_alive() for process in processes):
        hits = index.query(image=photos / "0.png", k=2)
        assert hits[0].key == "0.png"
    assert [process.exitcode for process in processes] == [0, 0]
    loaded = ImageIndex.load(index.path, model=embed)
    assert len(loaded) == len(set(loaded.keys)) == 34
    for key in loaded.keys:
        assert loaded.query(image=photos / key, k=1)[0].key == key


# --- contents, filters, removal, duplicates


def test_a_file_that_is_touched_or_renamed_is_not_embedded_again(index, photos, monkeypatch):
    os.utime(photos / "0.png", ns=(1, 1))
    (photos / "2.png").rename(photos / "moved.png")
    read = []
    monkeypatch.setattr(
        type(index.embed), "read", lambda self, s, old=EmbedPipeline.read: read.append(s) or old(self, s)
    )
    change = index.add(photos, progress=False)
    assert read == []
    assert (change.num_reused, change.num_added, change.vanished, change.changed) == (2, 0, ["2.png"], [])
    monkeypatch.undo()
    assert len(index) == 10
    for key in index.keys:
        assert index.query(image=photos / key, k=1)[0].key == key


def test_images_are_removed_by_path_folder_or_pattern(index):
    assert index.remove("0.png").vanished == ["0.png"]
    assert len(index.remove("sub").vanished) == 5
    assert sorted(index.remove("[46].png").vanished) == ["4.png", "6.png"]
    assert sorted(ImageIndex.load(index.path).keys) == ["2.png", "8.png"]
    with pytest.raises(DataError, match=r"no image fits 'nowhere/\*'"):
        index.remove("nowhere/*")


def test_images_in_a_folder_that_may_not_be_opened_are_not_gone(index, photos, monkeypatch):
    stat = os.stat

    def refused(path, *arguments, **options):
        if isinstance(path, str | os.PathLike) and os.fspath(path).startswith(str(photos / "sub")):
            raise PermissionError(errno.EACCES, "Permission denied", os.fspath(path))
        return stat(path, *arguments, **options)

    draw(photos / "new.png", 42)
    monkeypatch.setattr(os, "stat", refused)
    change = index.add(photos, progress=False)
    assert (change.num_added, change.num_kept, change.vanished) == (1, 10, [])
    assert "not below" not in call("search", index.path, "red", "-k", 20)
    monkeypatch.undo()
    assert index.add(photos, progress=False).num_kept == len(index) == 11


def test_an_update_reads_with_the_options_given(index, photos, tmp_path, monkeypatch):
    with pytest.raises(ConfigError, match="batch_size is 0"):
        ImageIndex.load(index.path, batch_size=0).add(photos, progress=False)
    assert "num_workers is -1" in call("index", photos, "-o", index.path, "--num-workers", -1, code=2)
    loaded = ImageIndex.load(index.path, batch_size=5, num_workers=0)
    assert (loaded.embed.batch_size, loaded.embed.num_workers) == (5, 0)
    assert "--model x: is the model that embeds images" in call(
        "index", "-o", index.path, "--list", "--model", "x", code=2
    )


def test_equal_and_similar_images_are_reported(photos, embed, tmp_path):
    shutil.copy(photos / "4.png", photos / "sub" / "copy.png")
    with Image.open(photos / "6.png") as image:
        image.save(photos / "6.bmp")
    index = ImageIndex.build(embed, photos, tmp_path / "index", progress=False)
    assert find_duplicates(index) == [["4.png", "sub/copy.png"]]
    assert find_duplicates(index, similarity=0.99999) == [["4.png", "sub/copy.png"], ["6.bmp", "6.png"]]
    assert len(find_duplicates(index, similarity=1e-6)[0]) > 2
    for similarity in (2, "0.9"):
        with pytest.raises(ConfigError, match=f"similarity={similarity!r}: give a cosine"):
            find_duplicates(index, similarity=similarity)


@pytest.fixture
def described(photos, embed, tmp_path):
    rows = [
        {"image": f"{n}.png" if n % 2 == 0 else f"sub/{n}.png", "caption": f"number {n}", "year": 2010 + n, "by": "Ann"}
        for n in range(10)
    ]
    (photos / "list.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return build_index(embed, photos / "list.jsonl", tmp_path / "described", progress=False)


def test_the_verb_says_when_no_image_fits_the_filter(described):
    said = call("search", described.path, "red", "--folder", "none", "--where", "year>3000")
    assert f"no image of {described.path} fits --folder 'none' and --where 'year>3000'" in said


def test_no_column_of_the_table_hides_what_the_search_found(photos, embed, tmp_path):
    theirs = {"score": 0.99, "rank": 7, "query": "x", "match": 1, "columns": [2]}
    (photos / "list.jsonl").write_text(json.dumps({"image": "4.png", "caption": "four", **theirs}) + "\n")
    index = build_index(embed, photos / "list.jsonl", tmp_path / "index", progress=False)
    printed = call("search", index.path, "red", "--json", "--model", embed.source)
    (row,) = (json.loads(line) for line in printed.splitlines() if line.startswith("{"))
    hit = index.query("red")[0]
    assert row == {
        "query": "red",
        "rank": 1,
        "score": hit.score,
        "image": "4.png",
        "path": str(hit.path),
        "caption": "four",
        "columns": theirs,
    }


def test_a_column_that_no_image_has_is_named(described):
    said = call("search", described.path, "red", "--where", "yaer>2012", code=2)
    assert "where: no image has a column 'yaer'; did you mean 'year'?" in said


def test_a_text_is_neither_more_nor_less_than_a_number():
    table = pa.table({"fields": [json.dumps({"year": year}) for year in ("n/a", 2019, "2021-05-01", "", None)]})
    for condition, expected in (
        ("year>=2000", [1, 2]),
        ("year<2020", [1]),
        ("year!=2019", [0, 2, 3, 4]),
        ("year=n/a", [0]),
    ):
        assert np.flatnonzero(Filter(where=(condition,)).mask(table)).tolist() == expected


def test_an_index_inside_of_its_folder_is_no_image(photos, embed, caplog):
    build_index(embed, photos, photos / "index", progress=False)
    again = build_index(embed, photos, photos / "index", progress=False)
    assert not [line for line in caplog.messages if "not read" in line and "index" in line]
    assert again.change.num_kept == len(again)


def test_an_index_of_a_model_without_matching_asks_for_another_one(index, monkeypatch):
    monkeypatch.setattr(index.embed.model.config, "objective_weights", {"itm": 0.0})
    with pytest.raises(ConfigError, match="cannot match them; name an EVE or VLE that can with --rerank-model"):
        index.query("red", rerank=3)


@pytest.mark.parametrize(
    ("where", "expected"),
    [
        (Filter(folder="sub"), {1, 3, 5, 7, 9}),
        (Filter(folder="sub/"), {1, 3, 5, 7, 9}),
        (Filter(folder="su"), set()),
        (Filter(where=["year>=2017"]), {7, 8, 9}),
        (Filter(where=["year > 2017", "caption ~ ER 9"]), {9}),
        (Filter(where=["by=Ann", "year!=2010"], folder="sub"), {1, 3, 5, 7, 9}),
        (Filter(where=["by=Bob"]), set()),
        (Filter(where=["lens=50"]), set()),
        (Filter(since="2001-01-01"), {0}),
        (Filter(until="2000-06-01"), set(range(1, 10))),
    ],
)
def test_a_filter_leaves_images_out(described, photos, where, expected):
    for number in range(1, 10):
        file = next(photos.rglob(f"{number}.png"))
        os.utime(file, (959_817_600, 959_817_600))  # 2000-06-01
    described.add(photos / "list.jsonl", progress=False)
    hits = described.query("a red ball", k=20, where=where)
    assert {int(hit.path.stem) for hit in hits} == expected
    assert [hit for hit in described.query("a red ball", k=20) if hit in hits] == hits


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"since": "May"}, "since='May' is not a date"),
        ({"where": ["year"]}, "not a condition"),
        ({"where": ["year<>2019"]}, "<> is no operator; use one of !="),
        ({"where": ["year=>2019"]}, "=> is no operator"),
        ({"where": ["year!==2019"]}, "!== is no operator"),
    ],
)
def test_a_filter_that_cannot_be_read_is_refused(options, message):
    with pytest.raises(ConfigError, match=message):
        Filter(**options)


def test_the_tables_columns_come_with_a_hit_and_follow_the_table(described, photos):
    hit = described.query(image=photos / "4.png", k=1)[0]
    assert hit.caption == "number 4"
    assert hit.fields == {"caption": "number 4", "year": 2014, "by": "Ann"}
    (photos / "list.jsonl").write_text(json.dumps({"image": "4.png", "captions": ["new", "old"]}) + "\n")
    assert described.add(photos / "list.jsonl", progress=False).num_reused == 1
    assert described.query(image=photos / "4.png", k=1)[0].caption == "new"


def test_two_signs_of_equality_are_one():
    table = pa.table({"fields": [json.dumps({"year": year}) for year in (2019, 2020, "n/a")]})
    for condition in ("year==2019", "year = 2019"):
        assert Filter(where=[condition]).mask(table).tolist() == [True, False, False]
    assert Filter(where=["year==n/a"]).mask(table).tolist() == [False, False, True]


def test_no_texts_have_no_results_and_any_iterable_of_texts_serves(index):
    assert index.query_many(texts=[]) == index.query_many(images=[]) == []
    assert len(index.query_many(texts=(text for text in ("red", "blue")), k=1)) == 2
    with pytest.raises(DataError, match="text 0 is a value of type int, which is no text"):
        index.query_many(texts=[5])


def test_a_page_never_replaces_an_image_or_a_part_of_the_index(index, photos):
    before = (index.path / "index.json").read_bytes()
    assert "end it in .html" in call("search", index.path, "red", "--html", photos / "0.png", code=2)
    assert "end it in .html" in call("search", index.path, "red", "--html", index.path / "index.json", code=2)
    assert "would change" in call("search", index.path, "red", "--html", index.path / "a.html", code=2)
    assert (index.path / "index.json").read_bytes() == before


def test_an_index_remembers_where_its_images_moved(index, photos, model, tmp_path):
    expected = keys(index.query("red", k=3))
    photos.rename(tmp_path / "moved")
    with pytest.raises(DataError, match="no such folder"):
        index.move_root(photos)
    (tmp_path / "other").mkdir()
    with pytest.raises(DataError, match=r"holds no image of .*, such as .*\.png"):
        index.move_root(tmp_path / "other")
    assert "its images are in" in call("index", "-o", index.path, "--root", tmp_path / "moved")
    loaded = ImageIndex.load(index.path, model=model)
    hits = loaded.query("red", k=3)
    assert keys(hits) == expected
    assert all(hit.path.exists() for hit in hits)
    assert loaded.add(tmp_path / "moved", progress=False).num_kept == 10


def test_stats_count(index, photos):
    facts = index.stats()
    assert (facts["images"], facts["dimension"], facts["dtype"]) == (10, 32, "float32")
    assert facts["bytes"] == sum(file.stat().st_size for file in index.path.rglob("*") if file.is_file())
    assert facts["root"] == str(photos)


# --- the sheet


def test_the_contact_sheet_shows_hits_and_names_lost_images(described, photos, tmp_path):
    hits = described.query("<red>", k=3, rerank=2)
    hits[2].path.unlink()
    page = write_contact_sheet(hits, "<red>", tmp_path / "out" / "sheet.html", index=described).read_text("utf-8")
    assert page.count("<img") == 2
    assert "Search: &lt;red&gt;" in page
    assert "cannot be shown" in page
    for hit in hits:
        assert f'href="../photos/{hit.key}"' in page
        assert hit.caption in page
        assert f"{hit.score:.3f}" in page
    assert f"match {hits[0].match:.1%}" in page
    assert "(10 images)" in page
    page = write_contact_sheet([], "q.png", tmp_path / "s.html", query_image=photos / "8.png").read_text("utf-8")
    assert "No image was found." in page
    assert page.count("<img") == 1


def test_nothing_in_a_name_or_caption_becomes_part_of_the_page(photos, embed, tmp_path):
    name = 'a"><img src=x onerror=alert(1)>\x1b[31m.png'
    draw(photos / name, 3)
    rows = [{"image": name, "caption": "<script>alert(1)</script>", "<b>": "</dd><script>"}]
    (photos / "evil.jsonl").write_text(json.dumps(rows[0]) + "\n")
    index = build_index(embed, photos / "evil.jsonl", tmp_path / "index", progress=False)
    page = write_contact_sheet(index.query("red"), "<script>", tmp_path / "s.html", index=index).read_text("utf-8")
    assert "<script" not in page
    assert "onerror=alert(1)>" not in page
    assert "\x1b" not in page


@pytest.mark.parametrize(
    ("fields", "caption"),
    [
        ({"Caption": "a", "title": "b"}, "a"),
        ({"caption": "", "title": "b"}, "b"),
        ({"sentences": ["c", "d"]}, "c"),
        ({"captions": [], "year": 3}, ""),
        ({}, ""),
    ],
)
def test_the_caption_of_a_hit_is_in_any_column_that_training_reads(fields, caption):
    assert Hit(0.5, "a.png", Path("a.png"), fields=fields).caption == caption


def test_the_table_in_a_folder_gives_its_columns_to_the_images(photos, embed, tmp_path, caplog):
    rows = [{"image": "0.png", "caption": "nought", "year": 2019}, {"image": "gone.png", "caption": "x"}, {"year": 3}]
    (photos / "captions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with caplog.at_level("INFO", "evle"):
        index = build_index(embed, photos, tmp_path / "index", progress=False)
    assert caplog.messages[0] == f"{photos / 'captions.jsonl'}: its columns are kept for 1 of 10 images"
    assert "rows left out: 1; the first: " in caplog.messages[1]
    assert len(caplog.messages) == 2
    assert (len(index), index.change.skipped) == (10, [])
    hits = index.query("red", k=20, where=Filter(where=["year=2019"]))
    assert [(hit.key, hit.caption) for hit in hits] == [("0.png", "nought")]
    (photos / "captions.jsonl").write_text(json.dumps({"image": "2", "caption": "two"}) + "\n")  # its file is 2.png
    assert index.add(photos, progress=False).num_reused == 2
    assert [index.query(image=photos / f"{n}.png", k=1)[0].caption for n in (0, 2)] == ["", "two"]
    (photos / "captions.jsonl").unlink()
    assert index.add(photos, progress=False).num_reused == 1
    assert index.columns() == []


@pytest.mark.parametrize("given", ["folder", "table"])
def test_several_rows_about_one_image_keep_all_their_values(photos, given):
    """Only the first row counted, and an image was left out of a search for what another row says."""
    table = photos / "captions.csv"
    table.write_text("image,caption,year\n0.png,a cat,2018\n2.png,a cow,2019\n0.png,a dog,2020\n")
    entries, _ = list_entries(table if given == "table" else photos, photos)
    for where, found in (("caption~dog", ["0.png"]), ("year>=2019", ["0.png", "2.png"]), ("caption~cat", ["0.png"])):
        mask = Filter(where=(where,)).mask(pa.table({"fields": [entry.fields for entry in entries.values()]}))
        assert [name for name, shown in zip(entries, mask) if shown] == found


def test_columns_stay_only_where_a_table_that_was_not_read_has_them(photos, embed, tmp_path):
    (photos / "captions.csv").write_text("image,author\n0.png,Ann\nsub/1.png,Bo\n")
    (photos / "sub" / "captions.csv").write_text("image,author\n3.png,Cy\n")
    index = build_index(embed, photos, tmp_path / "index", progress=False)
    index.add(photos / "sub", progress=False)  # whose own table does not name 1.png

    def authors():
        return {hit.key: hit.fields["author"] for hit in index.query("red", k=20) if "author" in hit.fields}

    assert authors() == {"0.png": "Ann", "sub/1.png": "Bo", "sub/3.png": "Cy"}
    index.add(photos, progress=False)
    assert authors() == {"0.png": "Ann", "sub/1.png": "Bo", "sub/3.png": "Cy"}
    (photos / "captions.csv").write_text("image,author\n0.png,Ann\n")
    (photos / "sub" / "captions.csv").unlink()
    index.add(photos, progress=False)
    assert authors() == {"0.png": "Ann"}
    (photos / "captions.csv").write_bytes(b"\x1f\x8b damaged")
    index.add(photos, progress=False)
    assert authors() == {"0.png": "Ann"}


@pytest.mark.parametrize("names", [("a.csv", "b.csv"), ("held.parquet",)])
def test_a_folder_is_indexed_without_columns_where_its_table_cannot_be_used(photos, embed, tmp_path, names, caplog):
    for name in names:
        if name.endswith(".csv"):
            (photos / name).write_text("image,caption\n0.png,x\n")
        else:
            parquet.write_table(pa.Table.from_pylist([{"image": b"x"}]), photos / name)
    index = build_index(embed, photos, tmp_path / "index", progress=False)
    assert (len(index), index.query(image=photos / "0.png", k=1)[0].fields) == (10, {})
    assert len(caplog.messages) == 1
    assert caplog.messages[0].startswith("no columns are read: ")
    assert names[0] in caplog.messages[0]
