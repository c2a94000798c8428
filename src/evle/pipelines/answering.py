"""Answers to questions about images."""

from collections.abc import Sequence
from typing import Any

from evle.data.requests import Images, Texts, batches_by_length, pairs
from evle.data.samples import ImageSource
from evle.errors import at_least
from evle.models.soundness import finite
from evle.pipelines.pipeline import Pipeline, readable
from evle.tasks.vqa import VQATask, has_slot


class VQAPipeline(Pipeline):
    """Answers to questions about images, chosen from the answers that the model was trained with.

    >>> VQAPipeline("runs/vqa")("a.jpg", "What colour is the circle?")[0]["answer"]  # doctest: +SKIP
    'red'
    """

    models = VQATask.models
    task_type = VQATask
    kept_options = ("max_test_words",)

    def make_task(self, **options: Any) -> VQATask:
        task = super().make_task(**options)
        assert isinstance(task, VQATask)
        # Not `bind`: the names of a head's answers may be unknown, as those of a converted checkpoint are.
        task.reads_slot = has_slot(self.model.config)
        return task

    def __call__(self, images: Images, questions: Texts, *, top_k: int = 5) -> list[dict[str, Any]]:
        """One {"question", "answer", "score", "answers"} per pair; `answers` are the `top_k` best {"answer", "score"}.

        The same number of images and questions, or one of either for all of the other. Each score is the probability
        of that answer by itself (scores do not sum to 1). Raises SampleError for an image that cannot be read.
        """
        sources, listed = pairs(images, questions)
        rows = self.best(sources, listed, top_k)
        return [{"question": question, **row[0], "answers": row} for question, row in zip(listed, rows, strict=True)]

    def best(
        self, sources: Sequence[ImageSource], questions: Sequence[str], top_k: int, *, softmax: bool = False
    ) -> list[list[dict[str, Any]]]:
        """The `top_k` best {"answer", "score"} of each image and its question.

        With `softmax` the scores sum to 1 over all answers, as if exactly one were right.
        """
        at_least(1, top_k, "top_k")
        names = self.model.config.id2label
        token_lists = [self.task.read_text(question) for question in questions]
        batches = list(batches_by_length(token_lists, self.batch_size))
        images = self.read_ahead(sources[index] for batch in batches for index in batch)
        result: list[list[dict[str, Any]]] = [[] for _ in questions]
        for batch in batches:
            pixel_values = self.pixel_values([readable(next(images)) for _ in batch])
            tokens = self.pad_tokens([token_lists[index] for index in batch])
            with self.evaluating():
                logits = finite(self.model(pixel_values=pixel_values, **tokens).logits)
            shares = logits.softmax(dim=-1) if softmax else logits.sigmoid()
            scores, answers = shares.topk(min(top_k, logits.shape[1]))  # (B, k)
            for index, row, ids in zip(batch, scores.tolist(), answers.tolist(), strict=True):
                result[index] = [{"answer": names[i], "score": score} for i, score in zip(ids, row, strict=True)]
        return result
