"""VLE's pre-training: masked words, matching, and two objectives on boxes (VLE's README); contrast as an option.

MPC blacks out the patches of an object's box and predicts its class at a token for the box; PBC predicts which patches
belong to the text. Words, boxes and labels are arguments: the only random choice in this file are hard negatives.

B batch, T text tokens, M masked tokens, P patches without [CLS], D width, V vocabulary.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from evle import objectives
from evle.errors import ConfigError, DataError
from evle.models.classifying import two_layer_classifier
from evle.models.contrast import default_match_ids, matching_labels, total_loss
from evle.models.padding import check_text
from evle.models.vle.configuration import VLEConfig
from evle.models.vle.fusion import Fused, Reads, Stream, key_mask
from evle.models.vle.heads import masked_word_head
from evle.models.vle.matching import FusionBatch, VLEMatchScore, contrast_head, match_logits, pair_negatives
from evle.models.vle.modeling import IMAGE_TYPE, TEXT_TYPE, VLEModel, VLEPreTrainedModel, mean_states
from evle.models.vle.outputs import VLEOutput, returns_tuple_if_asked
from evle.models.vle.text import word_head_ties


def black_out(pixel_values: Tensor, patches: Tensor, black: Tensor) -> Tensor:
    """Images (B, C, H, W) with the chosen `patches` (B, P), row by row, painted in the colour `black`,
    (C,) or (B, C)."""
    batch, _, height, width = pixel_values.shape
    size = round((height * width / patches.shape[1]) ** 0.5)
    rows, columns = height // size, width // size
    painted = patches.view(batch, 1, rows, 1, columns, 1).expand(-1, -1, -1, size, -1, size)
    painted = painted.reshape(batch, 1, height, width)
    return torch.where(painted, black.to(pixel_values)[..., None, None], pixel_values)


def _in_one_pass(encode: Callable[[Tensor], Tensor], inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    """Encode several named batches of inputs in one call."""
    if not inputs:
        return {}
    states = encode(torch.cat(list(inputs.values())))
    return dict(zip(inputs, states.split([len(rows) for rows in inputs.values()]), strict=True))


class VLEForPreTraining(VLEPreTrainedModel):
    """The objectives in `config.objectives`, of "mlm", "itm", "mpc", "pbc", "itc"; only their parameters exist.

    The heads have the released names, so `VLEForMLM`, `VLEForITM` and `VLEForPBC` read what was trained here.

    A step runs each tower once, on all rows that need it. The image tower reads the images (for all objectives but mpc)
    and their blacked-out copies (for mpc, only of rows with an object). The text tower reads the masked texts (for mlm)
    and the complete ones (for all others). The fusion then takes, as rows of one batch: images with masked texts (mlm),
    images with texts (pbc and the true pairs of itm) and the mismatched pairs (itm). Blacked-out images with their box
    tokens follow in a separate pass, because they have one more token (mpc). The last block computes only what each
    objective reads. itc needs no fusion.
    """

    def __init__(self, config: VLEConfig):
        if not config.objectives:
            raise ConfigError(
                "VLEForPreTraining has nothing to minimise: name at least one of mlm, itm, mpc, pbc, itc in objectives"
            )
        if "mpc" in config.objectives and not config.object_classes:
            raise ConfigError(
                "the objective mpc needs object_classes, the classes that it predicts; name them or drop it"
            )
        super().__init__(config)
        self.vle = VLEModel(config)
        if "mlm" in config.objectives:
            self.mlm_score = masked_word_head(config)
            self._tied_weights_keys = word_head_ties(self.vle.text_model)
        if "itm" in config.objectives:
            self.itm_score = VLEMatchScore(config)
        if "mpc" in config.objectives:
            self.mpc_classifier = two_layer_classifier(config.hidden_size, len(config.object_classes))
        if "pbc" in config.objectives:
            self.pbc_classifier = two_layer_classifier(config.hidden_size, 2)
        if "itc" in config.objectives:
            self.contrast = contrast_head(config)
        self.post_init()

    def get_output_embeddings(self) -> nn.Module | None:
        if "mlm" not in self.config.objectives:
            return None
        return self.mlm_score.get_submodule("1.predictions.decoder")

    @returns_tuple_if_asked
    def forward(
        self,
        input_ids: Tensor,
        pixel_values: Tensor,
        attention_mask: Tensor | None = None,
        masked_input_ids: Tensor | None = None,
        mlm_labels: Tensor | None = None,
        match_ids: Tensor | None = None,
        pbc_labels: Tensor | None = None,
        mpc_patches: Tensor | None = None,
        mpc_labels: Tensor | None = None,
        black: Tensor | None = None,
        masked_tokens: Tensor | None = None,
        mpc_rows: Tensor | None = None,
        match_rows: Tensor | None = None,
    ) -> VLEOutput:
        """The losses of one step.

        Args:
            input_ids: (B, T) the complete text.
            pixel_values: (B, C, H, W).
            attention_mask: (B, T), 1 = real token.
            masked_input_ids: (B, T) the corrupted text [mlm].
            mlm_labels: (B, T) the original token where it was masked, -100 elsewhere [mlm].
            match_ids: (B,) int64, equal for pairs that belong together, -100 for a pair that is left out; by default
                each pair matches only itself [itm, itc].
            pbc_labels: (B, P) 1 if a patch belongs to the text, 0 if not, -100 if that is unknown [pbc].
            mpc_patches: (B, P) bool, the patches of one object in each image; none if it has no object [mpc].
            mpc_labels: (B,) that object's class, an index of `config.object_classes`, or -100 [mpc].
            black: (C,), or (B, C), the value of a black pixel after normalisation [mpc].
            masked_tokens: (M,) int64, the indices at which the flattened `mlm_labels` are not -100 [mlm].
            mpc_rows: (N,) int64, the rows that have an object and its class [mpc]. Without `masked_tokens` and
                `mpc_rows`, both are read from the labels, which synchronises with an accelerator.
            match_rows: (N,) int64, the rows that are matched, by default all; those of id -100 have no negative [itm].

        Returns:
            The losses; `logits` (M, V) of masked tokens; ITM's logits and labels; `pbc_logits` (B, P, 2); `mpc_logits`.

        Raises:
            DataError: an objective lacks its arguments.
        """
        check_text(input_ids, attention_mask)
        step = _Step(
            pixel_values=pixel_values,
            input_ids=input_ids,
            mask=torch.ones_like(input_ids) if attention_mask is None else attention_mask,
            match_ids=default_match_ids(len(input_ids), input_ids.device) if match_ids is None else match_ids,
            match_rows=match_rows,
        )
        self._require(
            mlm={"masked_input_ids": masked_input_ids, "mlm_labels": mlm_labels},
            mpc={"mpc_patches": mpc_patches, "mpc_labels": mpc_labels, "black": black},
            pbc={"pbc_labels": pbc_labels},
        )
        names = set(self.config.objectives)
        if "mpc" not in names:
            mpc_rows = None
        elif mpc_rows is None and mpc_patches is not None and mpc_labels is not None:
            mpc_rows = (mpc_patches.any(dim=1) & (mpc_labels != objectives.IGNORE)).nonzero()[:, 0]
        self._encode(step, masked_input_ids, mpc_patches, mpc_rows, black)
        output = VLEOutput()
        losses: dict[str, Tensor] = {}
        if "itc" in names:  # first, because its similarities select the negatives of itm
            losses["itc"] = self._itc(step)
            if self.contrast.only_records:
                return VLEOutput(loss=losses["itc"], losses=losses)
        self._fuse(step)
        if mlm_labels is not None and "mlm" in names:
            if masked_tokens is None:
                masked_tokens = (mlm_labels.flatten() != objectives.IGNORE).nonzero()[:, 0]
            losses["mlm"], output.logits = self._mlm(step, mlm_labels, masked_tokens)
        if "itm" in names:
            losses["itm"], output.itm_logits, output.itm_labels = self._itm(step)
        if mpc_patches is not None and mpc_labels is not None and mpc_rows is not None:
            losses["mpc"], output.mpc_logits = self._mpc(step, mpc_patches, mpc_labels, mpc_rows)
        if pbc_labels is not None and "pbc" in names:
            losses["pbc"], output.pbc_logits = self._pbc(step, pbc_labels)
        output.losses = {name: self.config.weight_of(name) * losses[name] for name in self.config.objectives}
        output.loss = total_loss(output.losses)
        return output

    def _encode(
        self,
        step: "_Step",
        masked_input_ids: Tensor | None,
        mpc_patches: Tensor | None,
        mpc_rows: Tensor | None,
        black: Tensor | None,
    ) -> None:
        """Encode all images and all texts that the objectives need, each tower in one pass."""
        names = set(self.config.objectives)
        images, texts = {}, {}
        if names != {"mpc"}:
            images["whole"] = step.pixel_values
        if mpc_patches is not None and mpc_rows is not None and black is not None:
            black = black if black.dim() == 1 else black[mpc_rows]
            images["blacked"] = black_out(step.pixel_values[mpc_rows], mpc_patches[mpc_rows], black)
        if masked_input_ids is not None and "mlm" in names:
            texts["masked"] = masked_input_ids
        if names != {"mlm"}:
            texts["whole"] = step.input_ids
        step.images = _in_one_pass(self.vle.encode_image, images)
        step.texts = _in_one_pass(lambda ids: self.vle.encode_text(ids, step.mask.repeat(len(texts), 1)), texts)

    def _fuse(self, step: "_Step") -> None:
        """Fuse images and texts in one pass, as far as mlm, itm and pbc read them."""
        names = set(self.config.objectives)
        batch = FusionBatch(self.vle)
        images = {name: batch.add_images(states) for name, states in step.images.items() if name != "blacked"}
        texts = {name: batch.add_texts(states, step.mask) for name, states in step.texts.items()}
        if "mlm" in names:
            batch.pair("masked", images["whole"], texts["masked"], Reads(text=True))
        if names & {"itm", "pbc"}:
            reads = Reads(image="pbc" in names, pooled="itm" in names)
            batch.pair("pairs", images["whole"], texts["whole"], reads)
        if "itm" in names:
            step.has_negative = pair_negatives(
                batch,
                pixel_values=step.pixel_values,
                input_ids=step.input_ids,
                attention_mask=step.mask,
                images=images["whole"],
                texts=texts["whole"],
                match_ids=step.match_ids,
                similarities=step.similarities,
                rows=step.match_rows,
            )
        step.fused = batch.run()

    def _mlm(self, step: "_Step", labels: Tensor, masked_tokens: Tensor) -> tuple[Tensor, Tensor]:
        """The loss of masked words, and their logits (M, V).

        Only masked positions are multiplied by the vocabulary, which is the largest matrix of the model.
        """
        states: Any = step.fused["masked"].text_hidden
        logits = self.mlm_score(states[:, : labels.shape[1]].flatten(0, 1)[masked_tokens])
        return objectives.mlm(logits, labels.flatten()[masked_tokens]), logits

    def _itm(self, step: "_Step") -> tuple[Tensor, Tensor, Tensor]:
        """Matching of the true pairs and their negatives: the loss, logits and labels."""
        logits, labels = match_logits(self.itm_score, step.fused, step.match_rows), matching_labels(step.has_negative)
        return objectives.itm(logits, labels), logits, labels

    def _mpc(self, step: "_Step", patches: Tensor, labels: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Masked patch-box classification of `rows` (N,), with logits (B, classes).

        The mean of the image tower's states of the blacked-out patches enters the fusion as a token, like a box in VCR,
        and its fused state is classified (the figure in VLE's README). With `mpc_readout` "patches" there is no such
        token, and the mean of the fused states of these patches is classified instead.
        """
        image, patches = step.images["blacked"], patches[rows]
        box = None
        if self.config.mpc_readout == "box_token":
            box = self.vle.typed(mean_states(image[:, 1:], patches)[:, None], IMAGE_TYPE)
        text = Stream(self.vle.typed(step.texts["whole"], TEXT_TYPE), key_mask(step.mask[rows], image.dtype), rows=rows)
        fused = self.vle.fuse(Stream(self.vle.typed(image, IMAGE_TYPE), own=box), text, Reads(image=True))
        states: Any = fused.image_hidden
        logits = self.mpc_classifier(states[:, -1] if box is not None else mean_states(states[:, 1:], patches))
        shown = logits.new_zeros(len(labels), logits.shape[1]).index_put((rows,), logits)
        return objectives.mpc(logits, labels[rows]), shown

    def _pbc(self, step: "_Step", labels: Tensor) -> tuple[Tensor, Tensor]:
        """Patch-box classification of all patches, with logits (B, P, 2)."""
        states: Any = step.fused["pairs"].image_hidden
        logits = self.pbc_classifier(states[:, 1:])
        return objectives.pbc(logits, labels), logits

    def _itc(self, step: "_Step") -> Tensor:
        """Contrast of the towers' states of whole images and texts."""
        loss, *similarities = self.contrast(step.images["whole"], step.texts["whole"], step.mask, step.match_ids)
        step.similarities = (similarities[0], similarities[1])
        return loss

    def _require(self, **needed: dict[str, Tensor | None]) -> None:
        for objective, arguments in needed.items():
            missing = [name for name, value in arguments.items() if value is None]
            if objective in self.config.objectives and missing:
                raise DataError(f"the objective {objective} needs {' and '.join(missing)}")


@dataclass
class _Step:
    """The rows of one step: the inputs, and the states that the parts of the model compute from them."""

    pixel_values: Tensor
    input_ids: Tensor
    mask: Tensor
    match_ids: Tensor
    images: dict[str, Tensor] = field(default_factory=dict)
    """Image states by name: "whole" and "blacked"."""
    texts: dict[str, Tensor] = field(default_factory=dict)
    """Text states by name: "whole" and "masked"."""
    fused: dict[str, Fused] = field(default_factory=dict)
    similarities: tuple[Tensor, Tensor] | None = None
    match_rows: Tensor | None = None
    """Rows of the pairs that are matched [itm]."""
    has_negative: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.bool))
    """Which of `match_rows` have a negative [itm]."""
