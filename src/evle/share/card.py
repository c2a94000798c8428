"""The card of a model folder (README.md): what the model is, how it was trained, what it scores, and how it is used.

It is made of the folder's own files, so that it can be refreshed at any time. A person's own text is kept: whatever
follows the line OWN_TEXT.
"""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCardData
from safetensors import SafetensorError, safe_open

from evle.errors import CheckpointError, ConfigError, in_one_line
from evle.files import write_whole
from evle.models.adapters import FOLDER as ADAPTER
from evle.models.adapters import base_of_adapter, has_adapter
from evle.models.dual import DUAL_ENCODERS
from evle.models.folders import read_fields
from evle.share.facts import read_run_facts, run_facts, scores_in, write_run_facts
from evle.share.licences import UNKNOWN
from evle.tasks import TASKS

logger = logging.getLogger(__name__)

CARD = "README.md"
MADE = "<!-- Written by evle card. -->"
OWN_TEXT = "<!-- Text below this line is kept when the card is refreshed. -->"
FAMILIES = {
    "eve": ("EVE", "one transformer for image and text, with experts for each kind (https://arxiv.org/abs/2308.11971)"),
    "vle": ("VLE", "an image and a text encoder, fused by cross-attention (https://github.com/iflytek/VLE)"),
    "clip": ("CLIP", "an image and a text encoder, trained by contrast (https://arxiv.org/abs/2103.00020)"),
    "metaclip_2": ("MetaCLIP 2", "an image and a text encoder, trained by contrast (https://arxiv.org/abs/2507.22062)"),
    "siglip": ("SigLIP", "an image and a text encoder, trained by a sigmoid loss (https://arxiv.org/abs/2303.15343)"),
}
PURPOSES = {
    "Model": ("encoder", "states of images and texts", None),
    "ForPreTraining": ("pre-trained encoder", "a start for fine-tuning", None),
    "ForRetrieval": (
        "retrieval",
        "image-text retrieval and zero-shot classification",
        "zero-shot-image-classification",
    ),
    "ForITM": ("matching", "the probability that a text is true of an image", "text-ranking"),
    "ForVQA": ("visual question answering", "answers to questions about images", "visual-question-answering"),
    "ForNLVR2": ("comparison of two images", "whether a sentence is true of two images", None),
    "ForMLM": ("masked words", "words from the rest of a text and its image", None),
    "ForPBC": ("localisation", "the patches of an image that a text is about", None),
    "ForVCRQ2A": ("choice of an answer (VCR)", "the right one of four answers", None),
    "ForVCRQA2R": ("choice of a reason (VCR)", "the right one of four reasons", None),
}
"""By head: its name, what it gives, and the hub's word for the task."""
USES = {
    "ForRetrieval": (
        "EmbedPipeline",
        'similarities = model.texts(["a red circle", "two dogs"]) @ model.images(["a.jpg", "b.jpg"]).T',
    ),
    "ForITM": ("MatchPipeline", 'print(model("a.jpg", ["a red circle", "two dogs"]))'),
    "ForVQA": ("VQAPipeline", 'print(model("a.jpg", "which colour is it?"))'),
    "ForNLVR2": ("ComparePipeline", 'print(model("left.jpg", "right.jpg", "both images show a dog"))'),
    "ForPBC": ("LocalisePipeline", 'print(model("a.jpg", "the red circle"))'),
}
LIMITS = (
    "Images and texts unlike those of its training data are read less well than the scores suggest.",
    "The model repeats what is one-sided or wrong in its training data; it is not fit to decide about people.",
)


def write_card(
    folder: Path,
    *,
    report: Path | None = None,
    licence: str | None = None,
    data_licence: str | None = None,
    overwrite: bool = False,
) -> Path:
    """Write or refresh the card of a model folder, and the facts that it is made of.

    Args:
        folder: a model folder.
        report: take the scores from this report, of a run or an evaluation, instead.
        licence: the licence of the weights; kept from then on.
        data_licence: the licence of training data that state none.
        overwrite: replace a README.md that is not a card of evle.

    Raises:
        ConfigError: the README.md is somebody else's; the report has no scores.
        CheckpointError: a damaged folder.
    """
    file = folder / CARD
    before = file.read_text(encoding="utf-8", errors="replace") if file.is_file() else ""
    if before and MADE not in before and not overwrite:
        raise ConfigError(f"{file}: was not written by evle; move it, or replace it with --overwrite")
    kept = read_run_facts(folder)
    facts = {**kept, **run_facts(folder)}
    for record, old in zip(facts.get("data") or [], kept.get("data") or []):
        if _says_less(record["licences"], old["licences"]) and record["dataset"] == old.get("dataset"):
            record["licences"] = old["licences"]  # stated by --data-licence, or read before the data were moved
    if report is not None:
        facts["results"] = facts["evaluated"] = scores_in(report)
    elif "evaluated" in facts:
        facts["results"] = facts["evaluated"]
    if licence is not None:
        facts["licence"] = licence
    for record in facts.get("data") or []:
        if data_licence is not None and UNKNOWN in record["licences"]:
            count = record["licences"].pop(UNKNOWN)
            record["licences"][data_licence] = record["licences"].get(data_licence, 0) + count
    write_run_facts(folder, facts)
    own = before.split(OWN_TEXT, 1)[1] if OWN_TEXT in before else "\n"
    write_whole(file, card(folder, facts) + "\n" + OWN_TEXT + own)
    return file


def _says_less(found: Mapping[str, int], before: Mapping[str, int]) -> bool:
    """Whether nothing was found of licences, or only those of a part of the rows that were all known before."""
    is_part = UNKNOWN not in before and sum(found.values()) == sum(before.values())
    return set(found) <= {UNKNOWN} or (UNKNOWN in found and is_part)


def save_card(folder: Path) -> None:
    """Write the card of a model that was just saved; a README.md of another origin stays and is named in the log."""
    try:
        write_card(folder)
    except (ConfigError, CheckpointError) as error:
        logger.warning("%s", error)


def card(folder: Path, facts: Mapping[str, Any]) -> str:
    """The text of the card of the model in `folder`. Raises CheckpointError for another folder."""
    fields = read_fields(folder, FAMILIES)
    head = str((fields.get("architectures") or ["Model"])[0])
    kind = "ForRetrieval" if fields["model_type"] in DUAL_ENCODERS else head.removeprefix("EVE").removeprefix("VLE")
    name, family = FAMILIES[fields["model_type"]]
    purpose, gives, tag = PURPOSES.get(kind, (kind, "states of images and texts", None))
    config, results = facts.get("config") or {}, facts.get("results") or {}
    title = str(config.get("title") or f"{name}: {purpose}")
    blocks = [
        f"---\n{_metadata(title, tag, fields, facts)}\n---",
        MADE,
        f"# {title}",
        f"{name}, {family}. The head `{head}` gives {gives}."
        f" {_parameters(folder)}It takes images of {_size(fields)}.{_adapted(folder)}",
        "## Use",
        _use(kind, head),
        "## Scores",
        _scores(results),
        "## Training data",
        _data(facts.get("data") or []),
        "## Recipe",
        _recipe(facts),
        "## Limits",
        _bullets(_limits(facts)),
    ]
    return "\n\n".join(blocks) + "\n"


def has_scores(folder: Path) -> bool:
    """Whether the card of a model folder shows scores."""
    return bool((read_run_facts(folder).get("results") or {}).get("scores"))


def _metadata(title: str, tag: str | None, fields: Mapping[str, Any], facts: Mapping[str, Any]) -> str:
    """The YAML at the head of the card, with its scores as a model-index."""
    results = facts.get("results") or {}
    chance = results.get("chance") or {}
    task = tag or str((facts.get("config") or {}).get("task", {}).get("name") or "feature-extraction")
    dataset = str(results.get("dataset") or "not named")
    rows = [
        EvalResult(
            task_type=task,
            dataset_type=dataset,
            dataset_name=dataset,
            dataset_split=str(results["split"]),
            metric_type=name,
            metric_name=f"{name} (chance {chance[name]:.4g})" if name in chance else name,
            metric_value=round(value, 4),
        )
        for name, value in (results.get("scores") or {}).items()
        if isinstance(value, int | float)
    ]
    licence = facts.get("licence")
    data = ModelCardData(
        library_name="evle",
        tags=["evle", fields["model_type"], "vision-language"],
        pipeline_tag=tag,
        license=licence,
        model_name=title if rows else None,
        eval_results=rows or None,
        ignore_metadata_errors=False,
    )
    return data.to_yaml()


def _adapted(folder: Path) -> str:
    """What a reader must know of an adapter; nothing of other models."""
    if not has_adapter(folder):
        return ""
    return (
        f"\n\nThis folder holds an adapter (LoRA) of `{base_of_adapter(folder)[0]}`, which is needed to load it. "
        "`evle merge` writes a model that needs no other."
    )


def _parameters(folder: Path) -> str:
    count = 0
    folder = folder / ADAPTER if has_adapter(folder) else folder
    for file in sorted(folder.glob("*.safetensors")):
        try:
            with safe_open(file, "numpy") as tensors:
                for name in tensors.keys():  # noqa: SIM118  no iterator
                    size = 1
                    for length in tensors.get_slice(name).get_shape():
                        size *= length
                    count += size
        except (OSError, SafetensorError) as error:
            raise CheckpointError(f"{file}: not a readable file of weights ({in_one_line(error)})") from None
    what = "Its adapter has" if folder.name == ADAPTER else "It has"
    return f"{what} {count / 1e6:.1f} M parameters. " if count else ""


def _size(fields: Mapping[str, Any]) -> str:
    vision = fields.get("vision_config") or {}
    side = fields.get("image_size") or vision.get("image_size")
    return f"{side} x {side} pixels" if side else "any size"


def _use(kind: str, head: str) -> str:
    name = "FOLDER"
    pipeline, line = USES.get(kind, ("", ""))
    if not pipeline:
        lines = [f"from evle import {head}", f'model = {head}.from_pretrained("{name}")', "print(model.config)"]
    else:
        lines = [f"from evle import {pipeline}", f'model = {pipeline}("{name}")', line]
    code = "\n".join(lines)
    return f"`pip install evle`, then, with the name or the folder of this model for {name}:\n\n```python\n{code}\n```"


def _scores(results: Mapping[str, Any]) -> str:
    scores, chance = results.get("scores") or {}, results.get("chance") or {}
    if not scores:
        return "None were measured. `evle evaluate` measures them, `evle card --report` enters them here."
    rows = [f"| {name} | {_number(value)} | {_number(chance.get(name))} |" for name, value in scores.items()]
    where = f"`{results['split']}`" + (f" of {results['dataset']}" if results.get("dataset") else "")
    how = "".join(f" {line[:1].upper()}{line[1:]}." for line in results.get("how") or [] if isinstance(line, str))
    head = [
        f"Measured on {where}; chance is what guessing reaches.{how}\n",
        "| score | value | chance |",
        "|---|---|---|",
    ]
    return "\n".join([*head, *rows])


def _number(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, int | float) else ""


def _data(records: list[dict[str, Any]]) -> str:
    if not records:
        return "Not recorded."
    rows = ["| split | data | samples | licences |", "|---|---|---|---|"]
    for record in records:
        licences = "; ".join(
            f"{name} ({count:,} rows)" if count else name for name, count in record["licences"].items()
        )
        samples = record.get("samples")
        number = f"{samples:,}" if isinstance(samples, int) else ""
        cells = [record["split"], record["dataset"], number, licences or UNKNOWN]
        rows.append("| " + " | ".join(str(cell).replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(rows)


def _recipe(facts: Mapping[str, Any]) -> str:
    config = facts.get("config") or {}
    if not config:
        return "Not recorded: no run of evle trained this model."
    model, train, optim = (config.get(name) or {} for name in ("model", "train", "optim"))
    length = f"{train['steps']} steps" if train.get("steps") else f"{train.get('epochs')} epochs"
    if train.get("minutes"):
        length += f", at most {train['minutes']} minutes"
    start = model.get("init") or "random weights"
    lines = [
        f"task: {(config.get('task') or {}).get('name')}",
        f"start: {start}" + (f", preset {model['preset']}" if model.get("preset") else ""),
        f"training: {length} of {train.get('batch_size')} samples, learning rate {optim.get('lr')}, "
        f"seed {config.get('seed')}",
        "versions: " + ", ".join(f"{name} {value}" for name, value in (facts.get("versions") or {}).items()),
        "all settings: `config` in run.json",
    ]
    return _bullets(lines)


def _limits(facts: Mapping[str, Any]) -> list[str]:
    config, results = facts.get("config") or {}, facts.get("results") or {}
    lines = list(LIMITS)
    if results.get("scores"):
        lines.append("The scores are those of one seed, on one split; other seeds differ.")
    task = TASKS.get(str((config.get("task") or {}).get("name")))
    text = config.get("text") or {}
    if task is not None and text.get("max_length"):
        lines.append(f"A text is cut after {text['max_length']} tokens.")
    return lines


def _bullets(lines: list[str]) -> str:
    return "\n".join(f"- {line}" for line in lines)
