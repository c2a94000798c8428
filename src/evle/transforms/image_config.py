"""How an image is framed, and how a training image is varied: every option and its source."""

import math
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from evle.config import Config

STYLES = ("posterize", "solarize", "contour", "emboss")
UNMOVED: dict[str, Any] = {
    "scale": (1.0, 1.0),
    "flip": 0.0,
    "pad_scale": (1.0, 1.0),
    "rotate": 0.0,
    "shear": 0.0,
    "bend": 0.0,
    "rand_augment": None,
}
"""The options that move an image at random, each with the value that does not move it."""


def _rand_augment_pair(value: object) -> object:
    """`true` in a recipe means the released (2, 7), `false` means none."""
    return ((2, 7) if value else None) if isinstance(value, bool) else value


def _jitter_triple(value: object) -> object:
    """One strength means the same for brightness, contrast and saturation."""
    return (value,) * 3 if isinstance(value, int | float) else value


Framing = Literal["whole", "pad", "centre"]
"""What a model sees of an image that is not square. "whole": all of it, squeezed into the square (EVE). "pad": all of
it in its own proportions, on a white square. "centre": the square in its middle (CLIP, VLE)."""

Share = Annotated[float, Field(ge=0, le=1)]
Range = tuple[float, float]
Jitter = Annotated[tuple[Share, Share, Share], BeforeValidator(_jitter_triple)]
NumOpsAndMagnitude = tuple[Annotated[int, Field(ge=1, le=10)], Annotated[float, Field(ge=0, le=10)]]


class ImageConfig(Config):
    """How an image is framed, and how a training image is varied.

    The defaults are EVE's pre-training: a crop of 0.5 to 1 and a flip. EVE's fine-tuning (released code): `color` is
    `color_jitter=0.4`, `rand` is `rand_augment=true`. Options marked "ours" are in neither paper and are off by
    default. The fields are in the order in which they are applied.
    """

    size: Annotated[int, Field(ge=8)] | None = None
    """Side of the output in pixels; None: the model's."""
    framing: Framing | None = None
    """What the model sees of an image that is not square, in training and at test: "whole" (squeezed), "pad" (its own
    proportions, on white) or "centre" (the square in its middle). None: at test what the model's image processor does
    (EVE: whole, VLE: centre), in training a random crop anywhere in the image, squeezed (torchvision)."""
    scale: Range = (0.5, 1.0)
    """Range of the share of the framed image's area that a random crop keeps (EVE, pre-training and fine-tuning);
    (1, 1) keeps all of it."""
    ratio: Range = (3 / 4, 4 / 3)
    """Range of the crop's ratio of width to height (torchvision's RandomResizedCrop, which EVE uses). With
    `framing=whole` it is a multiple of the image's own ratio."""
    flip: Share = 0.5
    """Probability of a left-right flip (EVE). A text that contains left or right prevents it: see `task.keep_sides`."""
    pad_scale: Range = (1.0, 1.0)
    """Range of the share of the output's side that the crop fills, at a random position on the background (ours, for
    objects of any size)."""
    rotate: Annotated[float, Field(ge=0, le=180)] = 0.0
    """Largest rotation in degrees, in either direction (ours)."""
    shear: Annotated[float, Field(ge=0, le=45)] = 0.0
    """Largest horizontal shear in degrees, in either direction (ours)."""
    bend: Annotated[float, Field(ge=0, le=0.15)] = 0.0
    """Strength of a smooth elastic distortion: the largest random shift of the points of a 3x3 to 5x5 grid, as a
    fraction of half the image's side (Simard et al. 2003; ours)."""
    rand_augment: Annotated[NumOpsAndMagnitude | None, BeforeValidator(_rand_augment_pair)] = None
    """RandAugment: the number of operations from `RAND_AUGMENT_OPS`, and their magnitude out of 10. `true` means 2, 7,
    as EVE uses for VQA and NLVR2. As in the release, exposed areas are grey, and a shift is at most 10 pixels."""
    background: Literal["white", "random"] = "white"
    """Background of transparent images, and around padded, shrunken or rotated ones: white, or at random a colour, a
    gradient or white (ours)."""
    color_jitter: Jitter = (0.0, 0.0, 0.0)
    """Strength s of brightness, contrast and saturation: factors are drawn from 1 - s to 1 + s (EVE, retrieval:
    0.4)."""
    hue: Annotated[float, Field(ge=0, le=0.5)] = 0.0
    """Largest shift of the hue, as a fraction of the colour wheel, in either direction (ours)."""
    grayscale: Share = 0.0
    """Probability of removing all colour (ours)."""
    stylize: Share = 0.0
    """Probability of another drawing style, one of `STYLES` (ours)."""
    outline: Share = 0.0
    """Probability of flattening the image to a few colours with dark outlines, as in cartoons and pictograms (ours)."""
    erase: Share = 0.0
    """Probability of filling a rectangle of 2 to 25 % of the area with a random colour (Zhong et al. 2020; ours)."""

    @model_validator(mode="after")
    def _ranges_rise(self) -> "ImageConfig":
        for name, most in (("scale", 1.0), ("ratio", math.inf), ("pad_scale", 1.0)):
            first, last = getattr(self, name)
            if not 0 < first <= last <= most:
                raise ValueError(
                    f"{name}=({first:g}, {last:g}) must be two rising numbers above 0 and at most {most:g}"
                )
        return self

    @property
    def only_moves(self) -> bool:
        """Whether a view of an opaque image is only framed, cropped and flipped."""
        moves = {"size", "framing", "scale", "ratio", "flip", "background"}
        defaults = type(self)()
        others = [name for name in type(self).model_fields if name not in moves]
        return all(getattr(self, name) == getattr(defaults, name) for name in others)

    @property
    def moving(self) -> list[str]:
        """The options that move an image at random, in the order in which they are applied."""
        return [name for name, still in UNMOVED.items() if getattr(self, name) != still]

    def without_flip(self) -> "ImageConfig":
        """The same options without flips, for text that contains left or right (EVE's rule for VQA)."""
        return self.model_copy(update={"flip": 0.0})
