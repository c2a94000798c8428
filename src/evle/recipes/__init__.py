"""The recipes that come with evle: one YAML file each, to run as it is or to copy and change."""

from pathlib import Path
from typing import Any

from evle.config import load_yaml, merge
from evle.errors import ConfigError, nearest
from evle.report import Table
from evle.storage import fetch


def recipes() -> dict[str, Path]:
    """The recipes that come with evle, by name."""
    return {path.stem: path for path in sorted(Path(__file__).parent.glob("*.yaml"))}


def find_recipe(name: str | Path) -> Path:
    """The file of a recipe: a path to a .yaml file, or the name of one that comes with evle. Raises ConfigError."""
    path = fetch(name)
    if path.suffix in (".yaml", ".yml"):
        if path.is_file():
            return path
        raise ConfigError(f"{path}: no such recipe file")
    known = recipes()
    if str(name) not in known:
        raise ConfigError(f"there is no recipe {str(name)!r}; {nearest(str(name), known)} (or give a .yaml file)")
    return known[str(name)]


def listing() -> list[Table]:
    """Two tables of the bundled recipes with their data and length: those for a CPU with their titles, and those of the
    papers' sizes with the GPUs that they need."""
    small, large = [], []
    for name, path in recipes().items():
        tree = load_yaml(path)
        runs = [merge(tree.get("defaults") or {}, stage or {}) for stage in tree.get("stages", {"": tree}).values()]
        data = dict.fromkeys(source for run in runs for source in _sources((run.get("data") or {}).get("train")))
        length = f"{len(runs)} runs" if "stages" in tree else _length(tree["train"])
        if needs := tree.get("needs"):
            large.append([name, ", ".join(data), length, needs])
        else:
            small.append([name, tree["title"], ", ".join(data), length])
    return [
        Table("For two CPU cores", ["recipe", "what", "data", "length"], small),
        Table("As published, for GPUs", ["recipe", "data", "length", "needs"], large),
    ]


def _sources(split: Any) -> list[str]:
    """What a split reads: the folder's name where the recipe gives one, else the source's."""
    sources = [each for each in (split if isinstance(split, list) else [split]) if each]
    return [Path(each["path"]).name if "path" in each else each["source"] for each in sources if "source" in each]


def _length(train: dict[str, Any]) -> str:
    units = {"steps": "{:,} steps", "epochs": "{} epochs", "teraflops": "{:g} teraflop"}
    turns = next(unit.format(train[name]) for name, unit in units.items() if name in train)
    return f"{turns} x {train['batch_size']}"
