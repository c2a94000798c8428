"""Does a text belong to a picture, is a sentence true of two?"""

from typing import Any

import torch
from torch import Tensor

from evle.errors import ConfigError, SampleError
from evle.pipelines.pipeline import Images, Pipeline, Texts, pairs
from evle.tasks.retrieval import RetrievalTask, learns_matching


class MatchPipeline(Pipeline):
    """The probability that a text is true of a picture, from a joint pass over both.

    >>> MatchPipeline("runs/retrieval")("a.jpg", ["a red circle", "two dogs"])  # doctest: +SKIP
    [{'text': 'a red circle', 'score': 0.97}, {'text': 'two dogs', 'score': 0.01}]
    """

    models = RetrievalTask.models

    def __call__(self, images: Images, texts: Texts) -> list[dict[str, Any]]:
        """One {"text", "score"} a pair: as many pictures as texts, or one of either for all of the other."""
        margins, failures = self.margins(images, texts)
        for error in failures.values():
            raise error
        _, listed = pairs(images, texts)
        scores = torch.sigmoid(margins).tolist()  # the softmax of two logits is the sigmoid of their difference
        return [{"text": text, "score": score} for text, score in zip(listed, scores, strict=True)]

    def margins(self, images: Images, texts: Texts) -> tuple[Tensor, dict[int, SampleError]]:
        """log(p / (1 - p)) of the match probability p, (N,) float32, to rank by: it does not run into 1 as p does.

        A picture that cannot be read has nan, and its error under its position in the second result. Raises ConfigError
        for a model that was trained by contrast alone.
        """
        if not learns_matching(self.model.config):
            raise ConfigError(
                f"{self.source or 'this model'} was trained by contrast alone (objective_weights.itm=0): it does not "
                "know matching; compare embeddings, or search without re-ranking"
            )
        sources, listed = pairs(images, texts)
        is_one_picture = len(sources) > 1 and all(source is sources[0] for source in sources)
        read = self.read_ahead(sources[:1] if is_one_picture else sources)
        first = next(read) if is_one_picture else None
        margins = torch.full((len(listed),), torch.nan)
        failures: dict[int, SampleError] = {}
        for start in range(0, len(listed), self.batch_size):
            rows, pixels = [], []
            for row in range(start, min(start + self.batch_size, len(listed))):
                picture = next(read) if first is None else first
                if isinstance(picture, SampleError):
                    failures[row] = picture
                else:
                    rows.append(row)
                    pixels.append(picture)
            if rows:
                with self.evaluating():
                    tokens = self.tokens([listed[row] for row in rows])
                    logits = self.model.itm_logits(self.pixel_values(pixels), **tokens).float().cpu()
                margins[rows] = logits[:, 1] - logits[:, 0]
        return margins, failures
