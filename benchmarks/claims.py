"""The verdicts on claims, as a page of the documentation, from the folders of recipes that tested them.

    evle train claims-eve --jobs 2 --quick
    python -m benchmarks.claims runs/claims-eve-quick runs/claims-vle-quick -o docs/claims.md
    python -m benchmarks.claims runs/claims-vle -o docs/claims.md --add --note "Three seeds."

Every number of the page is from the report.json of these folders. A chart of each table goes into the folder images
beside the page.
"""

import argparse
import json
import re
import statistics
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

from evle.report import Interval, Intervals, Mark, Table
from evle.report.charts import intervals_svg
from evle.report.markdown import markdown_table
from evle.run.comparison import PERCENTAGES

COLUMNS = ["claim", "score", "of", "than", "difference", "95 % interval", "needs", "verdict"]
INTRODUCTION = """# Claims, tested in miniature

What the papers and releases of EVE and VLE claim, tested on drawn scenes by recipes that anyone can repeat:

```shell
evle train claims-eve --jobs 2     # about three hours of two cores (five core-hours of training were measured), \
with --quick 20 minutes (calculated)
evle train claims-vle --jobs 2     # two to three hours of two cores, with --quick 20 to 30 minutes (both calculated \
from parts of it)
python -m benchmarks.claims runs/claims-eve runs/claims-vle -o docs/claims.md
```

Each claim compares two stages of a recipe by one score, paired over seeds. Its verdict follows from the 95 % interval
of the mean difference (Student's t over the seeds, for each claim alone): *confirmed* where the whole interval is above
what the claim needs, *refuted* where it is below, *undecided* otherwise. Claims, scores and margins are in the recipes
and were fixed before the runs. The settings were chosen on another world of scenes than the one that decides: four of
its six shapes and of its six colours are new, and the test shows combinations that training never shows.

The models have 2 to 3 million parameters and train for minutes at most. A verdict holds for this size.

In the charts a filled circle is a confirmed claim, a square a refuted one, and an empty circle an undecided one; the
short upright line is what a claim needs. Claims on what a router does, and on speed, are in the tables alone."""
IMAGE = re.compile(r"^!\[.*\]\(images/claims-.*\.svg\)\n+", re.MULTILINE)
ROW = re.compile(r"^\| (.*?) \| (\S+) \| .* \| (\S+) \| (\S+) to (\S+) \| above (\S+) \| (\w+) \|$", re.MULTILINE)
MARKS: dict[str, Mark] = {"confirmed": "good", "refuted": "bad", "undecided": ""}


def read(folder: Path) -> dict[str, Any]:
    """The report of a recipe's folder. Ends the program where it holds no claims."""
    file = folder / "report.json"
    if not file.is_file():
        sys.exit(f"{file}: no report; train the recipe first, such as evle train claims-eve -o {folder}")
    report: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    if not any(table["title"] == "Claims" for table in report["tables"]):
        sys.exit(f"{file}: holds no claims; give the folder of a recipe with a section claims")
    return report


def section(report: Mapping[str, Any], note: str = "", title: str = "") -> str:
    """One recipe: its verdicts, and what each stage is and took. `title` replaces the recipe's."""
    table = next(table for table in report["tables"] if table["title"] == "Claims")
    claims = [dict(zip(table["columns"], row, strict=True)) for row in table["rows"]]
    counts = Counter(claim["verdict"] for claim in claims)
    rows = []
    for claim in claims:
        sides = [f"{claim[side]}: {claim[f'mean {side}']}" for side in ("of", "than")]
        rest = [claim[name] for name in ("difference", "95 % interval", "needs", "verdict")]
        rows.append([claim["claim"], claim["score"], *sides, *rest])
    verdicts = ", ".join(f"{counts[name]} {name}" for name in ("confirmed", "refuted", "undecided"))
    unfinished = [line for line in report["summary"] if line.endswith("runs are finished")]
    blocks = [f"## {title or report['title']}", *([note] if note else []), *report["summary"][:1], f"{verdicts}."]
    blocks += [f"**{line}.**" for line in unfinished]
    blocks += [markdown_table(Table("Claims", COLUMNS, rows)), "### Stages", stages(report["provenance"])]
    return "\n\n".join(blocks)


def stages(provenance: Mapping[str, Any]) -> str:
    """What each stage is, and the steps and seconds of its runs."""
    groups: dict[str, list[Mapping[str, Any]]] = {}
    for name, run in provenance.items():
        if "training" in run:
            groups.setdefault(name.split("/")[0], []).append(run)
    rows = [
        [
            name,
            runs[0]["config"]["title"],
            len(runs),
            round(statistics.fmean(run["training"]["steps"] for run in runs)),
            round(statistics.fmean(run["training"]["seconds"] for run in runs)),
        ]
        for name, runs in groups.items()
    ]
    every = [run for runs in groups.values() for run in runs]
    seconds = sum(run["training"]["seconds"] for run in every)
    facts = every[0]
    versions = ", ".join(f"{name} {facts[name]}" for name in ("evle", "torch", "transformers") if facts.get(name))
    note = f"{len(every)} runs, {seconds / 60:.0f} minutes of training in all" + (f"; {versions}" if versions else "")
    return markdown_table(Table("", ["stage", "what", "seeds", "steps", "seconds"], rows)) + f"\n\n{note}."


def with_sections(page: str, sections: Sequence[str]) -> str:
    """`page` with these sections, each in the place of the one of the same title, or else at its end."""
    blocks = re.split(r"^(?=## )", page.rstrip() + "\n", flags=re.MULTILINE)
    for each in sections:
        title = each.split("\n", 1)[0]
        at = next((index for index, block in enumerate(blocks) if block.split("\n", 1)[0] == title), len(blocks))
        blocks[at : at + 1] = [each.rstrip() + "\n"]
    return "\n\n".join(block.rstrip() for block in blocks) + "\n"


def with_charts(page: str, folder: Path) -> str:
    """`page` with an image above the first table of each section that has claims; the images are written into the
    folder images of `folder`."""
    blocks = re.split(r"^(?=## )", IMAGE.sub("", page), flags=re.MULTILINE)
    for number, block in enumerate(blocks):
        title = block.split("\n", 1)[0].removeprefix("## ")
        rows = [
            Interval(re.sub(r"\\(.)", r"\1", name), float(mean), float(low), float(high), float(needs), MARKS[verdict])
            for name, score, mean, low, high, needs, verdict in ROW.findall(block)
            if score in PERCENTAGES
        ]
        if rows:
            name = f"claims-{number}"
            chart = Intervals(title, "difference in points, with its 95 % interval", rows, {})
            (folder / "images").mkdir(exist_ok=True)
            (folder / "images" / f"{name}.svg").write_text(standalone(intervals_svg(chart, "c")), encoding="utf-8")
            image = f"![Differences and their intervals, as in the table below](images/{name}.svg)\n\n"
            blocks[number] = block.replace("| claim |", f"{image}| claim |", 1)
    return "".join(blocks)


def standalone(drawing: str) -> str:
    """A drawing for a report's page as a file of its own: with the page's colours, for light and for dark."""
    style = (resources.files("evle.report") / "report.css").read_text(encoding="utf-8")
    colours = style[style.index(":root") : style.index("* {")]
    rules = (
        f"<style>{colours}svg {{ background: var(--surface); }} text {{ font-family: system-ui, sans-serif; }}</style>"
    )
    start = drawing.index(">") + 1
    return f"{drawing[:start]}\n{rules}{drawing[start:]}\n"


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.claims", description="Write the page of claims.")
    parser.add_argument("folders", nargs="+", type=Path, help="outputs of recipes with claims")
    parser.add_argument("-o", "--output", type=Path, default=Path("docs/claims.md"), help="the page to write")
    parser.add_argument("--note", default="", help="a paragraph under each recipe's title, about how its runs differ")
    parser.add_argument("--title", default="", help="the title of the section of one folder, such as of a part")
    parser.add_argument("--add", action="store_true", help="keep the page's sections of other recipes")
    options = parser.parse_args(arguments)
    if options.title and len(options.folders) > 1:
        parser.error("--title needs a single folder; run the command once for each, with --add")
    sections = [section(read(each), options.note, options.title) for each in options.folders]
    has_page = options.add and options.output.is_file()
    page = options.output.read_text(encoding="utf-8") if has_page else INTRODUCTION
    page = with_charts(with_sections(page, sections), options.output.parent)
    options.output.write_text(page, encoding="utf-8")
    print(options.output)


if __name__ == "__main__":
    main()
