"""The pipeline that a verb asks: of torch, or of an exported model, for which torch is never imported."""

from importlib import import_module
from pathlib import Path
from typing import Any


def open_pipeline(name: str, model: str | Path, **options: Any) -> Any:
    """The pipeline `name`, such as "MatchPipeline", of a model in a folder, an exported folder or on the hub.

    Raises what the pipeline raises.
    """
    from evle.exported.folder import is_exported

    module = "evle.exported.pipelines" if is_exported(model) else "evle.pipelines"
    return getattr(import_module(module), name)(model, **options)
