"""Convolutions in front of EVE's patch projection, an option of ours for training from few images.

B batch, N patches of an image, C channels.
"""

from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from evle.errors import DataError
from evle.models.eve.configuration import EVEConfig


class EVEStem(nn.Module):
    """Strided convolutions whose outputs, instead of raw pixels, enter the patch projection (`stem_channels`).

    Each stage halves the image by a 3x3 convolution (Xiao et al. 2021, "Early convolutions help transformers see
    better"), followed by `stem_blocks` residual blocks of two 3x3 convolutions (He et al. 2016).
    """

    def __init__(self, config: EVEConfig):
        super().__init__()
        self.config = config
        channels = (config.num_channels, *config.stem_channels)
        self.layers = nn.ModuleList()
        for (before, after), num_blocks in zip(pairwise(channels), config.blocks_of_stem):
            self.layers.append(EVEConvolution(before, after, stride=2))
            self.layers.extend(EVEResidual(after) for _ in range(num_blocks))

    def forward(self, pixel_values: Tensor, image_mask: Tensor | None) -> Tensor:
        """`pixel_values` (B, C, H, W) -> (B, N, last channels).

        The pixels of the patches that `image_mask` (B, N) masks (True) are blanked first, because a convolution would
        carry them into neighbouring patches. Raises DataError for a training batch that is too small for its
        statistics.
        """
        batch, _, height, width = pixel_values.shape
        size = self.config.patch_size
        rows, columns = height // size, width // size
        if self.training and batch * rows * columns == 1:
            raise DataError(
                "the batch statistics of the stem need more than one patch; train on larger batches or larger images"
            )
        if image_mask is not None:
            shown = (~image_mask).to(pixel_values.dtype)
            shown = shown.view(batch, 1, rows, 1, columns, 1).expand(-1, -1, -1, size, -1, size)
            pixel_values = pixel_values * shown.reshape(batch, 1, height, width)
        maps = pixel_values.to(next(self.parameters()).dtype).contiguous(memory_format=torch.channels_last)
        # Blanked images have another distribution: they must not enter the statistics of whole images.
        is_whole = image_mask is None
        for layer in self.layers:
            maps = layer(maps, is_whole)
        return maps.flatten(2).transpose(1, 2)


class StemNorm(nn.BatchNorm2d):
    """Batch normalisation whose running statistics come only from whole images.

    Training normalises by the batch. Inference normalises by the running statistics, so that no sample depends on the
    others in its batch. Normalising each sample by itself learned markedly slower.
    """

    def forward(self, maps: Tensor, is_whole: bool = True) -> Tensor:
        """Maps (B, C, H, W); those of blanked images (`is_whole` False) leave the running statistics as they are."""
        if is_whole or not self.training:
            return super().forward(maps)
        return F.batch_norm(maps, None, None, self.weight, self.bias, training=True, eps=self.eps)


class EVEConvolution(nn.Module):
    """3x3 convolution, batch normalisation, GELU."""

    def __init__(self, before: int, after: int, stride: int = 1):
        super().__init__()
        self.convolution = nn.Conv2d(before, after, 3, stride=stride, padding=1, bias=False)
        self.norm = StemNorm(after)

    def forward(self, maps: Tensor, is_whole: bool) -> Tensor:
        """Maps (B, C, H, W) -> maps of the new channels; `is_whole` as in `StemNorm`."""
        return F.gelu(self.normalized(maps, is_whole))

    def normalized(self, maps: Tensor, is_whole: bool) -> Tensor:
        """The maps before the GELU."""
        normalized: Tensor = self.norm(self.convolution(maps), is_whole)
        return normalized


class EVEResidual(nn.Module):
    """Two convolutions with a skip connection, on maps (B, C, H, W)."""

    def __init__(self, channels: int):
        super().__init__()
        self.first = EVEConvolution(channels, channels)
        self.second = EVEConvolution(channels, channels)

    def forward(self, maps: Tensor, is_whole: bool) -> Tensor:
        return F.gelu(maps + self.second.normalized(self.first(maps, is_whole), is_whole))
