import json

import pytest
from PIL import Image

from evle.demo.examples import ExampleImages

SMALL = {"source": "scenes", "size": 48, "min_things": 1, "max_things": 2, "shapes": 6, "colours": 6, "patterns": False}


@pytest.fixture(params=[None, {"source": "scenes"}, SMALL], ids=["images", "scenes", "small world"])
def world(request):
    return request.param


@pytest.mark.parametrize("kind", ["captions", "questions", "statements"])
def test_every_world_has_examples_whose_images_open(kind, world, tmp_path):
    examples = getattr(ExampleImages(tmp_path), kind)(world)
    assert len(examples) >= 4
    for example in examples:
        assert example.text.strip()
        assert len(example.images) == (2 if kind == "statements" else 1)
        for path in example.images:
            Image.open(path).load()


def test_statements_about_scenes_differ(tmp_path):
    texts = [example.text for example in ExampleImages(tmp_path).statements(SMALL)]
    assert len(texts) == len(set(texts)) == 6


def test_an_installed_package_without_example_images_draws_scenes(tmp_path, monkeypatch):
    monkeypatch.setattr("evle.demo.examples.IMAGES", tmp_path / "missing")
    images = ExampleImages(tmp_path)
    assert all(path.parent == tmp_path for example in images.captions(None) for path in example.images)
    rows = [json.loads(line) for line in images.search_table(None).read_text().splitlines()]
    assert len(rows) == 48
    assert all((tmp_path / row["image"]).is_file() and row["captions"] for row in rows)


def test_stories_have_four_answers_four_reasons_and_boxes(world, tmp_path):
    for story in ExampleImages(tmp_path).stories(world):
        assert len(story.answers) == len(story.reasons) == 4
        width, height = Image.open(story.image).size
        assert all(box.x + box.width <= width + 1 and box.y + box.height <= height + 1 for box in story.objects)
