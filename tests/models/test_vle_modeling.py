"""VLE's backbone: the fusion, its independence of padding and neighbours, and what can be asked of it."""

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F
from transformers import AutoModel, CLIPConfig, CLIPModel, DebertaV2ForMaskedLM

from evle.errors import CheckpointError, ConfigError, DataError
from evle.models.positions import resize_positions
from evle.models.vle import VLEConfig, VLEForITM, VLEForVQA, VLEModel
from evle.models.vle.fusion import Stream, VLEFusionLayer, key_mask
from evle.models.vle.modeling import extend_token_types
from vle_models import TINY, VISION, batch, build, relative_difference, tiny


def test_shapes():
    output = build(VLEModel)(**batch(3, 7))
    assert output.image_hidden.shape == (3, 17, 24)
    assert output.text_hidden.shape == (3, 7, 24)
    assert output.pooler_output.shape == (3, 48)
    assert output.attentions is None


def test_states_are_found_by_their_released_names_too():
    output = build(VLEModel)(**batch())
    assert output.image_embeds is output.image_hidden
    assert output.text_embeds is output.text_hidden


def attend(attention, asking, answering):
    """One attention of one sample, head by head and query by query: (S, D), (R, D) -> (S, D)."""
    size = 24 // 3
    query, key, value = attention.query(asking), attention.key(answering), attention.value(answering)
    rows = []
    for row in range(len(asking)):
        heads = []
        for head in range(3):
            part = slice(head * size, (head + 1) * size)
            scores = torch.stack([query[row, part] @ each[part] / size**0.5 for each in key])
            heads.append((scores.softmax(0)[:, None] * value[:, part]).sum(0))
        rows.append(torch.cat(heads))
    return torch.stack(rows)


def residual(module, branch, before):
    return F.layer_norm(module.dense(branch) + before, (24,), module.LayerNorm.weight, module.LayerNorm.bias, 1e-12)


@torch.no_grad()
def test_a_fusion_layer_is_self_attention_cross_attention_and_feed_forward_each_normalised():
    torch.manual_seed(0)
    layer = VLEFusionLayer(tiny()).eval()
    for parameter in layer.parameters():
        parameter.normal_(std=0.4)
    hidden, other = torch.randn(1, 5, 24), torch.randn(1, 4, 24)
    mask = torch.tensor([[1, 1, 0, 1, 1]])
    given_states, _, _ = layer(Stream(hidden), Stream(hidden, key_mask(mask, torch.float32)), Stream(other), False)

    states, real = hidden[0], [0, 1, 3, 4]
    states = residual(layer.attention.output, attend(layer.attention.self, states, states[real]), states)
    states = residual(layer.crossattention.output, attend(layer.crossattention.self, states, other[0]), states)
    inner = F.gelu(layer.intermediate.dense(states))
    states = residual(layer.output, inner, states)
    assert relative_difference(given_states, states) < 1e-5


@torch.no_grad()
def test_both_streams_of_a_block_read_the_previous_block():
    model = build(VLEModel, num_hidden_layers=1)
    inputs = batch(2, 5)
    output = model(inputs["input_ids"], inputs["pixel_values"])
    types = model.token_type_embeddings.weight
    text = Stream(model.encode_text(inputs["input_ids"]) + types[0])
    image = Stream(model.encode_image(inputs["pixel_values"]) + types[1])
    expected_image, _, _ = model.cross_modal_image_layers[0](image, image, text, False)
    expected_text, _, _ = model.cross_modal_text_layers[0](text, text, image, False)
    assert torch.equal(output.image_hidden, expected_image)
    assert torch.equal(output.text_hidden, expected_text)
    pooled = [torch.tanh(model.cross_modal_text_pooler.dense(expected_text[:, 0]))]
    pooled.append(torch.tanh(model.cross_modal_image_pooler.dense(expected_image[:, 0])))
    assert torch.equal(output.pooler_output, torch.cat(pooled, dim=1))


@torch.no_grad()
def test_the_image_towers_last_norm_covers_all_tokens():
    model = build(VLEModel)
    pixels = batch(2)["pixel_values"]
    tower = model.vision_model.vision_model
    expected = model.image_projection_layer(tower.post_layernorm(tower(pixels).last_hidden_state))
    assert torch.equal(model.encode_image(pixels), expected)


@torch.no_grad()
def test_every_attention_is_sdpa(monkeypatch):
    calls = []
    plain = F.scaled_dot_product_attention
    monkeypatch.setattr("evle.models.attention.FEW_SCORES", 0)
    monkeypatch.setattr(F, "scaled_dot_product_attention", lambda *a, **k: calls.append(a[0].shape) or plain(*a, **k))
    build(VLEModel)(**batch(2, 5))
    # Two layers of each tower; in each of two blocks, two streams with two attentions.
    assert len(calls) == 2 + 2 + 2 * 2 * 2


@torch.no_grad()
def test_maps_of_every_attention_are_returned_when_asked_for():
    model = build(VLEModel)
    inputs = batch(3, 7)
    before = model.config.vision_config._attn_implementation
    plain, mapped = model(**inputs), model(**inputs, output_attentions=True)
    assert relative_difference(mapped.pooler_output, plain.pooler_output) < 1e-5
    shapes = {name: {each.shape for each in maps} for name, maps in mapped.attentions.items()}
    assert shapes == {
        "text": {(3, 2, 7, 7)},
        "image": {(3, 2, 17, 17)},
        "text_self": {(3, 3, 7, 7)},
        "text_to_image": {(3, 3, 7, 17)},
        "image_self": {(3, 3, 17, 17)},
        "image_to_text": {(3, 3, 17, 7)},
    }
    assert {len(maps) for maps in mapped.attentions.values()} == {2}
    for name in ("image", "text_to_image", "image_to_text", "image_self", "text_self"):
        assert torch.allclose(mapped.attentions[name][1].sum(-1), torch.ones(1))
    assert mapped.attentions["image_to_text"][0][2, :, :, 3:].max() == 0  # padding of the last text, of 3 tokens
    assert model.config.vision_config._attn_implementation == before


def test_maps_have_gradients():
    model = build(VLEModel)
    inputs = {name: tensor[:1] for name, tensor in batch().items()}
    output = model(**inputs, output_attentions=True)
    maps = output.attentions["text_to_image"][0]
    (gradient,) = torch.autograd.grad(output.pooler_output.sum(), maps)
    assert gradient.abs().max() > 0


@settings(max_examples=15, deadline=None)
@given(length=st.integers(2, 8), extra=st.integers(0, 6), rows=st.integers(1, 3), seed=st.integers(0, 99))
def test_neither_padding_nor_neighbours_change_a_state(length, extra, rows, seed):
    model = MODEL
    inputs = batch(rows, length, seed=seed)
    padded = {
        **inputs,
        **{name: F.pad(inputs[name], (0, extra)) for name in ("input_ids", "attention_mask")},
    }
    padded["input_ids"] = padded["input_ids"].masked_fill(padded["attention_mask"] == 0, 17)
    with torch.no_grad():
        whole = model(**padded)
        for row in range(rows):
            real = int(inputs["attention_mask"][row].sum())
            alone = model(inputs["input_ids"][row : row + 1, :real], inputs["pixel_values"][row : row + 1])
            assert relative_difference(whole.pooler_output[row], alone.pooler_output[0]) < 1e-4
            assert relative_difference(whole.text_hidden[row, :real], alone.text_hidden[0]) < 1e-4
            assert relative_difference(whole.image_hidden[row], alone.image_hidden[0]) < 1e-4


MODEL = build(VLEModel)


@pytest.mark.parametrize("size", [8, 24, 32])
def test_another_image_size_at_run_time_equals_the_model_resized_to_it(size):
    model = build(VLEModel)
    inputs = batch(2, 5, image_size=size)
    resized = copy.deepcopy(model)
    resized.resize_images(size)
    table = model.vision_model.position_table
    new = resized.vision_model.vision_model.embeddings.position_embedding.weight
    assert torch.equal(new, resize_positions(table, size // 4, size // 4))
    assert resized.config.image_size == size
    with torch.no_grad():
        assert relative_difference(resized(**inputs).pooler_output, model(**inputs).pooler_output) < 1e-5


def test_a_resized_model_is_saved_and_loaded_at_its_size(tmp_path):
    build(VLEForVQA).save_pretrained(tmp_path / "small")
    model = VLEForVQA.from_pretrained(tmp_path / "small", image_size=24)
    assert model.vle.config.image_size == 24
    model.save_pretrained(tmp_path / "large")
    loaded, report = VLEForVQA.from_pretrained(tmp_path / "large", output_loading_info=True)
    assert not any(report.values())
    inputs = batch(2, 5, image_size=24)
    with torch.no_grad():
        assert torch.equal(loaded(**inputs).logits, model(**inputs).logits)
    with pytest.raises(ConfigError, match="image_size 18 is not a multiple of patch_size 4"):
        model.resize_images(18)


def test_more_token_types_keep_the_old_rows_and_start_beside_the_text():
    model = build(VLEForITM, num_token_types=2)
    inputs = batch()
    with torch.no_grad():
        before = model(**inputs).logits
    old = model.vle.token_type_embeddings.weight.detach().clone()
    model.add_token_types(5)
    table = model.vle.token_type_embeddings.weight
    assert table.requires_grad
    assert torch.equal(table[:2], old)
    assert torch.equal(extend_token_types(old, 5)[2:], old[:1].expand(3, -1))
    assert 0 < (table[2:] - old[0]).abs().max() < 0.2
    assert model.config.num_token_types == 5
    with torch.no_grad():
        assert torch.equal(model(**inputs).logits, before)
    with pytest.raises(CheckpointError, match="has 5 token types and the model 2"):
        model.add_token_types(2)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"pixel_values": torch.zeros(2, 3, 16, 16)}, "2 images, input_ids 3 texts"),
        ({"pixel_values": torch.zeros(3, 3, 18, 16)}, "3 channels and 18 x 16 pixels"),
        ({"pixel_values": torch.zeros(3, 1, 16, 16)}, "1 channels"),
        ({"input_ids": torch.ones(3, 25, dtype=torch.long), "attention_mask": None}, "25 tokens is longer .* 24"),
    ],
)
def test_inputs_that_do_not_fit_are_refused(change, message):
    with pytest.raises(DataError, match=message):
        build(VLEModel)(**{**batch(), **change})


def test_gradient_checkpointing_reaches_every_stack_and_changes_no_gradient():
    inputs = batch()
    found = []
    for checkpointing in (False, True):
        model = build(VLEForITM, text_config={"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0})
        for module in model.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0
        for layer in model.modules():
            if hasattr(layer, "dropout_rate"):
                layer.dropout_rate = 0.0
        if checkpointing:
            model.gradient_checkpointing_enable()
            layers = [module for module in model.modules() if getattr(module, "gradient_checkpointing", False) is True]
            kinds = {type(layer).__name__ for layer in layers}
            assert {"VLEFusionLayer", "DebertaV2Layer", "CLIPEncoderLayer"} <= kinds
        model.train()
        model(**inputs, labels=torch.tensor([0, 1, 1])).loss.backward()
        found.append({name: parameter.grad for name, parameter in model.named_parameters()})
    for name, gradient in found[0].items():
        assert torch.allclose(found[1][name], gradient, atol=1e-6), name


def test_autocast_keeps_losses_in_float32_and_near():
    model = build(VLEForITM)
    inputs, labels = batch(), torch.tensor([0, 1, 1])
    with torch.no_grad():
        exact = model(**inputs, labels=labels)
        with torch.autocast("cpu", torch.bfloat16):
            rough = model(**inputs, labels=labels)
    assert rough.loss.dtype == torch.float32
    assert rough.logits.dtype == torch.bfloat16
    assert (rough.logits.float() - exact.logits).abs().max() < 0.1


def test_a_model_in_bfloat16_computes_and_is_saved_as_such(tmp_path):
    model = build(VLEForITM).to(torch.bfloat16)
    inputs = batch()
    inputs["pixel_values"] = inputs["pixel_values"].to(torch.bfloat16)
    with torch.no_grad():
        assert model(**inputs).logits.isfinite().all()
    model.save_pretrained(tmp_path)
    assert VLEForITM.from_pretrained(tmp_path).dtype == torch.bfloat16


def test_eager_attention_can_be_chosen_for_the_whole(monkeypatch):
    model = build(VLEModel)
    inputs = batch()
    with torch.no_grad():
        expected = model(**inputs).pooler_output
        model.set_attn_implementation("eager")
        monkeypatch.setattr("evle.models.attention.FEW_SCORES", 0)
        monkeypatch.delattr(F, "scaled_dot_product_attention")
        assert relative_difference(model(**inputs).pooler_output, expected) < 1e-5


def test_the_backbone_of_a_head_and_of_auto_model_is_the_same(tmp_path):
    model = build(VLEForVQA)
    model.save_pretrained(tmp_path)
    inputs = batch()
    with torch.no_grad():
        expected = model.vle(**inputs).pooler_output
        assert torch.equal(AutoModel.from_pretrained(tmp_path)(**inputs).pooler_output, expected)


def test_types_that_the_model_does_not_have_are_refused():
    inputs = batch()
    with pytest.raises(DataError, match="go up to 6, the model has 6 types; load it with num_token_types=7"):
        build(VLEForVQA)(**inputs, token_type_ids=torch.full_like(inputs["input_ids"], 6))


def test_the_auto_classes_interpolate_and_extend_as_the_models_own(tmp_path):
    build(VLEModel).save_pretrained(tmp_path)
    changes = {"image_size": 24, "num_token_types": 8}
    expected, found = (each.from_pretrained(tmp_path, **changes) for each in (VLEModel, AutoModel))
    assert found.config.image_size == found.vision_model.vision_model.config.image_size == 24
    assert torch.equal(found.vision_model.position_table, expected.vision_model.position_table)
    assert found.token_type_embeddings.weight.shape == (8, 24)
    config = VLEConfig.from_pretrained(tmp_path, image_size=24)
    assert VLEModel.from_pretrained(tmp_path, config=config).config.image_size == config.image_size == 24
    with pytest.raises(ConfigError, match="image_size 25 is not a multiple of patch_size 4"):
        AutoModel.from_pretrained(tmp_path, image_size=25)


def test_weights_alone_load_with_the_configuration_that_is_given(tmp_path):
    model = build(VLEModel)
    model.save_pretrained(tmp_path)
    (tmp_path / "config.json").unlink()
    loaded = VLEModel.from_pretrained(tmp_path, config=model.config)
    assert torch.equal(loaded.vision_model.position_table, model.vision_model.position_table)


def saved_towers(folder):
    """A whole CLIP, its vision model alone, a DeBERTa with its head and one without."""
    torch.manual_seed(3)
    text = {"hidden_size": 8, "num_attention_heads": 2, "num_hidden_layers": 1, "intermediate_size": 8}
    clip = CLIPModel(CLIPConfig(vision_config={**VISION, "num_hidden_layers": 3}, text_config=text))
    clip.save_pretrained(folder / "clip")
    clip.vision_model.save_pretrained(folder / "vision")
    config = tiny().text_config
    deberta = DebertaV2ForMaskedLM(config)
    deberta.save_pretrained(folder / "mlm")
    deberta.deberta.save_pretrained(folder / "text")
    return clip.vision_model.eval(), deberta.deberta.eval()


@pytest.mark.parametrize(("vision", "text"), [("clip", "mlm"), ("vision", "text")])
def test_a_new_model_starts_from_any_clip_and_deberta(vision, text, tmp_path):
    clip, deberta = saved_towers(tmp_path)
    model = VLEForVQA.from_vision_text_pretrained(
        tmp_path / vision, tmp_path / text, **{**TINY, "hidden_size": 48, "num_labels": 4}
    )
    assert model.config.hidden_size == 48
    assert model.config.num_labels == 4
    inputs = batch()
    with torch.no_grad():
        expected = clip(inputs["pixel_values"]).last_hidden_state
        given_states = model.vle.vision_model.vision_model(inputs["pixel_values"]).last_hidden_state
        torch.testing.assert_close(given_states, expected)
        real = inputs["attention_mask"].bool()
        expected = deberta(inputs["input_ids"], inputs["attention_mask"]).last_hidden_state[real]
        assert relative_difference(model.vle.read_text(*list(inputs.values())[1:])[0][real], expected) < 1e-5
        assert model(**inputs).logits.shape == (3, 4)
    model.save_pretrained(tmp_path / "vle")
    assert not any(VLEForVQA.from_pretrained(tmp_path / "vle", output_loading_info=True)[1].values())


def test_layers_of_clip_can_be_left_out_and_its_image_size_changed(tmp_path):
    clip, _ = saved_towers(tmp_path)
    model = VLEModel.from_vision_text_pretrained(
        tmp_path / "clip", tmp_path / "text", vision_layers=2, image_size=24, hidden_size=24, num_attention_heads=2
    )
    tower = model.vision_model.vision_model
    assert len(tower.encoder.layers) == model.config.vision_config.num_hidden_layers == 2
    for mine, theirs in zip(tower.encoder.layers, clip.encoder.layers[:2], strict=True):
        assert torch.equal(mine.mlp.fc1.weight, theirs.mlp.fc1.weight)
    assert model.config.image_size == 24
    table = tower.embeddings.position_embedding.weight
    assert torch.equal(table, resize_positions(clip.embeddings.position_embedding.weight, 6, 6))


def test_fields_that_do_not_fit_the_trained_weights_are_refused_and_the_image_size_goes_by_either_name(tmp_path):
    saved_towers(tmp_path)
    folders = (tmp_path / "clip", tmp_path / "text")
    sizes = {"hidden_size": 24, "num_attention_heads": 2}
    for fields, named in (
        ({"vocab_size": 60}, r"DebertaV2Model do not fit vocab_size=60 .they have 50.; leave these fields out"),
        ({"patch_size": 8}, r"do not fit patch_size=8 .they have 4."),
        (
            {"vision_config": {"num_hidden_layers": 2, "hidden_size": 21, "attention_dropout": 0.1}},
            r"do not fit vision_config\.num_hidden_layers=2 .they have 3., vision_config\.hidden_size=21 .they",
        ),
    ):
        with pytest.raises(ConfigError, match=named) as caught:
            VLEModel.from_vision_text_pretrained(*folders, **sizes, **fields)
        assert "\n" not in str(caught.value)
    fields = {
        "vision_config": {"image_size": 24, "attention_dropout": 0.1},
        "text_config": {"hidden_dropout_prob": 0.3},
    }
    model = VLEModel.from_vision_text_pretrained(*folders, **sizes, **fields)
    expected = VLEModel.from_vision_text_pretrained(*folders, **sizes, image_size=24)
    assert model.config.image_size == 24
    assert torch.equal(model.vision_model.position_table, expected.vision_model.position_table)
    assert (model.config.vision_config.attention_dropout, model.config.text_config.hidden_dropout_prob) == (0.1, 0.3)


@pytest.mark.parametrize("size", [3, 300])
def test_a_damaged_tower_is_named(tmp_path, size):
    saved_towers(tmp_path)
    weights = tmp_path / "clip" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:size])
    with pytest.raises(CheckpointError, match=r"clip: cannot be read \(.*\); fetch it again$"):
        VLEModel.from_vision_text_pretrained(tmp_path / "clip", tmp_path / "text")


def test_folders_that_hold_no_tower_are_named(tmp_path):
    saved_towers(tmp_path)
    for vision, text, message in (
        ("text", "text", "text: is of model_type 'deberta-v2', which is not an image encoder such as CLIP"),
        ("clip", "vision", "vision: is of model_type 'clip_vision_model', which is not a text encoder such as DeBERTa"),
    ):
        with pytest.raises(CheckpointError, match=message):
            VLEModel.from_vision_text_pretrained(tmp_path / vision, tmp_path / text)
    with pytest.raises(CheckpointError, match="nowhere: holds no model"):
        VLEModel.from_vision_text_pretrained(tmp_path / "nowhere", tmp_path / "text")
    with pytest.raises(ConfigError, match=r"vision_layers=4: the tower in .* has 3 layers"):
        VLEModel.from_vision_text_pretrained(tmp_path / "clip", tmp_path / "text", vision_layers=4)
    with pytest.raises(ConfigError, match=r"'hidden_sze' .did you mean 'hidden_size'"):
        VLEModel.from_vision_text_pretrained(tmp_path / "clip", tmp_path / "text", hidden_sze=4)


def test_places_of_the_image_tower_may_start_larger_and_a_checkpoints_stay(tmp_path):
    torch.manual_seed(0)
    for wanted, found in ((0.5, 0.5), (None, 0.02)):
        model = VLEModel(VLEConfig.from_preset("vle-tiny", image_size=256, position_init_range=wanted))
        assert model.vision_model.position_table.std().item() == pytest.approx(found, rel=0.05)
    model.config.position_init_range = 0.5
    model.save_pretrained(tmp_path)
    loaded = VLEModel.from_pretrained(tmp_path)
    assert loaded.config.position_init_range == 0.5
    assert torch.equal(loaded.vision_model.position_table, model.vision_model.position_table)
