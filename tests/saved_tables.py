"""Data sets as the Hugging Face `datasets` library saves them, made by tests."""

import json

import pyarrow as pa

from tars import encoded

IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


def rows(*numbers):
    return [
        {"image": {"bytes": encoded(n), "path": "a.jpg" if n % 2 else None}, "caption": f"image {n}", "label": n}
        for n in numbers
    ]


def table(rows):
    return pa.Table.from_pylist(rows, pa.schema([("image", IMAGE), ("caption", pa.string()), ("label", pa.int64())]))


def save(path, tables):
    """One split, as save_to_disk writes it: Arrow streams and what they are."""
    path.mkdir(parents=True)
    names = [f"data-{number:05d}-of-{len(tables):05d}.arrow" for number in range(len(tables))]
    for name, each in zip(names, tables):
        with pa.OSFile(str(path / name), "wb") as sink, pa.ipc.new_stream(sink, each.schema) as writer:
            writer.write_table(each, max_chunksize=2)
    state = {"_data_files": [{"filename": name} for name in names], "_fingerprint": "0", "_split": path.name}
    (path / "state.json").write_text(json.dumps(state))
    (path / "dataset_info.json").write_text("{}")
    return path
