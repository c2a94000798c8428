"""Attention of one pass as shares: which patches each text token drew on.

"rollout" follows attention through all layers (Abnar and Zuidema 2020, arXiv 2005.00928: each layer passes on half of
what a token already holds and half of what it attends to, averaged over heads), in VLE through both towers and the
fusion. "attention" is the last layer's attention alone, averaged over heads. "gradient" weighs each head by the
gradient of the model's answer and adds up the layers (Chefer et al. 2021, arXiv 2103.15679, equations 5 and 6).

Legend: S tokens of a joint sequence, T text tokens, P image tokens ([CLS] first), H heads.
"""

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from evle.models.eve.modeling import EVEAttention
from evle.pipelines.pipeline import in_evaluation_mode


def rollout(maps: Sequence[Tensor]) -> Tensor:
    """From attention maps (S, S) of successive layers, the share of each input token in each output token, (S, S).

    Rows sum to 1, as those of the maps do.
    """
    held = torch.eye(len(maps[0]))
    for attention in maps:
        held = 0.5 * held + 0.5 * attention @ held
    return held


def fusion_rollout(maps: Mapping[str, Sequence[Tensor]]) -> Tensor:
    """VLE's maps, by the names of `VLEOutput.attentions` and averaged over heads, as the share of each image
    token at the input in each text token at the output, (T, P).

    In each block a stream attends to itself and then to what the other stream held before the block.
    """
    text_own, image_own = rollout(maps["text"]), rollout(maps["image"])
    num_text, num_image = len(text_own), len(image_own)
    # The shares that a token holds: of the T text tokens, then of the P image tokens.
    text = torch.cat([text_own, torch.zeros(num_text, num_image)], dim=1)
    image = torch.cat([torch.zeros(num_image, num_text), image_own], dim=1)
    names = ("text_self", "text_to_image", "image_self", "image_to_text")
    for text_self, text_to_image, image_self, image_to_text in zip(*(maps[name] for name in names), strict=True):
        before_text, before_image = text, image
        text = 0.5 * text + 0.5 * text_self @ text
        text = 0.5 * text + 0.5 * text_to_image @ before_image
        image = 0.5 * image + 0.5 * image_self @ image
        image = 0.5 * image + 0.5 * image_to_text @ before_text
    return text[:, num_text:]


def gradient_relevance(maps: Sequence[Tensor], gradients: Sequence[Tensor]) -> Tensor:
    """From attention maps (H, S, S) of successive layers and the gradients of a score with respect to them, the
    relevance (S, S) of each input token for each output token: R <- R + mean over heads of (gradient * map)+ @ R."""
    relevance = torch.eye(maps[0].shape[-1])
    for attention, gradient in zip(maps, gradients, strict=True):
        relevance = relevance + (gradient * attention).clamp(min=0).mean(dim=0) @ relevance
    return relevance


@contextmanager
def keeping_maps(model: nn.Module) -> Iterator[tuple[Any, list[Tensor]]]:
    """A copy of an EVE, with its head if it has one, that shares the weights, and the list that collects the attention
    maps (B, H, S, S) of each layer when the copy is called.

    "eager" is the attention that keeps its maps. It is set on a copy because another thread may be using the model.
    """
    shared = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
    own: Any = copy.deepcopy(model, shared)
    own.set_attn_implementation("eager")
    maps: list[Tensor] = []
    for module in own.modules():
        if isinstance(module, EVEAttention):
            module.register_forward_hook(lambda module, inputs, output: maps.append(output[1]))
    with in_evaluation_mode(own):
        yield own, maps


def eve_maps(
    model: PreTrainedModel, pixel_values: Tensor, input_ids: Tensor, method: str, score: Callable[[Any], Tensor]
) -> Tensor:
    """The share or relevance (T, P) of each image token for each text token, float32 on the CPU.

    `score` computes the number that is explained from the model, for the method "gradient".
    """
    if method == "gradient":
        with keeping_maps(model) as (own, maps), torch.enable_grad():
            answer = score(own)
            gradients = torch.autograd.grad(answer, maps)
        layers, slopes = ([each[0].detach().float().cpu() for each in some] for some in (maps, gradients))
        whole = gradient_relevance(layers, slopes)
    else:
        with keeping_maps(model.base_model) as (own, maps), torch.inference_mode():
            own(pixel_values, input_ids)
        joint = [heads[0].float().mean(dim=0).cpu() for heads in maps]
        whole = joint[-1] if method == "attention" else rollout(joint)
    num_image = whole.shape[0] - input_ids.shape[1]
    return whole[num_image:, :num_image]


def vle_maps(model: PreTrainedModel, pixel_values: Tensor, input_ids: Tensor, method: str) -> Tensor:
    """The share (T, P) of each image token in each text token, float32 on the CPU.

    "attention" is the cross-attention of the last block.
    """
    backbone: Any = model.base_model
    with in_evaluation_mode(model), torch.inference_mode():
        maps = backbone(input_ids, pixel_values, output_attentions=True).attentions
    layers = {name: [heads[0].float().mean(dim=0).cpu() for heads in each] for name, each in maps.items()}
    return layers["text_to_image"][-1] if method == "attention" else fusion_rollout(layers)
