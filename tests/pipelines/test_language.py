"""VQA with a language model: what it is told, and what happens when its server is absent, slow, busy or babbling."""

import contextlib
import json
import socket
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import torch
from PIL import Image
from tokenizers import processors
from transformers import BlipConfig, BlipForConditionalGeneration, BlipImageProcessor, GPT2Config, GPT2LMHeadModel

from evle.errors import CheckpointError, ConfigError, DataError, ServiceError
from evle.pipelines import ChatEndpoint, LanguageVQAPipeline, LocalCaptioner, LocalLanguageModel, VQAPipeline
from evle.pipelines.language import chat
from evle.pipelines.language.answering import prompt
from evle.transforms.text import train_tokenizer
from retrieval_models import save_vqa_model

KEY = "sk-very-secret-0123456789"
RED = Image.new("RGB", (40, 30), "red")
GOOD = (200, {"choices": [{"message": {"role": "assistant", "content": " A red ball. "}}]}, {})


class Server:
    """A chat server on this machine that plays `script`: (status, JSON or bytes, headers) or seconds to be silent,
    the last part for ever. `requests` are what it was sent: (path, headers, body)."""

    def __init__(self, *script):
        self.requests = []
        script = list(script)

        class Handler(BaseHTTPRequestHandler):
            def do_POST(handler):
                body = json.loads(handler.rfile.read(int(handler.headers["Content-Length"])))
                headers = {name.title(): value for name, value in handler.headers.items()}
                self.requests.append((handler.path, headers, body))
                part = script.pop(0) if len(script) > 1 else script[0]
                if isinstance(part, int | float):
                    time.sleep(part)
                    return
                status, content, headers = part
                data = content if isinstance(content, bytes) else json.dumps(content).encode()
                handler.send_response(status)
                for name, value in {"Content-Length": str(len(data)), **headers}.items():
                    handler.send_header(name, value)
                handler.end_headers()
                handler.wfile.write(data)

            def log_message(handler, *_):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_port}/v1"
        threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True).start()

    def close(self):
        self.server.shutdown()
        self.server.server_close()


@pytest.fixture
def serve():
    servers = []

    def start(*script):
        servers.append(Server(*script))
        return servers[-1]

    yield start
    for server in servers:
        server.close()


@pytest.fixture(autouse=True)
def environment(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.setenv("no_proxy", "*")


@pytest.fixture(scope="module")
def vqa(tmp_path_factory):
    return VQAPipeline(save_vqa_model(tmp_path_factory.mktemp("vqa")))


def endpoint(server, **options) -> ChatEndpoint:
    return ChatEndpoint(server.url, "a-model", backoff=0.01, **options)


ASK = [{"role": "user", "content": "hello"}]


# --- what it is told


def test_the_prompt_holds_caption_question_and_candidates_with_their_scores():
    system, user = prompt(
        "What colour?", [{"answer": "red", "score": 0.9}, {"answer": "blue", "score": 0.05}], "a ball"
    )
    assert system["role"] == "system"
    assert "may be wrong" in system["content"]
    assert user["content"].splitlines() == [
        "Description of the image: a ball",
        "Question: What colour?",
        "Candidate answers:",
        "- red (0.900)",
        "- blue (0.050)",
    ]
    assert "Description" not in prompt("What colour?", [], None)[1]["content"]


def test_the_request_names_the_model_and_carries_key_and_options(serve, vqa):
    server = serve(GOOD)
    ask = LanguageVQAPipeline(vqa, endpoint(server, options={"temperature": 0}))
    row = ask(RED, "What colour?", captions="a ball", top_k=2)[0]
    path, headers, body = server.requests[0]
    assert path == "/v1/chat/completions"
    assert headers["Authorization"] == f"Bearer {KEY}"
    assert body["model"] == "a-model"
    assert body["temperature"] == 0
    assert body["messages"] == prompt("What colour?", row["answers"], "a ball")
    assert len(row["answers"]) == 2
    assert row["reply"] == "A red ball."


def test_without_a_language_model_the_vqa_answer_stands_alone(vqa):
    row = LanguageVQAPipeline(vqa)(RED, "What colour?")[0]
    alone = vqa(RED, "What colour?")[0]
    assert row == {**alone, "caption": None, "reply": alone["answer"]}


def test_captions_are_one_a_question_or_one_for_all(vqa):
    ask = LanguageVQAPipeline(vqa)
    assert [row["caption"] for row in ask(RED, ["a?", "b?"], captions="ball")] == ["ball", "ball"]
    assert [row["caption"] for row in ask(RED, ["a?", "b?"], captions=["one", "two"])] == ["one", "two"]
    assert ask([], [], captions=[]) == []
    with pytest.raises(DataError, match="3 captions for 2 questions"):
        ask(RED, ["a?", "b?"], captions=["x", "y", "z"])


def test_without_the_package_its_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "openai", None)
    with pytest.raises(ConfigError, match=r"needs the package openai; pip install 'evle\[language\]'"):
        ChatEndpoint("http://localhost:1/v1", "m").complete(ASK)


def test_no_key_is_sent_where_none_is_set(serve, monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY")
    server = serve(GOOD)
    assert endpoint(server).complete(ASK) == "A red ball."
    assert "Authorization" not in server.requests[0][1]
    monkeypatch.setenv("MY_KEY", "other")
    assert ChatEndpoint(server.url + "/", "m", key_variable="MY_KEY").complete(ASK) == "A red ball."
    assert server.requests[1][1]["Authorization"] == "Bearer other"
    assert server.requests[1][0] == "/v1/chat/completions"


# --- what goes wrong


def test_a_busy_server_is_asked_again_and_no_earlier_than_it_says(serve):
    server = serve((429, {"error": {"message": "slow down"}}, {"Retry-After": "0.3"}), (503, b"", {}), GOOD)
    start = time.monotonic()
    assert endpoint(server).complete(ASK) == "A red ball."
    assert len(server.requests) == 3
    assert time.monotonic() - start >= 0.3


def test_a_server_that_stays_busy_is_given_up(serve):
    server = serve((429, {"error": {"message": "no credit left"}}, {}))
    with pytest.raises(ServiceError, match=r"status 429, too many requests.*no credit left.*\(3 attempts\)"):
        endpoint(server, retries=2).complete(ASK)
    assert len(server.requests) == 3


def test_a_server_that_is_not_there_is_named_after_every_try(serve):
    server = serve(GOOD)
    server.close()
    with pytest.raises(ServiceError, match=r"completions: no connection .*refused.*running.*\(2 attempts\)"):
        endpoint(server, retries=1).complete(ASK)


def test_a_silent_server_ends_in_a_time_out(serve):
    server = serve(1.0)
    start = time.monotonic()
    with pytest.raises(ServiceError, match=r"within 0.2 s.*\(1 attempts\)"):
        endpoint(server, timeout=0.2, retries=0).complete(ASK)
    assert time.monotonic() - start < 0.9


def test_a_slow_start_is_forgiven_when_the_next_try_is_answered(serve):
    server = serve(0.6, GOOD)
    assert endpoint(server, timeout=0.2).complete(ASK) == "A red ball."
    assert len(server.requests) == 2


def test_a_reply_that_breaks_off_is_asked_for_again(serve):
    torn = (200, b'{"choices": [', {"Content-Length": "500"})
    server = serve(torn, GOOD)
    assert endpoint(server).complete(ASK) == "A red ball."
    assert len(server.requests) == 2


@pytest.mark.parametrize(
    "content", [b"<html>a web page</html>", {"choices": []}, {"result": "red"}, [1], {"choices": [{"message": None}]}]
)
def test_a_reply_of_another_form_is_shown_and_not_asked_for_again(serve, content):
    server = serve((200, content, {}))
    with pytest.raises(ServiceError, match=r"not of OpenAI's chat form.*it begins") as caught:
        endpoint(server).complete(ASK)
    assert (content.decode() if isinstance(content, bytes) else json.dumps(content)) in str(caught.value)
    assert len(server.requests) == 1


@pytest.mark.parametrize(("status", "message"), [(200, "not of OpenAI's chat form"), (400, "status 400")])
def test_a_reply_nested_without_end_is_no_reply(serve, status, message):
    with pytest.raises(ServiceError, match=message):
        endpoint(serve((status, b"[" * 200_000, {}))).complete(ASK)


@pytest.mark.parametrize("content", ["", "  ", None])
def test_an_empty_reply_is_no_answer(serve, content):
    with pytest.raises(ServiceError, match="'a-model' replied with nothing"):
        endpoint(serve((200, {"choices": [{"message": {"content": content}}]}, {}))).complete(ASK)


def test_a_wrong_key_is_said_once_without_the_key(serve):
    server = serve((401, {"error": {"message": f"Incorrect API key provided: {KEY}"}}, {}))
    with pytest.raises(ServiceError, match=r"status 401, the key is wrong or missing: .*OPENAI_API_KEY") as caught:
        endpoint(server).complete(ASK)
    assert len(server.requests) == 1
    assert KEY not in str(caught.value)
    assert "Incorrect API key provided: ***" in str(caught.value)


def test_an_unknown_model_is_named(serve):
    with pytest.raises(ServiceError, match="status 404, there is no such path, or no model 'a-model'"):
        endpoint(serve((404, {"error": "not found"}, {}))).complete(ASK)


def test_the_key_is_never_sent_to_where_a_server_redirects(serve):
    other = serve(GOOD)
    server = serve((302, b"", {"Location": other.url}), GOOD)
    with pytest.raises(ServiceError, match="status 302, it redirects"):
        endpoint(server).complete(ASK)
    assert other.requests == []


def test_the_key_is_in_no_text_of_ours(serve, monkeypatch):
    server = endpoint(serve(GOOD))
    assert KEY not in repr(server)
    monkeypatch.setenv("OPENAI_API_KEY", "secret\nX-Evil: 1")
    with pytest.raises(ConfigError, match="OPENAI_API_KEY is no key") as caught:
        server.complete(ASK)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    "url",
    [
        "localhost:8000",
        "file:///etc/passwd",
        "http://",
        "",
        "http://[::1",
        "http://a:port/v1",
        "http://a/ü",
        "http://ü",
    ],
)
def test_what_is_no_address_is_refused(url):
    with pytest.raises(ConfigError, match="not the base URL"):
        ChatEndpoint(url, "m")


def test_an_address_with_a_password_is_refused_without_repeating_it():
    with pytest.raises(ConfigError, match="environment variable") as caught:
        ChatEndpoint("https://me:hunter2@example.org/v1", "m")
    assert "hunter2" not in str(caught.value)


def test_impossible_waits_are_refused():
    with pytest.raises(ConfigError, match="timeout=0"):
        ChatEndpoint("http://localhost/v1", "m", timeout=0)


@pytest.mark.parametrize(
    ("options", "message"),
    [({"stream": True}, "read whole, not in parts"), ({"stop": {"a"}}, "cannot be sent as JSON")],
)
def test_options_that_no_reply_could_come_of_are_refused(options, message):
    with pytest.raises(ConfigError, match=message):
        ChatEndpoint("http://localhost/v1", "m", options=options)


class Trickle:
    """A server that never finishes: it sends `start`, then `more` again and again."""

    def __init__(self, start: bytes, more: bytes):
        self.socket = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self.socket.getsockname()[1]}/v1"
        threading.Thread(target=self.run, args=(start, more), daemon=True).start()

    def run(self, start: bytes, more: bytes) -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = self.socket.accept()
                with contextlib.suppress(OSError):
                    connection.sendall(start)
                    while True:
                        time.sleep(0.05)
                        connection.sendall(more)

    def close(self) -> None:
        self.socket.close()


ENDLESS = {
    "headers": (b"HTTP/1.1 200 OK\r\nX-Long: ", b"x"),
    "more and more headers": (b"HTTP/1.1 200 OK\r\n", b"X-A: b\r\n"),
    "100 Continue": (b"", b"HTTP/1.1 100 Continue\r\n\r\n"),
    "error": (b"HTTP/1.1 500 Oh\r\nContent-Length: 100000\r\n\r\n", b"x"),
    "refusal": (b"HTTP/1.1 400 Oh\r\nTransfer-Encoding: chunked\r\n\r\n", b"1\r\nx\r\n"),
    "chunk extension": (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1;", b"x"),
    "body": (b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n", b" "),
}


@pytest.mark.parametrize("name", ENDLESS)
def test_the_time_out_holds_however_slowly_a_server_trickles(name):
    server = Trickle(*ENDLESS[name])
    start = time.monotonic()
    with pytest.raises(ServiceError, match=r"within 0\.4 s.*\(1 attempts\)"):
        endpoint(server, timeout=0.4, retries=0).complete(ASK)
    assert time.monotonic() - start < 1.5
    server.close()


def test_an_endless_reply_is_not_kept(serve, monkeypatch):
    monkeypatch.setattr(chat, "MAX_REPLY", 1000)
    with pytest.raises(ServiceError, match="over 1,000 bytes"):
        endpoint(serve((200, b" " * 100_000, {}))).complete(ASK)


def test_the_account_of_another_service_is_not_sent(serve, monkeypatch):
    monkeypatch.setenv("OPENAI_ORG_ID", "org-1")
    monkeypatch.setenv("OPENAI_PROJECT_ID", "project-1")
    server = serve(GOOD)
    endpoint(server).complete(ASK)
    assert not {"org-1", "project-1"} & set(server.requests[0][1].values())


# --- models on this machine


@pytest.fixture(scope="module")
def language_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("language")
    tokenizer = train_tokenizer(["a red ball", "what colour is the ball"], 300)
    tokenizer.backend_tokenizer.post_processor = processors.ByteLevel()  # a text to go on with has no end
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=len(tokenizer), n_embd=16, n_layer=1, n_head=2, n_positions=1024, bos_token_id=2, eos_token_id=3
    )
    GPT2LMHeadModel(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def test_a_model_on_this_machine_replies_the_same_each_time(language_folder, vqa):
    model = LocalLanguageModel(language_folder, max_new_tokens=5)
    row = LanguageVQAPipeline(vqa, model)(RED, "what colour?", captions="a ball")[0]
    assert row["reply"] == model.complete(prompt("what colour?", row["answers"], "a ball"))
    assert row["reply"].strip()


def test_a_chat_template_is_used_where_there_is_one(language_folder):
    model = LocalLanguageModel(language_folder, max_new_tokens=3)
    plain = model.complete(ASK)
    model.tokenizer.chat_template = "{% for m in messages %}{{ m['content'] }} ball ball red{% endfor %}"
    seen = []
    generate = model.model.generate
    model.model.generate = lambda **inputs: seen.append(inputs["input_ids"]) or generate(**inputs)
    assert isinstance(model.complete(ASK), str)
    assert "hello ball ball red" in model.tokenizer.decode(seen[0][0])
    assert plain


def told(model: LocalLanguageModel, template: str) -> str:
    """What a model reads of a prompt by a chat template."""
    model.tokenizer.chat_template = template
    seen = []
    generate = model.model.generate
    model.model.generate = lambda **inputs: seen.append(inputs["input_ids"]) or generate(**inputs)
    model.complete(prompt("what colour?", [{"answer": "red", "score": 0.9}]))
    return model.tokenizer.decode(seen[0][0]).strip()


def test_a_template_without_a_system_message_has_it_in_the_question(language_folder):
    """Gemma's and Mistral's first templates raise where they meet one."""
    model = LocalLanguageModel(language_folder, max_new_tokens=3)
    refusing = (
        "{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
        "{% for m in messages %}{{ m['role'] + ': ' + m['content'] }}{% endfor %}"
    )
    system, user = prompt("what colour?", [{"answer": "red", "score": 0.9}])
    assert told(model, refusing) == f"user: {system['content']}\n\n{user['content']}"
    with pytest.raises(CheckpointError, match=r"chat template does not take this conversation \(never"):
        told(model, "{{ raise_exception('never') }}")


def test_a_model_that_can_think_aloud_is_told_not_to(language_folder):
    template = "{{ 'no thoughts' if enable_thinking is defined and enable_thinking is false else 'thoughts' }}"
    assert told(LocalLanguageModel(language_folder, max_new_tokens=3), template) == "no thoughts"


@pytest.fixture(scope="module")
def captioning_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("captioning")
    tokenizer = train_tokenizer(["a red ball", "a blue ball"], 300)
    small = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    text = {"vocab_size": len(tokenizer), "encoder_hidden_size": 16, "bos_token_id": 2, "sep_token_id": 3}
    config = BlipConfig(
        text_config={**small, **text, "pad_token_id": 0, "eos_token_id": 3},
        vision_config={**small, "image_size": 16, "patch_size": 8},
    )
    torch.manual_seed(0)
    BlipForConditionalGeneration(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    BlipImageProcessor(size={"height": 16, "width": 16}).save_pretrained(folder)
    return folder


def test_a_captioner_describes_each_image_once(captioning_folder, vqa):
    captioner = LocalCaptioner(captioning_folder, max_new_tokens=4, batch_size=1)
    blue = Image.new("RGB", (30, 30), "blue")
    said = captioner([RED, blue])
    assert len(said) == 2
    assert all(isinstance(words, str) for words in said)

    seen = []

    class Counting(LocalCaptioner):
        def __init__(self):
            pass

        def __call__(self, images):
            seen.extend(images)
            return [f"image {i}" for i in range(len(images))]

    rows = LanguageVQAPipeline(vqa, captioner=Counting())([RED, RED, blue], ["a?", "b?", "a?"])
    assert [row["caption"] for row in rows] == ["image 0", "image 0", "image 1"]
    assert seen == [RED, blue]
    assert LanguageVQAPipeline(vqa, captioner=captioner)(RED, "a?")[0]["caption"] == captioner(RED)[0]


def test_a_folder_without_such_a_model_is_refused(tmp_path, language_folder):
    with pytest.raises(CheckpointError, match=r"no config\.json"):
        LocalLanguageModel(tmp_path)
    with pytest.raises(CheckpointError, match="cannot be loaded as AutoModelForImageTextToText"):
        LocalCaptioner(language_folder)
