"""Pre-training by the objectives in the model's configuration.

These are EVE's masked signals (EVE section 3.3: mim, mlm), VLE's four (mlm, itm, and on boxes mpc and pbc), and
contrast (itc).

B batch, N patches without [CLS], T text tokens, R rows that matching judges.
"""

from collections import Counter
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, cast

import numpy as np
import torch
from pydantic import Field, model_validator
from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedModel

from evle.data.samples import Box, CaptionSample, Sample, readable
from evle.errors import ConfigError
from evle.metrics import average_precision, shared_information
from evle.models.eve import EVEForPreTraining
from evle.models.eve.targets import open_teacher
from evle.models.vle import VLEForPreTraining
from evle.tasks.captions import CaptionConfig, first_text, match_of, training_text
from evle.tasks.predict import predict_all
from evle.tasks.pretraining_codes import learn_codes
from evle.tasks.pretraining_images import pretraining_galleries
from evle.tasks.task import Batch, Evaluation, EvaluationSettings, Features, Task
from evle.transforms.collate import number_ids, pad_rows, stack
from evle.transforms.image import normalize
from evle.transforms.masking import IGNORED, mask_patches, mask_tokens
from evle.transforms.regions import box_patches, related_patches
from evle.transforms.text import encode_words
from evle.transforms.words import clean_caption

Share = Annotated[float, Field(ge=0, le=1)]

COUNTED_SAMPLES = 100_000
"""Number of samples, evenly spread over a larger collection, whose objects determine the classes."""


class PreTrainingConfig(CaptionConfig):
    """Options of pre-training; the defaults are EVE's (75 % of patches, 50 % of tokens)."""

    image_mask_ratio: float = Field(default=0.75, gt=0, lt=1)
    """Share of the patches hidden for MIM."""
    text_mask_ratio: float = Field(default=0.5, gt=0, le=1)
    """Share of the tokens hidden for MLM."""
    replace: tuple[Share, Share, Share] = (1.0, 0.0, 0.0)
    """Shares of hidden tokens that are replaced by [MASK], replaced by a random token, and left unchanged. EVE's figure
    shows only [MASK]; BERT uses 0.8, 0.1, 0.1."""
    whole_words: bool = False
    """Hide all tokens of a word together; EVE hides single tokens."""
    phrases: Share = 0.0
    """PBC: share of texts that are the phrase of one of the image's boxes instead of a caption (ours). Such a pair is
    left out of matching and contrast, because the phrase may also fit other images."""
    min_cover: Share = 0.5
    """PBC: a patch belongs to a box that covers more than this share of it. A box too small for any patch gets the
    patch that it covers most (ours)."""
    object_classes: str | None = None
    """MPC: a file with the classes of objects, one per line. By default the classes of the training samples' boxes."""
    max_object_classes: int | None = Field(default=None, ge=1)
    """MPC: maximum number of classes. The most frequent ones in the training samples are kept; boxes of other classes
    are never hidden."""

    mim_teacher: str | None = None
    """MIM: a model folder with an image tokenizer or any image encoder of transformers. EVE then predicts its codes or
    features instead of pixels (EVE, tables 1 and 3)."""
    mim_target: Literal["codes", "features"] = "features"
    """MIM: what EVE predicts: the codes of an image tokenizer, or of `mim_codes`, or the features of an encoder."""
    mim_codes: int | None = Field(default=None, ge=2)
    """MIM: with an image encoder as `mim_teacher`, the number of codes. They are clusters of its features on training
    images (k-means), learned before the first step and saved with the model. BEiT v2 has 8192."""
    mim_error: Literal["squared", "cosine"] = "squared"
    """MIM: the error of features: squared, or one minus the cosine."""

    @model_validator(mode="after")
    def _targets_fit(self) -> "PreTrainingConfig":
        if self.mim_codes and (self.mim_teacher is None or self.mim_target != "codes"):
            raise ValueError(f"mim_codes={self.mim_codes} needs mim_teacher=FOLDER and mim_target=codes")
        if self.mim_error == "cosine" and (self.mim_teacher is None or self.mim_target != "features"):
            raise ValueError("mim_error=cosine needs mim_teacher=FOLDER and mim_target=features")
        return self


class PreTrainingTask(Task):
    """Training: one text per image, and random masks. Evaluation: the losses under fixed masks.

    Features and batch hold only what `config.objectives` need. `metric` is the sum of the losses, so lower is better.
    Contrast and matching depend on the evaluation's batch size, because they compare the rows of a batch. Further
    scores are in percent: `mlm_accuracy` of hidden tokens, `itm_accuracy` of pairs and hard negatives, `mpc_accuracy`
    of the classes of hidden objects, `pbc_accuracy` of patches, and `pbc_average_precision` of the patches ranked by
    their score. Chance is the score of the most frequent answer or, for the last, of a random order.
    """

    name = "pretraining"
    reads = "captions"
    sample_type = CaptionSample
    config_type = PreTrainingConfig
    models: ClassVar[dict[str, type[PreTrainedModel]]] = {"eve": EVEForPreTraining, "vle": VLEForPreTraining}
    metric = "loss"
    higher_is_better = False
    options: PreTrainingConfig
    classes: tuple[str, ...] = ()
    keeps_codes = False
    remarks: tuple[str, ...] = ()

    def prepare(self, samples: Sequence[Sample], config: PreTrainedConfig) -> None:
        """Collect the classes of objects, the most frequent first, if MPC is an objective. Raises ConfigError for a
        teacher of MIM without MIM, and for samples without classes."""
        teacher = self.options.mim_teacher
        if teacher is not None and "mim" not in config.objectives:
            raise ConfigError(
                f"task.mim_teacher={teacher} is for the objective mim, which is not minimised; leave it out, or add "
                "mim to model.overrides.objectives"
            )
        self.keeps_codes = teacher in (None, getattr(config, "mim_teacher", None))
        if "mpc" not in config.objectives:
            return
        if self.options.object_classes is not None:
            self.classes = read_classes(self.options.object_classes)
            return
        indices = np.linspace(0, len(samples) - 1, min(len(samples), COUNTED_SAMPLES)).astype(int)
        counts: Counter[str] = Counter()
        for sample in readable(samples, indices.tolist()):
            counts.update(box.label for box in sample.boxes if box.label)
        if not counts:
            raise ConfigError(
                "the objective mpc needs boxes with classes, but the training samples have none; train on others, set "
                "task.object_classes to a file of classes, or leave mpc out of model.overrides.objectives"
            )
        ranked = sorted(counts, key=lambda label: (-counts[label], label))
        self.classes = tuple(ranked[: self.options.max_object_classes])

    def model_overrides(self) -> dict[str, Any]:
        overrides: dict[str, Any] = {"object_classes": list(self.classes)} if self.classes else {}
        if (folder := self.options.mim_teacher) is not None:
            codes, target = self.options.mim_codes, self.options.mim_target
            size = open_teacher(folder, "features" if codes else target).size
            overrides |= {"mim_teacher": folder, "mim_target": target, "mim_target_size": codes or size}
            overrides |= {"mim_code_width": size if codes else None, "mim_error": self.options.mim_error}
        return overrides

    def equip(self, model: PreTrainedModel, samples: Sequence[Sample]) -> None:
        """Learn the codes of MIM, if they are clusters. Those that came with the initial weights are kept, because the
        head was trained for them."""
        codebook = dict(model.named_buffers()).get("codebook")
        if codebook is None or codebook.is_meta or (self.keeps_codes and codebook.any()):
            return
        self.remarks = (learn_codes(self, model, samples),)

    def notes(self) -> list[str]:
        return list(self.remarks)

    def bind(self, config: PreTrainedConfig) -> None:
        self.objectives = frozenset(config.objectives)
        self.patches_per_side = self.image_size // config.patch_size
        self.vocab_size = config.vocab_size
        self.class_ids: dict[str, int] = {}
        if "mpc" in self.objectives:
            self.class_ids = {label: index for index, label in enumerate(config.object_classes)}

    def features(self, sample: Sample, rng: np.random.Generator, train: bool) -> Features:
        sample = cast(CaptionSample, sample)
        wanted = self.objectives
        text = self._text(sample, rng, train)
        tokens, word_starts = self.tokens(self.clean(text)), None
        if "mlm" in wanted and self.options.whole_words:
            tokens, word_starts = encode_words(self.processor.tokenizer, self.clean(text), self.options.text.max_length)
        found: Features = {"tokens": tokens, "match": match_of(sample, text)}
        if "mlm" in wanted:
            found["masked_tokens"], found["labels"] = self._masked(tokens, word_starts, rng)
        boxes = sample.boxes if wanted & {"mpc", "pbc"} else ()
        found["image"], corners = self.read_image_with_boxes(sample.image, boxes, rng, train, text)
        if "mim" in wanted:
            found["image_mask"] = mask_patches(self.patches_per_side**2, self.options.image_mask_ratio, rng)
        if "pbc" in wanted:
            found["pbc_labels"] = self._related(text, boxes, corners)
        if "mpc" in wanted:
            found["mpc_patches"], found["mpc_label"] = self._hidden(boxes, corners, rng)
        return found

    def collate_raw(self, features: list[Features]) -> Batch:
        def rows(name: str) -> list[Any]:
            return [each[name] for each in features]

        wanted = self.objectives
        batch = {"pixel_values": torch.stack(rows("image")), **self.collate_tokens(rows("tokens"))}
        if "mim" in wanted:
            batch["image_mask"] = stack(rows("image_mask"))
            num_visible = int((~batch["image_mask"][0]).sum())
            batch["visible"] = batch["image_mask"].int().argsort(dim=1, stable=True)[:, :num_visible]
        if "mlm" in wanted:
            batch["masked_input_ids"] = pad_rows(rows("masked_tokens"), self.processor.tokenizer.pad_token_id)
            batch["mlm_labels"] = pad_rows(rows("labels"), IGNORED)
            batch["masked_tokens"] = _indices(batch["mlm_labels"].flatten() != IGNORED)
        if wanted & {"itc", "itm"}:
            batch["match_ids"] = number_ids(rows("match"))
        if "itm" in wanted:
            batch["match_rows"] = _indices(batch["match_ids"] != IGNORED)
        if "pbc" in wanted:
            batch["pbc_labels"] = stack(rows("pbc_labels"))
        if "mpc" in wanted:
            batch["mpc_patches"] = stack(rows("mpc_patches"))
            batch["mpc_labels"] = torch.tensor(rows("mpc_label"))
            batch["mpc_rows"] = _indices(batch["mpc_patches"].any(dim=1) & (batch["mpc_labels"] != IGNORED))
            image_processor = self.processor.image_processor
            black = torch.zeros(len(image_processor.image_mean), 1, 1, dtype=torch.uint8)
            batch["black"] = normalize(black, image_processor.image_mean, image_processor.image_std).flatten()
        return batch

    def evaluate(self, model: PreTrainedModel, samples: Sequence[Sample], settings: EvaluationSettings) -> Evaluation:
        predicted = predict_all(model, samples, self, partial(measure, model), settings)
        found = list(predicted.results.values())
        scores, chance = _scores(found)
        if found and "router" in found[0]:
            scores |= _router_scores([row["router"] for row in found], every_expert=not settings.quick)
        return Evaluation(
            scores=scores,
            chance=chance,
            galleries=[]
            if settings.quick
            else pretraining_galleries(self, model, samples, predicted.results, settings),
            skipped=predicted.skipped,
        )

    def _text(self, sample: CaptionSample, rng: np.random.Generator, train: bool) -> str:
        """A caption, or at random the phrase of a box."""
        if "pbc" in self.objectives and self.options.phrases:
            phrases = [box.phrase for box in sample.boxes if box.phrase]
            if phrases and rng.random() < self.options.phrases:
                return phrases[int(rng.integers(len(phrases)))]
        return training_text(sample, self.options, rng) if train else first_text(sample)

    def _masked(
        self, tokens: list[int], word_starts: list[bool] | None, rng: np.random.Generator
    ) -> tuple[list[int], list[int]]:
        """A text's tokens with some of them hidden, and the hidden ones as labels."""
        tokenizer = self.processor.tokenizer
        return mask_tokens(
            tokens,
            self.options.text_mask_ratio,
            rng,
            mask_id=tokenizer.mask_token_id,
            vocab_size=min(self.vocab_size, len(tokenizer)),
            special_ids=tokenizer.all_special_ids,
            replace=self.options.replace,
            word_starts=word_starts,
        )

    def _related(self, text: str, boxes: Sequence[Box], corners: np.ndarray) -> np.ndarray:
        """int64 (N,): 1 for the patches of boxes whose phrase is the text or part of it, 0 for the others.

        The label is unknown, -100, for all patches if no such box is visible, and for the patches of other boxes if the
        text is a caption, which may describe them in other words.
        """
        words = clean_caption(text, None)
        phrases = [clean_caption(box.phrase, None) for box in boxes]
        in_sight = ~np.isnan(corners).any(axis=1)
        named = in_sight & np.array([bool(each) and f" {each} " in f" {words} " for each in phrases], dtype=bool)
        labels = np.full(self.patches_per_side**2, IGNORED)
        if named.any():
            labels[:] = 0
            if words not in phrases:
                labels[self._patches_of(corners[in_sight & ~named])] = IGNORED
            labels[self._patches_of(corners[named])] = 1
        return labels

    def _patches_of(self, corners: np.ndarray) -> np.ndarray:
        size = (self.image_size, self.image_size)
        return related_patches(corners, size, self.patches_per_side, min_cover=self.options.min_cover)

    def _hidden(self, boxes: Sequence[Box], corners: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, int]:
        """bool (N,), the patches that overlap one object, and its class; no patch and -100 without an object."""
        in_sight = ~np.isnan(corners).any(axis=1)
        known = [index for index, box in enumerate(boxes) if in_sight[index] and box.label in self.class_ids]
        if not known:
            return np.zeros(self.patches_per_side**2, dtype=bool), IGNORED
        index = known[int(rng.integers(len(known)))]
        size = (self.image_size, self.image_size)
        return box_patches(corners[index], size, self.patches_per_side)[0], self.class_ids[boxes[index].label]


def _indices(chosen: Tensor) -> Tensor:
    """Where `chosen` (N,) is true, int64: the model then need not wait for values on its device."""
    return chosen.nonzero().squeeze(1)


def read_classes(path: str) -> tuple[str, ...]:
    """The classes in a file with one per line, without repetitions. Raises ConfigError for a file without classes."""
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path}: cannot be read as a list of classes ({error})") from None
    classes = tuple(dict.fromkeys(line.strip() for line in lines if line.strip()))
    if not classes:
        raise ConfigError(f"{path}: holds no class; write one class per line")
    return classes


def measure(model: PreTrainedModel, keys: list[str], batch: Batch) -> list[dict[str, Any]]:
    """The contribution of each row of a batch to the scores: losses with their weights, and counts of correct
    answers."""
    output: Any = model(**batch)  # of any family's pre-training model
    rows: list[dict[str, Any]] = [{"losses": {}} for _ in keys]

    def add(name: str, values: Tensor) -> None:
        for row, value in zip(rows, values.float().cpu().tolist(), strict=True):
            row[name] = value

    weights = {name: torch.ones(len(keys)) for name in output.losses}
    if "mlm" in output.losses:
        hidden = batch["mlm_labels"] != IGNORED
        right = torch.zeros_like(hidden)
        right[hidden] = output.logits.argmax(dim=-1) == batch["mlm_labels"][hidden]
        weights["mlm"] = hidden.sum(dim=1)
        add("mlm", right.sum(dim=1))
    if output.get("itm_logits") is not None:  # positives and hard negatives of the whole batch, divided over its rows
        known = output.itm_labels != IGNORED
        logits, labels = output.itm_logits[known], output.itm_labels[known]
        weights["itm"] = torch.full((len(keys),), len(labels) / len(keys))
        right = logits.argmax(dim=-1) == labels
        add("itm", (right.sum() / len(keys)).expand(len(keys)))
        add("itm_matches", (labels.sum() / len(keys)).expand(len(keys)))
    if "pbc" in output.losses:
        known = batch["pbc_labels"] != IGNORED
        weights["pbc"] = known.sum(dim=1)
        scores = (output.pbc_logits[..., 1] - output.pbc_logits[..., 0]).float()
        for row, chosen, score, label in zip(rows, known, scores, batch["pbc_labels"], strict=True):
            row["pbc"] = (score[chosen].cpu().numpy(), label[chosen].bool().cpu().numpy())
    if "mpc" in output.losses:
        labels = batch["mpc_labels"]
        weights["mpc"] = labels != IGNORED
        add("mpc", output.mpc_logits.argmax(dim=-1) == labels)
        add("mpc_label", labels)
    if output.get("router") is not None:
        for row in rows:
            row["router"] = {name: values.float().cpu().numpy() for name, values in output.router.items()}
    for name, loss in output.losses.items():
        for row, weight in zip(rows, weights[name].tolist(), strict=True):
            row["losses"][name] = (float(loss), float(weight))
    return rows


def _scores(rows: list[dict[str, Any]]) -> tuple[dict[str, float], dict[str, float]]:
    """The scores over all rows, and the scores of the most frequent answer."""
    losses, counts = {}, {}
    for name in rows[0]["losses"]:
        counts[name] = max(1.0, sum(row["losses"][name][1] for row in rows))
        # A batch's loss is a mean over its labels, and rows differ in their number of labels.
        losses[name] = sum(loss * weight for loss, weight in (row["losses"][name] for row in rows)) / counts[name]
    scores = {"loss": sum(losses.values()), **{f"loss_{name}": loss for name, loss in losses.items()}}
    chance: dict[str, float] = {}
    for name in ("mlm", "itm", "mpc"):
        if name in rows[0]:
            scores[f"{name}_accuracy"] = 100 * sum(row[name] for row in rows) / counts[name]
    if "itm" in rows[0]:
        matches = sum(row["itm_matches"] for row in rows) / counts["itm"]
        chance["itm_accuracy"] = 100 * max(matches, 1 - matches)
    if "mpc" in rows[0]:
        labels = Counter(row["mpc_label"] for row in rows if row["mpc_label"] != IGNORED)
        chance["mpc_accuracy"] = 100 * max(labels.values(), default=0) / counts["mpc"]
    if "pbc" in rows[0]:
        margins, related = (torch.from_numpy(np.concatenate(parts)) for parts in zip(*(row["pbc"] for row in rows)))
        if related.any():
            share = related.double().mean().item()
            scores["pbc_accuracy"] = 100 * ((margins > 0) == related).double().mean().item()
            scores["pbc_average_precision"] = 100 * average_precision(margins, related)
            chance |= {"pbc_accuracy": 100 * max(share, 1 - share), "pbc_average_precision": 100 * share}
    return scores, chance


def _router_scores(rows: list[dict[str, np.ndarray]], *, every_expert: bool) -> dict[str, float]:
    """For each modality's tokens in the last soft-routed block: the mean entropy of the router in nats, the load of the
    busiest expert in percent, and with `every_expert` that of each (EVE, figure 6). For both, how much an expert tells
    about a token's modality: their mutual information in bits, from 0 to 1, as if both modalities had equally many
    tokens.

    >>> row = {"image_load": np.array([[0.25, 0.75]]), "image_entropy": np.array([0.5])}
    >>> _router_scores([row], every_expert=False)
    {'router_image_entropy': 0.5, 'router_image_largest_load': 75.0}
    """
    scores, by_modality = {}, []
    for modality in ("image", "text"):
        if f"{modality}_load" not in rows[0]:
            continue
        # A block's values are 0 in a pass that had no tokens of the modality.
        with_tokens = [row for row in rows if row[f"{modality}_load"][-1].any()] or rows[:1]
        scores[f"router_{modality}_entropy"] = float(np.mean([row[f"{modality}_entropy"][-1] for row in with_tokens]))
        loads = 100 * np.mean([row[f"{modality}_load"][-1] for row in with_tokens], axis=0)
        by_modality.append(loads)
        scores[f"router_{modality}_largest_load"] = float(loads.max())
        if every_expert:
            scores |= {f"router_{modality}_load_{expert}": float(load) for expert, load in enumerate(loads)}
    if len(by_modality) == 2:
        scores["router_modality_information"] = shared_information(*by_modality)
    return scores
