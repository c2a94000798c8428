"""Open an image, whatever its source and form, as plain RGB: camera, browser and scanner files made uniform."""

import io
import os
import re
import warnings

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from evle.data.samples import Drawing, ImageSource, Stored
from evle.errors import SampleError

MAX_PIXELS = 180_000_000
"""The largest image decoded by default: more would need over half a gigabyte as RGB."""

# Pillow warns at half of its own limit; open_image has one limit, and an error that says what to do.
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)

URL = re.compile(r"(https?|ftp|s3|gs)://?")
_ORIENTATION = 0x0112  # the EXIF tag


def open_image(
    source: ImageSource, *, keep_alpha: bool = False, max_pixels: int = MAX_PIXELS, size_hint: int | None = None
) -> Image.Image:
    """The image of `source` (a path, encoded bytes, a `Stored` or PIL image, or a `Drawing`), decoded.

    Returns mode RGB; mode RGBA when `keep_alpha` and some pixel is not opaque. EXIF rotation is applied, transparent
    parts are laid on white, 16-bit and float images are scaled to 8 bits, of an animation the first frame is taken
    (of a PIL image the current one). With `size_hint` a JPEG may come out smaller than its file, by a power of two,
    both sides still at least `size_hint` pixels: it is decoded several times faster (boxes in pixels of the file then
    no longer fit). The source is not changed.

    Raises SampleError, naming the source and the cure, for what is missing, empty, truncated, not an image, or above
    `max_pixels`.

    >>> open_image(Image.new("CMYK", (4, 2))).mode
    'RGB'
    """
    name = describe_source(source)
    try:
        opened = _open(source)
        if opened.format == "EPS":  # Pillow would run Ghostscript, a whole interpreter, on a file of unknown origin
            raise SampleError(f"{name}: PostScript is not read; convert it to PNG")
        if size_hint is not None and not isinstance(source, Image.Image):
            opened.draft(None, (size_hint, size_hint))  # type: ignore[arg-type]
        width, height = opened.size
        if width * height > max_pixels:
            raise SampleError(
                f"{name}: {width} x {height} pixels are more than the limit of {max_pixels:,}; make the image "
                "smaller or raise max_pixels"
            )
        return _uniform(opened, keep_alpha)
    except SampleError:
        raise
    except FileNotFoundError:
        if URL.match(name):
            raise SampleError(f"{name}: is a URL; download the image first and give its path") from None
        raise SampleError(f"{name}: no such file; put the image there or remove its row") from None
    except IsADirectoryError:
        raise SampleError(f"{name}: is a folder, not an image") from None
    except PermissionError:
        raise SampleError(f"{name}: may not be read; change its permissions") from None
    except UnidentifiedImageError:
        raise SampleError(f"{name}: {_what_instead(source)}") from None
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise SampleError(f"{name}: more pixels than Pillow agrees to decode; make the image smaller") from None
    except (
        Exception
    ) as error:  # a decoder can raise anything on damaged bytes: struct.error, zlib.error, IndexError ...
        reason = " ".join(str(error).split()) or type(error).__name__
        raise SampleError(f"{name}: damaged image ({reason}); replace the file or remove its row") from error


def describe_source(source: ImageSource) -> str:
    """How an error names a source: its path, or what it is."""
    if isinstance(source, bytes):
        return f"image of {len(source)} bytes"
    if isinstance(source, Image.Image):
        return getattr(source, "filename", "") or f"image in memory ({source.mode}, {source.width} x {source.height})"
    if isinstance(source, str | os.PathLike):
        return os.fspath(source)
    if isinstance(source, Stored):
        return str(source)
    return type(source).__name__


def _open(source: ImageSource) -> Image.Image:
    if isinstance(source, Image.Image):
        return source
    if isinstance(source, bytes):
        return Image.open(io.BytesIO(source))
    if isinstance(source, str | os.PathLike):
        with open(source, "rb") as file:  # read at once: no file stays open when the image is kept undecoded
            return Image.open(io.BytesIO(file.read()))
    if isinstance(source, Stored):
        return Image.open(io.BytesIO(source.read()))
    if isinstance(source, Drawing):
        return source.draw()
    raise SampleError(f"{type(source).__name__} is no image; give a path, bytes, a PIL image or an object with draw()")


def _uniform(image: Image.Image, keep_alpha: bool) -> Image.Image:
    """RGB, or RGBA where transparency is there and kept."""
    if _orientation(image) != 1:
        image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I") or image.mode == "F":
        image = _eight_bits(image)
    if image.has_transparency_data:
        image = image.convert("RGBA")
        alpha = image.getchannel("A")
        if alpha.getextrema() != (255, 255):
            if keep_alpha:
                return image
            white = Image.new("RGB", image.size, (255, 255, 255))
            white.paste(image, mask=alpha)
            return white
    return image.convert("RGB")


def _orientation(image: Image.Image) -> int:
    try:
        return image.getexif().get(_ORIENTATION, 1)
    except Exception:  # a broken EXIF block says nothing about the rotation; the pixels are still good
        return 1


def _eight_bits(image: Image.Image) -> Image.Image:
    """A 16-bit, 32-bit or float greyscale image as mode L, scaled where Pillow's own conversion would clip.

    Integers count as 8 bits when none is above 255, as 16 bits up to 65535; floats as shares when none is above 1.
    Beyond these the largest value is white.
    """
    values = np.nan_to_num(np.asarray(image, dtype=np.float32), posinf=0.0, neginf=0.0)
    top = float(values.max(initial=0.0))
    if image.mode.startswith("I;16"):
        white = 65535.0
    else:
        steps = (1.0, 255.0, 65535.0) if image.mode == "F" else (255.0, 65535.0)
        white = next((step for step in steps if top <= step), top)
    return Image.fromarray((values.clip(0, white) * (255.0 / white) + 0.5).astype(np.uint8))


def _what_instead(source: ImageSource) -> str:
    """What a file that is no image is, from its first bytes."""
    if isinstance(source, bytes):
        start = source[:64]
    elif isinstance(source, Stored):
        start = source.read()[:64]
    else:
        with open(os.fspath(source), "rb") as file:  # type: ignore[arg-type]
            start = file.read(64)
    if not start:
        return "is empty (0 bytes); fetch it again or remove its row"
    if start.lstrip().lower().startswith((b"<!doctype", b"<html", b"<?xml", b"<svg")):
        return "is a web page or SVG text, not an image; fetch it again or remove its row"
    return f"is no image that Pillow can read (it starts with {start[:8]!r}); convert it to PNG or remove its row"
