"""Images of extreme proportions: every framing gives the right view, in bounded memory."""

import resource
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from evle.proportions import LARGEST_PADDED, THINNEST
from evle.transforms.image import test_image as view_at_test
from evle.transforms.image import train_image
from evle.transforms.image_config import ImageConfig

LIMIT = 3 << 30
"""Bytes of address space beyond what the process has when it begins; the squares themselves would take 10 GB."""

SCRIPT = """
import resource, sys
import numpy as np
from PIL import Image
from evle.transforms.image import test_image, train_image
from evle.transforms.image_config import ImageConfig
from evle.models.vle import VLEProcessor
from vle_folders import tokenizer
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + int(sys.argv[1]),) * 2)
for size in ((1, 60_000), (60_000, 1), (3, 40_000)):
    image = Image.new("RGB", size, "red")
    for framing in ("whole", "pad", "centre"):
        test_image(image, 224, framing=framing)
        train_image(image, ImageConfig(framing=framing), 224, np.random.default_rng(0), [(0, 0, 1, 1)])
    VLEProcessor.for_size(224, tokenizer())(images=image)
"""


def gradient(width, height):
    """Brightness grows along the longer side."""
    line = np.linspace(0, 255, max(width, height)).astype(np.uint8)
    values = np.broadcast_to(line[None] if width > height else line[:, None], (height, width))
    return Image.fromarray(np.stack([values] * 3, axis=-1).copy())


@pytest.mark.parametrize("size", [(THINNEST + 31, 1), (1, THINNEST + 30), (2 * THINNEST + 41, 2)])
def test_the_middle_of_a_thin_image_is_what_the_whole_resized_image_shows_there(size):
    image = gradient(*size)
    short = min(size)
    resized = image.resize(tuple(16 * side // short for side in size), Image.Resampling.BICUBIC)
    left, top = ((side - 16) // 2 for side in resized.size)
    expected = torch.from_numpy(np.array(resized.crop((left, top, left + 16, top + 16)))).permute(2, 0, 1)
    difference = (view_at_test(image, 16, framing="centre").int() - expected.int()).abs()
    assert difference.max() <= 2


def test_boxes_follow_an_image_that_is_made_smaller_before_padding():
    size = (3 * LARGEST_PADDED, 8)
    options = ImageConfig(framing="pad", scale=(1, 1), flip=0.0)
    _, boxes = train_image(gradient(*size), options, 100, np.random.default_rng(0), [(0, 0, size[0] / 2, 8)])
    assert boxes[0, [0, 2]].tolist() == pytest.approx([0, 50], abs=0.1)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_no_framing_of_a_thin_image_needs_more_than_three_gigabytes():
    done = subprocess.run([sys.executable, "-c", SCRIPT, str(LIMIT)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-500:]
    assert resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss > 0
