"""VCR: texts, boxes and types of candidates by hand, the joint score, and the leaderboard's file."""

import csv
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from evle.config import dump_yaml
from evle.data.samples import Box, VCRSample
from evle.engine.steps import _num_rows
from evle.errors import ConfigError, DataError, SampleError
from evle.run import stages
from evle.run.config import read_stages
from evle.run.prepare import prepare
from evle.run.vcr import judge_vcr
from evle.tasks.vcr_q2ar import ReasonsForEachAnswer, judge, leaderboard
from micro import MICRO_VLE, Damaged, micro_run, vcr_samples, vqa_samples

PERSON, DOG, FAR = 0, 1, 2


def wide() -> VCRSample:
    """32 x 16 pixels, of which a model of 16 pixels sees columns 8 to 24, in patches of 8: a person fills the upper
    left of these, a dog the lower half; another person stands outside."""
    return VCRSample(
        "wide",
        Image.new("RGB", (32, 16)),
        (Box(9, 1, 6, 6, label="person"), Box(9, 9, 14, 6, label="dog"), Box(0, 0, 7, 16, label="person")),
        ("where", "is", (PERSON,), "?"),
        (("on", (DOG,)), ("near", (FAR, PERSON)), ("here",), ("there",)),
        (("because", (DOG, FAR), "fell"), ("so",), ("thus",), ("hence",)),
        answer_label=1,
        rationale_label=0,
    )


def task_of(tmp_path, name="vcr-q2a", **changes):
    return prepare(micro_run(tmp_path, name, changes, "vle"), samples={"train": [wide(), *vcr_samples()]}).task


def features(task, sample=None, train=False, seed=0):
    return task.features(sample or wide(), np.random.default_rng(seed), train=train)


def texts(task, found):
    return [task.processor.tokenizer.decode(tokens).replace(" ", "") for tokens in found["tokens"]]


def test_candidates_are_question_answer_and_reason(tmp_path):
    task = task_of(tmp_path, text={"clean": False})
    assert texts(task, features(task)) == [
        "[CLS]whereisCasey?[SEP]ondog[SEP]",
        "[CLS]whereisCasey?[SEP]nearRileyandCasey[SEP]",
        "[CLS]whereisCasey?[SEP]here[SEP]",
        "[CLS]whereisCasey?[SEP]there[SEP]",
    ]
    task = task_of(tmp_path, "vcr-qa2r", text={"clean": False})
    assert texts(task, features(task))[0] == "[CLS]whereisCasey?[SEP]nearRileyandCasey[SEP]becausedogandRileyfell[SEP]"


def test_boxes_go_through_the_images_own_geometry(tmp_path):
    """The person is patch 0, the dog patches 2 and 3; who stands outside keeps the type on the name, without a box."""
    task = task_of(tmp_path)
    found = features(task)
    assert found["box_types"] == [[2, 3], [2], [2], [2]]
    assert found["patches"][0].tolist() == [[True, False, False, False], [False, False, True, True]]
    assert found["patches"][1].tolist() == [[True, False, False, False]]
    assert set(found["types"][1]) == {0, 2, 3}  # Riley, out of sight, is of type 3
    flipped = task_of(tmp_path, image={"flip": 1.0, "scale": [1.0, 1.0], "framing": "centre"})
    assert features(flipped, train=True)["patches"][1].tolist() == [[False, True, False, False]]


@pytest.mark.parametrize("framing", ["whole", "pad"])
def test_every_object_of_a_wide_frame_keeps_its_box_token_in_training_and_test(framing, tmp_path):
    """A drawn frame of the released sample's size, with six objects from edge to edge, one less than a pixel high."""
    boxes = [(0, 300, 90, 400), (300, 100, 250, 600), (700, 50, 200, 700), (1000, 400, 60, 60), (1500, 0, 300, 90)]
    frame = Image.new("RGB", (1920, 797), "grey")
    for x, y, width, height in boxes:
        frame.paste("red", (x, y, x + width, y + height))
    objects = tuple(Box(*box, label="person") for box in [*boxes, (1890, 780, 30, 0.4)])
    question = ("who", "is", tuple(range(6)), "?")
    sample = replace(wide(), image=frame, objects=objects, question=question, answer_choices=(("yes",),) * 4)
    task = task_of(tmp_path, image={"framing": framing, "scale": [1.0, 1.0], "flip": 0.0})
    for train in (True, False):
        result = features(task, sample, train=train)
        assert result["box_types"] == [[2, 3, 4, 5, 6, 7]] * 4
        assert [patches.any(axis=1).sum() for patches in result["patches"]] == [6] * 4
    assert task_of(tmp_path).framing == "centre"
    assert len(features(task_of(tmp_path), sample)["box_types"][0]) == 2  # a centre crop loses four of six


def test_the_released_geometry_maps_boxes_over_the_whole_image(tmp_path):
    """The person's columns 9 to 15 of 32 lie in the left half, the dog's 9 to 23 in both, the other's in the left."""
    found = features(task_of(tmp_path, task={"released_boxes": True}))
    assert found["box_types"][:2] == [[2, 3], [2, 3]]
    assert found["patches"][0].tolist() == [[True, False, False, False], [False, False, True, True]]
    assert found["patches"][1].tolist() == [[True, False, False, False], [True, False, True, False]]


def test_the_released_geometry_is_refused_where_the_image_moves_away_from_its_boxes(tmp_path):
    released = {"task": {"released_boxes": True}}
    moves = {"image": {"flip": 0.5, "scale": [0.8, 1.0], "rand_augment": True}}
    cure = (
        r"set image\.scale=\[1\.0,1\.0\] image\.flip=0\.0 image\.rand_augment=null, or leave task\.released_boxes out$"
    )
    with pytest.raises(ConfigError, match=cure):
        task_of(tmp_path, **released, **moves)
    task_of(tmp_path, **moves)
    task_of(tmp_path, **released, image={"flip": 0.0, "scale": [1.0, 1.0], "erase": 1.0})


def test_left_and_right_keep_their_sides(tmp_path):
    task = task_of(tmp_path, image={"flip": 1.0, "scale": [1.0, 1.0], "framing": "centre"})
    sided = replace(wide(), question=("who", "is", "left", "of", (PERSON,)))
    assert features(task, sided, train=True)["patches"][2].tolist() == [[True, False, False, False]]


def test_what_cannot_be_used_is_named(tmp_path):
    task = task_of(tmp_path)
    with pytest.raises(SampleError, match="wide: a text names the object 7, but the image has 3"):
        features(task, replace(wide(), question=("who", "is", (7,))))
    with pytest.raises(SampleError, match="wide: a text names the object -1, but the image has 3"):
        features(task, replace(wide(), question=("who", "is", (0, -1))))
    fewer = replace(wide(), answer_choices=(("yes",), ("no",)))
    with pytest.raises(DataError, match=r"with 2 and with 4 candidates; give all the same number"):
        task.collate([features(task), features(task, fewer)])
    with pytest.raises(SampleError, match="wide: no label; training needs one"):
        features(task, replace(wide(), answer_label=None), train=True)
    with pytest.raises(SampleError, match=r"wide: a text names 2 objects, the model knows at most 1; raise task\.max"):
        features(task_of(tmp_path, task={"max_objects": 1}))
    with pytest.raises(SampleError, match="the right answer is not known"):
        features(task_of(tmp_path, "vcr-qa2r"), replace(wide(), answer_label=None))


def test_a_model_without_types_for_objects_is_refused(tmp_path):
    task = task_of(tmp_path)
    config = prepare(micro_run(tmp_path, "vqa", family="vle"), samples={"train": vqa_samples()}).loaded.model.config
    with pytest.raises(ConfigError, match="2 token types, none of them for the objects"):
        task.bind(config)


def test_padding_of_a_batch_does_not_change_a_samples_logits(tmp_path):
    ready = prepare(micro_run(tmp_path, "vcr-q2a", family="vle"), samples={"train": [wide(), *vcr_samples()]})
    task, model = ready.task, ready.loaded.model.eval()
    rows = [features(task), *(features(task, sample) for sample in vcr_samples()[:2])]
    with torch.no_grad():
        together = model(**task.collate(rows)).logits
        alone = torch.cat([model(**task.collate([row])).logits for row in rows])
    assert torch.allclose(together, alone, atol=1e-5)


def test_questions_about_one_image_share_it(tmp_path):
    ready = prepare(micro_run(tmp_path, "vcr-q2a", family="vle"), samples={"train": [wide(), *vcr_samples()]})
    task, model = ready.task, ready.loaded.model.eval()
    other = replace(wide(), key="other", question=("who", "is", "it", "?"))
    rows = [features(task, sample) for sample in (vcr_samples()[0], wide(), other)]
    batch = task.collate(rows)
    assert batch["image_rows"].tolist() == [0, 1, 1]
    assert len(batch["pixel_values"]) == 2
    with torch.no_grad():
        alone = torch.cat([model(**task.collate([row])).logits for row in rows])
        assert torch.allclose(model(**batch).logits, alone, atol=1e-5)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    samples = {"train": vcr_samples(), "test": vcr_samples()}
    for name in ("vcr-q2a", "vcr-qa2r"):
        stages.train(micro_run(folder / name, name, {"train": {"steps": 30}}, "vle"), samples=samples)
    return folder


def test_both_right_counts_and_the_file_holds_every_probability(runs, tmp_path):
    samples = vcr_samples()
    report = judge_vcr(runs / "vcr-q2a", runs / "vcr-qa2r", output=tmp_path, samples=samples)
    with open(tmp_path / "vcr_leaderboard.csv", newline="") as file:
        lines = list(csv.DictReader(file))
    assert [line["annot_id"] for line in lines] == [sample.key for sample in samples]
    counts = {"q2a": 0, "qa2r": 0, "q2ar": 0}
    for line, sample in zip(lines, samples, strict=True):
        answers = [float(line[f"answer_{answer}"]) for answer in range(4)]
        reasons = [[float(line[f"rationale_conditioned_on_a{answer}_{r}"]) for r in range(4)] for answer in range(4)]
        assert sum(answers) == pytest.approx(1, abs=1e-5)
        assert [sum(row) for row in reasons] == pytest.approx([1] * 4, abs=1e-5)
        answered = int(np.argmax(answers)) == sample.answer_label
        reasoned = int(np.argmax(reasons[sample.answer_label])) == sample.rationale_label
        counts["q2a"] += answered
        counts["qa2r"] += reasoned
        counts["q2ar"] += answered and reasoned
    assert report.scores["val"] == {name: 100 * count / 8 for name, count in counts.items()}
    assert report.scores["chance"] == {"q2a": 25.0, "qa2r": 25.0, "q2ar": 6.25}


def test_reasons_for_the_right_answer_are_those_of_the_task(runs, tmp_path):
    """Sixteen candidates at once give what the task's four give."""
    from evle.run.evaluation import load_trained
    from evle.run.scoring import read_run

    config = read_run(runs / "vcr-qa2r")
    model, four = load_trained(config, runs / "vcr-qa2r", type(task_of(tmp_path, "vcr-qa2r")))
    sixteen = load_trained(config, runs / "vcr-qa2r", ReasonsForEachAnswer)[1]
    settings = config.evaluate.settings(quick=False)
    found = four.evaluate(model, vcr_samples(), settings)
    q2a_model, q2a = load_trained(read_run(runs / "vcr-q2a"), runs / "vcr-q2a", type(task_of(tmp_path)))
    joint = judge(q2a_model, q2a, model, sixteen, vcr_samples(), settings)
    for sample, one, whole in zip(vcr_samples(), found.predictions, joint.predictions, strict=True):
        assert whole["reasons"][sample.answer_label] == pytest.approx(one["probabilities"], abs=2e-4)


def test_unlabelled_questions_have_a_file_and_no_scores(runs, tmp_path):
    hidden = [replace(sample, answer_label=None, rationale_label=None) for sample in vcr_samples()]
    report = judge_vcr(runs / "vcr-q2a", runs / "vcr-qa2r", output=tmp_path, samples=hidden)
    assert report.scores == {}
    assert len((tmp_path / "vcr_leaderboard.csv").read_text().splitlines()) == 9
    labelled = judge_vcr(runs / "vcr-q2a", runs / "vcr-qa2r", output=tmp_path / "two", samples=vcr_samples())
    assert labelled.scores
    assert (tmp_path / "two" / "vcr_leaderboard.csv").read_text() == (tmp_path / "vcr_leaderboard.csv").read_text()


def test_a_question_that_cannot_be_made_is_missing_from_the_file(runs, tmp_path):
    report = judge_vcr(runs / "vcr-q2a", runs / "vcr-qa2r", output=tmp_path, samples=Damaged(vcr_samples()))
    assert report.tables[0].rows == [["sample 3: the fourth sample is damaged"]]
    assert len((tmp_path / "vcr_leaderboard.csv").read_text().splitlines()) == 8


def test_a_model_folder_alone_is_scored_by_its_familys_way_to_read(runs, tmp_path):
    data = ["data.test.source=scenes", "data.test.split=test", "data.test.count=4", "evaluate.examples=1"]
    report = judge_vcr(runs / "vcr-q2a" / "model", runs / "vcr-qa2r" / "model", data, output=tmp_path)
    assert report.scores["test"].keys() == {"q2a", "qa2r", "q2ar"}
    assert report.provenance["config"]["q2a"]["text"] == {"max_length": 80, "max_words": 30, "clean": False}


def test_runs_in_each_others_place_are_refused(runs):
    with pytest.raises(ConfigError, match="vcr-qa2r is a run of the task vcr-qa2r; give one of vcr-q2a in its place"):
        judge_vcr(runs / "vcr-qa2r", runs / "vcr-q2a")


def test_the_leaderboards_columns_are_the_official_ones():
    header, line = leaderboard({"test-0": np.array([1, 0, 0, 0])}, {"test-0": np.eye(4)}).splitlines()
    assert header.split(",")[:5] == ["annot_id", "answer_0", "answer_1", "answer_2", "answer_3"]
    assert header.split(",")[5:7] == ["rationale_conditioned_on_a0_0", "rationale_conditioned_on_a0_1"]
    assert header.split(",")[-1] == "rationale_conditioned_on_a3_3"
    assert line.startswith("test-0,1.000000,0.000000,0.000000,0.000000,1.000000,0.000000")
    assert len(line.split(",")) == 21


RECIPE = {
    "defaults": {
        "model": {"preset": "vle-tiny", "overrides": MICRO_VLE},
        "tokenizer": {"vocab_size": 300},
        "data": {"train": {"source": "scenes", "count": 16}, "test": {"source": "scenes", "split": "test", "count": 8}},
        "train": {"steps": 2, "batch_size": 8},
        "evaluate": {"batch_size": 8, "examples": 1},
    },
    "stages": {"a": {"task": {"name": "vcr-q2a"}}, "r": {"task": {"name": "vcr-qa2r"}}},
    "vcr": {"both": ["a", "r"]},
}


def test_a_recipe_scores_two_stages_together_and_keeps_what_is_finished(tmp_path):
    (tmp_path / "r.yaml").write_text(dump_yaml(RECIPE))
    said: list[str] = []
    recipe = read_stages(tmp_path / "r.yaml", [f"output={tmp_path / 'out'}"])
    report = stages.train(recipe, on_stage=said.append)
    assert said[-1].startswith("[3/3] both: ")
    assert report.scores["both"].keys() == {"q2a", "qa2r", "q2ar"}
    assert ["vcr: q2ar", 6.25, report.scores["both"]["q2ar"]] in report.tables[0].rows
    assert any(line.startswith("vcr, q2ar: 6.25 by chance") for line in report.summary)
    stages.train(recipe, on_stage=said.append)
    assert said[-1] == "[3/3] both: finished before, kept"


@pytest.mark.parametrize(
    ("vcr", "message"),
    [
        ({"both": ["r", "a"]}, r"vcr\.both: \['r', 'a'\] must be two stages, of the tasks vcr-q2a and vcr-qa2r"),
        ({"both": ["a", "x"]}, r"must be two stages"),
        ({"both": "a"}, r"must be two stages"),
        ({"a": ["a", "r"]}, r"vcr\.a: a stage has that name already"),
    ],
)
def test_stages_that_do_not_go_together_are_refused(vcr, message, tmp_path):
    (tmp_path / "r.yaml").write_text(dump_yaml({**RECIPE, "vcr": vcr}))
    with pytest.raises(ConfigError, match=message):
        read_stages(tmp_path / "r.yaml")


def test_no_samples_are_refused(runs):
    with pytest.raises((ConfigError, DataError), match="no data to evaluate on"):
        judge_vcr(runs / "vcr-q2a", runs / "vcr-qa2r")


def test_a_batch_counts_its_questions_and_not_their_shared_image():
    assert _num_rows({"pixel_values": torch.zeros(1, 3, 8, 8), "image_rows": torch.zeros(4)}) == 4
    assert _num_rows({"pixel_values": torch.zeros(3, 3, 8, 8)}) == 3
