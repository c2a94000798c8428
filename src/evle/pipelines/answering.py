"""Questions about images, answered."""

from collections.abc import Sequence
from typing import Any

from evle.data.samples import ImageSource
from evle.errors import ConfigError
from evle.pipelines.pipeline import Images, Pipeline, Texts, pairs
from evle.tasks.vqa import VQAConfig, VQATask, has_slot
from evle.transforms.text import clean_question, encode, encode_with_slot


class VQAPipeline(Pipeline):
    """Answers to questions about images, from the answers the model was trained with.

    >>> VQAPipeline("runs/vqa")("a.jpg", "What colour is the circle?")[0]["answer"]  # doctest: +SKIP
    'red'
    """

    models = VQATask.models

    def clean(self, text: str) -> str:
        """A question as the task's evaluation reads it: of more words than a caption."""
        longest = self.trained_as.get("max_test_words", VQAConfig().max_test_words)
        return clean_question(text, longest) if self.text.clean else text

    def encode(self, text: str, longest: int) -> list[int]:
        """Token ids of a question, with a place for the answer where the model reads it there."""
        encoder = encode_with_slot if has_slot(self.model.config) else encode
        return encoder(self.processor.tokenizer, text, longest)

    def __call__(self, images: Images, questions: Texts, *, top_k: int = 5) -> list[dict[str, Any]]:
        """One {"question", "answer", "score", "answers"} a pair, `answers` being the `top_k` best {"answer", "score"}.

        As many images as questions, or one of either for all of the other. A score is a probability of its own (the
        scores do not sum to 1). Raises SampleError for an image that cannot be read.
        """
        sources, listed = pairs(images, questions)
        found = self.best(sources, listed, top_k)
        return [{"question": question, **row[0], "answers": row} for question, row in zip(listed, found, strict=True)]

    def best(
        self, sources: Sequence[ImageSource], questions: Sequence[str], top_k: int, *, softmax: bool = False
    ) -> list[list[dict[str, Any]]]:
        """The `top_k` best {"answer", "score"} of each image and its question.

        With `softmax` the scores sum to 1 over all answers, as if one alone were right.
        """
        if top_k < 1:
            raise ConfigError(f"top_k is {top_k}; ask for at least 1 answer")
        names = self.model.config.id2label
        found = []
        for pictures, asked in self.batches(sources, questions):
            with self.evaluating():
                logits = self.model(pixel_values=self.pixel_values(pictures), **self.tokens(asked)).logits.float()
            shares = logits.softmax(dim=-1) if softmax else logits.sigmoid()
            scores, answers = shares.topk(min(top_k, logits.shape[1]))  # (B, k)
            for row, ids in zip(scores.tolist(), answers.tolist(), strict=True):
                found.append([{"answer": names[i], "score": score} for i, score in zip(ids, row, strict=True)])
        return found
