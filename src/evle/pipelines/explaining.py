"""Which patches a model drew on for each word of a text, and what it answered.

Attention does not prove what decided an answer; it shows where information could flow. `attention_maps` has the
measures; "pbc" is VLE's patch-box classification, which was trained to point.

Legend: T text tokens, P image tokens ([CLS] first), G patches per side, W words.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor
from transformers import PreTrainedModel, ProcessorMixin

from evle.data.images import open_image
from evle.data.requests import as_texts
from evle.data.samples import ImageSource
from evle.errors import ConfigError, SampleError, nearest
from evle.files import write_whole
from evle.models.eve import EVEForRetrieval, EVEForVQA, EVEModel
from evle.models.eve.modeling import EVEPreTrainedModel
from evle.models.loading import load_model
from evle.models.vle import VLEForITM, VLEForVQA, VLEModel
from evle.models.vle.modeling import VLEPreTrainedModel
from evle.pipelines.attention_maps import eve_maps, vle_maps
from evle.pipelines.heads import abilities_of
from evle.pipelines.localising import LocalisePipeline
from evle.pipelines.pipeline import UNUSED, Pipeline
from evle.report import maps_page
from evle.tasks.retrieval import RetrievalTask, learns_matching
from evle.tasks.trained import text_options
from evle.tasks.vqa import has_slot
from evle.transforms.heatmap import heat, paint
from evle.transforms.image import framing_of
from evle.transforms.image_config import Framing
from evle.transforms.text import encode_words

METHODS = ("rollout", "attention", "gradient", "pbc")
"""All measures; `ExplainPipeline.methods` are those of a model."""

ABOUT_METHODS = {
    "rollout": "attention followed through all layers",
    "attention": "attention of the last layer",
    "gradient": "attention of all layers, weighted by the gradient of the answer",
    "pbc": "probability that a patch belongs to the words (patch-box classification)",
}

TILE = 224
"""Longest side of one image on the sheet, in pixels."""

COLUMNS = 4


@dataclass(frozen=True)
class Explanation:
    """The maps of one image and one text.

    `words` are the text's words as the tokenizer splits them; `maps` (W, G, G) float32 is the share of attention that
    each word gave to each patch, its relevance ("gradient") or its probability ("pbc"). `whole` (G, G) is that of the
    whole text: of the token that the head reads, which is [CLS], or the answer's [MASK] where the model has one
    (`vqa_slot`). `framing` names the part of `image` that the patches cover. `answer` is what the model answers, or
    "match", with its probability `score`; it is "" for a model without a head for that.
    """

    image: Image.Image
    text: str
    words: list[str]
    maps: np.ndarray
    whole: np.ndarray
    framing: Framing
    method: str = "rollout"
    answer: str = ""
    score: float = 0.0

    def to_image(self) -> Image.Image:
        """One sheet: the image, then a copy for the whole text and for each word, bright where the map is high.

        Each map is scaled by its largest value. Two maps can therefore be compared in position, not in strength, and
        an even map is bright everywhere.
        """
        tiles = [(self.image, "the image"), (self._painted(self.whole), f"all: {self.text}")]
        tiles += [(self._painted(each), word) for word, each in zip(self.words, self.maps, strict=True)]
        return _sheet(tiles)

    def to_html(self) -> str:
        """A page that needs no other file and no script: hover or choose a word to see its map in colour.

        Each map is scaled by its largest value, which the page prints.
        """
        unit = {"pbc": "probability", "gradient": "relevance"}.get(self.method, "share of attention")
        layers = [
            (name, heat(self.image, each / max(float(each.max()), 1e-12), framing=self.framing), float(each.max()))
            for name, each in [("all words", self.whole), *zip(self.words, self.maps, strict=True)]
        ]
        return maps_page(
            title=self.text,
            image=self.image,
            layers=layers,
            unit=unit,
            answer=self.answer,
            score=self.score,
            about=f"Method {self.method}: {ABOUT_METHODS[self.method]}",
        )

    def save(self, path: str | Path) -> Path:
        """Write the page (.html) or the sheet (an image) to `path`, whose folder is made where it is missing."""
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix.lower() in (".html", ".htm"):
            write_whole(path, self.to_html())
        else:
            self.to_image().save(path)
        return path

    def _painted(self, weights: np.ndarray) -> Image.Image:
        scaled = weights / max(float(weights.max()), 1e-12)
        return paint(self.image, scaled, framing=self.framing, smooth=True)


HEADS: dict[str, Mapping[str, type[PreTrainedModel]]] = {
    "ask": {"eve": EVEForVQA, "vle": VLEForVQA},
    "match": {"eve": EVEForRetrieval, "vle": VLEForITM},
}
"""Heads whose answer is explained, by the ability that they give."""


class ExplainPipeline(Pipeline):
    """Maps from words to patches, of any trained model of either family.

    `methods` are the measures that the model has: "gradient" needs an EVE with a head that answers or matches, "pbc" a
    VLE pre-trained to locate. `localise` gives the latter for a model in memory.

    >>> ExplainPipeline("runs/vqa")("a.jpg", "what colour is it?").save("map.html")  # doctest: +SKIP
    """

    models: ClassVar[Mapping[str, type[PreTrainedModel]]] = {"eve": EVEModel, "vle": VLEModel}
    task_type = RetrievalTask  # it reads an image and a text for any head

    def __init__(
        self,
        source: str | Path | None = None,
        *,
        model: PreTrainedModel | None = None,
        processor: ProcessorMixin | None = None,
        localise: LocalisePipeline | None = None,
        device: str | torch.device | None = None,
        **options: Any,
    ):
        name = source
        if source is not None and model is None and processor is None:
            able = abilities_of(source)
            head = next((HEADS[each] for each in able if each in HEADS), self.models)
            model, processor = load_model(source, head)
            options.setdefault("text", text_options(source))
            device = device or torch.accelerator.current_accelerator(check_available=True)
            if "locate" in able:
                localise = LocalisePipeline(source, device=device)
            source = None
        super().__init__(source, model=model, processor=processor, device=device, **options)
        self.source = "" if name is None else str(name)
        self._localise = localise
        self.family = "vle" if isinstance(self.model.base_model, VLEModel) else "eve"

    @classmethod
    def classes(cls) -> tuple[type, ...]:
        """Objects may have any head, or none."""
        return EVEPreTrainedModel, VLEPreTrainedModel

    @property
    def methods(self) -> tuple[str, ...]:
        """The measures that this model has, the default first."""
        more = {"gradient": self.family == "eve" and self.answers, "pbc": self._localise is not None}
        return ("rollout", "attention", *(name for name, has_it in more.items() if has_it))

    @property
    def asks(self) -> bool:
        """Whether the model answers questions."""
        return isinstance(self.model, EVEForVQA | VLEForVQA)

    @property
    def answers(self) -> bool:
        """Whether the model has a head whose answer, or whose probability of a match, can be explained."""
        if self.asks or isinstance(self.model, VLEForITM):
            return True
        return isinstance(self.model, EVEForRetrieval) and learns_matching(self.model.config)

    def __call__(self, image: ImageSource, text: str, *, method: str = "rollout") -> Explanation:
        """The `Explanation` of one image and one text; `method` is one of `methods`.

        Raises SampleError for an image that cannot be read and for a text without a word, ConfigError for an unknown
        method or one that this model lacks.
        """
        self._check(method)
        (text,) = as_texts([text])
        slot = has_slot(self.model.config)
        longest = self.task.options.text.max_length - slot
        token_ids, starts = encode_words(self.processor.tokenizer, self.task.clean(text), longest)
        words = self._words(token_ids, starts)
        if not words:
            raise SampleError(f"the text {text[:80]!r} contains no word; give a text to look for")
        read = 0
        if slot:  # before [SEP], as the task puts it
            read = len(token_ids) - 1
            token_ids.insert(read, int(self.processor.tokenizer.mask_token_id))
        opened = open_image(image)
        pixel_values = self.pixel_values([self.task.read_image(opened, UNUSED, False, "")])
        input_ids = torch.tensor([token_ids], device=self.model.device)
        answer, score = self._answer(pixel_values, input_ids)
        names = [name for name, _ in words]
        if method == "pbc":
            assert self._localise is not None
            grids = self._localise.scores([opened] * (1 + len(names)), [text, *names]).numpy()
            whole, maps = grids[0], grids[1:]
        else:
            grids = self._grids(pixel_values, input_ids, method)
            whole, maps = grids[read], np.stack([grids[indices].mean(axis=0) for _, indices in words])
        framing = framing_of(self.processor.image_processor)[1]
        return Explanation(opened, text, names, maps, whole, framing, method, answer, score)

    def _check(self, method: str) -> None:
        if method in self.methods:
            return
        if method not in METHODS:
            raise ConfigError(f"unknown method {method!r}; {nearest(method, self.methods)}")
        needs = {"gradient": "an EVE that answers questions or matches", "pbc": "a VLE pre-trained with pbc"}[method]
        raise ConfigError(
            f"the method {method!r} needs {needs}; {self.source or 'this model'} has {', '.join(self.methods)}"
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

    def _logits(self, model: Any, pixel_values: Tensor, input_ids: Tensor) -> Tensor:
        """The logits of the answers, (A,), or of match as (2,)."""
        if isinstance(model, EVEForRetrieval):
            return model.itm_logits(pixel_values, input_ids)[0]
        logits: Tensor = model(pixel_values=pixel_values, input_ids=input_ids).logits[0]
        return logits

    def _answer(self, pixel_values: Tensor, input_ids: Tensor) -> tuple[str, float]:
        """The best answer, or "match", and its probability."""
        if not self.answers:
            return "", 0.0
        with self.evaluating():
            logits = self._logits(self.model, pixel_values, input_ids).float()
        if self.asks:
            best = int(logits.argmax())
            names: Any = self.model.config.id2label
            return str(names[best]), float(logits[best].sigmoid())
        return "match", float(logits.softmax(dim=-1)[1])

    def _grids(self, pixel_values: Tensor, input_ids: Tensor, method: str) -> np.ndarray:
        """The map of each text token, (T, G, G)."""
        if self.family == "vle":
            attended = vle_maps(self.model, pixel_values, input_ids, method)
        else:

            def score(model: Any) -> Tensor:
                logits = self._logits(model, pixel_values.requires_grad_(), input_ids)
                return logits[1] - logits[0] if isinstance(model, EVEForRetrieval) else logits.max()

            attended = eve_maps(self.model, pixel_values, input_ids, method, score)
        side = pixel_values.shape[-1] // self.model.config.patch_size
        return attended[:, 1:].unflatten(1, (side, side)).numpy()  # without [CLS]


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
