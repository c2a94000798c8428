"""Inference for people: embed pictures and texts, say whether they match, answer questions.

Each pipeline takes a model folder, a run's folder, or objects; then pictures as paths, bytes, PIL pictures or drawings,
one or many. Texts and pictures are prepared as the tasks prepare them for evaluation.

Legend: B rows of a batch, T text tokens, N rows in all, D dimension of an embedding, A answers a model knows.
"""

from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedModel, ProcessorMixin

from evle.config import load_yaml
from evle.data.images import open_image
from evle.data.samples import ImageSource
from evle.errors import CheckpointError, ConfigError, DataError, SampleError, nearest
from evle.models.eve import EVEProcessor
from evle.tasks.retrieval import RetrievalTask, learns_matching
from evle.tasks.task import TextOptions
from evle.tasks.vqa import VQATask
from evle.transforms.collate import pad_text
from evle.transforms.image import normalize, test_image
from evle.transforms.text import clean_caption, encode

Images = ImageSource | Sequence[ImageSource]
Texts = str | Sequence[str]

PROCESSORS: dict[str, type[EVEProcessor]] = {"eve": EVEProcessor}


def model_folder(path: str | Path) -> Path:
    """The folder with the weights: `path` itself, or `path`/model when `path` is a run's folder.

    Raises CheckpointError saying what is there instead.
    """
    path = Path(path)
    for folder in (path / "model", path):
        if (folder / "config.json").is_file():
            return folder
    if not path.exists():
        raise CheckpointError(f"{path}: no such folder; give a model folder or a run's folder")
    inside = sorted(child.parent.parent.name for child in path.glob("*/model/config.json")) if path.is_dir() else []
    if inside:
        raise CheckpointError(f"{path} holds several runs; give one of them: {', '.join(inside)}")
    if (path / "log.jsonl").is_file() or (path / "checkpoints").is_dir():
        raise CheckpointError(f"{path} is a run without a model folder: it has not finished; resume it with --resume")
    raise CheckpointError(
        f"{path} is neither a model folder (no config.json) nor a run's folder (no model/config.json)"
    )


def load_model(path: str | Path, models: Mapping[str, type[PreTrainedModel]]) -> tuple[PreTrainedModel, ProcessorMixin]:
    """The model in `path` (see `model_folder`) as the class that `models` names for its family, and its processor.

    Raises CheckpointError for a family that `models` does not have, a checkpoint with another head, and damaged or
    missing files. No weight is ever made up: a tensor that the checkpoint lacks is an error.
    """
    folder = model_folder(path)
    try:
        fields, _ = PreTrainedConfig.get_config_dict(folder)
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{folder / 'config.json'}: cannot be read ({_first_line(error)})") from error
    family = str(fields.get("model_type", ""))
    if family not in models:
        raise CheckpointError(
            f"{folder} holds a checkpoint of another family: model_type {family!r}; {nearest(family, models)}"
        )
    wanted = models[family]
    head = (fields.get("architectures") or ["unknown"])[0]
    if head != wanted.__name__:
        raise CheckpointError(
            f"{folder} holds {head}, but {wanted.__name__} is needed here; fine-tune it for this task"
        )
    try:
        loaded: Any = wanted.from_pretrained(folder, output_loading_info=True, local_files_only=True)
        processor = PROCESSORS[family].from_pretrained(folder, local_files_only=True)
    except Exception as error:  # from_pretrained raises a dozen kinds on damaged files, none of them ours
        raise CheckpointError(f"{folder}: cannot be loaded as {wanted.__name__} ({_first_line(error)})") from error
    model, report = loaded
    missing = sorted(report["missing_keys"])
    if missing:
        raise CheckpointError(
            f"{folder}: the weights lack {len(missing)} tensors of {wanted.__name__}, first {missing[0]}"
        )
    return model, processor


def text_options(path: str | Path) -> TextOptions:
    """How the run that made the model in `path` read its texts, by its config.yaml; EVE's way where there is none."""
    file = model_folder(path).parent / "config.yaml"
    if not file.is_file():
        return TextOptions()
    return TextOptions.build(load_yaml(file).get("text") or {}, str(file))


@dataclass
class EmbeddedImages:
    """A batch of embedded pictures: `rows` are their positions in the input, `features` (B, D) float32 on the CPU.

    `failures` names the pictures that could not be read since the last batch, by position.
    """

    rows: list[int]
    features: Tensor
    failures: dict[int, SampleError] = field(default_factory=dict)


class Pipeline:
    """What all pipelines share: the model on its device, pictures read ahead by threads, texts to tokens.

    `source` is a model folder or a run's folder; pass `model` and `processor` instead to use objects. `text` says how
    texts are cleaned and cut, by default as in the run that trained the model. `device` is by default the model's own
    for objects, else an accelerator if there is one. `num_workers` threads read and resize pictures.
    """

    models: Mapping[str, type[PreTrainedModel]]

    def __init__(
        self,
        source: str | Path | None = None,
        *,
        model: PreTrainedModel | None = None,
        processor: ProcessorMixin | None = None,
        text: TextOptions | None = None,
        device: str | torch.device | None = None,
        batch_size: int = 32,
        num_workers: int = 2,
    ):
        if batch_size < 1 or num_workers < 0:
            raise ConfigError(f"batch_size is {batch_size} and num_workers {num_workers}; at least 1 and 0 are needed")
        if source is not None and model is None and processor is None:
            model, processor = load_model(source, self.models)
            text = text or text_options(source)
            device = device or torch.accelerator.current_accelerator(check_available=True)
        elif source is not None or model is None or processor is None:
            raise ConfigError(f"{type(self).__name__} takes a model folder, or model= and processor= together")
        # Any: a family's own methods (get_image_features, itm_logits) are promised by `models`, not by PreTrainedModel.
        self.model = cast(Any, model)
        if device:
            self.model = self.model.to(device)
        self.processor: Any = processor
        self.source = "" if source is None else str(source)
        self.text = text or TextOptions()
        self.batch_size = batch_size
        self.num_workers = num_workers

    def tokens(self, texts: Sequence[str]) -> dict[str, Tensor]:
        """`input_ids` and `attention_mask` (B, T) on the model's device, over-long texts cut."""
        tokenizer = self.processor.tokenizer
        longest = min(self.text.max_length, int(self.model.config.max_position_embeddings))
        cleaned = [clean_caption(text, self.text.max_words) if self.text.clean else text for text in texts]
        rows = [encode(tokenizer, text, longest) for text in cleaned]
        input_ids, attention_mask = pad_text(rows, tokenizer.pad_token_id)
        return {"input_ids": input_ids.to(self.model.device), "attention_mask": attention_mask.to(self.model.device)}

    def read(self, source: ImageSource) -> Tensor | SampleError:
        """The pixels (3, S, S) uint8 of one picture as the model's tasks see it, or why there are none."""
        size = self.processor.image_processor.size["height"]
        try:
            # A JPEG may be decoded at half its size or less while that is still twice what the model sees.
            return test_image(open_image(source, size_hint=2 * size), size)
        except SampleError as error:
            return error

    def pixel_values(self, pictures: list[Tensor]) -> Tensor:
        """Pictures as `read` gives them, as the model's input (B, 3, S, S) on its device."""
        images = self.processor.image_processor
        pixels = torch.stack(pictures).to(self.model.device)
        return normalize(pixels, images.image_mean, images.image_std).to(self.model.dtype)

    def read_ahead(self, sources: Iterable[ImageSource]) -> Iterator[Tensor | SampleError]:
        """`read` of each source in order, by threads, never more than two batches ahead."""
        if not self.num_workers:
            yield from map(self.read, sources)
            return
        waiting: deque[Future[Tensor | SampleError]] = deque()
        with ThreadPoolExecutor(self.num_workers) as pool:
            try:
                for source in sources:
                    waiting.append(pool.submit(self.read, source))
                    if len(waiting) >= 2 * self.batch_size:
                        yield waiting.popleft().result()
                while waiting:
                    yield waiting.popleft().result()
            finally:
                for future in waiting:
                    future.cancel()

    @contextmanager
    def evaluating(self) -> Iterator[None]:
        """Dropout off and no gradients inside; the model's mode is put back afterwards."""
        was_training = self.model.training
        self.model.eval()
        try:
            with torch.inference_mode():
                yield
        finally:
            self.model.train(was_training)


class EmbedPipeline(Pipeline):
    """Pictures and texts as unit vectors whose dot product says how well they go together.

    >>> embed = EmbedPipeline("runs/retrieval")  # doctest: +SKIP
    >>> embed.texts(["a red circle"]) @ embed.images(["a.jpg", "b.jpg"]).T  # doctest: +SKIP
    tensor([[0.61, 0.08]])
    """

    models = RetrievalTask.models

    def texts(self, texts: Texts) -> Tensor:
        """Embeddings (N, D) float32 on the CPU."""
        listed = as_texts(texts)
        parts = []
        with self.evaluating():
            for start in range(0, len(listed), self.batch_size):
                tokens = self.tokens(listed[start : start + self.batch_size])
                parts.append(self.model.get_text_features(**tokens).float().cpu())
        return torch.cat(parts) if parts else torch.empty(0, self.dimension)

    def images(self, images: Images) -> Tensor:
        """Embeddings (N, D) float32 on the CPU. Raises SampleError at the first picture that cannot be read."""
        parts = []
        for batch in self.image_batches(as_images(images)):
            for error in batch.failures.values():
                raise error
            parts.append(batch.features)
        return torch.cat(parts) if parts else torch.empty(0, self.dimension)

    def image_batches(self, sources: Iterable[ImageSource]) -> Iterator[EmbeddedImages]:
        """Embeddings batch by batch, of any number of pictures; those that cannot be read are named and left out."""
        rows: list[int] = []
        pixels: list[Tensor] = []
        failures: dict[int, SampleError] = {}
        for row, read in enumerate(self.read_ahead(sources)):
            if isinstance(read, SampleError):
                failures[row] = read
            else:
                rows.append(row)
                pixels.append(read)
            if len(rows) == self.batch_size:
                yield EmbeddedImages(rows, self._embed(pixels), failures)
                rows, pixels, failures = [], [], {}
        if rows or failures:
            yield EmbeddedImages(rows, self._embed(pixels), failures)

    @cached_property
    def dimension(self) -> int:
        """D, from embedding one short text: the one place that is sure to know."""
        return self.texts("a").shape[1]

    def _embed(self, pixels: list[Tensor]) -> Tensor:
        if not pixels:
            return torch.empty(0, self.dimension)
        with self.evaluating():
            return self.model.get_image_features(self.pixel_values(pixels)).float().cpu()


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


class VQAPipeline(Pipeline):
    """Answers to questions about pictures, from the answers the model was trained with.

    >>> VQAPipeline("runs/vqa")("a.jpg", "What colour is the circle?")[0]["answer"]  # doctest: +SKIP
    'red'
    """

    models = VQATask.models

    def __call__(self, images: Images, questions: Texts, *, top_k: int = 5) -> list[dict[str, Any]]:
        """One {"question", "answer", "score", "answers"} a pair, `answers` being the `top_k` best {"answer", "score"}.

        As many pictures as questions, or one of either for all of the other. A score is a probability of its own (the
        scores do not sum to 1). Raises SampleError for a picture that cannot be read.
        """
        if top_k < 1:
            raise ConfigError(f"top_k is {top_k}; ask for at least 1 answer")
        sources, listed = pairs(images, questions)
        names = self.model.config.id2label
        pictures = self.read_ahead(sources)
        found = []
        for start in range(0, len(listed), self.batch_size):
            asked = listed[start : start + self.batch_size]
            pixels = []
            for _ in asked:
                picture = next(pictures)
                if isinstance(picture, SampleError):
                    raise picture
                pixels.append(picture)
            with self.evaluating():
                logits = self.model(pixel_values=self.pixel_values(pixels), **self.tokens(asked)).logits.float()
            scores, answers = torch.sigmoid(logits).topk(min(top_k, logits.shape[1]))  # (B, k)
            for question, row, ids in zip(asked, scores.tolist(), answers.tolist(), strict=True):
                best = [{"answer": names[i], "score": score} for i, score in zip(ids, row, strict=True)]
                found.append({"question": question, **best[0], "answers": best})
        return found


def as_images(images: Images) -> list[ImageSource]:
    """One picture or many as a list."""
    if isinstance(images, Sequence) and not isinstance(images, str | bytes):
        return list(images)
    return [images]


def as_texts(texts: Texts) -> list[str]:
    """One text or many as a list."""
    return [texts] if isinstance(texts, str) else list(texts)


def pairs(images: Images, texts: Texts) -> tuple[list[ImageSource], list[str]]:
    """Pictures and texts of equal number; one of either is repeated for all of the other."""
    sources, listed = as_images(images), as_texts(texts)
    if len(sources) == 1:
        sources = sources * len(listed)
    elif len(listed) == 1:
        listed = listed * len(sources)
    if len(sources) != len(listed):
        raise DataError(
            f"{len(sources)} pictures and {len(listed)} texts do not pair up; give as many of each, or one of either"
        )
    return sources, listed


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0][:200] if lines else type(error).__name__
