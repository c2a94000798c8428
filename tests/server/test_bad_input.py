"""Bad input for every path with an image or a text: a 4xx with the reason in one line; the next request works."""

import base64
import copy
import io
import json

import numpy as np
import pytest
from PIL import Image

from demo_models import bomb
from evle.server.tasks import ENDPOINTS

IMAGES = ("image", "left", "right")
TEXTS = ("question", "text", "label")
EVERY = pytest.mark.parametrize("endpoint", ENDPOINTS, ids=lambda each: each.name)


def encoded(data: bytes) -> str:
    return base64.b64encode(data).decode()


def changed(endpoint, fields, value):
    """The example of a path with other values in the fields that it has, or None where it has none of them."""
    body = copy.deepcopy(endpoint.example)
    present = [name for name in fields if name in body]
    return {**body, **dict.fromkeys(present, value)} if present else None


def check_refused(client, endpoint, body, words):
    response = client.post(f"/v1/{endpoint.name}", json=body)
    assert 400 <= response.status_code < 500, response.text
    message = response.json()["error"]["message"]
    assert words in message
    assert "\n" not in message
    assert len(message) < 600
    assert client.post(f"/v1/{endpoint.name}", json=endpoint.example).status_code == 200


@EVERY
@pytest.mark.parametrize(
    ("data", "words"), [(bomb(), "pixels"), (b"no image", "no image"), (b"\x89PNG\r\n\x1a\n", "image")], ids=str
)
def test_an_image_that_cannot_be_read(client, endpoint, data, words):
    body = changed(endpoint, IMAGES, encoded(data))
    if body is not None:
        check_refused(client, endpoint, body, words)


@EVERY
def test_a_text_of_100_000_characters(client, endpoint):
    if (body := changed(endpoint, TEXTS, "x" * 100_000)) is not None and "answers" not in body:
        check_refused(client, endpoint, body, "character")


@EVERY
def test_an_empty_list(client, endpoint):
    fields = ("answers",) if "answers" in endpoint.example else TEXTS
    if (body := changed(endpoint, fields, [])) is not None:
        check_refused(client, endpoint, body, "")


@pytest.mark.parametrize(
    "endpoint", [each for each in ENDPOINTS if each.ability != "explain"], ids=lambda each: each.name
)
def test_a_model_that_lacks_the_head(client, models, endpoint):
    other = next(each.name for each in models if endpoint.ability not in each.pipelines)
    check_refused(client, endpoint, {**endpoint.example, "model": other}, "choose one of")


@EVERY
def test_pixels_that_are_not_numbers_are_read_or_refused(client, endpoint):
    buffer = io.BytesIO()
    Image.fromarray(np.full((30, 40), np.nan, np.float32)).save(buffer, "TIFF")
    body = changed(endpoint, IMAGES, encoded(buffer.getvalue()))
    if body is not None:
        response = client.post(f"/v1/{endpoint.name}", json=body)
        assert response.status_code in (200, 422)
        json.loads(response.text, parse_constant=pytest.fail)  # no NaN


def test_a_measure_that_the_model_lacks(client):
    endpoint = next(each for each in ENDPOINTS if each.name == "explain")
    body = {**endpoint.example, "model": "vqa", "method": "pbc"}
    check_refused(client, endpoint, body, "'pbc' needs a VLE pre-trained with pbc")


def test_the_broken_image_of_a_re_ranking_is_named(client, red):
    def named(query, documents):
        response = client.post("/v1/rerank", json={"query": query, "documents": documents})
        assert response.status_code == 422, response.text
        return response.json()["error"]["message"].partition(":")[0]

    broken, good = {"image": encoded(b"no image")}, {"image": red}
    assert named(good, [good, broken]) == "documents.1"
    assert named(broken, [good, good]) == "query"
    assert named("a red ball", ["a ball", broken]) == "documents.1"


@pytest.mark.parametrize(
    ("box", "words"),
    [
        ({"x": 90}, "objects: object 0 begins at 90, 0, outside of the image"),
        ({"x": -50}, "objects: object 0 ends at -42, 8, outside"),
        ({"width": 0}, "objects.0.width"),
        ({"label": " "}, "objects.0.label"),
    ],
)
@pytest.mark.parametrize("endpoint", [each for each in ENDPOINTS if "objects" in each.example], ids=lambda e: e.name)
def test_an_object_that_is_not_in_the_image_is_refused(client, endpoint, box, words):
    body = copy.deepcopy(endpoint.example)
    body["objects"][0] |= box
    check_refused(client, endpoint, body, words)
