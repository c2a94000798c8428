"""VQA as a task: what a question becomes."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import PreTrainedConfig

from evle.data.custom.folder import folder
from evle.data.samples import VQASample
from evle.errors import ConfigError
from evle.inspection.folder_check import check_folder
from evle.models.eve import EVEConfig, EVEForPreTraining, EVEForVQA, EVEProcessor
from evle.pipelines import VQAPipeline
from evle.run.prepare import prepare
from evle.run.weights import ModelConfig, build_model, starting_config
from evle.tasks.vqa import VQAConfig, VQATask, _tables
from evle.transforms.text import train_tokenizer
from micro import MICRO, Damaged, micro_run, plain_image, vqa_samples


def bound_task(**fields: object) -> tuple[VQATask, PreTrainedConfig]:
    processor = EVEProcessor.for_size(16, train_tokenizer(sample.question for sample in vqa_samples()))
    task = VQATask(VQAConfig(), processor)
    start = EVEConfig.from_preset("eve-tiny", **{**MICRO, "vocab_size": len(processor.tokenizer)}, **fields)
    task.prepare(vqa_samples(), start)
    config = EVEConfig.from_dict({**start.to_dict(), **task.model_overrides()})
    task.bind(config)
    return task, config


def test_reading_many_questions_for_their_answers_shows_progress(monkeypatch, caplog):
    monkeypatch.setattr("evle.terminal.SECONDS_BETWEEN_LINES", 0)
    task, config = bound_task()
    with caplog.at_level("INFO", logger="evle"):
        task.prepare(vqa_samples()[:1] * 2500, config)
    assert [line.split(" questions")[0] for line in caplog.messages] == ["1,000/2,500", "2,000/2,500"]


def test_a_question_ends_in_a_mask_where_the_model_reads_its_answer_there():
    sample, rng = vqa_samples()[0], np.random.default_rng(0)
    plain, slotted = (
        task.features(sample, rng, train=False)["tokens"] for task, _ in (bound_task(), bound_task(vqa_slot=True))
    )
    mask = bound_task()[0].processor.tokenizer.mask_token_id
    assert slotted == [*plain[:-1], mask, plain[-1]]


def test_the_pipeline_asks_as_the_task_does():
    task, config = bound_task(vqa_slot=True)
    torch.manual_seed(0)
    model = EVEForVQA(config).eval()
    sample = vqa_samples()[0]
    batch = task.collate([task.features(sample, np.random.default_rng(0), train=False)])
    with torch.no_grad():
        logits = model(batch["pixel_values"], batch["input_ids"], batch["attention_mask"]).logits[0]
    found = VQAPipeline(model=model, processor=task.processor)(sample.image, sample.question, top_k=1)[0]
    assert found["answer"] == config.id2label[int(logits.argmax())]
    assert found["score"] == torch.sigmoid(logits.max()).item()


def test_a_pre_trained_model_answers_before_any_fine_tuning_as_it_fills_words_in(tmp_path):
    task, config = bound_task(vqa_slot=True)
    torch.manual_seed(0)
    pretrained = EVEForPreTraining(EVEConfig.from_dict({**config.to_dict(), "objectives": ["mlm"]})).eval()
    pretrained.save_pretrained(tmp_path)
    task.processor.save_pretrained(tmp_path)
    options = ModelConfig(init=str(tmp_path))
    loaded = build_model(EVEForVQA, options, starting_config(options), task.model_overrides())
    assert loaded.new == frozenset()

    batch = task.collate([task.features(vqa_samples()[0], np.random.default_rng(0), train=False)])
    slot = int(batch["attention_mask"].sum()) - 2
    with torch.no_grad():
        logits = loaded.model.eval()(batch["pixel_values"], batch["input_ids"], batch["attention_mask"]).logits[0]
        states = pretrained.eve(batch["pixel_values"], batch["input_ids"], batch["attention_mask"]).text_hidden[0, slot]
        words = pretrained.mlm_head(states)
    for answer, logit in zip(task.answers, logits, strict=True):
        tokens = task.processor.tokenizer.encode(answer, add_special_tokens=False)
        expected = float(words[tokens].mean()) - math.log(len(task.answers))
        assert float(logit) == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize(
    ("key", "official", "expected"),
    [("rex.jpg", None, 100.0), ("262148000", None, 0.0), ("262148000", False, 100.0), ("rex.jpg", True, 0.0)],
)
def test_ones_own_annotators_may_write_capitals(key, official, expected):
    """Ten who say "Yes": the letter of the official evaluator, whose files are lower case, finds nobody right."""
    task = VQATask(VQAConfig(official=official), None)
    asked = VQASample(key, "a.jpg", "is it red?", ("Yes",) * 10)
    assert task._accuracy([asked], ["yes"])["accuracy"] == expected


def test_the_table_of_answers_compares_them_as_the_score_does():
    asked = [VQASample(f"q{n}", "a.jpg", "where?", ("at the top",)) for n in range(3)]
    (table,) = _tables(asked, {"q0": "at the top", "q1": "at the top", "q2": "in the centre"})
    assert table.rows == [["at top", 3, pytest.approx(200 / 3), "in centre 1"]]


def answered(key, *answers):
    return VQASample(key, plain_image("red"), "which colour is it?", answers)


@pytest.mark.parametrize("unknown", ["drop", "zero"])
def test_training_leaves_out_questions_without_a_known_answer_and_counts_them(unknown, tmp_path):
    """The answer of one question is known of no other; another has no answer at all."""
    samples = [*(answered(f"q{number}", "red", "rare") for number in range(3)), answered("rare", "Mauve")]
    samples.append(answered("none"))
    kept = samples[:3] if unknown == "drop" else samples
    changes = {"task": {"min_count": 2, "unknown": unknown}, "train": {"batch_size": 3}}
    ready = prepare(micro_run(tmp_path, "vqa", changes), samples={"train": samples})
    assert list(ready.task.training_samples(samples)) == kept
    assert ready.loader.num_samples == len(kept)
    notes = [note for note in ready.notes if note.startswith("left out of training: 2 questions")]
    assert len(notes) == (unknown == "drop")


def test_a_damaged_question_stays_for_the_loader_to_name(tmp_path):
    samples = Damaged([answered(f"q{number}", "red") for number in range(8)])
    ready = prepare(micro_run(tmp_path, "vqa"), samples={"train": samples})
    assert len(ready.task.training_samples(samples)) == 8


def test_answers_are_shown_in_their_most_frequent_spelling(tmp_path):
    samples = [answered("a", "X-ray", "x ray", "X-ray"), *(answered(word, word) for word in ("Two", "two", " two "))]
    task = prepare(micro_run(tmp_path, "vqa"), samples={"train": samples}).task
    assert task.answers == ["two", "X-ray"]
    rng = np.random.default_rng(0)
    labels = task.collate([task.fixed_features(sample, rng) for sample in samples])["labels"]
    assert labels.argmax(dim=1).tolist() == [1, 0, 0, 0]


def test_questions_without_any_answer_are_refused_with_the_columns_that_the_table_has(tmp_path):
    (tmp_path / "questions.csv").write_text("image,question,label\na.jpg,what?,red\nb.jpg,who?,blue\n")
    for name in ("a.jpg", "b.jpg"):
        Image.new("RGB", (4, 4)).save(tmp_path / name)
    samples = folder(tmp_path, "vqa")
    for options in ({}, {"answers": None, "min_count": 2}):
        config = micro_run(tmp_path / "run", "vqa", {"task": options})
        words = r"none of 2 training questions has an answer: no column 'answers' or 'answer'.*label"
        with pytest.raises(ConfigError, match=words):
            prepare(config, samples={"train": samples})
    check = check_folder(tmp_path, "vqa")
    assert not check.ok
    assert "set answer_column to the one that holds them" in "\n".join(check.broken_rows.lines)


def test_statements_with_several_images_are_scored_for_consistency():
    """Of set s both images are right, of set t one."""
    task, _ = bound_task()
    samples = [
        VQASample(str(index), b"", "a", ("true",), set_id=set_id) for index, set_id in enumerate(("s", "s", "t", "t"))
    ]
    scores = task._accuracy(samples, ["true", "true", "true", "false"])
    assert (scores["accuracy"], scores["consistency"]) == (75.0, 50.0)
    assert "consistency" not in task._accuracy([*samples, VQASample("4", b"", "a", ("true",))], ["true"] * 5)


class CountedReads(list):
    """Samples that count how often they are read."""

    reads = 0

    def __getitem__(self, index):
        self.reads += 1
        return super().__getitem__(index)


def test_samples_are_not_read_again_where_every_answer_is_known():
    """A generated source draws a sample each time it is read."""
    samples = CountedReads(sample for sample in vqa_samples() if sample.answers)
    task, _ = bound_task()
    task.prepare(samples, EVEConfig())
    samples.reads = 0
    assert task.training_samples(samples) is samples
    assert samples.reads == 0


def test_questions_without_a_known_answer_are_still_left_out():
    samples = [*vqa_samples(), replace(vqa_samples()[0], key="no answer", answers=())]
    task, _ = bound_task()
    task.prepare(samples, EVEConfig())
    kept = [sample.key for sample in task.training_samples(samples)]
    assert kept == [sample.key for sample in samples if sample.answers]
