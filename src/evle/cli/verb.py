"""One verb in the help: its usage, arguments and options, named by what they take: RUN, FOLDER, N."""

from typing import Any

from typer.core import TyperCommand

VALUES = {
    "--answer": "TEXT",
    "--answers": "FILE",
    "--caption": "TEXT",
    "--captioner": "FOLDER",
    "--chat": "URL",
    "--chat-model": "NAME",
    "--data-license": "NAME",
    "--format": "NAME",
    "--host": "ADDRESS",
    "--html": "FILE",
    "--key-variable": "NAME",
    "--language-model": "FOLDER",
    "--license": "NAME",
    "--message": "TEXT",
    "--method": "NAME",
    "--output": "FOLDER",
    "--pairs": "TABLE",
    "--reason": "TEXT",
    "--reason-model": "MODEL",
    "--remove": "PATH",
    "--report": "FOLDER",
    "--rerank-model": "MODEL",
    "--revision": "NAME",
    "--root": "FOLDER",
    "--since": "DATE",
    "--template": "TEXT",
    "--text": "MODEL",
    "--tokenizer": "FOLDER",
    "--until": "DATE",
    "--vision": "MODEL",
    "--where": "CONDITION",
}
"""What an option takes, by its name; a `metavar` at the option itself wins. The others take what their name says."""
NUMBERS = {"int": "N", "float": "X"}
"""What an option takes whose type, as typer or click writes it, has this word: <int range>, INTEGER."""


class Verb(TyperCommand):
    """A verb of the command line."""

    def collect_usage_pieces(self, ctx: Any) -> list[str]:
        arguments = [argument_name(each) for each in self.get_params(ctx) if is_argument(each)]
        return ["[OPTIONS]", *arguments]

    def format_options(self, ctx: Any, formatter: Any) -> None:
        sections: dict[str, list[tuple[str, str]]] = {"Arguments": [], "Options": []}
        for each in self.get_params(ctx):
            if (record := each.get_help_record(ctx)) is not None:
                if is_argument(each):
                    sections["Arguments"].append((argument_name(each), record[1]))
                else:
                    sections["Options"].append((option_name(each, record[0]), record[1]))
        for title, rows in sections.items():
            if rows:
                with formatter.section(title):
                    formatter.write_dl(rows)


def is_argument(parameter: Any) -> bool:
    """Whether a parameter of click is an argument, not an option."""
    return bool(parameter.param_type_name == "argument")


def argument_name(argument: Any) -> str:
    """An argument as the usage shows it: RUN, [INDEX], TEXT..."""
    name: str = argument.metavar or argument.name.upper().replace("_", "-") + ("..." if argument.nargs != 1 else "")
    return name if argument.required or name.startswith("[") else f"[{name}]"


def option_name(option: Any, with_type: str) -> str:
    """An option with what it takes: -o, --output FOLDER; `with_type` is how typer shows it: -o, --output <str>."""
    names = ", ".join(sorted(option.opts, key=lambda name: name.startswith("--")))
    if option.secondary_opts:
        names += " / " + ", ".join(option.secondary_opts)
    if option.is_flag:
        return names
    name = max(option.opts, key=len)
    shown_type = with_type.rpartition(name)[2].lower()
    number = next((letter for word, letter in NUMBERS.items() if word in shown_type), None)
    return f"{names} {option.metavar or VALUES.get(name) or number or name.lstrip('-').upper()}"
