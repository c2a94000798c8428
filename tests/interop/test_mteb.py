"""mteb runs a local image-text retrieval task on models of evle, offline."""

import json
from pathlib import Path

import numpy as np
import pytest

import evle
from evle.errors import ConfigError, DataError
from evle.models.vle import VLEForRetrieval
from micro import plain_image
from retrieval_models import save_retrieval_model
from vle_folders import save_released

mteb = pytest.importorskip("mteb")
pytest.importorskip("sentence_transformers")
pytest.importorskip("evle.interop.mteb")
COLOURS = ("red", "blue", "green", "black", "white")


@pytest.fixture(scope="module")
def photos(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("photos")
    rows = []
    for index, colour in enumerate(COLOURS):
        plain_image(colour).save(folder / f"{colour}.png")
        caption = "a plain image" if index > 2 else f"a {colour} image"  # the last two share theirs
        rows.append({"image": f"{colour}.png", "captions": [caption], "match": colour, "split": "test"})
    (folder / "captions.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return folder


@pytest.mark.parametrize("family", ["eve", "vle"])
@pytest.mark.parametrize("direction", ["t2i", "i2t"])
def test_the_score_of_a_task_is_that_of_the_embeddings(family, direction, photos, tmp_path):
    from evle.interop.mteb import encoder, retrieval_task

    folder = tmp_path / "model"
    save_retrieval_model(folder) if family == "eve" else save_released(folder, VLEForRetrieval)
    task = retrieval_task(photos, direction=direction)
    (result,) = mteb.evaluate(encoder(folder, device="cpu"), task, cache=None, show_progress_bar=False).task_results
    (scores,) = result.scores["test"]
    embed = evle.EmbedPipeline(folder, device="cpu")
    captions = ["a red image", "a blue image", "a green image", "a plain image"]
    similarity = (embed.texts(captions) @ embed.images([photos / f"{colour}.png" for colour in COLOURS]).T).numpy()
    right = np.eye(4, 5, dtype=bool)
    right[3, 4] = True
    if direction == "i2t":
        similarity, right = similarity.T, right.T
    first = [bool(right[row, int(similarity[row].argmax())]) for row in range(len(similarity))]
    assert scores["hit_rate_at_1"] == pytest.approx(np.mean(first), abs=1e-3)
    assert 0 < scores["main_score"] <= 1


def test_what_cannot_be_is_one_line(photos):
    from evle.interop.mteb import retrieval_task

    with pytest.raises(ConfigError, match="direction 'i2i' is not known; did you mean"):
        retrieval_task(photos, direction="i2i")  # type: ignore[arg-type]
    with pytest.raises(DataError, match="val"):
        retrieval_task(photos, split="val").load_data()
