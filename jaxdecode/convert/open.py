"""One door for every checkpoint format."""

from pathlib import Path

from jaxdecode.convert.atomic import is_partial
from jaxdecode.convert.checkpoint import is_checkpoint, open_checkpoint
from jaxdecode.convert.source import Source
from jaxdecode.errors import CorruptCheckpointError, InputError


def open_source(path: Path | str) -> Source:
    """Opens our checkpoint, a Hugging Face folder, a .gguf or a .safetensors file.

    Raises:
        InputError: the path is missing, unreadable, or none of these.
        CheckpointError: it is one of these, but damaged, unsafe or not supported.
    """
    path = Path(path).expanduser()
    kind = detect(path)
    if is_partial(path.absolute()):
        raise CorruptCheckpointError(f"{path} was left by an unfinished conversion; convert again.")
    try:
        if kind == "orbax":
            return open_checkpoint(path)
        # Imported late: loading our own checkpoints should not wait for the other formats.
        if kind == "gguf":
            from jaxdecode.convert.gguf import open_gguf

            return open_gguf(path)
        from jaxdecode.convert.safetensors import open_safetensors

        return open_safetensors(path)
    except (OSError, MemoryError) as error:
        raise InputError(f"{path}: cannot be read ({error}).") from error


def detect(path: Path) -> str:
    """Returns "orbax", "safetensors" or "gguf", from what lies at `path`.

    Raises:
        InputError: naming the path, if there is nothing to open.
        UnsafeCheckpointError: it is a pickle checkpoint.
    """
    from jaxdecode.convert.safetensors import refuse_pickle

    try:
        if not path.exists():
            raise InputError(f"{path} does not exist; expected a checkpoint folder or file.")
        if path.is_dir():
            if is_checkpoint(path):
                return "orbax"
            refuse_pickle(path)
            if any(path.glob("*.safetensors")) or (path / "config.json").is_file():
                return "safetensors"
            hint = " (point to the .gguf file itself)" if any(path.glob("*.gguf")) else ""
            if is_checkpoint(path / "model"):  # of a training run
                hint = f"; the run's model is {path / 'model'}"
            raise InputError(f"{path}: no checkpoint in this folder{hint}.")
        refuse_pickle(path)
        with path.open("rb") as file:
            magic = file.read(4)
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror or error}).") from error
    if path.suffix == ".gguf" or magic == b"GGUF":
        return "gguf"
    if path.suffix == ".safetensors":
        return "safetensors"
    raise InputError(f"{path}: not a checkpoint; expected a folder, .gguf or .safetensors file.")
