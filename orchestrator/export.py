"""`quadriga export`: copies a run's model into a new folder, for use elsewhere."""

from pathlib import Path

from quadriga.data.atomic_files import replace_folder
from quadriga.data.errors import UserError
from quadriga.orchestrator.model_folders import Kind, find_model


def export_run(name: str, to: str | Path, kind: Kind = "policy") -> Path:
    """Copy the model that `name` stands for to the new folder `to`, in Hugging Face layout; return its path.

    name: a run, a pipeline, a checkpoint or a model folder. A failure leaves no partial copy at `to`.
    Raises UserError if there is no such model, if its files are damaged or cannot be copied, or if `to` exists.
    """
    source, target = Path(find_model(name, kind).folder), Path(to).expanduser().absolute()
    if target.exists():
        raise UserError(f"{to} exists already. Name a new folder, so that nothing is overwritten.")
    _check_weights(source)
    try:
        replace_folder(source, target)
    except OSError as error:  # shutil.Error, too
        raise UserError(f"{source} cannot be copied to {to}: {error}.") from error
    return target


def _check_weights(folder: Path) -> None:
    """Raise UserError unless every file of weights can be read to its end and holds no empty tensor."""
    from safetensors import SafetensorError, safe_open

    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise UserError(f"{folder} has no .safetensors weights: there is nothing to export.")
    for file in files:
        try:
            with safe_open(file, "numpy") as tensors:
                empty = [key for key in tensors.keys() if 0 in tensors.get_slice(key).get_shape()]  # noqa: SIM118
        except SafetensorError as error:
            raise UserError(f"{file} is damaged ({error}): take another checkpoint.") from None
        if empty:
            raise UserError(f"{file} holds the empty tensor {empty[0]}: take another checkpoint.")
