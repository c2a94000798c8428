"""Which part of an image a model sees, and at which size: plain arithmetic, which needs no torch."""

from evle.transforms.image_config import Framing


def seen_region(size: tuple[int, int], framing: Framing) -> tuple[int, int, int, int]:
    """Left, top, right, bottom of what a model sees of an image of `size` (width, height). With "pad" the region is
    larger than the image.

    >>> [seen_region((40, 20), framing) for framing in ("whole", "pad", "centre")]
    [(0, 0, 40, 20), (0, -10, 40, 30), (10, 0, 30, 20)]
    """
    width, height = size
    if framing == "whole":
        return 0, 0, width, height
    side = max(size) if framing == "pad" else min(size)
    left, top = (width - side) // 2, (height - side) // 2
    return left, top, left + side, top + side


def test_geometry(source: tuple[int, int], size: int, framing: Framing) -> tuple[int, int, int, int]:
    """The width and height to which an image is resized at test, and where in them the square of `size` begins."""
    if framing != "centre":
        return size, size, 0, 0
    short = min(source)
    width, height = (size * side // short for side in source)
    return width, height, (width - size) // 2, (height - size) // 2


test_geometry.__test__ = False  # type: ignore[attr-defined]  # pytest would take it for a test
