"""Zero-shot classification: which of some labels fits an image best?"""

from typing import Any

import torch

from evle.data.requests import Images, Texts, label_texts
from evle.pipelines.embedding import EmbedPipeline

TEMPLATE = "a photo of a {}."


class ClassifyPipeline(EmbedPipeline):
    """The probability of each of some labels, by the similarity of image and label; takes what `EmbedPipeline` takes.

    >>> ClassifyPipeline("models/clip")("a.jpg", ["dog", "cat"])[0][0]  # doctest: +SKIP
    {'label': 'dog', 'score': 0.98}
    """

    def __call__(self, images: Images, labels: Texts, *, template: str = TEMPLATE) -> list[list[dict[str, Any]]]:
        """For each image the labels as {"label", "score"}, best first; the scores of an image sum to 1.

        `template` is the text of a label, with {} where the label goes. Raises ConfigError without a label or {}, and
        for two labels that the model reads as one.
        """
        names, texts = label_texts(labels, template, self.task.read_text)
        logits = self.images(images) @ self.texts(texts).T * float(self.scale())
        results = []
        for row in logits.softmax(dim=1).tolist():
            order = sorted(range(len(names)), key=lambda index: -row[index])
            results.append([{"label": names[index], "score": row[index]} for index in order])
        return results

    def scale(self) -> float:
        """What cosines are multiplied by before the softmax."""
        with torch.no_grad():
            return self._scale()

    def _scale(self) -> float:
        if hasattr(self.model, "similarity_scale"):
            return float(self.model.similarity_scale())
        return 1 / float(self.model.contrast.clamped_temperature())
