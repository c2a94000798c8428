"""Where a model looked: for each word of a text, the share of its attention that went to each patch.

Attention does not prove what decided an answer; it shows where information could flow. There are two measures.
"rollout" follows attention through all layers (Abnar and Zuidema 2020, arXiv 2005.00928: each layer passes on half of
what a token already holds and half of what it attends to, averaged over heads), in VLE through both towers and the
fusion. "attention" is the last layer's attention alone, averaged over heads.

Legend: T text tokens, P image tokens ([CLS] first), G patches a side, H heads, W words.
"""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor
from transformers import PreTrainedModel

from evle.data.images import open_image
from evle.data.samples import ImageSource
from evle.errors import ConfigError, nearest
from evle.models.eve import EVEModel
from evle.models.vle import VLEModel
from evle.pipelines.pipeline import UNUSED, Pipeline, in_evaluation_mode
from evle.tasks.retrieval import RetrievalTask
from evle.tasks.vqa import has_slot
from evle.transforms.heatmap import paint
from evle.transforms.image import framing_of
from evle.transforms.image_config import Framing
from evle.transforms.text import encode_words

METHODS = ("rollout", "attention")

TILE = 224
"""Longest side of one image on the sheet, in pixels."""

COLUMNS = 4


@dataclass(frozen=True)
class Explanation:
    """The maps of one image and one text.

    `words` are the text's words as the tokenizer splits them; `maps` (W, G, G) float32 is the share of attention that
    each word gave to each patch. `whole` (G, G) is that of the whole text: of the token that the head reads, which is
    [CLS], or the answer's [MASK] where the model has one (`vqa_slot`). `framing` says which part of
    `image` the patches cover.
    """

    image: Image.Image
    text: str
    words: list[str]
    maps: np.ndarray
    whole: np.ndarray
    framing: Framing

    def to_image(self) -> Image.Image:
        """One sheet: the image, then a copy for the whole text and for each word, bright where attention is high.

        Each map is scaled by its largest value. Two maps can therefore be compared in position, not in strength, and
        an even map is bright everywhere.
        """
        tiles = [(self.image, "the image"), (self._painted(self.whole), f"all: {self.text}")]
        tiles += [(self._painted(each), word) for word, each in zip(self.words, self.maps, strict=True)]
        return _sheet(tiles)

    def _painted(self, weights: np.ndarray) -> Image.Image:
        scaled = weights / max(float(weights.max()), 1e-12)
        return paint(self.image, scaled, framing=self.framing, smooth=True)


class ExplainPipeline(Pipeline):
    """Maps from words to patches, from the attention of any trained model of either family; its head is not used.

    >>> ExplainPipeline("runs/vqa")("a.jpg", "what colour is it?").to_image().save("map.png")  # doctest: +SKIP
    """

    models: ClassVar[Mapping[str, type[PreTrainedModel]]] = {"eve": EVEModel, "vle": VLEModel}
    task_type = RetrievalTask  # it reads an image and a text for any head

    def __call__(self, image: ImageSource, text: str, *, method: str = "rollout") -> Explanation:
        """The `Explanation` of one image and one text; `method` is one of METHODS.

        Raises SampleError for an image that cannot be read, ConfigError for an unknown method and for a text without a
        word.
        """
        if method not in METHODS:
            raise ConfigError(f"unknown method {method!r}; {nearest(method, METHODS)}")
        slot = has_slot(self.model.config)
        longest = self.task.options.text.max_length - slot
        token_ids, starts = encode_words(self.processor.tokenizer, self.task.clean(text), longest)
        words = self._words(token_ids, starts)
        if not words:
            raise ConfigError(f"the text {text!r} contains no word; give a text to look for")
        read = 0
        if slot:  # before [SEP], as the task puts it
            read = len(token_ids) - 1
            token_ids.insert(read, int(self.processor.tokenizer.mask_token_id))
        opened = open_image(image)
        pixel_values = self.pixel_values([self.task.read_image(opened, UNUSED, False, "")])
        attended = self._attended(pixel_values, torch.tensor([token_ids], device=self.model.device), method)  # (T, P)
        side = pixel_values.shape[-1] // self.model.config.patch_size
        grids = attended[:, 1:].unflatten(1, (side, side)).numpy()  # without [CLS]
        return Explanation(
            image=opened,
            text=text,
            words=[name for name, _ in words],
            maps=np.stack([grids[indices].mean(axis=0) for _, indices in words]),
            whole=grids[read],
            framing=framing_of(self.processor.image_processor)[1],
        )

    def _words(self, token_ids: Sequence[int], starts: Sequence[bool]) -> list[tuple[str, list[int]]]:
        """Each word and the indices of its tokens, without special tokens."""
        tokenizer = self.processor.tokenizer
        special = set(tokenizer.all_special_ids)
        groups: list[list[int]] = []
        for index, (token, is_start) in enumerate(zip(token_ids, starts, strict=True)):
            if token in special:
                continue
            if is_start or not groups:
                groups.append([])
            groups[-1].append(index)
        return [(tokenizer.decode([token_ids[index] for index in group]).strip(), group) for group in groups]

    def _attended(self, pixel_values: Tensor, input_ids: Tensor, method: str) -> Tensor:
        """The share that each text token took from each image token, (T, P) float32 on the CPU."""
        backbone = self.model.base_model
        if isinstance(backbone, VLEModel):
            with self.evaluating():
                maps = backbone(input_ids, pixel_values, output_attentions=True).attentions
            layers = {name: [heads[0].float().mean(dim=0).cpu() for heads in each] for name, each in maps.items()}
            return layers["text_to_image"][-1] if method == "attention" else fusion_rollout(layers)
        # "eager" is the attention that keeps its maps. It is set on a copy that shares the weights, because another
        # thread may be using the model.
        shared = {id(tensor): tensor for tensor in (*backbone.parameters(), *backbone.buffers())}
        backbone = copy.deepcopy(backbone, shared)
        backbone.set_attn_implementation("eager")
        with in_evaluation_mode(backbone), torch.inference_mode():
            output = backbone(pixel_values, input_ids, output_attentions=True)
        joint = [heads[0].float().mean(dim=0).cpu() for heads in output.attentions]
        num_image = output.image_hidden.shape[1]
        whole = joint[-1] if method == "attention" else rollout(joint)
        return whole[num_image:, :num_image]


def rollout(maps: Sequence[Tensor]) -> Tensor:
    """From attention maps (S, S) of successive layers, the share of each input token in each output token, (S, S).

    Rows sum to 1, as those of the maps do.
    """
    held = torch.eye(len(maps[0]))
    for attention in maps:
        held = 0.5 * held + 0.5 * attention @ held
    return held


def fusion_rollout(maps: Mapping[str, Sequence[Tensor]]) -> Tensor:
    """VLE's maps, by the names of `VLEOutput.attentions` and averaged over heads, as the share of each image
    token at the input in each text token at the output, (T, P).

    In each block a stream attends to itself and then to what the other stream held before the block.
    """
    text_own, image_own = rollout(maps["text"]), rollout(maps["image"])
    num_text, num_image = len(text_own), len(image_own)
    # The shares that a token holds: of the T text tokens, then of the P image tokens.
    text = torch.cat([text_own, torch.zeros(num_text, num_image)], dim=1)
    image = torch.cat([torch.zeros(num_image, num_text), image_own], dim=1)
    names = ("text_self", "text_to_image", "image_self", "image_to_text")
    for text_self, text_to_image, image_self, image_to_text in zip(*(maps[name] for name in names), strict=True):
        before_text, before_image = text, image
        text = 0.5 * text + 0.5 * text_self @ text
        text = 0.5 * text + 0.5 * text_to_image @ before_image
        image = 0.5 * image + 0.5 * image_self @ image
        image = 0.5 * image + 0.5 * image_to_text @ before_text
    return text[:, num_text:]


def _sheet(tiles: Sequence[tuple[Image.Image, str]]) -> Image.Image:
    """Images with a line of text under each, in rows of COLUMNS."""
    width, height = tiles[0][0].size
    scale = TILE / max(width, height)
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    font: Any = ImageFont.load_default(size=14)
    gap, line = 8, 22
    columns = min(COLUMNS, len(tiles))
    rows = -(-len(tiles) // columns)
    cell = (TILE + gap, size[1] + line + gap)
    sheet = Image.new("RGB", (columns * cell[0] + gap, rows * cell[1] + gap), "white")
    draw = ImageDraw.Draw(sheet)
    for index, (image, text) in enumerate(tiles):
        left, top = gap + index % columns * cell[0], gap + index // columns * cell[1]
        sheet.paste(image.convert("RGB").resize(size, Image.Resampling.BICUBIC), (left, top))
        while len(text) > 1 and draw.textlength(text, font) > TILE:
            text = text.removesuffix("…")[:-1] + "…"
        draw.text((left, top + size[1] + 3), text, fill="black", font=font)
    return sheet
