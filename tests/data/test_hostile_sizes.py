"""Small or strange files never take more memory than is stated here, held by a limit on the address space."""

import subprocess
import sys

import pytest

pytestmark = [pytest.mark.slow, pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")]
GIB = 1 << 30

START = """
import os, resource, sys
from pathlib import Path
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image
from evle.data.custom.corpus import read_texts
from evle.data.custom.folder import folder
from evle.data.images import open_image
from evle.errors import EvleError
from evle.inspection.folder_check import check_folder
from evle.transforms.text import encode, train_tokenizer
home, word = Path(sys.argv[1]), b"0123456789abcdef" * (200 << 16)  # 200 MiB without a blank
Image.new("RGB", (8, 8)).save(home / "0.jpg")
def limit():
    used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + int(sys.argv[2]),) * 2)
def refused(work):
    try:
        work()
    except EvleError as error:
        print(error)
    else:
        raise SystemExit("nothing was refused")
"""
CASES = {
    "a tokenizer's corpus of one word": (0.5, """
(home / "a.txt").write_bytes(word); del word; limit()
print(len(train_tokenizer(read_texts([home / "a.txt"]), 300)))
"""),
    "a line of JSON": (0.5, """
(home / "captions.jsonl").write_bytes(b'{"image": "0.jpg", "caption": "' + word + b'"}'); del word; limit()
refused(lambda: folder(home)); refused(lambda: check_folder(home))
"""),
    "a cell of CSV": (0.5, """
(home / "captions.csv").write_bytes(b"image,caption\\n0.jpg," + word + b"\\n"); del word; limit()
refused(lambda: folder(home)); refused(lambda: check_folder(home))
"""),
    "a text of tokens": (0.5, """
tokenizer = train_tokenizer(["a red ball"], 300); text = word[: 16 << 20].decode(); del word; limit()
print(len(encode(tokenizer, text, 40)))
"""),
    "a column of Parquet that one long text fills": (1.0, """
texts = pa.DictionaryArray.from_arrays(pa.array([0] * 3000, pa.int32()), ["x" * (1 << 20)])
rows = pa.table({"image": ["0.jpg"] * 3000, "caption": texts})
pq.write_table(rows, home / "captions.parquet"); del word, rows, texts; limit()
try:
    print(len(folder(home)))
except EvleError as error:
    print(error)
"""),
    "the largest TIFF": (2.0, """
Image.new("RGB", (12000, 10000)).save(home / "a.tif", compression="tiff_deflate"); del word; limit()
print(open_image(home / "a.tif").size)
"""),
    "a larger TIFF": (0.5, """
Image.new("1", (13000, 13000)).save(home / "a.tif", compression="group4"); del word; limit()
refused(lambda: open_image(home / "a.tif"))
"""),
}  # fmt: skip
"""Gibibytes beyond what the process has after its imports, and what it does with them."""


@pytest.mark.parametrize("case", CASES)
def test_memory_is_bounded(case, tmp_path):
    bound, script = CASES[case]
    command = [sys.executable, "-c", START + script, str(tmp_path), str(int(bound * GIB))]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr[-800:]
    assert done.stdout.strip()
