"""The functions of a trained model that become graphs, by its head, and inputs to trace and check them with.

B rows of a batch, T text tokens, K candidates of a question (VCR), O objects of a text, H x W pixels.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from evle.errors import CheckpointError, ConfigError
from evle.models.dual import DUAL_ENCODERS, PADDED_TO_THE_END
from evle.models.eve import EVEForNLVR2, EVEForPreTraining, EVEForRetrieval, EVEForVQA
from evle.models.folders import from_folder, read_fields
from evle.models.loading import ALL_PROCESSORS, load_model
from evle.models.vle import (
    VLEForITM,
    VLEForMLM,
    VLEForNLVR2,
    VLEForPBC,
    VLEForPreTraining,
    VLEForRetrieval,
    VLEForVCRQ2A,
    VLEForVCRQA2R,
    VLEForVQA,
)
from evle.models.vle.towers import takes_one_size
from evle.tasks.retrieval import learns_matching

PIXELS, IDS, MASK = "pixel_values", "input_ids", "attention_mask"
PAIR = (PIXELS, IDS, MASK)
CANDIDATES = (PIXELS, IDS, MASK, "token_type_ids", "box_patches", "box_token_types", "image_rows")
NUM_CANDIDATES = 4
HEADS: Mapping[type[PreTrainedModel], str] = {
    EVEForVQA: "answer",
    VLEForVQA: "answer",
    EVEForNLVR2: "compare",
    VLEForNLVR2: "compare",
    VLEForPBC: "locate",
    VLEForMLM: "words",
    VLEForVCRQ2A: "choose",
    VLEForVCRQA2R: "choose",
}
"""Models with one graph, and what it computes."""
WITH_TOWERS: Sequence[type[PreTrainedModel]] = (EVEForRetrieval, VLEForRetrieval, *DUAL_ENCODERS.values())
PRETRAINED: Sequence[type[PreTrainedModel]] = (EVEForPreTraining, VLEForPreTraining)
EXPORTED = [each.__name__ for each in (*WITH_TOWERS, VLEForITM, *HEADS, *PRETRAINED)]


@dataclass(frozen=True)
class Graph:
    """One function of a model: what it computes, the names of its inputs in order, and the name of its output."""

    function: str
    model: Any
    inputs: tuple[str, ...]
    output: str
    run: Callable[..., Tensor]

    @property
    def config(self) -> Any:
        """The configuration of the model."""
        return self.model.config


def read_graphs(folder: Path) -> tuple[list[Graph], list[str]]:
    """The graphs of the model in a folder, in float32, and the model classes whose place they take.

    Raises CheckpointError for a model whose head is not exported, ConfigError for one that routes with a capacity.
    """
    fields = read_fields(folder, ALL_PROCESSORS)
    family, head = str(fields["model_type"]), str((fields.get("architectures") or ["none"])[0])
    classes = {each.__name__: each for each in (*WITH_TOWERS, VLEForITM, *HEADS)}
    if family in DUAL_ENCODERS:
        classes[head] = DUAL_ENCODERS[family]
    if head in (each.__name__ for each in PRETRAINED):
        kinds = _kinds_of_pretrained(folder, family, set(fields.get("objectives") or ()))
    elif head in classes:
        kinds = [classes[head]]
    else:
        raise CheckpointError(f"{folder}: holds {head}, which is not exported; export one of: {', '.join(EXPORTED)}")
    graphs: list[Graph] = []
    for kind in kinds:
        known = {graph.function for graph in graphs}
        graphs += [graph for graph in _graphs_of(_load(folder, family, kind)) if graph.function not in known]
    names = [kind.__name__ for kind in kinds]
    if VLEForRetrieval in kinds and any(graph.function == "match" for graph in graphs):
        names.append(VLEForITM.__name__)  # all that matching needs
    return graphs, list(dict.fromkeys(names))


def _kinds_of_pretrained(folder: Path, family: str, objectives: set[str]) -> list[type[PreTrainedModel]]:
    """The models with one head each that a pre-trained checkpoint serves."""
    eve: list[tuple[str, type[PreTrainedModel]]] = [("itc", EVEForRetrieval), ("mlm", EVEForPreTraining)]
    vle: list[tuple[str, type[PreTrainedModel]]] = [
        ("itc", VLEForRetrieval),
        ("itm", VLEForITM),
        ("pbc", VLEForPBC),
        ("mlm", VLEForMLM),
    ]
    kinds = [kind for name, kind in (eve if family == "eve" else vle) if name in objectives]
    if not kinds:
        raise CheckpointError(
            f"{folder}: pre-trained by {', '.join(sorted(objectives)) or 'nothing'}, which leaves no head to export; "
            "fine-tune it first"
        )
    return kinds


def _load(folder: Path, family: str, kind: type[PreTrainedModel]) -> Any:
    model: Any
    fields = read_fields(folder, ALL_PROCESSORS)
    objectives = set(fields.get("objectives") or ())
    if kind in WITH_TOWERS and family not in DUAL_ENCODERS and "itc" in objectives and "itm" not in objectives:
        model = from_folder(kind, folder, objective_weights={**(fields.get("objective_weights") or {}), "itm": 0.0})
    else:
        model, _ = load_model(folder, {family: kind})
    model = nn.Module.to(model, torch.float32).eval()
    if family == "eve":
        if model.config.capacity_factor is not None:
            raise ConfigError(
                f"{folder}: routes with a capacity, which depends on the batch; export it without "
                "(config.json: capacity_factor null)"
            )
        model.set_experts_implementation("dense")
    return model


def _graphs_of(model: Any) -> list[Graph]:
    kind = type(model)
    if kind in HEADS:
        function = HEADS[kind]
        inputs = CANDIDATES if function == "choose" else PAIR
        return [Graph(function, model, inputs, "logits", lambda **inputs: model(**inputs).logits)]
    if kind is EVEForPreTraining:

        def words(**inputs: Tensor) -> Tensor:
            return model.mlm_head(model.eve(**inputs, return_dict=True).text_hidden)

        return [Graph("words", model, PAIR, "logits", words)]
    match = Graph("match", model, PAIR, "logits", getattr(model, "itm_logits", None))  # type: ignore[arg-type]
    if kind is VLEForITM:
        return [match]
    family = model.config.model_type
    text = (IDS,) if family in PADDED_TO_THE_END else (IDS, MASK)
    towers = [
        Graph("image", model, (PIXELS,), "features", model.get_image_features),
        Graph("text", model, text, "features", model.get_text_features),
    ]
    return [*towers, match] if family not in DUAL_ENCODERS and learns_matching(model.config) else towers


class Sizes(NamedTuple):
    """How large the inputs of one call are."""

    rows: int
    tokens: int
    height: int
    width: int


def sizes_to_check(graph: Graph, *, free: bool) -> list[Sizes]:
    """Sizes of inputs: the first to trace a graph with, all to check it with.

    Where the image size is free, none of the traced one is special to the model, or it would be taken for a constant.
    """
    config = graph.config
    vision = getattr(config, "vision_config", config)
    side = int(getattr(config, "image_size", None) or vision.image_size)
    if not free:  # of questions, two share an image: four have two
        first = 4 if graph.function == "choose" else 2
        return [Sizes(first, 7, side, side), Sizes(1, 4, side, side), Sizes(5, 11, side, side)]
    patch = int(getattr(config, "patch_size", None) or vision.patch_size)
    return [
        Sizes(2, 7, side + patch, side + 2 * patch),
        Sizes(1, 4, side, side),
        Sizes(5, 11, side, side),
        Sizes(2, 5, side + 2 * patch, side + patch),
        Sizes(3, 6, max(patch, side - patch), side),
    ]


def may_be_free(graph: Graph) -> bool:
    """Whether it is worth trying to leave the image size of a graph free."""
    if PIXELS not in graph.inputs or graph.function == "choose" or graph.config.model_type in DUAL_ENCODERS:
        return False
    vision = getattr(graph.config, "vision_config", None)
    return vision is None or not takes_one_size(vision)


def example(graph: Graph, sizes: Sizes) -> dict[str, Tensor]:
    """Inputs of a graph: random images and texts, the first text padded."""
    config = graph.config
    text = getattr(config, "text_config", config)
    rows, tokens, height, width = sizes
    longest = int(getattr(config, "max_position_embeddings", None) or text.max_position_embeddings)
    length = longest if config.model_type in PADDED_TO_THE_END else min(tokens, longest)
    generator = torch.Generator().manual_seed(rows * 1000 + length)

    def numbers(high: int, *shape: int, low: int = 0) -> Tensor:
        return torch.randint(low, high, shape, generator=generator)

    of_text = (rows, NUM_CANDIDATES, length) if graph.function == "choose" else (rows, length)
    mask = torch.ones(of_text, dtype=torch.long)
    mask[0, ..., max(1, length - 2) :] = 0
    images = (rows, 2) if graph.function == "compare" else (rows,)
    values = {
        PIXELS: torch.randn((*images, 3, height, width), generator=generator),
        IDS: numbers(int(text.vocab_size), *of_text, low=1),
        MASK: mask,
    }
    if graph.function == "choose":
        objects = (rows, NUM_CANDIDATES, rows + 1)
        patches = (height // config.patch_size) * (width // config.patch_size)
        types = int(config.num_token_types)
        values |= {
            "token_type_ids": numbers(types, *of_text),
            "box_patches": numbers(2, *objects, patches).bool(),
            "box_token_types": numbers(types, *objects),
            "image_rows": torch.arange(rows) // 2,  # some questions share an image
        }
        values[PIXELS] = values[PIXELS][: (rows + 1) // 2]
    return {name: values[name] for name in graph.inputs}


def free_axes(graph: Graph, inputs: Mapping[str, Tensor], *, free: bool) -> tuple[dict[int, Any], ...]:
    """The dimensions of each input that a graph leaves free: rows, tokens, objects and, if `free`, height and width."""
    dynamic = torch.export.Dim.DYNAMIC
    axes = []
    for name, tensor in inputs.items():
        chosen: list[int]
        if name == PIXELS:
            chosen = [0, tensor.dim() - 2, tensor.dim() - 1] if free else [0]
        elif name == "box_patches" or tensor.dim() == 3:
            chosen = [0, 2]  # the candidates are always the same number
        else:
            chosen = list(range(tensor.dim()))
        if name == IDS and graph.config.model_type in PADDED_TO_THE_END:
            chosen = [0]
        axes.append({axis: dynamic for axis in chosen})
    return tuple(axes)
