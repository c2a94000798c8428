"""Draw scenes: light backgrounds with a texture, and anti-aliased shapes in several patterns at whole pixels."""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from PIL import Image, ImageDraw

from evle.data.synthetic.language import Scene, Thing

OVERSAMPLING = 4

COLOURS = {
    "red": (216, 38, 38),
    "orange": (245, 136, 20),
    "yellow": (238, 208, 20),
    "green": (44, 150, 60),
    "cyan": (36, 190, 206),
    "blue": (38, 84, 214),
    "purple": (128, 52, 172),
    "pink": (244, 120, 180),
    "brown": (122, 74, 38),
    "black": (28, 28, 32),
}
"""The colours of shapes, all of them distinct on the light backgrounds."""

PATTERNS = ("plain", "striped", "half-filled", "checked", "hollow")

GROUNDS = ((255, 255, 255), (236, 236, 240), (246, 240, 226), (226, 236, 244), (230, 240, 228), (244, 230, 234))
"""Tones of the background: white, grey, cream, and pale blue, green and rose."""


def _star(points: int, inner: float) -> list[tuple[float, float]]:
    angles = np.pi * np.arange(2 * points) / points - np.pi / 2
    radii = np.where(np.arange(2 * points) % 2 == 0, 1.0, inner)
    return [(float(r * np.cos(angle)), float(r * np.sin(angle))) for r, angle in zip(radii, angles)]


def _heart() -> list[tuple[float, float]]:
    t = np.linspace(0, 2 * np.pi, 48, endpoint=False)
    x = 16 * np.sin(t) ** 3
    y = -(13 * np.cos(t) - 5 * np.cos(2 * t) - 2 * np.cos(3 * t) - np.cos(4 * t))
    return [(float(a / 17), float((b - 2.5) / 17)) for a, b in zip(x, y)]


def _round(
    start: float, end: float, radius: float = 1.0, centre: tuple[float, float] = (0.0, 0.0), steps: int = 36
) -> list[tuple[float, float]]:
    angles = np.linspace(start, end, steps)
    return [(centre[0] + radius * float(np.cos(angle)), centre[1] + radius * float(np.sin(angle))) for angle in angles]


def _moon() -> list[tuple[float, float]]:
    # The outer arc about the origin, and back along a circle shifted to the right; the points are where the circles
    # meet.
    shift, radius = 0.55, 0.82
    x = (1 - radius**2 + shift**2) / (2 * shift)
    angle = float(np.arccos(x))
    inner = float(np.arctan2(np.sin(angle), x - shift))
    outline = _round(angle, 2 * np.pi - angle) + _round(2 * np.pi - inner, inner, radius, (shift, 0.0))
    return [(px + 0.22, py) for px, py in outline]


def _drop() -> list[tuple[float, float]]:
    return [(0.0, -1.0), *_round(-0.45, np.pi + 0.45, 0.66, (0.0, 0.34))]


SHAPES: dict[str, list[tuple[float, float]]] = {
    "circle": _round(0, 2 * np.pi, 0.96),
    "square": [(-0.84, -0.84), (0.84, -0.84), (0.84, 0.84), (-0.84, 0.84)],
    "triangle": [(0, -0.95), (0.98, 0.8), (-0.98, 0.8)],
    "star": _star(5, 0.46),
    "heart": _heart(),
    "cross": [
        (-0.34, -0.96), (0.34, -0.96), (0.34, -0.34), (0.96, -0.34), (0.96, 0.34), (0.34, 0.34),
        (0.34, 0.96), (-0.34, 0.96), (-0.34, 0.34), (-0.96, 0.34), (-0.96, -0.34), (-0.34, -0.34),
    ],
    "diamond": [(0, -1.0), (0.66, 0), (0, 1.0), (-0.66, 0)],
    "moon": _moon(),
    "arrow": [(-0.95, -0.3), (0.1, -0.3), (0.1, -0.85), (0.98, 0), (0.1, 0.85), (0.1, 0.3), (-0.95, 0.3)],
    "drop": _drop(),
}  # fmt: skip
"""Outlines of the shapes in a square from -1 to 1."""

TILTS = (-12, -6, 0, 6, 12)
"""Rotations of shapes in degrees, so that no edge is always vertical."""


def _outline(kind: str, pixels: int, tilt: float, scale: float) -> list[tuple[float, float]]:
    angle, half = np.deg2rad(tilt), pixels / 2
    cos, sin = float(np.cos(angle)) * scale * half, float(np.sin(angle)) * scale * half
    return [(half + x * cos - y * sin, half + x * sin + y * cos) for x, y in SHAPES[kind]]


@lru_cache(maxsize=4096)
def shape_masks(kind: str, pattern: str, pixels: int, tilt: int) -> tuple[Image.Image, Image.Image]:
    """Two masks (mode L, `pixels` wide) of a shape: where it has its colour, and where its pattern is white."""
    wide = pixels * OVERSAMPLING
    whole = Image.new("L", (wide, wide))
    ImageDraw.Draw(whole).polygon(_outline(kind, wide, tilt, 0.97), fill=255)
    gaps = np.zeros((wide, wide), dtype=bool)
    if pattern != "plain":
        # the part within the edge: the shape shrunk by shifting it about, which keeps the edge as wide everywhere
        edge = max(OVERSAMPLING, round(wide * (0.095 if pattern == "hollow" else 0.045)))
        solid = np.pad(np.asarray(whole) > 0, edge)
        inside = np.ones((wide, wide), dtype=bool)
        for turn in range(8):
            dx, dy = round(edge * np.cos(np.pi * turn / 4)), round(edge * np.sin(np.pi * turn / 4))
            inside &= solid[edge + dy : edge + dy + wide, edge + dx : edge + dx + wide]
        rows, columns = np.mgrid[0:wide, 0:wide] / wide
        if pattern == "striped":
            along = columns if kind == "arrow" else rows  # stripes along its shaft would not show
            holes = (along * 3.5) % 1 < 0.5
        elif pattern == "checked":
            holes = (np.floor(rows * 4) + np.floor(columns * 4)) % 2 == 0
        elif pattern == "half-filled":
            holes = rows < np.median(rows[np.asarray(whole) > 0])
        else:
            holes = np.ones_like(inside)
        gaps = inside & holes
    ink = Image.fromarray(np.where(gaps, 0, np.asarray(whole)).astype(np.uint8))
    white = Image.fromarray((gaps * 255).astype(np.uint8))
    return ink.reduce(OVERSAMPLING), white.reduce(OVERSAMPLING)


def ground(seed: int, pixels: int) -> Image.Image:
    """A light background in one of the tones: plain, or with a gradient, blotches, grain or fine lines."""
    rng = np.random.Generator(np.random.PCG64(seed))
    tone = np.array(GROUNDS[int(rng.integers(len(GROUNDS)))], dtype=np.float32) - float(rng.integers(0, 12))
    texture = int(rng.integers(5))
    if texture == 0:
        return Image.new("RGB", (pixels, pixels), tuple(int(each) for each in tone))
    if texture == 1:
        slope = rng.uniform(-12, 12, 2).astype(np.float32)
        shade = np.add.outer(np.linspace(-1, 1, pixels) * slope[0], np.linspace(-1, 1, pixels) * slope[1])
    elif texture == 2:
        coarse = Image.fromarray(rng.normal(0, 9, (6, 6)).astype(np.float32))
        shade = np.asarray(coarse.resize((pixels, pixels), Image.Resampling.BICUBIC))
    elif texture == 3:
        shade = rng.normal(0, 6, (pixels, pixels)).astype(np.float32)
    else:
        period = float(rng.uniform(0.05, 0.12)) * pixels
        wave = (6 * np.sin(2 * np.pi * np.arange(pixels) / period)).astype(np.float32)
        shade = np.broadcast_to(wave[:, None] if rng.random() < 0.5 else wave[None, :], (pixels, pixels))
    return Image.fromarray((tone + shade[:, :, None]).clip(0, 255).astype(np.uint8))


def _stamp(thing: Thing, pattern: str, pixels: int) -> tuple[Image.Image, Image.Image, int, int]:
    """The masks of a thing, drawn in a pattern, and their position (left, upper) in pixels."""
    wide = max(6, round(thing.diameter * pixels))
    ink, white = shape_masks(thing.traits.kind, pattern, wide, TILTS[thing.look % len(TILTS)])
    return ink, white, round(thing.x * pixels - wide / 2), round(thing.y * pixels - wide / 2)


@dataclass(frozen=True, slots=True)
class ShapeDrawing:
    """A scene of drawn shapes, `pixels` wide and high, drawn when needed."""

    scene: Scene
    pixels: int

    def draw(self) -> Image.Image:
        """The image, mode RGB."""
        canvas = ground(self.scene.ground, self.pixels)
        for thing in self.scene.things:
            ink, white, left, upper = _stamp(thing, thing.traits.pattern or "plain", self.pixels)
            # the same colour in slightly different shades: up to 14 of 255 in each channel
            shades = [(thing.look >> (8 * channel)) % 29 - 14 for channel in range(3)]
            colour = tuple(max(0, min(255, c + s)) for c, s in zip(COLOURS[thing.traits.colour], shades))
            canvas.paste(colour, (left, upper), ink)
            if thing.traits.pattern not in ("", "plain", "hollow"):
                canvas.paste((255, 255, 255), (left, upper), white)
        return canvas

    def extents(self) -> list[tuple[int, int, int, int]]:
        """The pixels (left, upper, right, lower) that each thing covers, in the order of the scene."""
        boxes = []
        for thing in self.scene.things:
            ink, _, left, upper = _stamp(thing, "plain", self.pixels)  # every pattern keeps the edge
            box = ink.getbbox()
            assert box is not None, "a shape has pixels"
            boxes.append((left + box[0], upper + box[1], left + box[2], upper + box[3]))
        return boxes
