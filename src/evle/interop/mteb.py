"""Models of evle in mteb, and a folder of images and captions as one of its retrieval tasks.

>>> import mteb
>>> from evle.interop.mteb import encoder, retrieval_task
>>> mteb.evaluate(encoder("runs/retrieval"), retrieval_task("photos"))  # doctest: +SKIP
"""

from pathlib import Path
from typing import Any, Literal

from datasets import Dataset, Image
from mteb import TaskMetadata
from mteb.abstasks import AbsTaskRetrieval
from mteb.models import SentenceTransformerEncoderWrapper
from sentence_transformers import SentenceTransformer

from evle.data.custom.folder import folder
from evle.data.images import open_image
from evle.data.samples import readable
from evle.errors import ConfigError, DataError, nearest

Direction = Literal["t2i", "i2t"]
DIRECTIONS = ("t2i", "i2t")


def encoder(source: str | Path, *, device: str | None = None) -> SentenceTransformerEncoderWrapper:
    """The retrieval model in a run's folder, a model folder or on the hub, as mteb calls it.

    mteb takes a `SentenceTransformer` for a model of texts; this one tells it that images are read, too. Raises
    CheckpointError and ConfigError as `SentenceTransformer` does for a model of evle.
    """
    wrapper = SentenceTransformerEncoderWrapper(SentenceTransformer(str(source), device=device))
    name = str(source).partition("@")[0].strip("/").split("/")[-1]
    update = {"name": f"evle/{name}", "modalities": ["image", "text"]}
    wrapper.mteb_model_meta = wrapper.mteb_model_meta.model_copy(update=update)
    return wrapper


def retrieval_task(
    path: str | Path, *, split: str | None = "test", direction: Direction = "t2i", name: str | None = None
) -> AbsTaskRetrieval:
    """A retrieval task over the images and captions of a folder or table, as `evle.data.custom.folder` reads it.

    Args:
        path: the folder or the table.
        split: one of its splits, or None for all rows.
        direction: "t2i" looks for the images of a caption, "i2t" for the captions of an image.
        name: what results call the task; by default the folder's name.

    A caption that several images share is one text, which belongs to all of them, and images of one `match_id` share
    their captions. The main score is nDCG@10, as in mteb. Raises ConfigError for another direction; DataError for data
    that cannot be read is raised when mteb loads the task.
    """
    if direction not in DIRECTIONS:
        raise ConfigError(f"direction {direction!r} is not known; {nearest(direction, DIRECTIONS)}")
    source, part = Path(path), split or "all"

    class FolderTask(AbsTaskRetrieval):
        metadata = TaskMetadata(
            name=name or f"{source.stem}-{direction}",
            description=f"Retrieval over the images and captions of {source.name}.",
            dataset={"path": str(source), "revision": "local"},
            type="Any2AnyRetrieval",
            category=direction,
            modalities=["image", "text"],
            eval_splits=[part],
            eval_langs=["und-Zyyy"],
            main_score="ndcg_at_10",
        )

        def load_data(self, num_proc: int | None = None, **_: Any) -> None:
            if not self.data_loaded:
                self.dataset = {"default": {part: _tables(source, split, direction)}}
                self.data_loaded = True

    return FolderTask()


def _tables(source: Path, split: str | None, direction: Direction) -> Any:
    """Queries, corpus and which belongs to which, as mteb has them."""
    samples = folder(source, "captions", split)
    images: dict[str, Any] = {}
    texts: dict[str, str] = {}
    of_match: dict[str, list[str]] = {}
    captions: dict[str, set[str]] = {}
    for sample in readable(samples):
        images[f"image {len(images)}"] = sample.image
        match = sample.match_id or sample.key
        of_match.setdefault(match, []).append(f"image {len(images) - 1}")
        captions.setdefault(match, set()).update(sample.captions)
    names: dict[str, str] = {}
    belongs: dict[str, dict[str, int]] = {}
    for match, keys in of_match.items():
        for caption in sorted(captions[match]):
            text = names.setdefault(caption, f"text {len(names)}")
            texts[text] = caption
            for key in keys:
                asked, answer = (text, key) if direction == "t2i" else (key, text)
                belongs.setdefault(asked, {})[answer] = 1
    if not belongs:
        raise DataError(f"{source}: split {split!r} has no image with a caption; name another split")

    def rows() -> Any:
        for key, image in images.items():
            yield {"id": key, "image": open_image(image)}

    shown = Dataset.from_list(list(rows())).cast_column("image", Image())
    words = Dataset.from_list([{"id": key, "text": text} for key, text in texts.items()])
    queries, corpus = (words, shown) if direction == "t2i" else (shown, words)
    rows_asked = [row for row, key in enumerate(queries["id"]) if key in belongs]
    return {"queries": queries.select(rows_asked), "corpus": corpus, "relevant_docs": belongs, "top_ranked": None}
