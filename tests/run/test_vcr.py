"""Official files to report and submission: each reasoning source is read, trained on for two steps, and evaluated."""

import json

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from easy_vqa_package import write_easy_vqa
from evle.cli.main import app
from evle.data.sources import read_source
from evle.errors import ConfigError
from evle.run.evaluation import evaluate
from evle.run.prepare import prepare
from evle.run.reporting import split_read
from evle.run.scoring import read_run
from evle.run.stages import train
from micro import micro_run
from reasoning_corpora import nlvr2, vqav2, xvlm_pairs, xvlm_questions

QUESTIONS = {"source": "vqav2", "held_out": 2}
RUNS = {
    "vqav2": (
        "vqa",
        vqav2,
        {
            "train": {**QUESTIONS, "split": "trainval-minus-held-out"},
            "val": {**QUESTIONS, "split": "val-held-out"},
            "test": {**QUESTIONS, "split": "test-dev"},
        },
    ),
    "xvlm-vqa": (
        "vqa",
        xvlm_questions,
        {
            "train": {
                "source": "xvlm",
                "path": "{folder}/lists",
                "files": ["vqa_train.json", "vg_qa.json"],
                "images": "{folder}",
                "vg_images": "{folder}/genome",
            },
            "test": {"source": "xvlm", "path": "{folder}/lists", "split": "val", "images": "{folder}"},
        },
    ),
    "easy-vqa": (
        "vqa",
        write_easy_vqa,
        {"train": {"source": "easy-vqa", "split": "train"}, "test": {"source": "easy-vqa", "split": "test"}},
    ),
    "nlvr2": (
        "nlvr2",
        nlvr2,
        {
            "train": {"source": "nlvr2", "split": "train"},
            "val": {"source": "nlvr2", "split": "dev"},
            "test": {"source": "nlvr2", "split": "test1"},
        },
    ),
    "xvlm-nlvr2": (
        "nlvr2",
        xvlm_pairs,
        {
            split: {"source": "xvlm", "path": "{folder}/lists", "split": name, "images": "{folder}"}
            for split, name in (("train", "train"), ("val", "dev"), ("test", "test"))
        },
    ),
}
SUBMITTED = {"vqav2": "vqa_submission.json", "xvlm-vqa": "vqa_submission.json", "nlvr2": "nlvr2_submission.csv"}


def below(tree, folder):
    """Options with {folder} filled in."""
    if isinstance(tree, dict):
        return {name: below(value, folder) for name, value in tree.items()}
    return tree.replace("{folder}", str(folder)) if isinstance(tree, str) else tree


@pytest.mark.parametrize("family", ["eve", "vle"])
@pytest.mark.parametrize("name", RUNS)
def test_official_files_become_a_report_and_a_submission(name, family, tmp_path):
    task, write, data = RUNS[name]
    folder = write(tmp_path / "data")
    changes = {"data": {"path": str(folder), **below(data, folder)}, "train": {"steps": 2}}
    run = tmp_path / "run"
    config = micro_run(run, task, changes, family)
    report = train(config)
    assert (run / "report.html").is_file()
    again = evaluate(read_run(run))
    for found, where in ((report, run), (again, run / "evaluation")):
        predictions = [json.loads(line) for line in (where / "predictions.jsonl").read_text().splitlines()]
        files = sorted(path.name for path in where.iterdir() if "submission" in path.name)
        assert files == ([SUBMITTED[name]] if name in SUBMITTED else [])
        if name == "vqav2":  # the answers of test-dev are not public: predictions, and no scores
            assert "test" not in found.scores
            assert len(predictions) == 3
        else:
            assert found.scores[split_read(config.data, "test")].keys() >= (
                {"accuracy", "consistency"} if task == "nlvr2" else {"accuracy"}
            )
        if name in SUBMITTED:
            assert f"to submit: {SUBMITTED[name]}" in found.summary
            text = (where / SUBMITTED[name]).read_text()
            if task == "vqa":
                submitted = {str(each["question_id"]): each["answer"] for each in json.loads(text)}
                assert submitted == {each["key"]: each["answer"] for each in predictions}
            else:
                submitted = dict(line.split(",") for line in text.splitlines())
                assert submitted == {each["key"]: each["verdict"].title() for each in predictions}
                assert len(submitted) == 8


def test_the_command_line_writes_the_answers_of_official_files(tmp_path):
    """Of each of 14 images a colour (8 of them, of train and val), yes or no, and how many: 1 of all."""
    folder, file = vqav2(tmp_path / "data"), tmp_path / "answers.json"
    words = ["data", "answers", "vqav2", f"path={folder}", "split=trainval", "-o", str(file), "--min-count", "9"]
    result = CliRunner().invoke(app, words)
    assert result.exit_code == 0, result.output
    answers = json.loads(file.read_text())
    assert answers[0] == "1"
    assert set(answers) <= {"1", "yes", "no"}
    assert f"{file}: {len(answers)} of 11 answers" in result.output
    result = CliRunner().invoke(app, [*words[:4], "-o", str(file), "--min-count", "900"])
    assert (result.exit_code, "lower --min-count" in result.output) == (2, True)


def test_accuracy_is_broken_down_by_the_official_types(tmp_path):
    folder = vqav2(tmp_path / "data")
    data = {"path": str(folder), "train": {"source": "vqav2"}, "test": {"source": "vqav2", "split": "val"}}
    scores = train(micro_run(tmp_path / "run", "vqa", {"data": data, "train": {"steps": 2}})).scores["val"]
    assert set(scores) == {
        "accuracy",
        *(f"accuracy/answer/{name}" for name in ("yes/no", "number", "other")),
        *(f"accuracy/question/{name}" for name in ("what color is", "is it", "how many")),
    }
    parts = [scores[f"accuracy/answer/{name}"] for name in ("yes/no", "number", "other")]
    assert scores["accuracy"] == pytest.approx(sum(parts) / 3)  # six questions of each


def test_an_unreadable_image_is_left_out_named_and_missing_from_the_submission(tmp_path):
    folder = vqav2(tmp_path / "data")
    next((folder / "test2015").iterdir()).write_bytes(b"no image")
    data = {"path": str(folder), "train": {"source": "vqav2"}, "test": {"source": "vqav2", "split": "test"}}
    report = train(micro_run(tmp_path / "run", "vqa", {"data": data, "train": {"steps": 2}}))
    assert "to submit: vqa_submission.json (without 3 samples that could not be read)" in report.summary
    assert len(json.loads((tmp_path / "run" / "vqa_submission.json").read_text())) == 9


@pytest.mark.parametrize(
    "val",
    [
        {"source": "vqav2", "split": "test-dev"},
        {"source": "nlvr2", "split": "test1"},
        {"source": "xvlm", "files": ["nlvr_dev.json", "nlvr_test.json"]},
        {"source": "xvlm", "path": "lists/vqa_test.json"},
    ],
)
def test_the_best_weights_are_never_chosen_on_test_data(val, tmp_path):
    with pytest.raises(
        ConfigError, match=r"val reads the (split|files|path) '.*test.*': the best weights would be chos"
    ):
        micro_run(tmp_path, "vqa", {"data": {"val": val}})


def test_names_that_only_sound_like_test_are_allowed(tmp_path):
    for path in ("latest/contest.json", "test-drive/val.json", "testimonials.json"):
        config = micro_run(tmp_path, "vqa", {"data": {"val": {"source": "xvlm", "path": path}}})
        assert config.data.val["path"] == path


def test_left_and_right_keep_their_sides(tmp_path):
    """With flip 1 every image is mirrored, but not where the question says left."""
    folder = vqav2(tmp_path / "data")
    samples = read_source("vqav2", {"path": str(folder), "task": "vqa"})
    ready = prepare(micro_run(tmp_path, "vqa", {"image": {"flip": 1.0}}), samples={"train": samples})
    sided = next(sample for sample in samples if "left" in sample.question)
    plain = next(sample for sample in samples if "left" not in sample.question)
    half = Image.new("RGB", (16, 16))
    half.paste("white", (0, 0, 8, 16))
    for sample, mirrored in ((sided, False), (plain, True)):
        seen = ready.task.read_image(half, np.random.default_rng(0), True, sample.question)
        assert bool(seen[0, 8, 2] < 128) is mirrored
    for text in ("What is on the left?", "the right-hand door", "the LEFTMOST cup"):
        assert ready.task.read_image(half, np.random.default_rng(0), True, text)[0, 8, 2] > 128, text
