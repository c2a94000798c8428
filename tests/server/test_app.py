"""Every path answers as its pipeline does, as JSON and as a form, and refuses what it cannot use in one line."""

import base64
import json
import threading
import time
import zlib
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from evle.server.tasks import ENDPOINTS


def by_name(models, name):
    return next(model for model in models if name == model.name)


def refused(response, status, *words):
    assert response.status_code == status, response.text
    message = response.json()["error"]["message"]
    assert all(word in message for word in words), message
    assert "\n" not in message
    return message


@pytest.mark.parametrize("endpoint", ENDPOINTS, ids=lambda endpoint: endpoint.name)
def test_every_example_is_answered(client, endpoint):
    response = client.post(f"/v1/{endpoint.name}", json=endpoint.example)
    assert response.status_code == 200, response.text
    endpoint.response.model_validate(response.json(), strict=True)


def test_answers_are_those_of_the_pipelines(client, models, png, red):
    image = png("red")
    asked = client.post("/v1/ask", json={"image": red, "question": ["what colour?", "how many?"], "top_k": 2}).json()
    expected = by_name(models, "vqa").pipelines["ask"](image, ["what colour?", "how many?"], top_k=2)
    assert [row["answer"] for row in asked["results"]] == [row["answer"] for row in expected]
    assert [len(row["answers"]) for row in asked["results"]] == [2, 2]
    matched = client.post("/v1/match", json={"image": red, "text": ["a red ball", "a blue ball"]}).json()
    expected = by_name(models, "retrieval").pipelines["match"](image, ["a red ball", "a blue ball"])
    assert [row["score"] for row in matched["results"]] == pytest.approx([row["score"] for row in expected], abs=1e-6)


def test_a_form_and_json_get_the_same_answer(client, png, red):
    data = {"question": ["what colour?", "how many?"], "top_k": "2"}
    form = client.post("/v1/ask", data=data, files={"image": ("a.png", png("red"), "image/png")})
    assert form.status_code == 200, form.text
    asked = client.post("/v1/ask", json={"image": red, "question": data["question"], "top_k": 2})
    assert form.json() == asked.json()


def test_nested_fields_of_a_form_are_json(client, png):
    example = next(endpoint.example for endpoint in ENDPOINTS if endpoint.name == "reason")
    nested = {name: json.dumps(value) for name, value in example.items() if name != "image"}
    response = client.post("/v1/reason", data=nested, files={"image": png()})
    assert response.status_code == 200, response.text
    nested["objects"] = "{"
    refused(client.post("/v1/reason", data=nested, files={"image": png()}), 422, "objects: this field")


def test_embeddings_have_the_form_of_openai(client, models, red):
    items = ["a red ball", {"image": red}, {"text": "a blue ball"}]
    answer = client.post("/v1/embeddings", json={"input": items, "model": "retrieval"}).json()
    assert [row["index"] for row in answer["data"]] == [0, 1, 2]
    vectors = np.array([row["embedding"] for row in answer["data"]])
    pipeline = by_name(models, "retrieval").pipelines["embed"]
    assert np.allclose(vectors[[0, 2]], pipeline.texts(["a red ball", "a blue ball"]), atol=1e-5)
    assert np.allclose(vectors[1], pipeline.images(base64.b64decode(red))[0], atol=1e-5)
    assert answer["usage"]["prompt_tokens"] > 6
    packed = client.post("/v1/embeddings", json={"input": "a red ball", "encoding_format": "base64"}).json()
    assert np.allclose(np.frombuffer(base64.b64decode(packed["data"][0]["embedding"]), "<f4"), vectors[0], atol=1e-5)
    refused(client.post("/v1/embeddings", json={"input": "a", "dimensions": 3}), 422, "dimensions")


def test_openais_own_client_reads_the_embeddings(client):
    openai = pytest.importorskip("openai")
    api = openai.OpenAI(base_url=f"{client.base_url}/v1", api_key="x", http_client=client, max_retries=0)
    vector = api.embeddings.create(model="retrieval", input=["a red ball"]).data[0].embedding
    plain = client.post("/v1/embeddings", json={"input": "a red ball"}).json()["data"][0]["embedding"]
    assert np.allclose(vector, plain, atol=1e-6)
    assert "retrieval" in [model.id for model in api.models.list()]


def test_documents_are_ordered_by_their_match(client, models, png, red, blue):
    documents = [{"image": blue}, {"image": red}]
    answer = client.post("/v1/rerank", json={"query": "a red ball", "documents": documents}).json()["results"]
    scores = by_name(models, "retrieval").pipelines["match"]([png("blue"), png("red")], "a red ball")
    assert {row["index"]: row["relevance_score"] for row in answer} == pytest.approx(
        dict(enumerate(row["score"] for row in scores)), abs=1e-6
    )
    assert answer[0]["relevance_score"] >= answer[1]["relevance_score"]
    texts = {"query": {"image": red}, "documents": ["a red ball", "a blue ball"], "top_n": 1, "return_documents": True}
    (best,) = client.post("/rerank", json=texts).json()["results"]
    assert best["document"]["text"] == texts["documents"][best["index"]]


def test_texts_are_ordered_by_their_embeddings(client, models):
    texts = ["a blue ball", "a red ball", "what colour"]
    answer = client.post("/rerank", json={"query": "a red ball", "documents": texts}).json()["results"]
    assert answer[0]["index"] == 1
    assert answer[0]["relevance_score"] == pytest.approx(1.0, abs=1e-5)


# What is refused


@pytest.mark.parametrize(
    ("body", "status", "words"),
    [
        (b"{", 400, "not valid JSON"),
        (b"[" * 100_000, 400, "not valid JSON"),
        (b"\xff\xfe", 400, "not valid JSON"),
        (b"[]", 422, "object"),
        (b'{"question": "what?"}', 422, "image: Field required"),
        (b'{"image": "", "question": "what?"}', 422, "image: the image is empty"),
        (b'{"image": "aGVsbG8=", "question": "what?"}', 422, "no image that Pillow can read"),
        (b'{"image": "http://localhost/a.png", "question": "what?"}', 422, "URLs and paths are never opened"),
        (b'{"image": "file:///etc/passwd", "question": "what?"}', 422, "URLs and paths are never opened"),
        (b'{"image": "/etc/hostname", "question": "what?"}', 422, "URLs and paths are never opened"),
        (b'{"image": "../a.png", "question": "what?"}', 422, "URLs and paths are never opened"),
        (b'{"image": "RED", "question": []}', 422, "question: the list is empty"),
        (b'{"image": "RED", "question": "  "}', 422, "the text is empty"),
        (b'{"image": "RED", "question": "what?", "top_k": 0}', 422, "top_k"),
        (b'{"image": "RED", "question": "what?", "top_k": NaN}', 422, "top_k"),
        (b'{"image": "RED", "question": "what?", "topk": 1}', 422, "topk"),
        (b'{"image": "RED", "question": "what?", "model": "nope"}', 404, "choose one of: nlvr2, pbc"),
        (b'{"image": "RED", "question": "what?", "model": "retrieval"}', 404, "cannot ask; choose one of: vqa"),
    ],
)
def test_bad_input_is_one_line(client, red, body, status, words):
    body = body.replace(b"RED", red.encode())
    refused(client.post("/v1/ask", content=body, headers={"content-type": "application/json"}), status, words)


def test_other_bodies_are_refused(client, png):
    refused(client.post("/v1/ask", content=b"x", headers={"content-type": "text/plain"}), 415, "text/plain")
    headers = {"content-type": "multipart/form-data"}
    refused(client.post("/v1/ask", content=b"x", headers=headers), 400, "form")
    headers = {"content-type": "multipart/form-data; boundary=b"}
    refused(client.post("/v1/ask", content=b"--b\r\nnonsense", headers=headers), 422, "image: Field required")
    response = client.post("/v1/ask", data={"question": "what?"}, files={"image": b"not an image"})
    refused(response, 422, "no image that Pillow can read")
    refused(client.get("/nope"), 404, "no such path")
    refused(client.get("/v1/ask"), 405, "another method")


def test_limits_hold(serving, png, red):
    client = serving(body_bytes=5000, pixels=2000, side_ratio=10, texts=3, text_length=20)

    def ask(image, question="what?"):
        return client.post("/v1/ask", json={"image": base64.b64encode(image).decode(), "question": question})

    assert ask(png()).status_code == 200
    refused(ask(b"x" * 6000), 413, "5,000 bytes")
    refused(ask(png(size=(50, 41))), 422, "50 x 41 pixels")
    refused(ask(png(size=(100, 1))), 422, "10 times")
    refused(ask(png(), ["what?"] * 4), 422, "more than 3")
    refused(ask(png(), "a" * 21), 422, "21 characters")


def test_base64_may_be_in_lines_as_programs_print_it(client, png):
    lines = base64.encodebytes(png()).decode()
    assert "\n" in lines
    answers = [
        client.post("/v1/ask", json={"image": image, "question": "what?"})
        for image in (lines, lines.replace("\n", ""), f"data:image/png;base64,{lines}")
    ]
    assert [each.status_code for each in answers] == [200] * 3
    assert answers[0].json() == answers[1].json() == answers[2].json()


def test_a_body_without_a_length_is_measured(serving):
    client = serving(body_bytes=1000)

    def endless():
        while True:
            yield b"x" * 100

    response = client.post("/v1/ask", content=(next(endless()) for _ in range(50)))
    refused(response, 413, "1,000 bytes")


def test_a_decompression_bomb_is_refused_by_its_header(client, png):
    bomb = bytearray(png())
    bomb[16:24] = (60000).to_bytes(4, "big") * 2
    bomb[29:33] = zlib.crc32(bomb[12:29]).to_bytes(4, "big")
    response = client.post("/v1/ask", data={"question": "what?"}, files={"image": bytes(bomb)})
    refused(response, 422, "pixels")


def test_a_key_is_needed_where_one_is_set(serving, red):
    client = serving(key="a secret key")
    body = {"image": red, "question": "what?"}
    for wrong in ({}, {"Authorization": "Bearer nope"}, {"Authorization": "Basic a secret key"}):
        response = client.post("/v1/ask", json=body, headers=wrong)
        refused(response, 401, "Authorization")
        assert response.headers["www-authenticate"] == "Bearer"
    right = {"Authorization": "Bearer a secret key"}
    assert client.post("/v1/ask", json=body, headers=right).status_code == 200
    assert client.get("/metrics").status_code == 401
    assert client.get("/metrics", headers=right).status_code == 200
    assert client.get("/healthz").status_code == 200


def test_a_request_keeps_its_id(client):
    assert client.get("/healthz", headers={"X-Request-ID": "abc-1"}).headers["X-Request-ID"] == "abc-1"
    odd = client.get("/healthz", headers={"X-Request-ID": "a b"}).headers["X-Request-ID"]
    assert len(odd) == 32
    missing = client.get("/nope", headers={"X-Request-ID": "abc-2"})
    assert missing.json()["error"]["request_id"] == "abc-2"


def test_metrics_count_requests_and_batches(client, red):
    client.post("/v1/ask", json={"image": red, "question": "what?"})
    client.post("/v1/ask", json={"image": red})
    client.get(f"/{'x' * 50}")
    shown = client.get("/metrics").text
    assert 'evle_requests_total{path="/v1/ask",status="200"} 1.0' in shown
    assert 'evle_requests_total{path="/v1/ask",status="422"} 1.0' in shown
    assert 'evle_batch_rows_count{model="vqa"} 1.0' in shown
    assert 'evle_queue_rows{model="vqa"} 0.0' in shown
    assert "xxx" not in shown


def test_the_page_lists_every_path(client):
    page = client.get("/docs").text
    described = client.get("/openapi.json").json()
    assert "<script" not in page
    for path in described["paths"]:
        assert f"<code>{path}</code>" in page
    assert {"/v1/embeddings", "/rerank", "/v1/ask", "/healthz"} <= described["paths"].keys()


# Many at once


def test_a_fault_does_not_touch_the_neighbours_in_its_batch(serving, models, red, monkeypatch):
    client = serving(wait_ms=300)
    pipeline = by_name(models, "vqa").pipelines["ask"]
    whole, sizes = pipeline.best, []

    def best(sources, questions, top_k):
        sizes.append(len(questions))
        if "bad" in questions:
            raise RuntimeError("a fault")
        return whole(sources, questions, top_k)

    monkeypatch.setattr(pipeline, "best", best)
    questions = ["what?", "bad", "how many?"]
    with ThreadPoolExecutor(3) as pool:
        answers = list(pool.map(lambda text: client.post("/v1/ask", json={"image": red, "question": text}), questions))
    assert [answer.status_code for answer in answers] == [200, 500, 200]
    assert [answer.json()["results"][0]["question"] for answer in answers[::2]] == ["what?", "how many?"]
    assert max(sizes) > 1
    assert "a fault" not in answers[1].text


def test_overload_is_refused_with_retry_after(serving, models, red, monkeypatch):
    client = serving(queue=2, texts=2, wait_ms=0, seconds=20)
    pipeline = by_name(models, "vqa").pipelines["ask"]
    whole, taken, release = pipeline.best, threading.Event(), threading.Event()

    def best(*arguments):
        taken.set()
        release.wait(10)
        return whole(*arguments)

    monkeypatch.setattr(pipeline, "best", best)
    with ThreadPoolExecutor(8) as pool:
        body = {"image": red, "question": "what?"}
        waiting = [pool.submit(client.post, "/v1/ask", json=body)]
        assert taken.wait(10)  # the first is out of the queue, which holds two of the others
        waiting += [pool.submit(client.post, "/v1/ask", json=body) for _ in range(7)]
        while sum(future.done() for future in waiting) < 5:
            time.sleep(0.01)
        release.set()
        done = [future.result() for future in waiting]
    statuses = sorted(answer.status_code for answer in done)
    assert statuses == [200] * 3 + [429] * 5
    refusals = [answer for answer in done if answer.status_code == 429]
    assert all(answer.headers["retry-after"] == "1" for answer in refusals)


def test_a_slow_answer_is_503(serving, models, red, monkeypatch):
    client = serving(seconds=0.3)
    pipeline = by_name(models, "vqa").pipelines["ask"]
    release = threading.Event()
    monkeypatch.setattr(pipeline, "best", lambda *_: release.wait(5) and [])
    response = client.post("/v1/ask", json={"image": red, "question": "what?"})
    release.set()
    refused(response, 503, "0.3 seconds")
    assert response.headers["retry-after"] == "1"
