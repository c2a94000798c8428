"""Evaluation over two real processes says what one process says; a sample that cannot be made ends none."""

import json
from dataclasses import replace

import pytest

from evaluating_processes import check_scores, scores
from evle.errors import DataError
from evle.run.prepare import prepare
from evle.run.stages import train
from micro import SAMPLES, Damaged, micro_run
from processes import run_on_two


def test_two_processes_score_each_sample_once():
    run_on_two(check_scores, json.dumps({name: scores(name) for name in ("retrieval", "vqa", "nlvr2")}))


@pytest.mark.parametrize(
    ("name", "family"),
    [
        *((name, "eve") for name in ("pretraining", "retrieval", "vqa", "nlvr2")),
        *((name, "vle") for name in ("pretraining", "vcr-q2a", "vcr-qa2r")),
    ],
)
def test_a_sample_that_cannot_be_made_is_left_out_and_ends_no_run(name, family, tmp_path):
    samples = Damaged(SAMPLES[name]())
    changes = {"train": {"steps": 2, "batch_size": 4}, "evaluate": {"examples": 8}}
    splits = dict.fromkeys(("train", "val", "test"), samples)
    report = train(micro_run(tmp_path, name, changes, family), samples=splits)
    assert report.scores["test"]
    assert [["sample 3: the fourth sample is damaged"]] in [table.rows for table in report.tables]


@pytest.mark.parametrize("name", ["pretraining", "retrieval", "vqa", "nlvr2"])
def test_two_samples_of_one_key_are_refused(name, tmp_path):
    samples = SAMPLES[name]()
    ready = prepare(micro_run(tmp_path, name), samples={"train": samples})
    settings = micro_run(tmp_path, name, {"evaluate": {"batch_size": 2}}).evaluate.settings(quick=True)
    twice = [*samples, replace(samples[1], key=samples[0].key)]
    with pytest.raises(DataError, match=f"two samples have the key '{samples[0].key}'.*give each sample its own key"):
        ready.task.evaluate(ready.loaded.model, twice, settings)
