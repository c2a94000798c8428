"""A VLE of any image and any text encoder: the grid of families, and what a tower brings with it."""

from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModel

from evle.errors import CheckpointError, ConfigError, DataError
from evle.models.vle import (
    VLEConfig,
    VLEForITM,
    VLEForMLM,
    VLEForNLVR2,
    VLEForPBC,
    VLEForPreTraining,
    VLEForRetrieval,
    VLEForVCRQ2A,
    VLEForVQA,
    VLEModel,
)
from evle.models.vle.tower_weights import read_tower
from evle.models.vle.towers import vision_shape
from evle.models.vle.vision import fit_table
from tower_models import TEXT, VISION, tower_config
from vle_models import relative_difference

HAS_TIMM = pytest.importorskip("timm") is not None
PAIRS = [(vision, text) for vision in VISION for text in TEXT]


def inputs_of(config: VLEConfig, size: int = 2, length: int = 5) -> dict[str, Tensor]:
    """Images of the configured size and texts, the last one with padding."""
    generator = torch.Generator().manual_seed(3)
    mask = torch.ones(size, length, dtype=torch.long)
    mask[-1, 3:] = 0
    ids = torch.randint(5, 50, (size, length), generator=generator).masked_fill(mask == 0, config.pad_token_id)
    pixels = torch.randn(size, 3, config.image_size, config.image_size, generator=generator)
    return {"input_ids": ids, "pixel_values": pixels, "attention_mask": mask}


def awake(model: Any) -> Any:
    """The model with weights far from their small initial values, in evaluation mode."""
    torch.manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() > 1 and "norm" not in name.lower():
                parameter.normal_(std=0.3)
    return model.eval()


def pretraining_inputs(config: VLEConfig) -> dict[str, Tensor]:
    inputs = inputs_of(config)
    chosen = inputs["attention_mask"].bool() & (torch.arange(5) % 2 == 1)
    patches = torch.zeros(2, config.num_patches, dtype=torch.bool)
    patches[0, :2] = True
    return {
        **inputs,
        "masked_input_ids": inputs["input_ids"].masked_fill(chosen, 3),
        "mlm_labels": inputs["input_ids"].masked_fill(~chosen, -100),
        "pbc_labels": torch.arange(2 * config.num_patches).view(2, -1) % 2,
        "mpc_patches": patches,
        "mpc_labels": torch.tensor([1, -100]),
        "black": torch.tensor([-1.0, -1.0, -1.0]),
    }


@pytest.mark.parametrize("text", TEXT)
@pytest.mark.parametrize("vision", VISION)
def test_every_pair_of_towers_pretrains_with_every_objective(vision, text):
    config = tower_config(vision, text, objectives=("mlm", "itm", "mpc", "pbc", "itc"))
    model = VLEForPreTraining(config)
    output = model(**pretraining_inputs(config))
    assert set(output.losses) == {"mlm", "itm", "mpc", "pbc", "itc"}
    output.loss.backward()
    assert output.loss.isfinite()
    for part in (model.vle.vision_model, model.vle.text_model, model.mpc_classifier, model.mlm_score):
        assert any(each.grad is not None and each.grad.abs().sum() > 0 for each in part.parameters())
    words = model.get_input_embeddings().weight
    assert model.get_output_embeddings().weight is words


@pytest.mark.parametrize(("vision", "text"), [(v, "bert") for v in VISION] + [("vit", t) for t in TEXT])
def test_a_model_of_any_towers_is_saved_and_loaded(vision, text, tmp_path):
    model = awake(VLEForMLM(tower_config(vision, text)))
    inputs = inputs_of(model.config)
    model.save_pretrained(tmp_path)
    loaded, report = VLEForMLM.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(report.values())
    with torch.no_grad():
        assert torch.equal(loaded(**inputs).logits, model(**inputs).logits)


@pytest.mark.parametrize(("vision", "text"), [("dinov3", "modernbert"), ("swin", "roberta"), ("timm-resnet", "mpnet")])
@pytest.mark.parametrize("model_class", [VLEForVQA, VLEForITM, VLEForPBC, VLEForNLVR2, VLEForRetrieval, VLEForVCRQ2A])
def test_every_head_takes_a_step_on_towers_of_any_shape(model_class, vision, text):
    config = tower_config(vision, text)
    model = model_class(config)
    inputs = inputs_of(config)
    labels: dict[str, Tensor] = {"labels": torch.tensor([1, 0])}
    if model_class is VLEForRetrieval:
        labels = {}
    elif model_class is VLEForPBC:
        labels = {"labels": torch.arange(2 * config.num_patches).view(2, -1) % 2}
    elif model_class is VLEForNLVR2:
        inputs["pixel_values"] = inputs["pixel_values"][:, None].expand(-1, 2, -1, -1, -1)
    elif model_class is VLEForVCRQ2A:
        candidates = {name: inputs[name][:, None].expand(-1, 4, -1) for name in ("input_ids", "attention_mask")}
        boxes = torch.zeros(2, 4, 1, config.num_patches, dtype=torch.bool)
        boxes[..., 0] = True
        types = torch.zeros_like(candidates["input_ids"])
        inputs |= candidates
        inputs |= {"token_type_ids": types, "box_patches": boxes, "box_token_types": torch.full((2, 4, 1), 2)}
    output = model(**inputs, **labels)
    output.loss.backward()
    assert output.loss.isfinite()
    assert all(each.grad.isfinite().all() for each in model.parameters() if each.grad is not None)


@pytest.mark.parametrize("vision", VISION)
def test_patches_are_in_the_images_order_and_the_first_token_is_the_towers(vision):
    """The states of a tower's own last layer: as many as patches, behind [CLS] or their mean."""
    config = tower_config(vision, "bert")
    tower = awake(VLEModel(config)).vision_model
    pixels = inputs_of(config)["pixel_values"]
    with torch.no_grad():
        states, _ = tower(pixels)
    assert states.shape == (2, 1 + config.num_patches, vision_shape(config.vision_config).width)
    if vision in ("siglip", "siglip2", "swin", "convnext", "timm-swin", "timm-resnet"):
        assert torch.allclose(states[:, 0], states[:, 1:].mean(dim=1), atol=1e-5)
    if vision in ("dinov2-registers", "dinov3"):
        with torch.no_grad():
            own = tower.vision_model(pixels).last_hidden_state
        assert torch.equal(states[:, 0], own[:, 0])
        assert torch.equal(states[:, 1:], own[:, 5:])  # four registers are left out


def test_a_feature_map_is_read_row_by_row():
    tower = VLEModel(tower_config("convnext", "bert")).vision_model
    tower.vision_model.layernorm = torch.nn.Identity()
    states = tower._tokens(torch.arange(2 * 8 * 4 * 4.0).view(2, 8, 4, 4), 32, 32)
    assert states[1, 1 + 4 * 2 + 3].tolist() == [128.0 + 16 * channel + 11 for channel in range(8)]


@pytest.mark.parametrize("vision", [name for name in VISION if not name.startswith(("clip", "siglip2"))])
def test_another_image_size_interpolates(vision, tmp_path):
    model = awake(VLEModel(tower_config(vision, "bert")))
    model.save_pretrained(tmp_path)
    size = 2 * model.config.image_size
    resized = VLEModel.from_pretrained(tmp_path, image_size=size)
    assert resized.config.image_size == size
    inputs = inputs_of(resized.config)
    with torch.no_grad():
        found = resized(**inputs).pooler_output
        if vision.startswith("timm") and vision != "timm-resnet":
            with pytest.raises(DataError, match=f"load the model with image_size={size}"):
                model(**inputs)
        else:  # DINOv2 with registers smooths its positions when it interpolates
            tolerance = 2e-2 if vision == "dinov2-registers" else 1e-3
            assert relative_difference(model(**inputs).pooler_output, found) < tolerance
    resized.save_pretrained(tmp_path / "again")
    with torch.no_grad():
        assert torch.equal(VLEModel.from_pretrained(tmp_path / "again")(**inputs).pooler_output, found)


def test_siglip_2_takes_pixels_as_its_own_processor_gives_them():
    from transformers import Siglip2ImageProcessor

    config = tower_config("siglip2", "bert")
    tower = VLEModel(config).vision_model
    image = torch.randint(0, 256, (3, 16, 24), dtype=torch.uint8)
    processor = Siglip2ImageProcessor(patch_size=8, max_num_patches=6, do_resize=False)
    expected = processor(images=image, return_tensors="pt")
    given = tower._as_patches((image[None] / 255 - 0.5) / 0.5)
    assert torch.allclose(given["pixel_values"], expected["pixel_values"], atol=1e-5)
    assert given["spatial_shapes"].tolist() == expected["spatial_shapes"].tolist()


@pytest.mark.parametrize("text", TEXT)
def test_padding_changes_no_state_of_any_text_tower(text):
    model = awake(VLEModel(tower_config("clip", text)))
    ids = torch.tensor([[7, 8, 9]])
    pad = model.config.pad_token_id
    with torch.no_grad():
        alone = model.encode_text(ids)
        padded = model.encode_text(torch.tensor([[7, 8, 9, pad, pad]]), torch.tensor([[1, 1, 1, 0, 0]]))
    assert relative_difference(padded[:, :3], alone) < 1e-4
    longest = model.config.max_position_embeddings
    with torch.no_grad():
        assert model.encode_text(torch.full((1, longest), 7)).shape == (1, longest, 8)
        with pytest.raises(DataError, match=f"longer than this model's {longest} positions"):
            model.encode_text(torch.full((1, longest + 1), 7))


@pytest.mark.parametrize(("vision", "text"), [("siglip", "roberta"), ("dinov2", "modernbert"), ("timm-vit", "electra")])
def test_a_new_model_has_the_trained_towers_weights(vision, text, tmp_path):
    from transformers import AutoModel

    config = tower_config(vision, text)
    torch.manual_seed(5)
    towers = {}
    for name, part in (("vision", config.vision_config), ("text", config.text_config)):
        towers[name] = AutoModel.from_config(part).eval()
        towers[name].save_pretrained(tmp_path / name)
    model = VLEModel.from_vision_text_pretrained(
        tmp_path / "vision", tmp_path / "text", hidden_size=8, num_attention_heads=2, intermediate_size=8
    )
    inputs = inputs_of(model.config)
    with torch.no_grad():
        expected = towers["text"](inputs["input_ids"], attention_mask=inputs["attention_mask"]).last_hidden_state
        found, _ = model.read_text(inputs["input_ids"], inputs["attention_mask"])
        assert relative_difference(found, expected) < 1e-5
        own = towers["vision"](inputs["pixel_values"]).last_hidden_state
        states, _ = model.vision_model(inputs["pixel_values"])
        assert relative_difference(states[:, 1:], own[:, -16:]) < 1e-5


def test_half_of_a_siglip_is_taken_from_the_whole(tmp_path):
    from transformers import SiglipConfig, SiglipModel

    vision = {name: value for name, value in VISION["siglip"].items() if name != "model_type"}
    text = {**{n: v for n, v in vision.items() if n not in ("image_size", "patch_size")}, "vocab_size": 20}
    whole = SiglipModel(SiglipConfig(vision_config=vision, text_config=text))
    whole.save_pretrained(tmp_path / "siglip")
    bert = VLEModel(tower_config("clip", "bert")).text_model
    bert.save_pretrained(tmp_path / "bert")
    model = VLEModel.from_vision_text_pretrained(tmp_path / "siglip", tmp_path / "bert", num_hidden_layers=1)
    given = whole.vision_model.state_dict()
    for name, tensor in model.vision_model.vision_model.state_dict().items():
        assert torch.equal(tensor, given[name]), name


def test_what_is_no_tower_is_refused_by_name(tmp_path):
    with pytest.raises(ConfigError, match=r"timm cannot build 'resnt50' .* did you mean"):
        VLEConfig(vision_config={"model_type": "timm_wrapper", "architecture": "resnt50"})
    with pytest.raises(ConfigError, match="features_only"):
        VLEConfig(
            vision_config={
                "model_type": "timm_wrapper",
                "architecture": "resnet18",
                "model_args": {"features_only": True},
            }
        )
    VLEModel(tower_config("clip", "bert")).save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match="is a whole VLE"):
        VLEModel.from_vision_text_pretrained(tmp_path, tmp_path)


@pytest.mark.parametrize("change", ["NaN", "int8", "all-int8", "float8_e4m3fn", "all-int64"])
@pytest.mark.parametrize("suffix", ["safetensors", "bin"])
def test_a_tower_whose_weights_are_quantised_or_not_finite_is_refused(change, suffix, tmp_path):
    torch.manual_seed(0)
    AutoModel.from_config(tower_config("vit", "bert").vision_config).save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    state = load_file(file)
    first = next(name for name, tensor in state.items() if tensor.dim() == 2)
    kind = change.removeprefix("all-")
    for name in state if change.startswith("all-") else [first]:
        tensor = state[name] * 100
        state[name] = torch.full_like(tensor, float("nan")) if kind == "NaN" else tensor.to(getattr(torch, kind))
    state["vit.embeddings.position_ids"] = torch.arange(3)  # a buffer that counts is no weight
    file.unlink()
    if suffix == "bin":
        torch.save(state, tmp_path / "pytorch_model.bin")
    else:
        save_file(state, file, metadata={"format": "pt"})
    stored = {"int8": "(I8|int8)", "int64": "(I64|int64)", "float8_e4m3fn": "(F8_E4M3|float8_e4m3fn)"}.get(kind)
    with pytest.raises(CheckpointError, match=f"stored as {stored}" if stored else "not finite"):
        read_tower(tmp_path, "vision_config")


def test_a_convolutional_tower_reads_images_in_any_memory_layout():
    torch.manual_seed(0)
    config = tower_config("timm-resnet", "bert")
    model = VLEModel(config).eval()
    pixels = inputs_of(config)["pixel_values"]
    with torch.no_grad():
        states = model.encode_image(pixels)
        torch.testing.assert_close(model.encode_image(pixels.contiguous(memory_format=torch.channels_last)), states)
        expected = model.vision_model.vision_model(pixel_values=pixels).last_hidden_state
        torch.testing.assert_close(
            model.vision_model(pixels)[0][:, 1:], expected.flatten(2).transpose(1, 2), atol=1e-5, rtol=1e-5
        )


@pytest.mark.parametrize(
    ("shape", "wanted"), [((4,), (8,)), ((), (8,)), ((4, 8), (8,)), ((5, 8), (5, 16)), ((6, 8), (10, 8))]
)
def test_a_tensor_that_is_no_table_of_positions_is_one_line(shape, wanted):
    with pytest.raises(CheckpointError, match=r"class_embedding has shape .* but this model needs"):
        fit_table("class_embedding", torch.zeros(shape), torch.zeros(wanted))
