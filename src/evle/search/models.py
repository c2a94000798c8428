"""The models that an index uses: those of torch, or exported ones, which need no torch."""

from pathlib import Path
from typing import Any

from evle.exported.folder import is_exported
from evle.exported.pipelines import EmbedPipeline as ExportedEmbedPipeline
from evle.exported.pipelines import MatchPipeline as ExportedMatchPipeline


def open_embedder(source: str | Path, **options: Any) -> Any:
    """What embeds images and texts by the model in `source`."""
    if is_exported(source):
        options.pop("device", None)
        return ExportedEmbedPipeline(source, **options)
    from evle.pipelines import EmbedPipeline

    return EmbedPipeline(source, **options)


def open_matcher(source: str | Path) -> Any:
    """What matches images with texts by the model in `source`."""
    if is_exported(source):
        return ExportedMatchPipeline(source)
    from evle.pipelines import MatchPipeline

    return MatchPipeline(source)


def fingerprint(embed: Any) -> str:
    """A hash of all that decides an embedding; an exported model has that of the model."""
    if isinstance(embed, ExportedEmbedPipeline):
        return embed.fingerprint
    from evle.pipelines import embedding

    return embedding.fingerprint(embed)


def can_match(embed: Any) -> bool:
    """Whether the model that embeds can match, too."""
    if isinstance(embed, ExportedEmbedPipeline):
        return "match" in embed.graphs
    from evle.pipelines import MatchPipeline
    from evle.tasks.retrieval import learns_matching

    config = embed.model.config
    return config.model_type in MatchPipeline.models and learns_matching(config)


def sharing_matcher(embed: Any) -> Any:
    """What matches images with texts by the model that embeds them, which is not loaded again."""
    if isinstance(embed, ExportedEmbedPipeline):
        return ExportedMatchPipeline(
            embed.source, batch_size=embed.batch_size, num_workers=embed.num_workers, graphs=embed.graphs
        )
    from evle.pipelines import MatchPipeline

    return MatchPipeline(
        model=embed.model,
        processor=embed.processor,
        text=embed.text,
        batch_size=embed.batch_size,
        num_workers=embed.num_workers,
    )
