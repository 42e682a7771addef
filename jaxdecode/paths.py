"""Where the package finds its own data files."""

from pathlib import Path


def config_dir() -> Path:
    """Returns the folder of shipped YAML: inside the package in wheels, beside it in a checkout."""
    package = Path(__file__).resolve().parent
    packaged = package / "_configs"
    return packaged if packaged.is_dir() else package.parent / "configs"
