"""Images of requests: bytes and nothing else, checked before they are decoded."""

import base64
import binascii
import io
import re
import warnings

from PIL import Image

from evle.server.limits import Limits

DATA_URL = re.compile(r"data:image/[\w.+-]+;base64,")
ADDRESS = re.compile(r"\s*([A-Za-z][\w+.-]*:|/|\.{1,2}/|~)")


def image_bytes(value: object, limits: Limits) -> bytes:
    """The encoded image of a base64 string or data URL, or of a file's bytes. Raises ValueError with the reason."""
    if isinstance(value, bytes):
        data = value
    elif isinstance(value, str):
        data = _decoded(value)
    else:
        raise ValueError("an image is a base64 string, or a file of a form")
    if not data:
        raise ValueError("the image is empty (0 bytes); send its bytes as base64, or as a file of a form")
    check_size(data, limits)
    return data


def _decoded(value: str) -> bytes:
    text = value[start.end() :] if (start := DATA_URL.match(value)) else value
    try:
        return base64.b64decode("".join(text.split()), validate=True)  # programs break its lines
    except (binascii.Error, ValueError):
        if not start and ADDRESS.match(value):
            raise ValueError("URLs and paths are never opened; send the image's bytes as base64") from None
        raise ValueError("not valid base64; send the image's bytes as base64") from None


def check_size(data: bytes, limits: Limits) -> None:
    """Raise ValueError for more pixels, or a thinner image, than the limits allow, by the header alone.

    Data that is no image passes here; the error of reading it describes the data.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(io.BytesIO(data)) as image:
                width, height = image.size
    except Image.DecompressionBombError:
        raise ValueError(f"the image has more than {limits.pixels:,} pixels; send a smaller one") from None
    except Exception:  # any decoder, on any bytes
        return
    if width * height > limits.pixels:
        raise ValueError(
            f"the image has {width} x {height} pixels, more than {limits.pixels:,} in all; send a smaller one"
        )
    if max(width, height) > limits.side_ratio * min(width, height):
        raise ValueError(
            f"the image has {width} x {height} pixels: one side is more than {limits.side_ratio} times the other; "
            "send a part of it"
        )
