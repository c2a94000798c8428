"""The sizes one can ask for by name: preset -> (family, the fields that differ from the family's defaults).

The paper's sizes are EVE, section 4.1 and the released configurations. The CPU sizes are ours: they keep the paper's
proportions (patches a side, feed-forward 4 x width, soft routing at the top) at a cost two cores can train, with plain
GELU, which a CPU computes twice as fast as quick_gelu. eve-tiny is made for runs of minutes from random weights: few
tokens behind convolutions, LayerScale 1 (0.1 costs a short run its first minutes), no dropout, mean pooling.
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
}
