"""Tiny encoders of many families, with random weights, of which VLE models are built."""

from typing import Any

from evle.models.vle import VLEConfig

SIZES: dict[str, Any] = {
    "hidden_size": 8,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 8,
}
PATCHES = {**SIZES, "image_size": 32, "patch_size": 8}
STAGES = {"hidden_sizes": [4, 8], "depths": [1, 1], "image_size": 32}
WINDOWS = {"embed_dim": 4, "depths": [1, 1], "num_heads": [1, 2], "window_size": 4, "image_size": 32, "patch_size": 4}

VISION: dict[str, dict[str, Any]] = {
    "clip": {**PATCHES, "model_type": "clip_vision_model"},
    "siglip": {**PATCHES, "model_type": "siglip_vision_model"},
    "siglip2": {**SIZES, "model_type": "siglip2_vision_model", "num_patches": 16, "patch_size": 8},
    "dinov2": {**PATCHES, "model_type": "dinov2", "mlp_ratio": 1},
    "dinov2-registers": {**PATCHES, "model_type": "dinov2_with_registers", "mlp_ratio": 1},
    "dinov3": {**PATCHES, "model_type": "dinov3_vit", "num_register_tokens": 4},
    "vit": {**PATCHES, "model_type": "vit"},
    "beit": {**PATCHES, "model_type": "beit", "use_relative_position_bias": True},
    "deit": {**PATCHES, "model_type": "deit"},
    "swin": {**WINDOWS, "model_type": "swin"},
    "convnext": {**STAGES, "model_type": "convnext", "num_stages": 2},
    "timm-vit": {
        "model_type": "timm_wrapper",
        "architecture": "vit_tiny_patch16_224",
        "model_args": {"img_size": 32, "patch_size": 8, "depth": 1, "embed_dim": 8, "num_heads": 2},
    },
    "timm-swin": {
        "model_type": "timm_wrapper",
        "architecture": "swin_tiny_patch4_window7_224",
        "model_args": {"img_size": 32, "window_size": 2, "embed_dim": 4, "depths": [1, 1], "num_heads": [1, 2]},
    },
    "timm-resnet": {
        "model_type": "timm_wrapper",
        "architecture": "resnet10t",
        "image_size": 64,
        "model_args": {"channels": [8, 8, 8, 8], "stem_width": 8},
    },
}
WORDS = {**SIZES, "vocab_size": 50, "max_position_embeddings": 40}
TEXT: dict[str, dict[str, Any]] = {
    "deberta": {**WORDS, "model_type": "deberta-v2", "position_buckets": 4, "relative_attention": True},
    "bert": {**WORDS, "model_type": "bert"},
    "roberta": {**WORDS, "model_type": "roberta", "pad_token_id": 1},
    "xlm-roberta": {**WORDS, "model_type": "xlm-roberta", "pad_token_id": 1},
    "mpnet": {**WORDS, "model_type": "mpnet", "pad_token_id": 1},
    "electra": {**WORDS, "model_type": "electra", "embedding_size": 6},
    "modernbert": {
        **WORDS,
        "model_type": "modernbert",
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "cls_token_id": 1,
        "sep_token_id": 2,
    },
}


def tower_config(vision: str, text: str, **overrides: Any) -> VLEConfig:
    """A VLE of two named tiny towers."""
    fields = {
        "hidden_size": 8,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 8,
        "num_token_types": 6,
        "num_labels": 5,
        "object_classes": ("ball", "cube", "ring"),
        **overrides,
    }
    return VLEConfig(vision_config=dict(VISION[vision]), text_config=dict(TEXT[text]), **fields)
