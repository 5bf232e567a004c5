"""Publish an exported model on the Hugging Face Hub, or on a server that speaks its language."""

import os
from pathlib import Path

from iakd.errors import RunFailed, UserError
from iakd.experiment.jobs import RESULTS
from iakd.experiment.run_dir import CARD, MODEL, PREPROCESSING
from iakd.export.folder import read_network, read_preprocessing

FRONT = """---
library_name: iakd
pipeline_tag: image-classification
tags: [knowledge-distillation, onnx]
---

"""  # what the Hub reads of a model card
REFUSED = (401, 403)  # HTTP status codes


def push_hub(name: str, folder: Path | None = None, private: bool = False) -> str:
    """Upload an exported folder to the repository `name` in one commit, creating it if needed; return its address.

    `folder` None stands for the only export in results/. The token and the server are those of huggingface_hub
    (HF_TOKEN, HF_ENDPOINT). Raises UserError if the folder is no complete export, the name is invalid, or the server
    refuses the token; RunFailed if anything else goes wrong there.
    """
    folder = folder or _only_export()
    read_preprocessing(folder / PREPROCESSING)
    read_network(folder / MODEL)  # what cannot be loaded is not published
    try:
        from huggingface_hub import CommitOperationAdd, HfApi
        from huggingface_hub.errors import HfHubHTTPError, HFValidationError
    except ImportError:
        raise UserError("huggingface_hub is not installed; pip install 'iakd[hub]'") from None
    files = {path.name: path.read_bytes() for path in _published(folder)}
    card = files.get(CARD, b"")
    files[CARD] = card if card.startswith(b"---\n") else FRONT.encode() + card
    server = os.environ.get("HF_ENDPOINT")
    hub = HfApi(endpoint=server)
    where = f"{name} on {hub.endpoint}"
    try:
        repository = hub.create_repo(name, private=private or None, exist_ok=True).repo_id
        done = hub.create_commit(
            repository,
            [CommitOperationAdd(path, content) for path, content in files.items()],
            commit_message=f"Export of {folder.parent.name}, {folder.name}",
        )
    except HFValidationError as error:
        raise UserError(f"{name} is not a name of a repository: {_line(error)}") from None
    except HfHubHTTPError as error:
        if error.response is not None and error.response.status_code in REFUSED:
            raise UserError(
                f"{where}: it refuses the token ({error.response.status_code}); log in with `hf auth login`, or "
                "set HF_TOKEN to a token that may write there"
            ) from None
        raise RunFailed(f"{where}: {_line(error)}") from None
    except Exception as error:  # of the network; what it raises depends on the version of the library
        raise RunFailed(f"{where}: {_line(error)}") from None
    return str(done.commit_url)


def _published(folder: Path) -> list[Path]:
    """The files of an export, without those that a killed writer has left."""
    return [path for path in sorted(folder.iterdir()) if path.is_file() and not path.name.startswith(".")]


def _only_export() -> Path:
    found = sorted(path.parent for path in RESULTS.glob(f"*/export/*/*/{PREPROCESSING}"))
    if len(found) != 1:
        names = ", ".join(map(str, found[:4])) + (", …" if len(found) > 4 else "")
        raise UserError(
            f"name the folder to publish: {names}" if found else f"{RESULTS} has no exported model: run `iakd export`"
        )
    return found[0]


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__
