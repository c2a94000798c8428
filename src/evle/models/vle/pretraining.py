"""VLE's pre-training: masked words, matching, and two objectives on boxes (VLE's README); contrast as an option.

MPC blacks out the patches of an object's box and asks for its class; PBC asks which patches belong to the text. Which
words, boxes and labels arrives as arguments: this file draws nothing but hard negatives.

B batch, T text tokens, M masked tokens, P patches without [CLS], D width, V vocabulary.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from evle import objectives
from evle.errors import ConfigError, DataError
from evle.models.contrast import default_match_ids, total_loss
from evle.models.vle.configuration import VLEConfig
from evle.models.vle.fusion import Reads
from evle.models.vle.heads import TIED_WORD_HEAD, masked_word_head, two_layer_classifier
from evle.models.vle.matching import FusionBatch, VLEMatchScore, contrast_head, match_logits, pair_negatives
from evle.models.vle.modeling import VLEModel, VLEOutput, VLEPreTrainedModel


def black_out(pixel_values: Tensor, patches: Tensor, black: Tensor) -> Tensor:
    """Images (B, C, H, W) with the chosen `patches` (B, P), row by row, painted in the colour `black` (C,)."""
    batch, _, height, width = pixel_values.shape
    size = round((height * width / patches.shape[1]) ** 0.5)
    rows, columns = height // size, width // size
    painted = patches.view(batch, 1, rows, 1, columns, 1).expand(-1, -1, -1, size, -1, size)
    painted = painted.reshape(batch, 1, height, width)
    return torch.where(painted, black.to(pixel_values)[:, None, None], pixel_values)


def mean_state(patch_states: Tensor, patches: Tensor) -> Tensor:
    """The mean of the patch states (B, P, D) at the chosen `patches` (B, P) -> (B, D); none gives 0."""
    weights = patches.to(patch_states.dtype)
    weights = weights / weights.sum(dim=-1, keepdim=True).clamp(min=1)
    return torch.einsum("bp,bpd->bd", weights, patch_states)


def _in_one_pass(encode: Callable[[Tensor], Tensor], inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    """Each named batch of inputs encoded, all of them in one call."""
    if not inputs:
        return {}
    states = encode(torch.cat(list(inputs.values())))
    return dict(zip(inputs, states.split([len(rows) for rows in inputs.values()]), strict=True))


class VLEForPreTraining(VLEPreTrainedModel):
    """The objectives in `config.objectives`, of "mlm", "itm", "mpc", "pbc", "itc"; only their parameters exist.

    The heads bear the released names, so `VLEForMLM`, `VLEForITM` and `VLEForPBC` read what was trained here.

    A step runs each part of the model once, on all the rows it is needed for. The image tower reads the images (for
    all objectives but mpc) and their blacked-out copies (mpc, only of the rows that have an object); the text tower
    reads the masked texts (mlm) and the complete ones (all others). The fusion then takes, as rows of one batch:
    images with masked texts (mlm), images with texts (pbc and the true pairs of itm), the mismatched pairs (itm), and
    blacked-out images with texts (mpc); of its last block each purpose gets what it reads. itc needs no fusion.
    """

    _tied_weights_keys = TIED_WORD_HEAD

    def __init__(self, config: VLEConfig):
        if not config.objectives:
            raise ConfigError(
                "VLEForPreTraining has nothing to minimise: name at least one of mlm, itm, mpc, pbc, itc in objectives"
            )
        if "mpc" in config.objectives and not config.object_classes:
            raise ConfigError(
                "the objective mpc needs object_classes, the classes it tells apart; name them or drop it"
            )
        super().__init__(config)
        self.vle = VLEModel(config)
        if "mlm" in config.objectives:
            self.mlm_score = masked_word_head(config)
        else:
            self._tied_weights_keys = {}
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

    def forward(
        self,
        pixel_values: Tensor,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        masked_input_ids: Tensor | None = None,
        mlm_labels: Tensor | None = None,
        match_ids: Tensor | None = None,
        pbc_labels: Tensor | None = None,
        mpc_patches: Tensor | None = None,
        mpc_labels: Tensor | None = None,
        black: Tensor | None = None,
    ) -> VLEOutput:
        """The losses of one step.

        Args:
            pixel_values: (B, C, H, W).
            input_ids: (B, T) the complete text.
            attention_mask: (B, T), 1 = real token.
            masked_input_ids: (B, T) the corrupted text [mlm].
            mlm_labels: (B, T) the original token where it was masked, -100 elsewhere [mlm].
            match_ids: (B,) int64, equal where pairs belong together, -100 where a pair takes no part; each its own by
                default [itm, itc].
            pbc_labels: (B, P) 1 where a patch belongs to the text, 0 where not, -100 where nobody knows [pbc].
            mpc_patches: (B, P) bool, the patches of one object of each image; none where it has no object [mpc].
            mpc_labels: (B,) that object's class, an index of `config.object_classes`, or -100 [mpc].
            black: (C,) the value of a black pixel after normalisation [mpc].

        Returns:
            losses by objective; `logits` (M, V) of the masked tokens in the order of `mlm_labels`; `itm_logits` and
            `itm_labels`; `pbc_logits` (B, P, 2); `mpc_logits` (B, classes).

        Raises:
            DataError: an objective lacks its arguments.
        """
        names = set(self.config.objectives)
        self._require(
            mlm={"masked_input_ids": masked_input_ids, "mlm_labels": mlm_labels},
            mpc={"mpc_patches": mpc_patches, "mpc_labels": mpc_labels, "black": black},
            pbc={"pbc_labels": pbc_labels},
        )
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        shown = torch.zeros(len(input_ids), dtype=torch.bool, device=input_ids.device)
        if "mpc" in names:
            assert mpc_patches is not None
            assert mpc_labels is not None
            shown = mpc_patches.any(dim=1) & (mpc_labels != objectives.IGNORE)

        pictures, texts = {}, {}
        if names != {"mpc"}:
            pictures["whole"] = pixel_values
        if "mpc" in names:
            assert mpc_patches is not None
            assert black is not None
            pictures["blacked"] = black_out(pixel_values[shown], mpc_patches[shown], black)
        if "mlm" in names:
            assert masked_input_ids is not None
            texts["masked"] = masked_input_ids
        if names != {"mlm"}:
            texts["whole"] = input_ids
        images = _in_one_pass(self.vle.encode_image, pictures)
        words = _in_one_pass(lambda ids: self.vle.encode_text(ids, mask.repeat(len(texts), 1)), texts)

        losses: dict[str, Tensor] = {}
        output = VLEOutput()
        ids = default_match_ids(len(input_ids), input_ids.device) if match_ids is None else match_ids
        similarities = None
        if "itc" in names:
            losses["itc"], *directions = self.contrast(images["whole"], words["whole"], mask, ids)
            similarities = (directions[0], directions[1])
        batch = FusionBatch(self.vle)
        image_rows = {name: batch.add_images(states) for name, states in images.items()}
        text_rows = {name: batch.add_texts(states, mask) for name, states in words.items()}
        found = shown
        if "mlm" in names:
            batch.pair("masked", image_rows["whole"], text_rows["masked"], Reads(text=True))
        if names & {"itm", "pbc"}:
            reads = Reads(image="pbc" in names, pooled="itm" in names)
            batch.pair("pairs", image_rows["whole"], text_rows["whole"], reads)
        if "itm" in names:
            pairs = (pixel_values, input_ids, mask, image_rows["whole"], text_rows["whole"])
            found = pair_negatives(batch, *pairs, ids, similarities)
        if "mpc" in names:
            batch.pair("blacked", image_rows["blacked"], text_rows["whole"][shown], Reads(image=True))
        fused = batch.run()

        if "mlm" in names:
            assert mlm_labels is not None
            # Only masked positions meet the vocabulary: it is the largest matrix of the model.
            chosen = mlm_labels != objectives.IGNORE
            states = fused["masked"].text_hidden
            assert states is not None
            words_found = self.mlm_score(states[:, : chosen.shape[1]][chosen])
            losses["mlm"] = objectives.mlm(words_found, mlm_labels[chosen])
            output.logits = words_found
        if "itm" in names:
            matches, match_labels = match_logits(self.itm_score, fused, found)
            losses["itm"] = objectives.itm(matches, match_labels)
            output.itm_logits, output.itm_labels = matches, match_labels
        if "pbc" in names:
            assert pbc_labels is not None
            states = fused["pairs"].image_hidden
            assert states is not None
            output.pbc_logits = self.pbc_classifier(states[:, 1:])
            losses["pbc"] = objectives.pbc(output.pbc_logits, pbc_labels)
        if "mpc" in names:
            assert mpc_patches is not None
            assert mpc_labels is not None
            states = fused["blacked"].image_hidden
            assert states is not None
            logits = self.mpc_classifier(mean_state(states[:, 1:], mpc_patches[shown]))
            losses["mpc"] = objectives.mpc(logits, mpc_labels[shown])
            output.mpc_logits = logits.new_zeros(len(shown), logits.shape[1]).index_put((shown,), logits)
        output.losses = {name: self.config.weight_of(name) * losses[name] for name in self.config.objectives}
        output.loss = total_loss(output.losses)
        return output

    def _require(self, **needed: dict[str, Tensor | None]) -> None:
        for objective, arguments in needed.items():
            missing = [name for name, value in arguments.items() if value is None]
            if objective in self.config.objectives and missing:
                raise DataError(f"the objective {objective} needs {' and '.join(missing)}")
