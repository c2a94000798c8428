"""Images and texts to EVE's tokens: patches, word embeddings, learned positions, and one type vector per modality.

B batch, C channels, N patches of an image, V visible patches, P image tokens ([CLS] and kept patches), T text tokens,
D width.
"""

import torch
from torch import Tensor, nn

from evle.errors import DataError
from evle.models.eve.configuration import EVEConfig
from evle.models.eve.stem import EVEStem
from evle.models.positions import resize_positions


def patchify(images: Tensor, patch_size: int) -> Tensor:
    """Images (B, C, H, W) to patches (B, N, C * patch_size**2), row by row; a patch's pixels in the order (C, y, x)."""
    batch, channels, height, width = images.shape
    rows, columns = height // patch_size, width // patch_size
    grid = images.reshape(batch, channels, rows, patch_size, columns, patch_size)
    return grid.permute(0, 2, 4, 1, 3, 5).reshape(batch, rows * columns, channels * patch_size**2)


def unpatchify(patches: Tensor, patch_size: int, rows: int, columns: int) -> Tensor:
    """The inverse of `patchify`: (B, rows * columns, C * patch_size**2) to (B, C, H, W)."""
    batch, _, pixels = patches.shape
    channels = pixels // patch_size**2
    grid = patches.reshape(batch, rows, columns, channels, patch_size, patch_size)
    return grid.permute(0, 3, 1, 4, 2, 5).reshape(batch, channels, rows * patch_size, columns * patch_size)


def visible_patches(image_mask: Tensor) -> Tensor:
    """Indices (B, V) of the patches that `image_mask` (B, N) leaves visible (False), the same number V in every row.

    V is read from the mask's values, which synchronises with an accelerator. A caller that knows the indices can pass
    them to the models instead. Raises DataError if the rows mask different numbers of patches.
    """
    visible = (~image_mask).sum(dim=1)
    if not bool((visible == visible[0]).all()):
        masked = image_mask.sum(dim=1)
        raise DataError(
            f"image_mask masks {int(masked.min())} to {int(masked.max())} patches per row; "
            "mask the same number in every row"
        )
    return image_mask.int().argsort(dim=1, stable=True)[:, : int(visible[0])]


def take(rows: Tensor, index: Tensor) -> Tensor:
    """Rows (B, V, D) of `rows` (B, N, D) at `index` (B, V)."""
    return rows.gather(1, index[..., None].expand(-1, -1, rows.shape[-1]))


class EVEImageEmbedding(nn.Module):
    """Patches to tokens: linear projection, [CLS] in front, learned positions, one type vector."""

    def __init__(self, config: EVEConfig):
        super().__init__()
        self.config = config
        width = config.hidden_size
        # The patch convolution, written as the matrix product it is, so that only kept patches are projected.
        self.stem = EVEStem(config) if config.stem_channels else None
        described = config.stem_channels[-1] if config.stem_channels else config.num_channels * config.patch_size**2
        self.patch = nn.Linear(described, width)
        self.cls_token = nn.Parameter(torch.empty(width))
        self.position = nn.Parameter(torch.empty(1 + config.num_patches, width))
        self.type_vector = nn.Parameter(torch.empty(width))
        self.mask_token = nn.Parameter(torch.empty(width)) if config.has_mask_token else None

    def forward(self, pixel_values: Tensor, image_mask: Tensor | None = None, visible: Tensor | None = None) -> Tensor:
        """Images (B, C, H, W) to tokens (B, P, D).

        `image_mask` (B, N) is True for masked patches, and `visible` (B, V) holds the indices of the others. A model
        with a mask token replaces masked patches by it; others leave them out. A kept patch keeps its own position
        embedding; the released visible-only path loses it (a bug, fixed here).
        """
        channels, height, width = pixel_values.shape[1:]
        size = self.config.patch_size
        if channels != self.config.num_channels or height % size or width % size or not height or not width:
            raise DataError(
                f"pixel_values have {channels} channels and {height} x {width} pixels; this model takes "
                f"{self.config.num_channels} channels and sides that are multiples of its patch, {size}"
            )
        if self.stem is None:
            patches = patchify(pixel_values, size).to(self.position.dtype)
        else:
            patches = self.stem(pixel_values, image_mask)
        positions = resize_positions(self.position, height // size, width // size)
        patch_positions = positions[1:].expand(patches.shape[0], -1, -1)
        if visible is not None and self.mask_token is None:
            patches, patch_positions = take(patches, visible), take(patch_positions, visible)
        patch_tokens = self.patch(patches)
        if image_mask is not None and self.mask_token is not None:
            patch_tokens = torch.where(image_mask[..., None], self.mask_token.to(patch_tokens.dtype), patch_tokens)
        patch_tokens = patch_tokens + patch_positions
        cls_tokens = (self.cls_token + positions[0]).to(patch_tokens.dtype).expand(patches.shape[0], 1, -1)
        return torch.cat([cls_tokens, patch_tokens], dim=1) + self.type_vector


class EVETextEmbedding(nn.Module):
    """Token ids to tokens: word embedding, LayerNorm, dropout, learned positions, one type vector."""

    def __init__(self, config: EVEConfig):
        super().__init__()
        self.config = config
        self.word = nn.Embedding(config.vocab_size, config.hidden_size)
        self.norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)
        self.position = nn.Parameter(torch.empty(config.max_position_embeddings, config.hidden_size))
        self.type_vector = nn.Parameter(torch.empty(config.hidden_size))

    def forward(self, input_ids: Tensor) -> Tensor:
        """`input_ids` (B, T) -> (B, T, D)."""
        length = input_ids.shape[1]
        if length > len(self.position):
            raise DataError(
                f"a text of {length} tokens is longer than this model's {len(self.position)} positions; truncate it"
            )
        return self.dropout(self.norm(self.word(input_ids))) + self.position[:length] + self.type_vector
