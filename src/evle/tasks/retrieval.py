"""Image-text retrieval: contrast of separate embeddings, then re-ranking of the best by joint passes (EVE section 4;
ALBEF's protocol).

N images, M texts, D embedding width, K candidates kept per query.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, ClassVar, NamedTuple, cast

import numpy as np
import torch
from pydantic import Field
from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedModel

from evle.data.images import open_image
from evle.data.samples import CaptionSample, Sample, readable
from evle.errors import ConfigError
from evle.metrics import NOT_FOUND, best_ranks, retrieval_chance, retrieval_scores, top_k
from evle.models.eve import EVEForRetrieval
from evle.models.soundness import finite
from evle.models.vle import VLEForRetrieval
from evle.report import Cell, Gallery, GalleryRow, Mark
from evle.tasks.captions import CaptionConfig, match_name, match_of, training_text
from evle.tasks.examples import choose_examples
from evle.tasks.predict import predict_all
from evle.tasks.reranking import Candidates, weights_table
from evle.tasks.task import Batch, Evaluation, EvaluationSettings, Features, Task
from evle.transforms.collate import number_ids

RANKS = (1, 5, 10)
SHOWN = 5  # results of one query in the report


class RetrievalConfig(CaptionConfig):
    """Options of retrieval. EVE evaluates with `k_test` 128 on COCO and Flickr30K."""

    texts_per_image: int = Field(default=1, ge=1)
    """Texts of each image in a training step, drawn one by one, as positives of the same image. More of them show each
    word more often, at the cost of the text passes alone. For contrast alone (objective_weights.itm=0)."""
    k_test: int = Field(default=128, ge=0)
    """Number of candidates per query that are re-ranked by the match logit of joint passes; 0 ranks only by
    embeddings."""
    similarity_weight: float = Field(default=0.0, ge=0)
    """Weight of the embeddings' cosine similarity, which re-ranking adds to the match logit. 0 orders only by matching,
    as published; BLIP uses 1. The report compares several weights."""


@dataclass(frozen=True)
class _Text:
    """One distinct text of the evaluation; `match` identifies the images for which it is true."""

    key: str
    text: str
    match: str


@dataclass
class _Corpus:
    """What is searched: readable samples in order, and their distinct texts."""

    samples: list[CaptionSample] = field(default_factory=list)
    texts: list[_Text] = field(default_factory=list)

    @cached_property
    def image_ids(self) -> Tensor:
        return number_ids([match_name(sample) for sample in self.samples])

    @cached_property
    def text_ids(self) -> Tensor:
        return number_ids([text.match for text in self.texts])


class RetrievalTask(Task):
    """Training: one caption per image, ITC and ITM; or several texts and ITC alone. Evaluation: R@1, R@5, R@10 in both
    directions over all images and all captions.

    A result is right if it has the query's `match_id`. Equal captions of samples with one `match_id` count once. TR@k:
    one of an image's texts is among the first k; IR@k: one of a text's images is. `TR@1` and so on are scores of the
    whole system, re-ranked if `k_test` > 0; `itc/TR@1` and so on are those of the embeddings alone. `metric` is the
    mean of the six.
    """

    name = "retrieval"
    reads = "captions"
    sample_type = CaptionSample
    config_type = RetrievalConfig
    models: ClassVar[dict[str, type[PreTrainedModel]]] = {"eve": EVEForRetrieval, "vle": VLEForRetrieval}
    metric = "R@mean"
    quick_metric = "by embeddings alone, not re-ranked"
    options: RetrievalConfig

    def bind(self, config: PreTrainedConfig) -> None:
        if self.options.k_test and not learns_matching(config):
            raise ConfigError(
                f"task.k_test={self.options.k_test} re-ranks by matching, which a model with objective_weights.itm=0 "
                "has not learned; set task.k_test=0"
            )
        if self.options.texts_per_image > 1 and learns_matching(config):
            raise ConfigError(
                f"task.texts_per_image={self.options.texts_per_image}: matching takes one text of each image; set "
                "task.texts_per_image=1, or model.overrides.objective_weights.itm=0"
            )

    def ranking(self) -> str:
        if not self.options.k_test:
            return "ranked by embeddings alone, not re-ranked (task.k_test=0)"
        return f"the first {self.options.k_test} candidates of each query re-ranked by matching (task.k_test)"

    def features(self, sample: Sample, rng: np.random.Generator, train: bool) -> Features:
        sample = cast(CaptionSample, sample)
        texts = [training_text(sample, self.options, rng) for _ in range(self.options.texts_per_image)]
        return {
            "image": self.read_image(sample.image, rng, train, " ".join(texts)),
            "tokens": [self.tokens(self.clean(text)) for text in texts],
            "match": [match_of(sample, text) for text in texts],
        }

    def collate_raw(self, features: list[Features]) -> Batch:
        return {
            "pixel_values": torch.stack([each["image"] for each in features]),
            **self.collate_tokens([tokens for each in features for tokens in each["tokens"]]),
            "match_ids": number_ids([match for each in features for match in each["match"]]),
        }

    def evaluate(self, model: PreTrainedModel, samples: Sequence[Sample], settings: EvaluationSettings) -> Evaluation:
        encoder: Any = model  # of any family with get_image_features, get_text_features and itm_logits
        images = predict_all(
            model,
            samples,
            self,
            lambda keys, batch: _rows(encoder.get_image_features(**batch)),
            settings,
            features=self._image_features,
            collate=self._collate_images,
        )
        corpus = self._corpus(samples, images.results)
        texts = predict_all(
            model,
            corpus.texts,
            self,
            lambda keys, batch: _rows(encoder.get_text_features(**batch)),
            settings,
            features=self._text_features,
            collate=self._collate_texts,
        )
        image_vectors = torch.from_numpy(np.stack([images.results[sample.key] for sample in corpus.samples]))
        text_vectors = torch.from_numpy(np.stack([texts.results[text.key] for text in corpus.texts]))

        to_text_ranks = best_ranks(image_vectors, text_vectors, corpus.image_ids, corpus.text_ids)
        to_image_ranks = best_ranks(text_vectors, image_vectors, corpus.text_ids, corpus.image_ids)
        scores = retrieval_scores(to_text_ranks, to_image_ranks, RANKS)
        if settings.quick:
            return Evaluation(scores, retrieval_chance(corpus.image_ids.tolist(), corpus.text_ids.tolist(), RANKS))

        kept = max(*RANKS, self.options.k_test)
        text_scores, to_text = (each.numpy() for each in top_k(image_vectors, text_vectors, kept))  # (N, K)
        image_scores, to_image = (each.numpy() for each in top_k(text_vectors, image_vectors, kept))  # (M, K)
        tables = []
        if self.options.k_test:
            text_logits, image_logits = self._match_logits(model, corpus, to_text, to_image, settings)
            ids = corpus.image_ids, corpus.text_ids
            texts_found = Candidates(to_text, text_scores, text_logits, to_text_ranks, *ids)
            images_found = Candidates(to_image, image_scores, image_logits, to_image_ranks, *reversed(ids))
            tables = [weights_table(texts_found, images_found, scores)]
            to_text, to_image = (each.order(self.options.similarity_weight) for each in (texts_found, images_found))
            to_text_ranks, to_image_ranks = texts_found.ranks(to_text), images_found.ranks(to_image)
            by_embeddings = {f"itc/{name}": value for name, value in scores.items()}
            scores = retrieval_scores(to_text_ranks, to_image_ranks, RANKS) | by_embeddings
        return Evaluation(
            scores=scores,
            chance=retrieval_chance(corpus.image_ids.tolist(), corpus.text_ids.tolist(), RANKS),
            tables=tables,
            galleries=_galleries(corpus, to_text, to_image, _Ranks(to_text_ranks, to_image_ranks), settings),
            predictions=_records(corpus, to_text, to_image),
            skipped=images.skipped,
            **_averaged(to_text_ranks, to_image_ranks),
        )

    def _corpus(self, samples: Sequence[Sample], results: dict[str, Any]) -> _Corpus:
        corpus = _Corpus()
        seen: set[tuple[str, str]] = set()
        for sample in readable(samples):
            if sample.key not in results:
                continue
            corpus.samples.append(sample)
            match = match_name(sample)
            for caption in sample.captions:
                if (match, caption) not in seen:
                    seen.add((match, caption))
                    corpus.texts.append(_Text(str(len(corpus.texts)), caption, match))
        return corpus

    def _image_features(self, sample: CaptionSample, rng: np.random.Generator) -> Features:
        return {"image": self.read_image(sample.image, rng, False, "")}

    def _collate_images(self, features: list[Features]) -> Batch:
        return {"pixel_values": torch.stack([each["image"] for each in features])}

    def _text_features(self, text: _Text, rng: np.random.Generator) -> Features:
        return {"tokens": self.tokens(self.clean(text.text))}

    def _collate_texts(self, features: list[Features]) -> Batch:
        return self.collate_tokens([each["tokens"] for each in features])

    def _match_logits(
        self,
        model: Any,
        corpus: _Corpus,
        to_text: np.ndarray,
        to_image: np.ndarray,
        settings: EvaluationSettings,
    ) -> tuple[np.ndarray, np.ndarray]:
        """The match logits of the first `k_test` candidates of each image (N, k) and of each text (M, k).

        Every image is decoded once, together with all texts that it is paired with in either direction; only
        (N + M) * k_test numbers are kept.
        """
        num_texts = len(corpus.texts)
        text_codes = np.arange(len(corpus.samples))[:, None] * num_texts + to_text[:, : self.options.k_test]
        image_codes = to_image[:, : self.options.k_test] * num_texts + np.arange(num_texts)[:, None]
        codes = np.unique(
            np.concatenate([text_codes.ravel(), image_codes.ravel()])
        )  # image * M + text, so grouped by image
        starts = np.searchsorted(codes, np.arange(len(corpus.samples) + 1) * num_texts)
        index_of = {sample.key: index for index, sample in enumerate(corpus.samples)}
        tokens = [self.tokens(self.clean(text.text)) for text in corpus.texts]

        def match_logits(keys: list[str], batch: Batch) -> list[np.ndarray]:
            indices = [index_of[key] for key in keys]
            paired = [codes[starts[index] : starts[index + 1]] % num_texts for index in indices]
            rows = np.repeat(np.arange(len(indices)), [len(each) for each in paired])
            texts = np.concatenate(paired)
            logits: list[Tensor] = []
            for begin in range(0, len(texts), settings.batch_size):
                part = slice(begin, begin + settings.batch_size)
                # Images and texts that several pairs share are listed once, for families that can encode them once.
                images, image_rows = np.unique(rows[part], return_inverse=True)
                distinct, text_rows = np.unique(texts[part], return_inverse=True)
                inputs = {
                    **self.collate_tokens([tokens[index] for index in distinct]),
                    "image_rows": torch.from_numpy(image_rows),
                    "text_rows": torch.from_numpy(text_rows),
                }
                inputs = {name: tensor.to(batch["pixel_values"].device) for name, tensor in inputs.items()}
                inputs["pixel_values"] = batch["pixel_values"][torch.from_numpy(images)]
                logits.append(finite(model.itm_logits(**inputs)[:, 1]))
            return np.split(torch.cat(logits).numpy(), np.cumsum([len(each) for each in paired])[:-1])

        predicted = predict_all(
            model,
            corpus.samples,
            self,
            match_logits,
            settings,
            features=self._image_features,
            collate=self._collate_images,
        )
        logits = np.concatenate([predicted.results[sample.key] for sample in corpus.samples])
        return logits[np.searchsorted(codes, text_codes)], logits[np.searchsorted(codes, image_codes)]


def _averaged(to_text_ranks: Tensor, to_image_ranks: Tensor) -> dict[str, Any]:
    """What `retrieval_scores` averages, as `Evaluation` takes it: recalls over queries, R@mean over both directions."""
    values: dict[str, list[float]] = {}
    halves = []
    for name, ranks in (("TR", to_text_ranks), ("IR", to_image_ranks)):
        hits = [100.0 * (ranks < k).double() for k in RANKS]
        values |= {f"{name}@{k}": each.tolist() for k, each in zip(RANKS, hits, strict=True)}
        halves.append(torch.stack(hits).mean(dim=0).tolist())
    return {"values": values, "halves": {"R@mean": tuple(halves)}}


def learns_matching(config: PreTrainedConfig) -> bool:
    """Whether a retrieval model of this configuration trains its matching head."""
    weight: float = (config.objective_weights or {}).get("itm", 1.0)
    return weight > 0


def _rows(features: Tensor) -> list[np.ndarray]:
    """Embeddings (B, D) as a list of arrays. A row of a tensor is a view: it would be sent to other processes, and kept
    in memory, with its whole batch."""
    return list(finite(features).numpy())


class _Ranks(NamedTuple):
    """The rank of the best right item of each query, 0 is the first: texts of the images (N,), images of the texts
    (M,)."""

    to_text: Tensor
    to_image: Tensor


def _galleries(
    corpus: _Corpus, to_text: np.ndarray, to_image: np.ndarray, ranks: _Ranks, settings: EvaluationSettings
) -> list[Gallery]:
    """Some queries in both directions with their first results, and, if the right item is not among them, that item
    with its rank."""
    galleries = []
    for title, query_ranks, row, note in (
        ("Text to images", ranks.to_image, _text_row, f"Each text with its first {SHOWN} images."),
        ("Image to texts", ranks.to_text, _image_row, f"Each image, its own caption, and its first {SHOWN} texts."),
    ):
        results = to_image if row is _text_row else to_text
        goodness = [1 / (1 + rank) if rank < SHOWN else -float(rank) for rank in query_ranks.tolist()]
        for name, queries in choose_examples(goodness, settings).items():
            rows = [row(corpus, query, results[query, :SHOWN], int(query_ranks[query])) for query in queries]
            galleries.append(Gallery(f"{title}: {name.replace('surest and ', '')}", rows, note))
    return galleries


def _text_row(corpus: _Corpus, text: int, images: np.ndarray, rank: int) -> GalleryRow:
    """A text, its first images, and if none of them is right, an image that is."""
    cells = [Cell(open_image(corpus.samples[image].image), mark=_mark(corpus, image, text)) for image in images]
    if SHOWN <= rank < NOT_FOUND and not any(cell.mark == "good" for cell in cells):
        right = int((corpus.image_ids == corpus.text_ids[text]).nonzero()[0])
        cells.append(Cell(open_image(corpus.samples[right].image), f"right, rank {rank + 1:,}"))
    return GalleryRow(corpus.texts[text].text, cells)


def _image_row(corpus: _Corpus, image: int, texts: np.ndarray, rank: int) -> GalleryRow:
    """An image with its own caption, its first texts, and if none of them is right, the rank of the first that is."""
    own = next(iter(corpus.samples[image].captions), "")
    cells = [Cell(None, corpus.texts[text].text, mark=_mark(corpus, image, text)) for text in texts]
    if SHOWN <= rank < NOT_FOUND and not any(cell.mark == "good" for cell in cells):
        own += f" (right, rank {rank + 1:,})"
    return GalleryRow("", [Cell(open_image(corpus.samples[image].image), own), *cells])


def _mark(corpus: _Corpus, image: int, text: int) -> Mark:
    return "good" if corpus.image_ids[image] == corpus.text_ids[text] else "bad"


def _records(corpus: _Corpus, to_text: np.ndarray, to_image: np.ndarray) -> list[dict[str, Any]]:
    keep = max(RANKS)
    images = [
        {"image": sample.key, "texts": [corpus.texts[text].text for text in row[:keep]]}
        for sample, row in zip(corpus.samples, to_text, strict=True)
    ]
    texts = [
        {"text": text.text, "images": [corpus.samples[index].key for index in row[:keep]]}
        for text, row in zip(corpus.texts, to_image, strict=True)
    ]
    return images + texts
