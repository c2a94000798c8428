"""What pre-training makes of a sample: only what the objectives need, and boxes that stay on their things."""

from collections import Counter
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from evle.data.samples import Box, CaptionSample
from evle.errors import ConfigError
from evle.models.vle.pretraining import black_out
from evle.run.prepare import prepare
from evle.tasks.pretraining import _scores, read_classes
from evle.tasks.pretraining_images import _related
from micro import caption_samples, micro_run

IGNORED = -100
TOKENS = {"pixel_values", "input_ids", "attention_mask"}
NEEDED = {
    "mim": {"image_mask", "visible"},
    "mlm": {"masked_input_ids", "mlm_labels", "masked_tokens"},
    "itc": {"match_ids"},
    "itm": {"match_ids", "match_rows"},
    "pbc": {"pbc_labels"},
    "mpc": {"mpc_patches", "mpc_labels", "mpc_rows", "black"},
}


def task_of(tmp_path, samples, family="vle", objectives=("mlm", "itm", "mpc", "pbc"), **task):
    changes = {"model": {"overrides": {"objectives": list(objectives)}}, "task": task}
    train = [*samples, *(replace(sample, key=f"{sample.key} again") for sample in samples)]
    return prepare(micro_run(tmp_path, "pretraining", changes, family), samples={"train": train}).task


def scene() -> CaptionSample:
    """32 x 16 pixels: a red ball in the middle's upper left, a blue cube at its lower right, a dog that is cropped."""
    image = Image.new("RGB", (32, 16), "white")
    image.paste("red", (8, 0, 16, 8))
    image.paste("blue", (17, 9, 23, 15))
    boxes = (
        Box(8, 0, 8, 8, label="ball", phrase="red ball"),
        Box(17, 9, 6, 6, label="cube", phrase="the Blue cube"),
        Box(0, 0, 6, 16, label="dog", phrase="dog"),
    )
    return CaptionSample("scene", image, ("a red ball, and something blue",), boxes=boxes)


def features(task, sample, train=False, seed=0):
    return task.features(sample, np.random.default_rng(seed), train=train)


@pytest.mark.parametrize(
    ("family", "objectives"),
    [
        ("eve", ("mim", "mlm")),
        ("eve", ("mlm", "itc")),
        ("vle", ("mlm", "itm", "mpc", "pbc")),
        ("vle", ("mpc",)),
        ("vle", ("pbc", "itc")),
    ],
)
def test_a_batch_holds_what_the_objectives_need_and_no_more(family, objectives, tmp_path):
    task = task_of(tmp_path, caption_samples(), family, objectives)
    batch = task.collate([features(task, sample) for sample in caption_samples()])
    needed = TOKENS.union(*(NEEDED[name] for name in objectives))
    assert batch.keys() == needed


def test_a_phrase_belongs_to_its_box_and_to_no_other(tmp_path):
    """At 16 pixels in patches of 8, the middle of the image has the ball in patch 0 and the cube in patch 3."""
    task = task_of(tmp_path, [scene()], phrases=1.0)
    texts = task.processor.tokenizer
    seen = {}
    for seed in range(20):
        found = features(task, scene(), seed=seed)
        seen[texts.decode(found["tokens"], skip_special_tokens=True).strip()] = found["pbc_labels"].tolist()
    assert seen == {"red ball": [1, 0, 0, 0], "the blue cube": [0, 0, 0, 1], "dog": [IGNORED] * 4}  # dog: cropped away


def test_a_phrase_takes_no_part_in_matching_as_other_images_may_show_the_same(tmp_path):
    for share, matched in ((1.0, False), (0.0, True)):
        task = task_of(tmp_path, [scene()], phrases=share)
        ids = task.collate([features(task, scene(), seed=seed) for seed in range(3)])["match_ids"]
        assert ((ids != IGNORED) == matched).all()


@pytest.mark.parametrize("objectives", [("itm",), ("itc",)])
def test_a_caption_that_is_a_boxs_phrase_takes_no_part_in_matching_and_contrast(objectives, tmp_path):
    """As Visual Genome's regions are read in pairs, also without PBC and the option phrases."""
    family = "vle" if objectives == ("itm",) else "eve"
    region = replace(scene(), captions=("The red ball.",), boxes=(replace(scene().boxes[0], phrase="the red ball"),))
    task = task_of(tmp_path, [region, scene()], family, objectives=objectives)
    assert features(task, region, train=True)["match"] is None
    assert features(task, region)["match"] is None
    assert features(task, scene(), train=True)["match"] == "scene"


@pytest.mark.parametrize(("family", "objective"), [("vle", "itm"), ("vle", "itc"), ("eve", "itm"), ("eve", "itc")])
def test_a_batch_of_phrases_alone_has_finite_losses(family, objective, tmp_path):
    region = replace(scene(), captions=("red ball",))
    changes = {"model": {"overrides": {"objectives": ["mlm", objective]}}}
    train = [replace(region, key=str(number)) for number in range(8)]
    ready = prepare(micro_run(tmp_path, "pretraining", changes, family), samples={"train": train})
    batch = ready.task.collate([features(ready.task, region, train=True, seed=seed) for seed in range(3)])
    loss = ready.loaded.model(**batch).loss
    loss.backward()
    assert loss.isfinite()


def test_all_boxes_of_the_phrase_are_related(tmp_path):
    boxes = (Box(8, 0, 8, 8, phrase="a wall"), Box(16, 8, 8, 8, phrase="A wall"), Box(8, 8, 8, 8, phrase="a dog"))
    sample = replace(scene(), captions=("a wall",), boxes=boxes)
    assert features(task_of(tmp_path, [sample], objectives=("pbc",)), sample)["pbc_labels"].tolist() == [1, 0, 0, 1]


def test_a_caption_belongs_to_the_boxes_it_names_and_says_nothing_of_others(tmp_path):
    """It names the ball by its phrase; the cube it may mean too, in other words."""
    task = task_of(tmp_path, [scene()])
    assert features(task, scene())["pbc_labels"].tolist() == [1, 0, 0, IGNORED]


def test_boxes_are_mirrored_with_their_image(tmp_path):
    changes = {"image": {"flip": 1.0, "scale": [1.0, 1.0], "framing": "centre"}}
    train = [scene(), replace(scene(), key="scene again")]
    task = prepare(micro_run(tmp_path, "pretraining", changes, "vle"), samples={"train": train}).task
    found = features(task, scene(), train=True)
    assert found["pbc_labels"].tolist() == [0, 1, IGNORED, 0]
    assert found["image"][0, 0, 12] > 200  # the ball is red
    assert found["image"][1, 0, 12] < 50


def test_a_hidden_thing_leaves_no_pixel_to_see_and_its_class_to_tell(tmp_path):
    task = task_of(tmp_path, [scene()], objectives=("mpc",))
    assert task.classes == ("ball", "cube", "dog")
    hidden = Counter()
    for seed in range(20):
        batch = task.collate([features(task, scene(), seed=seed)])
        pixels = black_out(batch["pixel_values"], batch["mpc_patches"], batch["black"])
        shown = task.processor.image_processor
        mean, std = (torch.tensor(values)[:, None, None] for values in (shown.image_mean, shown.image_std))
        red, green, blue = (pixels[0] * std + mean).round(decimals=3)
        label = task.classes[batch["mpc_labels"]]
        hidden[label] += 1
        assert not ((red > 0.6) & (green < 0.4)).any() if label == "ball" else not ((blue > 0.6) & (red < 0.4)).any()
        assert (red[batch["mpc_patches"].view(2, 2).kron(torch.ones(8, 8)).bool()] == 0).all()  # black is black
    assert hidden.keys() == {"ball", "cube"}  # the dog is out of sight


def test_a_image_without_known_things_hides_none(tmp_path):
    task = task_of(tmp_path, [scene()], max_object_classes=1)
    bare = CaptionSample("bare", Image.new("RGB", (16, 16)), ("a cube",), boxes=(Box(0, 0, 8, 8, label="cube"),))
    found = features(task, bare)
    assert found["mpc_label"] == IGNORED
    assert not found["mpc_patches"].any()


def test_classes_come_from_a_file_or_from_the_most_frequent_boxes(tmp_path):
    twice = CaptionSample("twice", Image.new("RGB", (16, 16)), ("x",), boxes=(Box(0, 0, 8, 8, label="dog"),))
    assert task_of(tmp_path, [scene(), twice], max_object_classes=2).classes == ("dog", "ball")
    file = tmp_path / "classes.txt"
    file.write_text("cube\n\nball\ncube\n")
    task = task_of(tmp_path, [scene()], object_classes=str(file))
    assert task.classes == ("cube", "ball")
    file.write_text("\n")
    with pytest.raises(ConfigError, match=r"classes\.txt: holds no class"):
        read_classes(str(file))
    with pytest.raises(ConfigError, match=r"nowhere: cannot be read as a list of classes"):
        read_classes("nowhere")


def test_mpc_without_boxes_is_refused(tmp_path):
    bare = [CaptionSample("a", Image.new("RGB", (16, 16)), ("x",))]
    with pytest.raises(ConfigError, match=r"the objective mpc needs boxes with classes.*leave mpc out"):
        task_of(tmp_path, bare)
    assert task_of(tmp_path, bare, objectives=("mlm",)).classes == ()


def test_scores_weigh_each_batch_by_what_it_judged():
    """Two batches of one row. mlm: 3 hidden tokens at loss 1, 1 at loss 5: (3 + 5) / 4 = 2. pbc: patches 0.9 and 0.2
    of the first row, -0.5 of the second; ranked, the truths stand first and third: (1 + 2/3) / 2 = 5/6."""
    rows = [
        {
            "losses": {"mlm": (1.0, 3.0), "itm": (0.5, 3.0), "mpc": (2.0, 1.0), "pbc": (0.25, 2.0)},
            "mlm": 2.0, "itm": 2.0, "itm_matches": 1.0, "mpc": 1.0, "mpc_label": 4.0,
            "pbc": (np.array([0.9, 0.2]), np.array([True, False])),
        },
        {
            "losses": {"mlm": (5.0, 1.0), "itm": (0.5, 3.0), "mpc": (9.0, 0.0), "pbc": (1.0, 1.0)},
            "mlm": 0.0, "itm": 3.0, "itm_matches": 1.0, "mpc": 0.0, "mpc_label": -100.0,
            "pbc": (np.array([-0.5]), np.array([True])),
        },
    ]  # fmt: skip
    scores, chance = _scores(rows)
    assert scores == pytest.approx(
        {
            "loss": 2 + 0.5 + 2 + 0.5, "loss_mlm": 2.0, "loss_itm": 0.5, "loss_mpc": 2.0, "loss_pbc": 0.5,
            "mlm_accuracy": 50.0, "itm_accuracy": 100 * 5 / 6, "mpc_accuracy": 100.0,
            "pbc_accuracy": 100 / 3, "pbc_average_precision": 100 * 5 / 6,
        }
    )  # fmt: skip
    assert chance == pytest.approx(
        {
            "itm_accuracy": 100 * 4 / 6, "mpc_accuracy": 100.0,
            "pbc_accuracy": 100 * 2 / 3, "pbc_average_precision": 100 * 2 / 3,
        }
    )  # fmt: skip


def test_patches_that_the_text_leaves_open_count_neither_right_nor_wrong(tmp_path):
    """Four patches: right, open, wrong, right: 67 % of three. A row that is open throughout is not shown."""
    task = task_of(tmp_path, caption_samples())
    margins = torch.tensor([3.0, 3.0, 3.0, -3.0])
    output = SimpleNamespace(pbc_logits=torch.stack([-margins / 2, margins / 2], dim=-1).expand(2, 4, 2))
    labels = torch.tensor([[1, IGNORED, 0, 0], [IGNORED] * 4])
    found = _related(task, output, {"pixel_values": torch.zeros(2, 3, 16, 16), "pbc_labels": labels})
    assert found.keys() == {0}
    assert found[0][0].text == "67 % of the patches right"
    truth = np.asarray(found[0][1].image.convert("L")).astype(int)
    corners = [truth[y, x] for y, x in ((1, 1), (1, -2), (-2, 1))]
    assert corners[0] > corners[1] > corners[2]  # belongs, left open, does not


def test_an_evaluation_reports_each_experts_load_by_modality(tmp_path):
    ready = prepare(micro_run(tmp_path, "pretraining"), samples={"train": caption_samples()})
    settings = micro_run(tmp_path, "pretraining").evaluate.settings(quick=False)
    scores = ready.task.evaluate(ready.loaded.model, caption_samples(), settings).scores
    for modality in ("image", "text"):
        loads = [scores[f"router_{modality}_load_{expert}"] for expert in range(2)]
        assert sum(loads) == pytest.approx(100)
        assert 0 <= scores[f"router_{modality}_entropy"] <= np.log(2) + 1e-6
