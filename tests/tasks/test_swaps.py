"""Composition: an image is scored with its true and its swapped caption, by embeddings and by matching."""

import numpy as np
import pytest
import torch

from evle.data.samples import CaptionSample
from evle.data.synthetic.swaps import swaps
from evle.errors import DataError, SampleError
from evle.metrics import swap_scores
from evle.run.prepare import prepare
from evle.run.training import train_run
from evle.tasks.task import EvaluationSettings
from micro import micro_run

WORLD = {"source": "scenes", "size": 32, "shapes": 4, "colours": 4, "patterns": False, "max_things": 3}


@pytest.fixture
def prepared(tmp_path):
    return prepare(micro_run(tmp_path, "swaps"), samples={"train": swaps(count=8, world=WORLD)})


def test_the_scores_by_hand():
    """Set s: both texts right; the caption of b scores 2.5 with a, more than with b, so the images are wrong. Set t:
    a tie is wrong."""
    rows = {"a": (3.0, 2.5), "b": (2.0, 1.0), "c": (1.0, 1.0), "d": (2.0, 0.0)}
    scores = swap_scores(rows, dict(zip("abcd", "sstt")), dict(zip("abcd", ("order", "order", "count", "count"))))
    assert scores == {
        "accuracy": 75.0,
        "accuracy/count": 50.0,
        "accuracy/order": 100.0,
        "text": 50.0,
        "image": 50.0,
        "group": 0.0,
    }
    with pytest.raises(DataError, match="nothing to score"):
        swap_scores({}, {}, {})


def test_a_training_batch_holds_both_images_and_both_captions_of_each_set(prepared):
    task, samples = prepared.task, swaps(count=8, world=WORLD)
    batch = task.collate([task.features(samples[n], np.random.default_rng(0), True) for n in (0, 2)])
    assert len(batch["pixel_values"]) == len(batch["input_ids"]) == 4
    assert len(set(batch["match_ids"].tolist())) == 4
    assert torch.isfinite(prepared.loaded.model(**batch).loss)


def test_matching_refuses_the_swapped_caption_of_each_image(tmp_path):
    """Batch of two sets: rows 0 and 1 are one set, 2 and 3 the other."""
    samples = swaps(count=8, world=WORLD)
    for negatives, expected in (("swaps", [1, 0, 3, 2]), ("similar", None)):
        settings = {"task": {"name": "swaps", "negatives": negatives}}
        ready = prepare(micro_run(tmp_path, "swaps", settings), samples={"train": samples})
        batch = ready.task.collate([ready.task.features(samples[n], np.random.default_rng(0), True) for n in (0, 2)])
        assert batch["wrong_texts"].tolist() == expected if expected else "wrong_texts" not in batch


@pytest.mark.parametrize("family", ["eve", "vle"])
def test_the_wrong_texts_that_are_given_are_those_that_matching_reads(family, tmp_path):
    """The logits of negatives are those of the images with these texts, in a model without dropout."""
    ready = prepare(micro_run(tmp_path, "swaps", family=family), samples={"train": swaps(count=8, world=WORLD)})
    model = ready.loaded.model.eval()
    samples = swaps(count=8, world=WORLD)
    batch = ready.task.collate([ready.task.features(samples[n], np.random.default_rng(0), True) for n in (0, 2)])
    with torch.no_grad():
        rows = torch.arange(4)
        texts = {name: batch[name] for name in ("pixel_values", "input_ids", "attention_mask")}
        expected = model.itm_logits(**texts, image_rows=rows, text_rows=batch["wrong_texts"])
        logits = model(**batch).itm_logits
    assert logits.shape == (12, 2)
    torch.testing.assert_close(logits[4:8], expected, atol=1e-5, rtol=1e-4)


class Seeing(torch.nn.Module):
    """Prefers the true caption by matching, and the swapped one by embeddings."""

    device = torch.device("cpu")

    def get_image_features(self, pixel_values):
        return torch.ones(len(pixel_values), 1)

    def get_text_features(self, input_ids, attention_mask):
        return torch.tensor([0.0, 1.0]).repeat(len(input_ids) // 2)[:, None]

    def itm_logits(self, pixel_values, input_ids, attention_mask, image_rows, text_rows):
        assert image_rows.tolist() == [row // 2 for row in range(len(image_rows))]
        assert text_rows.tolist() == list(range(len(image_rows)))
        return torch.stack([torch.zeros(len(text_rows)), 1.0 - text_rows % 2], dim=1)


def test_matching_and_embeddings_are_scored_apart(prepared):
    samples = swaps(split="test", count=8, world=WORLD)
    found = prepared.task.evaluate(Seeing(), samples, EvaluationSettings(batch_size=3))
    assert (found.scores["accuracy"], found.scores["itc/accuracy"]) == (100.0, 0.0)
    assert found.chance["accuracy"] == found.chance["itc/accuracy/order"] == 50.0
    assert found.chance.keys() == found.scores.keys()
    assert found.predictions[0]["swapped"] == samples[0].swap.caption


def test_a_model_without_matching_is_scored_by_its_embeddings(tmp_path):
    settings = {"model": {"overrides": {"objective_weights": {"itm": 0.0}}}}
    ready = prepare(micro_run(tmp_path, "swaps", settings), samples={"train": swaps(count=8, world=WORLD)})
    found = ready.task.evaluate(ready.loaded.model, swaps(count=4, world=WORLD), EvaluationSettings())
    assert not any(name.startswith("itc/") for name in found.scores)


def test_samples_without_a_swap_or_a_second_image_are_named(prepared):
    with pytest.raises(SampleError, match="x: no swapped caption; read the samples from the source 'swaps'"):
        prepared.task.features(CaptionSample("x", b"", ("a",)), None, False)
    one = swaps(count=2, world=WORLD)[0]
    alone = CaptionSample("x", one.image, one.captions, swap=one.swap.__class__("b", "order"))
    with pytest.raises(SampleError, match="x: no second image to train on"):
        prepared.task.features(alone, np.random.default_rng(0), True)


def test_a_run_learns_and_scores_swaps(tmp_path):
    data = {split: {"source": "swaps", "split": split, "count": 16, "world": WORLD} for split in ("train", "test")}
    settings = {"data": data, "train": {"steps": 2, "batch_size": 4}}
    report = train_run(micro_run(tmp_path / "run", "swaps", settings))
    assert any("accuracy" in line for line in report.summary)
