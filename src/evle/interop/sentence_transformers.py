"""Models of evle as modules of sentence-transformers.

>>> import evle
>>> from sentence_transformers import CrossEncoder, SentenceTransformer
>>> SentenceTransformer("runs/retrieval").encode(["a red circle", "a.jpg"])  # doctest: +SKIP
>>> CrossEncoder("runs/retrieval").predict([("a red circle", "a.jpg")])  # doctest: +SKIP

`import evle` lets both classes load a run's or a model folder of evle (`evle.registration`). Images and texts are
prepared as the run that trained the model prepared them. B rows of a batch, D embedding width.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import torch
from sentence_transformers.base.modality import infer_modality
from sentence_transformers.base.modules import InputModule
from torch import Tensor

from evle.errors import ConfigError, DataError, SampleError
from evle.models.folders import model_folder
from evle.pipelines.embedding import EmbedPipeline
from evle.pipelines.matching import MatchPipeline
from evle.pipelines.pipeline import Pipeline, readable
from evle.share.facts import run_facts, write_run_facts
from evle.tasks.retrieval import learns_matching
from evle.tasks.task import TextConfig

IMAGE: Any = "image"
TEXT: Any = "text"


def modules_for(kind: str, source: str, revision: str | None = None) -> list[InputModule]:
    """The modules of a `SentenceTransformer` or `CrossEncoder` (`kind`) of the model in `source`.

    Raises:
        ConfigError: another kind, or a model without the head that it needs.
        CheckpointError: see `load_model`.
    """
    kinds: Mapping[str, type[_Reader]] = {"SentenceTransformer": Embedder, "CrossEncoder": Matcher}
    if kind not in kinds:
        raise ConfigError(f"{source}: a model of evle cannot be a {kind}; load it as one of: {', '.join(kinds)}")
    return [kinds[kind].load(source, revision=revision)]


class _Reader(InputModule):
    """A model of evle and the pipeline that prepares its inputs; saved as a model folder of evle."""

    pipeline_type: type[Pipeline]

    def __init__(self, pipeline: Pipeline, facts: Mapping[str, Any]):
        super().__init__()
        self.model = pipeline.model
        self.pipeline = pipeline
        self.facts = dict(facts)

    @classmethod
    def load(cls, model_name_or_path: str, subfolder: str = "", revision: str | None = None, **options: Any) -> Self:  # type: ignore[override]
        """The module of a run's folder, a model folder or a hub name. Raises CheckpointError."""
        source = str(Path(model_name_or_path) / subfolder) if subfolder else model_name_or_path
        if revision and not Path(source).exists():
            source = f"{source}@{revision}"
        facts = run_facts(model_folder(source))
        return cls(cls.pipeline_type(source, device="cpu"), facts)

    def save(self, output_path: str, *args: Any, safe_serialization: bool = True, **options: Any) -> None:
        """Write a model folder of evle, which its pipelines and verbs take, too."""
        if not safe_serialization:
            raise ConfigError("models of evle are saved as safetensors only; leave out safe_serialization=False")
        self.model.save_pretrained(output_path)
        self.pipeline.processor.save_pretrained(output_path)
        task = {"name": self.pipeline.task.name, **self.pipeline.trained_as}
        config = {**(self.facts.get("config") or {}), "task": task, "text": self.pipeline.text.model_dump()}
        kept = {name: value for name, value in self.facts.items() if name not in ("results", "evaluated", "summary")}
        write_run_facts(Path(output_path), {**kept, "config": config})

    @property
    def modalities(self) -> list[Any]:
        """Texts, images, and pairs {"image": ..., "text": ...}."""
        return [TEXT, IMAGE, (IMAGE, TEXT), (TEXT, IMAGE)]

    @property
    def tokenizer(self) -> Any:  # type: ignore[override]
        """The model's tokenizer."""
        return self.pipeline.processor.tokenizer

    @property
    def processor(self) -> Any:
        """The model's processor."""
        return self.pipeline.processor

    @property
    def max_seq_length(self) -> int:
        """Tokens of a text at most."""
        return self.pipeline.task.options.text.max_length

    @max_seq_length.setter
    def max_seq_length(self, value: int) -> None:
        text = self.pipeline.text.model_dump() | {"max_length": value}
        self.pipeline.text = TextConfig.build(text, "max_seq_length")
        self.pipeline.task = self.pipeline.make_task()

    def read_texts(self, texts: Sequence[str], prompt: str | None) -> dict[str, Tensor]:
        """`input_ids` and `attention_mask` (B, T), of texts that `prompt` begins."""
        return self.pipeline.tokens([(prompt or "") + text for text in texts])

    def read_images(self, images: Sequence[Any]) -> dict[str, Tensor]:
        """`pixel_values` (B, 3, S, S). Raises SampleError for an image that cannot be read."""
        return {"pixel_values": self.pipeline.pixel_values([readable(self.pipeline.read(_image(x))) for x in images])}


class Embedder(_Reader):
    """Images and texts to unit vectors (B, D); of a pair {"image", "text"}, the direction between the two."""

    pipeline_type = EmbedPipeline

    def preprocess(self, inputs: Sequence[Any], prompt: str | None = None, **options: Any) -> dict[str, Tensor]:
        """The features of a batch of one kind: texts, images (PIL, arrays, paths) or pairs."""
        kinds = {infer_modality(each, [TEXT, IMAGE]) for each in inputs}
        if len(kinds) > 1:
            raise DataError("a batch holds texts, images or pairs, not several of them; encode each kind by itself")
        kind = kinds.pop()
        values = [each[kind] if isinstance(each, dict) and isinstance(kind, str) else each for each in inputs]
        if kind == TEXT:
            return self.read_texts(values, prompt)
        if kind == IMAGE:
            return self.read_images(values)
        if set(kind) != {IMAGE, TEXT}:
            raise DataError(f"inputs of the kind {kind} cannot be embedded; give texts, images or both")
        return {
            **self.read_images([each[IMAGE] for each in values]),
            **self.read_texts([each[TEXT] for each in values], prompt),
        }

    def forward(self, features: dict[str, Tensor], **options: Any) -> dict[str, Tensor]:
        """Add `sentence_embedding` (B, D) to the features."""
        vectors = []
        if "pixel_values" in features:
            vectors.append(self.model.get_image_features(features["pixel_values"]))
        if "input_ids" in features:
            vectors.append(self.model.get_text_features(features["input_ids"], features.get("attention_mask")))
        both = vectors[0] if len(vectors) == 1 else torch.nn.functional.normalize(vectors[0] + vectors[1], dim=-1)
        return {**features, "sentence_embedding": both}

    def get_embedding_dimension(self) -> int:
        """D."""
        assert isinstance(self.pipeline, EmbedPipeline)
        return self.pipeline.dimension


class Matcher(_Reader):
    """Pairs of a text and an image to the log-odds that they match; their sigmoid is the score of `MatchPipeline`."""

    pipeline_type = MatchPipeline

    def __init__(self, pipeline: Pipeline, facts: Mapping[str, Any]):
        super().__init__(pipeline, facts)
        if not learns_matching(self.model.config):
            raise ConfigError(
                f"{pipeline.source}: was trained by contrast alone (objective_weights.itm=0) and cannot score pairs; "
                "load it as a SentenceTransformer"
            )

    def preprocess(self, inputs: Sequence[Any], prompt: str | None = None, **options: Any) -> dict[str, Tensor]:
        """The features of pairs of a text and an image, as tuples or as {"text", "image"}; of bare texts, their tokens,
        which the trainer counts for its card."""
        if all(isinstance(each, str) for each in inputs):
            return self.read_texts(inputs, prompt)
        pairs = [_text_and_image(each) for each in inputs]
        return {**self.read_texts([text for text, _ in pairs], prompt), **self.read_images([each for _, each in pairs])}

    def forward(self, features: dict[str, Tensor], **options: Any) -> dict[str, Tensor]:
        """Add `scores` (B, 1) to the features."""
        logits = self.model.itm_logits(features["pixel_values"], features["input_ids"], features["attention_mask"])
        return {**features, "scores": (logits[:, 1] - logits[:, 0]).unsqueeze(1)}


def _text_and_image(pair: Any) -> tuple[str, Any]:
    if isinstance(pair, Mapping):
        if set(pair) != {TEXT, IMAGE}:
            raise DataError(f'a pair has the keys {sorted(map(str, pair))}; give {{"text": ..., "image": ...}}')
        return pair[TEXT], pair[IMAGE]
    if len(pair) != 2:
        raise DataError(f"{len(pair)} values are no pair; give (text, image)")
    values = {_kind(each): each[_kind(each)] if isinstance(each, Mapping) else each for each in pair}
    if set(values) != {TEXT, IMAGE}:
        raise DataError("a pair needs one text and one image; give (text, image), the image as PIL image or path")
    return values[TEXT], values[IMAGE]


def _kind(value: Any) -> Any:
    return IMAGE if isinstance(value, Path | bytes) else infer_modality(value, [TEXT, IMAGE])


def _image(value: Any) -> Any:
    """An image as the pipelines read it: arrays and tensors, channels first or last, become PIL images."""
    if isinstance(value, str) and "://" in value:
        raise SampleError(f"{value}: images are not downloaded; give a file or a PIL image")
    if not hasattr(value, "shape"):
        return value
    from torchvision.transforms.functional import to_pil_image

    array = torch.as_tensor(value)
    if array.dim() == 3 and array.shape[0] not in (1, 3, 4):
        array = array.permute(2, 0, 1)
    return to_pil_image(array)
