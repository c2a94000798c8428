"""Uploading a model folder with its card to the Hugging Face hub."""

import re
from pathlib import Path

from huggingface_hub import HfApi
from huggingface_hub.errors import HfHubHTTPError, HFValidationError

from evle.errors import ConfigError, in_one_line
from evle.models.adapters import base_of_adapter, has_adapter
from evle.models.folders import model_folder
from evle.share.card import CARD, MADE, has_scores, write_card

NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


def push(
    model: str | Path,
    name: str,
    *,
    private: bool = False,
    revision: str | None = None,
    message: str = "Upload with evle",
    without_scores: bool = False,
) -> str:
    """Upload the model folder of `model`, a run's or a model folder, with a fresh card; the address of the commit.

    Raises:
        ConfigError: a name that is not OWNER/NAME, no scores on the card, and whatever the hub refuses.
        CheckpointError: no model folder.
    """
    if not NAME.fullmatch(name):
        raise ConfigError(f"{name!r} is no name on the hub; give OWNER/NAME, such as me/eve-photos")
    if not Path(model).exists():
        raise ConfigError(f"{model}: no such folder; give a run's folder or a model folder")
    folder = model_folder(model)
    if has_adapter(folder) and base_of_adapter(folder)[1]:
        raise ConfigError(
            f"{folder}: an adapter of {base_of_adapter(folder)[0]}, a folder that others do not have; upload a whole "
            f"model (`evle merge {model} -o DIR`), or train the adapter from a name on the hub"
        )
    file = folder / CARD
    if not file.is_file() or MADE in file.read_text(encoding="utf-8", errors="replace"):
        write_card(folder)
        if not without_scores and not has_scores(folder):
            raise ConfigError(
                f"{file}: the card holds no scores; enter them with `evle card {model} --report EVALUATION`, or upload "
                "it as it is with --without-scores"
            )
    api = HfApi()
    try:
        api.create_repo(name, private=private, exist_ok=True)
        if revision is not None:
            api.create_branch(name, branch=revision, exist_ok=True)
        done = api.upload_folder(
            repo_id=name, folder_path=folder, revision=revision, commit_message=message, ignore_patterns=[".*"]
        )
    except HfHubHTTPError as error:
        status = getattr(error.response, "status_code", None)
        if status in (401, 403):
            raise ConfigError(
                f"{name}: the hub refuses the upload ({status}); log in with `hf auth login`, with a token that may "
                "write to this name"
            ) from None
        raise ConfigError(f"{name}: the hub refuses the upload ({in_one_line(error)})") from None
    except HFValidationError as error:
        raise ConfigError(f"{name}: no name on the hub ({in_one_line(error)})") from None
    except (KeyError, TypeError, ValueError) as error:  # a proxy's page, or another program at that address
        raise ConfigError(
            f"{name}: the reply of the hub cannot be read ({type(error).__name__}: {in_one_line(error)}); "
            "check HF_ENDPOINT"
        ) from None
    except Exception as error:  # huggingface_hub lets the errors of its HTTP library (httpx, httpx2) through
        if not isinstance(error, OSError) and not type(error).__module__.startswith("http"):
            raise
        raise ConfigError(f"{name}: the hub cannot be reached ({in_one_line(error)}); check the connection") from None
    return str(done.commit_url)
