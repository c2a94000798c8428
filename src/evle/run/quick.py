"""The quick form of a recipe of several stages: the same stages in a share of their training, with fewer seeds."""

import math
from collections.abc import Iterator, Mapping
from typing import Any

from pydantic import Field

from evle.config import Config, Tree, merge
from evle.errors import ConfigError, nearest
from evle.run.claims import read_claim

LENGTHS = ("steps", "epochs", "minutes", "teraflops")
"""The settings of `train` that limit how long to train."""


class QuickConfig(Config):
    """What `--quick` changes."""

    budget: float = Field(1.0, gt=0, le=1)
    """Share of each stage's steps, epochs, minutes and teraflops."""
    seeds: tuple[int, ...] = ()
    """The seeds of the stages that have seeds; empty keeps them."""
    claims: tuple[str, ...] = ()
    """The claims that are tested, with the stages that they need; empty is all claims and stages."""


def quick_form(tree: Mapping[str, Any], where: str) -> Tree:
    """The quick form of a recipe's tree, with another default output. Raises ConfigError for a recipe without one."""
    if "quick" not in tree or "stages" not in tree:
        raise ConfigError(
            f"{where}: has no quick form; leave out --quick, or add a section quick with a budget beside its stages"
        )
    quick = QuickConfig.build(tree["quick"] or {}, f"{where}, quick")
    defaults = tree.get("defaults") or {}
    stages = {name: _shorter(own or {}, merge(defaults, own or {}), quick) for name, own in tree["stages"].items()}
    changed: Tree = {**tree, "stages": stages, "title": f"{tree.get('title', '')} (quick form)"}
    changed["output"] = f"{tree['output']}-quick" if tree.get("output") else None
    return _only(changed, quick.claims, where) if quick.claims else changed


def _shorter(own: Mapping[str, Any], whole: Mapping[str, Any], quick: QuickConfig) -> Tree:
    train = whole.get("train") or {}
    if not isinstance(train, Mapping):
        return {**own}  # what is wrong is reported where the stage is read
    lengths = {name: train[name] * quick.budget for name in LENGTHS if isinstance(train.get(name), int | float)}
    if "steps" in lengths:
        lengths["steps"] = math.ceil(lengths["steps"])
    seeds = {"seeds": list(quick.seeds)} if quick.seeds and whole.get("seeds") else {}
    return merge(own, {"train": lengths, **seeds})


def _only(tree: Tree, names: tuple[str, ...], where: str) -> Tree:
    """`tree` with the claims called `names`, and the stages that these need."""
    claims = tree.get("claims") or {}
    if unknown := [name for name in names if name not in claims]:
        raise ConfigError(f"{where}: quick.claims: no claim {unknown[0]!r}; {nearest(unknown[0], claims)}")
    stages, joint, defaults = tree["stages"], tree.get("vcr") or {}, tree.get("defaults") or {}
    needed: set[str] = set()

    def need(name: str) -> None:
        if name in needed:
            return
        needed.add(name)
        pair = joint.get(name)
        for before in pair if isinstance(pair, list) else _before(merge(defaults, stages.get(name) or {})):
            need(str(before))

    for name in names:
        claim = read_claim(claims[name], f"{where}, claims.{name}")
        need(claim.of)
        need(claim.than)
    return {
        **tree,
        "claims": {name: claims[name] for name in names},
        "stages": {name: own for name, own in stages.items() if name in needed},
        "vcr": {name: own for name, own in joint.items() if name in needed},
    }


def _before(stage: Mapping[str, Any]) -> Iterator[str]:
    for section, key in (("model", "init"), ("task", "mim_teacher")):
        options = stage.get(section)
        value = str(options.get(key) or "") if isinstance(options, Mapping) else ""
        if value.startswith("stage:"):
            yield value.removeprefix("stage:")
