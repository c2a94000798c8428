"""What all pipelines share: a model on its device, and the task that prepares images and texts for it.

Legend: B rows of a batch, T text tokens, S side of the model's images, N rows in all.
"""

import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, cast
from weakref import WeakKeyDictionary

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from transformers import PreTrainedModel, ProcessorMixin

from evle.data.images import open_image
from evle.data.requests import read_ahead
from evle.data.samples import ImageSource
from evle.errors import ConfigError, SampleError, at_least
from evle.exported.model import open_model
from evle.pipelines.objects import check_device, check_objects
from evle.tasks.task import Task, TextConfig
from evle.tasks.trained import family_text_options, run_settings, text_options

UNUSED = np.random.default_rng(0)
"""Tasks ask for a generator, and use none outside of training."""


class Pipeline:
    """A trained model and the task that knows how its images and texts were prepared for evaluation.

    `source` is a run folder, a model folder or a name on the Hugging Face hub; pass `model` and `processor` instead to
    use objects. `text` replaces the text options of the run that trained the model. `device` defaults to the model's
    own for objects, and otherwise to an accelerator if there is one. `num_workers` threads read and resize images.
    Several threads may call one pipeline at once.
    """

    models: ClassVar[Mapping[str, type[PreTrainedModel]]]
    task_type: ClassVar[type[Task]]
    kept_options: ClassVar[tuple[str, ...]] = ()
    """Options of the run's task, beside `text`, that change how samples are read."""

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
        rows, workers = at_least(1, batch_size, "batch_size"), at_least(0, num_workers, "num_workers")
        check_device(device)
        self.trained_as: Mapping[str, Any] = {}  # the run's `task`: its name and options
        if source is not None and model is None and processor is None:
            model, processor = open_model(source, self.models, device)
            text = text or text_options(source)
            self.trained_as = run_settings(source).get("task", {})
            if device is None or device == "":
                device = torch.accelerator.current_accelerator(check_available=True)
        elif source is not None or model is None or processor is None:
            raise ConfigError(f"{type(self).__name__} takes a model folder, or model= and processor= together")
        else:
            check_objects(type(self).__name__, model, processor, self.classes())
        # Any: a family's own methods (get_image_features, itm_logits) are promised by `models`, not by PreTrainedModel.
        self.model = cast(Any, model)
        if device is not None and device != "":
            self.model = self.model.to(device)
        self.processor: Any = processor
        self.source = "" if source is None else str(source)
        self.text = text or self.default_text()
        self.batch_size = rows
        self.num_workers = workers
        self.task = self.make_task()

    @classmethod
    def classes(cls) -> tuple[type, ...]:
        """The classes that `model` may be of."""
        return tuple(cls.models.values())

    def default_text(self) -> TextConfig:
        """How texts are read where neither a run nor the caller decides."""
        return family_text_options(self.model.config.model_type)

    def make_task(self, **options: Any) -> Task:
        """The task that prepares inputs, with the options of the run that trained the model, replaced by `options`."""
        longest = min(self.text.max_length, int(self.model.config.max_position_embeddings))
        kept = {name: self.trained_as[name] for name in self.kept_options if name in self.trained_as}
        text = self.text.model_copy(update={"max_length": longest})
        where = f"{self.source}: task of its run (config.yaml or run.json)" if kept else type(self).__name__
        read = self.task_type.config_type.build({"text": text, **kept, **options}, where)
        return self.task_type(read, self.processor)

    def tokens(self, texts: Sequence[str]) -> dict[str, Tensor]:
        """`input_ids` and `attention_mask` (B, T) on the model's device; texts that are too long are cut."""
        return self.pad_tokens([self.task.read_text(text) for text in texts])

    def pad_tokens(self, token_lists: list[list[int]]) -> dict[str, Tensor]:
        """Token lists as the task reads them, as the model's input (B, T) on its device."""
        return {name: tensor.to(self.model.device) for name, tensor in self.task.collate_tokens(token_lists).items()}

    def read(self, source: ImageSource | Tensor) -> Tensor | SampleError:
        """The pixels (3, S, S) uint8 of one image as the task reads them, or the reason why there are none.

        A tensor is what an earlier call returned, and is returned as it is; any other is refused.
        """
        if isinstance(source, Tensor):
            form = self._form
            if (source.dtype, source.shape) == form:
                return source
            return SampleError(
                f"a tensor of {source.dtype} with the shape {tuple(source.shape)} is no image that was read here, of "
                f"{form[0]} with the shape {tuple(form[1])}; give a PIL image, a path or encoded bytes"
            )
        try:
            # A JPEG may be decoded at half its size or less while that is still twice what the model sees.
            image = open_image(source, size_hint=2 * self.task.image_size)
            return self.task.read_image(image, UNUSED, False, "")
        except SampleError as error:
            return error

    @cached_property
    def _form(self) -> tuple[torch.dtype, torch.Size]:
        """The type and the shape of what `read` returns."""
        blank = self.task.read_image(Image.new("RGB", (self.task.image_size,) * 2), UNUSED, False, "")
        return blank.dtype, blank.shape

    def pixel_values(self, pixels: list[Tensor]) -> Tensor:
        """Images as `read` gives them, as the model's input (B, 3, S, S) on its device."""
        return self.task.collate_images(pixels).to(self.model.device, self.model.dtype)

    def read_ahead(self, sources: Iterable[ImageSource]) -> Iterator[Tensor | SampleError]:
        """`read` of each source in order, by threads, never more than two batches ahead."""
        return read_ahead(self.read, sources, self.num_workers, 2 * self.batch_size)

    @contextmanager
    def evaluating(self) -> Iterator[None]:
        """Dropout is off and no gradients are kept inside; afterwards every module is in the mode it was in."""
        with in_evaluation_mode(self.model), torch.inference_mode():
            yield


_MODE_LOCK = threading.Lock()
_IN_USE: "WeakKeyDictionary[nn.Module, tuple[int, list[nn.Module]]]" = WeakKeyDictionary()
"""By model: how many calls use it at the moment, and its modules that were in training mode before the first."""


@contextmanager
def in_evaluation_mode(model: nn.Module) -> Iterator[None]:
    """All modules of `model` are in evaluation mode until the last of the calls that overlap has ended."""
    with _MODE_LOCK:
        calls, training = _IN_USE.get(model, (0, []))
        if not calls:
            training = [module for module in model.modules() if module.training]
            for module in training:
                module.training = False
        _IN_USE[model] = (calls + 1, training)
    try:
        yield
    finally:
        with _MODE_LOCK:
            calls, training = _IN_USE.pop(model)
            if calls > 1:
                _IN_USE[model] = (calls - 1, training)
            else:
                for module in training:
                    module.training = True


def readable(result: Tensor | SampleError) -> Tensor:
    """The pixels that `Pipeline.read` returned; raises the error that it returned instead."""
    if isinstance(result, SampleError):
        raise result
    return result
