"""Starting from a vision Transformer: its weights arrive where its function is kept."""

import pytest
import torch
from transformers import BeitConfig, BeitModel, Dinov2Config, Dinov2Model, ViTConfig, ViTModel

from eve_models import build, relative_difference, tiny
from evle.errors import CheckpointError
from evle.models.eve import EVEForPreTraining, EVEModel
from evle.models.eve.vision_init import init_from_vision
from evle.models.positions import resize_positions

SIZES = {
    "hidden_size": 24,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "intermediate_size": 40,
    "image_size": 16,
    "patch_size": 4,
    "hidden_act": "gelu",
    "layer_norm_eps": 1e-6,
}


@pytest.fixture
def vit(tmp_path) -> ViTModel:
    torch.manual_seed(0)
    model = ViTModel(ViTConfig(**SIZES), add_pooling_layer=False).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    model.save_pretrained(tmp_path / "vit")
    return model


def test_an_image_passes_as_through_the_vision_transformer(vit, tmp_path):
    """With its embedding norm and type vector out of the way, EVE on an image is the ViT it started from."""
    model = build(EVEModel, hidden_act="gelu", modality_routing=False)
    report = init_from_vision(model, tmp_path / "vit")
    assert report.num_blocks == 3
    assert report.left_behind == ()
    model.image_embedding.type_vector.data.zero_()
    model.pre_norm = torch.nn.Identity()
    image = torch.randn(2, 3, 16, 16)
    with torch.no_grad():
        expected = vit(image).last_hidden_state
        assert relative_difference(model(image).image_hidden, expected) < 1e-5


def test_the_names_of_either_transformers_version_load_alike(vit, tmp_path):
    torch.save({"model": vit.state_dict()}, tmp_path / "vit.pth")  # on disk, save_pretrained writes the older names
    by_file, by_directory = build(EVEModel), build(EVEModel)
    init_from_vision(by_file, tmp_path / "vit.pth")
    init_from_vision(by_directory, tmp_path / "vit")
    for name, tensor in by_directory.state_dict().items():
        assert torch.equal(by_file.state_dict()[name], tensor)


def timm_state() -> dict[str, torch.Tensor]:
    """A block of a ViT under timm's names."""
    state = {
        "patch_embed.proj.weight": torch.randn(24, 3, 4, 4),
        "patch_embed.proj.bias": torch.randn(24),
        "cls_token": torch.randn(1, 1, 24),
        "head.weight": torch.randn(10, 24),
    }
    shapes = {"norm1": (24,), "norm2": (24,), "attn.proj": (24, 24), "mlp.fc1": (40, 24), "mlp.fc2": (24, 40)}
    for name, shape in shapes.items():
        state[f"blocks.0.{name}.weight"], state[f"blocks.0.{name}.bias"] = torch.randn(shape), torch.randn(shape[0])
    state["blocks.0.attn.qkv.weight"], state["blocks.0.attn.qkv.bias"] = torch.randn(72, 24), torch.arange(72.0)
    return state


def test_a_fused_bias_gives_its_query_and_value_parts(tmp_path):
    state = timm_state()
    torch.save(state, tmp_path / "timm.pth")
    model = build(EVEForPreTraining)
    report = init_from_vision(model, tmp_path / "timm.pth", text_feed_forward=False)
    layer = model.eve.layers[0]
    assert (report.num_blocks, report.left_behind) == (1, ("head.weight",))
    assert layer.attention.q_bias.tolist() == list(range(24))
    assert layer.attention.v_bias.tolist() == list(range(48, 72))
    assert torch.equal(layer.feed_forward.image.fc1.weight, state["blocks.0.mlp.fc1.weight"])
    assert not torch.equal(layer.feed_forward.text.fc1.weight, state["blocks.0.mlp.fc1.weight"])
    assert layer.attention_scale.unique().tolist() == [1.0]


def test_beit_brings_its_layer_scale_and_leaves_its_relative_positions_behind(tmp_path):
    torch.manual_seed(0)
    beit = BeitModel(BeitConfig(**SIZES, use_relative_position_bias=True, layer_scale_init_value=0.3))
    beit.save_pretrained(tmp_path / "beit")
    model = build(EVEModel)
    report = init_from_vision(model, tmp_path / "beit")
    assert report.num_blocks == 3
    assert all("relative_position" in key or "pooler" in key or "mask_token" in key for key in report.left_behind)
    assert model.layers[1].attention_scale.unique().tolist() == pytest.approx([0.3])
    up_proj = model.layers[2].feed_forward.experts.up_proj
    assert torch.equal(up_proj[0], up_proj[3])


def test_another_resolution_interpolates_the_positions(vit, tmp_path):
    model = EVEModel(tiny(image_size=24))
    init_from_vision(model, tmp_path / "vit")
    assert model.image_embedding.position.shape == (37, 24)


def test_another_width_and_another_kind_of_model_are_refused(vit, tmp_path):
    with pytest.raises(CheckpointError, match=r"patch_embed\.proj\.weight is \(24, 48\), this model needs \(32, 48\)"):
        init_from_vision(EVEModel(tiny(hidden_size=32)), tmp_path / "vit")
    torch.save({"weight": torch.zeros(3)}, tmp_path / "other.pth")
    with pytest.raises(CheckpointError, match="not a vision Transformer"):
        init_from_vision(build(EVEModel), tmp_path / "other.pth")
    with pytest.raises(CheckpointError, match="no such file; give a vision Transformer"):
        init_from_vision(build(EVEModel), tmp_path / "none.pth")


@pytest.mark.parametrize("patch_size", [4, 2])
def test_dino_brings_its_scales_and_what_does_not_fit_starts_at_random(patch_size, tmp_path):
    torch.manual_seed(0)
    dino = Dinov2Model(
        Dinov2Config(
            hidden_size=24, num_hidden_layers=2, num_attention_heads=2, mlp_ratio=2, image_size=16,
            patch_size=patch_size, layerscale_value=0.3,
        )
    )  # fmt: skip
    dino.save_pretrained(tmp_path)
    model = build(EVEModel, intermediate_size=48)
    before = model.image_embedding.patch.weight.clone()
    report = init_from_vision(model, tmp_path)
    assert report.num_blocks == 2
    assert torch.all(model.layers[0].attention_scale == 0.3)
    assert torch.equal(model.layers[1].feed_forward.image.fc1.weight, dino.encoder.layer[1].mlp.fc1.weight)
    fits = patch_size == 4
    assert torch.equal(model.image_embedding.patch.weight, before) != fits
    assert ("image_embedding.patch.weight" in report.new) != fits
    assert "text_embedding.word.weight" in str(report)
    assert "layers.*.feed_forward.gate.weight" in str(report)


@pytest.mark.parametrize("change", ["NaN", "int8", "float8_e4m3fn"])
@pytest.mark.parametrize("key", ["blocks.0.mlp.fc1.weight", "blocks.0.attn.qkv.bias", "pos_embed", "cls_token"])
def test_weights_that_are_quantised_or_not_finite_are_refused(key, change, tmp_path):
    state = {**timm_state(), "pos_embed": torch.randn(1, 17, 24)}
    odd = torch.full_like(state[key], float("nan")) if change == "NaN" else state[key].to(getattr(torch, change))
    torch.save({**state, key: odd}, tmp_path / "vit.pth")
    with pytest.raises(CheckpointError, match="not finite" if change == "NaN" else f"is stored as {change}"):
        init_from_vision(EVEModel(tiny(image_size=24)), tmp_path / "vit.pth")


def test_biases_that_a_vision_transformer_has_nowhere_are_zero(tmp_path):
    state = timm_state()
    for key in ("patch_embed.proj.bias", "blocks.0.attn.qkv.bias", "blocks.0.attn.proj.bias", "blocks.0.mlp.fc1.bias"):
        del state[key]
    torch.save(state, tmp_path / "vit.pth")
    model = build(EVEModel)
    for parameter in model.parameters():
        parameter.data.add_(1.0)
    report = init_from_vision(model, tmp_path / "vit.pth")
    attention = model.layers[0].attention
    found = (attention.q_bias, attention.v_bias, attention.get_parameter("proj.bias"), model.image_embedding.patch.bias)
    assert all(not bias.any() for bias in (*found, model.layers[0].feed_forward.image.fc1.bias))
    assert not any("layers.0.attention." in name for name in report.new)


@pytest.mark.parametrize(
    "key",
    ["blocks.0.norm1.bias", "blocks.0.attn.qkv.weight", "blocks.0.norm2.weight", "blocks.1.attn.proj.bias"],
)
def test_a_weight_that_is_missing_is_named(key, tmp_path):
    state = timm_state()
    state |= {name.replace("blocks.0.", "blocks.1."): tensor for name, tensor in state.items()}
    del state[key]
    torch.save(state, tmp_path / "vit.pth")
    with pytest.raises(CheckpointError, match=rf"vit\.pth: {key} is missing; choose"):
        init_from_vision(build(EVEModel), tmp_path / "vit.pth")


@pytest.mark.parametrize(
    ("rows", "extra", "has_cls"),
    [(16, {}, True), (18, {"dist_token": 1}, True), (21, {"reg_token": 4}, True), (17, {"reg_token": 4}, True),
     (16, {}, False), (20, {"reg_token": 4}, False)],
    ids=["no-row-of-cls", "distilled", "registers", "registers-without-rows", "no-cls", "registers-no-cls"],
)  # fmt: skip
@pytest.mark.parametrize("image_size", [16, 24])
def test_the_rows_of_patches_are_found_in_a_table_of_positions(rows, extra, has_cls, image_size, tmp_path):
    table = torch.randn(1, rows, 24)
    state = {**timm_state(), "pos_embed": table}
    state |= {name: torch.randn(1, count, 24) for name, count in extra.items()}
    if not has_cls:
        del state["cls_token"]
    torch.save(state, tmp_path / "vit.pth")
    model = EVEModel(tiny(image_size=image_size))
    own = model.image_embedding.position[:1].clone()
    report = init_from_vision(model, tmp_path / "vit.pth")
    if rows in (17, 18, 21):
        own = table[0, :1]
    elif has_cls:
        own = torch.zeros(1, 24)
    expected = resize_positions(torch.cat([own, table[0, -16:]]), image_size // 4, image_size // 4)
    assert torch.equal(model.image_embedding.position, expected)
    assert ("image_embedding.cls_token" in report.new) != has_cls


@pytest.mark.parametrize("shape", [(1, 19, 24), (1, 24, 4, 4), (1, 17, 20), (), (0, 24)], ids=str)
def test_a_table_of_no_square_is_refused(shape, tmp_path):
    torch.save({**timm_state(), "pos_embed": torch.randn(shape)}, tmp_path / "vit.pth")
    with pytest.raises(CheckpointError, match=r"vit\.pth: pos_embed is \(.*no table of a square"):
        init_from_vision(EVEModel(tiny(image_size=24)), tmp_path / "vit.pth")


@pytest.mark.parametrize("key", ["blocks.0.attn.key.weight", "blocks.0.attn.qkv.bias", "patch_embed.proj.weight"])
def test_a_single_number_for_a_weight_is_one_line(key, tmp_path):
    state = timm_state()
    if "key" in key:
        del state["blocks.0.attn.qkv.weight"]
        state |= {f"blocks.0.attn.{name}.weight": torch.randn(24, 24) for name in ("query", "key", "value")}
    torch.save({**state, key: torch.tensor(1.0)}, tmp_path / "vit.pth")
    if key.startswith("patch"):  # as one of another patch size
        assert "image_embedding.patch.weight" in init_from_vision(build(EVEModel), tmp_path / "vit.pth").new
        return
    with pytest.raises(CheckpointError, match=r"vit\.pth: blocks\.0\.attn\."):
        init_from_vision(build(EVEModel), tmp_path / "vit.pth")
