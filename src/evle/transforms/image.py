"""Pictures to tensors: the augmentation of EVE's pre-training and fine-tuning, and stronger ones for small collections.

Every random choice comes from the generator handed in, and boxes go through the same geometry as their picture. The
order is that of cost: crop and resize first (in torch, which is 1.5 to 4 times as fast as PIL for RGB of 128 to 1000
pixels), then one warp that holds every rotation, shear and shift, then one 3x4 matrix that holds every linear colour
change, and last what is not linear.
"""

import math
from collections.abc import Sequence
from typing import Annotated, Any, Literal, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageChops, ImageEnhance, ImageFilter, ImageOps
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator
from torch import Tensor

MIN_VISIBLE = 0.25
"""A box of which less than this share stays in the picture is gone (our choice; no paper says)."""

WHITE_SHARE = 0.25
"""`background="random"` still draws white this often, so that test pictures are nothing new (our choice)."""

RAND_AUGMENT_SHARE = 0.5
"""Each operation that RandAugment picks is carried out this often (X-VLM's implementation, whose operations EVE
uses).
"""

RAND_AUGMENT_OPS = (
    *("identity", "autocontrast", "equalize", "brightness", "sharpness"),
    *("shear_x", "shear_y", "translate_x", "translate_y", "rotate"),
)

STYLES = ("posterize", "solarize", "contour", "emboss")

# Luma weights of ITU-R 601, as PIL and torchvision take them for contrast, saturation and grey.
LUMA = np.array([0.299, 0.587, 0.114])
RGB_TO_YIQ = np.array([[0.299, 0.587, 0.114], [0.5959, -0.2746, -0.3213], [0.2115, -0.5227, 0.3112]])
YIQ_TO_RGB = np.linalg.inv(RGB_TO_YIQ)


def _rand_augment_pair(value: object) -> object:
    """`true` in a recipe means the released (2, 7), `false` none."""
    return ((2, 7) if value else None) if isinstance(value, bool) else value


def _jitter_triple(value: object) -> object:
    """One strength means the same for brightness, contrast and saturation."""
    return (value,) * 3 if isinstance(value, int | float) else value


Share = Annotated[float, Field(ge=0, le=1)]
Range = tuple[float, float]
Jitter = Annotated[tuple[Share, Share, Share], BeforeValidator(_jitter_triple)]
NumOpsAndMagnitude = tuple[Annotated[int, Field(ge=1, le=10)], Annotated[float, Field(ge=0, le=10)]]


class ImageOptions(BaseModel):
    """How a training picture is varied; the defaults are EVE's pre-training (crop of 0.5 to 1, flip, nothing else).

    EVE's fine-tuning (released code): `color` is `color_jitter=0.4`, `rand` is `rand_augment=true`. What is marked
    "ours" is in neither paper and off by default. Field order is the order of work.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    size: Annotated[int, Field(ge=8)] | None = None
    """Side of the output in pixels; None: the model's."""
    scale: Range = (0.5, 1.0)
    """Share of the picture's area that a random crop keeps (EVE, pre-training and fine-tuning); (1, 1) keeps the
    whole picture.
    """
    ratio: Range = (3 / 4, 4 / 3)
    """Width to height of the crop (torchvision's RandomResizedCrop, which EVE uses)."""
    flip: Share = 0.5
    """Probability of a left-right flip (EVE). Text that says left or right forbids it: see `without_flip`."""
    pad_scale: Range = (1.0, 1.0)
    """Share of the output's side that the crop fills, at a random place on its background (ours, for objects of any
    size).
    """
    rotate: Annotated[float, Field(ge=0, le=180)] = 0.0
    """Largest rotation in degrees, both ways (ours)."""
    shear: Annotated[float, Field(ge=0, le=45)] = 0.0
    """Largest horizontal shear in degrees, both ways (ours)."""
    perspective: Annotated[float, Field(ge=0, le=0.5)] = 0.0
    """Strength of a random perspective: how much nearer one edge can come than the one across (ours)."""
    rand_augment: Annotated[NumOpsAndMagnitude | None, BeforeValidator(_rand_augment_pair)] = None
    """Number of operations from `RAND_AUGMENT_OPS` and their magnitude of 10 (EVE for VQA and NLVR2: 2, 7, which
    `true` means).
    """
    background: Literal["white", "random"] = "white"
    """What shows through transparent pictures and around shrunken or turned ones: white, or a colour, a gradient or
    white (ours).
    """
    color_jitter: Jitter = (0.0, 0.0, 0.0)
    """Strength of brightness, contrast, saturation: factors are drawn from 1 - s to 1 + s (EVE, retrieval: 0.4 each).
    """
    hue: Annotated[float, Field(ge=0, le=0.5)] = 0.0
    """Largest turn of the colour wheel, as a share of it, both ways (ours)."""
    grayscale: Share = 0.0
    """Probability of losing all colour (ours)."""
    invert: Share = 0.0
    """Probability of a negative (ours)."""
    stylize: Share = 0.0
    """Probability of another drawing style, one of `STYLES` (ours)."""
    outline: Share = 0.0
    """Probability of a drawing in few flat colours with dark outlines, as cartoons and pictograms have them (ours)."""
    blur: Share = 0.0
    """Probability of a Gaussian blur with a radius of up to 1.5 % of the side (ours)."""
    erase: Share = 0.0
    """Probability of filling a rectangle of 2 to 25 % of the area with a random colour (Zhong et al. 2020; ours)."""

    @model_validator(mode="after")
    def _ranges_rise(self) -> "ImageOptions":
        for name, most in (("scale", 1.0), ("ratio", math.inf), ("pad_scale", 1.0)):
            first, last = getattr(self, name)
            if not 0 < first <= last <= most:
                raise ValueError(
                    f"{name}=({first:g}, {last:g}) must be two rising numbers above 0 and at most {most:g}"
                )
        return self

    @property
    def only_moves(self) -> bool:
        """Whether a view of a picture is a crop and a flip of it, colours and surroundings untouched."""
        moves = {"size", "scale", "ratio", "flip", "background"}
        fresh = type(self)()
        return all(getattr(self, name) == getattr(fresh, name) for name in type(self).model_fields if name not in moves)

    def without_flip(self) -> "ImageOptions":
        """The same options, never flipped: for text that says left or right (EVE's rule for VQA)."""
        return self.model_copy(update={"flip": 0.0})


class Geometry(NamedTuple):
    """Where a picture goes: the `crop` of it (left, top, width, height) fills `place` in the output, mirrored if
    `flipped`, then the output is warped by the 3x3 matrix `warp` (None: not at all)."""

    crop: tuple[int, int, int, int]
    place: tuple[int, int, int, int]
    flipped: bool
    warp: np.ndarray | None


def train_image(
    image: Image.Image,
    options: ImageOptions,
    size: int,
    rng: np.random.Generator,
    boxes: Sequence[Sequence[float]] | np.ndarray = (),
) -> tuple[Tensor, np.ndarray]:
    """A random view of `image` (RGB or RGBA) as uint8 (3, size, size), and `boxes` in it.

    `boxes` (N, 4) are left, top, right, bottom in pixels of `image`; they come back as float64 (N, 4) in pixels of
    the output, clipped to it, row by row the same boxes: the bounding box of a turned box, and NaN in the row of a
    box of which less than `MIN_VISIBLE` is left.

    >>> picture, rng = Image.new("RGB", (40, 20)), np.random.default_rng(0)
    >>> view, boxes = train_image(picture, ImageOptions(), 16, rng, [(0, 0, 40, 20)])
    >>> view.shape, boxes.tolist()
    (torch.Size([3, 16, 16]), [[0.0, 0.0, 16.0, 16.0]])
    """
    ops = _pick_rand_augment(options.rand_augment, rng) if options.rand_augment else []
    geometry = _pick_geometry(image.size, options, ops, size, rng)
    if image.mode == "RGB" and options.only_moves:  # the same pixels without the ways back to PIL: a quarter faster
        left, top, width, height = geometry.crop
        pixels = _resize_pixels(_pixels(image)[:, top : top + height, left : left + width], size, size)
        return (pixels.flip(2) if geometry.flipped else pixels.contiguous()), _move_boxes(boxes, geometry, size)
    picture = _place(image, geometry, options.background, size, rng)
    picture = _recolour(picture, _pick_colours(picture, options, ops, rng))
    for name, magnitude in ops:
        picture = _rand_augment_filter(picture, name, magnitude)
    if options.stylize and rng.random() < options.stylize:
        picture = _stylize(picture, rng)
    if options.outline and rng.random() < options.outline:
        picture = _outline(picture, rng)
    if options.blur and rng.random() < options.blur:
        picture = picture.filter(ImageFilter.GaussianBlur(rng.uniform(0.0, 0.015) * size))
    if options.erase and rng.random() < options.erase:
        picture = _erase(picture, rng)
    return _to_tensor(picture), _move_boxes(boxes, geometry, size)


def test_image(image: Image.Image, size: int, *, center_crop: bool = False) -> Tensor:  # noqa: PT028
    """A picture as uint8 (3, size, size): bicubic with antialias, transparency on white.

    Squeezed whole into the square (EVE's evaluation), or with `center_crop` its shorter side made `size` and the middle
    kept (CLIP, and so VLE): pixel by pixel what CLIP's image processor takes.
    """
    if image.mode == "RGBA":
        ground = Image.new("RGB", image.size, "white")
        ground.paste(image, mask=image)
        image = ground
    width, height, left, top = _test_geometry(image.size, size, center_crop)
    pixels = _resize_pixels(_pixels(image.convert("RGB")), width, height)
    return pixels[:, top : top + size, left : left + size].contiguous()


def test_boxes(
    boxes: Sequence[Sequence[float]] | np.ndarray,
    image_size: tuple[int, int],
    size: int,
    *,
    center_crop: bool = False,  # noqa: PT028
) -> np.ndarray:
    """Boxes of a picture of `image_size` (width, height) in what `test_image` makes of it, clipped and NaN as in
    `train_image`.

    >>> test_boxes([(10, 0, 20, 10), (0, 0, 10, 20)], (40, 20), 10, center_crop=True).tolist()
    [[0.0, 0.0, 5.0, 5.0], [nan, nan, nan, nan]]
    """
    width, height, left, top = _test_geometry(image_size, size, center_crop)
    boxes = np.asarray(boxes, dtype=np.float64).reshape(-1, 4)
    scale = np.array([width / image_size[0], height / image_size[1]] * 2)
    moved = boxes * scale - np.array([left, top, left, top])
    return _only_visible(moved, moved.clip(0, size))


def framing(image_processor: Any) -> tuple[int, bool]:
    """What an image processor of transformers makes of a picture: its side in pixels, and whether it is the middle of
    the picture (`test_image`'s `center_crop`) or all of it."""
    if image_processor.do_center_crop:
        return int(image_processor.crop_size["height"]), True
    return int(image_processor.size["height"]), False


# pytest would take them for tests where they are imported
test_image.__test__ = test_boxes.__test__ = False  # type: ignore[attr-defined]


def normalize(pixels: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """uint8 (..., 3, H, W) to float32 (value / 255 - mean) / std, channel by channel (EVE: mean = std = 0.5)."""
    scale = torch.tensor(std, device=pixels.device, dtype=torch.float32).mul(255.0).reciprocal()[:, None, None]
    shift = (torch.tensor(mean, device=pixels.device) / torch.tensor(std, device=pixels.device))[:, None, None]
    return pixels.to(torch.float32, copy=True).mul_(scale).sub_(shift)


# --- geometry


def _pick_rand_augment(pair: tuple[int, float], rng: np.random.Generator) -> list[tuple[str, float]]:
    """The operations to carry out, each with its magnitude from 0 to 1, signed where it has a direction."""
    num_ops, magnitude = pair
    picks = rng.integers(len(RAND_AUGMENT_OPS), size=num_ops)
    done = rng.random(num_ops) < RAND_AUGMENT_SHARE
    signs = rng.choice((-1.0, 1.0), size=num_ops)
    return [
        (RAND_AUGMENT_OPS[pick], sign * magnitude / 10) for pick, is_done, sign in zip(picks, done, signs) if is_done
    ]


def _test_geometry(source: tuple[int, int], size: int, center_crop: bool) -> tuple[int, int, int, int]:
    """To which width and height a picture is resized at test, and where in that the square of `size` begins."""
    if not center_crop:
        return size, size, 0, 0
    short = min(source)
    width, height = (size * side // short for side in source)
    return width, height, (width - size) // 2, (height - size) // 2


def _pick_geometry(
    source: tuple[int, int], options: ImageOptions, ops: list[tuple[str, float]], size: int, rng: np.random.Generator
) -> Geometry:
    crop = _pick_crop(*source, options.scale, options.ratio, rng)
    flipped = bool(rng.random() < options.flip)
    place = (0, 0, size, size)
    if options.pad_scale != (1.0, 1.0):
        side = max(1, round(size * rng.uniform(*options.pad_scale)))
        place = (int(rng.integers(size - side + 1)), int(rng.integers(size - side + 1)), side, side)

    warp = np.eye(3)
    if options.rotate:
        warp = _rotation(math.radians(rng.uniform(-options.rotate, options.rotate))) @ warp
    if options.shear:
        warp = _matrix(x_by_y=math.tan(math.radians(rng.uniform(-options.shear, options.shear)))) @ warp
    if options.perspective:
        warp = _matrix(*rng.uniform(-options.perspective, options.perspective, 2)) @ warp
    for name, magnitude in ops:
        # At magnitude 10, as X-VLM has them: shear 0.3, rotation 30 degrees, shift 10 pixels; a shift is scaled from
        # the released 384 pixels.
        if name == "shear_x":
            warp = _matrix(x_by_y=0.3 * magnitude) @ warp
        elif name == "shear_y":
            warp = _matrix(y_by_x=0.3 * magnitude) @ warp
        elif name == "translate_x":
            warp = _matrix(shift_x=20 / 384 * magnitude) @ warp
        elif name == "translate_y":
            warp = _matrix(shift_y=20 / 384 * magnitude) @ warp
        elif name == "rotate":
            warp = _rotation(math.radians(30 * magnitude)) @ warp
    if np.array_equal(warp, np.eye(3)):
        return Geometry(crop, place, flipped, None)
    # The matrices above are in coordinates from -1 to 1 around the middle; pixels are not.
    half = size / 2
    pixels = np.array([[half, 0, half], [0, half, half], [0, 0, 1]])
    return Geometry(crop, place, flipped, pixels @ warp @ np.linalg.inv(pixels))


def _pick_crop(
    width: int, height: int, scale: Range, ratio: Range, rng: np.random.Generator
) -> tuple[int, int, int, int]:
    """torchvision's RandomResizedCrop: ten tries, then the largest crop from the middle whose ratio is allowed."""
    log_ratio = (math.log(ratio[0]), math.log(ratio[1]))
    for _ in range(10):
        area = width * height * rng.uniform(*scale)
        aspect = math.exp(rng.uniform(*log_ratio))
        w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < w <= width and 0 < h <= height:
            return int(rng.integers(width - w + 1)), int(rng.integers(height - h + 1)), w, h
    aspect = min(max(width / height, ratio[0]), ratio[1])
    w, h = min(width, max(1, round(height * aspect))), min(height, max(1, round(width / aspect)))
    return (width - w) // 2, (height - h) // 2, w, h


def _matrix(
    x_fall: float = 0.0,
    y_fall: float = 0.0,
    *,
    x_by_y: float = 0.0,
    y_by_x: float = 0.0,
    shift_x: float = 0.0,
    shift_y: float = 0.0,
) -> np.ndarray:
    return np.array([[1.0, x_by_y, shift_x], [y_by_x, 1.0, shift_y], [x_fall, y_fall, 1.0]])


def _rotation(angle: float) -> np.ndarray:
    cos, sin = math.cos(angle), math.sin(angle)
    return np.array([[cos, -sin, 0.0], [sin, cos, 0.0], [0.0, 0.0, 1.0]])


def _place(image: Image.Image, geometry: Geometry, background: str, size: int, rng: np.random.Generator) -> Image.Image:
    """The picture as RGB (size, size), cropped, resized, mirrored, warped, on its background."""
    left, top, width, height = geometry.crop
    x, y, side, _ = geometry.place
    piece = image if geometry.crop == (0, 0, *image.size) else image.crop((left, top, left + width, top + height))
    has_holes = image.mode == "RGBA" or side < size or geometry.warp is not None
    # Premultiplied alpha: transparent pixels must not bleed their hidden colour into the edges.
    piece = piece.convert("RGBA").convert("RGBa") if has_holes else piece.convert("RGB")
    piece = _resize(piece, side, side)
    if geometry.flipped:
        piece = piece.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    if not has_holes:
        return piece
    if side < size:
        canvas = Image.new("RGBa", (size, size))
        canvas.paste(piece, (x, y))
        piece = canvas
    if geometry.warp is not None:
        inverse = np.linalg.inv(geometry.warp)
        terms = (inverse / inverse[2, 2]).ravel()[:8].tolist()
        if terms[6] == terms[7] == 0.0:
            piece = piece.transform((size, size), Image.Transform.AFFINE, terms[:6], Image.Resampling.BILINEAR)
        else:
            piece = piece.transform((size, size), Image.Transform.PERSPECTIVE, terms, Image.Resampling.BILINEAR)
    ground = Image.new("RGB", (size, size), "white") if background == "white" else _random_ground(piece, rng)
    piece = piece.convert("RGBA")
    ground.paste(piece, mask=piece)
    return ground


def _resize(image: Image.Image, width: int, height: int) -> Image.Image:
    """Bicubic with antialias; on uint8, torch gives PIL's values to within one level."""
    if image.size == (width, height):
        return image
    pixels = _resize_pixels(_pixels(image), width, height)
    return Image.fromarray(pixels.permute(1, 2, 0).numpy(), mode=image.mode)


def _resize_pixels(pixels: Tensor, width: int, height: int) -> Tensor:
    """uint8 (C, H, W) at another size."""
    if pixels.shape[1:] == (height, width):
        return pixels
    return F.interpolate(pixels[None], (height, width), mode="bicubic", antialias=True)[0]


def _pixels(image: Image.Image) -> Tensor:
    """A picture of several bands as uint8 (C, H, W), in the order of bytes that it has."""
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)


def _random_ground(picture: Image.Image, rng: np.random.Generator) -> Image.Image:
    """White, one colour, or a smooth blend of 2x2 to 4x4 colours, none of them close to the mean colour of the
    picture on it.
    """
    kind = rng.random()
    if kind < WHITE_SHARE:
        return Image.new("RGB", picture.size, "white")
    num_colours = 1 if kind < (1 + WHITE_SHARE) / 2 else int(rng.integers(2, 5))
    colours = rng.integers(256, size=(num_colours, num_colours, 3))
    *mean, opacity = _mean_colour(picture)
    # A black drawing on black would be a picture of nothing.
    too_close = np.abs(colours - np.array(mean) * 255 / max(1.0, opacity)).max(-1) < 64
    colours[too_close] = (colours[too_close] + 128) % 256
    return Image.fromarray(colours.astype(np.uint8)).resize(picture.size, Image.Resampling.BILINEAR)


def _mean_colour(picture: Image.Image) -> np.ndarray:
    return np.array(picture.resize((1, 1), Image.Resampling.BOX).getpixel((0, 0)), dtype=np.float64)


def _move_boxes(boxes: Sequence[Sequence[float]] | np.ndarray, geometry: Geometry, size: int) -> np.ndarray:
    boxes = np.asarray(boxes, dtype=np.float64).reshape(-1, 4)
    if not len(boxes):
        return boxes
    left, top, width, height = geometry.crop
    x, y, side, _ = geometry.place
    xs = x + (boxes[:, [0, 2, 2, 0]] - left) * side / width  # (N, 4 corners)
    ys = y + (boxes[:, [1, 1, 3, 3]] - top) * side / height
    if geometry.flipped:
        xs = 2 * x + side - xs
    # What the crop cuts off never reaches the canvas, even where a padded place leaves room for it.
    whole = _area(_bounds(xs, ys))
    xs, ys = xs.clip(x, x + side), ys.clip(y, y + side)
    kept = _area(_bounds(xs, ys)) / np.maximum(whole, 1e-9)
    if geometry.warp is not None:
        corners = np.stack([xs, ys, np.ones_like(xs)], axis=-1) @ geometry.warp.T
        xs, ys = corners[..., 0] / corners[..., 2], corners[..., 1] / corners[..., 2]
    warped = _bounds(xs, ys)
    moved = warped.clip(0, size)
    kept *= _area(moved) / np.maximum(_area(warped), 1e-9)
    moved[kept < MIN_VISIBLE] = np.nan
    return moved


def _only_visible(whole: np.ndarray, kept: np.ndarray) -> np.ndarray:
    """The boxes `kept`, what is left of those in `whole`; NaN where that is less than `MIN_VISIBLE`."""
    kept[_area(kept) < MIN_VISIBLE * np.maximum(_area(whole), 1e-9)] = np.nan
    return kept


def _bounds(xs: np.ndarray, ys: np.ndarray) -> np.ndarray:
    return np.stack([xs.min(1), ys.min(1), xs.max(1), ys.max(1)], axis=1)


def _area(boxes: np.ndarray) -> np.ndarray:
    return (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])


# --- colours


def _pick_colours(
    picture: Image.Image, options: ImageOptions, ops: list[tuple[str, float]], rng: np.random.Generator
) -> np.ndarray | None:
    """All linear colour changes as one 3x4 matrix on RGB of 0 to 255; None when there are none.

    Brightness, contrast, saturation and hue commute as long as nothing clips, so their order does not matter; unlike
    torchvision, which clips after each, this clips once.
    """
    matrix = np.eye(3, 4)
    brightness, contrast, saturation = options.color_jitter
    if any(options.color_jitter):
        factors = 1 + rng.uniform(-1, 1, 3) * (brightness, contrast, saturation)
        matrix *= factors[0]
        if contrast:
            grey = LUMA @ matrix[:, :3] @ _mean_colour(picture)
            matrix *= factors[1]
            matrix[:, 3] += (1 - factors[1]) * grey
        matrix = (factors[2] * np.eye(3) + (1 - factors[2]) * LUMA) @ matrix
    if options.hue:
        # A rotation of the chroma plane of YIQ: linear, and it keeps luma, which torchvision's turn in HSV does not.
        turn = _rotation(2 * math.pi * rng.uniform(-options.hue, options.hue))[:2, :2]
        matrix = YIQ_TO_RGB @ np.block([[np.eye(1), np.zeros((1, 2))], [np.zeros((2, 1)), turn]]) @ RGB_TO_YIQ @ matrix
    for name, magnitude in ops:
        if name == "brightness":
            matrix *= 0.1 + 1.8 * abs(magnitude)
    if options.grayscale and rng.random() < options.grayscale:
        matrix = np.tile(LUMA, (3, 1)) @ matrix
    if options.invert and rng.random() < options.invert:
        matrix = -matrix
        matrix[:, 3] += 255
    return None if np.array_equal(matrix, np.eye(3, 4)) else matrix


def _recolour(picture: Image.Image, matrix: np.ndarray | None) -> Image.Image:
    return picture if matrix is None else picture.convert("RGB", matrix=tuple(matrix.ravel().tolist()))


def _rand_augment_filter(picture: Image.Image, name: str, magnitude: float) -> Image.Image:
    """The operations of RandAugment that are neither a warp nor linear."""
    if name == "autocontrast":
        return ImageOps.autocontrast(picture)
    if name == "equalize":
        return ImageOps.equalize(picture)
    if name == "sharpness":
        return ImageEnhance.Sharpness(picture).enhance(0.1 + 1.8 * abs(magnitude))
    return picture


def _stylize(picture: Image.Image, rng: np.random.Generator) -> Image.Image:
    style = STYLES[int(rng.integers(len(STYLES)))]
    if style == "posterize":
        return ImageOps.posterize(picture, int(rng.integers(2, 5)))
    if style == "solarize":
        return ImageOps.solarize(picture, int(rng.integers(64, 224)))
    return picture.filter(ImageFilter.CONTOUR if style == "contour" else ImageFilter.EMBOSS)


def _outline(picture: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Flat colours, and dark strokes where they change: 1 to 2 pixels a side of 64, thicker on larger pictures."""
    flat = picture.quantize(int(rng.integers(4, 17)), method=Image.Quantize.FASTOCTREE).convert("RGB")
    light = picture.convert("L")
    edges = ImageChops.difference(light.filter(ImageFilter.MaxFilter(3)), light.filter(ImageFilter.MinFilter(3)))
    threshold = int(rng.integers(16, 80))
    strokes = edges.point([255 * (value > threshold) for value in range(256)])
    for _ in range(int(rng.integers(2)) + max(0, picture.width // 64 - 1)):
        strokes = strokes.filter(ImageFilter.MaxFilter(3))
    flat.paste(tuple(rng.integers(48, size=3).tolist()), mask=strokes)
    return flat


def _erase(picture: Image.Image, rng: np.random.Generator) -> Image.Image:
    width, height = picture.size
    area, aspect = width * height * rng.uniform(0.02, 0.25), math.exp(rng.uniform(math.log(0.3), math.log(3.3)))
    w, h = min(width, max(1, round(math.sqrt(area * aspect)))), min(height, max(1, round(math.sqrt(area / aspect))))
    left, top = int(rng.integers(width - w + 1)), int(rng.integers(height - h + 1))
    erased = picture.copy()
    erased.paste(tuple(rng.integers(256, size=3).tolist()), (left, top, left + w, top + h))
    return erased


def _to_tensor(picture: Image.Image) -> Tensor:
    return _pixels(picture).contiguous()
