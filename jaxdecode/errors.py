"""The errors users can meet. Each message names the value, what was expected, and the way out."""


class JaxdecodeError(Exception):
    """Base of every error raised on purpose by jaxdecode; the CLI prints it without a traceback."""


class InputError(JaxdecodeError, ValueError):
    """An argument, prompt or option has a value that cannot be used."""


class UnknownNameError(InputError):
    """A model or method name is not known; the message lists near matches."""


class TraceError(InputError):
    """A trace is damaged, truncated, of another version, or disagrees with itself."""


class UnsupportedError(JaxdecodeError, NotImplementedError):
    """The combination asked for is valid but not supported; nothing was downgraded silently."""


class CheckpointError(JaxdecodeError):
    """A checkpoint cannot be read or written."""


class CorruptCheckpointError(CheckpointError):
    """A checkpoint's bytes are damaged, truncated, hostile or disagree with its manifest."""


class UnsafeCheckpointError(CheckpointError):
    """A checkpoint is in a format that can run code (pickle); it is never opened."""


class DestinationExistsError(CheckpointError, FileExistsError):
    """The destination exists; nothing is overwritten without being asked."""


class HostsError(JaxdecodeError):
    """Processes of one run are missing, or disagree on something they must share."""


class DownloadError(JaxdecodeError):
    """A model file could not be fetched or does not have the expected hash."""


def near_matches(name: str, known: list[str]) -> str:
    """Returns ` Did you mean 'x' or 'y'?` for the closest known names, or an empty string."""
    import difflib

    close = difflib.get_close_matches(name, known, n=3, cutoff=0.4)
    return f" Did you mean {' or '.join(map(repr, close))}?" if close else ""
