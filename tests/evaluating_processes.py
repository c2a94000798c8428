"""What the evaluation tests run in two processes; a spawned process can import only a file with a plain name."""

import json
from pathlib import Path

import torch

from evle.recipe import prepare
from evle.tasks.sweep import sweep
from micro import caption_samples, micro_run, vqa_samples

SAMPLES = {"retrieval": caption_samples, "vqa": vqa_samples}


def scores(name: str) -> dict[str, float]:
    """What a fresh micro model scores on seven samples, an odd number, the same in every process."""
    samples = SAMPLES[name]()[:7]
    options = {"k_test": 3} if name == "retrieval" else {}
    changes = {"task": options, "evaluate": {"batch_size": 2}, "train": {"batch_size": 2}}
    config = micro_run(Path("unused"), name, changes)
    ready = prepare(config, samples={"train": samples})
    torch.manual_seed(0)
    return ready.task.evaluate(ready.loaded.model, samples, config.evaluate.settings(quick=False)).scores


def check_scores(process: int, expected: str) -> None:
    for name, alone in json.loads(expected).items():
        found = scores(name)
        assert found.keys() == alone.keys()
        assert all(abs(found[key] - alone[key]) < 1e-4 for key in alone), (name, found, alone)
    samples = caption_samples()[:7]
    ready = prepare(micro_run(Path("unused"), "retrieval", {"train": {"batch_size": 2}}), samples={"train": samples})
    settings = micro_run(Path("unused"), "retrieval", {"evaluate": {"batch_size": 2}}).evaluate.settings(quick=True)
    task = ready.task
    swept = sweep(
        ready.loaded.model, samples, task._image_features, task._collate_images, lambda keys, batch: keys, settings
    )
    assert list(swept.results) == [sample.key for sample in samples]
