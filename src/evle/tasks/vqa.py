"""Visual question answering as classification over a list of answers (EVE section 4.3; scores of the official VQAv2
evaluator).

B batch, A answers.
"""

from collections import Counter, defaultdict
from collections.abc import Sequence
from typing import Any, ClassVar, cast

import numpy as np
import torch
from pydantic import Field
from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedModel

from evle.data.images import open_image
from evle.data.samples import Sample, VQASample, readable
from evle.errors import ConfigError, SampleError
from evle.metrics import VQARule, normalize_answer, soft_scores, vqa_accuracy, vqa_score
from evle.models.eve import EVEConfig, EVEForVQA
from evle.models.vle import VLEForVQA
from evle.report import Cell, Gallery, GalleryRow
from evle.tasks.answers import frequent, main_answer, places_of, read_answers
from evle.tasks.predict import predict_all
from evle.tasks.submission import are_question_ids, vqa_submission
from evle.tasks.task import Batch, Evaluation, EvaluationSettings, Features, Task, TaskConfig
from evle.transforms.text import clean_question, encode, encode_with_slot

COLUMNS = 4  # questions side by side in the report


class VQAConfig(TaskConfig):
    """Options of visual question answering."""

    answers: str | None = None
    """A file with the answers the model shall know: a JSON list, or one a line. None: those of the training samples."""
    min_count: int = Field(default=1, ge=1)
    """Training questions that must have an answer as their main one for the model to know it; 9 gives VQAv2's usual
    list of 3129."""
    new_head: bool = False
    """Start with a new head where `model.init` has one for another number of answers than the file."""
    official: VQARule | None = None
    """How questions with ten annotators are scored (see `evle.metrics.vqa_score`). true: exactly as the official
    evaluator, which normalises nothing where all ten agree. "before-2021": as the official evaluator before its
    correction. false: both sides are always normalised, since your own annotators may write "Yes" or "a dog". None:
    true where the keys of all questions are numbers, as the official ones are, and false otherwise."""
    max_test_words: int = Field(default=50, ge=1)
    """Words of a question kept at test; in training `text.max_words`, 30 as in EVE."""


class VQATask(Task):
    """Training: soft scores of each question's answers. Evaluation: official VQA accuracy, whole and by type of
    answer and question.

    Answers are compared as the official evaluator normalises them. A training question none of whose answers is
    known teaches that no known answer is right. Chance is the training set's most frequent answer to the type of
    question ("prior").
    """

    name = "vqa"
    reads = "vqa"
    sample_type = VQASample
    config_type = VQAConfig
    models: ClassVar[dict[str, type[PreTrainedModel]]] = {"eve": EVEForVQA, "vle": VLEForVQA}
    metric = "accuracy"
    options: VQAConfig
    answers: list[str]
    prior: dict[str, str]

    def prepare(self, samples: Sequence[Sample], config: PreTrainedConfig) -> None:
        """Collect the answers, the most frequent first, and the prior of each type of question."""
        given = None if self.options.answers is None else self._given_answers(self.options.answers, config)
        counts: Counter[str] = Counter()
        by_type: dict[str, Counter[str]] = defaultdict(Counter)
        for sample in readable(samples):
            if main := main_answer(sample.answers):
                counts[main] += 1
            by_type[sample.question_type].update(map(normalize_answer, sample.answers))
            by_type[""].update(map(normalize_answer, sample.answers))
        self.prior = {
            kind: min(found, key=lambda answer: (-found[answer], answer)) for kind, found in by_type.items() if found
        }
        self.answers = frequent(counts, self.options.min_count) if given is None else given
        if not self.answers:
            raise ConfigError(
                f"no answer is the main one of min_count={self.options.min_count} training questions; lower it, "
                "or name a file in task.answers"
            )
        self._index = places_of(self.answers)
        self.reads_slot = has_slot(config)
        self._asked = counts.total(), sum(times for answer, times in counts.items() if answer in self._index)
        if not self._asked[1]:
            raise ConfigError(
                f"{self.options.answers}: none of its {len(self.answers):,} answers is the main one of a training "
                "question; is it the list of other data?"
            )

    def notes(self) -> list[str]:
        questions, known = self._asked
        if known == questions:
            return []
        return [
            f"the main answer of {questions - known:,} of {questions:,} training questions is not among the "
            f"{len(self.answers):,} known ones and cannot be learned"
        ]

    def _given_answers(self, path: str, config: PreTrainedConfig) -> list[str]:
        """Those of a file, which must be as many as the head to start from has outputs."""
        answers, built = read_answers(path), known_answers(config)
        if built and len(answers) != len(built) and not self.options.new_head:
            raise ConfigError(
                f"{path} has {len(answers)} answers but the head was built for {len(built)}; name the list that it was "
                "built for, or set task.new_head=true to learn a new head"
            )
        return answers

    def model_overrides(self) -> dict[str, Any]:
        labels: dict[str, Any] = {
            "id2label": dict(enumerate(self.answers)),
            "label2id": {answer: place for place, answer in enumerate(self.answers)},
        }
        if not self.reads_slot:
            return labels
        tokenizer = self.processor.tokenizer
        return {**labels, "answer_tokens": [tokenizer.encode(each, add_special_tokens=False) for each in self.answers]}

    def bind(self, config: PreTrainedConfig) -> None:
        """Take the answers from the model. A head without them, such as a converted one, needs the file."""
        self.answers = known_answers(config)
        if not self.answers:
            if self.options.answers is None:
                raise ConfigError(
                    f"the model does not say which {config.num_labels} answers it knows; name their list with "
                    "task.answers=FILE"
                )
            self.answers = read_answers(self.options.answers)
            if len(self.answers) != config.num_labels:
                raise ConfigError(
                    f"{self.options.answers} has {len(self.answers)} answers but the head was built for "
                    f"{config.num_labels}; name the list that it was built for"
                )
        self._index = places_of(self.answers)
        self.reads_slot = has_slot(config)

    def read_text(self, text: str) -> list[int]:
        """Token ids of a question as evaluation reads it, with a [MASK] where the model reads its answer there."""
        return self._question_tokens(text, train=False)

    def state(self) -> dict[str, Any]:
        return {"prior": self.prior}

    def restore(self, state: dict[str, Any]) -> None:
        self.prior = state.get("prior", {})

    def features(self, sample: Sample, rng: np.random.Generator, train: bool) -> Features:
        sample = cast(VQASample, sample)
        if not sample.question.strip():
            raise SampleError(f"{sample.key}: the question is empty; fill it in or remove its row")
        return {
            "image": self.read_image(sample.image, rng, train, " ".join((sample.question, *sample.answers))),
            "tokens": self._question_tokens(sample.question, train),
            "scores": soft_scores(sample.answers),
        }

    def collate(self, features: list[Features]) -> Batch:
        labels = torch.zeros(len(features), len(self.answers))
        for row, each in enumerate(features):
            for answer, score in each["scores"].items():
                if (place := self._index.get(answer)) is not None:
                    labels[row, place] = score
        return {
            "pixel_values": self.collate_images([each["image"] for each in features]),
            **self.collate_tokens([each["tokens"] for each in features]),
            "labels": labels,
        }

    def evaluate(self, model: PreTrainedModel, samples: Sequence[Sample], settings: EvaluationSettings) -> Evaluation:
        def answer(keys: list[str], batch: Batch) -> list[tuple[int, float]]:
            logits: Tensor = model(**batch).logits.float()
            best = logits.sigmoid().max(dim=-1)
            return list(zip(best.indices.tolist(), best.values.tolist(), strict=True))

        predicted = predict_all(model, samples, self.fixed_features, self.collate, answer, settings)
        asked: list[VQASample] = [sample for sample in readable(samples) if sample.key in predicted.results]
        given = {sample.key: self.answers[predicted.results[sample.key][0]] for sample in asked}
        # Where the answers are not public (VQAv2 test), there are predictions and no scores.
        known = [sample for sample in asked if sample.answers]
        if settings.quick:
            scores = self._accuracy(known, [given[sample.key] for sample in known])
            return Evaluation(
                {name: score for name, score in scores.items() if name == self.metric}, skipped=predicted.skipped
            )
        return Evaluation(
            scores=self._accuracy(known, [given[sample.key] for sample in known]),
            chance=self._accuracy(known, [self._guess(sample) for sample in known]) if self.prior else {},
            galleries=[_gallery(asked, given, settings.num_examples)],
            predictions=[
                {
                    "key": sample.key,
                    "question": sample.question,
                    "answer": given[sample.key],
                    "score": round(predicted.results[sample.key][1], 4),
                    "answers": list(sample.answers),
                }
                for sample in asked
            ],
            skipped=predicted.skipped,
            files=vqa_submission(given),
        )

    def _accuracy(self, samples: list[VQASample], answers: list[str]) -> dict[str, float]:
        if not samples:
            return {}
        official = self.options.official
        return vqa_accuracy(
            answers,
            [sample.answers for sample in samples],
            answer_types=[sample.answer_type for sample in samples],
            question_types=[sample.question_type for sample in samples],
            official=are_question_ids([sample.key for sample in samples]) if official is None else official,
        )

    def _question_tokens(self, question: str, train: bool) -> list[int]:
        text, longest = self._clean_question(question, train), self.options.text.max_length
        return (encode_with_slot if self.reads_slot else encode)(self.processor.tokenizer, text, longest)

    def _clean_question(self, question: str, train: bool) -> str:
        if not self.options.text.clean:
            return question
        return clean_question(question, self.options.text.max_words if train else self.options.max_test_words)

    def _guess(self, sample: VQASample) -> str:
        return self.prior.get(sample.question_type, self.prior[""])


def known_answers(config: PreTrainedConfig) -> list[str]:
    """The answers that a model's config holds; none where it has only placeholders LABEL_0, LABEL_1 ..."""
    labels = [str(answer) for _, answer in sorted((config.id2label or {}).items(), key=lambda item: int(item[0]))]
    return [] if labels == [f"LABEL_{place}" for place in range(len(labels))] else labels


def has_slot(config: PreTrainedConfig) -> bool:
    """Whether the model reads its answer at a [MASK] after the question."""
    return isinstance(config, EVEConfig) and config.vqa_slot


def _gallery(samples: list[VQASample], given: dict[str, str], num_examples: int) -> Gallery:
    places = np.linspace(0, len(samples) - 1, min(num_examples, len(samples))).astype(int)
    cells = []
    for sample in (samples[place] for place in places):
        answer, mark = given[sample.key], ""
        expected = Counter(sample.answers).most_common(1)[0][0] if sample.answers else ""
        if sample.answers:
            mark = "good" if vqa_score(answer, sample.answers) >= 0.5 else "bad"
        wrong = f" (right: {expected})" if mark == "bad" else ""
        cells.append(Cell(open_image(sample.image), f"{sample.question} {answer}{wrong}", mark))  # type: ignore[arg-type]
    rows = [GalleryRow("", cells[begin : begin + COLUMNS]) for begin in range(0, len(cells), COLUMNS)]
    return Gallery("Questions and the model's answers", rows)
