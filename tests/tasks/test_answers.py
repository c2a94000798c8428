"""Lists of answers: counted by the main answer of each question, read as they stand, and held against a head."""

import json
from pathlib import Path

import pytest

from evle.data.samples import VQASample
from evle.errors import ConfigError
from evle.run.evaluation import evaluate
from evle.run.prepare import prepare
from evle.run.stages import train
from evle.tasks.answers import count_answers, frequent, indices_of, main_answer, read_answers, write_answers
from micro import COLOURS, micro_run, plain_image, vqa_samples


def asked(*answers):
    return VQASample("q", plain_image("red"), "which?", answers)


@pytest.fixture
def answer_file(tmp_path):
    def write(answers, name="answers.json"):
        (tmp_path / name).write_text(json.dumps(answers) if name.endswith("json") else "\n".join(answers))
        return str(tmp_path / name)

    return write


def test_a_question_counts_once_by_what_most_annotators_say():
    """Nine questions with red as the main answer; pink is said by three annotators of each, yet main nowhere."""
    samples = [asked(*["Red."] * 7, *["pink"] * 3)] * 9 + [asked("two", "2", "many")] * 2 + [asked()] + [asked("a")]
    counts = count_answers(samples)
    assert counts == {"red": 9, "2": 2}
    assert frequent(counts, 9) == ["red"]
    assert frequent(counts, 1) == ["red", "2"]


def test_the_first_of_equally_frequent_answers_is_the_main_one():
    assert main_answer(["no", "yes", "yes", "no"]) == "no"
    assert main_answer(["the", "yes"]) == "yes"


def test_equally_frequent_answers_stand_in_the_order_of_the_alphabet():
    assert frequent(count_answers([asked("y"), asked("x"), asked("z"), asked("z")]), 1) == ["z", "x", "y"]


@pytest.mark.parametrize("name", ["answers.json", "deep/answers.txt"])
def test_a_written_list_is_read_back(tmp_path, name):
    samples = [asked("Yes")] * 3 + [asked("犬, dog")] * 2 + [asked("rare")]
    said = write_answers(samples, tmp_path / name, 2)
    assert said.endswith(f"{name}: 2 of 3 answers, the main ones of 83.3 % of 6 questions")
    assert read_answers(tmp_path / name) == ["yes", "犬 dog"]
    with pytest.raises(ConfigError, match="no answer is the main one of 4 of 6 questions; lower --min-count"):
        write_answers(samples, tmp_path / name, 4)


def test_a_list_keeps_its_places_whatever_it_holds(answer_file):
    """A released head's outputs are counted off by the list: nothing may be dropped or moved."""
    file = answer_file(["t-shirt", "yes", "t shirt", "Two"])
    assert read_answers(file) == ["t-shirt", "yes", "t shirt", "Two"]
    assert indices_of(read_answers(file)) == {"t shirt": 0, "yes": 1, "2": 3}
    listed = answer_file(["a b", "c"], "list.txt")
    assert read_answers(listed) == ["a b", "c"]
    for name in map(Path, (file, listed)):
        plain = read_answers(name)
        name.write_bytes(b"\xef\xbb\xbf" + name.read_bytes().replace(b"\n", b"\r\n"))  # as saved on Windows
        assert read_answers(name) == plain


def test_what_is_wrong_with_a_list_is_said_in_one_line(answer_file, tmp_path):
    for content, message in (
        ({"a": 1}, "holds .* where a list is needed"),
        ([], "has no answer"),
        (["a", None], "answer 1 is null; write each answer as a text"),
        ([True], "answer 0 is true"),
        ([2.5], "answer 0 is 2.5"),
        ([["yes", 100]], r"answer 0 is \[\"yes\", 100\]"),
        ([{"answer": "yes"}], "answer 0 is .*answer"),
        (["a", " "], "answer 1 is empty"),
        (["a", "b", "a"], "the answer 'a' is duplicated"),
    ):
        with pytest.raises(ConfigError, match=message):
            read_answers(answer_file(content))
    with pytest.raises(ConfigError, match=r"nowhere.json: cannot be read as a list of answers"):
        read_answers(tmp_path / "nowhere.json")
    (tmp_path / "cut.json").write_text('["a", ')
    with pytest.raises(ConfigError, match=r"cut.json: not usable JSON"):
        read_answers(tmp_path / "cut.json")


@pytest.mark.parametrize("number", [3128, 3129])
def test_published_lists_make_heads_of_their_size(number, answer_file, tmp_path):
    file = answer_file([*COLOURS, *(f"answer {place}" for place in range(number - len(COLOURS)))])
    ready = prepare(micro_run(tmp_path, "vqa", {"task": {"answers": file}}), samples={"train": vqa_samples()})
    assert ready.loaded.model.config.num_labels == number
    batch = ready.task.collate([ready.task.features(vqa_samples()[2], None, train=False)])
    assert batch["labels"].shape == (1, number)
    assert batch["labels"].nonzero().tolist() == [[0, 2]]


def test_answers_that_are_equal_once_normalised_are_counted(answer_file, tmp_path):
    config = micro_run(tmp_path, "vqa", {"task": {"answers": answer_file([*COLOURS, "Red", "the blue"])}})
    notes = prepare(config, samples={"train": vqa_samples()}).notes
    expected = (
        "2 of the answers are equal to an earlier one once normalised, and are never given (first 'Red', which is"
    )
    assert [note for note in notes if note.startswith(expected)]
    config = micro_run(tmp_path, "vqa", {"task": {"answers": answer_file([*COLOURS])}})
    assert not any("normalised" in note for note in prepare(config, samples={"train": vqa_samples()}).notes)


def test_questions_whose_answer_is_not_in_the_list_are_counted(answer_file, tmp_path):
    config = micro_run(tmp_path, "vqa", {"task": {"answers": answer_file(["red", "blue"])}})
    ready = prepare(config, samples={"train": vqa_samples()})
    assert ready.notes[-2] == (
        "the main answer of 6 of 8 training questions is not among the 2 known ones and cannot be learned"
    )
    batch = ready.task.collate([ready.task.features(each, None, train=False) for each in vqa_samples()])
    assert batch["labels"].sum(dim=1).tolist() == [1, 0, 1, 0, 0, 0, 0, 0]
    config = micro_run(tmp_path, "vqa", {"task": {"answers": answer_file(["up", "down"])}})
    with pytest.raises(
        ConfigError, match=r"answers.json: none of its 2 answers is the main one of a training question"
    ):
        prepare(config, samples={"train": vqa_samples()})
    with pytest.raises(ConfigError, match="no answer is the main one of min_count=2 training questions; lower it"):
        prepare(micro_run(tmp_path, "vqa", {"task": {"min_count": 2}}), samples={"train": vqa_samples()})


def test_a_list_must_be_as_long_as_the_head_it_is_given_to(answer_file, tmp_path):
    samples = {"train": vqa_samples()}
    run = tmp_path / "run"
    train(micro_run(run, "vqa", {"train": {"steps": 1}}), samples=samples)
    stored = json.loads((run / "model" / "config.json").read_text())["id2label"]
    assert list(stored.values()) == sorted(COLOURS)  # the answers lie beside the model
    changes = {"model": {"init": str(run), "preset": None, "overrides": {}}, "task": {"answers": answer_file(["red"])}}
    with pytest.raises(
        ConfigError, match=r"answers.json has 1 answers but the head was built for 8; .* or set task.new_head=true"
    ):
        prepare(micro_run(tmp_path / "two", "vqa", changes), samples=samples)
    changes["task"]["new_head"] = True
    assert prepare(micro_run(tmp_path / "two", "vqa", changes), samples=samples).loaded.model.config.num_labels == 1


def test_a_model_without_answers_takes_them_from_a_list_of_its_length(answer_file, tmp_path):
    run = tmp_path / "run"
    train(micro_run(run, "vqa", {"train": {"steps": 1}}), samples={"train": vqa_samples()})
    config = json.loads((run / "model" / "config.json").read_text())
    config["id2label"] = {str(place): f"LABEL_{place}" for place in range(8)}
    config["label2id"] = {label: int(place) for place, label in config["id2label"].items()}
    (run / "model" / "config.json").write_text(json.dumps(config))
    with pytest.raises(ConfigError, match=r"does not contain its 8 answers; give their list with task.answers=FILE"):
        evaluate(micro_run(run, "vqa"), samples=vqa_samples())
    short = micro_run(run, "vqa", {"task": {"answers": answer_file(["red"])}})
    with pytest.raises(ConfigError, match="has 1 answers but the head was built for 8"):
        evaluate(short, samples=vqa_samples())
    full = micro_run(run, "vqa", {"task": {"answers": answer_file(COLOURS)}})
    assert "accuracy" in evaluate(full, samples=vqa_samples()).scores["val"]


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("a.jsonl", '"yes"\n"no"\n', "a.jsonl:1: '\"yes\"' is no plain answer; name a JSON list .json"),
        ("a.txt", '[\n"yes"\n]\n', "a.txt:1: '\\[' is no plain answer"),
        ("a.txt", "yes\t100\nno\t5\n", "a.txt:1: .* holds a tab"),
        ("a.txt", "answer,count\nyes,100\nno,5\n", "a.txt: 2 of 3 lines end in a number, such as 'yes,100'"),
        ("a.json", "[" * 100_000, "a.json: not usable JSON \\(nested too deeply\\)"),
    ],
    ids=["jsonl", "json-in-txt", "tabs", "counts", "deep"],
)
def test_a_list_of_another_form_is_refused(tmp_path, name, text, words):
    (tmp_path / name).write_text(text)
    with pytest.raises(ConfigError, match=words):
        read_answers(tmp_path / name)


def test_a_json_list_may_have_a_name_in_capitals_and_answers_may_be_numbers(tmp_path):
    (tmp_path / "A.JSON").write_text('[\n"yes",\n2\n]\n')
    assert read_answers(tmp_path / "A.JSON") == ["yes", "2"]
    (tmp_path / "a.txt").write_text("1,000\ngate 3\nroute, 66\nno\n'tis\n")
    assert read_answers(tmp_path / "a.txt") == ["1,000", "gate 3", "route, 66", "no", "'tis"]
