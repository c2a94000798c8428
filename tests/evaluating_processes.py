"""What the evaluation tests run in two processes; a spawned process can import only a file with a plain name."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch

from evle.data.samples import Sample
from evle.run.prepare import prepare
from evle.tasks.predict import predict_all
from evle.tasks.task import Evaluation
from micro import caption_samples, micro_run, nlvr2_samples, vqa_samples


def numbered_questions() -> list[Sample]:
    return [replace(sample, key=str(1000 + place)) for place, sample in enumerate(vqa_samples())]


def numbered_pairs() -> list[Sample]:
    """Four sentences, each of two pairs of images."""
    pairs = enumerate(nlvr2_samples())
    return [replace(sample, key=f"dev-1-{place % 2}-{place // 2}") for place, sample in pairs]


SAMPLES = {"retrieval": caption_samples, "vqa": numbered_questions, "nlvr2": numbered_pairs}


def measured(name: str) -> tuple[Sequence[Sample], Evaluation]:
    """Seven samples, an odd number, and what a fresh micro model, the same in every process, makes of them."""
    samples = SAMPLES[name]()[:7]
    options = {"k_test": 3} if name == "retrieval" else {}
    changes = {"task": options, "evaluate": {"batch_size": 2}, "train": {"batch_size": 2}}
    config = micro_run(Path("unused"), name, changes)
    ready = prepare(config, samples={"train": samples})
    torch.manual_seed(0)
    return samples, ready.task.evaluate(ready.loaded.model, samples, config.evaluate.settings(quick=False))


def scores(name: str) -> dict[str, float]:
    return measured(name)[1].scores


def check_scores(process: int, expected: str) -> None:
    for name, alone in json.loads(expected).items():
        samples, evaluation = measured(name)
        found = evaluation.scores
        assert found.keys() == alone.keys()
        assert all(abs(found[key] - alone[key]) < 1e-4 for key in alone), (name, found, alone)
        if name == "retrieval":
            continue
        # Batches of two rows on each of two processes: the last batch is filled up, and nothing of it counts twice.
        assert [each["key"] for each in evaluation.predictions] == [sample.key for sample in samples]
        (text,) = evaluation.files.values()
        submitted = [each["question_id"] for each in json.loads(text)] if name == "vqa" else text.splitlines()
        assert len(submitted) == 7
    samples = caption_samples()[:7]
    ready = prepare(micro_run(Path("unused"), "retrieval", {"train": {"batch_size": 2}}), samples={"train": samples})
    settings = micro_run(Path("unused"), "retrieval", {"evaluate": {"batch_size": 2}}).evaluate.settings(quick=True)
    task = ready.task
    predicted = predict_all(ready.loaded.model, samples, task, lambda keys, batch: keys, settings)
    assert list(predicted.results) == [sample.key for sample in samples]
