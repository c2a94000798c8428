"""Downstream test images are known by COCO's number, by file name and by their number on Flickr; nothing else is."""

import pytest

import corpora
from evle.data.custom.packing import pack
from evle.data.exclusion import read_exclusion
from evle.data.sources import mix, read_source
from evle.errors import ConfigError, DataError
from tars import encoded, write_tar


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return corpora.write_all(tmp_path_factory.mktemp("corpora"))


@pytest.fixture(scope="module")
def files(folder):
    return [str(folder / "coco/dataset_coco.json"), str(folder / "flickr30k/dataset_flickr30k.json")]


def test_val_and_test_of_karpathy_are_left_out_and_restval_is_not(files):
    excluded = read_exclusion(files)
    assert excluded.coco_ids == {number for number in corpora.NUMBERS if number >= 9 + 12}
    assert excluded.names == {str(1000092795 + place) for place in range(8, 16)}


def test_coco_and_flickr_images_are_known_in_every_form_of_their_name(files):
    excluded = read_exclusion(files)
    for name in ("COCO_val2014_000000000028.jpg", "x/val2014/COCO_val2014_000000000028.jpg", "000000000028.jpg"):
        assert excluded.holds(name), name
    for name in (
        "flickr30k-images/1000092805.jpg",
        corpora.photo_link(10),
        corpora.photo_link(10).replace("2723", "9"),
    ):
        assert excluded.holds(name), name
    assert excluded.holds(coco_id=28)
    assert excluded.holds(flickr_id=1000092805)
    for name in ("COCO_train2014_000000000009.jpg", "28.jpg", "1000092795.jpg", corpora.photo_link(2), ""):
        assert not excluded.holds(name), name
    assert not excluded.holds("https://example.org/1000092805_b0f2.jpg")  # no photo of Flickr's
    assert not excluded.holds(coco_id=9, flickr_id=None)


def test_a_list_of_one_s_own_will_do(tmp_path):
    (tmp_path / "out.txt").write_text("17\nval2014/COCO_val2014_000000000018.jpg\n1007129816.jpg\n\n")
    excluded = read_exclusion(tmp_path / "out.txt")
    assert excluded.holds("COCO_train2014_000000000017.jpg")
    assert excluded.holds(coco_id=18)
    assert excluded.holds(flickr_id="1007129816")


def test_what_is_no_list_is_refused(tmp_path, files):
    (tmp_path / "empty.txt").write_text("\n")
    with pytest.raises(DataError, match=r"empty\.txt: no image to leave out in it"):
        read_exclusion([files[0], tmp_path / "empty.txt"])
    with pytest.raises(DataError, match=r"gone\.json: no such file"):
        read_exclusion("gone.json")
    with pytest.raises(DataError, match=r"gone\.txt: no such file; check exclude=FILE"):
        read_exclusion("gone.txt")
    with pytest.raises(ConfigError, match=r"exclude=a\.csv: must be Karpathy's JSON, or a \.txt"):
        read_exclusion("a.csv")


LEFT = {"karpathy": (12, 12), "coco-captions": (12, 12), "xvlm": (12, 0), "visual-genome": (10, 2), "sbu": (6, 4)}
"""Of the miniature corpora: samples left, and images left out. SBU's photos 8 to 11 are Flickr30K's, two of 0 to 7 are
dead links; Visual Genome's 1 is COCO's 28, its 2 Flickr30K's 1000092807; X-VLM's training list is clean."""


@pytest.mark.parametrize("source", LEFT)
def test_every_source_leaves_them_out_and_says_how_many(source, folder, files):
    options = corpora.options_of(source, folder)
    clean = read_source(source, {**options, "exclude": files})
    assert (len(clean), clean.describe()["left out as images of downstream tasks"]) == LEFT[source]
    assert clean.describe()["left out by"] == "dataset_coco.json, dataset_flickr30k.json"
    whole = read_source(source, options)
    assert "left out as images of downstream tasks" not in whole.describe()
    assert clean.fingerprint != whole.fingerprint


def test_a_mix_reports_what_each_of_its_sources_left_out(folder, files):
    sources = [read_source(name, {**corpora.options_of(name, folder), "exclude": files}) for name in LEFT]
    facts = mix(sources).describe()
    assert facts["samples"] == sum(left for left, _ in LEFT.values())
    told = [facts[f"source {i}"]["left out as images of downstream tasks"] for i in range(1, 6)]
    assert told == [out for _, out in LEFT.values()]


def test_excluding_everything_is_an_error(folder, files):
    with pytest.raises(DataError, match="no image with a caption in split test; 6 were excluded"):
        read_source("karpathy", {"path": str(folder / "coco"), "split": "test", "exclude": files})


def test_lists_and_shards_of_visual_genome_are_translated_by_its_image_data(folder, files, tmp_path):
    """Its 1 is COCO's 28 and its 2 Flickr30K's 1000092807; the corpus alone names neither."""
    names = [str(folder / "visual-genome" / "image_data.json"), *files]
    excluded = read_exclusion(names)
    assert excluded.genome_ids == {1, 2}
    for name in ("vg/VG_100K/1.jpg", "VG_100K_2/2.jpg", "data/visual_genome/images/2.jpg", "visual-genome/1"):
        assert excluded.holds(name), name
    for name in ("VG_100K/3.jpg", "1.jpg", "sbu/1.jpg", "visual-genome/12"):
        assert not excluded.holds(name), name
    assert not read_exclusion(files).holds("VG_100K/1.jpg")
    with pytest.raises(ConfigError, match=r"image_data\.json only translates numbers; add Karpathy's JSON"):
        read_exclusion(names[0])

    pack(read_source("visual-genome", {"path": str(folder / "visual-genome"), "pairs": True}), tmp_path)
    whole, clean = (read_source("shards", {"path": str(tmp_path), "exclude": each}) for each in (None, names))
    assert {sample.key.partition("#")[0] for sample in whole} - {sample.key.partition("#")[0] for sample in clean} == {
        "visual-genome/1",
        "visual-genome/2",
    }
    assert clean.describe()["left out as images of downstream tasks"] == len(whole) - len(clean)


def test_shards_of_img2dataset_are_known_by_their_links(files, tmp_path):
    """A key that happens to be the number of a photo says nothing; the link beside it does."""
    members = []
    for key, link in (("000000000", corpora.photo_link(10)), ("1000092805", "https://example.org/a.jpg")):
        members += [(f"{key}.jpg", encoded()), (f"{key}.json", {"caption": key, "url": link, "key": key})]
    write_tar(tmp_path / "00000.tar", members)
    samples = read_source("shards", {"path": str(tmp_path), "exclude": files})
    assert [sample.captions for sample in samples] == [("1000092805",)]
    assert samples.describe()["left out as images of downstream tasks"] == 1
    assert samples.fingerprint != read_source("shards", {"path": str(tmp_path)}).fingerprint
    write_tar(tmp_path / "00000.tar", [("1.jpg", encoded()), ("1.txt", "a cup")])
    with pytest.raises(ConfigError, match=r"00000\.tar: its samples have neither a url nor the key"):
        read_source("shards", {"path": str(tmp_path), "exclude": files})
    write_tar(tmp_path / "00000.tar", members[:2])
    with pytest.raises(DataError, match="no sample is left; all 1 were excluded"):
        read_source("shards", {"path": str(tmp_path), "exclude": files})


def test_lists_of_other_systems_are_read(tmp_path):
    (tmp_path / "out.TXT").write_text("C:\\COCO\\COCO_val2014_000000000042.jpg\r\n7.0\r\n")
    assert read_exclusion(tmp_path / "out.TXT").coco_ids == {42, 7}


@pytest.mark.parametrize("text", ["3.91895E+05", "391895.5", "-391895"])
def test_numbers_that_a_spreadsheet_changed_are_refused(tmp_path, text):
    """They were names of images before, so that no image was left out."""
    (tmp_path / "out.txt").write_text(f"17\n{text}\n")
    with pytest.raises(DataError, match=r"out\.txt:2: '.*' is no COCO number; write all digits"):
        read_exclusion(tmp_path / "out.txt")


def test_a_split_with_another_name_is_refused(tmp_path):
    """Its images were taken for images to train on."""
    corpora.write_json(
        tmp_path / "k.json",
        {"images": [{"split": split, "cocoid": 5, "filename": "a.jpg"} for split in ("restval", "val", "Test")]},
    )
    with pytest.raises(DataError, match=r"k\.json: image 2: split 'Test' is none of train, restval, val, test"):
        read_exclusion(tmp_path / "k.json")


def test_a_name_with_dots_leaves_out_its_own_image_alone(tmp_path):
    (tmp_path / "out.txt").write_text("frames/frame.0001.jpg\nclip.jpg.webp\n")
    excluded = read_exclusion(tmp_path / "out.txt")
    assert excluded.holds("frame.0001.png")
    assert excluded.holds("clip.jpg")
    assert not excluded.holds("frame.0002.jpg")


@pytest.mark.parametrize(
    ("line", "name"),
    [
        ("1007129816.jpg#0", "flickr30k-images/1007129816.jpg"),
        ("1007129816", "flickr30k-images/1007129816.jpg"),
        ("36979\n1007129816", "36979.jpg"),  # a photo of Flickr30K with a small number
        ("coco_val2014_000000391895.jpg", "val2014/COCO_val2014_000000391895.jpg"),
        ("391895", "coco_val2014_000000391895.jpg"),
        ("# my list\nimage_id\n391895", "COCO_val2014_000000391895.jpg"),
        ("my images/COCO_val2014_000000391895.jpg", "000000391895.jpg"),
    ],
    ids=["token", "flickr-number", "small-flickr-number", "lower-case", "lower-case-image", "comment", "folder"],
)
def test_a_list_excludes_its_images_in_every_form(tmp_path, line, name):
    (tmp_path / "out.txt").write_text(line + "\n")
    excluded = read_exclusion(tmp_path / "out.txt")
    assert excluded.holds(name)
    assert not excluded.holds("391896.jpg")
    assert not any("#" in each for each in excluded.names)


@pytest.mark.parametrize("line", ["391895 # a dog", "a.jpg b.jpg", "a.jpg c/b.jpg", "391895 a/b.jpg", "a dog.jpg"])
def test_a_line_with_more_than_one_name_is_refused(tmp_path, line):
    """It was the name of an image, so that none was left out."""
    (tmp_path / "out.txt").write_text(f"17\n{line}\n")
    with pytest.raises(DataError, match=r"out\.txt:2: '.*' is not one COCO number or file name; write one per line"):
        read_exclusion(tmp_path / "out.txt")


def test_numbers_of_coco_alone_are_no_names_of_files(tmp_path):
    """Visual Genome has an image 391895.jpg too."""
    (tmp_path / "out.txt").write_text("391895\n")
    assert not read_exclusion(tmp_path / "out.txt").names
