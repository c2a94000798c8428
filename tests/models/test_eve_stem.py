"""The options of ours for training from few images: the convolutional stem, mean pooling, contrast alone."""

import pytest
import torch

import eve_models
from evle.errors import ConfigError
from evle.models.eve import EVEForRetrieval, EVEModel
from evle.models.eve.heads import contrast_head
from evle.models.eve.stem import EVEConvolution, EVEResidual

STEM = {"stem_channels": (6, 8)}


def test_hidden_patches_do_not_leak_through_the_stem():
    model = eve_models.build(EVEModel, **STEM)
    pixels = eve_models.batch()["pixel_values"]
    mask = torch.zeros(3, 16, dtype=torch.bool)
    mask[:, 4:] = True  # the first row of patches stays visible
    changed = pixels.clone()
    changed[:, :, 4:] = 9.0
    before = model(pixels, image_mask=mask).image_hidden
    assert torch.equal(before, model(changed, image_mask=mask).image_hidden)
    changed[:, :, 0] = 9.0
    assert not torch.allclose(before, model(changed, image_mask=mask).image_hidden)


def test_a_stem_in_evaluation_does_not_depend_on_neighbours():
    model = eve_models.build(EVEModel, **STEM)
    pixels = eve_models.batch()["pixel_values"]
    together = model(pixels).image_hidden
    torch.testing.assert_close(model(pixels[:1]).image_hidden, together[:1], rtol=1e-5, atol=1e-5)


def test_a_stem_takes_another_size_and_survives_saving(tmp_path):
    model = eve_models.build(EVEModel, **STEM)
    pixels = eve_models.batch(image_size=24)["pixel_values"]
    expected = model(pixels).image_hidden
    assert expected.shape == (3, 1 + 36, 24)
    model.save_pretrained(tmp_path)
    assert torch.equal(EVEModel.from_pretrained(tmp_path).eval()(pixels).image_hidden, expected)


def test_a_stem_that_does_not_end_at_the_patch_is_refused():
    with pytest.raises(ConfigError, match=r"stem_channels \[6\] make patches of 2 pixels.*patch_size is 4"):
        eve_models.tiny(stem_channels=(6,))


def test_mean_pooling_leaves_out_padding_and_the_class_token():
    head = contrast_head(eve_models.tiny(pooling="mean"))
    text = torch.randn(2, 4, 24)
    mask = torch.tensor([[1, 1, 0, 0], [1, 1, 1, 1]])
    embeds = head.embed_text(text, mask)
    torch.testing.assert_close(embeds[:1], head.embed_text(text[:1, :2]))
    image = torch.randn(2, 5, 24)
    other = image.clone()
    other[:, 0] = 0.0
    torch.testing.assert_close(head.embed_image(image), head.embed_image(other))


def test_matching_of_weight_zero_costs_no_joint_pass():
    model = eve_models.build(EVEForRetrieval, objective_weights={"itm": 0.0})
    passes = []
    model.eve.register_forward_hook(lambda module, inputs, output: passes.append(output))
    output = model(**eve_models.batch())
    assert len(passes) == 2
    assert set(output.losses) == {"itc", "balance"}
    torch.testing.assert_close(output.loss, sum(output.losses.values()))


def test_blanked_images_do_not_enter_the_statistics_of_whole_ones():
    model = eve_models.build(EVEModel, **STEM).train()
    pixels = eve_models.batch()["pixel_values"]
    mask = torch.zeros(3, 16, dtype=torch.bool)
    mask[:, 4:] = True
    norm = model.image_embedding.stem.layers[0].norm
    before = norm.running_mean.clone()
    model(pixels, image_mask=mask)
    assert torch.equal(norm.running_mean, before)
    model(pixels)
    assert not torch.equal(norm.running_mean, before)


BLOCKS = {**STEM, "stem_blocks": (0, 1)}


def test_residual_blocks_do_not_leak_hidden_patches_either():
    model = eve_models.build(EVEModel, **BLOCKS)
    pixels = eve_models.batch()["pixel_values"]
    mask = torch.zeros(3, 16, dtype=torch.bool)
    mask[:, 4:] = True
    changed = pixels.clone()
    changed[:, :, 4:] = 9.0
    assert torch.equal(model(pixels, image_mask=mask).image_hidden, model(changed, image_mask=mask).image_hidden)


def test_residual_blocks_are_added_where_asked_for():
    layers = eve_models.build(EVEModel, **BLOCKS).image_embedding.stem.layers
    assert [type(layer) for layer in layers] == [EVEConvolution, EVEConvolution, EVEResidual]
    pixels = eve_models.batch()["pixel_values"]
    model = eve_models.build(EVEModel, **BLOCKS)
    assert model(pixels).image_hidden.shape == eve_models.build(EVEModel, **STEM)(pixels).image_hidden.shape


@pytest.mark.parametrize("blocks", [(1,), (1, -1)])
def test_as_many_numbers_of_blocks_as_stages(blocks):
    with pytest.raises(ConfigError, match=r"stem_blocks .* must hold one number of at least 0 .* 2 stages"):
        eve_models.tiny(**STEM, stem_blocks=blocks)
