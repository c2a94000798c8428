"""easy-VQA is read from its folder or its package; val is held out of train by image; what is missing is named."""

import importlib.util
import json
import pickle
from collections import Counter

import pytest

from easy_vqa_package import QUESTIONS, write_easy_vqa
from evle.data.corpora import easy_vqa as module
from evle.data.corpora.easy_vqa import easy_vqa, find_data, question_type
from evle.data.images import open_image
from evle.errors import ConfigError, DataError


def test_questions_become_samples_with_types(tmp_path):
    samples = easy_vqa(write_easy_vqa(tmp_path), split="test")
    assert [(each.key, each.answers, each.answer_type, each.question_type) for each in samples] == [
        ("test-0", ("rectangle",), "other", "shape"),
        ("test-1", ("blue",), "other", "color"),
        ("test-2", ("yes",), "yes/no", "absence"),
        ("test-3", ("yes",), "yes/no", "presence"),
    ]
    assert open_image(samples[3].image).size == (8, 8)
    assert samples.describe() == {"data set": "easy-VQA", "split": "test", "images": 2, "samples": 4}
    assert pickle.loads(pickle.dumps(samples))[1:3] == samples[1:3]


@pytest.mark.parametrize("below", ["", "data", "easy_vqa/data"])
def test_the_package_the_data_folder_or_an_unpacked_wheel_may_be_named(tmp_path, below):
    write_easy_vqa(tmp_path / below)
    assert find_data(tmp_path) == tmp_path / below


def test_val_is_held_out_of_train_by_image(tmp_path):
    questions = [[f"is there a red shape {n}?", "no", n // 3] for n in range(300)]
    folder = write_easy_vqa(tmp_path, 0, questions)
    parts = {split: easy_vqa(folder, split=split, val_share=0.2) for split in ("train", "val")}
    pictures = {split: {sample.image for sample in samples} for split, samples in parts.items()}
    assert pictures["train"].isdisjoint(pictures["val"])
    assert len(pictures["train"] | pictures["val"]) == 100
    assert 10 <= len(pictures["val"]) <= 30
    assert len(parts["train"]) + len(parts["val"]) == len(easy_vqa(folder, split="train")) == 300
    assert parts["train"].fingerprint != easy_vqa(folder, split="train").fingerprint


def test_a_question_type_is_told_from_the_words():
    assert question_type("what shape is present?") == "shape"
    assert question_type("what is the color of the circle?") == "color"
    assert question_type("does the image not contain a gray shape?") == "absence"
    assert question_type("is no black shape present?") == "absence"
    assert question_type("does the image contain a gray shape?") == "presence"


def test_what_is_wrong_is_said_in_one_line(tmp_path, monkeypatch):
    with pytest.raises(DataError, match=r"nowhere: no such folder; for easy-VQA, get it with `pip install easy-vqa`"):
        easy_vqa(tmp_path / "nowhere")
    with pytest.raises(DataError, match=r"no train/questions.json there or in data/"):
        easy_vqa(tmp_path)
    write_easy_vqa(tmp_path)
    with pytest.raises(DataError, match=r"no split 'dev'; choose one of: test, train, val"):
        easy_vqa(tmp_path, split="dev")
    with pytest.raises(ConfigError, match=r"no split val; hold one out with val_share=0.1"):
        easy_vqa(tmp_path, split="val")
    with pytest.raises(ConfigError, match=r"val_share=1.0 must be from 0 to below 1"):
        easy_vqa(tmp_path, val_share=1.0)
    with pytest.raises(ConfigError, match="holds questions, not 'captions'"):
        easy_vqa(tmp_path, "captions")
    file = tmp_path / "train" / "questions.json"
    file.write_text(json.dumps(QUESTIONS)[:-20])
    with pytest.raises(DataError, match=r"train/questions.json: not usable JSON"):
        easy_vqa(tmp_path)
    file.write_text(json.dumps([*QUESTIONS, ["is it?", "yes", "7"]]))
    with pytest.raises(DataError, match=r"entry 4 is \['is it\?', 'yes', '7'\], not \[question, answer, image"):
        easy_vqa(tmp_path)
    monkeypatch.setattr(module.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(DataError, match="package easy-vqa is not installed; get it with `pip install easy-vqa`"):
        easy_vqa()


@pytest.mark.skipif(importlib.util.find_spec("easy_vqa") is None, reason="the package easy-vqa is not installed")
def test_the_installed_package_has_the_published_numbers():
    train, test = easy_vqa(split="train"), easy_vqa(split="test")
    assert (len(train), len(test)) == (38_575, 9_673)
    assert Counter(sample.answer_type for sample in test)["yes/no"] == 7_136
    assert len({sample.answers for sample in train}) == 13
    assert open_image(test[-1].image).size == (64, 64)


@pytest.mark.parametrize("image", ["true", "-1", "1" + "0" * 30])
def test_what_is_no_number_of_an_image_is_refused(tmp_path, image):
    (tmp_path / "train/images").mkdir(parents=True)
    (tmp_path / "train/questions.json").write_text(f'[["is it red?", "yes", {image}]]')
    with pytest.raises(DataError, match=r"entry 0 is .*, not \[question, answer, image's number\]"):
        easy_vqa(tmp_path)
