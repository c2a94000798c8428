"""Images to tensors: geometry that boxes follow, colours that agree with torchvision, and choices that come from
the generator alone.
"""

import time
from itertools import pairwise

import numpy as np
import pydantic
import pytest
import torch
import torchvision.transforms.v2.functional as tv
from PIL import Image, ImageDraw
from transformers import CLIPImageProcessor, ViTImageProcessor

from evle.models.vle import VLEProcessor
from evle.transforms import colours, geometry
from evle.transforms import image as transforms
from evle.transforms.image import normalize, train_image
from evle.transforms.image_config import ImageConfig
from evle.transforms.text import train_tokenizer

KEEP = ImageConfig(scale=(1, 1), flip=0)
KEEP_AUGMENTED = ImageConfig(scale=(1, 1), flip=0, rand_augment=True)
EVERYTHING = ImageConfig(
    pad_scale=(0.6, 1),
    rotate=20,
    shear=5,
    rand_augment=True,
    background="random",
    color_jitter=0.4,
    hue=0.5,
    grayscale=0.2,
    stylize=0.3,
    erase=0.3,
)


def rng(seed=0):
    return np.random.default_rng(seed)


def noise(width=40, height=32, mode="RGB", seed=0):
    return Image.fromarray(rng(seed).integers(0, 256, (height, width, len(mode)), dtype=np.uint8))


def smooth(size=48, low=60, high=180):
    """An image of middling values, so that colour changes do not clip."""
    coarse = rng(1).integers(low, high, (4, 4, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((size, size), Image.Resampling.BILINEAR)


@pytest.mark.parametrize("mode", ["RGB", "RGBA"])
@pytest.mark.parametrize("options", [ImageConfig(), EVERYTHING])
def test_a_view_depends_on_the_generator_alone_and_leaves_the_image_as_it_was(mode, options):
    picture = noise(mode=mode)
    before = picture.tobytes()
    for seed in range(20):
        first, _ = train_image(picture, options, 24, rng(seed))
        np.random.seed(seed)  # noqa: NPY002 the global generator must not matter
        again, _ = train_image(picture, options, 24, rng(seed))
        assert first.shape == (3, 24, 24)
        assert first.dtype == torch.uint8
        assert first.is_contiguous()
        assert torch.equal(first, again)
    assert picture.tobytes() == before


@pytest.mark.parametrize("size", [(1, 1), (1, 300), (300, 2), (5, 5)])
def test_any_shape_of_image_gives_a_square(size):
    for seed in range(5):
        for mode in ("RGB", "RGBA"):
            view, boxes = train_image(Image.new(mode, size), EVERYTHING, 16, rng(seed), [(0, 0, *size)])
            assert view.shape == (3, 16, 16)
            assert boxes.shape == (1, 4)
    assert transforms.test_image(Image.new("RGB", size), 16).shape == (3, 16, 16)


def test_the_test_image_is_pils_bicubic_to_within_one_level():
    picture = noise(50, 37)
    expected = np.asarray(picture.resize((24, 24), Image.Resampling.BICUBIC)).astype(int)
    got = transforms.test_image(picture, 24).permute(1, 2, 0).numpy().astype(int)
    assert np.abs(got - expected).max() <= 1


def test_transparent_images_stand_on_white_at_test():
    picture = Image.new("RGBA", (20, 20), (255, 0, 0, 0))
    assert (transforms.test_image(picture, 10) == 255).all()


def test_hidden_colours_of_transparent_pixels_do_not_bleed_into_the_edges():
    """Opaque black beside transparent pure red on white: the edge may be grey, never red."""
    picture = Image.new("RGBA", (40, 40), (255, 0, 0, 0))
    picture.paste((0, 0, 0, 255), (0, 0, 21, 40))
    view, _ = train_image(picture, KEEP.model_copy(update={"rotate": 10}), 16, rng())
    red, green, blue = view.int()
    assert (red - green).abs().max() <= 2
    assert (red - blue).abs().max() <= 2


def test_a_random_background_is_seen_through_transparency_and_never_like_the_image():
    picture = Image.new("RGBA", (20, 20), (0, 0, 0, 0))
    picture.paste((0, 0, 0, 255), (5, 5, 15, 15))
    options = KEEP.model_copy(update={"background": "random"})
    corners = [train_image(picture, options, 20, rng(seed))[0][:, 0, 0] for seed in range(40)]
    assert min(int(corner.max()) for corner in corners) >= 64  # the image is black: 64 levels away in some channel
    whites = sum(bool((corner == 255).all()) for corner in corners)
    assert 3 <= whites <= 20  # a quarter of 40, give or take
    assert len({tuple(corner.tolist()) for corner in corners}) > 15


def test_an_opaque_image_has_no_background_to_show():
    options = KEEP.model_copy(update={"background": "random"})
    assert torch.equal(train_image(noise(), options, 16, rng())[0], transforms.test_image(noise(), 16))


def coloured_box(view):
    """The bounding box of the red pixels of a view."""
    red = (view[0] > 128) & (view[1] < 128)
    rows, columns = red.any(1).nonzero().flatten(), red.any(0).nonzero().flatten()
    return [columns[0].item(), rows[0].item(), columns[-1].item() + 1, rows[-1].item() + 1]


@pytest.mark.parametrize(
    "change",
    [
        {"scale": (0.5, 1.0)},
        {"flip": 1.0},
        {"pad_scale": (0.5, 0.8)},
        {"rotate": 30.0},
        {"shear": 20.0},
        {"rand_augment": (5, 9)},
        {"framing": "whole", "scale": (0.6, 1.0)},
        {"framing": "pad"},
        {"framing": "pad", "pad_scale": (0.6, 1.0), "rotate": 10.0},
        {"framing": "centre", "scale": (0.8, 1.0)},
        {"scale": (0.6, 1.0), "flip": 0.5, "pad_scale": (0.6, 1.0), "rotate": 20.0},
    ],
)
@pytest.mark.parametrize("mode", ["RGB", "RGBA"])
def test_boxes_follow_their_image(change, mode):
    """A red rectangle on blue: where the red is in the view is where the box must be, to within a pixel or two of
    blur.
    """
    box = (30, 20, 70, 50)
    picture = Image.new(mode, (120, 90), "blue")
    picture.paste((255, 0, 0), box)
    options = KEEP.model_copy(update=change)
    if "rand_augment" in change:  # colour operations would hide the rectangle's colour, so only their geometry is tried
        names = ("shear_x", "shear_y", "translate_x", "translate_y", "rotate")
    for seed in range(12):
        with pytest.MonkeyPatch.context() as patch:
            if "rand_augment" in change:
                patch.setattr(transforms, "RAND_AUGMENT_OPS", names)
            view, boxes = train_image(picture, options, 96, rng(seed), [box])
        if not np.isnan(boxes).any():
            assert np.abs(boxes[0] - coloured_box(view)).max() <= 2.5, f"seed {seed}"


@pytest.mark.parametrize("size", [(120, 90), (90, 121), (97, 97), (300, 100), (40, 30)])
@pytest.mark.parametrize("framing", ["whole", "pad", "centre"])
def test_boxes_follow_their_image_at_test(size, framing):
    """The red rectangle is in the middle tenth, so that no crop loses it."""
    width, height = size
    box = (0.45 * width // 1, 0.45 * height // 1, 0.45 * width // 1 + 5, 0.45 * height // 1 + 4)
    picture = Image.new("RGB", size, "blue")
    picture.paste((255, 0, 0), tuple(int(edge) for edge in box))
    view = transforms.test_image(picture, 128, framing=framing)
    (moved,) = transforms.test_boxes([box], size, 128, framing=framing)
    assert np.abs(moved - coloured_box(view)).max() <= 0.75


@pytest.mark.parametrize("size", [(120, 90), (91, 120), (97, 97), (200, 61)])
def test_a_centre_crop_is_that_of_clips_image_processor(size):
    picture = noise(*size)
    processor = CLIPImageProcessor(
        size={"shortest_edge": 48}, crop_size={"height": 48, "width": 48}, do_rescale=False, do_normalize=False
    )
    assert transforms.framing_of(processor) == (48, "centre")
    expected = processor(picture, return_tensors="pt")["pixel_values"][0].int()
    assert (transforms.test_image(picture, 48, framing="centre").int() - expected).abs().max() <= 1


@pytest.mark.parametrize("size", [(120, 90), (90, 121), (97, 97), (1920, 797), (30, 400)])
@pytest.mark.parametrize("framing", ["whole", "pad", "centre"])
def test_a_training_image_that_is_not_varied_is_framed_as_at_test(size, framing):
    """To within the blur of another order of cropping and resizing, which "centre" has."""
    box = (0.45 * size[0] // 1, 0.45 * size[1] // 1, 0.55 * size[0] // 1, 0.55 * size[1] // 1)
    picture = smooth(64).resize(size, Image.Resampling.BILINEAR)
    view, boxes = train_image(picture, KEEP.model_copy(update={"framing": framing}), 96, rng(), [box])
    expected = transforms.test_image(picture, 96, framing=framing)
    assert (view.int() - expected.int()).abs().max() <= (8 if framing == "centre" else 1)
    assert np.abs(boxes - transforms.test_boxes([box], size, 96, framing=framing)).max() <= 0.6


def test_a_scale_of_one_keeps_the_whole_image_whatever_its_proportions():
    view, boxes = train_image(noise(60, 20), KEEP, 16, rng(), [(0, 0, 6, 20), (54, 0, 60, 20)])
    assert torch.equal(view, transforms.test_image(noise(60, 20), 16))
    assert boxes.round(3).tolist() == [[0, 0, 1.6, 16], [14.4, 0, 16, 16]]


@pytest.mark.parametrize("framing", ["whole", "pad", "centre"])
def test_an_image_processor_takes_its_framing_over_and_saves_it(framing, tmp_path):
    processor = CLIPImageProcessor(size={"shortest_edge": 48}, crop_size={"height": 48, "width": 48})
    transforms.set_framing(processor, framing)
    processor.save_pretrained(tmp_path)
    loaded = CLIPImageProcessor.from_pretrained(tmp_path)
    assert transforms.framing_of(loaded) == (48, framing)


def test_a_saved_processor_sees_what_the_task_sees(tmp_path):
    for framing in ("whole", "pad", "centre"):
        processor = VLEProcessor.for_size(48, train_tokenizer(["a dog"], 300))
        transforms.set_framing(processor.image_processor, framing)
        processor.save_pretrained(tmp_path)
        loaded = VLEProcessor.from_pretrained(tmp_path)
        picture = noise(120, 50)
        seen = loaded(images=picture, return_tensors="pt")["pixel_values"][0]
        images = loaded.image_processor
        expected = normalize(transforms.test_image(picture, 48, framing=framing), images.image_mean, images.image_std)
        assert (seen - expected).abs().max() < 0.02


def test_a_processor_without_centre_crop_frames_the_whole_image():
    processor = CLIPImageProcessor(size={"shortest_edge": 48}, do_center_crop=False)
    assert transforms.framing_of(processor) == (48, "whole")


def test_framing_is_the_whole_image_for_a_square_image_processor():
    assert transforms.framing_of(ViTImageProcessor(size={"height": 32, "width": 32})) == (32, "whole")


def test_a_centre_crop_cuts_boxes_and_drops_those_it_leaves_less_than_a_quarter_of():
    """100 x 50 to 50: the middle, from column 25 to 75, at scale 1."""
    boxes = [(15, 10, 35, 20), (5, 0, 30, 50), (30, 5, 40, 15)]
    moved = transforms.test_boxes(boxes, (100, 50), 50, framing="centre")
    assert moved[0].tolist() == [0, 10, 10, 20]  # half is left
    assert np.isnan(moved[1]).all()  # 5 of 25 columns
    assert moved[2].tolist() == [5, 5, 15, 15]


def test_a_box_that_is_mostly_cut_off_is_gone_and_the_others_keep_their_rows():
    whole = geometry.Geometry(crop=(0, 0, 50, 100), place=(0, 0, 100, 100), flipped=False, warp=None)
    boxes = [(60, 0, 90, 50), (0, 0, 25, 50), (40, 0, 81, 10), (40, 0, 60, 10)]
    moved = geometry.move_boxes(boxes, whole, 100)
    assert np.isnan(moved[0]).all()  # wholly outside the crop
    assert moved[1].tolist() == [0, 0, 50, 50]
    assert np.isnan(moved[2]).all()  # 10 of 41 columns are left: less than a quarter
    assert moved[3].tolist() == [80, 0, 100, 10]  # half is left, and it is clipped


def test_no_boxes_are_no_boxes():
    assert train_image(noise(), EVERYTHING, 16, rng())[1].shape == (0, 4)


def test_a_flip_mirrors_and_without_flip_never_does():
    picture = noise(16, 16)
    always = KEEP.model_copy(update={"flip": 1.0})
    assert torch.equal(train_image(picture, always, 16, rng())[0], transforms.test_image(picture, 16).flip(-1))
    assert torch.equal(train_image(picture, always.without_flip(), 16, rng())[0], transforms.test_image(picture, 16))
    assert ImageConfig().without_flip().scale == ImageConfig().scale


def test_the_random_crop_keeps_its_share_and_its_ratio():
    crops = [geometry.pick_crop(200, 150, (0.5, 1.0), (3 / 4, 4 / 3), rng(seed)) for seed in range(300)]
    for left, top, width, height in crops:
        assert 0 <= left <= 200 - width
        assert 0 <= top <= 150 - height
        assert 0.49 <= width * height / (200 * 150) <= 1.0
        assert 0.74 <= width / height <= 1.35
    shares = [width * height / (200 * 150) for _, _, width, height in crops]
    assert min(shares) < 0.55
    assert max(shares) > 0.9


def test_a_crop_that_cannot_be_is_taken_from_the_middle():
    """A strip of 400 x 10 has no crop of ratio 3/4 to 4/3 with half its area: the largest allowed one is 13 x 10."""
    assert geometry.pick_crop(400, 10, (0.5, 1.0), (3 / 4, 4 / 3), rng()) == (193, 0, 13, 10)


@pytest.mark.parametrize(
    ("jitter", "reference"),
    [
        ((0.3, 0, 0), lambda x, f: tv.adjust_brightness(x, f[0])),
        ((0, 0.3, 0), lambda x, f: tv.adjust_contrast(x, f[1])),
        ((0, 0, 0.3), lambda x, f: tv.adjust_saturation(x, f[2])),
        (
            (0.2, 0.2, 0.2),
            lambda x, f: tv.adjust_saturation(tv.adjust_contrast(tv.adjust_brightness(x, f[0]), f[1]), f[2]),
        ),
    ],
)
def test_colour_jitter_in_one_matrix_equals_torchvisions_steps_where_nothing_clips(jitter, reference):
    picture = smooth()
    options = KEEP.model_copy(update={"color_jitter": jitter})
    for seed in range(5):
        matrix = colours.pick_colours(picture, options, [], rng(seed))
        factors = (1 + rng(seed).uniform(-1, 1, 3) * jitter).tolist()
        got = np.asarray(colours.recolour(picture, matrix)).astype(int)
        plain = torch.from_numpy(np.array(picture)).permute(2, 0, 1)
        expected = reference(plain, factors).permute(1, 2, 0).numpy().astype(int)
        assert np.abs(got - expected).max() <= 3  # torchvision rounds down after each step


def test_hue_turns_colours_and_keeps_luma():
    picture = smooth(low=100, high=150)
    options = KEEP.model_copy(update={"hue": 0.5})
    turned = colours.recolour(picture, colours.pick_colours(picture, options, [], rng(3)))
    luma = [np.asarray(image) @ colours.LUMA for image in (picture, turned)]
    assert np.abs(luma[0] - luma[1]).max() < 2
    assert np.abs(np.asarray(picture).astype(int) - np.asarray(turned)).max() > 10


def test_grayscale_leaves_equal_channels():
    picture = smooth()
    grey, _ = train_image(picture, KEEP.model_copy(update={"grayscale": 1.0}), 48, rng())
    assert torch.equal(grey[0], grey[1])
    assert torch.equal(grey[0], grey[2])


@pytest.mark.parametrize("name", ["stylize", "outline", "erase"])
def test_each_further_change_changes_the_image(name):
    picture = noise(32, 32)
    plain = transforms.test_image(picture, 32)
    options = KEEP.model_copy(update={name: 1.0})
    views = [train_image(picture, options, 32, rng(seed))[0] for seed in range(12)]
    assert sum(not torch.equal(view, plain) for view in views) >= 10
    assert sum(not torch.equal(one, other) for one, other in pairwise(views)) >= 8


def test_every_operation_of_rand_augment_is_drawn_at_the_released_magnitudes():
    drawn = [op for seed in range(400) for op in transforms._pick_rand_augment((2, 7), rng(seed))]
    assert {name for name, _ in drawn} == set(transforms.RAND_AUGMENT_OPS)
    assert {round(abs(magnitude), 6) for _, magnitude in drawn} == {0.7}
    assert 340 <= len(drawn) <= 460  # half of 800
    turned = geometry.pick_geometry((96, 96), KEEP, [("rotate", 0.7)], 96, rng()).warp
    assert np.degrees(np.arctan2(turned[1, 0], turned[0, 0])) == pytest.approx(21)
    for size in (96, 384):
        shifted = geometry.pick_geometry((384, 384), KEEP, [("translate_x", 0.7)], size, rng()).warp
        assert shifted[0, 2] == pytest.approx(7)


def test_rand_augment_shears_about_the_top_left_corner_and_exposes_grey():
    """As released: the pixel (x, y) goes to (x + 0.3 y, y), and what comes into view is (128, 128, 128)."""
    warp = geometry.pick_geometry((40, 40), KEEP, [("shear_x", 1.0)], 40, rng()).warp
    assert (warp @ (0, 0, 1)).tolist() == [0, 0, 1]
    assert (warp @ (10, 20, 1)).tolist() == [16, 20, 1]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(transforms, "_pick_rand_augment", lambda pair, rng: [("shear_x", 1.0)])
        for mode in ("RGB", "RGBA"):
            view, _ = train_image(Image.new(mode, (40, 40), "blue"), KEEP_AUGMENTED, 40, rng())
            assert view[:, 38, 1].tolist() == [128, 128, 128]
            assert view[:, 1, 38].tolist() == [0, 0, 255]


def test_normalize_is_the_papers_mean_and_deviation_and_leaves_its_input():
    pixels = torch.tensor([0, 51, 255], dtype=torch.uint8).view(3, 1, 1)
    assert normalize(pixels, [0.5] * 3, [0.5] * 3).flatten().tolist() == pytest.approx([-1, -0.6, 1])
    assert pixels.flatten().tolist() == [0, 51, 255]
    batch = torch.randint(0, 256, (2, 3, 4, 5), dtype=torch.uint8)
    mean, std = [0.48, 0.45, 0.4], [0.26, 0.27, 0.28]
    expected = tv.normalize(tv.to_dtype(batch, torch.float32, scale=True), mean, std)
    torch.testing.assert_close(normalize(batch, mean, std), expected)
    already_float = batch.float()
    normalize(already_float, mean, std)
    assert torch.equal(already_float, batch.float())


def test_options_read_a_recipes_short_forms():
    options = ImageConfig(rand_augment=True, color_jitter=0.4, scale=[0.2, 1])
    assert options.rand_augment == (2, 7)
    assert options.color_jitter == (0.4, 0.4, 0.4)
    assert ImageConfig(rand_augment=False) == ImageConfig()
    assert ImageConfig.model_validate(EVERYTHING.model_dump(mode="json")) == EVERYTHING


@pytest.mark.parametrize(
    "bad",
    [
        *({"flip": 1.5}, {"scale": (0.9, 0.5)}, {"scale": (0, 1)}, {"pad_scale": (0.5, 1.2)}, {"fliip": 0.5}),
        *({"size": 2}, {"rand_augment": (2, 11)}, {"background": "blue"}, {"color_jitter": (0.4, 0.4)}),
    ],
)
def test_impossible_options_cannot_be_built(bad):
    with pytest.raises(pydantic.ValidationError, match=next(iter(bad))):
        ImageConfig(**bad)


def test_a_full_set_of_augmentations_stays_cheap():
    """About 1.3 ms at 96 pixels on one core of the building machine; ten times that would starve a training on any."""
    picture = smooth(128).convert("RGBA")
    ImageDraw.Draw(picture).ellipse((20, 20, 90, 90), fill=(255, 0, 0, 255))
    for seed in range(3):
        train_image(picture, EVERYTHING, 96, rng(seed))
    start = time.process_time()
    for seed in range(30):
        train_image(picture, EVERYTHING, 96, rng(seed))
    assert (time.process_time() - start) / 30 < 0.013


def test_an_outlined_image_has_flat_colours_and_dark_strokes_where_they_change():
    picture = Image.new("RGB", (64, 64), "white")
    picture.paste((230, 60, 60), (16, 16, 48, 48))
    options = ImageConfig(scale=(1, 1), ratio=(1, 1), flip=0, outline=1.0)
    view, _ = train_image(picture, options, 64, np.random.default_rng(0))
    colours = {tuple(pixel) for pixel in view.permute(1, 2, 0).reshape(-1, 3).tolist()}
    assert len(colours) <= 17
    assert view[:, 16, 32].max() < 48  # on the square's upper side
    assert view[:, 32, 32].max() > 150
    assert view[:, 4, 4].min() > 200


@pytest.mark.parametrize("size", [24, 40])
def test_the_short_way_of_a_crop_and_a_flip_gives_the_same_view(size):
    picture = Image.fromarray(np.random.default_rng(0).integers(256, size=(40, 70, 3), dtype=np.uint8))
    longer = ImageConfig(erase=1e-12)  # takes the way over PIL, and draws once more at its end without effect
    assert ImageConfig().only_moves
    assert not longer.only_moves
    for seed in range(8):
        views = [
            train_image(picture, options, size, np.random.default_rng(seed), [(3, 4, 50, 30)])
            for options in (ImageConfig(), longer)
        ]
        assert torch.equal(views[0][0], views[1][0])
        assert np.array_equal(views[0][1], views[1][1], equal_nan=True)


def test_a_bend_moves_a_image_and_its_boxes_alike():
    picture = Image.new("RGB", (64, 64), "white")
    picture.paste((0, 0, 0), (20, 24, 40, 44))
    options = KEEP.model_copy(update={"bend": 0.1})
    for seed in range(8):
        view, boxes = train_image(picture, options, 64, rng(seed), [(20, 24, 40, 44)])
        dark = (view.float().mean(dim=0) < 128).nonzero()
        top, left = dark.amin(dim=0).tolist()
        bottom, right = (dark.amax(dim=0) + 1).tolist()
        np.testing.assert_allclose(boxes[0], (left, top, right, bottom), atol=2.0)


def test_a_bend_of_nothing_changes_nothing():
    pixels = torch.randint(0, 256, (3, 16, 16), dtype=torch.uint8)
    assert torch.equal(geometry.bend_pixels(pixels, np.zeros((2, 3, 3))), pixels)
