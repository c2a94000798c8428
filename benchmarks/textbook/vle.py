"""VLE as one would port it: transformers' own DeBERTa attention and eager attention everywhere.

Every state of the fusion's last block is computed, and every objective runs the whole model.
"""

import copy
from typing import TypeVar

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers.models.deberta_v2.modeling_deberta_v2 import DisentangledSelfAttention

from evle.models.vle import VLEForPreTraining
from evle.models.vle.modeling import VLEPreTrainedModel, mean_states
from evle.models.vle.pretraining import black_out

Model = TypeVar("Model", bound=VLEPreTrainedModel)


def stock_port(ours: Model) -> Model:
    """A copy of `ours` with the stock DeBERTa attention, and eager attention in both towers and the fusion."""
    model = copy.deepcopy(ours)
    model.set_attn_implementation("eager")
    for layer in model.base_model.text_model.encoder.layer:
        attention = layer.attention.self
        stock = DisentangledSelfAttention(model.config.text_config).to(attention.query_proj.weight)
        stock.load_state_dict(attention.state_dict())
        layer.attention.self = stock.train(model.training)
    return model


def pass_by_pass(model: VLEForPreTraining, inputs: dict[str, Tensor]) -> Tensor:
    """The four losses, each from a pass over the whole model on its own inputs; the negatives are the next rows."""
    pixels, ids, mask = (inputs[name] for name in ("pixel_values", "input_ids", "attention_mask"))
    chosen = inputs["mlm_labels"] != -100
    words = model.mlm_score(model.vle(inputs["masked_input_ids"], pixels, mask).text_hidden[chosen])
    loss = F.cross_entropy(words.float(), inputs["mlm_labels"][chosen])

    other_pixels, other_ids, other_mask = (tensor.roll(1, 0) for tensor in (pixels, ids, mask))
    matches = model.itm_score(
        model.vle(
            torch.cat([ids, other_ids, ids]),
            torch.cat([pixels, pixels, other_pixels]),
            torch.cat([mask, other_mask, mask]),
        ).pooler_output
    )
    labels = (torch.arange(len(matches)) < len(ids)).long()
    loss = loss + F.cross_entropy(matches.float(), labels)

    patches = model.pbc_classifier(model.vle(ids, pixels, mask).image_hidden[:, 1:])
    loss = loss + F.cross_entropy(patches.float().flatten(0, 1), inputs["pbc_labels"].flatten())

    blacked = black_out(pixels, inputs["mpc_patches"], inputs["black"])
    states = model.vle(ids, blacked, mask).image_hidden[:, 1:]
    objects = model.mpc_classifier(mean_states(states, inputs["mpc_patches"]))
    return loss + F.cross_entropy(objects.float(), inputs["mpc_labels"])
