"""Does a text belong to an image? Is a sentence true of two images?"""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor
from transformers import PreTrainedModel

from evle.data.requests import Images, Texts, pair_batches, pairs, triples
from evle.errors import ConfigError, SampleError
from evle.models.soundness import finite
from evle.models.vle import VLEForITM
from evle.pipelines.pipeline import Pipeline, readable
from evle.tasks.nlvr2 import NLVR2Task
from evle.tasks.retrieval import RetrievalTask, learns_matching


class MatchPipeline(Pipeline):
    """The probability that a text is true of an image, from a joint pass over both.

    >>> MatchPipeline("runs/retrieval")("a.jpg", ["a red circle", "two dogs"])  # doctest: +SKIP
    [{'text': 'a red circle', 'score': 0.97}, {'text': 'two dogs', 'score': 0.01}]
    """

    # Matching needs the matching head alone, which VLE's pre-trained, matching and retrieval checkpoints all have.
    models: ClassVar[Mapping[str, type[PreTrainedModel]]] = {**RetrievalTask.models, "vle": VLEForITM}
    task_type = RetrievalTask

    @classmethod
    def classes(cls) -> tuple[type, ...]:
        """Objects may also have more than the matching head."""
        return *super().classes(), *RetrievalTask.models.values()

    def __call__(self, images: Images, texts: Texts) -> list[dict[str, Any]]:
        """One {"text", "score"} per pair: the same number of images and texts, or one of either for all of the other.

        Raises SampleError for an image that cannot be read.
        """
        sources, listed = pairs(images, texts)
        margins, failures = self.margins(sources, listed)
        for error in failures.values():
            raise error
        scores = torch.sigmoid(margins).tolist()  # the softmax of two logits is the sigmoid of their difference
        return [{"text": text, "score": score} for text, score in zip(listed, scores, strict=True)]

    def margins(self, images: Images, texts: Texts) -> tuple[Tensor, dict[int, SampleError]]:
        """log(p / (1 - p)) of the match probability p, (N,) float32, to rank by: it does not saturate at 1 as p does.

        An image that cannot be read has nan, and its error under its position in the second result. Raises ConfigError
        for a model that was trained by contrast alone.
        """
        if not learns_matching(self.model.config):
            raise ConfigError(
                f"{self.source or 'this model'} was trained by contrast alone (objective_weights.itm=0) and cannot "
                "match; compare embeddings, or search without re-ranking"
            )
        sources, listed = pairs(images, texts)
        read_tokens = {text: self.task.read_text(text) for text in dict.fromkeys(listed)}
        token_lists = [read_tokens[text] for text in listed]
        margins = torch.full((len(listed),), torch.nan)
        failures: dict[int, SampleError] = {}
        for batch in pair_batches(self.read_ahead, sources, token_lists, self.batch_size):
            failures |= batch.failures
            if batch.rows:
                with self.evaluating():
                    logits = self._logits(batch.images, [token_lists[row] for row in batch.rows])
                margins[batch.rows] = logits[:, 1] - logits[:, 0]
        return margins, dict(sorted(failures.items()))

    def _logits(self, pixels: list[Tensor], token_lists: Sequence[list[int]]) -> Tensor:
        """(B, 2) float32 on the CPU, column 1 = match, of B texts and the same number of images, or one for all.

        One image, and a text that several pairs share, as in a search, are encoded once.
        """
        index_of = {tokens: index for index, tokens in enumerate(dict.fromkeys(map(tuple, token_lists)))}
        device = self.model.device
        logits = self.model.itm_logits(
            self.pixel_values(pixels),
            **self.pad_tokens([list(tokens) for tokens in index_of]),
            image_rows=torch.arange(len(token_lists), device=device) % len(pixels),
            text_rows=torch.tensor([index_of[tuple(tokens)] for tokens in token_lists], device=device),
        )
        return finite(logits)


class ComparePipeline(Pipeline):
    """The probability that a sentence is true of two images (NLVR2).

    >>> ComparePipeline("runs/nlvr2")("left.jpg", "right.jpg", "both images show a dog")  # doctest: +SKIP
    [{'text': 'both images show a dog', 'score': 0.93}]
    """

    models = NLVR2Task.models
    task_type = NLVR2Task

    def __call__(self, left: Images, right: Images, texts: Texts) -> list[dict[str, Any]]:
        """One {"text", "score"} per pair of images and its sentence; a single one of the three serves all rows.

        Raises SampleError for an image that cannot be read.
        """
        lefts, rights, listed = triples(left, right, texts)
        result = []
        # Rows of two images, one after the other.
        images = self.read_ahead(source for pair in zip(lefts, rights, strict=True) for source in pair)
        for start in range(0, len(listed), self.batch_size):
            batch = listed[start : start + self.batch_size]
            pixels = self.pixel_values([readable(next(images)) for _ in range(2 * len(batch))]).unflatten(0, (-1, 2))
            with self.evaluating():
                logits = finite(self.model(pixel_values=pixels, **self.tokens(batch)).logits)
            scores = logits.softmax(dim=-1)[:, 1].tolist()
            result += [{"text": text, "score": score} for text, score in zip(batch, scores, strict=True)]
        return result
