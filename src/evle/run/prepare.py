"""What a run needs, made from its configuration without writing anything: samples, tokenizer, task, model, loader."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from itertools import chain

import torch
from transformers import PreTrainedTokenizerBase, ProcessorMixin

from evle.data.loader import FeatureFunction, Loader
from evle.data.samples import CaptionSample, Samples, Split, hash_samples, readable
from evle.distributed import gather_objects, rank, world_size
from evle.engine.operations import operations_per_batch
from evle.engine.tower_states import with_frozen_towers
from evle.engine.train_config import TrainConfig
from evle.errors import ConfigError, DataError
from evle.inspection.texts import sample_texts
from evle.run.config import RunConfig, task_class
from evle.run.splits import read_split, read_splits, shared_images
from evle.run.tokenizer import make_tokenizer, refuse_lacking_tokens, text_notes, vocab_size_for
from evle.run.weights import EncoderConfig, Loaded, build_model, build_processor, size_notes, starting_config
from evle.tasks.pretraining import PreTrainingTask
from evle.tasks.retrieval import RetrievalTask
from evle.tasks.swaps import SwapsTask
from evle.tasks.task import Task, TaskConfig
from evle.tasks.vqa import has_slot
from evle.transforms.words import clean_caption

SOME = 64
"""Samples that are looked at for captions that are all the same, and for texts that are cut."""


@dataclass
class Prepared:
    """All that a run needs, made from its configuration: a dry run stops here."""

    task: Task
    loaded: Loaded
    samples: dict[Split, Samples]
    training: Samples
    loader: Loader
    train: TrainConfig
    data_hash: str
    notes: list[str] = field(default_factory=list)


def prepare(
    config: RunConfig, task: type[Task] | None = None, samples: Mapping[Split, Samples] | None = None
) -> Prepared:
    """Build what a run needs: its samples, tokenizer, task, model and loader, in this order.

    `task` and `samples` are used instead of what the configuration names. Raises EvleError for whatever a user can
    cause.
    """
    config = config.with_local_inputs()
    task_type = task or task_class(config)
    start = starting_config(config.model)
    splits = _samples(config, task_type, samples)
    torch.manual_seed(config.seed)
    tokenizer = _tokenizer(config, task_type, splits["train"], start)
    built = _task(config, task_type, tokenizer, splits["train"], start)
    loaded = _model(config, built, tokenizer, start)
    if config.train.cache_towers:
        with_frozen_towers(loaded.model, config.train)
    training = built.training_samples(splits["train"])
    _refuse_lonely_rows(config, built, loaded, training)
    built.equip(loaded.model, training)
    loader = make_loader(config, built, training, partial(built.features, train=True), config.train.num_workers)
    train = config.train if config.train.teraflops is None else _in_steps(config.train, built, loaded, loader)
    notes = [
        *loaded.lines(),
        *size_notes(config.model.overrides, built.image_size),
        *built.notes(),
        *_text_notes(config, tokenizer, training),
        *shared_images(splits),
    ]
    return Prepared(built, loaded, splits, training, loader, train, hash_samples(splits), notes)


def build_task(task: type[Task], config: RunConfig, processor: ProcessorMixin) -> Task:
    """A task with the options that the configuration gives it. Raises ConfigError for options that it does not have."""
    return task(task_options(task, config), processor)


def task_options(task: type[Task], config: RunConfig) -> TaskConfig:
    """The options that a configuration gives to a task. Raises ConfigError for those that it does not have."""
    options = {name: value for name, value in config.task.items() if name != "name"}
    return task.config_type.build({**options, "image": config.image, "text": config.text}, "task")


def _samples(config: RunConfig, task: type[Task], samples: Mapping[Split, Samples] | None) -> dict[Split, Samples]:
    splits = dict(samples) if samples is not None else read_splits(config.data, task.reads)
    for split, own in splits.items():
        if own is not None and not len(own):
            raise ConfigError(f"the split {split} holds no samples; give it some, or leave it out")
    if "train" not in splits:
        raise ConfigError("data.train is missing: name a source, such as data.train.source=folder data.path=FOLDER")
    return splits


def _tokenizer(config: RunConfig, task: type[Task], training: Samples, start: EncoderConfig) -> PreTrainedTokenizerBase:
    tokenizer = make_tokenizer(
        config.tokenizer, config.model, start, lambda: _training_texts(config, task.reads, training)
    )
    hides = config.task["name"] == "pretraining" and "mlm" in start.objectives
    hides |= config.task["name"] == "vqa" and has_slot(start)
    refuse_lacking_tokens(tokenizer, hides, str(config.tokenizer.path or config.model.init or config.model.text))
    return tokenizer


def _training_texts(config: RunConfig, reads: str, training: Samples) -> Iterator[str]:
    """The texts that a tokenizer is trained on: those of the training samples, and of the other kinds that
    `tokenizer.reads` names."""
    kinds = config.tokenizer.reads or (reads,)
    others = (read_split(config.data, "train", kind) for kind in kinds if kind != reads)
    corpora = [*([training] if reads in kinds else []), *(each for each in others if each is not None)]
    samples = (
        sample for corpus in corpora for sample in readable(corpus, _spread(len(corpus), config.tokenizer.samples))
    )
    texts: Iterator[str] = chain.from_iterable(map(sample_texts, samples))
    if config.text.clean:
        texts = (clean_caption(text, config.text.max_words) for text in texts)
    return texts


def _text_notes(config: RunConfig, tokenizer: PreTrainedTokenizerBase, training: Samples) -> list[str]:
    """What the run would do in silence to the texts of some training samples."""
    try:
        texts = [text for each in readable(training, _spread(len(training), SOME)) for text in sample_texts(each)]
    except DataError:  # samples of a kind that only the task knows
        return []
    if config.text.clean:
        texts = [clean_caption(text, config.text.max_words) for text in texts]
    is_new = config.tokenizer.path is None and config.model.init is None and config.model.text is None
    return text_notes(texts, tokenizer, config.text.max_length, is_new)


def _spread(length: int, most: int | None) -> Iterator[int]:
    """At most `most` indices of a sequence, evenly spread."""
    number = length if most is None else min(length, most)
    return (index * length // number for index in range(number))


def _task(
    config: RunConfig, task: type[Task], tokenizer: PreTrainedTokenizerBase, training: Samples, start: EncoderConfig
) -> Task:
    image_size = config.image.size or start.image_size
    built = build_task(task, config, build_processor(start.model_type, tokenizer, image_size, config.model))
    built.prepare(training, start)
    return built


def _model(config: RunConfig, task: Task, tokenizer: PreTrainedTokenizerBase, start: EncoderConfig) -> Loaded:
    changes = {
        "image_size": task.image_size,
        "vocab_size": vocab_size_for(tokenizer, config.model, start),
        **task.model_overrides(),
    }
    if config.text.max_length > start.max_position_embeddings:
        raise ConfigError(
            f"text.max_length={config.text.max_length} is more than the model's {start.max_position_embeddings} "
            "positions; lower it, or set model.overrides.max_position_embeddings"
        )
    loaded = build_model(task.model_class(start.model_type), config.model, start, changes)
    loaded.choose_trained(config.model)
    task.bind(loaded.model.config)
    return loaded


def _refuse_lonely_rows(config: RunConfig, task: Task, loaded: Loaded, training: Samples) -> None:
    """Raise ConfigError where contrast or matching would compare one pair with none other: their losses would be 0.

    Contrast compares the pairs of all micro-batches of a step, matching those of one.
    """
    objectives = {"itc", "itm"}
    if isinstance(task, PreTrainingTask):
        objectives &= set(loaded.model.config.objectives)
    elif not isinstance(task, RetrievalTask | SwapsTask):
        return
    rows = {"itc": config.train.batch_size, "itm": config.train.micro_batch_size(world_size()) * world_size()}
    some = readable(training, _spread(len(training), SOME)) if objectives else ()
    matches = {sample.match_id or sample.key for sample in some if isinstance(sample, CaptionSample)}
    if len(matches) == 1 and len(training) > 1:
        raise ConfigError(
            f"{' and '.join(sorted(objectives))} would compare images whose captions are all the same "
            f"({next(iter(matches))[:60]!r}), so that every text matches every image: nothing would be learned; write "
            "captions that differ"
        )
    lonely = sorted(name for name in objectives if min(rows[name], len(training)) < 2)
    if lonely:
        raise ConfigError(
            f"{' and '.join(lonely)} would compare the pairs of a batch that holds a single pair "
            f"(train.batch_size={config.train.batch_size}, train.accumulation={config.train.accumulation}, "
            f"{len(training)} training samples): nothing would be learned; raise train.batch_size or lower "
            "train.accumulation"
        )


def make_loader(
    config: RunConfig, task: Task, training: Samples, features: FeatureFunction, num_workers: int
) -> Loader:
    """The batches of a training, of the `features` of its samples."""
    return Loader(
        training,
        features,
        task.collate_raw,
        batch_size=config.train.micro_batch_size(world_size()),
        seed=config.seed,
        drop_last=len(training) >= config.train.batch_size,
        accumulation=config.train.accumulation,
        num_workers=num_workers,
        rank=rank(),
        world_size=world_size(),
    )


def _in_steps(train: TrainConfig, task: Task, loaded: Loaded, loader: Loader) -> TrainConfig:
    """`train` with the number of optimizer steps that its operations are enough for."""
    batches = (task.on_device(batch, loaded.model.device) for batch in loader.batches(0))
    of_all = gather_objects([operations_per_batch(loaded.model, batches)])  # texts differ; the number of steps may not
    per_step = sum(of_all) * train.accumulation
    steps = max(1, round((train.teraflops or 0) * 1e12 / per_step))
    return train.model_copy(update={"steps": steps, "teraflops": None})
