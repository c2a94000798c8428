"""The contest of retrieval: contenders that take the batches of evle's retrieval task, and are scored by it.

A contender gives either `get_image_features` and `get_text_features`, or `itm_logits` of pairs.

B pairs of a batch, D width of the embeddings.
"""

import argparse
import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import (
    AutoModel,
    BertConfig,
    ViltConfig,
    ViltModel,
    VisionTextDualEncoderConfig,
    VisionTextDualEncoderModel,
    ViTConfig,
)

from benchmarks.peers import openclip
from benchmarks.peers.contest import (
    CHANCE,
    SCRATCH_RATES,
    SMALL_BERT,
    SMALL_VIT,
    Batch,
    Chosen,
    Contender,
    Contest,
    Trained,
    divided,
    spread,
    train,
)
from evle.data.custom.folder import folder
from evle.data.samples import CaptionSample, Samples
from evle.files import checksum
from evle.models.eve import EVEConfig, EVEForRetrieval
from evle.models.vle import VLEForRetrieval
from evle.run.config import RunConfig
from evle.run.prepare import Prepared, prepare
from evle.tasks.task import EvaluationSettings
from evle.transforms.masking import IGNORED

TUNED_SHARE = 0.1
"""Share of the training concepts that is kept out of training, for choosing the learning rate."""
TUNED_GALLERY = 30
"""Images of a gallery in which trials are scored: among few, little learning is already above chance."""
BATCH = 128
TOWERS = ("frozen", "vle")
IMAGE = {"scale": [0.65, 1.0], "ratio": [0.85, 1.18], "flip": 0.3, "rotate": 10, "color_jitter": [0.3, 0.3, 0.3]}
"""Augmentation of the training images, the same for all but open_clip, which brings its own."""
PIXELS, TOWER_PIXELS = 64, 96
SCORES = ("TR@1", "TR@5", "TR@10", "IR@1", "IR@5", "IR@10", "R@mean")
MASKED_WORDS = 0.15
"""ViLT's share of masked tokens."""


class Embedder(Contender):
    """A contender of retrieval. `k_test` is the number of candidates that a joint model ranks again."""

    k_test = 0


class DualEncoder(Embedder):
    """transformers' VisionTextDualEncoder, by CLIP's loss or by SigLIP's."""

    def __init__(self, ready: Prepared, sigmoid: bool):
        super().__init__()
        size = ready.task.image_size
        image = ViTConfig(image_size=size, patch_size=8, **SMALL_VIT)
        text = BertConfig(vocab_size=len(ready.task.processor.tokenizer), **SMALL_BERT)
        config = VisionTextDualEncoderConfig.from_vision_text_configs(image, text, projection_dim=256)
        self.model = VisionTextDualEncoderModel(config)
        self.sigmoid = sigmoid
        if sigmoid:  # SigLIP's first temperature and bias (Zhai et al. 2023, section 3.2)
            nn.init.constant_(self.model.logit_scale, 2.3026)
            self.bias = nn.Parameter(torch.tensor(-10.0))

    def loss(self, batch: Batch) -> Tensor:
        inputs = {name: batch[name] for name in ("pixel_values", "input_ids", "attention_mask")}
        output = self.model(**inputs, return_loss=not self.sigmoid)
        if not self.sigmoid:
            return output.loss
        pairs = 2 * torch.eye(len(output.logits_per_text), device=self.device) - 1
        return -F.logsigmoid(pairs * (output.logits_per_text + self.bias)).sum(dim=-1).mean()

    def get_image_features(self, pixel_values: Tensor) -> Tensor:
        return F.normalize(_pooled(self.model.get_image_features(pixel_values=pixel_values)), dim=-1)

    def get_text_features(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        texts = self.model.get_text_features(input_ids=input_ids, attention_mask=attention_mask)
        return F.normalize(_pooled(texts), dim=-1)


class Vilt(Embedder):
    """ViLT by matching (one mismatched text per pair) and masked words; every pair is scored by a joint pass."""

    def __init__(self, ready: Prepared):
        super().__init__()
        self.tokenizer = ready.task.processor.tokenizer
        config = ViltConfig(
            vocab_size=len(self.tokenizer), image_size=ready.task.image_size, patch_size=16, max_position_embeddings=64,
            max_image_length=-1, **SMALL_VIT,
        )  # fmt: skip
        self.model = ViltModel(config)
        self.matching = nn.Linear(config.hidden_size, 2)
        self.words = nn.Sequential(
            nn.Linear(config.hidden_size, config.hidden_size), nn.GELU(), nn.LayerNorm(config.hidden_size),
            nn.Linear(config.hidden_size, len(self.tokenizer)),
        )  # fmt: skip
        self.k_test = 10**6

    def loss(self, batch: Batch) -> Tensor:
        images, tokens, mask = batch["pixel_values"], batch["input_ids"], batch["attention_mask"]
        other = torch.randperm(len(images)).roll(1)
        mismatched = batch["match_ids"] != batch["match_ids"][other]
        kept = torch.cat([torch.ones_like(mismatched), mismatched])
        pooled = self._pooled(images.repeat(2, 1, 1, 1), torch.cat([tokens, tokens[other]]), mask[_both(other)])
        labels = torch.cat([torch.ones(len(images)), torch.zeros(len(images))]).long().to(images.device)
        itm = F.cross_entropy(self.matching(pooled)[kept], labels[kept])
        special = torch.isin(tokens, torch.tensor(self.tokenizer.all_special_ids))
        hidden = (torch.rand(tokens.shape) < MASKED_WORDS) & ~special
        states = self.model(
            input_ids=tokens.masked_fill(hidden, self.tokenizer.mask_token_id), attention_mask=mask, pixel_values=images
        ).last_hidden_state[:, : tokens.shape[1]]
        if not hidden.any():
            return itm
        return itm + F.cross_entropy(self.words(states[hidden]), tokens[hidden], ignore_index=IGNORED)

    def _pooled(self, images: Tensor, tokens: Tensor, mask: Tensor) -> Tensor:
        pooled: Tensor = self.model(input_ids=tokens, attention_mask=mask, pixel_values=images).pooler_output
        return pooled

    def get_image_features(self, pixel_values: Tensor) -> Tensor:
        return torch.zeros(len(pixel_values), 1)  # no embeddings: matching ranks everything

    def get_text_features(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        return torch.zeros(len(input_ids), 1)

    def itm_logits(
        self, pixel_values: Tensor, input_ids: Tensor, attention_mask: Tensor, image_rows: Tensor, text_rows: Tensor
    ) -> Tensor:
        pooled = self._pooled(pixel_values[image_rows], input_ids[text_rows], attention_mask[text_rows])
        logits: Tensor = self.matching(pooled)
        return logits


class Ours(Embedder):
    """EVE from scratch, or VLE from towers, by contrast alone."""

    def __init__(self, model: Any):
        super().__init__()
        self.model = model

    def loss(self, batch: Batch) -> Tensor:
        loss: Tensor = self.model(**batch).loss
        return loss

    def get_image_features(self, pixel_values: Tensor) -> Tensor:
        features: Tensor = self.model.get_image_features(pixel_values)
        return features

    def get_text_features(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        features: Tensor = self.model.get_text_features(input_ids, attention_mask)
        return features


class FrozenTowers(Embedder):
    """Towers that keep their weights, each with a trained projection, by CLIP's loss."""

    def __init__(self, ready: Prepared, vision: str, text: str):
        super().__init__()
        self.vision, self.text = (AutoModel.from_pretrained(folder).requires_grad_(False) for folder in (vision, text))
        with torch.no_grad():
            size = ready.task.image_size
            width = _mean_states(self.vision(pixel_values=torch.zeros(1, 3, size, size))).shape[1]
        self.image_head = nn.Linear(width, 256, bias=False)
        self.text_head = nn.Linear(self.text.config.hidden_size, 256, bias=False)
        self.scale = nn.Parameter(torch.tensor(2.6593))

    def loss(self, batch: Batch) -> Tensor:
        images = self.get_image_features(batch["pixel_values"])
        texts = self.get_text_features(batch["input_ids"], batch["attention_mask"])
        logits = self.scale.exp() * images @ texts.T
        labels = torch.arange(len(logits))
        return (F.cross_entropy(logits, labels) + F.cross_entropy(logits.T, labels)) / 2

    def get_image_features(self, pixel_values: Tensor) -> Tensor:
        with torch.no_grad():
            states = _mean_states(self.vision.eval()(pixel_values=pixel_values))
        return F.normalize(self.image_head(states), dim=-1)

    def get_text_features(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        with torch.no_grad():
            states = self.text.eval()(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
            weights = attention_mask[..., None].to(states.dtype)
            mean = (states * weights).sum(dim=1) / weights.sum(dim=1)
        return F.normalize(self.text_head(mean), dim=-1)


def _both(other: Tensor) -> Tensor:
    return torch.cat([torch.arange(len(other)), other])


def _pooled(output: Any) -> Tensor:
    """The embeddings, which newer versions of transformers return inside of an output."""
    return output if isinstance(output, Tensor) else output.pooler_output


def _mean_states(output: Any) -> Tensor:
    """The mean of an image encoder's states, (B, D), of a sequence or of a map."""
    states: Tensor = output.last_hidden_state
    return states.flatten(2).mean(dim=2) if states.dim() == 4 else states.mean(dim=1)


def eve(ready: Prepared, **_: Any) -> Contender:
    config = ready.loaded.model.config
    assert isinstance(config, EVEConfig)
    return Ours(EVEForRetrieval(config))


def vle(ready: Prepared, **_: Any) -> Contender:
    assert isinstance(ready.loaded.model, VLEForRetrieval)
    return Ours(ready.loaded.model)


BUILDERS: dict[str, Callable[..., Contender]] = {
    "clip": lambda ready, **_: DualEncoder(ready, sigmoid=False),
    "siglip": lambda ready, **_: DualEncoder(ready, sigmoid=True),
    "vilt": lambda ready, **_: Vilt(ready),
    "eve": eve,
    "frozen": lambda ready, vision, text: FrozenTowers(ready, vision, text),
    "vle": vle,
}
"""The contenders that are trained here; open_clip trains itself."""
ABOUT = {
    "clip": "transformers' VisionTextDualEncoder (ViT of 4 layers, BERT-Tiny), CLIP's loss",
    "siglip": "the same model, SigLIP's loss",
    "vilt": "transformers' ViLT of 4 layers, matching and masked words; joint passes of all pairs",
    "open-clip": "open_clip's CLIP (ViT of 4 layers, text Transformer of 2), trained by open_clip_train",
    "eve": "EVE (eve-tiny) from random weights, contrast alone",
    "frozen": "frozen towers, each with a trained projection, CLIP's loss",
    "vle": "VLE (vle-tiny) on the same towers, all trained, contrast alone",
}
RATES = {
    **dict.fromkeys(ABOUT, SCRATCH_RATES),
    **dict.fromkeys(("clip", "siglip"), (3e-5, 1e-4, 3e-4, 1e-3)),  # 3e-3 was the worst in earlier trials
    "frozen": (3e-4, 1e-3, 3e-3, 1e-2),  # single new layers
}


def is_tuning(sample: CaptionSample) -> bool:
    """Whether a training sample's concept, its first caption, is kept for choosing the learning rate."""
    digest = hashlib.blake2b(sample.captions[0].lower().encode(), digest_size=8).digest()
    return int.from_bytes(digest) / 2**64 < TUNED_SHARE


def checksums_of_weights(tower: str) -> list[str]:
    """The checksums of the weights in a tower's folder."""
    return [checksum(file) for file in sorted(Path(tower).glob("*.safetensors"))]


def prepared(name: str, samples: Samples, seed: int, towers: Sequence[str]) -> Prepared:
    """The task, tokenizer and loader of a contender, and the model of ours."""
    model: dict[str, Any] = {"preset": "eve-tiny"}
    if name in TOWERS:
        model = {"preset": "vle-tiny", "vision": towers[0], "text": towers[1]}
    model["overrides"] = {"objective_weights": {"itm": 0.0}}
    tree = {
        "task": {"name": "retrieval", "k_test": 0},
        "model": model,
        "tokenizer": {"vocab_size": 4000},
        "image": {**IMAGE, "size": TOWER_PIXELS if name in TOWERS else PIXELS},
        "text": {"max_length": 24},
        "train": {"steps": 1, "batch_size": BATCH, "num_workers": 0},
        "seed": seed,
        "output": "unused",
    }
    return prepare(RunConfig.build(tree, "peers"), samples={"train": samples})


@torch.no_grad()
def score(trained: Trained, samples: Samples) -> dict[str, float]:
    """Recalls of embeddings, or of joint passes where the contender has no embeddings."""
    contender: Any = trained.contender.train(False)
    task: Any = trained.ready.task
    task.options = task.options.model_copy(update={"k_test": contender.k_test})
    found = task.evaluate(contender, samples, EvaluationSettings(256, 0, "no", 0, contender.k_test == 0, 0))
    return {name: found.scores[name] for name in SCORES} | {CHANCE.format(name): found.chance[name] for name in SCORES}


def contest(options: argparse.Namespace) -> Contest:
    """The contest on `options.folder`, with the contenders for which there are `options.towers` and packages."""
    everything = folder(options.folder, "captions", list(options.train))
    tuning = {index for index in range(len(everything)) if is_tuning(everything[index])}
    learned = Chosen(everything, [index for index in range(len(everything)) if index not in tuning])

    def taught(name: str, rate: float, seed: int, seconds: float) -> Trained:
        ready = prepared(name, learned, seed, options.towers)
        if name == "open-clip":
            return openclip.train(ready, learned, options.output / name, BATCH, rate, seed, seconds)
        torch.manual_seed(seed)
        towers = {"vision": options.towers[0], "text": options.towers[1]} if name in TOWERS else {}
        return train(BUILDERS[name](ready, **towers), ready, rate, seed, seconds)

    tests = {split: spread(folder(options.folder, "captions", split), options.gallery) for split in options.tests}
    return Contest(
        name="retrieval",
        title="Retrieval",
        about=ABOUT,
        rates=RATES,
        scores=SCORES,
        chosen_by="R@mean",
        learned=learned,
        tuning=divided(spread(Chosen(everything, sorted(tuning)), options.gallery), TUNED_GALLERY),
        tests=tests,
        train=taught,
        score=score,
        settings={
            "--gallery": options.gallery,
            "--train": list(options.train),
            "--tests": list(options.tests),
            "images": [learned.fingerprint, *(each.fingerprint for each in tests.values())],
        },
        own_settings={key: {"towers": [checksums_of_weights(each) for each in options.towers]} for key in TOWERS},
        notes=(
            f"At most {options.gallery} images and their captions per split; TR: image to text, IR: text to image. The "
            f"learning rate is chosen in galleries of {TUNED_GALLERY} images of {TUNED_SHARE:.0%} of the training "
            f"concepts, which training does not show. Batches of {BATCH}. "
            f"Augmentation: `{json.dumps(IMAGE)}`; open_clip has its own.",
            "The losses are each library's: in CLIP's and SigLIP's, images of one caption in a batch are negatives of "
            "each other, which evle's contrast takes for the same thing. eve-tiny was designed for runs of minutes on "
            "such images (it has a stem of convolutions). The other models are published ones with fewer layers: "
            "ViT-Tiny's width with a third of its layers, ViLT and open_clip's of the same kind; BERT-Tiny is whole.",
        ),
    )
