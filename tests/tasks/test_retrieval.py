"""Retrieval evaluation: what counts as right, the order of re-ranking, and its cost."""

import pickle
import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from evle.errors import ConfigError
from evle.run.prepare import prepare
from evle.tasks.captions import CaptionConfig, training_text
from evle.tasks.predict import predict_all
from evle.tasks.reranking import Candidates
from micro import SAMPLES, caption_samples, micro_run


class Oracle(nn.Module):
    """Embeds everything alike, so contrast ranks in order; its joint pass knows which colour goes with which words."""

    device = torch.device("cpu")

    def __init__(self, truth: dict[tuple[int, ...], int]):
        super().__init__()
        self.truth = truth
        self.images = 0
        self.pairs = 0
        self.most_rows = 0

    def get_image_features(self, pixel_values):
        return torch.ones(len(pixel_values), 4) / 2

    def get_text_features(self, input_ids, attention_mask):
        return torch.ones(len(input_ids), 4) / 2

    def itm_logits(self, pixel_values, input_ids, attention_mask, image_rows, text_rows):
        self.images += len(pixel_values)
        self.pairs += len(image_rows)
        self.most_rows = max(self.most_rows, len(image_rows))
        texts = [tuple(row[mask.bool()].tolist()) for row, mask in zip(input_ids, attention_mask)]
        right = torch.tensor([self.truth[text] for text in texts])[text_rows]
        colours = (pixel_values[image_rows].mean(dim=(2, 3)) * 100).round().long()
        codes = torch.tensor([int(code) for code in (colours * torch.tensor([1, 1000, 1000000])).sum(dim=1)])
        return torch.stack([torch.zeros(len(codes)), -(codes - right).abs().float()], dim=1)


@pytest.fixture
def task(tmp_path):
    return prepare(micro_run(tmp_path, "retrieval", {"task": {"k_test": 8}}), samples={"train": caption_samples()}).task


def oracle(task, samples) -> Oracle:
    truth = {}
    for sample in samples:
        batch = task.on_device(task._collate_images([task._image_features(sample, None)]), torch.device("cpu"))
        colours = (batch["pixel_values"].mean(dim=(2, 3)) * 100).round().long()
        truth[tuple(task.tokens(task.clean(sample.captions[0])))] = int(
            (colours * torch.tensor([1, 1000, 1000000])).sum()
        )
    return Oracle(truth)


def evaluate(task, model, samples, batch_size=64, quick=False):
    settings = micro_run("unused", "retrieval", {"evaluate": {"batch_size": batch_size}}).evaluate.settings(quick)
    return task.evaluate(model, samples, settings)


def test_reranking_orders_the_candidates_by_the_match_logit(task):
    samples = caption_samples()
    model = oracle(task, samples)
    found = evaluate(task, model, samples)
    assert found.scores["TR@1"] == 100
    assert found.scores["IR@1"] == 100
    assert found.scores["itc/TR@1"] == 0  # equal scores count against the model
    means = {
        name: np.mean([np.mean(part) for part in found.averaged(name)]) for name in found.scores if "/" not in name
    }
    assert means == pytest.approx({name: found.scores[name] for name in means})
    assert {"TR@1", "IR@10", "R@mean"} <= means.keys()
    assert found.chance["TR@1"] == pytest.approx(100 / 8)
    assert model.pairs == 64  # 8 images x 8 texts, each pair once though both directions ask for it
    assert model.images == 8  # in one batch, each handed over once
    assert found.predictions[0]["texts"][0] == samples[0].captions[0]


def test_the_similarity_orders_candidates_as_far_as_its_weight_says(task):
    samples = caption_samples()
    model = oracle(task, samples)
    alone = evaluate(task, model, samples).scores["itc/TR@1"]
    rows = {row[0]: row[1:] for row in evaluate(task, model, samples).tables[0].rows}
    assert rows["embeddings alone"] == [alone, evaluate(task, model, samples).scores["itc/IR@1"]]
    assert rows["0"] == [100, 100]
    indices = np.array([[2, 0, 1]])
    candidates = Candidates(
        indices,
        np.array([[0.9, 0.5, 0.1]]),
        np.array([[0.0, 1.0]]),
        torch.tensor([3]),
        torch.tensor([0]),
        torch.arange(3),
    )
    assert candidates.order(0.0).tolist() == [[0, 2, 1]]  # the third has no match logit and stays behind
    assert candidates.order(2.4).tolist() == [[0, 2, 1]]  # 2.2 against 2.16
    assert candidates.order(2.6).tolist() == [[2, 0, 1]]  # 2.3 against 2.34
    assert candidates.ranks(candidates.order(2.6)).tolist() == [1]
    assert candidates._replace(query_ids=torch.tensor([7])).ranks(indices).tolist() == [3]


def test_joint_passes_never_exceed_the_batch_size(task):
    model = oracle(task, caption_samples())
    evaluate(task, model, caption_samples(), batch_size=3)
    assert model.most_rows == 3


def test_validation_leaves_out_the_second_stage(task):
    model = oracle(task, caption_samples())
    found = evaluate(task, model, caption_samples(), quick=True)
    assert model.pairs == 0
    assert "itc/TR@1" not in found.scores
    assert task.metric in found.scores


def test_the_report_holds_small_images_whatever_the_size_of_the_files(task):
    samples = [replace(sample, image=sample.image.resize((900, 600))) for sample in caption_samples()]
    found = evaluate(task, oracle(task, samples), samples)
    shown = [cell.image for gallery in found.galleries for row in gallery.rows for cell in row.cells if cell.image]
    assert len(shown) == (2 + 1) * 5 + (2 + 1)  # two drawn and one best, in both directions
    assert {picture.size for picture in shown} == {(384, 256)}


def test_samples_of_one_thing_are_right_answers_for_each_other(task):
    samples = caption_samples()
    twins = [*samples, *(replace(sample, key=sample.key + "2") for sample in samples)]
    found = evaluate(task, oracle(task, samples), twins)
    assert found.scores["TR@1"] == 100
    assert found.scores["IR@1"] == 100
    assert found.chance["IR@1"] == pytest.approx(100 * 2 / 16)  # 8 distinct texts, two right images each
    assert found.chance["TR@1"] == pytest.approx(100 / 8)


def test_a_image_that_cannot_be_read_is_left_out_and_named(task):
    samples = [*caption_samples(), replace(caption_samples()[0], key="broken", image=b"no image", match_id="broken")]
    found = evaluate(task, oracle(task, caption_samples()), samples)
    assert len(found.skipped) == 1
    assert "broken" in found.skipped[0]
    assert found.chance["TR@1"] == pytest.approx(100 / 8)


def test_an_embedding_travels_between_processes_without_its_batch(task, monkeypatch):
    class Wide(Oracle):
        def get_image_features(self, pixel_values):
            return torch.ones(len(pixel_values), 1000)

        def get_text_features(self, input_ids, attention_mask):
            return torch.ones(len(input_ids), 1000)

    sent = []
    monkeypatch.setattr("evle.distributed.gather_objects", lambda found: sent.append(len(pickle.dumps(found))) or found)
    evaluate(task, Wide({}), caption_samples(), quick=True)
    assert 8 * 4000 < max(sent) < 2 * 8 * 4000  # eight rows of float32, in one batch


def test_a_sweep_keeps_the_order_of_the_samples(task):
    samples = SAMPLES["retrieval"]()
    settings = micro_run("unused", "retrieval", {"evaluate": {"batch_size": 3}}).evaluate.settings(quick=True)
    predicted = predict_all(oracle(task, samples), samples, task, lambda keys, batch: keys, settings)
    assert list(predicted.results) == [sample.key for sample in samples]
    assert all(key == value for key, value in predicted.results.items())


def test_training_texts_mix_captions_and_tags_as_asked():
    sample = replace(caption_samples()[0], captions=("red apple", "an apple"), tags=("fruit", "round", "sweet"))

    def texts(**options):
        return {training_text(sample, CaptionConfig(**options), np.random.default_rng(seed)) for seed in range(60)}

    assert texts() == {"red apple", "an apple"}
    assert all(text.split(", ")[0] in ("fruit", "round", "sweet") for text in texts(tags_only=1.0))
    added = texts(tags=1.0, max_tags=2)
    assert all(text.split(", ")[0] in sample.captions and 2 <= len(text.split(", ")) <= 3 for text in added)
    assert len(added) > 6


def test_a_step_may_read_several_texts_of_each_image(tmp_path):
    contrast = {"objective_weights": {"itm": 0.0}}

    def prepared(model, **options):
        settings = {"task": {"k_test": 0, "texts_per_image": 3, **options}, "model": {"overrides": model}}
        return prepare(micro_run(tmp_path, "retrieval", settings), samples={"train": caption_samples()})

    task = prepared(contrast, tags=1.0).task
    rng = np.random.default_rng(0)
    samples = caption_samples()[:4]
    batch = task.collate_raw([task.features(sample, rng, train=True) for sample in samples])
    assert (len(batch["pixel_values"]), len(batch["input_ids"])) == (4, 12)
    ids = batch["match_ids"].reshape(4, 3)
    assert (ids == ids[:, :1]).all()
    assert len(ids[:, 0].unique()) == 4
    assert len(batch["input_ids"].unique(dim=0)) > 8
    with pytest.raises(ConfigError, match=r"task.texts_per_image=3: matching takes one text of each image; set"):
        prepared({})


def test_templates_frame_captions_and_single_tags_alone():
    sample = replace(caption_samples()[0], captions=("red apple",), tags=("fruit",))

    def texts(**options):
        return {training_text(sample, CaptionConfig(**options), np.random.default_rng(seed)) for seed in range(60)}

    frames = {"templates": ("a {}", "see {} here")}
    assert texts(**frames) == {"red apple"}
    assert texts(**frames, templated=0.5) == {"red apple", "a red apple", "see red apple here"}
    assert texts(**frames, templated=1.0, tags_only=1.0) == {"a fruit", "see fruit here"}
    assert texts(**frames, templated=1.0, tags=1.0) == {"red apple, fruit"}


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ({"templates": ("an image",)}, "once, where the text goes"),
        ({"templates": ("{} or {}",)}, "once, where the text goes"),
        ({"templated": 0.1}, "needs templates, such as"),
    ],
)
def test_a_template_has_one_place_for_the_text(options, line):
    with pytest.raises(ConfigError, match=line):
        CaptionConfig.build(options, "task")


@pytest.mark.parametrize("k_test", [0, 8])
def test_a_failed_query_shows_the_right_item_and_its_rank(k_test, tmp_path):
    """Embeddings that are all alike rank by order: the last of eight images is no text's among the first five."""
    changes = {"task": {"k_test": k_test}, "evaluate": {"examples": 8}}
    ready = prepare(micro_run(tmp_path, "retrieval", changes), samples={"train": caption_samples()})
    settings = micro_run(tmp_path, "retrieval", changes).evaluate.settings(quick=False)
    samples = caption_samples()
    model = Oracle({tuple(ready.task.read_text(sample.captions[0])): 0 for sample in samples})  # knows nothing
    galleries = {each.title: each for each in ready.task.evaluate(model, samples, settings).galleries}
    assert "Text to images: drawn at random" in galleries
    worst = next(row for row in galleries["Text to images: wrong"].rows if len(row.cells) > 5)
    assert [cell.mark for cell in worst.cells[:5]] == ["bad"] * 5
    assert re.fullmatch("right, rank [678]", worst.cells[5].text)
    assert any(
        re.search(r"\(right, rank [678]\)", row.cells[0].text) for row in galleries["Image to texts: wrong"].rows
    )
    if k_test:  # of embeddings that are all alike, none counts as right
        assert [len(row.cells) for row in galleries["Text to images: right"].rows] == [5] * 3
