"""Weights out of MLflow's registry, `models:/NAME/VERSION` or `models:/NAME@ALIAS`."""

import os
from pathlib import Path

from iakd.config import Params
from iakd.errors import UserError
from iakd.tracking.place import store_of
from iakd.tracking.store import ENVIRONMENT, first_line

KINDS = (".safetensors", ".pt2", ".pth", ".pt", ".bin", ".ckpt")  # a file of the first kind that there is one of


def download(address: str, params: Params, folder: Path) -> Path:
    """The file with the weights of a registered model, in `folder`.

    An address may go on to a file inside the model, `models:/NAME/1/data/x.pth`. Raises UserError where there is no
    such model, or no file or several that could be meant; RunFailed where MLflow does not answer.
    """
    place = store_of(params)
    if place.database and not place.database.exists():
        raise UserError(f"{address}: there is no registry, {place.database} does not exist; set MLFLOW_TRACKING_URI")
    place.check()
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    import mlflow
    from mlflow.exceptions import MlflowException

    mlflow.set_tracking_uri(place.uri)
    try:
        found = Path(mlflow.artifacts.download_artifacts(artifact_uri=address, dst_path=str(folder)))
    except (MlflowException, OSError, ImportError) as error:
        raise UserError(f"{address}: MLflow {place.shown} says: {first_line(error)}") from None
    return found if found.is_file() else _weights(address, found)


def _weights(address: str, folder: Path) -> Path:
    """The one file that holds weights."""
    for kind in KINDS:
        files = sorted(folder.rglob(f"*{kind}"))
        if len(files) > 1:
            names = ", ".join(str(file.relative_to(folder)) for file in files)
            raise UserError(f"{address} has several files: {names}; name one, as in {address}/{names.split(', ')[0]}")
        if files:
            return files[0]
    raise UserError(f"{address} has no file with weights ({', '.join(KINDS)}); docs/networks.md says how to log one")
