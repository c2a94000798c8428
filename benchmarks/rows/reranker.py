"""What re-ranking costs: pairs a second of matching by EVE-Base and VLE-base beside a decoder of 0.8 B parameters.

The decoder has the form of a multimodal cross-encoder: Qwen3-VL of transformers with the text model's sizes of
Qwen3-0.6B and an image encoder of 12 layers of width 768, random weights. It reads the image's tokens (one for each
2 x 2 patches), the text, and an instruction of 40 tokens, and gives the logits of one token. All: 384 pixels, 20 text
tokens, batch 4, each pair with an image of its own.
"""

import torch
from benchmarks.case import Case, Setting
from benchmarks.eve_batches import eve_config, product
from benchmarks.eve_batches import pairs as eve_pairs
from benchmarks.vle_batches import pairs as vle_pairs
from benchmarks.vle_batches import vle_config
from torch import Tensor
from transformers import Qwen3VLConfig, Qwen3VLForConditionalGeneration

from evle.models.eve import EVEForRetrieval
from evle.models.vle import VLEForITM

NOTE = """
Matrix products of the weights take 70 % of EVE's bf16 passes, casts of weights 9 %, attention's softmax and products
15 %. The decoder reads 144 image tokens, 40 of its instruction and the text, through 28 layers.
"""
"""What limits this row, from a profile, and what was tried."""

INSTRUCTION = 40


def decoder(setting: Setting) -> Qwen3VLForConditionalGeneration:
    text = {
        "vocab_size": 151936,
        "hidden_size": 1024,
        "intermediate_size": 3072,
        "num_hidden_layers": 28,
        "num_attention_heads": 16,
        "num_key_value_heads": 8,
        "head_dim": 128,
    }
    vision = {
        "depth": 12,
        "hidden_size": 768,
        "intermediate_size": 3072,
        "num_heads": 12,
        "patch_size": 16,
        "out_hidden_size": 1024,
        "deepstack_visual_indexes": [3, 6, 9],
    }
    if setting.quick:
        text |= {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 4, "head_dim": 16}
        text |= {"num_attention_heads": 2, "num_key_value_heads": 1, "vocab_size": 151936}
        vision |= {"hidden_size": 32, "intermediate_size": 64, "num_heads": 2, "out_hidden_size": 32}
    text["rope_parameters"] = {"rope_type": "default", "mrope_section": [24, 20, 20], "rope_theta": 5e6}
    if setting.quick:
        text["rope_parameters"]["mrope_section"] = [4, 2, 2]
    config = Qwen3VLConfig(text_config=text, vision_config=vision, tie_word_embeddings=True)
    return Qwen3VLForConditionalGeneration(config).eval()


def decoder_inputs(model: Qwen3VLForConditionalGeneration, size: int, side: int, length: int) -> dict[str, Tensor]:
    """Images of noise as patches, and sequences of image tokens and text."""
    vision = model.config.vision_config
    grid = side // vision.patch_size
    image_tokens = (grid // vision.spatial_merge_size) ** 2
    pixels = vision.in_channels * vision.temporal_patch_size * vision.patch_size**2
    generator = torch.Generator().manual_seed(0)
    words = torch.randint(5, 1000, (size, length + INSTRUCTION), generator=generator)
    images = torch.full((size, image_tokens), model.config.image_token_id)
    input_ids = torch.cat([words[:, :INSTRUCTION], images, words[:, INSTRUCTION:]], dim=1)
    return {
        "input_ids": input_ids,
        "attention_mask": torch.ones_like(input_ids),
        "mm_token_type_ids": (input_ids == model.config.image_token_id).long(),
        "pixel_values": torch.randn(size * grid**2, pixels, generator=generator),
        "image_grid_thw": torch.tensor([[1, grid, grid]] * size),
    }


def build(setting: Setting) -> Case:
    size, length = (2, 20) if setting.quick else (4, 20)
    eve = EVEForRetrieval(eve_config(setting, 384)).eval()
    vle = VLEForITM(vle_config(setting)).eval()
    other = decoder(setting)
    eve_inputs = eve_pairs(eve.config, size, length, length)
    vle_inputs = vle_pairs(vle.config, size, length)
    inputs = decoder_inputs(other, size, eve.config.image_size, length)
    names = ("ours, EVE-Base", "decoder of 0.8 B", "ours, VLE-base")
    return Case(
        ways=dict(
            zip(
                names,
                (
                    setting.forward(lambda: eve.itm_logits(**eve_inputs)),
                    setting.forward(lambda: other(**inputs, logits_to_keep=1, use_cache=False)),
                    setting.forward(lambda: vle(**vle_inputs)),
                ),
            )
        ),
        product=product(eve.config, size * eve.config.num_patches),
        unit="pairs",
        units=dict.fromkeys(names, float(size)),
        facts=lambda: {
            f"parameters of {name} (millions)": round(sum(each.numel() for each in model.parameters()) / 1e6)
            for name, model in zip(names, (eve, other, vle))
        },
    )
