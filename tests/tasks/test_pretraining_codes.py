"""MIM on codes that are clusters of a frozen encoder's features: learned once, kept with the weights."""

import hashlib

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from transformers import Dinov2Config, Dinov2Model

from evle.config import merge
from evle.data.samples import CaptionSample
from evle.engine.failures import Diverged
from evle.errors import ConfigError, DataError
from evle.models.eve import EVEForPreTraining
from evle.models.eve.codebook import nearest_codes
from evle.models.eve.targets import open_teacher
from evle.run.dry_run import rehearse
from evle.run.evaluation import evaluate
from evle.run.prepare import prepare
from evle.run.scoring import read_run
from evle.run.stages import train
from evle.tasks.pretraining import PreTrainingTask
from micro import COLOURS, caption_samples, micro_run

CODES = 6


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    folder = tmp_path_factory.mktemp("teacher")
    torch.manual_seed(0)
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 16, "patch_size": 8}
    model = Dinov2Model(Dinov2Config(**sizes))
    torch.nn.init.normal_(model.embeddings.patch_embeddings.projection.weight, std=0.5)
    model.save_pretrained(folder)
    return folder


def halves():
    """Images of two colours, one above the other: their patches are of several kinds."""
    samples = []
    for index, colour in enumerate(COLOURS):
        image = Image.new("RGB", (20, 20), colour)
        image.paste(COLOURS[index - 1], (0, 10, 20, 20))
        samples.append(CaptionSample(colour, image, (f"{colour} on {COLOURS[index - 1]}",)))
    return samples


def run(output, teacher, changes=None):
    task = {"mim_teacher": str(teacher), "mim_target": "codes", "mim_codes": CODES}
    return micro_run(output, "pretraining", merge({"task": task, "train": {"steps": 8}}, changes or {}))


def weights(folder):
    return load_file(folder / "model" / "model.safetensors")


def checksums(folder):
    return {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in folder.iterdir()}


def test_the_codes_are_directions_of_the_teachers_features_and_the_notes_name_them(teacher, tmp_path):
    ready = prepare(run(tmp_path, teacher), samples={"train": halves()})
    model = ready.loaded.model
    assert (model.config.mim_target_size, model.config.mim_code_width, model.codebook.shape) == (CODES, 8, (CODES, 8))
    batch = ready.task.on_device(next(iter(ready.loader.batches(0))), model.device)
    features = open_teacher(teacher, "features").targets(batch["pixel_values"], 2, 2)
    assert len(nearest_codes(features, model.codebook).unique()) == CODES
    assert any(f"MIM's {CODES} codes are clusters of 32 patches of 8 images" in line for line in ready.notes)


def test_an_interrupted_run_resumes_with_its_codes_to_the_same_weights(teacher, tmp_path):
    before = checksums(teacher)
    whole = run(tmp_path / "whole", teacher, {"train": {"save_every": 2}})
    samples = {"train": halves(), "val": halves()}
    train(whole, samples=samples)
    cut = whole.model_copy(update={"output": str(tmp_path / "cut")})
    calls = 0
    collate = PreTrainingTask.collate_raw

    def failing(self, features):
        nonlocal calls
        calls += 1
        if calls == 6:
            raise Diverged("the power went out")
        return collate(self, features)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(PreTrainingTask, "collate_raw", failing)
        with pytest.raises(Diverged):
            train(cut, samples=samples)
    train(cut, samples=samples)
    one, two = weights(tmp_path / "whole"), weights(tmp_path / "cut")
    assert one.keys() == two.keys()
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert not any("teacher" in name for name in one)  # it is not saved
    assert checksums(teacher) == before
    assert not any(each.requires_grad for each in open_teacher(teacher, "features").model.parameters())


def test_a_resume_takes_the_codes_of_the_checkpoint_not_those_of_changed_images(teacher, tmp_path, monkeypatch):
    """The codes are part of the weights: what is learned at the next start does not replace them."""
    config = run(tmp_path / "run", teacher, {"train": {"save_every": 2, "steps": 4}})
    collate, calls = PreTrainingTask.collate_raw, []

    def failing(self, features):
        calls.append(1)
        if len(calls) == 4:
            raise Diverged("the power went out")
        return collate(self, features)

    monkeypatch.setattr(PreTrainingTask, "collate_raw", failing)
    with pytest.raises(Diverged):
        train(config, samples={"train": halves()})
    (saved,) = (tmp_path / "run" / "checkpoints").glob("*/model.safetensors")
    codes = load_file(saved)["codebook"]

    def other_codes(task, model, samples):
        model.codebook.fill_(1.0)
        return "others"

    monkeypatch.setattr("evle.tasks.pretraining.learn_codes", other_codes)
    train(config, samples={"train": halves()})
    assert torch.equal(weights(tmp_path / "run")["codebook"], codes)


def test_an_evaluation_and_a_further_run_keep_the_codes(teacher, tmp_path):
    samples = {"train": halves(), "test": halves()}
    report = train(run(tmp_path / "first", teacher), samples=samples)
    codes = weights(tmp_path / "first")["codebook"]
    model = EVEForPreTraining.from_pretrained(tmp_path / "first" / "model")
    assert torch.equal(model.codebook, codes)
    again = evaluate(read_run(tmp_path / "first"), samples=halves(), output=tmp_path / "again")
    assert again.scores["val"] == pytest.approx(report.scores["test"])
    start = {"model": {"preset": None, "overrides": {}, "init": str(tmp_path / "first")}}
    others = [CaptionSample(each.key, each.image, each.captions) for each in caption_samples()]
    further = prepare(run(tmp_path / "further", teacher, start), samples={"train": others})
    assert torch.equal(further.loaded.model.codebook, codes)  # the head was trained for them
    fresh = merge(start, {"model": {"new_heads": True}, "task": {"mim_codes": 3}})
    learned = prepare(run(tmp_path / "fresh", teacher, fresh), samples={"train": others}).loaded.model.codebook
    assert learned.shape == (3, 8)
    assert learned.any()


def test_the_codes_of_hidden_patches_are_learned_by_heart(teacher, tmp_path):
    changes = {"model": {"overrides": {"objectives": ["mim"]}}, "task": {"image_mask_ratio": 0.5}}
    before = train(run(tmp_path / "short", teacher, merge(changes, {"train": {"steps": 1}})), samples=two_splits())
    after = train(run(tmp_path / "long", teacher, merge(changes, {"train": {"steps": 150}})), samples=two_splits())
    assert after.scores["test"]["loss_mim"] < 0.7 * before.scores["test"]["loss_mim"]


def two_splits():
    return {"train": halves(), "test": halves()}


@pytest.mark.parametrize("error", ["squared", "cosine"])
def test_features_are_learned_by_heart(error, teacher, tmp_path):
    target = {"mim_target": "features", "mim_codes": None, "mim_error": error}
    changes = {"task": target, "model": {"overrides": {"objectives": ["mim"]}}}
    before = train(run(tmp_path / "short", teacher, merge(changes, {"train": {"steps": 1}})), samples=two_splits())
    after = train(run(tmp_path / "long", teacher, merge(changes, {"train": {"steps": 150}})), samples=two_splits())
    assert after.scores["test"]["loss_mim"] < 0.7 * before.scores["test"]["loss_mim"]


def test_a_dry_run_learns_the_codes_too(teacher, tmp_path):
    config = run(tmp_path / "run", teacher)
    config = config.model_copy(update={"data": config.data.build({"train": {"source": "scenes", "count": 40}}, "data")})
    lines = rehearse(config).as_lines()
    assert any(f"MIM's {CODES} codes are clusters of" in line for line in lines), lines
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("changes", "kind", "message"),
    [
        ({"task": {"mim_codes": 33}}, DataError, r"set task\.mim_codes to at most \d+"),
        (
            {"task": {"mim_target": "features"}},
            ConfigError,
            "mim_codes=6 needs mim_teacher=FOLDER and mim_target=codes",
        ),
        ({"task": {"mim_error": "cosine"}}, ConfigError, "mim_error=cosine needs mim_teacher=FOLDER and mim_target=fe"),
        ({"task": {"mim_codes": None}}, ConfigError, r"gives features, not codes; set task\.mim_target=features, or"),
        ({"model": {"overrides": {"objectives": ["mlm"]}}}, ConfigError, "is for the objective mim, which is not min"),
    ],
)
def test_codes_that_cannot_be_learned_are_refused(changes, kind, message, teacher, tmp_path):
    with pytest.raises(kind if kind is DataError else ValueError, match=message):
        prepare(run(tmp_path, teacher, changes), samples={"train": halves()})


def test_images_that_cannot_be_read_are_left_out_of_the_codes(teacher, tmp_path):
    damaged = CaptionSample("damaged", b"no image", ("a thing",))
    ready = prepare(run(tmp_path, teacher), samples={"train": [*halves(), damaged]})
    assert any("32 patches of 8 images" in line for line in ready.notes)
    with pytest.raises(DataError, match="no image of the training samples can be read"):
        prepare(run(tmp_path, teacher), samples={"train": [damaged] * 3})
