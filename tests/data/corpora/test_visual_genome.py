"""Visual Genome: phrases and objects with their boxes, one record of an image at a time, images in two folders."""

import json
import pickle
import tracemalloc

import pytest
from PIL import Image

import corpora
from evle.data.corpora.visual_genome import visual_genome
from evle.data.samples import Box
from evle.errors import ConfigError, DataError, SampleError
from micro import THINGS


@pytest.fixture
def genome(tmp_path):
    return corpora.visual_genome(tmp_path)


def change(path, what):
    tree = json.loads(path.read_text())
    what(tree)
    path.write_text(json.dumps(tree))


def test_a_sample_holds_phrases_and_objects_with_their_boxes(genome):
    samples = visual_genome(genome)
    assert len(samples) == 12
    sample = samples[2]  # image 3
    colour, thing = corpora.colour_of(3), THINGS[3]
    assert sample.captions == (f"a {colour} {thing}", f"{thing} on the left")
    assert sample.boxes == (
        Box(0, 2, 8, 9, phrase=f"a {colour} {thing}"),
        Box(1, 2, 8, 9, phrase=f"{thing} on the left"),
        Box(1, 2, 5, 6, label=thing),
    )
    assert sample.key == sample.match_id == "visual-genome/3"
    facts = samples.describe()
    assert (facts["images"], facts["regions"], facts["objects"], facts["samples"]) == (12, 24, 12, 12)


def test_images_are_found_in_either_folder_or_in_one(genome, tmp_path):
    samples = visual_genome(genome)
    assert samples[0].image == str(genome / "VG_100K/1.jpg")
    assert samples[1].image == str(genome / "VG_100K_2/2.jpg")
    for name in ("VG_100K", "VG_100K_2"):
        for picture in (genome / name).iterdir():
            corpora.save(tmp_path / "all" / picture.name, "red")
    assert visual_genome(genome, images=tmp_path / "all")[1].image == str(tmp_path / "all/2.jpg")


def test_with_pairs_each_region_is_a_sample_with_its_own_box_first_and_all_others(genome):
    samples = visual_genome(genome, pairs=True)
    assert len(samples) == 24
    first, second = samples[4], samples[5]
    whole = visual_genome(genome)[2]
    assert (first.key, second.key) == ("visual-genome/3#0", "visual-genome/3#1")
    assert first.captions + second.captions == whole.captions
    assert first.boxes == whole.boxes
    assert second.boxes == (whole.boxes[1], whole.boxes[0], whole.boxes[2])
    assert first.match_id == second.match_id == whole.match_id


def test_objects_may_be_left_out_and_then_need_no_file(genome):
    (genome / "objects.json").unlink()
    with pytest.raises(DataError, match=r"no objects\.json there; put the unpacked files of Visual Genome there"):
        visual_genome(genome)
    samples = visual_genome(genome, objects=False)
    assert [box.label for box in samples[2].boxes] == ["", ""]
    assert "objects" not in samples.describe()


def test_images_without_objects_or_phrases_are_no_trouble(genome):
    change(genome / "objects.json", lambda records: records.pop())  # image 1, as the fixture turns the order
    change(
        genome / "region_descriptions.json",
        lambda records: [each.update(phrase="nan") for each in records[1]["regions"]],
    )
    samples = visual_genome(genome)
    assert [box.label for box in samples[0].boxes] == ["", ""]
    assert [sample.key for sample in samples[:2]] == ["visual-genome/1", "visual-genome/3"]
    assert samples.describe()["images without a phrase"] == 1


def test_images_of_downstream_tasks_are_known_by_coco_s_and_flickr_s_numbers(genome, tmp_path):
    (tmp_path / "out.txt").write_text("28\n1000092807.jpg\n")
    samples = visual_genome(genome, exclude=tmp_path / "out.txt")
    assert [sample.key for sample in samples[:2]] == ["visual-genome/3", "visual-genome/4"]
    assert samples.describe()["left out as images of downstream tasks"] == 2
    (genome / "image_data.json").unlink()
    with pytest.raises(
        DataError, match=r"no image_data\.json there; put Visual Genome's image_data\.json, which translates"
    ):
        visual_genome(genome, exclude=tmp_path / "out.txt")


def test_val_is_held_out_by_a_share_of_the_images(genome):
    train, val = (visual_genome(genome, split=split, val_share=0.3) for split in ("train", "val"))
    keys = [{sample.key for sample in samples} for samples in (train, val)]
    assert not keys[0] & keys[1]
    assert len(keys[0] | keys[1]) == 12
    with pytest.raises(ConfigError, match=r"visual-genome has no split val; hold one out with val_share=0\.01"):
        visual_genome(genome, split="val")
    with pytest.raises(ConfigError, match="visual-genome has no split 'test'"):
        visual_genome(genome, split="test")
    with pytest.raises(ConfigError, match="val_share=1"):
        visual_genome(genome, val_share=1)


def cut(path):
    path.write_text(path.read_text()[:-30])


BROKEN = {
    "cut short": ("region_descriptions.json", cut, "cut short in element 11"),
    "twice": (
        "region_descriptions.json",
        lambda path: change(path, lambda records: records.append(records[0])),
        "image id '1' appears 2 times",
    ),
    "of another form": (
        "objects.json",
        lambda path: change(path, lambda records: records[2].pop("objects")),
        "record 2: no field 'objects'; choose one of: image_id, image_url",
    ),
    "without phrases": (
        "region_descriptions.json",
        lambda path: change(path, lambda records: records[0]["regions"][0].pop("phrase")),
        "record 0: no field 'phrase'",
    ),
}


@pytest.mark.parametrize("case", BROKEN)
def test_what_is_wrong_is_one_line_that_names_it(case, genome):
    name, spoil, message = BROKEN[case]
    spoil(genome / name)
    with pytest.raises(DataError) as found:
        visual_genome(genome)
    assert str(found.value).startswith(str(genome / name))
    assert message in str(found.value)


@pytest.mark.parametrize("name", ["VG_100K", "VG_100K_2"])
def test_half_of_the_images_alone_is_found_at_once(name, genome):
    there = next(folder for folder in ("VG_100K", "VG_100K_2") if folder != name)
    away = (genome / name).rename(genome / "elsewhere")
    with pytest.raises(DataError, match=rf"{name}: no such folder, and \d+\.jpg is not in {there}; unpack the other"):
        visual_genome(genome)
    for picture in away.iterdir():
        picture.rename(genome / there / picture.name)
    assert len(visual_genome(genome)) == 12


def test_missing_images_are_found_at_once(genome):
    for name in ("VG_100K", "VG_100K_2"):
        for picture in (genome / name).iterdir():
            picture.unlink()
    with pytest.raises(DataError, match=r"1\.jpg: no such file, nor any other of 12 images"):
        visual_genome(genome)
    with pytest.raises(DataError, match="nowhere: no such folder; put VG_100K and VG_100K_2 there"):
        visual_genome(genome, images=genome / "nowhere")


def test_a_box_that_is_none_costs_its_sample_alone(genome):
    change(genome / "objects.json", lambda records: records[-1]["objects"][0].update(w=None))
    samples = visual_genome(genome)
    with pytest.raises(
        SampleError, match=r"image 1: the box \{'x': 1, 'y': 2, 'w': None, 'h': 6\} must be four numbers"
    ):
        samples[0]
    assert samples[1].key == "visual-genome/2"


def test_a_image_s_records_are_read_again_and_not_held(genome, tmp_path):
    """Fifty phrases and thirty objects an image, as published: eight kilobytes of JSON, some seventy bytes here."""
    region = {
        "phrase": "a brown dog on a beach",
        "x": 1,
        "y": 2,
        "width": 8,
        "height": 9,
        "region_id": 0,
    }
    thing = {"names": ["dog"], "x": 1, "y": 2, "w": 8, "h": 9, "synsets": ["dog.n.01"], "object_id": 0}
    count = 200
    corpora.write_json(
        genome / "region_descriptions.json",
        [{"id": 1 + i, "regions": [{**region, "image_id": 1 + i}] * 50} for i in range(count)],
    )
    corpora.write_json(genome / "objects.json", [{"image_id": 1 + i, "objects": [thing] * 30} for i in range(count)])
    tracemalloc.start()
    samples = visual_genome(genome)
    held, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(samples[count - 1].boxes) == 80
    assert len(pickle.dumps(samples)) < 100 * count
    assert held < 100_000
    assert peak < 12_000_000  # what is read at once, as bytes, text and elements


def test_images_in_another_size_than_annotated_are_refused(tmp_path):
    (tmp_path / "VG_100K").mkdir()
    Image.new("RGB", (20, 10)).save(tmp_path / "VG_100K" / "1.jpg")
    region = {"image_id": 1, "phrase": "a dog", "x": 1, "y": 2, "width": 3, "height": 4}
    (tmp_path / "region_descriptions.json").write_text(json.dumps([{"id": 1, "regions": [region]}]))
    stated = tmp_path / "image_data.json"
    for size in ((20, 10), (10, 20)):  # the second: a photo that its EXIF data turn
        stated.write_text(json.dumps([{"image_id": 1, "width": size[0], "height": size[1]}]))
        assert len(visual_genome(tmp_path, objects=False)) == 1
    stated.write_text(json.dumps([{"image_id": 1, "width": 200, "height": 100}]))
    with pytest.raises(DataError, match=r"has 20 x 10 pixels, and 200 x 100 in the annotations of .*boxes do not fit"):
        visual_genome(tmp_path, objects=False)


@pytest.mark.parametrize("size", [-3, 0, float("nan")])
def test_boxes_without_an_area_are_left_out_with_their_phrases_and_named(genome, size):
    change(genome / "region_descriptions.json", lambda records: records[0]["regions"][0].update(width=size))
    change(genome / "objects.json", lambda records: records[-2]["objects"][0].update(h=size))
    samples, singles = visual_genome(genome), visual_genome(genome, pairs=True)
    assert [box.phrase for box in samples[0].boxes if box.phrase] == [f"{THINGS[1]} on the left"]
    assert [box.label for box in samples[1].boxes if box.label] == []
    assert (samples.num_skipped, len(singles)) == (2, 23)
    assert singles[0].captions == (f"{THINGS[1]} on the left",)
    assert "region_descriptions.json: record 0, image 1: the box [0, 2, " in samples.skipped[0]


def test_phrases_of_punctuation_alone_are_no_captions(genome):
    change(genome / "region_descriptions.json", lambda records: records[0]["regions"][0].update(phrase="..."))
    assert len(visual_genome(genome, pairs=True)) == 23
    assert visual_genome(genome, pairs=True)[0].captions == (f"{THINGS[1]} on the left",)
    change(genome / "region_descriptions.json", lambda records: records[0]["regions"][1].update(phrase="-"))
    assert visual_genome(genome)[0].key == "visual-genome/2"


def test_a_region_of_another_image_than_its_record_is_refused(genome):
    change(genome / "region_descriptions.json", lambda records: records[0]["regions"][0].update(image_id="1"))
    assert len(visual_genome(genome)) == 12
    change(genome / "region_descriptions.json", lambda records: records[0]["regions"][0].update(image_id=2))
    with pytest.raises(DataError, match=r"record 0: a box of image 2 in the record of image 1; use the official file"):
        visual_genome(genome)
