"""SentenceTransformer and CrossEncoder load folders of evle, agree with its pipelines, train, and are loaded again."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import evle
from evle.errors import ConfigError, DataError
from evle.models.folders import is_ours
from evle.models.vle import VLEForRetrieval
from micro import plain_image
from retrieval_models import save_retrieval_model
from vle_folders import save_released

st = pytest.importorskip("sentence_transformers")
pytest.importorskip("sentence_transformers.sentence_transformer.losses")
pytest.importorskip("sentence_transformers.cross_encoder.losses")
pytest.importorskip("sentence_transformers.base.modules")
datasets = pytest.importorskip("datasets")
COLOURS = ("red", "blue", "green", "black")
TEXTS = [f"A {colour} ball!" for colour in COLOURS]
IMAGES = [plain_image(colour) for colour in COLOURS]


def save_vle(folder: Path) -> Path:
    return save_released(folder, VLEForRetrieval)


@pytest.fixture(scope="module", params=[save_retrieval_model, save_vle], ids=["eve", "vle"])
def folder(request, tmp_path_factory) -> Path:
    return request.param(tmp_path_factory.mktemp("model") / "retrieval")


def test_texts_images_and_pairs_are_embedded_as_the_pipeline_does(folder, tmp_path):
    model = st.SentenceTransformer(str(folder), device="cpu")
    embed = evle.EmbedPipeline(folder, device="cpu")
    texts, images = embed.texts(TEXTS).numpy(), embed.images(IMAGES).numpy()
    np.testing.assert_allclose(model.encode(TEXTS), texts, atol=1e-5)
    np.testing.assert_allclose(model.encode(IMAGES), images, atol=1e-5)
    IMAGES[0].save(tmp_path / "a.png")
    np.testing.assert_allclose(model.encode(str(tmp_path / "a.png")), images[0], atol=1e-5)
    np.testing.assert_allclose(model.encode([np.asarray(IMAGES[0])])[0], images[0], atol=1e-5)
    pairs = model.encode([{"image": image, "text": text} for image, text in zip(IMAGES, TEXTS)])
    both = texts + images
    np.testing.assert_allclose(pairs, both / np.linalg.norm(both, axis=1, keepdims=True), atol=1e-5)
    assert model.get_embedding_dimension() == texts.shape[1]


def test_pairs_are_scored_as_the_pipeline_does(folder):
    model = st.CrossEncoder(str(folder), device="cpu")
    wanted = [row["score"] for row in evle.MatchPipeline(folder, device="cpu")(IMAGES, TEXTS)]
    for pairs in (list(zip(TEXTS, IMAGES)), list(zip(IMAGES, TEXTS))):
        np.testing.assert_allclose(model.predict(pairs), wanted, atol=1e-5)
    ranked = model.rank(TEXTS[0], IMAGES)
    assert [row["score"] for row in ranked] == sorted((row["score"] for row in ranked), reverse=True)


def test_both_train_and_what_is_saved_is_a_model_of_evle(folder, tmp_path):
    rows = datasets.Dataset.from_dict({"image": IMAGES, "text": TEXTS})
    model = st.SentenceTransformer(str(folder), device="cpu")
    before = model.encode(TEXTS)
    arguments = {"max_steps": 2, "per_device_train_batch_size": 4, "use_cpu": True, "report_to": []}
    st.SentenceTransformerTrainer(
        model=model,
        args=st.SentenceTransformerTrainingArguments(str(tmp_path / "a"), learning_rate=1e-2, **arguments),
        train_dataset=rows,
        loss=st.sentence_transformer.losses.MultipleNegativesRankingLoss(model),
    ).train()
    after = model.encode(TEXTS)
    assert np.abs(after - before).max() > 1e-3
    model.save(str(tmp_path / "saved"))
    np.testing.assert_allclose(
        st.SentenceTransformer(str(tmp_path / "saved"), device="cpu").encode(TEXTS), after, atol=1e-5
    )
    np.testing.assert_allclose(evle.EmbedPipeline(tmp_path / "saved", device="cpu").texts(TEXTS), after, atol=1e-5)

    rows = rows.add_column("label", [1.0, 0.0, 1.0, 0.0])
    judge = st.CrossEncoder(str(folder), device="cpu")
    pairs = list(zip(TEXTS, IMAGES))
    before = judge.predict(pairs)
    st.CrossEncoderTrainer(
        model=judge,
        args=st.CrossEncoderTrainingArguments(str(tmp_path / "b"), learning_rate=1e-2, **arguments),
        train_dataset=rows,
        loss=st.cross_encoder.losses.BinaryCrossEntropyLoss(judge),
    ).train()
    after = judge.predict(pairs)
    assert np.abs(after - before).max() > 1e-3
    judge.save(str(tmp_path / "judge"))
    np.testing.assert_allclose(st.CrossEncoder(str(tmp_path / "judge"), device="cpu").predict(pairs), after, atol=1e-5)


@pytest.mark.parametrize(
    ("order", "save"),
    [
        ("import evle, sentence_transformers as st", save_retrieval_model),
        ("import sentence_transformers as st, evle", save_vle),
    ],
    ids=["evle first", "sentence_transformers first"],
)
def test_the_order_of_imports_does_not_matter(order, save, tmp_path):
    folder = save(tmp_path / "model")
    code = f"{order}; print(len(st.SentenceTransformer({str(folder)!r}, device='cpu').encode(['a'])))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "1", done.stderr


def test_what_cannot_be_is_one_line(folder, tmp_path):
    with pytest.raises(
        ConfigError, match="cannot be a SparseEncoder; load it as one of: SentenceTransformer, CrossEnc"
    ):
        st.SparseEncoder(str(folder))
    judge = st.CrossEncoder(str(folder), device="cpu")
    with pytest.raises(DataError, match="a pair needs one text and one image"):
        judge.predict([("a red ball", "a blue ball")])
    model = st.SentenceTransformer(str(folder), device="cpu")
    with pytest.raises(ConfigError, match="saved as safetensors only"):
        model.save(str(tmp_path / "x"), safe_serialization=False)
    model.max_seq_length = 4
    assert model.preprocess(TEXTS)["input_ids"].shape == (4, 4)


def test_other_models_are_loaded_as_before(tmp_path):
    assert not is_ours(str(tmp_path))
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    assert not is_ours(str(tmp_path))
    module = st.base.modules.Dense(4, 2)
    model = st.SentenceTransformer(modules=[module], device="cpu")
    assert model({"sentence_embedding": torch.ones(1, 4)})["sentence_embedding"].shape == (1, 2)
