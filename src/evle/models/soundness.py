"""What makes a model folder unusable although it loads: weights that are no numbers, or of another architecture, and a
processor that does not prepare the images that the model was trained on. All of it is refused."""

import json
import logging
import math
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor
from transformers import PreTrainedModel

from evle.errors import CheckpointError, in_one_line
from evle.files import read_json
from evle.models.adapters import FACTORS, FOLDER, PREFIX, WEIGHTS, has_adapter
from evle.models.checksums import torch_weights_in, weights_in
from evle.models.folders import HARMLESS

log = logging.getLogger(__name__)

FLOATING = ("F64", "F32", "F16", "BF16")
"""The number formats of safetensors that weights may have. Others are of quantised weights, with scales elsewhere."""
COUNTING = ("I64", "I32", "BOOL", "int64", "int32", "bool")
"""The number formats of safetensors and torch of buffers that hold no weights, such as position_ids."""
TORCH_FLOATING = {"float64": "F64", "float32": "F32", "float16": "F16", "bfloat16": "BF16"}
FRAMINGS = ("whole", "pad", "centre")
"""The parts of an image that a model sees, as training writes them into the file of the image processor."""
BICUBIC = (3, "bicubic")
"""The one way in which images are resized: its number in PIL and in files, and its name in torchvision."""

_RESCALE = 1 / 255


def refuse_odd_format(folder: Path, model: PreTrainedModel) -> None:
    """Raise CheckpointError where a file that was read of a model folder holds a weight of `model` in whole numbers or
    eight bits.

    The model's own numbers are not looked at: transformers has converted them. Files beside those are not opened.
    """
    wanted = {_plain(name) for name, tensor in model.state_dict().items() if tensor.is_floating_point()}
    if has_adapter(folder):  # its base was checked when it was adapted, and has a checksum
        files = [folder / FOLDER / WEIGHTS]
    else:
        files = weights_in(folder) or torch_weights_in(folder)
    for file, name, kind in _stored(files):
        if kind not in FLOATING and (_plain(name) in wanted or name.endswith(FACTORS)):
            raise _odd_format(file, name, kind)


def refuse_odd_weights(folder: Path, model: PreTrainedModel) -> None:
    """Raise CheckpointError where `model`, which transformers has read from a folder, perhaps under other names, has
    weights that were stored in whole numbers or eight bits, or that are not finite."""
    for file, name, kind in _stored(weights_in(folder) or torch_weights_in(folder)):
        if kind not in FLOATING and (kind not in COUNTING or name.endswith((".weight", ".bias"))):
            raise _odd_format(file, name, kind)
    refuse_not_finite(model.state_dict().items(), folder)


def _stored(files: Iterable[Path]) -> Iterator[tuple[Path, str, str]]:
    """Each tensor of files: the file, its name and its number format."""
    for file in files:
        try:
            formats = _formats(file)
        except (OSError, SafetensorError, RuntimeError) as error:
            raise CheckpointError(f"{file}: cannot be read ({in_one_line(error)}); download it again") from None
        yield from ((file, name, kind) for name, kind in formats.items())


def _plain(name: str) -> str:
    """The name of a tensor without what peft adds to it."""
    return name.removeprefix(PREFIX).replace(".base_layer.", ".")


def _formats(file: Path) -> dict[str, str]:
    """The number format of each tensor in a file of safetensors or torch, in safetensors' words where it is one of
    `FLOATING`; no tensor is read."""
    if file.suffix == ".safetensors":
        with safe_open(file, "pt") as tensors:
            names = tensors.keys()
            return {name: tensors.get_slice(name).get_dtype() for name in names}
    with torch.serialization.safe_globals(list(HARMLESS)):
        content = torch.load(file, map_location="meta", weights_only=True)
    kinds = {name: str(each.dtype).removeprefix("torch.") for name, each in content.items() if isinstance(each, Tensor)}
    return {name: TORCH_FLOATING.get(kind, kind) for name, kind in kinds.items()}


def refuse_odd_tensors(tensors: Mapping[str, Tensor], targets: Mapping[str, Tensor], folder: str | Path) -> None:
    """Raise CheckpointError for tensors that are no floating-point numbers where their targets are, or not finite."""
    for name, tensor in tensors.items():
        if name in targets and targets[name].is_floating_point():
            if not tensor.is_floating_point() or tensor.element_size() < 2:
                raise _odd_format(folder, name, str(tensor.dtype).removeprefix("torch."))
            refuse_not_finite([(name, tensor)], folder)


def refuse_not_finite(tensors: Iterable[tuple[str, Tensor]], folder: str | Path) -> None:
    """Raise CheckpointError for a tensor with NaN or infinite values."""
    for name, tensor in tensors:
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise CheckpointError(
                f"{folder}: {name} holds values that are not finite (NaN or infinite); copy the weights again, or take "
                "those of an earlier step"
            )


def finite(numbers: Tensor) -> Tensor:
    """What a model computes, in float32 on the CPU. Raises CheckpointError where it is not finite."""
    numbers = numbers.float().cpu()
    if not bool(torch.isfinite(numbers).all()):
        raise CheckpointError(
            "the model computes values that are not finite (NaN or infinite); its weights are damaged, or overflow in "
            "half precision: compute in float32, or take the weights of an earlier step"
        )
    return numbers


def refuse_other_layers(unexpected: Iterable[str], model: PreTrainedModel, folder: Path) -> None:
    """Raise CheckpointError where the file holds tensors of the backbone that the configuration has no place for."""
    prefix = model.base_model_prefix + "."
    others = sorted(name for name in unexpected if name.startswith(prefix))
    if others:
        raise CheckpointError(
            f"{folder}: the weights hold {len(others)} tensors of a larger model than its config.json describes, first "
            f"{others[0]}; copy the config.json that belongs to them"
        )


def refuse_odd_labels(labels: Mapping[Any, Any] | None, folder: Path) -> None:
    """Raise CheckpointError unless the labels in a configuration are numbered from 0 without a gap, each once. Labels
    that differ in case or blanks alone are reported in the log: each is an output, whose scores are not summed."""
    file = folder / "config.json"
    try:
        numbers = sorted(map(int, labels or {}))
    except (TypeError, ValueError):
        numbers = [-1]
    if numbers != list(range(len(numbers))):
        raise CheckpointError(f"{file}: id2label must number the answers from 0 on, without a gap; copy it again")
    known: dict[str, str] = {}
    for number in numbers:
        label = str((labels or {}).get(number, (labels or {}).get(str(number))))
        form = " ".join(label.casefold().split())
        if known.get(form) == label:
            raise CheckpointError(f"{file}: id2label has the answer {label!r} twice; copy it again, or rename one")
        if form in known:
            log.warning("%s: the answers %r and %r are separate outputs of this model", file, known[form], label)
        known[form] = label


def refuse_odd_images(processor: Any, image_size: int, folder: str | Path) -> None:
    """Raise CheckpointError for an image processor that prepares other images than the model was trained on.

    Pipelines take its mean, deviation and framing, and the model's size; what it says otherwise would be ignored.
    `folder` is where it was read, or a name for a processor that was not.
    """
    images, where = processor.image_processor, f"{folder}: the image processor"
    _refuse_odd_colours(images, where)
    if (side := _side(images)) != image_size:
        raise CheckpointError(
            f"{where} makes images of {side} pixels, and config.json says {image_size}; copy the file that belongs to "
            "the model"
        )
    _refuse_odd_resizing(images, image_size, folder)


def _refuse_odd_colours(images: Any, where: str) -> None:
    for name in ("image_mean", "image_std"):
        values: Any = getattr(images, name, None)
        numbers = [each for each in values if _is_finite(each)] if isinstance(values, list | tuple) else []
        if len(numbers) not in (1, 3) or len(numbers) != len(values):
            raise CheckpointError(f"{where}: {name} must be three numbers, not {str(values)[:40]}; copy its file again")
        if max(numbers) > 1 or (name == "image_mean" and min(numbers) < 0):
            raise CheckpointError(
                f"{where}: {name} is {str(values)[:40]}, and must be of colours from 0 to 1; divide it by 255"
            )
        if name == "image_std" and min(numbers) <= 0:
            raise CheckpointError(f"{where}: image_std must be above 0, not {str(values)[:40]}; copy its file again")
    rescale = getattr(images, "rescale_factor", None) or _RESCALE
    is_scaled = getattr(images, "do_normalize", True) and getattr(images, "do_rescale", True)
    if not is_scaled or not math.isclose(rescale, _RESCALE, rel_tol=1e-6):
        raise CheckpointError(
            f"{where}: do_rescale and do_normalize must be true and rescale_factor 1/255, as the model was trained; "
            "put another scale into image_mean and image_std"
        )


def _refuse_odd_resizing(images: Any, image_size: int, folder: str | Path) -> None:
    """Raise CheckpointError unless an image processor of squares resizes and frames images as pipelines do."""
    file, stated = _stated(folder)
    is_cropped, framing = bool(getattr(images, "do_center_crop", False)), getattr(images, "framing", None)
    if framing is not None and framing not in FRAMINGS:
        raise CheckpointError(f"{file}: framing is {framing!r}; it must be one of: {', '.join(FRAMINGS)}")
    size = {name: value for name, value in dict(images.size or {}).items() if value is not None}
    resample = getattr(images, "resample", None)
    if file != str(folder) and "resample" not in stated:
        resample = None  # of the class, whose default nobody has asked for
    as_trained = (
        ("do_resize", bool(getattr(images, "do_resize", True)), (True,)),
        ("do_flip_channel_order", bool(getattr(images, "do_flip_channel_order", False)), (False,)),
        ("resample", getattr(resample, "value", resample), (BICUBIC[0], BICUBIC[1], None)),
        ("do_center_crop", is_cropped, (is_cropped if framing is None else framing == "centre",)),
        ("size", size, ({"shortest_edge": image_size} if is_cropped else size,)),
    )
    for name, value, right in as_trained:
        if value not in right:
            raise CheckpointError(
                f"{file}: {name} is {_as_json(value)}, and must be {_as_json(right[0])} for the pixels that the model "
                "was trained on; correct it, or copy the file that belongs to the model"
            )


def _as_json(value: Any) -> str:
    return json.dumps(value, default=str)[:40]


def _stated(folder: str | Path) -> tuple[str, dict[str, Any]]:
    """The file in a model folder that its image processor is read from, and the file's fields; the folder's name and no
    fields where there is none."""
    for name, part in (("processor_config.json", "image_processor"), ("preprocessor_config.json", "")):
        if (file := Path(folder) / name).is_file():
            fields = read_json(file, kind=dict, error=CheckpointError)
            if not part or isinstance(fields.get(part), dict):
                return str(file), fields[part] if part else fields
    return str(folder), {}


def _is_finite(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def _side(images: Any) -> Any:
    """The side of the square images that an image processor makes; None where they are no squares."""
    is_cropped = getattr(images, "do_center_crop", False)
    size = dict((images.crop_size if is_cropped else images.size) or {})
    sides = [size[name] for name in ("height", "width", "shortest_edge", "longest_edge") if size.get(name) is not None]
    return sides[0] if sides and {*sides[:2]} == {sides[0]} else None


def _odd_format(where: str | Path, name: str, kind: str) -> CheckpointError:
    return CheckpointError(
        f"{where}: {name} is stored as {kind}; quantised weights are not read: convert them to float16 or float32"
    )
