"""One server with a tiny untrained model for each ability."""

import base64
import io
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from starlette.testclient import TestClient

from evle.models.eve import EVEConfig, EVEForNLVR2
from evle.models.vle import VLEForPBC, VLEForVCRQ2A, VLEForVCRQA2R
from evle.server import Limits, ServedModel, build_app, load_served
from retrieval_models import SIZES, processor, save_retrieval_model, save_vqa_model
from vle_folders import save_released

KEY = "a secret key"


@pytest.fixture(scope="package")
def folder(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("served")
    save_vqa_model(root / "vqa")
    save_retrieval_model(root / "retrieval")
    save_released(root / "pbc", VLEForPBC)
    save_released(root / "vcr-q2a", VLEForVCRQ2A, num_token_types=12)
    save_released(root / "vcr-qa2r", VLEForVCRQA2R, num_token_types=12)
    reader = processor()
    torch.manual_seed(0)
    EVEForNLVR2(EVEConfig(**SIZES, vocab_size=len(reader.tokenizer))).save_pretrained(root / "nlvr2")
    reader.save_pretrained(root / "nlvr2")
    return root


@pytest.fixture(scope="package")
def models(folder) -> list[ServedModel]:
    return load_served(sorted(folder.iterdir()))


@pytest.fixture
def serving(models) -> Iterator[Callable[..., TestClient]]:
    """A client of a server with some limits; it is closed after the test."""
    clients = []

    def start(key: str | None = None, **limits: Any) -> TestClient:
        client = TestClient(build_app(models, limits=Limits(**limits), key=key), raise_server_exceptions=False)
        clients.append(client)
        client.__enter__()
        return client

    yield start
    for client in clients:
        client.__exit__(None, None, None)


@pytest.fixture
def client(serving) -> TestClient:
    return serving()


@pytest.fixture
def png() -> Callable[..., bytes]:
    def encoded(colour: str = "red", size: tuple[int, int] = (40, 30)) -> bytes:
        buffer = io.BytesIO()
        Image.new("RGB", size, colour).save(buffer, "PNG")
        return buffer.getvalue()

    return encoded


@pytest.fixture
def red(png) -> str:
    return base64.b64encode(png("red")).decode()


@pytest.fixture
def blue(png) -> str:
    return base64.b64encode(png("blue")).decode()
