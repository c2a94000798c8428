"""Open an image, whatever its source and form, as plain RGB: camera, browser and scanner files made uniform."""

import io
import os
import stat
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from PIL import Image, UnidentifiedImageError

from evle.data.custom.image_folder import file_like
from evle.data.formats.image_files import gap_of_zeros, without_long_texts
from evle.data.formats.text_files import compression_of, open_plain_file
from evle.data.samples import Drawing, ImageSource, Stored
from evle.errors import DataError, SampleError
from evle.pixels import is_of_12_bits, plain

MAX_PIXELS = 120_000_000
"""The largest image decoded by default. Decoding needs at most 14 bytes per pixel, 1.7 GB for such an image."""
MAX_FILE_BYTES = 512 << 20
"""A larger image file is not read."""

# Pillow warns at half of its own limit; open_image has one limit, and an error that names the cure.
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)
# Damaged EXIF and odd palettes say nothing about the pixels. Pillow would print a warning in each process.
warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.")

_DARK = 16  # of 255: the largest that 12-bit values become when they are read as 16 bits
_opening = threading.Lock()


def open_image(
    source: ImageSource, *, keep_alpha: bool = False, max_pixels: int = MAX_PIXELS, size_hint: int | None = None
) -> Image.Image:
    """The image of `source` (a path, encoded bytes, a `Stored` or PIL image, or a `Drawing`), decoded.

    Returns mode RGB; mode RGBA when `keep_alpha` and some pixel is not opaque. EXIF rotation is applied, transparent
    parts are laid on white, 16-bit and float images are scaled to 8 bits, of an animation the first frame is taken
    (of a PIL image the current one). With `size_hint` a JPEG may come out smaller than its file, by a power of two,
    both sides still at least `size_hint` pixels: it is decoded several times faster (boxes in pixels of the file then
    no longer fit). The source is not changed.

    Raises SampleError, naming the source and the cure, for what is missing, empty, truncated, not an image, not an
    ordinary file, or above `max_pixels`.

    >>> open_image(Image.new("CMYK", (4, 2))).mode
    'RGB'
    """
    name = describe_source(source)
    try:
        opened = _open(source, max_pixels)
        if opened.format == "EPS":  # Pillow would run Ghostscript, a whole interpreter, on a file of unknown origin
            raise SampleError(f"{name}: PostScript is not read; convert it to PNG")
        if size_hint is not None and not isinstance(source, Image.Image):
            opened.draft(None, (size_hint, size_hint))
        width, height = opened.size
        if width * height > max_pixels:
            raise SampleError(
                f"{name}: {width} x {height} pixels are more than the limit of {max_pixels:,}; make the image "
                "smaller or raise max_pixels"
            )
        return plain(opened, keep_alpha)
    except SampleError:
        raise
    except DataError as error:  # a pipe, a device, or what cannot be opened
        raise SampleError(str(error)) from None
    except FileNotFoundError:
        if "://" in name or ":/" in name[:7]:
            raise SampleError(f"{name}: is a URL; download the image first and give its path") from None
        if isinstance(source, str | os.PathLike) and (similar := file_like(source)):
            raise SampleError(f"{name}: no such file, but there is {similar}; correct the name") from None
        raise SampleError(f"{name}: no such file; check its name and folder") from None
    except IsADirectoryError:
        raise SampleError(f"{name}: is a folder, not an image") from None
    except PermissionError:
        raise SampleError(f"{name}: may not be read; change its permissions") from None
    except UnidentifiedImageError:
        raise SampleError(f"{name}: {_what_instead(source)}") from None
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise SampleError(f"{name}: more pixels than the limit ({error}); make the image smaller") from None
    except MemoryError:
        raise SampleError(f"{name}: there is not enough memory to decode it; make the image smaller") from None
    except Exception as error:  # a decoder can raise anything on damaged bytes: struct.error, zlib.error, IndexError
        reason = " ".join(str(error).split()) or type(error).__name__
        raise SampleError(f"{name}: damaged image ({reason}); replace the file or leave it out") from error


def describe_source(source: ImageSource) -> str:
    """How an error names a source: its path, or what it is."""
    if isinstance(source, bytes | bytearray | memoryview):
        return f"image of {len(source)} bytes"
    if isinstance(source, Image.Image):
        return getattr(source, "filename", "") or f"image in memory ({source.mode}, {source.width} x {source.height})"
    if isinstance(source, str | os.PathLike):
        return os.fspath(source)
    if isinstance(source, Stored):
        return str(source)
    return type(source).__name__


def _open(source: ImageSource, max_pixels: int) -> Image.Image:
    if isinstance(source, Image.Image):
        return source
    if isinstance(source, Drawing):
        return source.draw()
    encoded = _content(source)
    if gap := gap_of_zeros(encoded):
        raise SampleError(f"{describe_source(source)}: {gap}; fetch it again")
    content = io.BytesIO(without_long_texts(encoded))
    try:
        return Image.open(content)
    except Image.DecompressionBombError:  # above Pillow's own limit, and perhaps below ours
        content.seek(0)
        with _without_pillows_limit():
            return Image.open(content)


@contextmanager
def _without_pillows_limit() -> Iterator[None]:
    """Pillow's limit is one variable for the whole process: it is off only while a header is being read."""
    with _opening:
        limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
        try:
            yield
        finally:
            Image.MAX_IMAGE_PIXELS = limit


def _content(source: Any) -> bytes:
    """The encoded image. A path must be of an ordinary file: a pipe would be waited for, a device read for ever."""
    if isinstance(source, bytes | bytearray | memoryview):
        return bytes(source)
    if isinstance(source, Stored):
        return source.read()
    if not isinstance(source, str | os.PathLike):
        raise SampleError(
            f"{type(source).__name__} is no image; give a path, bytes, a PIL image or an object with draw()"
        )
    if stat.S_ISDIR(os.stat(source).st_mode):
        raise IsADirectoryError
    with open_plain_file(source) as file:
        size = os.fstat(file.fileno()).st_size
        if size > MAX_FILE_BYTES:
            raise SampleError(
                f"{os.fspath(source)}: {size >> 20:,} MB are more than the limit of {MAX_FILE_BYTES >> 20} MB for an "
                "image file; make the image smaller"
            )
        return file.read()


def odd_values(source: ImageSource, image: Image.Image) -> str:
    """Why `image`, as `open_image` read it from `source`, may not look as it is meant to; empty for most images.

    Of an image of 16 or 32 bits or floats, values below 0 are black, and so are nearly all values of an image that uses
    a small part of its range, such as 12 bits in a file of 16.
    """
    extrema: Any = image.getextrema()
    is_dark = max(high for _, high in extrema) <= _DARK
    is_grey = len({*extrema}) == 1 and extrema[0][0] == 0
    if not (is_dark or is_grey):
        return ""
    opened = _open(source, image.width * image.height)
    tile = getattr(opened, "tile", None)
    if opened.mode.startswith("I") or opened.mode == "F":
        values = np.asarray(opened)
        values = values[np.isfinite(values)] if opened.mode == "F" else values
        low, most = float(values.min(initial=0.0)), float(values.max(initial=0.0))
        if low < 0:
            return f"holds values below 0, down to {low:g}, which become black; move them up, or save it with 8 bits"
        if (opened.mode == "I" and most <= 255) or is_of_12_bits(opened):
            most = 0.0  # read as these bits, and black indeed
    elif tile and ";16" in str(tile[0][3]):  # colours, of which Pillow keeps the upper 8 bits
        most = 256.0 * max(high for _, high in extrema)
    else:
        return ""
    bits = next((bits for bits in (8, 10, 12) if 0 < most < 2**bits), 0)
    if not is_dark or not bits:
        return ""
    if opened.mode == "F" and most < 256:
        return f"all values are at most {most:g}, so that it is nearly black; scale them to 0 to 1 or 0 to 255"
    return (
        f"all values are below {2**bits}: it looks like {bits}-bit data in a 16-bit file, and is nearly black; "
        f"multiply its values by {2 ** (16 - bits)}, or save it with 8 bits"
    )


def _what_instead(source: ImageSource) -> str:
    """What a file that is no image is, from its first bytes."""
    start = _content(source)[:64]
    if not start:
        return "is empty (0 bytes); fetch it again or leave it out"
    if start.lstrip().lower().startswith((b"<!doctype", b"<html", b"<?xml", b"<svg")):
        return "is a web page or SVG text, not an image; fetch it again or leave it out"
    if start.startswith(b"version https://git-lfs"):
        return "is a Git LFS pointer, not the image it points to; run 'git lfs pull'"
    if start[4:8] == b"ftyp" and start[8:12] in (b"heic", b"heix", b"hevc", b"mif1", b"msf1", b"heim"):
        return "is a HEIC image, which is not read; convert it to JPEG"
    if kind := compression_of(start):
        return f"is a compressed file ({kind}), not an image; unpack it"
    return f"is no image that Pillow can read (it starts with {start[:8]!r}); convert it to PNG or leave it out"
