"""`evle push`, against a hub of a few lines that runs in this process."""

import base64
import hashlib
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from huggingface_hub import HfApi

from commands import call
from evle.errors import ConfigError
from evle.share.card import CARD
from evle.share.hub import push
from retrieval_models import save_retrieval_model


class FakeHub(BaseHTTPRequestHandler):
    """Creates repositories, takes small files in a commit and large ones by LFS, and knows one token."""

    server: Any

    def log_message(self, *args: Any) -> None:
        pass

    def _answer(self, value: Any, status: int = 200) -> None:
        data = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def _body(self) -> bytes:
        return self.rfile.read(int(self.headers.get("Content-Length") or 0))

    def do_POST(self) -> None:
        body, hub = self._body(), self.server
        if self.headers.get("Authorization") != "Bearer right":
            return self._answer({"error": "Invalid credentials"}, 401)
        for part, status in hub.fails.items():
            if part in self.path:
                return self._answer({"error": f"refused with {status}", "url": f"{hub.url}/me/photos"}, status)
        if self.path == "/api/repos/create":
            hub.created.append(json.loads(body))
            name = json.loads(body)["name"]
            return self._answer({"url": f"{hub.url}/me/{name}", "id": f"me/{name}"})
        if self.path == "/api/validate-yaml":
            return self._answer({"errors": [], "warnings": []})
        if "/branch/" in self.path:
            hub.branches.append(self.path.rsplit("/", 1)[1])
            return self._answer({})
        if "/preupload/" in self.path:
            files = json.loads(body)["files"]
            modes = [
                {
                    "path": each["path"],
                    "uploadMode": "lfs" if each["path"].endswith(".safetensors") else "regular",
                    "shouldIgnore": False,
                    "oid": None,
                }
                for each in files
            ]
            return self._answer({"files": modes})
        if self.path.endswith("/info/lfs/objects/batch"):
            objects = [
                {
                    "oid": each["oid"],
                    "size": each["size"],
                    "actions": {"upload": {"href": f"{hub.url}/lfs/{each['oid']}", "header": {}}},
                }
                for each in json.loads(body)["objects"]
            ]
            return self._answer({"transfer": "basic", "objects": objects})
        if "/commit/" in self.path:
            for line in body.decode().splitlines():
                entry = json.loads(line)
                if entry["key"] == "file":
                    hub.files[entry["value"]["path"]] = base64.b64decode(entry["value"]["content"])
                elif entry["key"] == "lfsFile":
                    hub.files[entry["value"]["path"]] = hub.large[entry["value"]["oid"]]
            hub.commits.append(self.path)
            return self._answer(
                {"success": True, "commitUrl": f"{hub.url}/me/photos/commit/abc", "commitOid": "abc", "hookOutput": ""}
            )
        return self._answer({"error": self.path}, 404)

    def do_PUT(self) -> None:
        body = self._body()
        if "/lfs/" in self.server.fails:
            return self._answer({"error": "the upload broke"}, self.server.fails["/lfs/"])
        self.server.large[hashlib.sha256(body).hexdigest()] = body
        self._answer({})

    def do_GET(self) -> None:
        if self.path.startswith("/api/models/"):
            return self._answer({"id": "me/photos", "sha": "abc", "siblings": [], "private": False})
        return self._answer({"error": self.path}, 404)


@pytest.fixture
def hub(monkeypatch) -> Iterator[Any]:
    server: Any = ThreadingHTTPServer(("127.0.0.1", 0), FakeHub)
    server.url = f"http://127.0.0.1:{server.server_port}"
    server.fails = {}
    server.created, server.branches, server.commits, server.files, server.large = [], [], [], {}, {}
    threading.Thread(target=server.serve_forever, daemon=True).start()
    for module in ("huggingface_hub.constants", "huggingface_hub.hf_api"):
        monkeypatch.setattr(f"{module}.ENDPOINT", server.url, raising=False)
    monkeypatch.setattr("evle.share.hub.HfApi", lambda: HfApi(server.url))
    monkeypatch.setenv("HF_TOKEN", "right")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture
def scored(tmp_path):
    """A model folder whose card has scores."""
    folder = save_retrieval_model(tmp_path / "photos")
    (tmp_path / "report.json").write_text('{"scores": {"test": {"R@mean": 40.0}, "chance": {"R@mean": 1.0}}}')
    call("card", folder, "--report", tmp_path / "report.json")
    return folder


def test_folder_and_card_arrive_byte_for_byte(hub, scored):
    (scored / ".cache").write_text("not for others")
    output = call("push", scored, "me/photos", "--private", "--revision", "try")
    assert output.strip().endswith(f"{hub.url}/me/photos/commit/abc")
    assert hub.files == {file.name: file.read_bytes() for file in scored.iterdir() if file.name != ".cache"}
    assert b"R@mean" in hub.files[CARD]
    assert hub.created[0]["name"] == "photos"
    assert "private" in (hub.created[0].get("visibility"), hub.created[0].get("private") and "private")
    assert hub.branches == ["try"]
    assert hub.commits[0].endswith("/commit/try")


def test_an_upload_is_followed_by_the_command_that_uses_the_model(hub, scored):
    (scored / "run.json").write_text('{"config": {"task": {"name": "retrieval"}}}')
    assert "next: evle index FOLDER -o INDEX --model me/photos" in call("push", scored, "me/photos", "--without-scores")


def test_a_card_without_scores_is_refused_with_the_cure(hub, tmp_path):
    folder = save_retrieval_model(tmp_path / "photos")
    with pytest.raises(ConfigError, match=r"the card holds no scores; enter them with `evle card .* --report"):
        push(folder, "me/photos")
    assert not hub.created
    push(folder, "me/photos", without_scores=True)
    assert "model.safetensors" in hub.files


@pytest.mark.parametrize("name", ["photos", "a/b/c", "", "me/", "me/pho tos", "-me/x"])
def test_what_is_no_name_is_refused_before_anything_is_sent(hub, scored, name):
    with pytest.raises(ConfigError, match="is no name on the hub; give OWNER/NAME"):
        push(scored, name)
    assert not hub.created


def test_a_wrong_token_and_an_absent_hub_are_one_line(hub, scored, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "wrong")
    with pytest.raises(ConfigError, match=r"refuses the upload \(401\); log in with `hf auth login`"):
        push(scored, "me/photos")
    monkeypatch.setattr("evle.share.hub.HfApi", lambda: HfApi("http://127.0.0.1:9"))
    with pytest.raises(ConfigError, match="the hub cannot be reached"):
        push(scored, "me/photos")


@pytest.mark.parametrize(
    ("part", "status"),
    [("/commit/", 403), ("/preupload/", 500), ("/lfs/", 400), ("/commit/", 409), ("/commit/", 413)],
)
def test_an_upload_that_breaks_is_one_line_and_can_be_repeated(hub, scored, part, status, monkeypatch):
    monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda seconds: None)  # between its own attempts
    hub.fails = {part: status}
    output = call("push", scored, "me/photos", code=2)
    assert "me/photos: the hub refuses the upload" in output
    assert "Traceback" not in output
    assert not hub.commits
    hub.fails = {}
    call("push", scored, "me/photos")
    assert "model.safetensors" in hub.files


def test_a_reply_that_is_none_of_a_hub_is_one_line(hub, scored, monkeypatch):
    monkeypatch.setattr(HfApi, "create_repo", lambda *_, **__: {}["url"])
    with pytest.raises(ConfigError, match="me/photos: the reply of the hub cannot be read"):
        push(scored, "me/photos")


def test_a_model_that_exists_is_updated(hub, scored):
    hub.fails = {"/repos/create": 409}
    call("push", scored, "me/photos")
    assert hub.commits


def test_a_folder_that_is_not_there_is_one_line(tmp_path):
    output = call("push", tmp_path / "gone", "me/photos", code=2)
    assert "no such folder; give a run's folder or a model folder" in output
