"""Karpathy's splits, COCO's captions and X-VLM's lists are read as published, and what is wrong is named."""

import json
from collections import Counter
from functools import partial

import pytest
from PIL import Image

import corpora
from evle.data.corpora.captions import coco_captions, karpathy, xvlm
from evle.errors import ConfigError, DataError


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The miniature corpora; tests must not change them."""
    return corpora.write_all(tmp_path_factory.mktemp("corpora"))


@pytest.fixture
def coco(tmp_path):
    """A COCO of one's own, to break."""
    return corpora.coco(tmp_path)


def change(path, what):
    tree = json.loads(path.read_text())
    what(tree)
    path.write_text(json.dumps(tree))


def test_restval_counts_as_train(folder):
    sizes = {split: len(karpathy(folder / "coco", split=split)) for split in ("train", "val", "test")}
    assert sizes == {"train": 12, "val": 6, "test": 6}
    assert len(karpathy(folder / "coco")) == 24
    assert len(karpathy(folder / "coco", split=["val", "test"])) == 12


def test_a_image_of_coco_is_one_sample_with_its_five_captions(folder):
    sample = karpathy(folder / "coco", split="train")[8]  # the first of restval
    assert sample.key == sample.match_id == "val2014/COCO_val2014_000000000017.jpg"
    assert sample.image == str(folder / "coco/val2014/COCO_val2014_000000000017.jpg")
    assert list(sample.captions) == corpora.captions_of(17)


def test_flickr30k_has_the_same_form_and_another_folder(folder):
    samples = karpathy(folder / "flickr30k", split="test")
    assert samples[0].image == str(folder / "flickr30k/flickr30k-images/1000092807.jpg")
    assert [list(sample.captions) for sample in samples] == [corpora.captions_of(place) for place in range(12, 16)]


def test_images_may_lie_elsewhere_or_all_in_one_folder(folder, tmp_path):
    alone = corpora.write_json(
        tmp_path / "dataset_coco.json", json.loads((folder / "coco/dataset_coco.json").read_text())
    )
    assert len(karpathy(alone, images=folder / "coco")) == 24
    for name in ("train2014", "val2014"):
        for picture in (folder / "coco" / name).iterdir():
            (tmp_path / "flat" / picture.name).parent.mkdir(exist_ok=True)
            (tmp_path / "flat" / picture.name).write_bytes(picture.read_bytes())
    assert karpathy(alone, images=tmp_path / "flat")[0].image == str(tmp_path / "flat/COCO_train2014_000000000009.jpg")
    straight = karpathy(folder / "flickr30k/dataset_flickr30k.json", images=folder / "flickr30k/flickr30k-images")
    assert straight[0].image == str(folder / "flickr30k/flickr30k-images/1000092795.jpg")


def test_with_pairs_each_caption_is_a_sample_that_matches_its_image(folder):
    samples = karpathy(folder / "coco", split="val", pairs=True)
    assert len(samples) == 30
    assert len({sample.key for sample in samples}) == 30
    assert set(Counter(sample.match_id for sample in samples).values()) == {5}
    assert samples[7].key == "val2014/COCO_val2014_000000000022.jpg#2"
    assert samples[7].captions == (corpora.captions_of(22)[2],)
    assert samples.describe()["captions"] == 30
    assert samples.fingerprint != karpathy(folder / "coco", split="val").fingerprint


def test_numbers_that_differ_from_the_published_ones_are_noted(folder, coco, monkeypatch):
    assert karpathy(folder / "coco", split="val").describe()["note"] == "6 images of val, where 5,000 were published"
    monkeypatch.setattr("evle.data.corpora.captions.KARPATHY_COUNTS", {"coco": {"train": 12, "val": 6, "test": 6}})
    assert "note" not in karpathy(folder / "coco").describe()
    change(coco / "dataset_coco.json", lambda tree: tree["images"].pop())
    assert karpathy(coco).describe()["note"] == "5 images of test, where 6 were published"


def test_coco_s_own_files_hold_the_same_captions(folder):
    official = {sample.key: sample for sample in coco_captions(folder / "coco")}
    split = {sample.key: sample for sample in karpathy(folder / "coco")}
    assert official.keys() == split.keys()
    for key, sample in official.items():
        assert sorted(sample.captions) == sorted(split[key].captions)
        assert (sample.image, sample.match_id) == (split[key].image, split[key].match_id)
    assert len(coco_captions(folder / "coco", split="val")) == 16
    assert len(coco_captions(folder / "coco", split="train", pairs=True)) == 40
    assert (
        len(coco_captions(folder / "coco/annotations/captions_val2014.json", split="val", images=folder / "coco")) == 16
    )


def test_captions_of_images_that_the_file_does_not_contain_are_named(coco):
    file = coco / "annotations/captions_val2014.json"
    change(file, lambda tree: tree["annotations"].append({"image_id": 5, "id": 7, "caption": "x"}))
    samples = coco_captions(coco, split="val")
    assert samples.skipped == [f"{file}: caption 7 belongs to image 5, which the file does not contain"]
    assert len(samples) == 16


def test_images_without_captions_are_left_out_and_named(coco):
    file = coco / "annotations/captions_val2014.json"
    change(file, lambda tree: tree["images"].append({"id": 5, "file_name": "none.jpg"}))
    assert coco_captions(coco, split="val").skipped == [f"{file}: no caption for val2014/none.jpg"]


def test_x_vlm_s_lists_hold_the_same_samples_as_karpathy_s_splits(folder):
    for split in ("train", "val", "test"):
        lists = xvlm(folder / "coco/lists", split=split, images=folder / "coco")
        assert [sample for sample in lists] == [sample for sample in karpathy(folder / "coco", split=split)]
    both = xvlm(folder / "coco/lists", files=["coco_val.json", "coco_test.json"], images=folder / "coco", pairs=True)
    assert len(both) == 60
    assert len(xvlm(folder / "coco/lists/coco_val.json", images=folder / "coco")) == 6


def no_images(folder):
    for name in ("train2014", "val2014"):
        for picture in (folder / name).iterdir():
            picture.unlink()


def no_folder(folder):
    for picture in (folder / "val2014").iterdir():
        picture.unlink()
    (folder / "val2014").rmdir()


def twice(tree):
    tree["images"].append(tree["images"][0])


BROKEN = {
    "a split that does not exist": (
        karpathy,
        {"split": "tset"},
        None,
        "karpathy has no split 'tset'; did you mean 'test'?",
    ),
    "COCO has no test captions": (
        coco_captions,
        {"split": "test"},
        None,
        "coco-captions has no split 'test'; choose one of",
    ),
    "another task": (karpathy, {"task": "vqa"}, None, "source 'karpathy' holds captions, not 'vqa'"),
    "no file": (
        karpathy,
        {"path": "gone"},
        None,
        "gone: no such file or folder; set path to the folder of Karpathy's JSON",
    ),
    "no JSON": (karpathy, {"path": "val2014"}, None, "no dataset_coco.json or dataset_flickr30k.json there"),
    "no folder": (
        karpathy,
        {},
        no_folder,
        "val2014: no such folder; put the images of dataset_coco.json there, or set",
    ),
    "no images": (karpathy, {}, no_images, "nor any other of 16 images that"),
    "cut short": (
        karpathy,
        {},
        lambda path: (path / "dataset_coco.json").write_text((path / "dataset_coco.json").read_text()[:5000]),
        "cut short in 'images', element 7, at byte",
    ),
    "twice in Karpathy's": (
        karpathy,
        {},
        lambda path: change(path / "dataset_coco.json", twice),
        "image 'train2014/COCO_train2014_000000000009.jpg' appears 2 times; download the file again",
    ),
    "twice in COCO's": (
        coco_captions,
        {},
        lambda path: change(path / "annotations/captions_val2014.json", twice),
        "image id '17' appears 2 times",
    ),
    "annotations twice": (
        coco_captions,
        {},
        lambda path: change(
            path / "annotations/captions_val2014.json",
            lambda tree: tree["annotations"].append({**tree["annotations"][0], "image_id": 20}),
        ),
        "annotation id '324' appears 2 times",
    ),
    "an unknown split in the file": (
        karpathy,
        {},
        lambda path: change(path / "dataset_coco.json", lambda tree: tree["images"][3].update(split="dev")),
        "image 3: split 'dev' is none of train, restval, val, test",
    ),
    "another JSON": (
        karpathy,
        {"path": "annotations/captions_val2014.json"},
        None,
        "image 0: no field 'split'; choose one of: file_name, height, id, license, width; is it the right file?",
    ),
    "no list of that split": (
        xvlm,
        {"path": "annotations", "split": "test"},
        None,
        "no list *test.json among captions_train2014.json, captions_val2014.json; set files=[...]",
    ),
    "several lists": (xvlm, {"path": "annotations"}, None, "2 lists *.json among"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_what_is_wrong_is_one_line_that_names_it(case, coco, monkeypatch):
    monkeypatch.chdir(coco)
    read, options, spoil, message = BROKEN[case]
    if spoil is not None:
        spoil(coco)
    with pytest.raises((ConfigError, DataError)) as found:
        read(**{"path": str(coco), **options})
    assert message in str(found.value)
    assert "\n" not in str(found.value)


def test_two_files_of_karpathy_in_one_folder_must_be_told_apart(folder, coco):
    corpora.flickr30k(coco)
    with pytest.raises(
        DataError, match=r"both dataset_coco\.json and dataset_flickr30k\.json are there; set path to one of them"
    ):
        karpathy(coco)
    assert len(karpathy(coco / "dataset_flickr30k.json")) == 16


def test_an_archive_that_was_not_unpacked_is_named(coco):
    (coco / "val2014").rename(coco.parent / "elsewhere")
    (coco / "val2014.zip").write_bytes(b"PK")
    with pytest.raises(DataError, match=r"val2014: no such folder \(still packed: val2014\.zip\); put the images"):
        karpathy(coco)
    (coco / "dataset_coco.json").unlink()
    (coco / "caption_datasets.zip").write_bytes(b"PK")
    with pytest.raises(
        DataError, match=r"no dataset_coco\.json .* there \(still packed: caption_datasets\.zip, val2014"
    ):
        karpathy(coco)


def test_a_null_is_no_caption_and_what_is_no_text_or_number_is_named(coco, tmp_path):
    """As programs write lists that fill in nothing for what is missing."""
    file = coco / "annotations/captions_val2014.json"
    change(file, lambda tree: [each.update(caption=None) for each in tree["annotations"][:5]])
    assert len(coco_captions(coco, split="val").skipped) == 1
    lists = corpora.xvlm(tmp_path / "x") / "lists" / "coco_test.json"
    change(lists, lambda tree: [tree[0].update(caption=None), tree[1].update(caption=[None, " a dog"])])
    samples = xvlm(lists, images=tmp_path / "x")
    assert samples[0].captions == ("a dog",)
    silent, other = (each["image"] for each in json.loads(lists.read_text())[:2])
    assert samples.skipped == [f"{lists}: {other}: no words in caption 1", f"{lists}: no caption for {silent}"]
    for edit, message in (
        (lambda tree: tree["annotations"][3].pop("id"), r"val2014.json: annotations \d+: no field 'id'"),
        (lambda tree: tree["annotations"][3].update(id=3, image_id="x"), "image_id must be a whole number, not 'x'"),
        (lambda tree: tree["annotations"][3].update(image_id=27, caption=["a"]), r"annotations \d+: .* is not a text"),
        (lambda tree: tree["annotations"][3].update(caption=False), r"annotations \d+: 'False' is not a text"),
    ):
        change(file, edit)
        with pytest.raises(DataError, match=message):
            coco_captions(coco, split="val")
    change(coco / "dataset_coco.json", lambda tree: tree["images"][2].update(sentences=None))
    with pytest.raises(DataError, match="image 2: its sentences must be a list, not 'None'; is it the right file"):
        karpathy(coco)


@pytest.mark.parametrize("word", ["nan", "NaN", "None", " null ", "NULL", "<NA>", "NA", "(null)"])
def test_words_that_programs_write_for_nothing_are_no_captions(word, coco, tmp_path):
    lists = corpora.xvlm(tmp_path / "x") / "lists" / "coco_test.json"
    change(lists, lambda tree: [tree[0].update(caption=word), tree[1].update(caption=[word, "None of them"])])
    samples = xvlm(lists, images=tmp_path / "x")
    assert samples[0].captions == ("None of them",)
    silent, other = (each["image"] for each in json.loads(lists.read_text())[:2])
    assert samples.skipped == [f"{lists}: {other}: no words in caption 1", f"{lists}: no caption for {silent}"]
    change(
        coco / "annotations/captions_val2014.json",
        lambda tree: [each.update(caption=word) for each in tree["annotations"][:5]],
    )
    assert len(coco_captions(coco, split="val").skipped) == 1
    change(coco / "dataset_coco.json", lambda tree: tree["images"][2]["sentences"][0].update(raw=word))
    assert word.strip() not in {text for sample in karpathy(coco) for text in sample.captions}


@pytest.mark.parametrize("pairs", [False, True])
@pytest.mark.parametrize("source", [karpathy, coco_captions, xvlm])
def test_captions_without_words_beside_others_are_counted(source, pairs, tmp_path):
    corpora.save(tmp_path / "val2014" / "a.jpg", "red")
    captions = ["a dog", None, "nan"]
    sentences = [{"raw": each} for each in captions]
    image = {"filename": "a.jpg", "filepath": "val2014", "split": "val", "sentences": sentences}
    notes = [{"image_id": 1, "id": n, "caption": each} for n, each in enumerate(captions)]
    tree = {"images": [{"id": 1, "file_name": "a.jpg"}], "annotations": notes}
    corpora.write_json(tmp_path / "dataset_coco.json", {"images": [image]})
    corpora.write_json(tmp_path / "captions_val2014.json", tree)
    corpora.write_json(tmp_path / "lists_val.json", [{"image": "val2014/a.jpg", "caption": captions}])
    samples = source(tmp_path, split="val", pairs=pairs)
    assert [sample.captions for sample in samples] == [("a dog",)]
    assert [line.rpartition(": ")[2] for line in samples.skipped] == [f"no words in caption {n}" for n in (2, 3)]
    assert samples.describe()["rows left out"] == 2


@pytest.mark.parametrize("folder", ["annotations", ""])
def test_the_other_year_of_coco_is_named(tmp_path, folder):
    corpora.coco(tmp_path)
    (tmp_path / "annotations/captions_val2014.json").rename(tmp_path / "annotations/captions_val2017.json")
    with pytest.raises(DataError, match=r"no captions_val2014\.json, but captions_val2017\.json; set year=2017"):
        coco_captions(tmp_path / folder, split="val", images=tmp_path)


def test_files_with_similar_names_are_named(tmp_path):
    corpora.coco(tmp_path)
    (tmp_path / "annotations/captions_val2014.json").unlink()
    with pytest.raises(DataError, match=r"no captions_val2014\.json there \(there is captions_train2014\.json\)"):
        coco_captions(tmp_path, split="val")
    (tmp_path / "dataset_coco.json").rename(tmp_path / "dataset_flickr8k.json")
    with pytest.raises(DataError, match=r"no dataset_coco\.json or .* \(there is dataset_flickr8k\.json\); put"):
        karpathy(tmp_path)


def test_an_image_in_another_form_is_named_when_none_is_there(tmp_path):
    Image.new("RGB", (4, 4)).save(tmp_path / "A.JPG")
    image = {"filename": "a.jpg", "split": "train", "sentences": [{"raw": "a dog"}]}
    (tmp_path / "dataset_coco.json").write_text(json.dumps({"images": [image]}))
    with pytest.raises(DataError, match=r"a\.jpg: no such file \(but there is .*A\.JPG\), nor any other of 1 images"):
        karpathy(tmp_path)


def test_a_folder_of_another_year_is_named(tmp_path):
    corpora.coco(tmp_path)
    (tmp_path / "val2014").rename(tmp_path / "val2017")
    with pytest.raises(DataError, match=r"val2014: no such folder \(val2017 is of another year\); put the images"):
        coco_captions(tmp_path, split="val")


@pytest.mark.parametrize("form", ["..", "../secret", "val2014/../../secret", "ABSOLUTE/secret"])
@pytest.mark.parametrize("source", ["karpathy", "coco", "xvlm"])
def test_a_list_may_not_name_images_outside_of_its_folder_unless_allowed(source, form, tmp_path):
    inside = corpora.coco(tmp_path / "coco")
    folder = form.replace("ABSOLUTE", str(tmp_path))
    (tmp_path / "secret").mkdir()
    name = "COCO_val2014_000000000017.jpg"
    for where in (tmp_path / "secret", tmp_path):
        corpora.save(where / name, "red")
    if source == "karpathy":
        change(inside / "dataset_coco.json", lambda tree: tree["images"][8].update(filepath=folder, filename=name))
        read, path, options = karpathy, inside, {}
    elif source == "coco":
        edit = {"file_name": f"../{folder}/{name}" if not folder.startswith("/") else f"../..{folder}/{name}"}
        change(inside / "annotations/captions_val2014.json", lambda tree: tree["images"][0].update(edit))
        read, path, options = coco_captions, inside, {"split": "val"}
    else:
        entries = [{"image": f"{folder}/{name}", "caption": "a dog", "image_id": "x"}]
        read, path, options = xvlm, corpora.write_json(inside / "list_train.json", entries), {}
    if not (source == "coco" and folder.startswith("/")):
        assert len(read(path, **options, allow_outside=True))
    with pytest.raises(DataError, match=r"the image '.*' is outside of .*coco; correct it, or set allow_outside=true"):
        read(path, **options)


@pytest.mark.parametrize("spelling", ["./val2014", "val2014/", "x/../val2014", "val2014"])
def test_an_image_of_two_splits_is_refused_however_it_is_spelled(spelling, coco):
    def again(tree):
        first = next(each for each in tree["images"] if each["split"] == "val")
        tree["images"].append({**first, "filepath": spelling, "split": "test"})

    change(coco / "dataset_coco.json", again)
    for split in ("val", "test", "train", None):
        with pytest.raises(DataError, match=r"image 24: val2014/COCO_val2014_\d+\.jpg is in the splits val and test"):
            karpathy(coco, split=split)


def test_an_absolute_name_inside_of_the_folder_is_inside(tmp_path):
    inside = corpora.coco(tmp_path / "coco")
    change(inside / "dataset_coco.json", lambda tree: tree["images"][8].update(filepath=str(inside / "val2014")))
    assert len(karpathy(inside)) == 24


def test_one_image_under_several_spellings_is_one_sample(tmp_path):
    names = ["caf\u00e9.jpg", "./cafe\u0301.jpg", "x/../caf\u00e9.jpg", "b.jpg", ".//b.jpg"]
    for name in ("caf\u00e9.jpg", "b.jpg"):
        corpora.save(tmp_path / name, "red")
    entries = [{"image": name, "caption": f"caption {number}", "image_id": "x"} for number, name in enumerate(names)]
    corpora.write_json(tmp_path / "list_train.json", entries)
    samples = xvlm(tmp_path, split="train")
    assert [sample.captions for sample in samples] == [
        ("caption 0", "caption 1", "caption 2"),
        ("caption 3", "caption 4"),
    ]


def test_captions_of_xvlm_that_are_lists_within_texts_or_lists_are_divided(tmp_path):
    forms = ['["a dog", "a cat"]', "['a dog', 'a cat']", [["a dog"], ["a cat"]], [{"caption": "a dog"}, "a cat"]]
    entries = [{"image": f"{number}.jpg", "caption": form} for number, form in enumerate(forms)]
    for entry in entries:
        corpora.save(tmp_path / entry["image"], "red")
    corpora.write_json(tmp_path / "train.json", entries)
    assert {sample.captions for sample in xvlm(tmp_path)} == {("a dog", "a cat")}
    corpora.write_json(tmp_path / "train.json", [{"image": "0.jpg", "caption": {"en": "a dog"}}])
    with pytest.raises(DataError, match=r"entry 0: caption: a record of en has none of raw, caption"):
        xvlm(tmp_path)


def put_in_folder(tree, name, folder=None):
    for each in tree["images"]:
        each[name] = f"./{folder or each['filepath']}/{each[name]}"


def test_image_names_that_begin_with_their_folder_are_not_put_into_it_twice(coco):
    """As converted files name images: train2014/COCO_train2014_000000000009.jpg."""
    plain = {sample.key: sample.image for sample in coco_captions(coco)}
    for split in ("train2014", "val2014"):
        change(coco / f"annotations/captions_{split}.json", partial(put_in_folder, name="file_name", folder=split))
    assert {sample.key: sample.image for sample in coco_captions(coco)} == plain
    listed = {sample.key: sample.image for sample in karpathy(coco)}
    change(coco / "dataset_coco.json", partial(put_in_folder, name="filename"))
    assert {sample.key: sample.image for sample in karpathy(coco)} == listed


def test_the_entities_of_html_are_read_as_the_signs_that_they_stand_for(coco):
    change(coco / "dataset_coco.json", lambda tree: tree["images"][2]["sentences"][0].update(raw="salt &amp; pepper"))
    assert "salt & pepper" in {text for sample in karpathy(coco) for text in sample.captions}
    file = coco / "annotations/captions_val2014.json"
    change(file, lambda tree: tree["annotations"][0].update(caption="a &quot;big&quot; dog"))
    assert 'a "big" dog' in {text for sample in coco_captions(coco, split="val") for text in sample.captions}
