"""Remote storage for tests: fsspec's memory, stand-ins for HDFS and for what fails, and a local S3 server."""

import os
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, ClassVar

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from evle.storage import remote


class HDFS(MemoryFileSystem):
    """As strict as HDFS: no file without its folder, and no moving over a file."""

    protocol = "hdfs"
    store: ClassVar[dict[str, Any]] = {}
    pseudo_dirs: ClassVar[list[str]] = [""]

    @classmethod
    def _strip_protocol(cls, path: Any) -> Any:
        return MemoryFileSystem._strip_protocol(str(path).removeprefix("hdfs://"))

    def _open(self, path: str, mode: str = "rb", **options: Any) -> Any:
        if "w" in mode and not self.isdir(self._parent(path)):
            raise FileNotFoundError(self._parent(path))
        return super()._open(path, mode=mode, **options)

    def mv(self, path1: str, path2: str, **options: Any) -> None:
        if self.exists(path2):
            raise FileExistsError(path2)
        super().mv(path1, path2, **options)


class ReadOnly(MemoryFileSystem):
    """Everything may be read, and nothing written."""

    protocol = "readonly"
    store: ClassVar[dict[str, Any]] = {}
    pseudo_dirs: ClassVar[list[str]] = [""]

    @classmethod
    def _strip_protocol(cls, path: Any) -> Any:
        return MemoryFileSystem._strip_protocol(str(path).removeprefix("readonly://"))

    def pipe_file(self, path: str, value: bytes, **options: Any) -> None:
        raise PermissionError(f"access to {path} is denied")

    def put_file(self, lpath: str, rpath: str, **options: Any) -> None:
        raise PermissionError(f"access to {rpath} is denied")


class Lossy(MemoryFileSystem):
    """A connection that is lost while `down`: after so many more writes, or now."""

    protocol = "lossy"
    store: ClassVar[dict[str, Any]] = {}
    pseudo_dirs: ClassVar[list[str]] = [""]
    writes_left: ClassVar[int | None] = None

    @classmethod
    def _strip_protocol(cls, path: Any) -> Any:
        return MemoryFileSystem._strip_protocol(str(path).removeprefix("lossy://"))

    def _spend(self) -> None:
        if Lossy.writes_left is not None:
            Lossy.writes_left -= 1
            if Lossy.writes_left < 0:
                raise ConnectionResetError("the connection was reset")

    def pipe_file(self, path: str, value: bytes, **options: Any) -> None:
        self._spend()
        super().pipe_file(path, value, **options)

    def put_file(self, lpath: str, rpath: str, **options: Any) -> None:
        self._spend()
        super().put_file(lpath, rpath, **options)

    def cp_file(self, path1: str, path2: str, **options: Any) -> None:
        self._spend()
        super().cp_file(path1, path2, **options)


for _kind in (HDFS, ReadOnly, Lossy):
    fsspec.register_implementation(_kind.protocol, _kind, clobber=True)


@contextmanager
def empty_stores(cache: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Nothing stored anywhere, local copies in `cache`, and no waiting between attempts."""
    monkeypatch.setenv("EVLE_CACHE", str(cache))
    monkeypatch.setattr(remote, "PAUSES", (0.0, 0.0))
    for kind in (MemoryFileSystem, HDFS, ReadOnly, Lossy):
        kind.store.clear()
        kind.pseudo_dirs[:] = [""]
    Lossy.writes_left = None
    yield


@contextmanager
def s3_server() -> Iterator[None]:
    """A local S3 server with the bucket "bucket"; skips where moto or s3fs is not installed."""
    server_module = pytest.importorskip("moto.server")
    pytest.importorskip("s3fs")
    server = server_module.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    _, port = server.get_host_and_port()
    settings = {
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}",
    }
    before = {name: os.environ.get(name) for name in settings}
    os.environ.update(settings)
    try:
        fsspec.get_filesystem_class("s3").clear_instance_cache()
        urllib.request.urlopen(f"http://127.0.0.1:{port}/moto-api/reset", data=b"", timeout=30).close()
        fsspec.filesystem("s3").mkdir("bucket")
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value
        with suppress(Exception):
            server.stop()
