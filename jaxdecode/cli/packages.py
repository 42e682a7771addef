"""Installed packages: are they there, do they fit together, are they those the tests ran with?"""

import platform
from collections.abc import Iterator, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

import jaxdecode
from jaxdecode.cli.findings import Finding
from jaxdecode.paths import pins

if TYPE_CHECKING:
    from packaging.requirements import Requirement

# What `jaxdecode --version` prints besides the two first lines.
SHOWN = ("jax", "jaxlib", "flax")
# Not required by name, but what JAX is on a machine.
BESIDE = ("jaxlib", "libtpu")


def versions() -> dict[str, str]:
    """Versions of this package, of Python and of what computes, without importing any of it."""
    found = {"jaxdecode": jaxdecode.__version__, "python": platform.python_version()}
    return found | {name: _version(name) or "not installed" for name in SHOWN}


def installed() -> dict[str, str]:
    """Versions of all distributions, by normalised name."""
    from packaging.utils import canonicalize_name

    # The first one found is the one that is imported.
    found: dict[str, str] = {}
    for one in metadata.distributions():
        found.setdefault(canonicalize_name(one.metadata["Name"]), one.version)
    return found


def requirements() -> list["Requirement"] | None:
    """What the installed package asks for; None if it only lies in a folder."""
    from packaging.requirements import Requirement

    try:
        return [Requirement(line) for line in metadata.requires("jaxdecode") or []]
    except metadata.PackageNotFoundError:
        return None


def findings() -> Iterator[Finding]:
    """All that the packages say."""
    have, wanted = installed(), requirements()
    if wanted is None:
        yield Finding(
            "packages",
            "warning",
            "jaxdecode runs from a folder and is not installed, so its requirements are unknown",
            "pip install -e .",
        )
        wanted = []
    yield from required(wanted, have)
    yield from pairs(have)
    yield from extras(wanted, have)
    yield from pinned(pins(), have, [one.name for one in wanted])


def required(wanted: Sequence["Requirement"], have: Mapping[str, str]) -> Iterator[Finding]:
    """Whether everything is there that the package needs without extras."""
    bad = [text for one in wanted if _applies(one, "") for text in lacks(one, have)]
    if bad:
        fix = "pip install --upgrade " + " ".join(f"'{text.split(' (')[0]}'" for text in bad)
        yield Finding("packages", "broken", f"missing or too old or new: {', '.join(bad)}", fix)
    elif wanted:
        yield Finding("packages", "ok", "all required packages are here, in versions that fit")


def lacks(wanted: "Requirement", have: Mapping[str, str]) -> list[str]:
    """What of one requirement, and of the extras it names, is missing or of a wrong version."""
    from packaging.requirements import Requirement
    from packaging.utils import canonicalize_name

    version = have.get(canonicalize_name(wanted.name))
    if version is None:
        return [f"{wanted.name}{wanted.specifier} (not installed)"]
    if not wanted.specifier.contains(version, prereleases=True):
        return [f"{wanted.name}{wanted.specifier} (installed: {version})"]
    inner = [Requirement(line) for line in metadata.requires(wanted.name) or []]
    return [
        text
        for extra in sorted(wanted.extras)
        for one in inner
        if _applies(one, extra) and not _applies(one, "")
        for text in lacks(one, have)
    ]


def extras(wanted: Sequence["Requirement"], have: Mapping[str, str]) -> Iterator[Finding]:
    """Which extras are installed, and how to get the others."""
    names = metadata.metadata("jaxdecode").get_all("Provides-Extra") or [] if wanted else []
    for name in names:
        own = [one for one in wanted if _applies(one, name) and not _applies(one, "")]
        missing = [text for one in own for text in lacks(one, have)]
        if missing:
            fix = f"pip install 'jaxdecode[{name}]'"
            yield Finding(f"extra {name}", "note", f"lacks {', '.join(missing)}", fix)
        else:
            yield Finding(f"extra {name}", "ok", "installed")


def pairs(have: Mapping[str, str]) -> Iterator[Finding]:
    """Packages that are of use only in versions that match."""
    jax, jaxlib = have.get("jax"), have.get("jaxlib")
    if jax is None or jaxlib is None:
        return
    if _release(jaxlib) > _release(jax):
        text = f"jaxlib {jaxlib} is newer than jax {jax}, which then refuses to start"
        yield Finding("jax and jaxlib", "broken", text, f"pip install 'jaxlib=={jax}'")
    elif _release(jaxlib) < _release(jax):
        text = f"jaxlib {jaxlib} is older than jax {jax}; they are released and tested together"
        yield Finding("jax and jaxlib", "warning", text, f"pip install 'jaxlib=={jax}'")
    plugins = [name for name in have if name.startswith("jax-cuda") and name[8:10].isdigit()]
    for name in sorted(plugins):
        if _release(have[name]) != _release(jaxlib):
            text = f"{name} {have[name]} is not of jaxlib's version {jaxlib}: JAX will not use it"
            yield Finding(name, "warning", text, f"pip install '{name}=={jaxlib}'")
    generations = sorted({name[4:10] for name in plugins})
    if len(generations) > 1:
        text = f"plugins for {' and '.join(generations)} are installed; JAX can use one"
        yield Finding("CUDA", "warning", text, f"pip uninstall jax-{generations[0]}-plugin")


def pinned(file: Path | None, have: Mapping[str, str], names: Sequence[str]) -> Iterator[Finding]:
    """What is installed in another version than the tests ran with."""
    from packaging.utils import canonicalize_name

    if file is None:
        yield Finding("constraints", "note", "not shipped with this installation")
        return
    lines = [line for line in file.read_text(encoding="utf-8").splitlines() if "==" in line]
    tested = {canonicalize_name(n): v for n, _, v in (line.partition("==") for line in lines)}
    shown = {canonicalize_name(name) for name in (*names, *BESIDE)}
    other = [
        f"{name} {have[name]} (tested: {tested[name]})"
        for name in sorted(shown & set(have) & set(tested))
        if have[name] != tested[name]
    ]
    if other:
        fix = f"pip install --constraint {file} jaxdecode"
        yield Finding("constraints", "note", f"differ: {', '.join(other)}", fix)
    else:
        yield Finding("constraints", "ok", f"the versions of {file.name}, which the tests ran with")


def _applies(wanted: "Requirement", extra: str) -> bool:
    return wanted.marker is None or wanted.marker.evaluate({"extra": extra})


def _release(version: str) -> tuple[int, ...]:
    """The three numbers that jax and jaxlib share: 0.12.0.1 is a repair of 0.12.0."""
    from packaging.version import Version

    return (*Version(version).release, 0, 0)[:3]


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None
