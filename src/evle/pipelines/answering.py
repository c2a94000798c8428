"""Questions about pictures, answered."""

from typing import Any

import torch

from evle.errors import ConfigError
from evle.pipelines.pipeline import Images, Pipeline, Texts, pairs
from evle.tasks.vqa import VQAOptions, VQATask
from evle.transforms.text import clean_question


class VQAPipeline(Pipeline):
    """Answers to questions about pictures, from the answers the model was trained with.

    >>> VQAPipeline("runs/vqa")("a.jpg", "What colour is the circle?")[0]["answer"]  # doctest: +SKIP
    'red'
    """

    models = VQATask.models

    def clean(self, text: str) -> str:
        """A question as the task's evaluation reads it: of more words than a caption."""
        return clean_question(text, VQAOptions().max_test_words) if self.text.clean else text

    def __call__(self, images: Images, questions: Texts, *, top_k: int = 5) -> list[dict[str, Any]]:
        """One {"question", "answer", "score", "answers"} a pair, `answers` being the `top_k` best {"answer", "score"}.

        As many pictures as questions, or one of either for all of the other. A score is a probability of its own (the
        scores do not sum to 1). Raises SampleError for a picture that cannot be read.
        """
        if top_k < 1:
            raise ConfigError(f"top_k is {top_k}; ask for at least 1 answer")
        sources, listed = pairs(images, questions)
        names = self.model.config.id2label
        found = []
        for pictures, asked in self.batches(sources, listed):
            with self.evaluating():
                logits = self.model(pixel_values=self.pixel_values(pictures), **self.tokens(asked)).logits.float()
            scores, answers = torch.sigmoid(logits).topk(min(top_k, logits.shape[1]))  # (B, k)
            for question, row, ids in zip(asked, scores.tolist(), answers.tolist(), strict=True):
                best = [{"answer": names[i], "score": score} for i, score in zip(ids, row, strict=True)]
                found.append({"question": question, **best[0], "answers": best})
        return found
