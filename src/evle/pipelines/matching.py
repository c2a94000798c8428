"""Does a text belong to an image, is a sentence true of two?"""

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor
from transformers import PreTrainedModel

from evle.errors import ConfigError, DataError, SampleError
from evle.models.vle import VLEForITM
from evle.pipelines.pipeline import Images, Pipeline, Texts, as_images, as_texts, pairs, readable
from evle.tasks.nlvr2 import NLVR2Task
from evle.tasks.retrieval import RetrievalTask, learns_matching


class MatchPipeline(Pipeline):
    """The probability that a text is true of an image, from a joint pass over both.

    >>> MatchPipeline("runs/retrieval")("a.jpg", ["a red circle", "two dogs"])  # doctest: +SKIP
    [{'text': 'a red circle', 'score': 0.97}, {'text': 'two dogs', 'score': 0.01}]
    """

    # Matching needs the matching head alone, which VLE's pre-trained, matching and retrieval checkpoints all have.
    models: ClassVar[Mapping[str, type[PreTrainedModel]]] = {**RetrievalTask.models, "vle": VLEForITM}

    def __call__(self, images: Images, texts: Texts) -> list[dict[str, Any]]:
        """One {"text", "score"} a pair: as many images as texts, or one of either for all of the other."""
        margins, failures = self.margins(images, texts)
        for error in failures.values():
            raise error
        _, listed = pairs(images, texts)
        scores = torch.sigmoid(margins).tolist()  # the softmax of two logits is the sigmoid of their difference
        return [{"text": text, "score": score} for text, score in zip(listed, scores, strict=True)]

    def margins(self, images: Images, texts: Texts) -> tuple[Tensor, dict[int, SampleError]]:
        """log(p / (1 - p)) of the match probability p, (N,) float32, to rank by: it does not run into 1 as p does.

        An image that cannot be read has nan, and its error under its position in the second result. Raises ConfigError
        for a model that was trained by contrast alone.
        """
        if not learns_matching(self.model.config):
            raise ConfigError(
                f"{self.source or 'this model'} was trained by contrast alone (objective_weights.itm=0): it does not "
                "know matching; compare embeddings, or search without re-ranking"
            )
        sources, listed = pairs(images, texts)
        is_one_image = len(sources) > 1 and all(source is sources[0] for source in sources)
        read = self.read_ahead(sources[:1] if is_one_image else sources)
        first = next(read) if is_one_image else None
        margins = torch.full((len(listed),), torch.nan)
        failures: dict[int, SampleError] = {}
        for start in range(0, len(listed), self.batch_size):
            rows, pixels = [], []
            for row in range(start, min(start + self.batch_size, len(listed))):
                image = next(read) if first is None else first
                if isinstance(image, SampleError):
                    failures[row] = image
                else:
                    rows.append(row)
                    pixels.append(image)
            if rows:
                with self.evaluating():
                    logits = self._logits(pixels[:1] if is_one_image else pixels, [listed[row] for row in rows])
                margins[rows] = logits[:, 1] - logits[:, 0]
        return margins, failures

    def _logits(self, pixels: list[Tensor], texts: list[str]) -> Tensor:
        """(B, 2) float32 on the CPU, column 1 = match, of B texts and as many images, or one for all of them.

        One image, and one text of several pairs, as in a search, are handed over once.
        """
        place_of = {text: place for place, text in enumerate(dict.fromkeys(texts))}
        device = self.model.device
        logits = self.model.itm_logits(
            self.pixel_values(pixels),
            **self.tokens(list(place_of)),
            image_rows=torch.arange(len(texts), device=device) % len(pixels),
            text_rows=torch.tensor([place_of[text] for text in texts], device=device),
        )
        return logits.float().cpu()


class ComparePipeline(Pipeline):
    """The probability that a sentence is true of two images (NLVR2).

    >>> ComparePipeline("runs/nlvr2")("left.jpg", "right.jpg", "both images show a dog")  # doctest: +SKIP
    [{'text': 'both images show a dog', 'score': 0.93}]
    """

    models = NLVR2Task.models

    def __call__(self, left: Images, right: Images, texts: Texts) -> list[dict[str, Any]]:
        """One {"text", "score"} a pair of images and its sentence; one of any of the three serves all of the others.

        Raises SampleError for an image that cannot be read.
        """
        lefts, rights, listed = as_images(left), as_images(right), as_texts(texts)
        counts = len(lefts), len(rights), len(listed)
        count = max(counts) if min(counts) else 0
        if not set(counts) <= {1, count}:
            raise DataError(
                f"{counts[0]} left images, {counts[1]} right ones and {counts[2]} texts do not go together; "
                "give as many of each, or one"
            )
        lefts, rights = (side * (count // len(side) if side else 0) for side in (lefts, rights))
        listed = listed * (count // len(listed) if listed else 0)
        found = []
        # Rows of two images, one after the other.
        pictures = self.read_ahead(source for pair in zip(lefts, rights, strict=True) for source in pair)
        for start in range(0, count, self.batch_size):
            said = listed[start : start + self.batch_size]
            pixels = self.pixel_values([readable(next(pictures)) for _ in range(2 * len(said))]).unflatten(0, (-1, 2))
            with self.evaluating():
                logits = self.model(pixel_values=pixels, **self.tokens(said)).logits.float()
            scores = logits.softmax(dim=-1)[:, 1].tolist()
            found += [{"text": text, "score": score} for text, score in zip(said, scores, strict=True)]
        return found
