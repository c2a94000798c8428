"""The codes of MIM where its teacher has none: centres of the teacher's features on training images."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from evle.data.samples import CaptionSample, Sample, readable
from evle.errors import DataError, SampleError
from evle.models.eve.codebook import fit_codebook, nearest_codes
from evle.models.eve.targets import open_teacher
from evle.tasks.task import Task

PATCHES_PER_CODE = 32
"""Patches from which a code is learned, on average."""
FEWEST_IMAGES = 256
BATCH = 32


def learn_codes(task: Task, model: PreTrainedModel, samples: Sequence[Sample]) -> str:
    """Fill `model.codebook`, which has one row per code, from images spread evenly over the training samples.

    The images are framed as in evaluation, without augmentation. Returns a line on what was learned. Raises DataError
    if no image can be read, or too few kinds of patches are in the images.
    """
    config: Any = model.config
    codebook: Any = model.codebook
    teacher = open_teacher(config.mim_teacher, "features")
    side = task.image_size // config.patch_size
    wanted = max(FEWEST_IMAGES, PATCHES_PER_CODE * len(codebook) // side**2)
    device = torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")
    parts, num_images = [], 0
    for images in _batches(task, samples, min(wanted, len(samples))):
        parts.append(teacher.targets(images.to(device), side, side).flatten(0, 1).cpu())
        num_images += len(images)
    if not parts:
        raise DataError("task.mim_codes: no image of the training samples can be read to learn codes from")
    features = torch.cat(parts)
    learned = fit_codebook(features, len(codebook), torch.Generator().manual_seed(0))
    codebook.copy_(learned)
    shares = torch.bincount(nearest_codes(features, learned), minlength=len(learned)).float() / len(features)
    even = torch.special.entr(shares).sum().exp()
    return (
        f"MIM's {len(codebook)} codes are clusters of {len(features)} patches of {num_images} images; their perplexity "
        f"is {even:.1f}"
    )


def _batches(task: Task, samples: Sequence[Sample], count: int) -> Iterator[Tensor]:
    """The images of `count` samples spread evenly over all, in batches (B, 3, H, W); unreadable ones are left out."""
    chosen = np.linspace(0, len(samples) - 1, count).astype(int).tolist()
    rng, images = np.random.default_rng(0), []
    for sample in readable(samples, chosen):
        assert isinstance(sample, CaptionSample)
        try:
            images.append(task.read_image(sample.image, rng, False, ""))
        except SampleError:
            continue
        if len(images) == BATCH:
            yield task.collate_images(images)
            images = []
    if images:
        yield task.collate_images(images)
