"""What the shell completes: names of recipes, and the keys of a configuration."""

from pathlib import Path


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
    from evle.run.config import RunConfig

    return [f"{key}=" for key in RunConfig.known_keys() if key.startswith(incomplete)]
