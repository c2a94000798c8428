"""MIM on targets other than pixels: codes of an image tokenizer, features of a frozen model."""

import pytest
import torch
from torch.nn import functional as F
from transformers import (
    ChameleonVQVAE,
    ChameleonVQVAEConfig,
    Dinov2Config,
    Dinov2Model,
    FlavaImageCodebook,
    FlavaImageCodebookConfig,
    ResNetConfig,
    ResNetModel,
)

from eve_models import build, pretraining_batch
from evle.errors import CheckpointError, ConfigError
from evle.models.eve import EVEForPreTraining
from evle.models.eve.targets import ImageTeacher

TOWER = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 8, "patch_size": 2}


def save(kind, folder):
    torch.manual_seed(0)
    model = {
        "dinov2": lambda: Dinov2Model(Dinov2Config(**TOWER)),
        "resnet": lambda: ResNetModel(
            ResNetConfig(embedding_size=4, hidden_sizes=[4, 8], depths=[1, 1], layer_type="basic")
        ),
        "flava": lambda: FlavaImageCodebook(
            FlavaImageCodebookConfig(num_groups=4, num_blocks_per_group=1, hidden_size=4, vocab_size=12)
        ),
        "chameleon": lambda: ChameleonVQVAE(
            ChameleonVQVAEConfig(
                embed_dim=8, num_embeddings=12, latent_channels=8, base_channels=32, channel_multiplier=[1, 1],
                num_res_blocks=1, resolution=16, attn_resolutions=[],
            )
        ),
    }[kind]()  # fmt: skip
    model.eval().save_pretrained(folder)
    return model


@pytest.mark.parametrize(("kind", "size"), [("dinov2", 8), ("resnet", 8)])
def test_features_are_the_teachers_own_normalised(kind, size, tmp_path):
    model = save(kind, tmp_path)
    teacher = ImageTeacher(tmp_path, "features")
    assert teacher.size == size
    images = torch.randn(2, 3, 16, 16)
    features = teacher.targets(images, 4, 4)
    assert features.shape == (2, 16, size)
    assert features.mean(dim=-1).abs().max() < 1e-5
    if kind == "dinov2":  # 8 pixels in patches of 2: the same grid of 4 x 4
        small = F.interpolate(images * 0.5 + 0.5, size=(8, 8), mode="bicubic", antialias=True)
        mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
        with torch.no_grad():
            states = model((small - mean.view(3, 1, 1)) / std.view(3, 1, 1)).last_hidden_state[:, 1:]
        torch.testing.assert_close(features, F.layer_norm(states, (8,)), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("kind", ["flava", "chameleon"])
def test_codes_are_one_per_patch(kind, tmp_path):
    save(kind, tmp_path)
    teacher = ImageTeacher(tmp_path, "codes")
    assert teacher.size == 12
    codes = teacher.targets(torch.randn(2, 3, 16, 16), 4, 4)
    assert codes.shape == (2, 16)
    assert not codes.is_floating_point()
    assert codes.max() < 12


@pytest.mark.parametrize("form", ["decoder", "encoder"])
@pytest.mark.parametrize(("kind", "target", "size"), [("dinov2", "features", 8), ("flava", "codes", 12)])
def test_a_step_learns_from_targets_and_never_saves_the_teacher(kind, target, size, form, tmp_path):
    save(kind, tmp_path / "teacher")
    model = build(
        EVEForPreTraining,
        mim_target=target,
        mim_teacher=str(tmp_path / "teacher"),
        mim_target_size=size,
        mim_form=form,
    ).train()
    output = model(**pretraining_batch())
    output.loss.backward()
    assert all(each.grad is not None for each in model.parameters())
    assert torch.isfinite(output.losses["mim"])
    model.save_pretrained(tmp_path / "student")
    again, report = EVEForPreTraining.from_pretrained(tmp_path / "student", output_loading_info=True)
    assert not report["missing_keys"]
    assert again.config.mim_target == target


def test_with_a_mask_token_all_patches_enter_and_masked_pixels_do_not():
    model, inputs = build(EVEForPreTraining, mim_form="encoder", objectives=("mim",)), pretraining_batch()
    hidden = inputs["image_mask"].view(3, 1, 4, 4).repeat_interleave(4, dim=2).repeat_interleave(4, dim=3)
    arguments = {name: inputs[name] for name in ("input_ids", "attention_mask", "image_mask")}
    states = model.eve(inputs["pixel_values"], **arguments).image_hidden
    assert states.shape == (3, 17, 24)
    changed = torch.where(hidden, 9.0, inputs["pixel_values"])
    assert torch.equal(model.eve(changed, **arguments).image_hidden, states)


def test_wrong_teachers_are_refused_in_words(tmp_path):
    save("dinov2", tmp_path / "dinov2")
    with pytest.raises(CheckpointError, match=r"Dinov2Model gives features, not codes; set mim_target='features'"):
        ImageTeacher(tmp_path / "dinov2", "codes")
    with pytest.raises(CheckpointError, match="no such folder"):
        ImageTeacher(tmp_path / "none", "codes")
    model = build(EVEForPreTraining, mim_target="features", mim_target_size=9, mim_teacher=str(tmp_path / "dinov2"))
    with pytest.raises(ConfigError, match="set mim_target_size=8"):
        model(**pretraining_batch())
    with pytest.raises(ConfigError, match="codes and features have a size"):
        build(EVEForPreTraining, mim_target="codes")
