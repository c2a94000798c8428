"""NLVR version 1 is read from its official layout, one sample per image; what is wrong is one line."""

import json
import pickle
from pathlib import Path

import numpy as np
import pytest
from PIL import ImageChops

import corpora
from evle.data.corpora.nlvr import nlvr
from evle.data.images import open_image
from evle.data.synthetic.boxes import BoxesDrawing, random_boxes
from evle.errors import ConfigError, DataError


def line(identifier, **fields):
    return {
        "identifier": identifier,
        "sentence": f"There is {identifier}.",
        "label": "true",
        "directory": "5",
        **fields,
    }


def write(folder, *records, split="train"):
    file = folder / split / f"{split}.json"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(json.dumps(record) + "\n" for record in records))
    for record in records:
        for order in range(6):
            corpora.save(folder / split / f"images/5/{split}-{record['identifier']}-{order}.png", "red")
    return folder


@pytest.mark.parametrize("at", ["", "train", "train/train.json"])
def test_each_order_of_the_boxes_is_a_sample(tmp_path, at):
    write(tmp_path, line("72-0"), line("72-1", label="false"))
    samples = nlvr(tmp_path / at)
    assert len(samples) == 12
    assert samples[7].key == "train-72-1-1"
    assert samples[7].image == str(tmp_path / "train/images/5/train-72-1-1.png")
    assert (samples[7].question, samples[7].answers) == ("There is 72-1.", ("false",))
    assert samples[0].answers == ("true",)
    # The official evaluator's consistency is that of a sentence: its number is the first of the identifier.
    assert {sample.set_id for sample in samples} == {"train-72"}
    assert [sample.key for sample in nlvr(tmp_path / at, orders=1)] == ["train-72-0-0", "train-72-1-0"]


def test_the_folder_nlvr_of_the_repository_is_found(tmp_path):
    write(tmp_path / "nlvr", line("1-0"), split="dev")
    assert len(nlvr(tmp_path, split="dev")) == 6


def test_lines_without_directory_have_their_images_looked_up(tmp_path):
    """As in the corpus as it first appeared."""
    records = [{name: value for name, value in line(key).items() if name != "directory"} for key in ("1-0", "2-0")]
    write(tmp_path, *records)
    (tmp_path / "train/images/5/train-2-0-0.png").rename(tmp_path / "train/images/train-2-0-0.png")
    samples = nlvr(tmp_path, orders=1)
    assert [Path(sample.image).relative_to(tmp_path / "train/images").as_posix() for sample in samples] == [
        "5/train-1-0-0.png",
        "train-2-0-0.png",
    ]
    assert all(open_image(sample.image) for sample in samples)
    with pytest.raises(DataError, match="no field 'directory', but 'Directory'"):
        nlvr(write(tmp_path / "other", {**records[0], "Directory": "5"}))


def test_labels_may_be_absent_and_sentences_not(tmp_path):
    hidden = line("2-0")
    del hidden["label"]
    write(tmp_path, hidden, line("3-0", sentence="None"), split="test")
    samples = nlvr(tmp_path, split="test")
    assert {sample.answers for sample in samples} == {()}
    assert samples.skipped == [f"{tmp_path / 'test/test.json'}:2 (3-0): no sentence"]


@pytest.mark.parametrize(
    ("records", "options", "message"),
    [
        ([line("1-0")], {"split": "dve"}, "nlvr has no split 'dve'; did you mean 'dev'"),
        ([line("1-0")], {"orders": 7}, "orders=7 must be from 1 to 6"),
        ([line("1-0")], {"task": "nlvr2"}, "source 'nlvr' holds vqa, not 'nlvr2'"),
        ([line("1-0")], {"images": "gone"}, "gone: no such folder"),
        ([line("1-0")], {"split": "dev"}, "no dev.json there, nor in dev, nlvr/dev"),
        ([line("1-0"), line("1-0")], {}, "identifier '1-0' appears 2 times"),
        ([line("1-0", label="perhaps")], {}, "train.json:1: label 'perhaps' is neither True nor False"),
        ([line("train-1-0-0")], {}, "'train-1-0-0' is not of the form SET-EXAMPLE; is it NLVR version 1?"),
        ([{**line("1-0"), "directory": None}], {}, "train.json:1: directory is empty"),
        ([], {}, "no sentence; download the file again"),
    ],
)
def test_what_is_wrong_is_one_line(tmp_path, records, options, message):
    (tmp_path / "train/images").mkdir(parents=True)
    write(tmp_path, *records)
    with pytest.raises((ConfigError, DataError)) as refused:
        nlvr(tmp_path, **options)
    assert message in str(refused.value)
    assert "\n" not in str(refused.value)


def stated(boxes):
    names = {"black": "Black", "yellow": "Yellow", "blue": "#0099ff"}
    return [
        [
            {"y_loc": item.y, "size": item.size, "type": item.shape, "x_loc": item.x, "color": names[item.colour]}
            for item in box
        ]
        for box in boxes
    ]


def test_images_that_were_not_fetched_are_drawn_from_what_the_lines_state(tmp_path):
    made = [random_boxes(np.random.default_rng(seed), towers=seed % 2 == 0) for seed in range(4)]
    (tmp_path / "dev").mkdir()
    lines = [json.dumps(line(f"{number}-0", structured_rep=stated(boxes))) for number, boxes in enumerate(made)]
    (tmp_path / "dev/dev.json").write_text("\n".join(lines) + "\n")
    samples = pickle.loads(pickle.dumps(nlvr(tmp_path, split="dev")))
    assert [sample.key for sample in samples][:7] == [*(f"dev-0-0-{order}" for order in range(6)), "dev-1-0-0"]
    assert samples.describe()["images"] == "drawn from structured_rep"
    for boxes, sample in zip(made, samples[::6], strict=True):
        assert not ImageChops.difference(open_image(sample.image), BoxesDrawing(boxes).draw()).getbbox()
    last = BoxesDrawing(made[1][::-1]).draw()
    assert not ImageChops.difference(open_image(samples[11].image), last).getbbox()
    orders = {open_image(sample.image).tobytes() for sample in samples[6:12]}
    assert len(orders) == 6
    with pytest.raises(DataError, match="images: no such folder"):  # given, but not there
        nlvr(tmp_path, split="dev", images=tmp_path / "images")


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (None, "structured_rep must be a list of three lists, not 'None'"),
        ([[], []], "structured_rep must be a list of three lists"),
        ([[], [], [{"type": "star", "color": "Black", "size": 10, "x_loc": 0, "y_loc": 0}]], "has .*'star'"),
        ([[], [], [{"type": "circle", "color": "red", "size": 10, "x_loc": 0, "y_loc": 0}]], "has .*'red'"),
        ([[], [], [{"type": "circle", "color": "Black", "size": 10, "x_loc": "left", "y_loc": 0}]], "has .*'left'"),
        ([[], [], [{"type": "circle", "color": "Black", "size": 1e999, "x_loc": 0, "y_loc": 0}]], "has .*inf"),
        ([[], [], ["circle"]], "has 'circle'"),
    ],
)
def test_a_line_that_states_no_boxes_is_named(tmp_path, wrong, message):
    (tmp_path / "dev").mkdir()
    lines = [line("1-0", structured_rep=[[], [], []]), line("2-0", structured_rep=wrong)]
    (tmp_path / "dev/dev.json").write_text("".join(json.dumps(each) + "\n" for each in lines))
    with pytest.raises(DataError, match=rf"dev\.json:2: .*{message}"):
        nlvr(tmp_path, split="dev")
