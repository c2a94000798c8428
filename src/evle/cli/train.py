"""The verbs that train models and score them: `main` takes them in.

As there, nothing heavy is imported before a verb needs it.
"""

from pathlib import Path
from typing import Annotated

import typer

from evle.cli.completion import complete_key, complete_recipe
from evle.cli.shared import AsJson, print_json
from evle.cli.showing import show_page, show_report, show_use
from evle.errors import ConfigError, EvleError
from evle.terminal import one_line

Recipe = Annotated[
    str,
    typer.Argument(
        help="A recipe's name (see `evle recipes`) or a .yaml file.",
        show_default=False,
        autocompletion=complete_recipe,
    ),
]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[KEY=VALUE]...",
        help="Settings that replace the recipe's, such as optim.lr=1e-4.",
        show_default=False,
        autocompletion=complete_key,
    ),
]
Output = Annotated[Path | None, typer.Option("--output", "-o", help="The folder to write.", show_default=False)]


def train(
    recipe: Recipe,
    overrides: Overrides = None,
    output: Annotated[
        str | None, typer.Option("--output", "-o", help="The folder or URL to write.", show_default=False)
    ] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Delete earlier runs in the output and start again.")
    ] = False,
    quick: Annotated[
        bool, typer.Option("--quick", help="Train the recipe's quick form: fewer steps and seeds.")
    ] = False,
    jobs: Annotated[
        int, typer.Option("--jobs", "-j", min=1, help="Runs at once: stages and seeds, each in its own process.")
    ] = 1,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Build everything, try two batches, and write nothing.")
    ] = False,
) -> None:
    """Train a recipe, or resume its training.

    The recipe names the task: pre-training, or fine-tuning on a task, where val chooses the best weights and test
    scores them. It may have several stages. Repeat the command to resume an unfinished run; finished stages are kept.

    \b
      evle train quickstart
      evle train pictures data.path=FOLDER
      evle train pictures data.path=FOLDER stages.retrieval.train.epochs=5 \\
          -o runs/short
      evle train claims-eve --quick --jobs 2
      evle train eve-base-pretrain train.batch_size=512 -o runs/base --dry-run
      evle train my-vqa.yaml model.init=runs/base optim.lr=1e-4 -o runs/vqa
      accelerate launch -m evle train eve-base-pretrain
    """
    from evle.run import dry_run as trying
    from evle.run import stages
    from evle.run.config import read_stages

    read = read_stages(recipe, [*(overrides or []), *([f"output={output}"] if output is not None else [])], quick=quick)
    if dry_run:
        if jobs > 1:
            raise ConfigError("--jobs has no effect with --dry-run, which tries one run after the other; leave one out")
        result = trying.rehearse_stages(read)
        print("\n".join(map(one_line, result.as_lines())))
        if result.missing:
            raise typer.Exit(2)
        return
    trained = stages.train(read, overwrite=overwrite, jobs=jobs, on_stage=print)
    show_report(trained, read.folder, trained.all_tables()[:1] if len(read.every) > 1 else ())
    show_use(read.stages[-1].task, read.stages[-1].output)


def evaluate(
    run: Annotated[
        str,
        typer.Argument(
            help="A run's folder, a model's folder or hub name, or a recipe whose output folder holds its run.",
            show_default=False,
            autocompletion=complete_recipe,
        ),
    ],
    overrides: Overrides = None,
    model: Annotated[
        str | None, typer.Option(help="Score this model folder instead of the run's.", show_default=False)
    ] = None,
    by: Annotated[
        str | None,
        typer.Option(
            "--recipe",
            help="Score by this recipe's task and data instead of the run's own.",
            show_default=False,
            autocompletion=complete_recipe,
        ),
    ] = None,
    output: Output = None,
) -> None:
    """Score a trained model on test data.

    On its own test data, on any other, or by another recipe (zero-shot).

    \b
      evle evaluate runs/pictures/retrieval
      evle evaluate runs/eve-base-pretrain --recipe eve-base-coco-retrieval \\
          data.path=FOLDER
      evle evaluate runs/pictures/retrieval data.test.split=val data.path=FOLDER
      evle evaluate runs/pictures/retrieval data.test.split=test task.k_test=0 \\
          -o scores
      evle evaluate runs/pictures/retrieval model.overrides.capacity_factor=1.0 \\
          -o scores
      evle evaluate openai/clip-vit-base-patch32 task.name=retrieval \\
          data.path=FOLDER data.test.source=folder
    """
    from evle.models.folders import is_hub_name
    from evle.run import evaluation, scoring

    is_file = Path(run).suffix in (".yaml", ".yml")
    on_hub = is_hub_name(run) and not is_file
    if by is None and not Path(run).is_dir() and "/" in run and not on_hub and not is_file:
        raise EvleError(f"{run}: no such folder; give a run's folder, a model's folder or hub name, or a recipe")
    config = scoring.read_to_score(run, overrides or [], recipe=by, model=model)
    name = "evaluation" if by is None else f"evaluation-{Path(by).stem}"
    folder = output or Path("runs" if on_hub else "") / config.output / name
    _refuse_run(output, run, config.output, *([] if model is None else [model]))
    show_report(evaluation.evaluate(config, model=model, output=folder), folder)
    show_page(folder / "report.html")


def _refuse_run(output: Path | None, *runs: str | Path) -> None:
    """Raise ConfigError where the report of a run's training would be replaced."""
    for run in map(Path, runs):
        if output is not None and (run / "config.yaml").is_file() and output.resolve() == run.resolve():
            raise ConfigError(
                f"--output {output}: would replace the report of this run's training; give another folder"
            )


def vcr(
    q2a: Annotated[str, typer.Argument(help="A run or model folder of vcr-q2a, which answers.", show_default=False)],
    qa2r: Annotated[
        str, typer.Argument(help="A run or model folder of vcr-qa2r, which gives the reason.", show_default=False)
    ],
    overrides: Overrides = None,
    output: Output = None,
) -> None:
    """Score two models together on VCR (Q to AR).

    Question to answer and reason; also writes the file for the leaderboard.

    \b
      evle vcr runs/q2a runs/qa2r
      evle vcr models/q2a models/qa2r data.test.source=vcr data.test.split=val \\
          data.path=FOLDER -o scores
    """
    from evle.run.vcr import judge_vcr

    folder = output or Path(qa2r) / "joint"
    _refuse_run(output, q2a, qa2r)
    show_report(judge_vcr(q2a, qa2r, overrides or [], output=folder), folder)
    show_page(folder / "report.html")


def report(
    runs: Annotated[
        list[Path],
        typer.Argument(help="Folders of runs, evaluations or recipes.", metavar="RUN...", show_default=False),
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="The folder to write.")] = Path("comparison"),
    as_json: AsJson = False,
) -> None:
    """Compare finished runs on one page.

    Scores are rows with confidence intervals, curves share their axes, and images that several runs show are side by
    side. The folder of a recipe stands for all its stages.

    \b
      evle report runs/quickstart
      evle report runs/vqa-a runs/vqa-b runs/vqa-c/evaluation -o compared
    """
    from evle.engine.run_folder import make_output
    from evle.run.side_by_side import compare_runs

    for run in runs:
        _refuse_run(output, run)
    compared = compare_runs(runs, output)
    make_output(output)
    page = compared.write(output)
    if as_json:
        for name, scores in compared.scores.items():
            print_json({"run": name, "scores": scores})
    else:
        show_report(compared, output, compared.all_tables()[:1])
    show_page(page)


def recipes() -> None:
    """List the bundled recipes.

    Their files can be copied and changed; the last line says where they are.

    \b
      evle recipes
    """
    from evle.recipes import listing
    from evle.recipes import recipes as known
    from evle.report import text_table

    for table in listing():
        print(f"{table.title}\n\n{text_table(table)}\n")
    print(f"The files: {next(iter(known().values())).parent}")


def plan(
    recipe: Recipe,
    overrides: Overrides = None,
    devices: Annotated[
        str, typer.Option(help="NUMBERxKIND of each machine, such as 8xA100-80G.", show_default=False)
    ] = "1xA100-80G",
    nodes: Annotated[int, typer.Option(min=1, help="Machines.")] = 1,
    mfu: Annotated[float, typer.Option(help="Share of the peak that training reaches.")] = 0.4,
    price: Annotated[float | None, typer.Option(help="Price of one device for an hour.", show_default=False)] = None,
    sharded: Annotated[
        bool, typer.Option("--sharded", help="Divide weights and moments over devices (FSDP2).")
    ] = False,
    samples: Annotated[
        int | None, typer.Option(min=1, help="Samples of an epoch, if the data is not here.", show_default=False)
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Plan a training on GPUs: memory, hours, cost.

    Measures one step on this machine, then calculates. The stages of a recipe are planned one after the other.

    \b
      evle plan eve-base-pretrain --devices 8xA100-80G --samples 10000000
      evle plan eve-large-pretrain --devices 8xA100-40G --nodes 2 --mfu 0.3 \\
          --price 1.5
    """
    from evle.run.config import read_stages
    from evle.run.plan import plan as make_plan

    firsts = {stage.group: stage for stage in reversed(read_stages(recipe, overrides or []).stages)}
    for stage in reversed(firsts.values()):
        made = make_plan(stage.config, devices, nodes=nodes, mfu=mfu, price=price, sharded=sharded, samples=samples)
        if as_json:
            print_json(made.as_dict())
        else:
            print("\n".join(made.lines()))


VERBS = (train, plan, evaluate, vcr, report, recipes)
