"""Where the package finds its own data files, and where it keeps what it made."""

import os
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
