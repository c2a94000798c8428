"""The states of frozen towers, computed once: training then costs what the layers between the towers cost.

Training draws a few views of each sample (an augmented image with a text) before its first step, and the image tower
reads each of these images once. Each epoch then draws one of the views of each sample. The text tower reads each text
once, when a batch first holds it (`evle.models.vle.text.KnownTexts`).
"""

import hashlib
import logging
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from evle.data.loader import Loader
from evle.data.samples import Sample
from evle.distributed import world_size
from evle.engine.train_config import TrainConfig
from evle.errors import ConfigError, SampleError
from evle.models.vle.modeling import VLEPreTrainedModel
from evle.models.vle.text import KnownTexts
from evle.precision import resolve_precision
from evle.tasks.task import Features, Task

logger = logging.getLogger(__name__)

ROWS = 64
"""Images that the tower reads at once."""


class TowerStates:
    """The views of each training sample, in which the image is replaced by the states of the image tower.

    `features` takes the place of the task's. The states are held in memory, in the format that the tower computes them
    in (bfloat16 takes half of float32): an image of P patches takes (P + 1) x width numbers. An image that is not
    varied is read and held once, whatever the number of views.

    Raises:
        ConfigError: a model without two towers, a tower that is trained, a task whose samples are not one image each,
            or several processes.
        DataError: no sample can be read.
    """

    def __init__(self, model: PreTrainedModel, task: Task, samples: Sequence[Sample], train: TrainConfig, seed: int):
        self.task = task
        self.views: dict[str, list[Features]] = {}
        self._vle = with_frozen_towers(model, train).backbone
        loader: Any = Loader(
            samples,
            self._varied,
            list,
            batch_size=ROWS,
            seed=seed,
            num_workers=train.num_workers,
        )
        self._read(loader, train)
        self._vle.known_texts = KnownTexts(self._vle.text_model)

    def features(self, sample: Sample, rng: np.random.Generator) -> Features:
        """One of the views of `sample`. Raises SampleError for a sample that could not be read."""
        views = self.views.get(sample.key)
        if views is None:
            self.task.features(sample, rng, train=True)  # raises again what is wrong with it
            raise SampleError(f"{sample.key}: could not be read when the tower states were computed")
        return views[rng.integers(len(views))]

    def _varied(self, sample: Sample, rng: np.random.Generator) -> tuple[str, Features]:
        return sample.key, self.task.features(sample, rng, train=True)

    @torch.no_grad()
    def _read(self, loader: Loader, train: TrainConfig) -> None:
        """Let the image tower read `train.cache_towers` views of each sample."""
        tower = self._vle.vision_model
        device = next(tower.parameters()).device
        number_format = resolve_precision(train.precision, device)
        known: dict[bytes, Tensor] = {}
        was_training = tower.training
        tower.eval()
        for view in range(train.cache_towers):
            for rows in loader.batches(view):
                images = [_image_of(features, self.task) for _, features in rows]
                names = [hashlib.blake2b(image.numpy().tobytes(), digest_size=16).digest() for image in images]
                new = {name: image for name, image in zip(names, images, strict=True) if name not in known}
                if new:
                    pixels = self.task.collate_images(list(new.values())).to(device)
                    short = torch.float16 if number_format == "fp16" else torch.bfloat16
                    with torch.autocast(device.type, dtype=short, enabled=number_format != "no"):
                        states = tower(pixels)[0].cpu()
                    # A row of a tensor is a view, which would keep the whole batch in memory.
                    known |= {name: row.clone() for name, row in zip(new, states, strict=True)}
                for (key, features), name in zip(rows, names, strict=True):
                    self.views.setdefault(key, []).append({**features, "image": known[name]})
        tower.train(was_training)
        held = sum(states.nbytes for states in known.values())
        logger.info(
            "train.cache_towers=%d: the states of %d images take %.1f GB of memory",
            train.cache_towers,
            len(known),
            held / 1e9,
        )


def with_frozen_towers(model: PreTrainedModel, train: TrainConfig) -> VLEPreTrainedModel:
    """`model`, if both of its towers are frozen. Raises ConfigError for any other."""
    asked = f"train.cache_towers={train.cache_towers}"
    if not isinstance(model, VLEPreTrainedModel):
        raise ConfigError(f"{asked}: {type(model).__name__} has no towers; set train.cache_towers=0")
    if world_size() > 1:
        raise ConfigError(f"{asked} works in one process, not in {world_size()}; set train.cache_towers=0")
    vle = model.backbone
    for name in ("vision_model", "text_model"):
        if any(each.requires_grad for each in vle.get_submodule(name).parameters()):
            raise ConfigError(
                f"{asked}: {name} is trained, so its states change; set model.freeze=[vision_model,text_model] or "
                "train.cache_towers=0"
            )
    return model


def _image_of(features: Features, task: Task) -> Tensor:
    image = features.get("image")
    if not isinstance(image, Tensor):
        raise ConfigError(f"train.cache_towers: {task.name} does not read one image per sample; set it to 0")
    return image
