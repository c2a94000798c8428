"""The models of a server: what each can do, and the thread that runs it."""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from evle.errors import ConfigError
from evle.pipelines.abilities import display_names, load_abilities
from evle.server.batching import Batcher
from evle.server.errors import RefusedError
from evle.server.limits import Limits

log = logging.getLogger(__name__)


@dataclass
class ServedModel:
    """A model by the name that requests give, and a pipeline for each of its abilities."""

    name: str
    pipelines: dict[str, Any] = field(default_factory=dict)
    batcher: Batcher | None = None

    def start(self, limits: Limits, observe: Callable[[str, int], None]) -> None:
        """Begin to run requests; `observe` is called with the name and the rows of each batch."""
        self.batcher = Batcher(
            self.name,
            max_rows=limits.batch_rows,
            max_wait=limits.wait_ms / 1000,
            max_queue=limits.queue,
            observe=lambda rows: observe(self.name, rows),
        )

    def close(self) -> None:
        """Answer what waits, and stop."""
        if self.batcher is not None:
            self.batcher.close()
            self.batcher = None


def load_served(sources: Sequence[str | Path], *, device: str | None = None, batch_rows: int = 16) -> list[ServedModel]:
    """The models in `sources`, named as `display_names` names them.

    `name=source` gives a name. Raises ConfigError for no source or a name given twice, CheckpointError for what is not
    a model.
    """
    if not sources:
        raise ConfigError("no model is given; give a run folder, a model folder or a hub name")
    named = [_named(str(source)) for source in sources]
    defaults = iter(display_names([source for name, source in named if not name]))
    served: list[ServedModel] = []
    for given, source in named:
        name = given or next(defaults)
        if any(name == other.name for other in served):
            raise ConfigError(f"two models have the name {name!r}; name them apart, such as other={source}")
        pipelines = load_abilities(source, device=device, batch_size=batch_rows)
        for pipeline in pipelines.values():
            pipeline.num_workers = 0  # images are read before they come to a pipeline
        served.append(ServedModel(name, pipelines))
        log.info("%s: %s", name, ", ".join(pipelines))
    return served


def _named(source: str) -> tuple[str, str]:
    name, equals, rest = source.partition("=")
    if equals and not Path(source).exists():
        if not name or not rest:
            raise ConfigError(f"{source}: not NAME=MODEL; give both, or the model alone")
        return name, rest
    return "", source


def choose(models: Sequence[ServedModel], name: str | None, *abilities: str) -> tuple[ServedModel, str]:
    """The model of that name (None: the first that fits) and the first of `abilities` that it has.

    Raises RefusedError, status 404, for an unknown name or a model without such a head.
    """
    known = ", ".join(model.name for model in models)
    asked = [model for model in models if name in (None, model.name)]
    if not asked:
        raise RefusedError(404, f"no model {(name or '')[:100]!r} here; choose one of: {known}")
    for model in asked:
        for ability in abilities:
            if ability in model.pipelines:
                return model, ability
    wanted = " or ".join(abilities)
    able = [model.name for model in models if set(abilities) & set(model.pipelines)]
    hint = f"choose one of: {', '.join(able)}" if able else "serve a model with that head"
    raise RefusedError(
        404, f"{'no model here' if name is None else f'the model {name!r} cannot'} {_verb(name, wanted)}; {hint}"
    )


def _verb(name: str | None, wanted: str) -> str:
    return f"can {wanted}" if name is None else wanted
