"""Shards of img2dataset are read as they are found, and training on them is training on the same samples."""

import json
import pickle
from collections import Counter
from pathlib import Path

import fsspec
import pytest
from PIL import Image

from evle.data.custom.folder import folder
from evle.data.custom.packing import pack
from evle.data.custom.shard_files import expand_braces, find_shards
from evle.data.custom.shards import shards
from evle.data.images import open_image
from evle.data.loader import Loader
from evle.data.samples import CaptionSample
from evle.errors import ConfigError, DataError, SampleError
from evle.inspection.sample_check import check_samples
from evle.run.stages import train
from micro import micro_run
from tars import caption_members, encoded, write_tar


@pytest.fixture
def three(tmp_path):
    """Three shards of four samples."""
    for number in range(3):
        write_tar(tmp_path / f"{number:05d}.tar", caption_members(*range(4 * number, 4 * number + 4)))
    return tmp_path


def test_img2datasets_shards_become_samples(three):
    samples = shards(three)
    assert len(samples) == 12
    assert [sample.key for sample in samples][3:5] == ["00000/000000003", "00001/000000004"]
    assert samples[5].captions == ("image 5",)
    assert samples[5].match_id == "image 5"
    assert samples[5].image.read() == encoded(5)
    assert open_image(samples[5].image).size == (20, 16)
    assert samples[-1] == samples[11] == samples[10:12][1]
    with pytest.raises(IndexError):
        samples[12]
    assert samples.describe() == {"shards": 3, "samples": 12}
    assert samples.skipped == []


def test_a_source_travels_to_other_processes(three):
    samples = shards(three)
    assert samples[7].image.read()  # the file is open here
    again = pickle.loads(pickle.dumps(samples))
    assert list(again) == list(samples)
    assert len(pickle.dumps(samples)) < 3000
    assert len(pickle.dumps(samples[7])) < 500


def test_images_of_several_forms_and_captions_of_all_scripts(tmp_path):
    captions = ["ein süßer Hund", "собака на пляже", "砂浜の犬", "🐕"]
    forms = [("jpg", "JPEG"), ("png", "PNG"), ("webp", "WEBP"), ("JPEG", "JPEG")]
    members = []
    for number, (caption, (extension, format)) in enumerate(zip(captions, forms)):
        members += [(f"{number}.{extension}", encoded(number, format=format)), (f"{number}.txt", caption)]
    samples = shards(write_tar(tmp_path / "0.tar", members))
    assert [sample.captions for sample in samples] == [(caption,) for caption in captions]
    assert [open_image(sample.image).size for sample in samples] == [(20, 16)] * 4


def test_captions_come_from_text_or_json_or_from_named_fields(tmp_path):
    members = [
        ("0.jpg", encoded()),
        ("0.txt", " from the text\n"),
        ("0.json", {"caption": "from the JSON", "alt": "alternative", "re": ["a", "b", "a"], "captions": None}),
        ("1.jpg", encoded()),
        ("1.json", {"caption": "only JSON", "alt": "other"}),
        ("2.jpg", encoded()),
        ("2.txt", "  "),
        ("2.json", {"captions": ["one", "two"], "kind": "photo", "key": "2"}),  # not ours, whatever it means there
    ]
    path = write_tar(tmp_path / "0.tar", members)
    assert [sample.captions for sample in shards(path)] == [("from the text",), ("only JSON",), ("one", "two")]
    named = shards(path, caption_field=["re", "alt"])
    assert [sample.captions for sample in (named[0], named[1])] == [("a", "b", "alternative"), ("other",)]
    with pytest.raises(SampleError, match="0/2: no caption in re or alt"):
        named[2]
    assert named.fingerprint != shards(path).fingerprint


@pytest.mark.parametrize(
    ("text", "about", "words"),
    [
        ("", {"caption": ""}, "0/0: no caption in its .txt or .json"),
        ("", "{", "0/0: its JSON: not usable JSON"),
        ("", "[1]", "0/0: its JSON: holds a list, where an object is needed"),
        (b"\xff\xfe", {}, "0/0: its caption is not UTF-8 text"),
        ("x", {"kind": "captions", "key": "k", "captions": ["x"]}, "k: its JSON has no 'match_id'; pack it again"),
        ("x", {"kind": "captions", "captions": ["x"]}, "0/0: its JSON has no 'key'"),
        ("", {"caption": 5.5}, None),
        (
            "",
            {"text": "a dog", "width": 3, "url": "x"},
            "no caption in its .txt or .json; its JSON has text, url: name",
        ),
        ("nan\n", {}, "0/0: no caption in its .txt or .json"),
        ("None", {"caption": "NULL"}, "0/0: no caption in its .txt or .json"),
        ("", {"caption": {"en": "a dog"}}, "0/0: its JSON is no sample of captions"),
    ],
)
def test_a_sample_without_sense_is_named(tmp_path, text, about, words):
    path = write_tar(tmp_path / "0.tar", [("0.jpg", encoded()), ("0.json", about), ("0.txt", text)])
    if words is None:
        assert shards(path)[0].captions == ("5.5",)
    else:
        with pytest.raises(SampleError, match=words):
            shards(path)[0]


def test_a_caption_in_utf_16_is_named(tmp_path):
    write_tar(tmp_path / "0.tar", [("0.jpg", encoded(0)), ("0.txt", "a dog".encode("utf-16-le"))])
    with pytest.raises(SampleError, match=r"0/0: its caption holds zero bytes, as UTF-16 text does; write the shard"):
        shards(tmp_path)[0]


def test_a_damaged_shard_costs_its_own_rest_and_nothing_else(three):
    content = (three / "00001.tar").read_bytes()
    size = content.index(encoded(5)) + 100
    (three / "00001.tar").write_bytes(content[:size])
    (three / "00002.tar").write_bytes(b"<html>not found</html>" * 100)
    samples = shards(three)
    assert [sample.key for sample in samples] == [f"00000/{n:09d}" for n in range(4)] + ["00001/000000004"]
    assert samples.describe() == {"shards": 3, "samples": 5, "damaged shards": 2}
    assert samples.skipped == samples.damaged
    assert len(samples.skipped) == 2
    found = check_samples(samples)
    assert not found.ok
    assert found.damaged.lines == samples.damaged
    assert "00001.tar: cut short" in samples.skipped[0]
    assert f"of {size:,}: what follows is lost; fetch the shard again" in samples.skipped[0]
    assert "00002.tar: a broken header at byte 0 of 2,200" in samples.skipped[1]
    (three / "00000.tar").write_bytes(b"")
    (three / "00001.tar").unlink()
    with pytest.raises(DataError, match=r"no usable samples in 2 shards; .*00000.tar: an empty file"):
        shards(three)


def test_unusable_samples_are_counted_and_a_thousand_of_them_named(tmp_path):
    for number in range(30):
        write_tar(tmp_path / f"{number}.tar", [*caption_members(0), *((f"x{n}.txt", "no image") for n in range(60))])
    samples = shards(tmp_path)
    assert samples.describe()["left out"] == "no image: 1,800"
    assert len(samples.skipped) == 1001
    assert samples.skipped[0] == f"{tmp_path}/0.tar: x0: no image"
    assert samples.skipped[-1] == "... and 800 more"
    assert "left out by the source: 1,800" in check_samples(samples).lines()


def test_a_damaged_image_is_skipped_by_the_loader(three):
    path = three / "00001.tar"
    content = path.read_bytes()
    place = content.index(encoded(5))
    path.write_bytes(content[: place + 4] + bytes(300) + content[place + 304 :])
    loader = Loader(shards(three), _features, list, batch_size=4, seed=0)
    keys = sorted(key for batch in loader.batches(0) for key, _ in batch)
    assert len(keys) == 11
    assert "00001/000000005" not in keys
    assert loader.skipped[0].startswith("00001/000000005: ")
    assert "00001.tar at byte" in loader.skipped[0]


def _features(sample, rng):
    return sample.key, open_image(sample.image).size


def test_braces_stand_for_numbers_and_lists():
    assert expand_braces("a") == ["a"]
    assert expand_braces("{9..11}.tar") == ["9.tar", "10.tar", "11.tar"]
    assert expand_braces("{00..02}/{x,y}") == ["00/x", "00/y", "01/x", "01/y", "02/x", "02/y"]
    assert expand_braces("{a,{0..1}}") == ["a", "0", "1"]


def test_shards_are_named_by_folder_file_pattern_or_list(three):
    files = [str(three / f"{number:05d}.tar") for number in range(3)]
    assert find_shards([str(three)]) == files
    assert find_shards([str(three / "{00000..00002}.tar")]) == files
    assert find_shards([str(three / "0*[12].tar")]) == files[1:]
    assert find_shards([files[2], str(three), files[0]]) == [files[2], files[0], files[1]]
    with pytest.raises(DataError, match=r"00003.tar: no such shard \(2 of 5 are missing\); fetch it, or name those"):
        find_shards([str(three / "{00000..00004}.tar")])
    with pytest.raises(DataError, match=r"x\*.tar: no file fits this pattern"):
        find_shards([str(three / "x*.tar")])
    with pytest.raises(DataError, match=r"gone: no such folder; put the shards there, or set path to their folder"):
        find_shards([str(three / "gone")])
    (three / "empty").mkdir()
    with pytest.raises(DataError, match=r"empty: no .tar files there"):
        find_shards([str(three / "empty")])
    (three / "a.tar.gz").write_bytes(b"")
    with pytest.raises(DataError, match=r"must be an uncompressed .tar; unpack .gz"):
        find_shards([str(three / "a.tar.gz")])


@pytest.mark.parametrize("target", ["a", "."])
@pytest.mark.parametrize("form", ["folder", "pattern"])
def test_shards_behind_links_are_read_once(tmp_path, target, form):
    """A link to a folder of shards doubled them, and one to its own folder gave them forty times."""
    write_tar(tmp_path / "a" / "0.tar", caption_members(1))
    (tmp_path / "latest").symlink_to(target)
    samples = shards(tmp_path if form == "folder" else str(tmp_path / "**" / "*.tar"))
    assert [sample.key for sample in samples] == ["0/000000001"]
    same = f"latest/{'a/' * (target == '.')}0.tar: is the same file as {tmp_path}/a/0.tar, which is read already"
    assert (f"{tmp_path}/{same}; name it once" in samples.skipped) == (form == "pattern")
    note = f"{tmp_path}/latest: a link to a folder, which is not followed; name that folder itself"
    assert (note in samples.skipped) == (form == "folder")
    assert samples.num_skipped == samples.describe()["files and links not read"] == len(samples.skipped)


def test_compressed_shards_beside_others_are_named(tmp_path):
    names = ["00001.tar.gz", "00002.tgz", "00003.TAR", "00004.zip", "00005.tar.ZST", ".00006.tar", "00007.txt"]
    for name in ["00000.tar", "00003.tar", *names]:
        write_tar(tmp_path / name, caption_members(1))
    samples = shards(tmp_path)
    assert [sample.key for sample in samples] == [f"0000{name}/000000001" for name in ("0.tar", "3.TAR", "3.tar")]
    assert samples.skipped == [
        f"{tmp_path}/{name}: compressed, and not read; unpack it" for name in sorted(names[:2] + names[3:5])
    ]
    for name in ("00000.tar", "00003.tar", "00003.TAR"):
        (tmp_path / name).unlink()
    with pytest.raises(DataError, match=r"no \.tar files there; .*00001\.tar\.gz: compressed, and not read; unpack it"):
        shards(tmp_path)


def test_a_name_with_signs_of_a_pattern_is_a_name(tmp_path):
    write_tar(tmp_path / "a[1]{2}" / "0.tar", caption_members(1))
    assert len(shards(tmp_path / "a[1]{2}")) == len(shards(tmp_path / "a[1]{2}" / "0.tar")) == 1


def test_shards_of_one_name_in_two_folders_have_keys_of_their_own(tmp_path):
    for name in ("cc3m", "sbu"):
        write_tar(tmp_path / name / "00000.tar", caption_members(1))
    samples = shards([str(tmp_path / "cc3m"), str(tmp_path / "sbu")])
    assert [sample.key for sample in samples] == ["cc3m/00000/000000001", "sbu/00000/000000001"]


def test_the_fingerprint_follows_content_and_order_and_not_place(three, tmp_path_factory):
    files = [str(three / f"{number:05d}.tar") for number in range(3)]
    elsewhere = tmp_path_factory.mktemp("copy")
    for file in files:
        (elsewhere / file.rpartition("/")[2]).write_bytes(Path(file).read_bytes())
    assert shards(three).fingerprint == shards(elsewhere).fingerprint
    assert shards(files[::-1]).fingerprint != shards(files).fingerprint != shards(files[:2]).fingerprint


def test_a_split_is_a_subfolder_or_a_hash_of_the_key(tmp_path):
    write_tar(tmp_path / "one.tar", caption_members(*range(200)))
    parts = {split: [sample.key for sample in shards(tmp_path, split=split)] for split in ("train", "val", "test")}
    assert sorted(key for keys in parts.values() for key in keys) == [sample.key for sample in shards(tmp_path)]
    assert Counter({split: len(keys) > 0 for split, keys in parts.items()}) == Counter(train=1, val=1, test=1)
    assert 130 < len(parts["train"]) < 190
    with pytest.raises(DataError, match="no split 'dev'; choose one of: test, train, val"):
        shards(tmp_path, split="dev")
    with pytest.raises(DataError, match="no subfolder 'val', and shards of vqa are not divided by a hash"):
        shards(tmp_path, "vqa", split="val")
    write_tar(tmp_path / "dev" / "0.tar", caption_members(7))
    assert [sample.captions for sample in shards(tmp_path, split="dev")] == [("image 7",)]


def test_impossible_options_are_refused(three):
    with pytest.raises(ConfigError, match="task='caption': did you mean 'captions'"):
        shards(three, "caption")
    with pytest.raises(ConfigError, match="three shares"):
        shards(three, shares=(1, 1, 1))
    with pytest.raises(DataError, match="images with captions; samples of vqa are read from shards that `evle data"):
        shards(three, "vqa")


def test_shards_in_a_remote_store_are_read_at_their_places(three, monkeypatch, tmp_path_factory):
    cache = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache))
    store = fsspec.filesystem("memory")
    for number in range(3):
        store.pipe(f"/bucket/cc/{number:05d}.tar", (three / f"{number:05d}.tar").read_bytes())
    local = list(shards(three))
    for path in ("memory://bucket/cc", "memory://bucket/cc/{00000..00002}.tar", "memory://bucket/cc/*.tar"):
        remote = shards(path)
        assert [(each.key, each.captions, each.image.read()) for each in remote] == [
            (each.key, each.captions, each.image.read()) for each in local
        ]
    assert {file.name[:9] for file in (cache / "evle" / "shards").iterdir()} == {f"{n:05d}.tar" for n in range(3)}
    store.pipe("/bucket/cc/00001.tar", (three / "00000.tar").read_bytes())
    assert shards("memory://bucket/cc")[4].key == "00001/000000000"
    with pytest.raises(DataError, match=r"memory://bucket/cc/00007.tar: cannot be read"):
        shards("memory://bucket/cc/00007.tar")
    with pytest.raises(DataError, match="nowhere://x"):
        shards("nowhere://x/0.tar")


def _same_samples(tmp_path):
    """The micro samples as a folder, and as shards packed from it."""
    colours = ("red", "green", "blue", "yellow", "black", "white", "purple", "orange")
    rows = []
    for colour in colours:
        Image.new("RGB", (20, 20), colour).save(tmp_path / f"{colour}.png")
        rows.append({"image": f"{colour}.png", "captions": [f"{colour} thing", colour], "keywords": ["plain"]})
    (tmp_path / "captions.jsonl").write_text("\n".join(map(json.dumps, rows)))
    pack(folder(tmp_path), tmp_path / "packed", per_shard=3)
    return folder(tmp_path), shards(tmp_path / "packed")


def _draws(sample, rng):
    return sample.key, open_image(sample.image).getpixel((3, 3)), float(rng.random())


def test_batches_from_shards_are_those_of_the_folder_even_after_an_interruption(tmp_path):
    plain, packed = _same_samples(tmp_path)
    make = lambda samples, **more: Loader(samples, _draws, list, batch_size=3, seed=4, **more)  # noqa: E731
    for epoch in (0, 1):
        whole = list(make(plain).batches(epoch))
        assert list(make(packed).batches(epoch)) == whole
        assert list(make(packed, num_workers=2).batches(epoch)) == whole
        assert list(make(packed).batches(epoch, start=2)) == whole[2:]


def test_training_on_shards_is_training_on_the_folder(tmp_path):
    sources = dict(zip(("folder", "shards"), _same_samples(tmp_path)))
    assert isinstance(sources["shards"][0], CaptionSample)
    changes = {"train": {"steps": 4, "batch_size": 4}}
    scores = {
        name: train(
            micro_run(tmp_path / name, "retrieval", changes), samples={"train": samples, "test": samples}
        ).scores
        for name, samples in sources.items()
    }
    assert scores["folder"] == scores["shards"]


def test_a_caption_in_the_txt_is_used_where_the_json_is_damaged(tmp_path):
    write_tar(tmp_path / "0.tar", [("0.jpg", encoded(0)), ("0.txt", "a dog"), ("0.json", "{")])
    assert shards(tmp_path)[0].captions == ("a dog",)


@pytest.mark.parametrize("json", ["[" * 100_000, '{"caption": ' + "1" * 5000 + "}", b"\xff"])
def test_json_of_any_damage_is_one_line(tmp_path, json):
    write_tar(tmp_path / "0.tar", [("0.jpg", encoded(0)), ("0.json", json)])
    with pytest.raises(SampleError, match="0/0: its JSON: not usable JSON") as caught:
        shards(tmp_path)[0]
    assert "\n" not in str(caught.value)


def test_the_json_of_a_sample_has_no_half_characters_and_no_duplicate_keys(tmp_path):
    members = [("a.jpg", encoded(0)), ("a.json", rb'{"caption": "a dog \ud83d"}')]
    members += [("b.jpg", encoded(1)), ("b.json", b'{"caption": "a dog", "caption": "a cat"}')]
    write_tar(tmp_path / "0.tar", members)
    samples = shards(tmp_path)
    assert samples[0].captions == ("a dog ���",)
    with pytest.raises(SampleError, match=r"0/b: its JSON: not usable JSON \(the key 'caption' is duplicated\)"):
        samples[1]


@pytest.mark.parametrize(
    ("task", "fields", "words"),
    [
        ("vqa", {"question": "what?", "answers": "yes"}, "answers must be a list, not 'yes'"),
        ("nlvr2", {"sentence": "both", "label": "false"}, "the label 'false' is not true, false or null"),
        ("captions", {"captions": "a dog", "tags": [], "match_id": "a", "boxes": []}, "captions must be a list"),
    ],
)
def test_packed_fields_of_another_kind_are_refused(tmp_path, task, fields, words):
    """A text was read letter by letter, and the label "false" was true."""
    data = json.dumps({"kind": task, "key": "a", **fields}).encode()
    write_tar(tmp_path / "0.tar", [("a.jpg", encoded(0)), ("a.right.jpg", encoded(1)), ("a.json", data)])
    with pytest.raises(SampleError, match=words):
        shards(tmp_path, task)[0]
