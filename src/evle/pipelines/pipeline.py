"""What all pipelines share: the model on its device, images read ahead by threads, texts to tokens.

Legend: B rows of a batch, T text tokens, S side of the model's images, N rows in all.
"""

from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar, cast

import torch
from PIL import Image
from torch import Tensor
from transformers import PreTrainedModel, ProcessorMixin

from evle.data.images import open_image
from evle.data.samples import ImageSource
from evle.errors import ConfigError, DataError, SampleError
from evle.models.loading import load_model
from evle.tasks.task import TextConfig
from evle.tasks.trained import family_text_options, run_settings, text_options
from evle.transforms.collate import pad_text
from evle.transforms.image import framing_of, normalize, test_image
from evle.transforms.text import clean_caption, encode

Images = ImageSource | Sequence[ImageSource]
Texts = str | Sequence[str]


class Pipeline:
    """A model ready for use: images and texts in as people have them, tensors as the tasks' evaluation makes them.

    `source` is a model folder or a run's folder; pass `model` and `processor` instead to use objects. `text` says how
    texts are cleaned and cut, by default as in the run that trained the model. `device` is by default the model's own
    for objects, else an accelerator if there is one. `num_workers` threads read and resize images.
    """

    models: ClassVar[Mapping[str, type[PreTrainedModel]]]

    def __init__(
        self,
        source: str | Path | None = None,
        *,
        model: PreTrainedModel | None = None,
        processor: ProcessorMixin | None = None,
        text: TextConfig | None = None,
        device: str | torch.device | None = None,
        batch_size: int = 32,
        num_workers: int = 2,
    ):
        if batch_size < 1 or num_workers < 0:
            raise ConfigError(f"batch_size is {batch_size} and num_workers {num_workers}; at least 1 and 0 are needed")
        self.trained_as: Mapping[str, Any] = {}  # the run's `task`, its name and options
        if source is not None and model is None and processor is None:
            model, processor = load_model(source, self.models)
            text = text or text_options(source)
            self.trained_as = run_settings(source).get("task", {})
            device = device or torch.accelerator.current_accelerator(check_available=True)
        elif source is not None or model is None or processor is None:
            raise ConfigError(f"{type(self).__name__} takes a model folder, or model= and processor= together")
        # Any: a family's own methods (get_image_features, itm_logits) are promised by `models`, not by PreTrainedModel.
        self.model = cast(Any, model)
        if device:
            self.model = self.model.to(device)
        self.processor: Any = processor
        self.source = "" if source is None else str(source)
        self.text = text or family_text_options(self.model.config.model_type)
        self.batch_size = batch_size
        self.num_workers = num_workers

    def clean(self, text: str) -> str:
        """`text` as the run that trained the model read it."""
        return clean_caption(text, self.text.max_words) if self.text.clean else text

    def tokens(self, texts: Sequence[str]) -> dict[str, Tensor]:
        """`input_ids` and `attention_mask` (B, T) on the model's device, over-long texts cut."""
        tokenizer = self.processor.tokenizer
        longest = min(self.text.max_length, int(self.model.config.max_position_embeddings))
        rows = [self.encode(self.clean(text), longest) for text in texts]
        input_ids, attention_mask = pad_text(rows, tokenizer.pad_token_id)
        return {"input_ids": input_ids.to(self.model.device), "attention_mask": attention_mask.to(self.model.device)}

    def encode(self, text: str, longest: int) -> list[int]:
        """Token ids of a cleaned text, at most `longest`."""
        return encode(self.processor.tokenizer, text, longest)

    def read(self, source: ImageSource) -> Tensor | SampleError:
        """The pixels (3, S, S) uint8 of one image as the model's tasks see it, or why there are none."""
        try:
            # A JPEG may be decoded at half its size or less while that is still twice what the model sees.
            return self.frame(open_image(source, size_hint=2 * framing_of(self.processor.image_processor)[0]))
        except SampleError as error:
            return error

    def frame(self, image: Image.Image) -> Tensor:
        """An open image as `read` gives it: what the model sees of it, in its size."""
        size, framing = framing_of(self.processor.image_processor)
        return test_image(image, size, framing=framing)

    def pixel_values(self, pictures: list[Tensor]) -> Tensor:
        """Images as `read` gives them, as the model's input (B, 3, S, S) on its device."""
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

    def batches(self, sources: Sequence[ImageSource], texts: Sequence[str]) -> Iterator[tuple[list[Tensor], list[str]]]:
        """Read images and the texts asked of them, `batch_size` pairs at once. Raises SampleError at the first
        image that cannot be read."""
        pictures = self.read_ahead(sources)
        for start in range(0, len(texts), self.batch_size):
            asked = list(texts[start : start + self.batch_size])
            yield [readable(next(pictures)) for _ in asked], asked

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


def readable(picture: Tensor | SampleError) -> Tensor:
    """What `Pipeline.read` gave, where it could read; its error is raised where not."""
    if isinstance(picture, SampleError):
        raise picture
    return picture


def as_images(images: Images) -> list[ImageSource]:
    """One image or many as a list."""
    if isinstance(images, Sequence) and not isinstance(images, str | bytes):
        return list(images)
    return [images]


def as_texts(texts: Texts) -> list[str]:
    """One text or many as a list."""
    return [texts] if isinstance(texts, str) else list(texts)


def pairs(images: Images, texts: Texts) -> tuple[list[ImageSource], list[str]]:
    """Images and texts of equal number; one of either is repeated for all of the other."""
    sources, listed = as_images(images), as_texts(texts)
    if len(sources) == 1:
        sources = sources * len(listed)
    elif len(listed) == 1:
        listed = listed * len(sources)
    if len(sources) != len(listed):
        raise DataError(
            f"{len(sources)} images and {len(listed)} texts do not pair up; give as many of each, or one of either"
        )
    return sources, listed
