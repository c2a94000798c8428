"""Scenes of cut-outs speak the truth about real names, and show what they speak of."""

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image, ImageDraw

from evle.data.synthetic.cutouts import cutouts
from evle.errors import ConfigError, DataError, SampleError
from scene_truth import Judge

PLURALS = {
    "dog": "dogs", "cat": "cats", "fox": "foxes", "wolf": "wolves", "dolphin": "dolphins", "palm tree": "palm trees",
    "hourglass": "hourglasses", "man in tuxedo": "men in tuxedo", "orange": "oranges", "unicorn": "unicorns",
}  # fmt: skip
COLOURS = {name: (20 * i, 255 - 25 * i, 128) for i, name in enumerate(PLURALS)}
JUDGE = Judge(PLURALS)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """Wide transparent images, each with a flat ellipse in a colour of its own, off the middle; a name in two
    splits.
    """
    path = tmp_path_factory.mktemp("cutouts")
    rows = []
    for name, colour in COLOURS.items():
        image = Image.new("RGBA", (60, 40), (0, 0, 0, 0))
        ImageDraw.Draw(image).ellipse((20, 10, 59, 29), fill=colour)
        image.save(path / f"{name}.png")
        for split in ("train", "val"):
            rows.append({"image": f"{name}.png", "captions": [name.capitalize(), "an animal"], "split": split})
    rows.append({"image": "fox.png", "captions": ["flag: Chad 1"], "split": "train"})
    (path / "captions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def of(pictures, task, **options):
    return cutouts(pictures, task, **{"count": 300, "size": 64, **options})


def test_every_caption_answer_statement_and_choice_is_true(pictures):
    for sample in of(pictures, "captions"):
        for caption in sample.captions:
            assert JUDGE.true_of(sample.image.scene, caption), caption
    types = set()
    for sample in of(pictures, "vqa"):
        assert JUDGE.answer(sample.image.scene, sample.question) == sample.answers[0], sample.question
        types.add(sample.question_type)
    assert types == {"shape", "size", "position", "count", "exists", "relates", "relation", "comparison"}
    for sample in of(pictures, "nlvr2"):
        left, right = (drawing.scene for drawing in sample.images)
        assert JUDGE.true_of_pair(left, right, sample.sentence) == sample.label, sample.sentence
    for sample in of(pictures, "vcr"):
        for choices, label in (
            (sample.answer_choices, sample.answer_label),
            (sample.rationale_choices, sample.rationale_label),
        ):
            truths = [JUDGE.true_choice(sample, sample.question, choice) for choice in choices]
            assert truths == [place == label for place in range(4)], (sample.question, choices)


def test_boxes_hold_the_visible_part_of_each_cutout(pictures):
    for sample in of(pictures, "captions", boxes=True, count=20, size=96):
        pixels = np.asarray(sample.image.draw()).astype(int)
        for box in sample.boxes:
            assert box.width / box.height == pytest.approx(2, rel=0.12)  # the ellipse, not the transparent image
            left, upper, width, height = (int(each) for each in (box.x, box.y, box.width, box.height))
            assert min(left, upper, 96 - left - width, 96 - upper - height) >= 0
            centre = pixels[upper + height // 2, left + width // 2]
            assert np.abs(centre - COLOURS[box.label]).max() <= 3


def test_caption_samples_open_no_image_unless_boxes_are_asked_for(pictures, tmp_path):
    (tmp_path / "captions.jsonl").write_text((pictures / "captions.jsonl").read_text())
    sample = of(tmp_path, "captions")[0]
    assert sample.boxes == ()
    with pytest.raises(SampleError, match=r"\.png: no such file"):
        sample.image.draw()


def test_cutouts_may_lie_inside_a_table(pictures, tmp_path):
    rows = [{"image": (pictures / f"{name}.png").read_bytes(), "caption": name, "split": "train"} for name in COLOURS]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "captions.parquet")
    inside, beside = of(tmp_path, "captions", count=3), of(pictures, "captions", count=3)
    for one, other in zip(inside, beside):
        assert one.captions == other.captions
        assert np.array_equal(np.asarray(one.image.draw()), np.asarray(other.image.draw()))


def test_names_come_from_the_first_caption_and_odd_ones_are_left_out(pictures):
    assert set(of(pictures, "vqa").composer.values["kind"]) == set(PLURALS)
    assert "man in tuxedo" not in of(pictures, "vqa", longest_name=2).composer.values["kind"]


def test_a_small_world_has_only_the_names_that_were_given(pictures):
    names = list(PLURALS)[:8]
    assert set(of(pictures, "vqa", names=names).composer.values["kind"]) == set(names)
    with pytest.raises(DataError, match="no cut-out is called zebra in the split train"):
        of(pictures, "vqa", names=[*names, "zebra"])
    with pytest.raises(DataError, match=r"7 usable names of cut-outs, but 8 are needed; .* or give more names"):
        of(pictures, "vqa", names=names[:7])


def test_cutouts_are_composed_by_the_same_options_as_shapes(pictures):
    alone = of(pictures, "captions", min_things=1, max_things=2, num_captions=1, questions=0.5, kinds=["exists"])
    assert {len(sample.image.scene.things) for sample in alone} == {1, 2}
    assert {len(sample.captions) for sample in alone} == {1}
    asked = [text for sample in alone for text in sample.captions if "?" in text]
    assert 100 < len(asked) < 200
    assert {text.split("? ")[1] for text in asked} == {"yes", "no"}
    for pair in of(pictures, "nlvr2", statements=["both"], min_things=1, max_things=2):
        assert pair.sentence.startswith("both pictures show a")
        assert max(len(drawing.scene.things) for drawing in pair.images) <= 2
    with pytest.raises(ConfigError, match="max_things=2 must be from 4 to 8 for statements of the types both, one"):
        of(pictures, "nlvr2", max_things=2)


def test_a_general_and_a_special_name_never_stand_for_each_other(pictures):
    names = ["heart", *[f"{word} heart" for word in ("red", "blue", "broken", "big", "small", "glass", "toy", "paper")]]
    rows = [{"image": f"{name}.png", "caption": name} for name in names]
    (pictures / "hearts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    samples = cutouts(pictures / "hearts.jsonl", "captions", images=["train", "val", "test"], count=200)
    seen = 0
    for sample in samples:
        hearts = [thing.traits.kind for thing in sample.image.scene.things]
        seen += "heart" in hearts
        for caption in sample.captions:
            assert "the heart" not in caption or len(hearts) == 1
    assert seen > 20


def test_impossible_cutouts_are_refused(pictures):
    with pytest.raises(DataError, match="0 usable names of cut-outs, but 8 are needed; raise longest_name"):
        of(pictures, "vqa", longest_name=0)
    with pytest.raises(
        ConfigError, match=r"choose one of: test, train, val; set images to a split of the folder.s table"
    ):
        of(pictures, "vqa", split="test_style")
    with pytest.raises(DataError, match="no split 'vall'; did you mean 'val'"):
        cutouts(pictures, "vqa", images="vall")
