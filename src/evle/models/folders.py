"""Read files of weights and model folders, without ever running code that they name or contain.

All loading of folders goes through `from_folder`, and all reading of tensors through `read_tensors` and `load_tensors`.
"""

import argparse
import json
import logging
import re
import zipfile
from collections.abc import Collection, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from safetensors.torch import load_file
from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.models.auto.auto_factory import _BaseAutoModelClass
from transformers.utils.hub import cached_file
from transformers.utils.import_utils import is_peft_available

from evle.errors import CheckpointError, in_one_line
from evle.files import read_json
from evle.models.adapters import has_adapter, merged_tensors, refuse_peft_adapter
from evle.models.checksums import refuse_damaged, weights_in
from evle.models.fields import refuse_kernels
from evle.storage import fetch

log = logging.getLogger(__name__)

CONFIG_FILES = ("config.json", "tokenizer_config.json", "processor_config.json", "preprocessor_config.json")
WRAPPERS = ("model", "state_dict", "module", "model_state_dict", "model_ema")
"""Keys under which training scripts store the state dict in a checkpoint."""
PREFIXES = ("module.", "_orig_mod.", "model.", "_forward_module.", "_fsdp_wrapped_module.")
"""What data-parallel wrappers, torch.compile, Lightning and FSDP put in front of every key."""
HARMLESS = (argparse.Namespace,)
"""Classes besides tensors and containers that training scripts store; building one runs no code of the file."""


OTHER_KINDS = {
    b"\x1f\x8b": "a compressed file (gzip)",
    b"BZh": "a compressed file (bzip2)",
    b"\xfd7zXZ": "a compressed file (xz)",
    b"\x28\xb5\x2f\xfd": "a compressed file (zstd)",
    b"7z\xbc\xaf": "a compressed file (7z)",
    b"\x89PNG": "a PNG image",
    b"\xff\xd8\xff": "a JPEG image",
    b"%PDF": "a PDF file",
    b"\x93NUMPY": "an array of numpy",
    b"\x89HDF": "an HDF5 file",
    b"GGUF": "a GGUF file",
    b"PK\x05\x06": "an empty zip archive",
    b"\x80\x03": "a pickle of Python objects, whose code is never run",
    b"\x80\x04": "a pickle of Python objects, whose code is never run",
    b"\x80\x05": "a pickle of Python objects, whose code is never run",
}
"""Files that are taken for checkpoints, by their first bytes; torch's own pickles are of protocol 2."""
OTHER_WEIGHTS = ("*.safetensors", "*.bin", "*.pt*", "*.ckpt", "*.th", "*.pkl", "*.onnx", "*.h5", "*.msgpack", "*.gguf")
"""Names of weights of other tools or of other parts of a training, which are not read from a folder."""

OURS = ("eve", "vle")
HUB_OPTIONS = {"cache_dir", "force_download", "local_files_only", "token", "revision", "subfolder"}
"""Arguments of `from_pretrained` that select files, not the model's architecture."""
HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*(@[\w./-]+)?")
TEXT_FILES = ["*.json", "*.txt", "*.model", "*.jinja"]
"""Files in a model folder from which configuration, tokenizer and processor are read."""


def model_folder(path: str | Path) -> Path:
    """The folder with the weights: `path` itself, `path`/model if `path` is a run's folder, or a download.

    A URL is downloaded first. A name such as "owner/name" or "owner/name@revision" is looked up on the Hugging Face
    hub where there is no such path (see `hub_folder`). Raises CheckpointError that names what is there instead.
    """
    path = fetch(path)
    name = str(path)
    for folder in (path / "model", path):
        if (folder / "config.json").is_file():
            return folder
    if is_hub_name(path):
        return hub_folder(name)
    if not path.exists():
        raise CheckpointError(f"{path}: no such folder; give a model folder, a run's folder or a hub name")
    refuse_file(path)
    inside = sorted(child.parent.parent.name for child in path.glob("*/model/config.json")) if path.is_dir() else []
    if inside:
        raise CheckpointError(f"{path} holds several runs; give one of them: {', '.join(inside)}")
    if (path / "log.jsonl").is_file() or (path / "checkpoints").is_dir():
        raise CheckpointError(f"{path} is a run without a model folder: it has not finished; repeat its command")
    raise CheckpointError(
        f"{path} is neither a model folder (no config.json) nor a run's folder (no model/config.json)"
    )


def refuse_file(path: Path) -> None:
    """Raise CheckpointError, naming what it is, for a single file where a model's folder is needed."""
    if path.is_file():
        kind = kind_of_file(path)
        raise CheckpointError(
            f"{path}: is {kind or 'a single file'}; give the folder that holds config.json and the weights"
        )


def kind_of_file(path: Path) -> str:
    """What a file is that holds no tensors of torch or safetensors, by its first bytes; empty where that is unknown."""
    with path.open("rb") as file:
        start = file.read(512)
    if kind := next((each for mark, each in OTHER_KINDS.items() if start.startswith(mark)), ""):
        return kind
    if start[:1] == b"\x08" and start[2:3] == b"\x12":
        return "an ONNX model"
    if start[4:8] == b"TFL3":
        return "a TFLite model"
    if start[257:262] == b"ustar":
        return "a tar archive"
    if start[:1] in [bytes([0x80 + count]) for count in range(1, 16)] and 0xA1 <= (start[1:2] or b"\0")[0] <= 0xBF:
        return "a msgpack file, as Flax writes"
    return ""


def is_hub_name(path: str | Path) -> bool:
    """Whether `path` can only be a name on the hub, "owner/name" or "owner/name@revision": there is no such path, nor
    a folder of the owner's name."""
    path = Path(path)
    return HUB_NAME.fullmatch(str(path)) is not None and not path.exists() and not Path(path.parts[0]).exists()


def local_folder(path: str | Path) -> Path:
    """`path`, or, if that can only be a hub name, the folder of its files (see `hub_folder`)."""
    return hub_folder(str(path)) if is_hub_name(path) else Path(path)


@cache
def hub_folder(name: str, *, weights: bool = True) -> Path:
    """The folder of a model of the Hugging Face hub, "owner/name" or "owner/name@revision", in the local cache.

    Missing files are downloaded unless HF_HUB_OFFLINE is set. safetensors are preferred over other formats; code is
    never downloaded. Without `weights`, only the other files, such as a tokenizer's, are downloaded. Raises
    CheckpointError if the name does not exist, is gated, or cannot be reached.
    """
    repository, _, revision = name.partition("@")
    try:
        folder = _snapshot(repository, revision, [*TEXT_FILES, *(["*.safetensors"] if weights else [])])
        if weights and not any(folder.glob("*.safetensors")):
            folder = _snapshot(repository, revision, [*TEXT_FILES, "pytorch_model*.bin"])
    except GatedRepoError:
        raise CheckpointError(f"{name}: a gated model; accept its terms on the hub, then run `hf auth login`") from None
    except RevisionNotFoundError:
        raise CheckpointError(f"{name}: the hub has {repository}, but no revision {revision!r}") from None
    except RepositoryNotFoundError:
        raise CheckpointError(f"{name}: no such folder, and no such model on the hub (or it is private)") from None
    except (LocalEntryNotFoundError, OSError, HfHubHTTPError, HFValidationError) as error:
        raise CheckpointError(
            f"{name}: no such folder, not in the hub's local cache, and the hub cannot be reached "
            f"({in_one_line(error)}); check the name and the connection"
        ) from None
    if weights and not (folder / "config.json").is_file():
        raise CheckpointError(f"{name}: on the hub, but not a model of transformers (no config.json)")
    return folder


def _snapshot(repository: str, revision: str, patterns: list[str]) -> Path:
    return Path(snapshot_download(repository, revision=revision or None, allow_patterns=patterns))


def is_ours(source: str, revision: str | None = None) -> bool:
    """Whether a run's folder, a model folder or a hub name holds a model of EVE or VLE."""
    for folder in (Path(source) / "model", Path(source)):
        if (folder / "config.json").is_file():
            file: Any = folder / "config.json"
            break
    else:
        try:
            file = cached_file(source, "config.json", revision=revision, _raise_exceptions_for_missing_entries=False)
        except OSError:
            return False
    try:
        return json.loads(Path(file).read_text(encoding="utf-8")).get("model_type") in OURS if file else False
    except (OSError, ValueError, AttributeError, RecursionError):
        return False  # whoever reads the file reports it


def weights_folder(path: Any) -> Any:
    """`path`/model if `path` is a run's folder; anything else, such as a hub name, is returned unchanged."""
    if isinstance(path, str | Path) and not (Path(path) / "config.json").is_file():
        inside = Path(path) / "model"
        if (inside / "config.json").is_file():
            return inside
    return path


def refuse_damaged_weights(path: str | Path | None, options: Mapping[str, Any]) -> None:
    """Raise CheckpointError where the weights that transformers has read from `path`, with these options of
    `from_pretrained`, are not those that were written. Weights of the hub are looked up in its local cache."""
    if path is None:
        return
    hub = {name: options[name] for name in HUB_OPTIONS & options.keys() - {"force_download"}}
    hub["local_files_only"] = True
    config = cached_file(str(path), "config.json", _raise_exceptions_for_missing_entries=False, **hub)
    for file in weights_in(Path(config).parent, options.get("variant")) if config else ():
        refuse_damaged(file)


def read_fields(folder: Path, families: Collection[str]) -> dict[str, Any]:
    """The fields of config.json in a model folder of one of `families`. Raises CheckpointError for another, or none."""
    file = folder / "config.json"
    try:
        # get_config_dict assumes that the file holds an object
        fields: dict[str, Any] = read_json(file, kind=dict, error=CheckpointError)
        fields, _ = PreTrainedConfig.get_config_dict(folder)
    except CheckpointError:
        raise
    except (OSError, ValueError, TypeError, AttributeError, RecursionError) as error:
        raise CheckpointError(f"{file}: cannot be read ({in_one_line(error)})") from error
    refuse_kernels(fields, file)
    heads = fields.get("architectures")
    if heads is not None and not (isinstance(heads, list) and all(isinstance(head, str) for head in heads)):
        raise CheckpointError(f"{file}: architectures is {str(heads)[:40]!r}, where a list of names is needed")
    family = str(fields.get("model_type", ""))
    if family == "siglip2" and family not in families:
        raise CheckpointError(
            f"{folder} holds a SigLIP 2 that takes images of any shape (NaFlex), which is not supported; take a SigLIP "
            "2 of one image size, such as google/siglip2-base-patch16-224"
        )
    if family not in families:
        raise CheckpointError(
            f"{folder} holds a checkpoint of another family: model_type {family!r}; choose one of: "
            f"{', '.join(sorted(families))}"
        )
    return fields


def from_folder(loader: Any, folder: str | Path, **options: Any) -> Any:
    """`loader.from_pretrained(folder)`, from local files only, without running code in the folder.

    Code that a file names (`auto_map`) is reported in the log and ignored; where transformers cannot do without it, it
    raises its own error, and it never asks at the terminal. Raises CheckpointError for a model whose config.json names
    a kernel to download, for an adapter of peft where peft is not installed, for a tokenizer.json on which the
    tokenizers library panics (its panics are no `Exception`), and for files of anything but a model on which
    transformers fails with more than an OSError or a ValueError.
    """
    report_code(Path(folder))
    is_model = isinstance(loader, type) and issubclass(loader, PreTrainedModel | _BaseAutoModelClass)
    if is_model:
        _refuse_what_a_model_would_run(Path(folder))
    options = {"local_files_only": True, "trust_remote_code": False, **options}
    try:
        return loader.from_pretrained(folder, **options)
    except BaseException as error:
        if is_panic(error):
            raise CheckpointError(f"{folder}: the tokenizer is damaged ({in_one_line(error)}); copy it again") from None
        if is_model or isinstance(error, OSError | ValueError | ImportError) or not isinstance(error, Exception):
            raise
        what = getattr(loader, "__name__", str(loader)).removeprefix("Auto")
        raise CheckpointError(
            f"{folder}: the files of its {what} are damaged ({type(error).__name__}: {in_one_line(error)}); copy them "
            "again"
        ) from error


def _refuse_what_a_model_would_run(folder: Path) -> None:
    """Raise CheckpointError where transformers would download a kernel for a model, or leave out peft's adapter."""
    if (folder / "config.json").is_file():
        refuse_kernels(read_json(folder / "config.json", kind=dict, error=CheckpointError), folder / "config.json")
    if not is_peft_available():
        refuse_peft_adapter(folder)


def is_panic(error: BaseException) -> bool:
    """Whether a library written in Rust panicked, which is no `Exception` in Python."""
    return type(error).__name__ == "PanicException"


def merged_adapter(path: Any, config_class: type[PreTrainedConfig], options: dict[str, Any]) -> Any:
    """The path with which to call `from_pretrained` for `path`: None for an adapter, whose configuration and merged
    weights are put into `options`; else `path` itself."""
    if not isinstance(path, str | Path) or not has_adapter(path):
        return path
    changed = config_class.__dataclass_fields__.keys() & options.keys() - {"dtype", "torch_dtype"}
    fields = {name: options.pop(name) for name in changed}
    if not isinstance(options.get("config"), PreTrainedConfig):
        options["config"] = config_class.from_pretrained(path, **fields)
    options["state_dict"] = read_tensors(Path(path))
    return None


def report_code(folder: Path) -> None:
    """Log a warning for each file of a folder that names its own code."""
    for name in CONFIG_FILES:
        file = folder / name
        try:
            fields = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
        except (OSError, ValueError, RecursionError):
            continue  # whoever reads the file reports it
        if isinstance(fields, dict) and "auto_map" in fields:
            log.warning("%s: names its own code (auto_map), which is never run", file)


def read_tensors(folder: Path) -> dict[str, Tensor]:
    """The tensors of a model folder: model.safetensors, or the files that its index lists, as `from_pretrained` reads.

    Without these, the older pytorch_model.bin or its index is read, and only tensors from it. Other files are ignored.
    For an adapter, the result is the base's tensors with the adapter multiplied in. Raises CheckpointError if weights
    are missing or damaged, or beside an adapter of peft.
    """
    refuse_peft_adapter(folder)
    if has_adapter(folder):
        return merged_tensors(folder, lambda base: read_tensors(model_folder(base)))
    for name in ("model.safetensors", "pytorch_model.bin"):
        if (folder / name).is_file():
            return _only_tensors(_read_file(folder / name, "a model's weights"), folder / name)
        index = folder / f"{name}.index.json"
        if index.is_file():
            return _read_shards(index)
    there = sorted({file.name for pattern in OTHER_WEIGHTS for file in folder.glob(pattern)})
    others = ", ".join(there[:3])
    beside = f" (not read: {others})" if others else ""
    raise CheckpointError(f"{folder}: no weights (model.safetensors, pytorch_model.bin) beside config.json{beside}")


def _read_shards(index: Path) -> dict[str, Tensor]:
    try:
        names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise CheckpointError(f"{index}: not a readable index of weights ({in_one_line(error)})") from None
    tensors: dict[str, Tensor] = {}
    for name in names:
        if not isinstance(name, str) or Path(name).name != name:
            raise CheckpointError(f"{index}: lists {name!r}, which is no file of this folder")
        file = index.parent / name
        tensors |= _only_tensors(_read_file(file, f"the file that {index.name} lists"), file)
    return tensors


def load_tensors(path: str | Path, wanted: str) -> dict[str, Tensor]:
    """The named tensors of one file of torch or safetensors, without wrappers and prefixes that training scripts add.

    Files such as `{"model": tensors, "args": Namespace, ...}` are supported (`WRAPPERS`, `PREFIXES`). Only tensors,
    plain containers and the classes of `HARMLESS` are ever built.

    Raises:
        CheckpointError: no such file, or one without tensors; the message contains `wanted` and what the file is.
    """
    content = _read_file(Path(path), wanted)
    while isinstance(content, Mapping):
        inner = next((content[key] for key in WRAPPERS if isinstance(content.get(key), Mapping)), None)
        if inner is None:
            break
        content = inner
    return _without_prefixes(_only_tensors(content, path))


def _read_file(path: Path, wanted: str) -> Any:
    """The content of a file of torch or safetensors."""
    if path.is_dir():
        raise CheckpointError(f"{path}: is a directory; give {wanted}")
    if not path.is_file():
        raise CheckpointError(f"{path}: no such file; give {wanted}")
    try:
        if path.suffix == ".safetensors":
            tensors = load_file(path)
            refuse_damaged(path)
            return tensors
        with torch.serialization.safe_globals(list(HARMLESS)):
            return torch.load(path, map_location="cpu", weights_only=True)
    except CheckpointError:
        raise
    except Exception as error:  # a damaged pickle raises whatever its bytes lead to
        raise CheckpointError(f"{path}: {_what_it_is(path, error)}") from error


def _only_tensors(content: Any, path: str | Path) -> dict[str, Tensor]:
    if not isinstance(content, Mapping):
        raise CheckpointError(f"{path}: holds a {type(content).__name__}, not a dictionary of tensors")
    tensors = {str(key): value for key, value in content.items() if isinstance(value, Tensor)}
    if not tensors:
        keys = ", ".join(sorted(map(str, content))[:5]) or "nothing"
        raise CheckpointError(f"{path}: holds no tensors, only {keys}")
    return tensors


def first_keys(tensors: Mapping[str, Tensor], limit: int = 3) -> str:
    """The first keys of a checkpoint, for a message about one that does not fit."""
    shown = ", ".join(sorted(tensors)[:limit])
    return f"{shown} and {len(tensors) - limit} more" if len(tensors) > limit else shown


def _without_prefixes(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors, without those prefixes in `PREFIXES` that all keys share."""
    while True:
        shared = [prefix for prefix in PREFIXES if all(key.startswith(prefix) for key in tensors)]
        if not shared:
            return tensors
        tensors = {key.removeprefix(shared[0]): tensor for key, tensor in tensors.items()}


def _what_it_is(path: Path, error: Exception) -> str:
    """Why a file is not a checkpoint, from its first bytes or the reader's error."""
    with path.open("rb") as file:
        start = file.read(512)
    text = start.removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    if not start:
        return "is empty; download it again"
    if not any(start):
        return "begins with zeros, as after a download that was interrupted; download it again"
    if text.startswith((b"<!doctype", b"<html", b"<?xml")):
        return "is a web page, not a checkpoint; download it again"
    if text.startswith(b"version https://git-lfs"):
        return "is a Git LFS pointer, not the file it points to; run 'git lfs pull' or download it again"
    if text.startswith(b"/annex/objects/"):
        return "is a git-annex pointer, not the file it points to; run 'git annex get' or download it again"
    if start.decode("utf-8", "ignore").replace("\n", "").replace("\r", "").replace("\t", "").isprintable() and text:
        kind = "a text file (JSON)" if text.startswith((b"{", b"[")) else "a text file"
        return f"is {kind}, not a checkpoint; download it again"
    if kind := kind_of_file(path):
        packed = "compressed" in kind or "tar archive" in kind
        return f"is {kind}, not a checkpoint; {'unpack it' if packed else 'ask for safetensors'}"
    if start.startswith(b"PK\3\4"):
        return _what_zip_it_is(path, error)
    if path.suffix != ".safetensors" and start[8:10] == b'{"':
        return "is a file of safetensors; rename it to .safetensors"
    if any(words in str(error).lower() for words in ("incomplete", "invalid header length")):
        return "is cut short; download it again"
    if refused := re.search(r"GLOBAL ([\w.]+)", str(error)):
        return _more_than_tensors(refused[1])
    return f"not a readable checkpoint of tensors ({in_one_line(error)})"


def _what_zip_it_is(path: Path, error: Exception) -> str:
    """Why a zip archive, the form of torch's files, is not a checkpoint."""
    if not zipfile.is_zipfile(path):
        return "is cut short; download it again"
    with zipfile.ZipFile(path) as archive:
        names = archive.namelist()
    if not any(name.endswith("data.pkl") for name in names):
        return f"is a zip archive of {names[0] if names else 'nothing'}, not a checkpoint; unpack it"
    if path.suffix == ".safetensors":
        return "is a file of torch; rename it to .pth"
    if refused := re.search(r"GLOBAL ([\w.]+)", str(error)):
        return _more_than_tensors(refused[1])
    return f"not a readable checkpoint of tensors ({in_one_line(error)})"


def _more_than_tensors(name: str) -> str:
    return f"holds more than tensors ({name}), and code in a file is never run; ask for safetensors"
