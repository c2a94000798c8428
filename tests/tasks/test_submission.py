"""Files for leaderboards hold each sample once, under its official key, in the official form."""

import json

from evle.tasks.submission import NLVR2_FILE, NLVR_FILE, VQA_FILE, nlvr2_submission, nlvr_submission, vqa_submission


def test_vqa_answers_stand_under_whole_numbers():
    text = vqa_submission({"262148000": "down", "262148001": "at table"})[VQA_FILE]
    assert json.loads(text) == [
        {"question_id": 262148000, "answer": "down"},
        {"question_id": 262148001, "answer": "at table"},
    ]


def test_nlvr2_verdicts_are_lines_that_the_official_script_splits_at_the_comma():
    text = nlvr2_submission({"dev-850-0-0": True, "test1-0-1-2": False})[NLVR2_FILE]
    assert dict(line.strip().split(",") for line in text.splitlines()) == {
        "dev-850-0-0": "True",
        "test1-0-1-2": "False",
    }


def test_nlvr_answers_are_lines_of_image_and_answer():
    text = nlvr_submission({"test-72-0-5": "true", "test-72-1-0": "false"})[NLVR_FILE]
    assert text.splitlines() == ["test-72-0-5.png,true", "test-72-1-0.png,false"]
    assert nlvr_submission({"test-72-0-5": "red"}) == {}
    assert nlvr_submission({"a": "true"}) == nlvr_submission({}) == {}


def test_samples_without_official_keys_make_no_file():
    assert vqa_submission({"1": "a", "vg-2": "b"}) == {}
    assert vqa_submission({"²": "a"}) == {}
    assert vqa_submission({}) == {}
    assert nlvr2_submission({"dev-850-0-0": True, "dev-850-0#1": True}) == {}
    assert nlvr2_submission({}) == {}
