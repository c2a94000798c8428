"""Visual commonsense reasoning: four answers to a question, and four reasons for the right one (Zellers et al., 2019).

As VLE does it, each candidate is one text with names for the tagged objects. An object that the text names has its own
token type, on its words and on a token made of the patches that its box covers.

B batch, C candidates, T text tokens, O named objects, P patches without [CLS].
"""

import json
import math
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, ClassVar, cast

import numpy as np
import torch
from PIL import Image, ImageDraw
from pydantic import Field
from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedModel

from evle.data.images import open_image
from evle.data.samples import Sample, Tagged, VCRSample, readable
from evle.errors import ConfigError, DataError, SampleError
from evle.metrics import vcr_scores
from evle.models.soundness import finite
from evle.models.vle import VLEForVCRQ2A, VLEForVCRQA2R
from evle.report import Cell, Gallery, GalleryRow, Mark, Table, class_table
from evle.tasks.examples import choose_examples
from evle.tasks.predict import predict_all
from evle.tasks.task import Batch, Evaluation, EvaluationSettings, Features, Task, TaskConfig
from evle.transforms.collate import pad_rows
from evle.transforms.image_config import UNMOVED
from evle.transforms.regions import box_patches, touched_patches
from evle.transforms.tagged import FIRST_OBJECT_TYPE, Spoken, cleaned, encode_tagged, object_names, spoken

NUM_CHOICES = 4
CHANCE = {"accuracy": 100 / NUM_CHOICES}
BOX_COLOURS = ("#e6194b", "#3cb44b", "#4363d8", "#f58231", "#911eb4", "#008080", "#9a6324", "#808000")


class VCRConfig(TaskConfig):
    """Options of both halves of VCR."""

    max_objects: int = Field(default=81, ge=1)
    """Maximum number of objects that one text may name. The model has two more token types than that (81 as in the
    released models)."""
    released_boxes: bool = False
    """Map boxes to patches over the whole image, whatever part of it the model sees, as the released code does. This
    excludes augmentation that moves the image."""


class VCRTask(Task):
    """What both halves share. Training and evaluation: the right one of four candidates; the metric is the accuracy.

    A text is its `parts` joined by [SEP], at most `text.max_length` tokens (80 as released). Unlike in the released
    code, names do not depend on earlier questions.
    """

    reads = "vcr"
    sample_type = VCRSample
    config_type = VCRConfig
    metric = "accuracy"
    options: VCRConfig
    title: ClassVar[str]

    @abstractmethod
    def parts(self, sample: VCRSample) -> list[tuple[Tagged, ...]]:
        """The parts of each candidate's text. Raises SampleError where they are not known."""

    @abstractmethod
    def label(self, sample: VCRSample) -> int | None:
        """Which candidate is right, if that is known."""

    @abstractmethod
    def asked(self, sample: VCRSample) -> tuple[Tagged, ...]:
        """What is asked, for the report."""

    def prepare(self, samples: Sequence[Sample], config: PreTrainedConfig) -> None:
        """Request the token types that the options need, or keep those of the weights if these are more.

        Raises ConfigError if augmentation would move the image but not its boxes.
        """
        if self.options.released_boxes and (moving := self.options.image.moving):
            stays = " ".join(f"image.{name}={json.dumps(UNMOVED[name]).replace(' ', '')}" for name in moving)
            raise ConfigError(
                "task.released_boxes=true maps boxes to the whole image, but augmentation moves the image; set "
                f"{stays}, or leave task.released_boxes out"
            )
        self.num_token_types = max(config.num_token_types, FIRST_OBJECT_TYPE + self.options.max_objects)

    def model_overrides(self) -> dict[str, Any]:
        return {"num_token_types": self.num_token_types}

    def bind(self, config: PreTrainedConfig) -> None:
        self.patches_per_side = self.image_size // config.patch_size
        self.num_object_types = config.num_token_types - FIRST_OBJECT_TYPE
        if self.num_object_types < 1:
            raise ConfigError(
                f"the model has {config.num_token_types} token types, none of them for the objects of a text; "
                "fine-tune it for VCR first"
            )

    def features(self, sample: Sample, rng: np.random.Generator, train: bool) -> Features:
        sample = cast(VCRSample, sample)
        label = self.label(sample)
        if train and label is None:
            raise SampleError(f"{sample.key}: no label; training needs one")
        names = object_names([box.label for box in sample.objects])
        texts = [[self._spoken(part, names, sample) for part in parts] for parts in self.parts(sample)]
        words = " ".join(word for parts in texts for part in parts for word, _ in part)
        objects = [replace(box, width=max(box.width, 1.0), height=max(box.height, 1.0)) for box in sample.objects]
        image, corners = self.read_image_with_boxes(sample.image, objects, rng, train, words)
        if self.options.released_boxes:
            corners = np.array([(box.x, box.y, box.x + box.width, box.y + box.height) for box in sample.objects])
            patches = touched_patches(corners, open_image(sample.image).size, self.patches_per_side)  # (objects, P)
        else:
            patches = box_patches(corners, (self.image_size, self.image_size), self.patches_per_side)

        result: Features = {"image": image, "tokens": [], "types": [], "patches": [], "box_types": [], "label": label}
        for parts in texts:
            candidate = encode_tagged(self.processor.tokenizer, parts, self.options.text.max_length)
            if len(candidate.objects) > self.num_object_types:
                raise SampleError(
                    f"{sample.key}: a text names {len(candidate.objects)} objects, the model knows at most "
                    f"{self.num_object_types}; raise task.max_objects or remove its row"
                )
            in_sight = [rank for rank, index in enumerate(candidate.objects) if patches[index].any()]
            result["tokens"].append(candidate.tokens)
            result["types"].append(candidate.types)
            result["patches"].append(patches[[candidate.objects[rank] for rank in in_sight]])
            result["box_types"].append([FIRST_OBJECT_TYPE + rank for rank in in_sight])
        return result

    def collate_raw(self, features: list[Features]) -> Batch:
        def grid(name: str, value: int, length: int) -> Tensor:
            """The lists of all candidates of all samples, (B, C, length)."""
            return torch.stack([pad_rows(each[name], value, length) for each in features])

        counts = sorted({len(each["tokens"]) for each in features})
        if len(counts) > 1:
            raise DataError(
                f"one batch has questions with {counts[0]} and with {counts[-1]} candidates; give all the same number, "
                "or ask them one at a time (batch_size=1)"
            )

        # Questions about one image follow each other: without augmentation, they share it, and it is encoded once.
        images: list[Tensor] = []
        image_rows: list[int] = []
        for each in features:
            if not images or not torch.equal(each["image"], images[-1]):
                images.append(each["image"])
            image_rows.append(len(images) - 1)

        num_tokens = max(len(tokens) for each in features for tokens in each["tokens"])
        num_boxes = max(1, *(len(types) for each in features for types in each["box_types"]))
        patches = torch.zeros(
            len(features), len(features[0]["tokens"]), num_boxes, self.patches_per_side**2, dtype=torch.bool
        )
        for row, each in enumerate(features):
            for column, boxes in enumerate(each["patches"]):
                patches[row, column, : len(boxes)] = torch.from_numpy(boxes)
        input_ids = grid("tokens", self.processor.tokenizer.pad_token_id, num_tokens)
        lengths = torch.tensor([[len(tokens) for tokens in each["tokens"]] for each in features])
        batch = {
            "pixel_values": torch.stack(images),
            "image_rows": torch.tensor(image_rows),
            "input_ids": input_ids,
            "attention_mask": (torch.arange(num_tokens) < lengths[..., None]).long(),
            "token_type_ids": grid("types", 0, num_tokens),
            "box_patches": patches,
            "box_token_types": grid("box_types", 0, num_boxes),
        }
        if all(each["label"] is not None for each in features):
            batch["labels"] = torch.tensor([each["label"] for each in features])
        return batch

    def evaluate(self, model: PreTrainedModel, samples: Sequence[Sample], settings: EvaluationSettings) -> Evaluation:
        predicted = predict_all(
            model,
            samples,
            self,
            lambda keys, batch: finite(model(**batch).logits).softmax(dim=-1).tolist(),
            settings,
        )
        judged: list[VCRSample] = [sample for sample in readable(samples) if sample.key in predicted.results]
        chosen = {key: int(np.argmax(shares)) for key, shares in predicted.results.items()}
        labels = {sample.key: label for sample in judged if (label := self.label(sample)) is not None}
        scores, chance = {}, {}
        if labels:
            right = vcr_scores({"q2a": [chosen[key] for key in labels]}, {"q2a": list(labels.values())})
            scores, chance = {"accuracy": right["q2a"]}, CHANCE
        if settings.quick:
            return Evaluation(scores, chance, skipped=predicted.skipped)
        return Evaluation(
            scores,
            chance,
            galleries=self._galleries(judged, predicted.results, settings),
            tables=_tables(labels, chosen),
            values={"accuracy": [100.0 * (chosen[key] == label) for key, label in labels.items()]},
            predictions=[
                {
                    "key": sample.key,
                    "choice": chosen[sample.key],
                    "label": self.label(sample),
                    "probabilities": [round(share, 4) for share in predicted.results[sample.key]],
                }
                for sample in judged
            ],
            skipped=predicted.skipped,
        )

    def _spoken(self, part: Tagged, names: list[str], sample: VCRSample) -> Spoken:
        try:
            return cleaned(spoken(part, names), self.clean)
        except IndexError:
            tags = [index for word in part if not isinstance(word, str) for index in word]
            wrong = next(index for index in tags if not 0 <= index < len(names))
            raise SampleError(
                f"{sample.key}: a text names the object {wrong}, but the image has {len(names)} (the first is 0); "
                "correct the index or remove its row"
            ) from None

    def _galleries(
        self, samples: list[VCRSample], shares: dict[str, list[float]], settings: EvaluationSettings
    ) -> list[Gallery]:
        """Some questions with the image's objects drawn and named, and the candidates; `shares` are probabilities."""

        def goodness(sample: VCRSample) -> float:
            label = self.label(sample)
            if label is None:
                return math.nan
            row = shares[sample.key]
            return max(row) * (1 if int(np.argmax(row)) == label else -1)

        chosen = choose_examples([goodness(sample) for sample in samples], settings)
        note = "The arrow is the model's choice, green the right one."
        return [
            Gallery(f"{self.title}: {name}", [self._row(samples[i], shares[samples[i].key]) for i in indices], note)
            for name, indices in chosen.items()
        ]

    def _row(self, sample: VCRSample, shares: list[float]) -> GalleryRow:
        names = object_names([box.label for box in sample.objects])
        label, choice = self.label(sample), int(np.argmax(shares))
        cells = [Cell(draw_objects(sample))]
        for index, parts in enumerate(self.parts(sample)):
            mark: Mark = "good" if index == label else "bad" if index == choice and label is not None else ""
            text = " ".join(word for word, _ in numbered(parts[-1], names))
            cells.append(Cell(None, f"{'→ ' if index == choice else ''}{text}", mark))
        heading = " / ".join(" ".join(word for word, _ in numbered(part, names)) for part in self.asked(sample))
        return GalleryRow(heading, cells)


class VCRQ2ATask(VCRTask):
    """Which of four answers to a question is right."""

    name = "vcr-q2a"
    models: ClassVar[dict[str, type[PreTrainedModel]]] = {"vle": VLEForVCRQ2A}
    title = "Questions and the answers chosen"

    def parts(self, sample: VCRSample) -> list[tuple[Tagged, ...]]:
        return [(sample.question, answer) for answer in sample.answer_choices]

    def label(self, sample: VCRSample) -> int | None:
        return sample.answer_label

    def asked(self, sample: VCRSample) -> tuple[Tagged, ...]:
        return (sample.question,)


class VCRQA2RTask(VCRTask):
    """Which of four reasons is right for the right answer."""

    name = "vcr-qa2r"
    models: ClassVar[dict[str, type[PreTrainedModel]]] = {"vle": VLEForVCRQA2R}
    title = "Right answers and the reasons chosen"

    def parts(self, sample: VCRSample) -> list[tuple[Tagged, ...]]:
        return [(*self.asked(sample), rationale) for rationale in sample.rationale_choices]

    def label(self, sample: VCRSample) -> int | None:
        return sample.rationale_label

    def asked(self, sample: VCRSample) -> tuple[Tagged, ...]:
        if sample.answer_label is None:
            raise SampleError(
                f"{sample.key}: the right answer is not known; rank the reasons for each answer with `evle vcr`"
            )
        return sample.question, sample.answer_choices[sample.answer_label]


def numbered(part: Tagged, names: Sequence[str]) -> Spoken:
    """The words of a part, in which each name has the number of its drawn box."""
    return spoken(part, [f"{name} [{index}]" for index, name in enumerate(names)])


def draw_objects(sample: VCRSample) -> Image.Image:
    """The image with the box and the number of each of its objects."""
    image = open_image(sample.image)
    scale = max(1, round(224 / max(image.size)))  # enlarges small images so that numbers stay readable
    image = image.resize((image.width * scale, image.height * scale), Image.Resampling.NEAREST)
    draw = ImageDraw.Draw(image)
    line = max(1, image.width // 200)
    for index, box in enumerate(sample.objects):
        colour = BOX_COLOURS[index % len(BOX_COLOURS)]
        left, top = box.x * scale, box.y * scale
        draw.rectangle((left, top, left + box.width * scale, top + box.height * scale), outline=colour, width=line)
        draw.text((left + 2 * line, top + line), str(index), fill=colour)
    return image


def _tables(labels: dict[str, int], chosen: dict[str, int]) -> list[Table]:
    """Whether one position among the candidates, which are in random order, is preferred."""
    if not labels:
        return []
    truths, given = ([f"choice {each[key] + 1}" for key in labels] for each in (labels, chosen))
    return [class_table("Choices, by the position of the right one", truths, given)]
