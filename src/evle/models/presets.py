"""The named sizes: preset -> (family, the fields that differ from the family's defaults).

The paper's sizes come from EVE, section 4.1, and the released configurations. The CPU sizes are ours: they keep the
paper's proportions (patches per side, feed-forward 4 x width, soft routing at the top) at a cost that two cores can
bear, with plain GELU, which a CPU computes twice as fast as quick_gelu. eve-tiny is for runs of minutes from random
weights: few tokens after convolutions, LayerScale 1 (with 0.1 a short run loses its first minutes), positions that are
large from the first step, no dropout, mean pooling.

VLE's sizes are those of its released checkpoints: DeBERTa-v3 and CLIP of the same size, CLIP without its last layer. A
preset lists the differences from VLE-base in each tower.
"""

from typing import Any

PRESETS: dict[str, tuple[str, dict[str, Any]]] = {
    "eve-tiny": (
        "eve",
        {
            "vocab_size": 2000,
            "hidden_size": 192,
            "num_hidden_layers": 4,
            "num_attention_heads": 3,
            "intermediate_size": 768,
            "hidden_act": "gelu",
            "image_size": 64,
            "patch_size": 16,
            "stem_channels": (32, 64, 128, 256),
            "max_position_embeddings": 64,
            "layer_scale_init": 1.0,
            "position_init_range": 0.5,
            "hidden_dropout_prob": 0.0,
            "soft_layers": (3,),
            "num_experts": 4,
            "drop_path_rate": 0.0,
            "pooling": "mean",
            "decoder_hidden_size": 96,
            "decoder_num_layers": 2,
            "decoder_num_heads": 3,
        },
    ),
    "eve-small": (
        "eve",
        {
            "vocab_size": 4000,
            "hidden_size": 256,
            "num_hidden_layers": 8,
            "num_attention_heads": 4,
            "intermediate_size": 1024,
            "hidden_act": "gelu",
            "image_size": 96,
            "patch_size": 8,
            "max_position_embeddings": 96,
            "soft_layers": (6, 7),
            "num_experts": 8,
            "drop_path_rate": 0.05,
            "decoder_hidden_size": 128,
            "decoder_num_layers": 2,
            "decoder_num_heads": 4,
        },
    ),
    "eve-base": ("eve", {}),
    "eve-large": (
        "eve",
        {
            "hidden_size": 1024,
            "num_hidden_layers": 24,
            "num_attention_heads": 16,
            "intermediate_size": 4096,
            "soft_layers": (21, 22, 23),
        },
    ),
    "vle-tiny": (
        "vle",
        {
            "text_config": {
                "vocab_size": 2000,
                "hidden_size": 128,
                "num_hidden_layers": 2,
                "num_attention_heads": 4,
                "intermediate_size": 512,
                "max_position_embeddings": 96,
                "position_buckets": 32,
                "hidden_dropout_prob": 0.0,
                "attention_probs_dropout_prob": 0.0,
                "initializer_range": 0.05,
            },
            "vision_config": {
                "hidden_size": 128,
                "num_hidden_layers": 2,
                "num_attention_heads": 4,
                "intermediate_size": 512,
                "image_size": 64,
                "patch_size": 16,
            },
            "hidden_size": 128,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "intermediate_size": 512,
            "hidden_dropout_prob": 0.0,
            "attention_probs_dropout_prob": 0.0,
            "initializer_range": 0.05,
            "position_init_range": 0.5,
            "pooling": "mean",
        },
    ),
    "vle-small": (
        "vle",
        {
            "text_config": {
                "vocab_size": 4000,
                "hidden_size": 256,
                "num_hidden_layers": 4,
                "num_attention_heads": 4,
                "intermediate_size": 1024,
                "max_position_embeddings": 128,
                "position_buckets": 32,
            },
            "vision_config": {
                "hidden_size": 256,
                "num_hidden_layers": 4,
                "num_attention_heads": 4,
                "intermediate_size": 1024,
                "image_size": 96,
                "patch_size": 8,
            },
            "hidden_size": 256,
            "num_hidden_layers": 3,
            "num_attention_heads": 4,
            "intermediate_size": 1024,
        },
    ),
    "vle-base": ("vle", {}),
    "vle-large": (
        "vle",
        {
            "text_config": {
                "hidden_size": 1024,
                "num_hidden_layers": 24,
                "num_attention_heads": 16,
                "intermediate_size": 4096,
            },
            "vision_config": {
                "hidden_size": 1024,
                "num_hidden_layers": 23,
                "num_attention_heads": 16,
                "intermediate_size": 4096,
                "patch_size": 14,
            },
            "hidden_size": 1024,
            "num_attention_heads": 16,
            "intermediate_size": 4096,
        },
    ),
}
