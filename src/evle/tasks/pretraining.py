"""Pre-training: masked signal modelling (EVE section 3.3), with contrast and matching where the model's objectives
ask for them.

B batch, N patches, T text tokens.
"""

from collections.abc import Sequence
from typing import Annotated, Any, ClassVar, cast

import numpy as np
import torch
from PIL import Image
from pydantic import Field
from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedModel

from evle.data.samples import CaptionSample, Sample
from evle.models.eve import EVEForPreTraining
from evle.report import Cell, Gallery, GalleryRow
from evle.tasks.captions import CaptionOptions, first_text, match_name, training_text
from evle.tasks.sweep import plain, sweep
from evle.tasks.task import Batch, Evaluation, EvaluationSettings, Features, Task
from evle.transforms.collate import number_ids, pad_rows, stack
from evle.transforms.masking import IGNORED, mask_patches, mask_tokens
from evle.transforms.text import encode_words

Share = Annotated[float, Field(ge=0, le=1)]


class PreTrainingOptions(CaptionOptions):
    """Options of pre-training; the defaults are the paper's (75 % of patches, 50 % of tokens)."""

    image_mask_ratio: float = Field(default=0.75, gt=0, lt=1)
    """Share of the patches hidden for MIM."""
    text_mask_ratio: float = Field(default=0.5, gt=0, le=1)
    """Share of the tokens hidden for MLM."""
    replace: tuple[Share, Share, Share] = (1.0, 0.0, 0.0)
    """Shares of hidden tokens shown as [MASK], as a random token, unchanged. The paper's figure shows [MASK] only;
    BERT: 0.8, 0.1, 0.1."""
    whole_words: bool = False
    """Hide all the tokens of a word together; the paper hides single tokens."""


class PreTrainingTask(Task):
    """Training: one caption a picture, a random image mask, a random text mask. Evaluation: the losses under fixed
    masks.

    `metric` is their sum, so lower is better. `mlm_accuracy` is the share of hidden tokens predicted exactly.
    Contrastive losses depend on the evaluation's batch size.
    """

    name = "pretraining"
    reads = "captions"
    sample_type = CaptionSample
    options_type = PreTrainingOptions
    models: ClassVar[dict[str, type[PreTrainedModel]]] = {"eve": EVEForPreTraining}
    metric = "loss"
    higher_is_better = False
    options: PreTrainingOptions

    def bind(self, config: PreTrainedConfig) -> None:
        self.num_patches = (self.image_size // config.patch_size) ** 2
        self.vocab_size = config.vocab_size

    def features(self, sample: Sample, rng: np.random.Generator, train: bool) -> Features:
        sample = cast(CaptionSample, sample)
        text = training_text(sample, self.options, rng) if train else first_text(sample)
        tokenizer = self.processor.tokenizer
        cleaned, word_starts = self.clean(text), None
        if self.options.whole_words:
            tokens, word_starts = encode_words(tokenizer, cleaned, self.options.text.max_length)
        else:
            tokens = self.tokens(cleaned)
        masked_tokens, labels = mask_tokens(
            tokens,
            self.options.text_mask_ratio,
            rng,
            mask_id=tokenizer.mask_token_id,
            vocab_size=min(self.vocab_size, len(tokenizer)),
            special_ids=tokenizer.all_special_ids,
            replace=self.options.replace,
            word_starts=word_starts,
        )
        return {
            "image": self.picture(sample.image, rng, train, text),
            "image_mask": mask_patches(self.num_patches, self.options.image_mask_ratio, rng),
            "tokens": tokens,
            "masked_tokens": masked_tokens,
            "labels": labels,
            "match": match_name(sample),
        }

    def collate(self, features: list[Features]) -> Batch:
        return {
            "pixel_values": self.collate_pictures([each["image"] for each in features]),
            **self.collate_tokens([each["tokens"] for each in features]),
            "image_mask": stack([each["image_mask"] for each in features]),
            "masked_input_ids": pad_rows(
                [each["masked_tokens"] for each in features], self.processor.tokenizer.pad_token_id
            ),
            "mlm_labels": pad_rows([each["labels"] for each in features], IGNORED),
            "match_ids": number_ids([each["match"] for each in features]),
        }

    def evaluate(self, model: PreTrainedModel, samples: Sequence[Sample], settings: EvaluationSettings) -> Evaluation:
        def measure(keys: list[str], batch: Batch) -> list[dict[str, float]]:
            output = model(**batch)
            rows: dict[str, Tensor] = {f"loss_{name}": loss.expand(len(keys)) for name, loss in output.losses.items()}
            if "mlm" in output.losses:
                hidden = batch["mlm_labels"] != IGNORED
                right = torch.zeros_like(hidden)
                right[hidden] = output.logits.argmax(dim=-1) == batch["mlm_labels"][hidden]
                rows |= {"hidden": hidden.sum(dim=1), "right": right.sum(dim=1)}
            return [
                {name: float(value) for name, value in zip(rows, row, strict=True)}
                for row in torch.stack([values.float().cpu() for values in rows.values()], dim=1).tolist()
            ]

        swept = sweep(model, samples, plain(self), self.collate, measure, settings)
        found = list(swept.results.values())
        scores = {}
        for name in (name for name in found[0] if name.startswith("loss_")):
            # A batch's MLM loss is a mean over its hidden tokens, the others over its pictures.
            weights = [each["hidden"] if name == "loss_mlm" else 1.0 for each in found]
            total = sum(each[name] * weight for each, weight in zip(found, weights, strict=True))
            scores[name] = total / max(1.0, sum(weights))
        scores = {"loss": sum(scores.values()), **scores}
        if "hidden" in found[0]:
            num_hidden = sum(each["hidden"] for each in found)
            scores["mlm_accuracy"] = 100 * sum(each["right"] for each in found) / max(1.0, num_hidden)
        return Evaluation(
            scores=scores,
            galleries=[] if settings.quick else self._galleries(model, samples, settings),
            skipped=swept.skipped,
        )

    def _galleries(
        self, model: PreTrainedModel, samples: Sequence[Sample], settings: EvaluationSettings
    ) -> list[Gallery]:
        """Pictures with three quarters hidden, what the model makes of them, and the originals."""
        if "mim" not in model.config.objectives or settings.num_examples == 0:
            return []
        places = np.linspace(0, len(samples) - 1, min(settings.num_examples, len(samples))).astype(int)
        chosen = [samples[int(place)] for place in places]

        decoder: Any = model  # of any family with `reconstruct`

        def triples(keys: list[str], batch: Batch) -> list[tuple[Any, ...]]:
            pixels, mask = batch["pixel_values"], batch["image_mask"]
            filled = decoder.reconstruct(pixels, batch["input_ids"], batch["attention_mask"], mask)
            side = pixels.shape[-1] // model.config.patch_size
            seen = (~mask).reshape(len(mask), 1, side, -1).float()
            seen = torch.nn.functional.interpolate(seen, size=pixels.shape[-2:], mode="nearest")
            columns = (pixels * seen, filled, pixels)  # hidden patches show the mean colour, grey
            return list(zip(*(self._to_pictures(column) for column in columns), strict=True))

        swept = sweep(model, chosen, plain(self), self.collate, triples, settings)
        texts = {
            sample.key: first_text(cast(CaptionSample, sample)) for sample in chosen if sample.key in swept.results
        }
        rows = [
            GalleryRow(texts[key], [Cell(Image.fromarray(picture), text) for picture, text in zip(triple, _TRIPLE)])
            for key, triple in swept.results.items()
        ]
        note = f"{100 * self.options.image_mask_ratio:g} % of the patches are hidden; the text is given whole."
        return [Gallery("Masked pictures and what the model makes of them", rows, note)]

    def _to_pictures(self, pixel_values: Tensor) -> list[np.ndarray]:
        """The model's pixels (B, 3, H, W) as uint8 pictures (H, W, 3)."""
        image_processor = self.processor.image_processor
        mean, std = (
            torch.tensor(values, device=pixel_values.device)[:, None, None]
            for values in (image_processor.image_mean, image_processor.image_std)
        )
        pixels = ((pixel_values.float() * std + mean) * 255).round().clamp(0, 255).to(torch.uint8)
        return list(pixels.permute(0, 2, 3, 1).cpu().numpy())


_TRIPLE = ("masked", "reconstruction", "original")
