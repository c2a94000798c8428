"""Images of pre-training: predictions for hidden patches, for phrases, and for hidden things."""

from collections.abc import Collection, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from transformers import PreTrainedModel

from evle.data.samples import Sample, readable
from evle.report import Cell, Gallery, GalleryRow, Mark
from evle.tasks.predict import predict_all
from evle.tasks.task import Batch, EvaluationSettings, Task
from evle.transforms.heatmap import paint
from evle.transforms.masking import IGNORED

RECONSTRUCTED = ("masked", "reconstruction", "original")


def pretraining_galleries(
    task: Task,
    model: PreTrainedModel,
    samples: Sequence[Sample],
    measured: Collection[str],
    settings: EvaluationSettings,
) -> list[Gallery]:
    """Galleries of some samples as the model sees and completes them, one per objective that has images.

    Only samples whose keys were `measured` are shown."""
    wanted = set(model.config.objectives)
    if not wanted & {"mim", "pbc", "mpc"} or settings.num_examples == 0:
        return []
    predicts_pixels = getattr(model.config, "mim_target", "pixels") == "pixels"
    indices = np.linspace(0, len(samples) - 1, min(settings.num_examples, len(samples))).astype(int)
    chosen = [sample for sample in readable(samples, indices.tolist()) if sample.key in measured]

    def show(keys: list[str], batch: Batch) -> list[dict[str, GalleryRow]]:
        texts = task.processor.tokenizer.batch_decode(batch["input_ids"], skip_special_tokens=True)
        rows: list[dict[str, GalleryRow]] = [{} for _ in keys]
        output: Any = model(**batch) if wanted & {"pbc", "mpc"} else None
        for name, cells in (
            ("mim", _reconstructed(task, model, batch) if "mim" in wanted and predicts_pixels else {}),
            ("pbc", _related(task, output, batch) if "pbc" in wanted else {}),
            ("mpc", _hidden(task, model, output, batch) if "mpc" in wanted else {}),
        ):
            for index, row_cells in cells.items():
                rows[index][name] = GalleryRow(texts[index].strip(), row_cells)
        return rows

    shown = list(predict_all(model, chosen, task, show, settings).results.values())
    galleries = [
        Gallery(title, [rows[name] for rows in shown if name in rows], note)
        for name, title, note in (
            (
                "mim",
                "Masked images and the model's reconstructions",
                "Hidden patches are grey. The model reads the complete text.",
            ),
            (
                "pbc",
                "Patches that the text is about",
                "The brighter a patch, the surer the model; then the truth, half bright where the text leaves it open.",
            ),
            ("mpc", "Hidden things and what the model takes them for", "The text is given whole."),
        )
    ]
    return [gallery for gallery in galleries if gallery.rows]


def _reconstructed(task: Task, model: Any, batch: Batch) -> dict[int, list[Cell]]:
    """Images with the masked patches hidden, reconstructed, and original; `model` has a method `reconstruct`."""
    pixels, mask = batch["pixel_values"], batch["image_mask"]
    filled = model.reconstruct(pixels, batch["input_ids"], batch["attention_mask"], mask)
    seen = (~mask).float().unflatten(1, (1, pixels.shape[-1] // model.config.patch_size, -1))
    seen = torch.nn.functional.interpolate(seen, size=pixels.shape[-2:], mode="nearest")
    columns = [to_images(task, each) for each in (pixels * seen, filled, pixels)]  # hidden: the mean colour, grey
    return {
        index: [Cell(image, text) for image, text in zip(triple, RECONSTRUCTED, strict=True)]
        for index, triple in enumerate(zip(*columns, strict=True))
    }


def _related(task: Task, output: Any, batch: Batch) -> dict[int, list[Cell]]:
    """Images painted by the score of each patch and by the truth, half bright where it is unknown."""
    scores = output.pbc_logits.float().softmax(dim=-1)[..., 1].cpu().numpy()  # (B, N)
    labels = batch["pbc_labels"].cpu().numpy()
    cells = {}
    for index, image in enumerate(to_images(task, batch["pixel_values"])):
        known = labels[index] != IGNORED
        if not known.any():
            continue
        side = round(labels.shape[1] ** 0.5)
        truth = np.where(known, labels[index], 0.5)
        painted = [
            paint(image, each.astype(np.float32).reshape(side, side), framing="whole")
            for each in (scores[index], truth)
        ]
        right = np.mean((scores[index] > 0.5)[known] == (truth > 0.5)[known])
        cells[index] = [Cell(painted[0], f"{100 * right:.0f} % of the patches right"), Cell(painted[1], "truth")]
    return cells


def _hidden(task: Task, model: PreTrainedModel, output: Any, batch: Batch) -> dict[int, list[Cell]]:
    """Images with one thing blacked out, the class that the model predicts for it, and the true class."""
    classes = model.config.object_classes
    pixels, patches = batch["pixel_values"], batch["mpc_patches"]
    hidden = patches.float().unflatten(1, (1, pixels.shape[-1] // model.config.patch_size, -1))
    hidden = torch.nn.functional.interpolate(hidden, size=pixels.shape[-2:], mode="nearest").bool()
    blacked = to_images(task, torch.where(hidden, batch["black"][:, None, None], pixels))
    guesses = output.mpc_logits.argmax(dim=-1).tolist()
    cells = {}
    for index, label in enumerate(batch["mpc_labels"].tolist()):
        if label == IGNORED:
            continue
        mark: Mark = "good" if guesses[index] == label else "bad"
        wrong = "" if mark == "good" else f" (right: {classes[label]})"
        cells[index] = [Cell(blacked[index], f"{classes[guesses[index]]}{wrong}", mark)]
    return cells


def to_images(task: Task, pixel_values: Tensor) -> list[Image.Image]:
    """The model's pixels (B, 3, H, W) as images."""
    image_processor = task.processor.image_processor
    mean, std = (
        torch.tensor(values, device=pixel_values.device)[:, None, None]
        for values in (image_processor.image_mean, image_processor.image_std)
    )
    pixels = ((pixel_values.float() * std + mean) * 255).round().clamp(0, 255).to(torch.uint8)
    return [Image.fromarray(image) for image in pixels.permute(0, 2, 3, 1).cpu().numpy()]
