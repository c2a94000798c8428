"""Commands of `evle`, called as a user would."""

from typer.testing import CliRunner

from evle.cli import main as cli


def call(*arguments: object, code: int = 0, width: int = 80, stdin: bytes | None = None) -> str:
    """What a command prints on a terminal of `width` columns, stdout and stderr; its exit code is checked."""
    result = CliRunner().invoke(cli.app, [str(argument) for argument in arguments], terminal_width=width, input=stdin)
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == code, result.output
    return result.output
