"""MIM on targets other than pixels: codes of an image tokenizer, features of a frozen model."""

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.nn import functional as F
from transformers import (
    BertConfig,
    BertModel,
    ChameleonVQVAE,
    ChameleonVQVAEConfig,
    Dinov2Config,
    Dinov2Model,
    FlavaImageCodebook,
    FlavaImageCodebookConfig,
    ResNetConfig,
    ResNetModel,
)

import references
from eve_models import build, pretraining_batch
from evle.errors import CheckpointError, ConfigError
from evle.models.eve import EVEForPreTraining
from evle.models.eve.targets import ImageTeacher
from evle.models.vle import VLEModel
from vle_models import tiny as tiny_vle

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
    with pytest.raises(
        CheckpointError, match=r"gives features, not codes; set task.mim_target=features, or task.mim_codes=1024"
    ):
        ImageTeacher(tmp_path / "dinov2", "codes")
    with pytest.raises(CheckpointError, match="no such folder"):
        ImageTeacher(tmp_path / "none", "codes")
    model = build(EVEForPreTraining, mim_target="features", mim_target_size=9, mim_teacher=str(tmp_path / "dinov2"))
    with pytest.raises(ConfigError, match="set mim_target_size=8"):
        model(**pretraining_batch())
    with pytest.raises(ConfigError, match="codes and features have a size"):
        build(EVEForPreTraining, mim_target="codes")
    with pytest.raises(ConfigError, match="mim_code_width 8 is for mim_target codes"):
        build(EVEForPreTraining, mim_target="features", mim_target_size=8, mim_code_width=8)
    with pytest.raises(ConfigError, match="mim_error cosine is for mim_target features"):
        build(EVEForPreTraining, mim_error="cosine")


def test_a_model_of_texts_is_no_teacher(tmp_path):
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
    BertModel(BertConfig(vocab_size=20, **sizes)).save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match=r"BertModel gives no states of an image's patches .*; give an image enc"):
        ImageTeacher(tmp_path, "features")


def test_a_teacher_without_all_of_its_weights_is_refused(tmp_path):
    save("dinov2", tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    left_out = next(name for name in tensors if "query" in name)
    save_file({name: each for name, each in tensors.items() if name != left_out}, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"lacks 1 weights of Dinov2Model, such as encoder\.layer\.0\."):
        ImageTeacher(tmp_path, "features")


@pytest.mark.parametrize(
    "fields", ["[]", '{"image_mean": [0.5]}', '{"image_std": "grey"}', "{", '{"image_mean": [[1], [2], [3, 4]]}']
)
def test_a_damaged_preprocessor_of_a_teacher_is_one_line(fields, tmp_path):
    save("dinov2", tmp_path)
    (tmp_path / "preprocessor_config.json").write_text(fields)
    with pytest.raises(CheckpointError, match=r"preprocessor_config\.json: ") as caught:
        ImageTeacher(tmp_path, "features")
    assert "\n" not in str(caught.value)


def test_the_image_tower_of_a_vle_is_a_teacher(tmp_path):
    model = VLEModel(tiny_vle())
    model.save_pretrained(tmp_path)
    teacher = ImageTeacher(tmp_path, "features")
    side = model.config.image_size
    images = torch.randn(2, 3, side, side)
    grid = side // teacher.cell
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    with torch.no_grad():
        states = model.eval().vision_model((images * 0.5 + 0.5 - mean.view(3, 1, 1)) / std.view(3, 1, 1))[0]
    expected = F.layer_norm(states[:, -(grid**2) :], states.shape[-1:])
    torch.testing.assert_close(teacher.targets(images, grid, grid), expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("error", ["squared", "cosine"])
def test_the_error_of_features_equals_the_naive_loop(error, tmp_path):
    save("dinov2", tmp_path)
    model = build(
        EVEForPreTraining,
        objectives=("mim",),
        mim_target="features",
        mim_target_size=8,
        mim_teacher=str(tmp_path),
        mim_error=error,
    )
    inputs = pretraining_batch()
    with torch.no_grad():
        loss = model(**inputs).losses["mim"]
        predicted, masked = predictions(model, inputs)
        features = ImageTeacher(tmp_path, "features").targets(inputs["pixel_values"], 4, 4)
    pairs = [
        (guess.tolist(), features[row, patch].tolist())
        for row in range(3)
        for guess, patch in zip(predicted[row], masked[row], strict=True)
    ]
    naive = references.cosine_error if error == "cosine" else references.squared_error
    assert loss.item() == pytest.approx(sum(naive(*pair) for pair in pairs) / len(pairs), rel=1e-4)


def predictions(model, inputs):
    """What a model predicts for each masked patch, and the indices of these patches."""
    order = inputs["image_mask"].int().argsort(dim=1, stable=True)
    arguments = [inputs[name] for name in ("input_ids", "attention_mask", "image_mask")]
    hidden = model.eve(inputs["pixel_values"], *arguments).image_hidden
    return model.predict_masked(hidden, inputs["pixel_values"], order, 4), order[:, 4:].tolist()


def test_codes_of_clusters_are_the_nearest_centres_and_their_loss_is_the_naive_loop(tmp_path):
    save("dinov2", tmp_path)
    sizes = {"mim_target": "codes", "mim_target_size": 5, "mim_code_width": 8}
    model = build(EVEForPreTraining, objectives=("mim",), mim_teacher=str(tmp_path), **sizes)
    inputs = pretraining_batch()
    with pytest.raises(ConfigError, match="the codes of MIM are not learned yet"):
        model(**inputs)
    model.codebook.copy_(F.normalize(torch.randn(5, 8, generator=torch.Generator().manual_seed(3)), dim=1))
    with torch.no_grad():
        loss = model(**inputs).losses["mim"]
        predicted, masked = predictions(model, inputs)
        features = ImageTeacher(tmp_path, "features").targets(inputs["pixel_values"], 4, 4)
    losses = []
    for row in range(3):
        for guess, patch in zip(predicted[row], masked[row], strict=True):
            code = references.nearest(features[row, patch].tolist(), model.codebook.tolist())
            losses.append(references.cross_entropy(guess.tolist(), [float(index == code) for index in range(5)]))
    assert loss.item() == pytest.approx(sum(losses) / len(losses), rel=1e-4)
