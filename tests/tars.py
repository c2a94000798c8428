"""Tars as img2dataset writes them, made by tests."""

import io
import json
import tarfile

import numpy as np
from PIL import Image


def encoded(seed=0, size=(20, 16), format="JPEG"):
    """A small image as bytes of its own."""
    pixels = np.random.default_rng(seed).integers(256, size=(*size[::-1], 3), dtype=np.uint8)
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, format)
    return stream.getvalue()


def write_tar(path, members, format=tarfile.USTAR_FORMAT):
    """(name, bytes, text or JSON object) in this order."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", format=format) as tar:
        for name, content in members:
            if isinstance(content, dict):
                content = json.dumps(content)
            content = content.encode() if isinstance(content, str) else content
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


def caption_members(*numbers, extension="jpg"):
    """The three members of each sample, as img2dataset has them."""
    return [
        member
        for number in numbers
        for member in (
            (f"{number:09d}.{extension}", encoded(number)),
            (f"{number:09d}.json", {"caption": f"image {number}", "key": f"{number:09d}", "status": "success"}),
            (f"{number:09d}.txt", f"image {number}"),
        )
    ]
