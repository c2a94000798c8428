"""The recipes that come with evle: one YAML file each, to run as it is or to copy and change."""

from pathlib import Path

from evle.errors import ConfigError, nearest


def recipes() -> dict[str, Path]:
    """The recipes that come with evle, by name."""
    return {path.stem: path for path in sorted(Path(__file__).parent.glob("*.yaml"))}


def find_recipe(name: str | Path) -> Path:
    """The file of a recipe: a path to a .yaml file, or the name of one that comes with evle. Raises ConfigError."""
    path = Path(name)
    if path.suffix in (".yaml", ".yml"):
        if path.is_file():
            return path
        raise ConfigError(f"{path}: no such recipe file")
    known = recipes()
    if str(name) not in known:
        raise ConfigError(f"there is no recipe {str(name)!r}; {nearest(str(name), known)} (or give a .yaml file)")
    return known[str(name)]
