"""The models that the repository includes: small, described, and right on what they are for."""

from pathlib import Path

import pytest

import evle
from evle.data.synthetic.scenes import scenes
from evle.run.config import RunConfig
from evle.tasks.trained import run_settings

MODELS = Path(__file__).parents[1] / "models"
IMAGES = Path(__file__).parents[1] / "examples/images"


def test_all_models_together_stay_small():
    assert sum(file.stat().st_size for file in MODELS.rglob("*") if file.is_file()) < 12 * 2**20


@pytest.mark.parametrize("name", ["emoji-search", "scenes-vqa"])
def test_each_model_has_a_card_with_scores_and_the_command_that_makes_it(name):
    card = (MODELS / name / "README.md").read_text(encoding="utf-8")
    assert "model-index" in card
    assert "chance" in card
    assert "evle train" in card
    assert not list((MODELS / name).glob("*.bin"))


@pytest.mark.parametrize("name", ["emoji-search", "scenes-vqa"])
def test_the_run_that_made_a_model_is_read_by_an_evaluation(name):
    RunConfig.build({**run_settings(MODELS / name), "output": name}, name)


def test_emoji_search_finds_images_by_their_names():
    embed = evle.EmbedPipeline(MODELS / "emoji-search")
    names = ["car", "bird", "sailboat", "apple", "rose", "elephant"]
    similarity = embed.texts(names) @ embed.images([str(IMAGES / f"{name}.webp") for name in names]).T
    assert [int(row.argmax()) for row in similarity] == [*range(len(names))]


def test_scenes_vqa_answers_most_questions_about_scenes():
    answer = evle.VQAPipeline(MODELS / "scenes-vqa")
    world = {"size": 48, "min_things": 1, "max_things": 2, "shapes": 6, "colours": 6, "patterns": False}
    kinds = ["colour", "shape", "size", "count", "exists"]
    samples = scenes("vqa", split="test", count=60, seed=7, kinds=kinds, **world)
    rows = answer([sample.image for sample in samples], [sample.question for sample in samples])
    right = sum(row["answer"] == sample.answers[0] for row, sample in zip(rows, samples, strict=True))
    assert right >= 45  # about 89 % on 1,000 such scenes; chance is about 35 %
