"""The pipelines of VLE's release under their released names, arguments and results, so that scripts change an import.

Each takes `model`, `device` and `vle_processor`, and returns what the released README prints; the work is done by the
pipelines of the other files. Where the release gives a score of another kind than its head was trained for, ours gives
the right kind, and `released_scores=True` the released one.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence, Sized
from itertools import islice
from pathlib import Path
from typing import Any, ClassVar, cast

import torch
from torch.utils.data import Dataset
from transformers import PreTrainedModel, ProcessorMixin

from evle.data.corpora.vcr import vcr_sample
from evle.data.samples import ImageSource, VCRSample
from evle.errors import ConfigError, DataError, at_least
from evle.models.vle import VLEForITM, VLEForPBC, VLEForVCRQ2A, VLEForVCRQA2R, VLEForVQA
from evle.pipelines.answering import VQAPipeline
from evle.pipelines.localising import LocalisePipeline
from evle.pipelines.matching import MatchPipeline
from evle.pipelines.reasoning import AnswerChoicePipeline, ChoosePipeline, ReasonChoicePipeline

Device = str | int | torch.device | None
"""A device as transformers' pipelines take it: -1 is the CPU, 0 the first accelerator, None where the model is."""


class ReleasedPipeline:
    """What the released pipelines share: their construction, and one pair or many as input.

    `batch_size` rows go through the model at once, here or in a call; results do not depend on it.
    """

    head: ClassVar[type[PreTrainedModel]]

    def __init__(
        self,
        vle_processor: ProcessorMixin,
        model: PreTrainedModel,
        *,
        device: Device = None,
        batch_size: int = 8,
    ):
        if not isinstance(model, self.head):
            raise ConfigError(
                f"{type(self).__name__} needs a {self.head.__name__}, not a {type(model).__name__}; load it with "
                f"{self.head.__name__}.from_pretrained"
            )
        self.model = model
        self.vle_processor = vle_processor
        self.batch_size = at_least(1, batch_size, "batch_size")
        self.options: dict[str, Any] = {
            "model": model,
            "processor": vle_processor,
            "device": torch.device("cpu") if device == -1 else None if device is None else torch.device(device),
        }


class PairPipeline(ReleasedPipeline):
    """A released pipeline on pairs of an image and a text, whose name in a pair is `text_name`."""

    text_name: ClassVar[str] = "text"

    def one(self, sources: list[ImageSource], texts: list[str], **options: Any) -> list[Any]:
        """A result for each pair of one batch."""
        raise NotImplementedError

    def run(self, image: Any, text: str | None, batch_size: int | None, **options: Any) -> Any:
        """`image` and `text` of one pair, or `image` a pair as a dict, a list of pairs, or any iterable or torch
        dataset of them.

        One result for one pair, a list for a list, an iterator for anything else. `batch_size` of None is the
        pipeline's own.
        """
        rows = at_least(1, self.batch_size if batch_size is None else batch_size, "batch_size")
        if isinstance(text, str):
            return self.one([image], [text], **options)[0]
        if isinstance(image, Mapping):
            return self.one(*self._columns([image]), **options)[0]
        if isinstance(image, list | tuple):
            return list(self._each(image, rows, options))
        if isinstance(image, Iterable) and not isinstance(image, str | bytes):
            return self._each(image, rows, options)
        if isinstance(image, Dataset):
            # It has a length and places, and need not end an iteration by IndexError.
            return self._each((image[place] for place in range(len(cast(Sized, image)))), rows, options)
        raise DataError(
            f"{type(self).__name__} takes image= and {self.text_name}=, or pairs such as "
            f'{{"image": ..., "{self.text_name}": ...}}, one or many'
        )

    def _each(self, pairs: Iterable[Mapping[str, Any]], rows: int, options: dict[str, Any]) -> Iterator[Any]:
        rest = iter(pairs)
        while batch := list(islice(rest, rows)):
            yield from self.one(*self._columns(batch), **options)

    def _columns(self, pairs: Sequence[Mapping[str, Any]]) -> tuple[list[ImageSource], list[str]]:
        for pair in pairs:
            if not isinstance(pair, Mapping) or not {"image", self.text_name} <= set(pair):
                given = sorted(pair) if isinstance(pair, Mapping) else type(pair).__name__
                raise DataError(f'a pair needs "image" and "{self.text_name}"; given: {given}')
        return [pair["image"] for pair in pairs], [pair[self.text_name] for pair in pairs]


class VLEForVQAPipeline(PairPipeline):
    """Answers to a question, the best first.

    A score is the probability of that answer by itself, as the head was trained (sigmoid); with `released_scores` the
    softmax over all answers, which the released code shows. Both give the same order.
    """

    head = VLEForVQA
    text_name = "question"

    def __init__(self, *arguments: Any, released_scores: bool = False, **options: Any):
        super().__init__(*arguments, **options)
        self.released_scores = released_scores

    def __call__(
        self, image: Any, question: str | None = None, *, top_k: int | None = 1, batch_size: int | None = None
    ) -> Any:
        """[{"score", "answer"}, ...] of one pair, the `top_k` best (None: 1, as released); forms of input as in
        `PairPipeline.run`."""
        return self.run(image, question, batch_size, top_k=1 if top_k is None else top_k)

    def one(self, sources: list[ImageSource], texts: list[str], *, top_k: int = 1, **_: Any) -> list[Any]:
        found = VQAPipeline(**self.options, batch_size=len(sources)).best(
            sources, texts, top_k, softmax=self.released_scores
        )
        return [[{"score": each["score"], "answer": each["answer"]} for each in row] for row in found]


class VLEForITMPipeline(PairPipeline):
    """Do an image and a text belong together?"""

    head = VLEForITM

    def __call__(self, image: Any, text: str | None = None, *, batch_size: int | None = None) -> Any:
        """{"score": [probability of no match, of a match], "match": "True" or "False"} of one pair; forms of input as
        in `PairPipeline.run`."""
        return self.run(image, text, batch_size)

    def one(self, sources: list[ImageSource], texts: list[str], **_: Any) -> list[Any]:
        found = MatchPipeline(**self.options, batch_size=len(sources))(sources, texts)
        return [{"score": [1 - row["score"], row["score"]], "match": str(row["score"] > 0.5)} for row in found]


class VLEForPBCPipeline(PairPipeline):
    """Which patches of an image belong to a text?"""

    head = VLEForPBC

    def __call__(self, image: Any, text: str | None = None, *, batch_size: int | None = None) -> Any:
        """{"score": [[probability of no, of yes], ...] patch by patch, row by row, "image": the painted image} of one
        pair; forms of input as in `PairPipeline.run`."""
        return self.run(image, text, batch_size)

    def one(self, sources: list[ImageSource], texts: list[str], **_: Any) -> list[Any]:
        found = LocalisePipeline(**self.options, batch_size=len(sources))(sources, texts)
        return [
            {"score": torch.stack([1 - each.scores, each.scores], dim=-1).flatten(0, 1).tolist(), "image": each.image}
            for each in found
        ]


class VCRReleasedPipeline(ReleasedPipeline):
    """What the two released VCR pipelines share.

    Labels are not needed. A score is the probability of a candidate; with `released_scores` its logit.
    `released_boxes` maps boxes as the released code does, over the whole image although the model sees its middle.
    """

    chooser: ClassVar[type[ChoosePipeline]]

    def __init__(self, *arguments: Any, released_scores: bool = False, released_boxes: bool = False, **options: Any):
        super().__init__(*arguments, **options)
        self.released_scores = released_scores
        self.choose = self.chooser(**self.options, batch_size=self.batch_size, released_boxes=released_boxes)

    def __call__(
        self, vcr_image_root: str | Path | None = None, meta_inputs: Any = None, *, batch_size: int | None = None
    ) -> Any:
        """[{"score": [of each candidate], "pred": [the best one's place]}] of one sample, a list of such for many.

        `meta_inputs` is a row of VCR's annotations, whose image and metadata are files below `vcr_image_root`, or a
        `VCRSample`, or a list of either. Raises SampleError for a sample that cannot be used.
        """
        many = isinstance(meta_inputs, list | tuple)
        samples = [self._sample(each, vcr_image_root) for each in (meta_inputs if many else [meta_inputs])]
        found = [
            [{"score": each.logits if self.released_scores else each.scores, "pred": [each.choice]}]
            for each in self.choose.choose(samples, batch_size)
        ]
        return found if many else found[0]

    def _sample(self, given: Any, root: str | Path | None) -> VCRSample:
        if isinstance(given, VCRSample):
            return given
        if not isinstance(given, Mapping) or root is None:
            raise DataError(
                f"{type(self).__name__} takes vcr_image_root= and meta_inputs=, a row of VCR's annotations, or "
                "meta_inputs= alone, a VCRSample"
            )
        return vcr_sample({"annot_id": "a row of VCR", **given}, root)


class VLEForVCRQ2APipeline(VCRReleasedPipeline):
    """Which of four answers to a question is right?"""

    head = VLEForVCRQ2A
    chooser = AnswerChoicePipeline


class VLEForVCRQA2RPipeline(VCRReleasedPipeline):
    """Which of four reasons is the right one for the right answer, the row's `answer_label`?"""

    head = VLEForVCRQA2R
    chooser = ReasonChoicePipeline
