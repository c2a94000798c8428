"""A URL and its local folder stand for each other."""

from pathlib import Path

import pytest

from evle.errors import ConfigError
from evle.storage import is_url, join, local, shown, url_of, with_urls


@pytest.fixture(autouse=True)
def _cache(tmp_path, monkeypatch):
    monkeypatch.setenv("EVLE_CACHE", str(tmp_path / "cache"))


@pytest.mark.parametrize(
    "url",
    [
        "s3://bucket/run",
        "hdfs://user@host:8020/a/b",
        "gs://b/a run/\u00fc%20",
        "memory://x/y",
        "https://host/a?b=c&d=%2F",
    ],
)
@pytest.mark.parametrize("side", ["inputs", "outputs"])
def test_a_url_and_its_folder_stand_for_each_other(url, side):
    assert url_of(local(url, side)) == url
    assert url_of(local(url, side) / "model") == f"{url}/model"
    assert shown(local(url, side)) == url


def test_a_file_url_is_the_path_itself(tmp_path):
    assert local(f"file://{tmp_path}/run") == tmp_path / "run"
    assert url_of(f"file://{tmp_path}/run") is None


@pytest.mark.parametrize("path", ["runs/base", "/data/run", "C://data", "owner/name@main", "a:b"])
def test_a_path_is_no_url(path):
    assert not is_url(path)
    assert local(path) == Path(path)
    assert url_of(path) is None


@pytest.mark.parametrize("url", ["s3://", "s3:///", "s3://bucket/../x", "simplecache::s3://b/x", Path("s3://b/x")])
def test_what_names_no_folder_is_refused_in_one_line(url):
    with pytest.raises(ConfigError, match=r"names no folder|without a chain|became a path"):
        local(url)


def test_parts_are_joined_as_the_base_is_written():
    assert join("s3://bucket/run/", "vqa", "seed-0") == "s3://bucket/run/vqa/seed-0"
    assert join("runs", "vqa") == "runs/vqa"


def test_messages_show_urls_instead_of_local_copies():
    text = f"{local('s3://b/run')}: 3 tokens; see '{local('s3://b/m', 'inputs')}/config.json'"
    assert with_urls(text) == "s3://b/run: 3 tokens; see 's3://b/m/config.json'"
