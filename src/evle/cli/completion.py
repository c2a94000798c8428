"""What the shell completes: names of recipes, and the keys of a configuration.

The shell runs this at every press of the tab key, so nothing heavy is imported. The configuration's classes import
torch; `keys.txt` beside this file lists their keys, and a test holds it to them.
"""

from pathlib import Path

KEYS = Path(__file__).with_name("keys.txt")


def complete_recipe(incomplete: str) -> list[str]:
    """Bundled recipes, YAML files and folders that begin with what was typed."""
    from evle.recipes import recipes

    path = Path(incomplete)
    folder = path if incomplete.endswith("/") else path.parent
    inside = sorted(folder.iterdir()) if folder.is_dir() else []
    paths = [f"{each}/" if each.is_dir() else str(each) for each in inside if each.is_dir() or each.suffix == ".yaml"]
    return [name for name in [*recipes(), *paths] if name.startswith(incomplete)]


def complete_key(incomplete: str) -> list[str]:
    """Keys of a configuration, each with its equals sign; nothing once a value has begun."""
    if "=" in incomplete:
        return []
    return [f"{key}=" for key in KEYS.read_text(encoding="utf-8").split() if key.startswith(incomplete)]
