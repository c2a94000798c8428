"""Every task: learns eight samples by heart, and gives the same features for the same generator."""

import numpy as np
import pytest
import torch

from evle.run.prepare import prepare
from evle.run.stages import train
from evle.tasks import TASKS
from micro import SAMPLES, micro_run

LEARNT = {  # task -> steps, its score, and what counts as learnt
    "pretraining": (80, "mlm_accuracy", 75.0),
    "retrieval": (60, "R@mean", 99.0),
    "swaps": (120, "itc/accuracy", 99.0),
    "vqa": (60, "accuracy", 99.0),
    "nlvr2": (120, "accuracy", 99.0),
    "vcr-q2a": (80, "accuracy", 99.0),
    "vcr-qa2r": (160, "accuracy", 99.0),
}
EVERY = [(family, name) for name, task in TASKS.items() for family in task.models]
WITHIN_A_BATCH = {"loss", "loss_itm", "itm_accuracy"}  # its rows are each other's negatives


@pytest.mark.parametrize(("family", "name"), EVERY)
def test_a_task_learns_eight_samples_by_heart(family, name, tmp_path):
    steps, score, learnt = LEARNT[name]
    samples = SAMPLES[name]()
    options = {"k_test": 0} if name == "retrieval" else {}
    config = micro_run(tmp_path / "run", name, {"train": {"steps": steps}, "task": options}, family)
    report = train(config, samples={"train": samples, "test": samples})
    assert report.scores["test"][score] >= learnt
    assert (tmp_path / "run" / "report.html").is_file()


@pytest.mark.parametrize(("family", "name"), EVERY)
def test_features_are_a_function_of_the_generator(family, name, tmp_path):
    samples = SAMPLES[name]()
    ready = prepare(
        micro_run(tmp_path, name, {"image": {"scale": [0.5, 1.0], "flip": 0.5}}, family), samples={"train": samples}
    )
    one, two = (
        ready.task.collate([ready.task.features(sample, np.random.default_rng(7), train=True) for sample in samples])
        for _ in range(2)
    )
    assert one.keys() == two.keys()
    for key in one:
        assert torch.equal(one[key], two[key]), key
    raw = ready.task.collate_raw([ready.task.features(each, np.random.default_rng(7), train=True) for each in samples])
    assert raw["pixel_values"].dtype == torch.uint8
    ready_for_model = ready.task.on_device(raw, torch.device("cpu"))["pixel_values"]
    assert torch.equal(ready_for_model, one["pixel_values"])
    processor = ready.task.processor.image_processor
    for channel, (mean, std) in enumerate(zip(processor.image_mean, processor.image_std, strict=True)):
        expected = (raw["pixel_values"][..., channel, :, :] / 255 - mean) / std
        torch.testing.assert_close(ready_for_model[..., channel, :, :], expected, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize(("family", "name"), EVERY)
def test_an_evaluation_does_not_depend_on_batches_and_leaves_no_trace(family, name, tmp_path):
    samples = SAMPLES[name]()
    ready = prepare(micro_run(tmp_path, name, family=family), samples={"train": samples})
    model = ready.loaded.model.train()
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    settings = micro_run(tmp_path, name).evaluate.settings(quick=False)
    whole = ready.task.evaluate(model, samples, settings).scores
    assert torch.equal(torch.rand(1), expected)
    assert model.training
    small = micro_run(tmp_path, name, {"evaluate": {"batch_size": 3}}).evaluate.settings(quick=False)
    apart = ready.task.evaluate(model, samples, small).scores
    compared = {"vle": apart.keys() - WITHIN_A_BATCH, "eve": apart.keys()}[family]
    assert {each: apart[each] for each in compared} == pytest.approx({each: whole[each] for each in compared}, abs=1e-4)


def test_workers_get_the_task_by_pickle(tmp_path):
    samples = SAMPLES["vqa"]()
    config = micro_run(tmp_path, "vqa", {"train": {"num_workers": 1}})
    batches = list(prepare(config, samples={"train": samples}).loader.batches(0))
    alone = list(prepare(micro_run(tmp_path, "vqa"), samples={"train": samples}).loader.batches(0))
    assert torch.equal(batches[0]["pixel_values"], alone[0]["pixel_values"])
