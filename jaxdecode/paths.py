"""Where the package finds its own data files, and where it keeps what it made."""

import os
import sys
from pathlib import Path


def config_dir() -> Path:
    """Returns the folder of shipped YAML: inside the package in wheels, beside it in a checkout."""
    package = Path(__file__).resolve().parent
    packaged = package / "_configs"
    return packaged if packaged.is_dir() else package.parent / "configs"


def cache_dir() -> Path:
    """Where downloads, converted models and measurements are kept; JAXDECODE_CACHE overrides it."""
    override = os.environ.get("JAXDECODE_CACHE")
    if override:
        return Path(override).expanduser().absolute()
    import platformdirs

    return platformdirs.user_cache_path("jaxdecode")


def offline() -> bool:
    """Whether the network must not be used: JAXDECODE_OFFLINE is set, and not to 0 or false."""
    return os.environ.get("JAXDECODE_OFFLINE", "").lower() not in ("", "0", "false", "no", "off")


def pins() -> Path | None:
    """The versions that the tests ran with on this Python; None if they were not shipped."""
    name = f"py3{11 if sys.version_info < (3, 12) else 12}.txt"
    package = Path(__file__).resolve().parent
    found = [package / "_constraints" / name, package.parent / "constraints" / name]
    return next((path for path in found if path.is_file()), None)
