"""Images of every form come out as plain RGB, or as one clear line that names the file and the cure."""

import io
import os
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from evle.data.formats.image_files import gap_of_zeros
from evle.data.images import MAX_PIXELS, odd_values, open_image
from evle.errors import SampleError
from evle.pixels import plain


def saved(path, image, **options):
    image.save(path, **options)
    return path


def pixel(image, position=(0, 0)):
    return image.convert("RGBA").getpixel(position)


@pytest.mark.parametrize("form", [str, lambda path: path, lambda path: path.read_bytes(), Image.open])
def test_a_image_may_be_a_path_bytes_or_in_memory(tmp_path, form):
    path = saved(tmp_path / "a.png", Image.new("RGB", (5, 3), (10, 20, 30)))
    image = open_image(form(path))
    assert (image.mode, image.size, image.getpixel((4, 2))) == ("RGB", (5, 3), (10, 20, 30))


def test_a_drawing_draws_itself():
    class Dot:
        def draw(self):
            return Image.new("L", (2, 2), 7)

    assert open_image(Dot()).getpixel((1, 1)) == (7, 7, 7)


def test_exif_rotation_is_applied(tmp_path):
    image = Image.new("RGB", (4, 2), "black")
    image.putpixel((0, 0), (255, 0, 0))
    exif = Image.Exif()
    exif[0x0112] = 6  # stored lying on its left side: turn clockwise by 90 degrees
    opened = open_image(saved(tmp_path / "turned.png", image, exif=exif))
    assert opened.size == (2, 4)
    assert opened.getpixel((1, 0)) == (255, 0, 0)


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
def test_a_broken_exif_block_does_not_lose_the_image(tmp_path):
    path = saved(tmp_path / "a.jpg", Image.new("RGB", (8, 8), "green"), exif=b"Exif\x00\x00MM\x00*\xff\xff\xff\xff\x01")
    assert open_image(path).size == (8, 8)


def test_cmyk_becomes_rgb(tmp_path):
    path = saved(tmp_path / "print.jpg", Image.new("CMYK", (8, 8), (0, 255, 255, 0)))
    red, green, blue = open_image(path).getpixel((4, 4))
    assert red > 200
    assert max(green, blue) < 60


@pytest.mark.parametrize(("mode", "name"), [("I;16", "a.png"), ("I;16", "a.tiff"), ("I", "a.tiff")])
def test_sixteen_bits_are_scaled_not_clipped(tmp_path, mode, name):
    values = np.array([[0, 257 * 100, 65535]], dtype=np.uint16 if mode == "I;16" else np.int32)
    path = saved(tmp_path / name, Image.fromarray(values))
    assert [open_image(path).getpixel((x, 0))[0] for x in range(3)] == [0, 100, 255]


def test_eight_bit_values_in_a_wide_image_stay_as_they_are():
    assert open_image(Image.fromarray(np.array([[3, 200]], dtype=np.int32))).getpixel((1, 0)) == (200, 200, 200)


def test_floats_up_to_one_are_shares():
    image = open_image(Image.fromarray(np.array([[0.0, 0.5, 1.0, np.nan]], dtype=np.float32)))
    assert [image.getpixel((x, 0))[0] for x in range(4)] == [0, 128, 255, 0]


def test_an_image_without_any_number_is_refused():
    with pytest.raises(SampleError, match=r"no pixel is a number: all are NaN or infinite"):
        open_image(Image.fromarray(np.full((2, 3), np.nan, dtype=np.float32)))


@pytest.mark.parametrize("mode", ["RGBA", "LA", "PA", "P"])
def test_transparent_parts_are_laid_on_white_or_kept(tmp_path, mode):
    picture = Image.new("RGBA", (2, 1), (0, 0, 0, 255))
    picture.putpixel((0, 0), (0, 0, 0, 0))
    if mode == "P":
        palette = Image.new("P", (2, 1))
        palette.putpalette([9, 9, 9, 0, 0, 0])
        palette.putpixel((1, 0), 1)
        path = saved(tmp_path / "a.png", palette, transparency=0)
    else:
        path = picture.convert(mode) if mode == "PA" else saved(tmp_path / "a.png", picture.convert(mode))
    assert [pixel(open_image(path), (x, 0))[:3] for x in range(2)] == [(255, 255, 255), (0, 0, 0)]
    kept = open_image(path, keep_alpha=True)
    assert kept.mode == "RGBA"
    assert [kept.getpixel((x, 0))[3] for x in range(2)] == [0, 255]


def test_an_opaque_image_is_rgb_even_when_alpha_is_kept():
    assert open_image(Image.new("RGBA", (2, 2), (1, 2, 3, 255)), keep_alpha=True).mode == "RGB"


@pytest.mark.parametrize("name", ["a.gif", "a.webp", "a.png"])
def test_of_an_animation_the_first_frame_is_taken(tmp_path, name):
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    path = saved(tmp_path / name, frames[0], save_all=True, append_images=frames[1:])
    red, _, blue = open_image(path).getpixel((4, 4))
    assert red > 200 > 60 > blue


def test_one_bit_and_grey_images_become_rgb():
    assert open_image(Image.new("1", (2, 2), 1)).getpixel((0, 0)) == (255, 255, 255)
    assert open_image(Image.new("L", (2, 2), 77)).getpixel((0, 0)) == (77, 77, 77)


def test_a_size_hint_decodes_a_large_jpeg_smaller_but_not_too_small(tmp_path):
    path = saved(tmp_path / "large.jpg", Image.new("RGB", (1600, 800), "red"))
    assert open_image(path, size_hint=100).size == (200, 100)
    assert open_image(path).size == (1600, 800)


def test_the_source_is_not_changed():
    image = Image.new("RGBA", (2, 2), (9, 9, 9, 0))
    before = image.tobytes()
    open_image(image)
    assert (image.mode, image.tobytes()) == ("RGBA", before)


def noise(size=64):
    return Image.fromarray(np.random.default_rng(0).integers(0, 255, (size, size, 3), dtype=np.uint8))


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP", "TIFF", "GIF"])
def test_a_truncated_image_is_named_with_the_cure(tmp_path, form):
    buffer = io.BytesIO()
    noise().save(buffer, form)
    path = tmp_path / "cut.img"
    path.write_bytes(buffer.getvalue()[: len(buffer.getvalue()) // 2])
    with pytest.raises(SampleError, match=r"cut\.img: .*(replace the file|leave it out)") as caught:
        open_image(path)
    assert "\n" not in str(caught.value)


def test_what_is_no_image_is_said_in_one_line_with_the_cure(tmp_path):
    (tmp_path / "empty.jpg").write_bytes(b"")
    (tmp_path / "page.jpg").write_bytes(b"<!DOCTYPE html><html>404</html>")
    (tmp_path / "text.jpg").write_bytes(b"hello world, no image")
    (tmp_path / "folder.jpg").mkdir()
    for name, words in {
        "empty.jpg": r"is empty \(0 bytes\); fetch it again",
        "page.jpg": "is a web page",
        "text.jpg": "is no image that Pillow can read .*hello",
        "folder.jpg": "is a folder",
        "missing.jpg": "no such file; check its name and folder",
    }.items():
        with pytest.raises(SampleError, match=words) as caught:
            open_image(tmp_path / name)
        assert str(caught.value).startswith(str(tmp_path / name))
    with pytest.raises(SampleError, match="image of 3 bytes"):
        open_image(b"abc")
    with pytest.raises(SampleError, match="int is no image; give a path"):
        open_image(3)


@pytest.mark.parametrize(("there", "written"), [("A.JPG", "a.jpg"), ("a.png", "a.jpg"), ("in/a.jpg", "In/a.jpg")])
def test_a_file_of_a_similar_name_is_named_where_an_image_is_missing(tmp_path, there, written):
    (tmp_path / "in").mkdir()
    file = saved(tmp_path / there, Image.new("RGB", (4, 4)))
    with pytest.raises(SampleError, match=f"{written}: no such file, but there is {file}; correct the name"):
        open_image(tmp_path / written)


@pytest.mark.parametrize("form", [str, Path])
def test_a_url_is_told_from_a_file_that_is_missing(form):
    with pytest.raises(SampleError, match=r"a\.jpg: is a URL; download the image first"):
        open_image(form("https://example.org/a.jpg"))


def test_postscript_is_not_run(tmp_path):
    with pytest.raises(SampleError, match="PostScript is not read; convert it to PNG"):
        open_image(saved(tmp_path / "a.eps", Image.new("RGB", (4, 4))))


def test_too_many_pixels_are_refused_before_decoding(tmp_path, monkeypatch):
    path = saved(tmp_path / "wide.png", Image.new("L", (100, 100)))
    with pytest.raises(
        SampleError, match=r"wide\.png: 100 x 100 pixels are more than the limit of 5,000; .*max_pixels"
    ):
        open_image(path, max_pixels=5000)


def test_max_pixels_is_the_only_limit(tmp_path, monkeypatch):
    path = saved(tmp_path / "wide.png", Image.new("L", (100, 100)))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)  # Pillow refuses what is above twice this number
    assert open_image(path, max_pixels=10_000).size == (100, 100)
    assert Image.MAX_IMAGE_PIXELS == 10
    with pytest.raises(SampleError, match=r"100 x 100 pixels are more than the limit of 9,999"):
        open_image(path, max_pixels=9_999)


def test_a_pipe_or_device_is_named_and_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe.jpg")
    with pytest.raises(SampleError, match=r"pipe\.jpg: is not an ordinary file but a named pipe"):
        open_image(tmp_path / "pipe.jpg")
    (tmp_path / "zero.jpg").symlink_to("/dev/zero")
    with pytest.raises(SampleError, match=r"zero\.jpg: is not an ordinary file but a device"):
        open_image(tmp_path / "zero.jpg")


def test_a_file_larger_than_any_image_is_not_read(tmp_path, monkeypatch):
    monkeypatch.setattr("evle.data.images.MAX_FILE_BYTES", 50)
    with pytest.raises(SampleError, match=r"a\.png: 0 MB are more than the limit of 0 MB for an image file"):
        open_image(saved(tmp_path / "a.png", Image.new("L", (100, 100))))


def jpeg(size=256, **options):
    """A JPEG without plain areas."""
    content = io.BytesIO()
    noise(size).save(content, "JPEG", **options)
    return content.getvalue()


@pytest.mark.parametrize("zeros", [16, 3000, 4000, 5000])
@pytest.mark.parametrize("options", [{}, {"optimize": True}, {"progressive": True}], ids=str)
def test_a_jpeg_that_ends_in_zeros_is_refused(zeros, options):
    with pytest.raises(SampleError, match="ends in zeros, as a file not fetched to its end; fetch it again"):
        open_image(jpeg(**options)[:-zeros] + bytes(zeros))


@pytest.mark.parametrize("zeros", [1024, 16384])
@pytest.mark.parametrize("options", [{}, {"optimize": True}], ids=str)
def test_a_jpeg_with_a_gap_of_zeros_is_refused(zeros, options):
    encoded = jpeg(512, **options)
    start = len(encoded) // 3
    with pytest.raises(SampleError, match="has a gap of zeros, as a file of which a part was not fetched; fetch it"):
        open_image(encoded[:start] + bytes(zeros) + encoded[start + zeros :])


@pytest.mark.parametrize("mode", ["RGB", "L"])
@pytest.mark.parametrize("options", [{}, {"optimize": True}, {"progressive": True}], ids=str)
def test_a_whole_jpeg_may_hold_zeros(mode, options):
    """In plain areas, whose codes may be zeros; in a thumbnail or its room; and after its end."""
    content = io.BytesIO()
    image = Image.new(mode, (3000, 1000), "white")
    image.paste("grey", (0, 0, 8, 1000))
    image.save(content, "JPEG", **options)
    plain_area = content.getvalue()
    thumbnail = b"\xff\xe1" + struct.pack(">H", 6002 + 100) + jpeg(16)[:100] + bytes(6000)
    for encoded in (plain_area, plain_area[:2] + thumbnail + plain_area[2:], plain_area + bytes(5000)):
        assert gap_of_zeros(encoded) == ""
    assert gap_of_zeros(jpeg(**options) + bytes(5000) + plain_area) == ""


def chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


LONG = zlib.compress(b"x" * (3 << 20))


@pytest.mark.parametrize(
    ("kind", "content"),
    [(b"zTXt", b"workflow\0\0" + LONG), (b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0" + LONG), (b"iCCP", b"a\0\0" + LONG),
     (b"tEXt", b"prompt\0" + b"x" * (65 << 20))],
    ids=["zTXt", "iTXt", "iCCP", "tEXt"],
)  # fmt: skip
@pytest.mark.parametrize("is_last", [False, True], ids=["before", "after"])
def test_a_png_with_a_long_text_is_read(kind, content, is_last, tmp_path):
    path = saved(tmp_path / "a.png", Image.new("RGB", (4, 4), "red"))
    encoded = path.read_bytes()
    position = encoded.index(b"IEND") - 4 if is_last else 33  # 33 bytes to the end of the header
    image = open_image(encoded[:position] + chunk(kind, content) + encoded[position:])
    assert image.getpixel((3, 3)) == (255, 0, 0)


def test_a_short_text_of_a_png_is_kept():
    content = io.BytesIO()
    image = Image.new("RGB", (4, 2))
    xmp = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><a tiff:Orientation="6"/></x:xmpmeta>'
    image.save(content, "PNG")
    encoded = content.getvalue()
    text = chunk(b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0" + zlib.compress(xmp + b" " * 5000))
    assert open_image(encoded[:33] + text + encoded[33:]).size == (2, 4)


def test_a_transparent_grey_of_16_bits_is_laid_on_white(tmp_path):
    values = np.array([[1000, 60000]], np.uint16)
    Image.fromarray(values).save(tmp_path / "a.png", transparency=1000)
    assert [open_image(tmp_path / "a.png").getpixel((x, 0)) for x in (0, 1)] == [(255,) * 3, (233,) * 3]


def colours_of_16_bits(*values, transparent=None):
    """A PNG of one row of pixels with 16 bits per channel."""
    pixels = b"\0" + struct.pack(f">{len(values)}H", *values)
    png = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", len(values) // 3, 1, 16, 2, 0, 0, 0))
    png += chunk(b"tRNS", struct.pack(">3H", *transparent)) if transparent else b""
    return png + chunk(b"IDAT", zlib.compress(pixels)) + chunk(b"IEND", b"")


def test_a_transparent_colour_of_16_bits_is_laid_on_white():
    image = open_image(colours_of_16_bits(1000, 2000, 3000, 60000, 1, 2, transparent=(1000, 2000, 3000)))
    assert [image.getpixel((x, 0)) for x in (0, 1)] == [(255, 255, 255), (234, 0, 0)]


def tiff_of_12_bits(*values):
    """A TIFF of one row, an even number of values, that says of itself to have 12 bits per value."""
    data = b"".join((one << 12 | other).to_bytes(3, "big") for one, other in zip(values[::2], values[1::2]))
    tags = {256: len(values), 257: 1, 258: 12, 259: 1, 262: 1, 273: 8, 277: 1, 278: 1, 279: len(data)}
    entries = b"".join(struct.pack("<HHII", tag, 4 if tag != 258 else 3, 1, value) for tag, value in tags.items())
    return b"II*\0" + struct.pack("<I", 8 + len(data)) + data + struct.pack("<H", len(tags)) + entries + bytes(4)


def test_a_file_that_says_to_have_12_bits_is_scaled_from_them(tmp_path):
    image = open_image(tiff_of_12_bits(0, 2048, 4095, 16))
    assert [image.getpixel((x, 0))[0] for x in range(4)] == [0, 128, 255, 1]
    assert odd_values(tiff_of_12_bits(0, 100), open_image(tiff_of_12_bits(0, 100))) == ""
    (tmp_path / "a.tif").write_bytes(tiff_of_12_bits(0, 2048, 4095, 16))
    assert plain(Image.open(tmp_path / "a.tif")).tobytes() == image.tobytes()


@pytest.mark.parametrize(("most", "words"), [(4095, "12-bit"), (1023, "10-bit"), (255, "8-bit"), (4096, ""), (0, "")])
@pytest.mark.parametrize("form", ["png", "tiff"])
def test_few_bits_in_a_file_of_16_are_named(most, words, form):
    content = io.BytesIO()
    Image.fromarray(np.array([[0, most]], np.uint16)).save(content, form)
    reason = odd_values(content.getvalue(), open_image(content.getvalue()))
    assert (words in reason) if words else not reason


def test_few_bits_in_colours_of_16_are_named():
    for values, words in (((0, 4000, 300), "12-bit"), ((0, 4096, 300), ""), ((0, 0, 0), "")):
        reason = odd_values(colours_of_16_bits(*values), open_image(colours_of_16_bits(*values)))
        assert (words in reason) if words else not reason
    assert not odd_values(Image.new("L", (2, 2), 3), Image.new("RGB", (2, 2), (3, 3, 3)))


@pytest.mark.parametrize(
    ("values", "words"),
    [
        (np.array([[-1, 0.5, 1]], np.float32), "holds values below 0, down to -1, which become black"),
        (np.array([[-1000, 0, 60000]], np.int32), "holds values below 0, down to -1000"),
        (np.array([[0, 0.001]], np.float32), "all values are at most 0.001, so that it is nearly black"),
        (np.array([[0, 9]], np.float32), "all values are at most 9, so that it is nearly black"),
        (np.array([[0, 4000]], np.float32), "looks like 12-bit data"),
        (np.array([[0, 0.5, 1]], np.float32), ""),
        (np.array([[0, 200]], np.float32), ""),
        (np.array([[0, np.nan, 1]], np.float32), ""),
        (np.array([[0, 9]], np.int32), ""),
    ],
)
def test_values_that_become_too_dark_are_named(values, words, tmp_path):
    path = saved(tmp_path / "a.tif", Image.fromarray(values))
    reason = odd_values(path, open_image(path))
    assert (words in reason) if words else not reason


def test_damaged_exif_prints_no_warning(tmp_path):
    exif = b"Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\xff\xff\0\0\x06\0"  # a tag of 65,535 values, cut off
    Image.new("RGB", (4, 4)).save(tmp_path / "a.jpg", exif=exif)
    command = f"from evle.data.images import open_image; open_image({str(tmp_path / 'a.jpg')!r})"
    done = subprocess.run([sys.executable, "-c", command], capture_output=True, text=True, check=True)
    assert done.stderr == ""


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["RGBA", "F", "I;16"])
def test_decoding_the_largest_image_stays_in_its_memory(tmp_path, kind):
    side = int(MAX_PIXELS**0.5)
    image = Image.fromarray(np.zeros((side, side), np.uint16)) if kind == "I;16" else Image.new(kind, (side, side))
    image.save(tmp_path / "a.tif", compression="tiff_deflate")
    code = (
        "import resource; from evle.data.images import open_image\n"
        "peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        f"before = peak(); open_image({str(tmp_path / 'a.tif')!r}); print((peak() - before) * 1024)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(done.stdout) < 14 * MAX_PIXELS
