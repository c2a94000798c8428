"""The pipelines of an exported model, which run without torch.

They have the names, the calls and the results of `evle.pipelines`, with arrays of numpy for tensors.

B rows of a batch, N rows in all, D embedding width.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from evle.data.images import open_image
from evle.data.requests import (
    Images,
    ReadBatch,
    Texts,
    as_images,
    as_texts,
    batches_by_length,
    label_texts,
    pair_batches,
    pairs,
    read_ahead,
    readable_batches,
    triples,
)
from evle.data.samples import ImageSource
from evle.errors import CheckpointError, SampleError, at_least
from evle.exported.folder import ExportedModel, labels_of
from evle.exported.reading import Arrays, ImageReader, TextReader
from evle.transforms.heatmap import paint

TEMPLATE = "a photo of a {}."


class ExportedPipeline:
    """What the pipelines of an exported folder share: its graphs, and its readers of images and texts.

    `num_workers` threads read images; `num_threads` (by default all cores) compute. `graphs` are those of another
    pipeline of the same folder, to share. Several threads may call one pipeline. Raises CheckpointError for a folder
    without the graphs of this pipeline.
    """

    functions: ClassVar[tuple[str, ...]]
    """The graphs that it runs."""

    def __init__(
        self,
        source: str | Path,
        *,
        batch_size: int = 32,
        num_workers: int = 2,
        num_threads: int | None = None,
        graphs: ExportedModel | None = None,
    ):
        rows, workers = at_least(1, batch_size, "batch_size"), at_least(0, num_workers, "num_workers")
        self.source = str(source)
        self.graphs = ExportedModel(source, num_threads) if graphs is None else graphs
        self.graphs.require(*self.functions)
        self.image_reader = ImageReader(self.graphs.facts["image"])
        self.text_reader = TextReader(self.graphs.path, self.graphs.facts["text"])
        self.batch_size = rows
        self.num_workers = workers

    def read_ahead(self, sources: Iterable[Any]) -> Iterator[np.ndarray | SampleError]:
        """The pixels of each source in order, or why there are none."""
        return read_ahead(self.image_reader.read_or_error, sources, self.num_workers, 2 * self.batch_size)

    def run_pairs(
        self, function: str, sources: Sequence[ImageSource], texts: Sequence[str]
    ) -> Iterator[tuple[ReadBatch[np.ndarray], np.ndarray]]:
        """The output (B, ...) of a graph of image-text pairs by batch, with the rows that it belongs to."""
        token_lists = [self.text_reader.read(text) for text in texts]
        for batch in pair_batches(self.read_ahead, sources, token_lists, self.batch_size):
            output = np.empty(0)
            if batch.rows:
                pixels = self.image_reader.collate(batch.images * (len(batch.rows) // len(batch.images)))
                tokens = self.text_reader.collate([token_lists[index] for index in batch.rows])
                output = self.graphs.run(function, {**pixels, **tokens})
            yield batch, output

    def run_all_pairs(self, function: str, sources: Sequence[ImageSource], texts: Sequence[str]) -> np.ndarray:
        """The output (N, ...) of a graph of N image-text pairs. Raises SampleError for an image that cannot be read."""
        rows: list[np.ndarray] = [np.empty(0)] * len(texts)
        for batch, output in self.run_pairs(function, sources, texts):
            for error in batch.failures.values():
                raise error
            for index, row in zip(batch.rows, output, strict=True):
                rows[index] = row
        return np.stack(rows) if rows else np.empty((0, 0), np.float32)


@dataclass
class EmbeddedImages:
    """A batch of embedded images, as `evle.pipelines.EmbeddedImages` with `features` (B, D) as an array."""

    rows: list[int]
    features: np.ndarray
    failures: dict[int, SampleError] = field(default_factory=dict)


class EmbedPipeline(ExportedPipeline):
    """Images and texts as unit vectors (N, D) float32.

    >>> embed = EmbedPipeline("exported/photos")  # doctest: +SKIP
    >>> embed.texts(["a red circle"]) @ embed.images(["a.jpg", "b.jpg"]).T  # doctest: +SKIP
    array([[0.61, 0.08]], dtype=float32)
    """

    functions = ("image", "text")

    def texts(self, texts: Texts) -> np.ndarray:
        """Embeddings (N, D) float32."""
        token_lists = [self.text_reader.read(text) for text in as_texts(texts)]
        if not token_lists:
            return np.empty((0, self.dimension), np.float32)
        rows: list[np.ndarray] = [np.empty(0)] * len(token_lists)
        for indices in batches_by_length(token_lists, self.batch_size):
            inputs = self.text_reader.collate([token_lists[index] for index in indices])
            for index, row in zip(indices, self.graphs.run("text", inputs), strict=True):
                rows[index] = row
        return np.stack(rows)

    def images(self, images: Images) -> np.ndarray:
        """Embeddings (N, D) float32. Raises SampleError at the first image that cannot be read."""
        parts = []
        for batch in self.image_batches(as_images(images)):
            for error in batch.failures.values():
                raise error
            parts.append(batch.features)
        return np.concatenate(parts) if parts else np.empty((0, self.dimension), np.float32)

    def image_batches(self, sources: Iterable[ImageSource]) -> Iterator[EmbeddedImages]:
        """Embeddings batch by batch, of any number of images; those that cannot be read are named and left out."""
        for batch in readable_batches(self.read_ahead(sources), self.batch_size):
            yield EmbeddedImages(batch.rows, self._embed(batch.images), batch.failures)

    @cached_property
    def dimension(self) -> int:
        """D."""
        return int(self.texts("a").shape[1])

    @property
    def fingerprint(self) -> str:
        """The fingerprint of the model that was exported: an index of the one can be searched with the other."""
        return str(self.graphs.fact("fingerprint", str))

    def _embed(self, pixels: list[np.ndarray]) -> np.ndarray:
        if not pixels:
            return np.empty((0, self.dimension), np.float32)
        return self.graphs.run("image", self.image_reader.collate(pixels))


class ClassifyPipeline(EmbedPipeline):
    """The probability of each of some labels, by the similarity of image and label."""

    def __call__(self, images: Images, labels: Texts, *, template: str = TEMPLATE) -> list[list[dict[str, Any]]]:
        """For each image the labels as {"label", "score"}, best first; the scores of an image sum to 1.

        `template` is the text of a label, with {} where the label goes. Raises ConfigError without a label or {}, and
        for two labels that the model reads as one.
        """
        names, texts = label_texts(labels, template, self.text_reader.read)
        shares = softmax(self.images(images) @ self.texts(texts).T * np.float32(self.graphs.fact("scale", float)))
        order = np.argsort(-shares, axis=1, kind="stable")
        return [
            [{"label": names[index], "score": float(row[index])} for index in indices]
            for row, indices in zip(shares, order)
        ]


class MatchPipeline(ExportedPipeline):
    """The probability that a text is true of an image, from a joint pass over both."""

    functions = ("match",)

    def __call__(self, images: Images, texts: Texts) -> list[dict[str, Any]]:
        """One {"text", "score"} per pair: the same number of images and texts, or one of either for all of the other.

        Raises SampleError for an image that cannot be read.
        """
        sources, listed = pairs(images, texts)
        margins, failures = self.margins(sources, listed)
        for error in failures.values():
            raise error
        return [{"text": text, "score": score} for text, score in zip(listed, sigmoid(margins).tolist(), strict=True)]

    def margins(self, images: Images, texts: Texts) -> tuple[np.ndarray, dict[int, SampleError]]:
        """log(p / (1 - p)) of the match probability p, (N,) float32; nan for an image that cannot be read, whose error
        is in the second result under its index."""
        sources, listed = pairs(images, texts)
        margins = np.full(len(listed), np.nan, np.float32)
        failures: dict[int, SampleError] = {}
        for batch, logits in self.run_pairs("match", sources, listed):
            failures |= batch.failures
            if batch.rows:
                margins[batch.rows] = logits[:, 1] - logits[:, 0]
        return margins, dict(sorted(failures.items()))


class VQAPipeline(ExportedPipeline):
    """Answers to questions about images, chosen from the answers that the model was trained with."""

    functions = ("answer",)

    def __call__(self, images: Images, questions: Texts, *, top_k: int = 5) -> list[dict[str, Any]]:
        """One {"question", "answer", "score", "answers"} per pair; `answers` are the `top_k` best {"answer", "score"}.

        Raises SampleError for an image that cannot be read.
        """
        at_least(1, top_k, "top_k")
        sources, listed = pairs(images, questions)
        shares = sigmoid(self.run_all_pairs("answer", sources, listed))
        names, result = labels_of(self.graphs.path), []
        if listed and shares.shape[1] != len(names):
            raise CheckpointError(
                f"{self.graphs.path}: config.json names {len(names)} answers, but the graph has {shares.shape[1]}; "
                "export the model again"
            )
        for question, row in zip(listed, shares, strict=True):
            best = np.argsort(-row, kind="stable")[:top_k]
            answers = [{"answer": names[index], "score": float(row[index])} for index in best]
            result.append({"question": question, **answers[0], "answers": answers})
        return result


class ComparePipeline(ExportedPipeline):
    """The probability that a sentence is true of two images (NLVR2)."""

    functions = ("compare",)

    def __call__(self, left: Images, right: Images, texts: Texts) -> list[dict[str, Any]]:
        """One {"text", "score"} per pair of images and its sentence; a single one of the three serves all rows.

        Raises SampleError for an image that cannot be read.
        """
        lefts, rights, listed = triples(left, right, texts)
        read = [[readable(image) for image in self.read_ahead(side)] for side in (lefts, rights)]
        result = []
        for start in range(0, len(listed), self.batch_size):
            rows = slice(start, start + self.batch_size)
            values = [self.image_reader.collate(side[rows])["pixel_values"] for side in read]
            inputs: Arrays = {"pixel_values": np.stack(values, axis=1)}
            inputs |= self.text_reader.collate([self.text_reader.read(text) for text in listed[rows]])
            scores = softmax(self.graphs.run("compare", inputs))[:, 1]
            result += [{"text": text, "score": float(score)} for text, score in zip(listed[rows], scores)]
        return result


@dataclass(frozen=True)
class Location:
    """Where an image shows what `text` describes, as `evle.pipelines.Location` with `scores` (G, G) as an array."""

    text: str
    scores: np.ndarray
    image: Any


class LocalisePipeline(ExportedPipeline):
    """The patches of an image that a phrase describes (VLE, pre-trained with "pbc")."""

    functions = ("locate",)

    def __call__(self, images: Images, texts: Texts) -> list[Location]:
        """One `Location` per pair: the same number of images and texts, or one of either for all of the other.

        Raises SampleError for an image that cannot be read.
        """
        sources, listed = pairs(images, texts)
        if not listed:
            return []
        shares = softmax(self.run_all_pairs("locate", sources, listed))[..., 1]  # (N, P)
        side = round(shares.shape[1] ** 0.5)
        result = []
        for source, text, row in zip(sources, listed, shares.reshape(-1, side, side), strict=True):
            image = paint(open_image(source), row, framing=self.image_reader.framing)
            result.append(Location(text, row, image))
        return result


def readable(read: np.ndarray | SampleError) -> np.ndarray:
    """The pixels that were read. Raises the error if there are none."""
    if isinstance(read, SampleError):
        raise read
    return read


def sigmoid(logits: np.ndarray) -> np.ndarray:
    """1 / (1 + exp(-x)), without overflow."""
    return np.exp(-np.logaddexp(0, -logits))


def softmax(logits: np.ndarray) -> np.ndarray:
    """Shares over the last axis."""
    shares = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return shares / shares.sum(axis=-1, keepdims=True)
