"""The model a run starts from: a preset's size with random weights, or another run or model folder.

A checkpoint of another task gives all tensors that fit. Parameters that it lacks start at random, tensors that the new
head cannot use are left out, and both are reported. A backbone that does not fit is refused.
"""

import operator
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, cast

from pydantic import Field, model_validator
from torch import Tensor
from transformers import (
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    ProcessorMixin,
)

from evle.config import Config, refuse_no_pattern
from evle.engine.steps import write_whole_model
from evle.errors import CheckpointError, ConfigError, EvleError, in_one_line, nearest
from evle.models.eve import EVEConfig, EVEForVQA
from evle.models.eve.heads import answers_from_words
from evle.models.eve.modeling import EVEPreTrainedModel
from evle.models.eve.vision_init import init_from_vision
from evle.models.folders import from_folder, model_folder, read_fields, read_tensors
from evle.models.loading import PROCESSORS
from evle.models.presets import PRESETS
from evle.models.soundness import refuse_odd_tensors
from evle.models.vle import VLEConfig
from evle.models.vle.modeling import VLEPreTrainedModel, extend_token_types
from evle.models.vle.tower_weights import Kind, read_tower, read_tower_config
from evle.models.vle.vision import fit_table
from evle.models.vocabulary import refuse_other_tokenizer
from evle.run.adapting import Adapter, LoraConfig, adapt, freeze

EncoderConfig = EVEConfig | VLEConfig
CONFIGS: dict[str, type[EVEConfig] | type[VLEConfig]] = {"eve": EVEConfig, "vle": VLEConfig}
IMAGE_TABLES = {"eve": "image_embedding.position", "vle": "vision_model.vision_model."}
"""By family, a part of the names of its tables of image positions."""
COUNTING = ("position_ids", "relative_position_index")
"""Ends of the names of buffers that count positions and hold no weights."""
TOKEN_TYPES = "vle.token_type_embeddings.weight"
RELEASED_SUFFIXES = {".th", ".pt", ".pth", ".bin", ".safetensors"}

NOT_SIZES = {"vocab_size", "image_size", "max_position_embeddings", "drop_path_rate"}
"""Fields of a preset that may differ between a checkpoint and the model that starts from it."""


class ModelConfig(Config):
    """Which model to start from."""

    preset: str | None = None
    """A size by name, with random weights. Together with `init`, it only checks the size of `init`."""
    init: str | None = None
    """Weights to start from: a run's folder, a model folder, or stage:NAME in a recipe of stages."""
    vision: str | None = None
    """A trained image model that a preset starts from. For EVE a vision Transformer's checkpoint (BEiT v2, BEiT, DeiT,
    ViT); for VLE the folder of any image encoder (CLIP, SigLIP, DINOv2, ViT, Swin, timm, ...), with its own size and
    colour statistics. A CLIP keeps only the preset's number of layers."""
    text: str | None = None
    """The folder of a trained text encoder (DeBERTa, BERT, RoBERTa, ModernBERT, ...) that a VLE preset starts from,
    with its tokenizer."""
    new_heads: bool = False
    """Start all heads at random, even those that `init` has. EVE's release fine-tunes retrieval this way, whatever the
    pre-training objectives were (table 6 depends on it)."""
    freeze: tuple[str, ...] = ()
    """Patterns (re.search on a parameter's name) of parameters that are not trained, such as vision_model."""
    lora: LoraConfig | None = None
    """Train low-rank adapters of `init` in place of its weights."""
    interpolate: float = Field(default=1.0, ge=0, le=1)
    """After training, keep the weights at this point between those of `init` (0) and the trained ones (1), which
    forgets less of what `init` was trained on (WiSE-FT). Heads that `init` lacks stay as trained. The report has the
    curve."""
    overrides: dict[str, Any] = Field(default={})
    """Fields of the model's config, such as num_experts, objectives, drop_path_rate."""

    @model_validator(mode="after")
    def _check(self) -> "ModelConfig":
        for pattern in self.freeze:
            refuse_no_pattern(pattern)
        if self.lora is not None and self.init is None:
            raise ValueError(
                "lora adapts trained weights: name them with model.init (`evle new vle` builds such a model)"
            )
        if self.interpolate < 1 and (self.init is None or self.lora is not None):
            raise ValueError("interpolate blends whole trained weights with those of init; it needs init, and no lora")
        return self


def config_fields(family: type[EncoderConfig]) -> list[str]:
    """The fields of a family's configuration that are its own, not of every transformers model."""
    common = {each.name for each in fields(cast(Any, PreTrainedConfig))}
    return [each.name for each in fields(cast(Any, family)) if each.name not in common]


@dataclass
class Loaded:
    """A model to train, and where its weights come from.

    `held` are the names in the checkpoint, `new` the parameters that it did not hold, `unused` the checkpoint's tensors
    that this model has no use for, `resized` what was interpolated or extended. Without a checkpoint or towers all four
    are empty. `frozen` are the parameters that are not trained.
    """

    model: PreTrainedModel
    held: frozenset[str] = frozenset()
    new: frozenset[str] = frozenset()
    unused: list[str] = field(default_factory=list)
    resized: list[str] = field(default_factory=list)
    frozen: list[str] = field(default_factory=list)
    adapter: Adapter | None = None
    origin: str = "random weights"

    def choose_trained(self, options: ModelConfig) -> None:
        """Freeze what `options` name, and put in the adapters that they ask for. Raises ConfigError."""
        self.frozen = freeze(self.model, options.freeze)
        if options.lora is not None:
            assert options.init is not None
            resized = {line.split(" from ")[0] for line in self.resized}
            self.adapter = adapt(self.model, options.lora, options.init, self.new | resized)

    def write(self, model: PreTrainedModel, weights: Mapping[str, Tensor], folder: Path) -> None:
        """Write a model folder of `weights`: the adapter where there is one, else the whole model."""
        if self.adapter is not None:
            self.adapter.write(model, weights, folder)
        else:
            write_whole_model(model, weights, folder)

    def lines(self) -> list[str]:
        """What the log and the report should mention, one line per fact."""
        lines = [f"starts from {self.origin}"]
        if self.new:
            lines.append(f"{len(self.new)} tensors are new: {_heads(self.new)}")
        if self.unused:
            lines.append(f"{len(self.unused)} tensors of the checkpoint are not used: {_heads(self.unused)}")
        if self.frozen:
            lines.append(f"{len(self.frozen)} tensors are frozen: {_heads(self.frozen)}")
        if self.adapter is not None:
            lines.append(self.adapter.note)
        return lines + [f"resized: {name}" for name in self.resized]


def starting_config(options: ModelConfig) -> EncoderConfig:
    """The config of the model to start from, before the task and the tokenizer change it.

    Raises:
        ConfigError: neither preset nor init, an unknown preset or field, a preset that is not the size of `init`.
        CheckpointError: `init` is not there or not readable.
    """
    if options.init is not None and is_released(options.init):
        raise CheckpointError(
            f"model.init={options.init} is a bare checkpoint file; make a model folder of it first: "
            f"evle convert eve {options.init} FOLDER"
        )
    for name in ("vision", "text"):
        if options.init is not None and (other := getattr(options, name)) is not None:
            raise ConfigError(
                f"model.init={options.init} and model.{name}={other} both name weights; remove one of them"
            )
    if options.init is not None:
        config = read_config(options.init)
        _refuse_other_size(options, config)
        return config.with_changes(**options.overrides)
    if options.preset is None:
        raise ConfigError("the model is not named: set model.preset=NAME, or model.init=RUN to start from weights")
    config = _preset_config(options.preset, options.overrides)
    if isinstance(config, VLEConfig):
        return _with_towers(config, options)
    if options.text is not None:
        raise ConfigError(f"model.text={options.text} starts only VLE models; {options.preset} is not one")
    return config


def read_config(path: str | Path) -> EncoderConfig:
    """The config in a run or model folder, of one of our families. Raises CheckpointError."""
    fields = read_fields(model_folder(path), CONFIGS)
    return CONFIGS[fields["model_type"]].from_dict(fields)


def read_processor(path: str | Path, family: str) -> ProcessorMixin:
    """The processor saved beside a model. Raises CheckpointError."""
    folder = model_folder(path)
    try:
        processor: Any = from_folder(PROCESSORS[family], folder)
    except CheckpointError:
        raise
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"{folder}: holds no processor that can be read ({in_one_line(error)}); name a tokenizer with "
            "tokenizer.path=FOLDER"
        ) from None
    refuse_other_tokenizer(folder, processor.tokenizer, read_config(folder).vocab_size)
    return cast(ProcessorMixin, processor)


def build_processor(
    family: str, tokenizer: PreTrainedTokenizerBase, image_size: int, options: ModelConfig
) -> ProcessorMixin:
    """The processor for images with a side of `image_size` pixels, with the colour statistics of the model, or of a
    VLE's image tower, that training starts from."""
    start: str | Path | None = None
    if options.init is not None:
        start = model_folder(options.init)
    elif family == "vle":
        start = options.vision
    return cast(ProcessorMixin, PROCESSORS[family].for_size(image_size, tokenizer, start))


def build_model(
    model_class: type[PreTrainedModel], options: ModelConfig, start: EncoderConfig, changes: dict[str, Any]
) -> Loaded:
    """The model of `model_class` that `start`, changed by `changes` (image size, vocabulary, answers), describes,
    with its weights.

    Random weights come from torch's global generator: seed it first.

    Raises:
        CheckpointError: a tensor of the backbone has another shape, or the file is damaged.
    """
    config = start.with_changes(**{"id2label": None, "label2id": None, **changes})
    try:
        model = model_class(config)
    except (ImportError, ValueError) as error:  # of attention or experts that this machine or family does not have
        if isinstance(error, EvleError):
            raise
        raise ConfigError(f"model.overrides: {in_one_line(error)}") from None
    if options.init is None:
        loaded = Loaded(model, origin=f"random weights of size {options.preset}")
        if isinstance(model, VLEPreTrainedModel):
            _load_towers(loaded, options)
        elif options.vision is not None:
            assert isinstance(model, EVEPreTrainedModel)
            found = init_from_vision(model, options.vision)
            loaded.origin += f"; {options.vision}: {found}"
            backbone = model.base_model_prefix + "."
            started = {f"{backbone}{name}" for name in found.new}
            names = [name for name, _ in model.named_parameters()]
            loaded.new = frozenset(name for name in names if name in started or not name.startswith(backbone))
        return loaded
    folder = model_folder(options.init)
    tensors = read_tensors(folder)
    loaded = Loaded(model, frozenset(tensors), origin=str(options.init))
    _fit_tensors(loaded, tensors, read_config(options.init), folder, new_heads=options.new_heads)
    return loaded


def is_released(path: str) -> bool:
    """Whether `path` names a checkpoint file, as the authors released them, rather than a folder."""
    return Path(path).suffix in RELEASED_SUFFIXES and not Path(path).is_dir()


def _fit_tensors(
    loaded: Loaded, tensors: dict[str, Tensor], before: PreTrainedConfig, folder: Path, *, new_heads: bool
) -> None:
    """Give `tensors`, of a model with config `before`, to the loaded model (with `new_heads` only to its backbone), and
    note what is new, unused and resized."""
    model = loaded.model
    config = model.config
    own = model.state_dict()
    backbone = model.base_model_prefix + "."
    other_answers = _answers(before) != _answers(config)
    other_classes = _classes(before) != _classes(config)
    ignored = re.compile("|".join(model._keys_to_ignore_on_load_unexpected or ["$^"]))
    tied = set(getattr(model, "all_tied_weights_keys", None) or {}) if config.tie_word_embeddings else set()
    fitting: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        if name not in own and backbone + name in own:
            name = backbone + name  # a folder of the backbone alone
        target = own.get(name)
        if new_heads and not name.startswith(backbone):
            loaded.unused.append(name)
            continue
        if name in tied:
            continue  # a released file may hold a copy of its own, which must not overwrite the weight it is tied to
        if target is None:
            if not ignored.search(name):
                loaded.unused.append(name)
        elif tensor.shape == target.shape:
            # The same number of answers or classes, but different ones: the rows of the last layer mean something else.
            means_other = other_answers and tensor.shape[:1] == (config.num_labels,) and not name.startswith(backbone)
            means_other |= other_classes and tensor.shape[:1] == (len(_classes(config)),) and name.startswith("mpc_")
            if means_other:
                loaded.unused.append(name)
            else:
                fitting[name] = tensor
        elif name.endswith(COUNTING):
            continue
        elif IMAGE_TABLES[config.model_type] in name:
            fitting[name] = fit_table(name, tensor, target)
            loaded.resized.append(f"{name} from {before.image_size} to {config.image_size} pixels")
        elif name == TOKEN_TYPES:
            # New types start near the text's, at different distances, so that they differ from the first step.
            extended = extend_token_types(tensor, len(target))
            extended[len(tensor) :] += target[len(tensor) :]
            fitting[name] = extended
            loaded.resized.append(f"{name} from {len(tensor)} to {len(target)} token types")
        elif name.startswith(backbone):
            raise CheckpointError(
                f"{folder}: {name} has shape {tuple(tensor.shape)} but this model needs {tuple(target.shape)}; "
                "leave the size to model.init, or start from a preset"
            )
        else:
            loaded.unused.append(name)
    if isinstance(model, EVEForVQA) and config.answer_tokens and "classifier.0.weight" not in tensors:
        fitting |= answers_from_words(tensors, config.answer_tokens)
    refuse_odd_tensors(fitting, own, folder)
    model.load_state_dict(fitting, strict=False)
    loaded.new = frozenset(own.keys() - fitting.keys() - tied)
    if not any(name.startswith(backbone) for name in fitting):
        raise CheckpointError(f"{folder}: holds no tensor of this model's backbone ({backbone}*)")


def _with_towers(config: VLEConfig, options: ModelConfig) -> VLEConfig:
    """`config` with the towers that the options name in place of the preset's; a CLIP keeps the preset's image size and
    number of image layers."""
    fields = config.to_dict()
    paths: dict[Kind, str | None] = {"vision_config": options.vision, "text_config": options.text}
    for name, path in paths.items():
        if path is not None:
            tower = read_tower_config(path, name).to_dict()
            if tower["model_type"] == "clip_vision_model" and fields[name]["model_type"] == "clip_vision_model":
                tower |= {key: fields[name][key] for key in ("num_hidden_layers", "image_size")}
            fields[name] = {**tower, **options.overrides.get(name, {})}
    return VLEConfig.from_dict({**fields, "attn_implementation": config._attn_implementation})


def _load_towers(loaded: Loaded, options: ModelConfig) -> None:
    """Give the loaded VLE the weights of the towers that the options name."""
    model: Any = loaded.model  # a VLEPreTrainedModel
    vision_config = model.config.vision_config
    if options.vision is not None:
        is_clip = vision_config.model_type == "clip_vision_model"
        layers = vision_config.num_hidden_layers if is_clip else None
        model.load_towers({"vision_config": read_tower(options.vision, "vision_config", layers)})
        loaded.origin += f"; the image tower is {options.vision}"
    if options.text is not None:
        model.load_towers({"text_config": read_tower(options.text, "text_config")})
        loaded.origin += f"; the text tower is {options.text}"
    given = {"vision_model": options.vision, "text_model": options.text}
    if towers := tuple(f"{model.base_model_prefix}.{name}." for name, path in given.items() if path is not None):
        names = [name for name, _ in model.named_parameters()]
        loaded.new = frozenset(name for name in names if not name.startswith(towers))


def _answers(config: PreTrainedConfig) -> dict[int, str]:
    """The labels by number; JSON keys are strings."""
    return {int(place): str(label) for place, label in (config.id2label or {}).items()}


def _classes(config: PreTrainedConfig) -> tuple[str, ...]:
    """The classes of objects that a configuration knows, if its family knows any."""
    return tuple(config.object_classes) if isinstance(config, VLEConfig) else ()


def _preset_config(name: str, overrides: dict[str, Any]) -> EncoderConfig:
    if name not in PRESETS:
        raise ConfigError(f"model.preset={name!r} does not exist; {nearest(name, PRESETS)}")
    return CONFIGS[PRESETS[name][0]].from_preset(name, **overrides)


def _refuse_other_size(options: ModelConfig, config: PreTrainedConfig) -> None:
    if options.preset is None:
        return
    if options.preset not in PRESETS:
        raise ConfigError(f"model.preset={options.preset!r} does not exist; {nearest(options.preset, PRESETS)}")
    family, fields = PRESETS[options.preset]
    wanted = {"model_type": family, **fields, **options.overrides}
    for name, value in _flat({name: wanted[name] for name in fields.keys() - options.overrides.keys()}):
        found = operator.attrgetter(name)(config)
        if name.split(".")[-1] not in NOT_SIZES and found != value:
            raise ConfigError(
                f"model.init={options.init} has {name} {found}, model.preset={options.preset} has {value}; "
                "leave one of them out"
            )


def _flat(fields: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """The fields of a preset, those of a tower as tower.field."""
    for name, value in fields.items():
        if isinstance(value, Mapping):
            yield from ((f"{name}.{inner}", each) for inner, each in value.items())
        else:
            yield name, value


def _heads(names: Any) -> str:
    """The modules of the named tensors, with counts: "classifier (6), decoder (20)"."""
    counts: dict[str, int] = {}
    for name in names:
        counts[name.split(".")[0]] = counts.get(name.split(".")[0], 0) + 1
    return ", ".join(f"{module} ({count})" for module, count in sorted(counts.items()))


def size_notes(overrides: Mapping[str, Any], size: int) -> list[str]:
    """A note that images have `size` pixels per side, when `overrides` name another size."""
    given = overrides.get("image_size") or (overrides.get("vision_config") or {}).get("image_size") or size
    if given == size:
        return []
    return [f"using image.size={size}; image_size={given} of model.overrides is ignored"]
