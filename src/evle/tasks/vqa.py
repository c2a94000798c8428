"""Visual question answering as classification over a list of answers (EVE section 4.3; scores of the official VQAv2
evaluator).

B batch, A answers.
"""

import math
from array import array
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from typing import Any, ClassVar, Literal, cast

import numpy as np
import torch
from pydantic import Field
from torch.utils.data import Subset
from transformers import PreTrainedConfig, PreTrainedModel

from evle.data.images import open_image
from evle.data.samples import Sample, VQASample, describe, readable
from evle.distributed import is_main
from evle.errors import ConfigError, SampleError
from evle.metrics import VQARule, consistency, normalize_answer, soft_scores, vqa_accuracy, vqa_score
from evle.models.eve import EVEConfig, EVEForVQA
from evle.models.soundness import finite
from evle.models.vle import VLEForVQA
from evle.report import Cell, Gallery, GalleryRow, Table, class_table
from evle.tasks.answers import frequent, indices_of, main_answer, read_answers, written
from evle.tasks.examples import choose_examples
from evle.tasks.predict import predict_all
from evle.tasks.submission import are_question_ids, nlvr_submission, vqa_submission
from evle.tasks.task import Batch, Evaluation, EvaluationSettings, Features, Task, TaskConfig
from evle.terminal import ProgressLine
from evle.transforms.text import encode, encode_with_slot
from evle.transforms.words import clean_question

UPDATE_EVERY = 1000  # samples between two updates of the progress
COLUMNS = 4  # questions side by side in the report


def _with_progress(samples: Sequence[Sample]) -> Iterator[VQASample]:
    """The samples that can be read, with progress: a source that draws its samples takes a while for many, unless it
    knows their answers beforehand (`answered`)."""
    listed = samples.answered() if hasattr(samples, "answered") else readable(samples)
    with ProgressLine(len(samples), "questions read for their answers", visible=is_main()) as progress:
        for number, sample in enumerate(listed, 1):
            yield sample
            if number % UPDATE_EVERY == 0:
                progress.update(number)


class VQAConfig(TaskConfig):
    """Options of visual question answering."""

    answers: str | None = None
    """A file with the answers that the model knows: a JSON list, or one per line. By default those of the training
    samples."""
    min_count: int = Field(default=1, ge=1)
    """The model knows an answer if it is the main one of this many training questions; 9 gives VQAv2's usual list of
    3129."""
    unknown: Literal["drop", "zero"] = "drop"
    """Training questions none of whose answers the model knows: "drop" leaves them out, as both releases do; "zero"
    trains on them with a target of 0 for every answer."""
    new_head: bool = False
    """Start with a new head if the head of `model.init` has another number of answers than the file."""
    official: VQARule | None = None
    """How questions with ten annotators are scored (see `evle.metrics.vqa_score`). true: exactly as by the official
    evaluator, which normalises nothing if all ten agree. "before-2021": as by the official evaluator before its
    correction. false: both sides are always normalised, because your own annotators may write "Yes" or "a dog". By
    default true if the keys of all questions are numbers, as the official ones are, and false otherwise."""
    max_test_words: int = Field(default=50, ge=1)
    """Maximum number of words of a question at test; in training it is `text.max_words`, 30 as in EVE."""


class VQATask(Task):
    """Training: soft scores of each question's answers. Evaluation: official VQA accuracy, overall and by type of
    answer and question.

    Answers are compared as the official evaluator normalises them, and shown in their most frequent spelling. Chance is
    the training set's most frequent answer to the type of question ("prior").
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
    _dropped: int = 0

    def prepare(self, samples: Sequence[Sample], config: PreTrainedConfig) -> None:
        """Collect the answers, the most frequent first, and the prior of each type of question."""
        given = None if self.options.answers is None else self._given_answers(self.options.answers, config)
        counts: Counter[str] = Counter()
        by_type: dict[str, Counter[str]] = defaultdict(Counter)
        spellings: dict[str, Counter[str]] = defaultdict(Counter)
        for sample in _with_progress(samples):
            if main := main_answer(sample.answers):
                counts[main] += 1
            for answer in sample.answers:
                normalised = normalize_answer(answer)
                by_type[sample.question_type][normalised] += 1
                by_type[""][normalised] += bool(sample.question_type)  # without a type it has been counted
                spellings[normalised][" ".join(answer.split())] += 1
        if not counts:
            reason = describe(samples).get("answers") or "fill in the column of answers"
            raise ConfigError(f"none of {len(samples):,} training questions has an answer: {reason}")
        self.prior = {
            kind: min(times, key=lambda answer: (-times[answer], answer)) for kind, times in by_type.items() if times
        }
        self.answers = given or [written(spellings[answer]) for answer in frequent(counts, self.options.min_count)]
        if not self.answers:
            raise ConfigError(
                f"no answer is the main one of min_count={self.options.min_count} training questions; lower it, "
                "or name a file in task.answers"
            )
        self._index = indices_of(self.answers)
        self.reads_slot = has_slot(config)
        self._asked = counts.total(), sum(times for answer, times in counts.items() if answer in self._index)
        if not self._asked[1]:
            raise ConfigError(
                f"{self.options.answers}: none of its {len(self.answers):,} answers is the main one of a training "
                "question; is it the list of other data?"
            )

    def training_samples(self, samples: Sequence[Sample]) -> Sequence[Sample]:
        """The questions with a known answer, unless the options keep the others, too."""
        questions, known = self._asked
        if self.options.unknown == "zero" or questions == known == len(samples):
            return samples
        kept = array("q", (index for index in range(len(samples)) if self._can_be_learned(samples, index)))
        self._dropped = len(samples) - len(kept)
        return samples if len(kept) == len(samples) else Subset(samples, kept)  # type: ignore[arg-type,return-value]

    def _index_of(self, answer: str) -> int:
        return self._index[normalize_answer(answer)]

    def _can_be_learned(self, samples: Sequence[Sample], index: int) -> bool:
        try:
            sample = cast(VQASample, samples[index])
        except SampleError:
            return True  # the loader reports it
        return any(normalize_answer(answer) in self._index for answer in sample.answers)

    def notes(self) -> list[str]:
        questions, known = self._asked
        notes = []
        if known < questions:
            notes.append(
                f"the main answer of {questions - known:,} of {questions:,} training questions is not among the "
                f"{len(self.answers):,} known ones and cannot be learned"
            )
        if same := [answer for number, answer in enumerate(self.answers) if self._index_of(answer) != number]:
            first = self.answers[self._index_of(same[0])]
            notes.append(
                f"{len(same):,} of the answers are equal to an earlier one once normalised, and are never given "
                f"(first {same[0]!r}, which is {first!r})"
            )
        if self._dropped:
            notes.append(
                f"left out of training: {self._dropped:,} questions none of whose answers is among the "
                f"{len(self.answers):,} known ones (task.unknown=zero keeps them)"
            )
        return notes

    def _given_answers(self, path: str, config: PreTrainedConfig) -> list[str]:
        """The answers in a file; their number must be that of the outputs of the head that training starts from."""
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
            "label2id": {answer: index for index, answer in enumerate(self.answers)},
        }
        if not self.reads_slot:
            return labels
        tokenizer = self.processor.tokenizer
        words = self.answers if self.options.answers else map(normalize_answer, self.answers)
        return {**labels, "answer_tokens": [tokenizer.encode(each, add_special_tokens=False) for each in words]}

    def bind(self, config: PreTrainedConfig) -> None:
        """Take the answers from the model. A head without them, such as a converted one, needs the file."""
        self.answers = known_answers(config)
        if not self.answers:
            if self.options.answers is None:
                raise ConfigError(
                    f"the model does not contain its {config.num_labels} answers; give their list with "
                    "task.answers=FILE"
                )
            self.answers = read_answers(self.options.answers)
            if len(self.answers) != config.num_labels:
                raise ConfigError(
                    f"{self.options.answers} has {len(self.answers)} answers but the head was built for "
                    f"{config.num_labels}; name the list that it was built for"
                )
        self._index = indices_of(self.answers)
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

    def collate_raw(self, features: list[Features]) -> Batch:
        labels = torch.zeros(len(features), len(self.answers))
        for row, each in enumerate(features):
            for answer, score in each["scores"].items():
                if (index := self._index.get(answer)) is not None:
                    labels[row, index] = score
        return {
            "pixel_values": torch.stack([each["image"] for each in features]),
            **self.collate_tokens([each["tokens"] for each in features]),
            "labels": labels,
        }

    def evaluate(self, model: PreTrainedModel, samples: Sequence[Sample], settings: EvaluationSettings) -> Evaluation:
        def answer(keys: list[str], batch: Batch) -> list[tuple[int, float]]:
            logits = finite(model(**batch).logits)
            best = logits.sigmoid().max(dim=-1)
            return list(zip(best.indices.tolist(), best.values.tolist(), strict=True))

        predicted = predict_all(model, samples, self, answer, settings)
        asked: list[VQASample] = [sample for sample in readable(samples) if sample.key in predicted.results]
        given = {sample.key: self.answers[predicted.results[sample.key][0]] for sample in asked}
        # If the answers are not public (VQAv2 test), there are predictions and no scores.
        known = [sample for sample in asked if sample.answers]
        if settings.quick:
            scores = self._accuracy(known, [given[sample.key] for sample in known])
            return Evaluation(
                {name: score for name, score in scores.items() if name == self.metric}, skipped=predicted.skipped
            )
        return Evaluation(
            scores=self._accuracy(known, [given[sample.key] for sample in known]),
            chance=self._accuracy(known, [self._guess(sample) for sample in known]) if self.prior else {},
            galleries=_galleries(asked, predicted.results, given, settings),
            tables=_tables(known, given),
            values={self.metric: self._each(known, given)} if known else {},
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
            files=vqa_submission(given) | nlvr_submission(given),
        )

    def _accuracy(self, samples: list[VQASample], answers: list[str]) -> dict[str, float]:
        if not samples:
            return {}
        scores = vqa_accuracy(
            answers,
            [sample.answers for sample in samples],
            answer_types=[sample.answer_type for sample in samples],
            question_types=[sample.question_type for sample in samples],
            official=self._rule(samples),
        )
        if all(sample.set_id for sample in samples):
            right = [answer in sample.answers for answer, sample in zip(answers, samples, strict=True)]
            scores["consistency"] = consistency(right, [sample.set_id for sample in samples])
        return scores

    def _each(self, samples: list[VQASample], given: dict[str, str]) -> list[float]:
        """The accuracy of every sample; the accuracy of all is their mean."""
        rule = self._rule(samples)
        return [vqa_accuracy([given[each.key]], [each.answers], official=rule)[self.metric] for each in samples]

    def _rule(self, samples: list[VQASample]) -> VQARule:
        official = self.options.official
        return are_question_ids([sample.key for sample in samples]) if official is None else official

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
    """The answers in a model's config; none if it has only the placeholders LABEL_0, LABEL_1 ..."""
    labels = [str(answer) for _, answer in sorted((config.id2label or {}).items(), key=lambda item: int(item[0]))]
    return [] if labels == [f"LABEL_{index}" for index in range(len(labels))] else labels


def has_slot(config: PreTrainedConfig) -> bool:
    """Whether the model reads its answer at a [MASK] after the question."""
    return isinstance(config, EVEConfig) and config.vqa_slot


def _tables(samples: list[VQASample], given: dict[str, str]) -> list[Table]:
    """How well the most frequent answers are recognised; the true answer is the one of most annotators.

    Both are normalised: an answer of the model is written as training wrote it, with its articles.
    """
    known = {sample.key: soft_scores(sample.answers) for sample in samples}
    truths = {key: max(scores, key=scores.__getitem__) for key, scores in known.items() if scores}
    predicted = [normalize_answer(given[key]) for key in truths]
    table = class_table("Answers, by the true one", list(truths.values()), predicted)
    return [table] if truths else []


def _galleries(
    samples: list[VQASample],
    results: dict[str, tuple[int, float]],
    given: dict[str, str],
    settings: EvaluationSettings,
) -> list[Gallery]:
    """Some questions, the model's answers, and the most frequent answer if the model's is wrong."""

    def goodness(sample: VQASample) -> float:
        if not sample.answers:
            return math.nan
        confidence = results[sample.key][1]
        return confidence if _is_right(given[sample.key], sample) else -confidence

    def cell(sample: VQASample) -> Cell:
        answer, mark = given[sample.key], ""
        if sample.answers:
            mark = "good" if _is_right(answer, sample) else "bad"
        right = f" (right: {Counter(sample.answers).most_common(1)[0][0]})" if mark == "bad" else ""
        text = f"{sample.question}\n{answer}{right}"
        return Cell(open_image(sample.image), text, mark)  # type: ignore[arg-type]

    galleries = []
    for name, indices in choose_examples([goodness(sample) for sample in samples], settings).items():
        cells = [cell(samples[index]) for index in indices]
        rows = [GalleryRow("", cells[begin : begin + COLUMNS]) for begin in range(0, len(cells), COLUMNS)]
        galleries.append(Gallery(f"Questions and the model's answers: {name}", rows))
    return galleries


def _is_right(answer: str, sample: VQASample) -> bool:
    return vqa_score(answer, sample.answers) >= 0.5
