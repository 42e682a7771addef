"""Places to resume from: parameters, optimizer, place in the data and noise of one step, together.

Orbax writes each in the background into a hidden folder and renames it when all of it is there, so
a killed run leaves whole ones only. Orbax has no checksum of the arrays; one is computed on the
devices and kept beside them.
"""

import contextlib
import logging
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp
from jaxtyping import Array, UInt32

from jaxdecode.errors import CheckpointError, CorruptCheckpointError

_STATE, _PLACE = "state", "place"


class Checkpoints:
    """The checkpoints of one run, in a folder of their own."""

    def __init__(self, folder: Path, *, keep: int):
        # Every leftover of a killed run would otherwise stay for good.
        options = ocp.CheckpointManagerOptions(max_to_keep=keep, cleanup_tmp_directories=True)
        logging.getLogger("absl").setLevel(logging.ERROR)
        self._folder = folder.absolute()
        with self._errors():
            self._manager = ocp.CheckpointManager(self._folder, options=options)

    def latest(self) -> int | None:
        """The last step that was saved whole."""
        return self._manager.latest_step()

    def save(self, step: int, state: Any, place: Mapping[str, Any]) -> None:
        """Begins to save; an earlier save is waited for.

        Args:
            step: steps taken.
            state: arrays.
            place: what else belongs to this step; JSON.

        Raises:
            CheckpointError: this or an earlier save failed.
        """
        if step == self.latest():
            return
        content = dict(place) | {"sum": int(checksum(state))}
        args = ocp.args.Composite(
            state=ocp.args.StandardSave(state), place=ocp.args.JsonSave(content)
        )
        with self._errors():
            self._manager.save(step, args=args, force=True)

    def wait(self) -> None:
        """Returns when everything is on disk.

        Raises:
            CheckpointError: a save failed.
        """
        with self._errors():
            self._manager.wait_until_finished()

    def restore(self, like: Any) -> tuple[Any, dict[str, Any]]:
        """State and place of the last step.

        Args:
            like: a state of the same structure, where the arrays are to lie.

        Raises:
            CorruptCheckpointError: it is damaged.
        """
        step = self.latest()
        shapes = jax.tree.map(ocp.utils.to_shape_dtype_struct, like)
        args = ocp.args.Composite(
            state=ocp.args.StandardRestore(shapes), place=ocp.args.JsonRestore()
        )
        try:
            found = self._manager.restore(step, args=args)
            state, place = found[_STATE], dict(found[_PLACE])
            wanted = place.pop("sum")
        except Exception as error:  # Orbax raises whatever its storage raises
            raise self._damaged(step, error) from error
        if int(checksum(state)) != wanted:
            raise self._damaged(step, "its arrays do not have the sum that was saved with them")
        return state, place

    def close(self) -> None:
        """Waits, and gives back threads."""
        with self._errors():
            self._manager.close()

    def _damaged(self, step: int | None, why: Any) -> CorruptCheckpointError:
        others = [other for other in self._manager.all_steps() if other != step]
        back = f"to resume from step {max(others)}" if others else "and start a new run"
        reason = str(why).partition("\n")[0]
        return CorruptCheckpointError(
            f"the checkpoint {self._folder / str(step)} is damaged ({reason}); remove that "
            f"folder {back}."
        )

    @contextlib.contextmanager
    def _errors(self) -> Iterator[None]:
        """Turns what Orbax and the system raise while writing into an error with a way out."""
        try:
            yield
        except CheckpointError:
            raise
        except (OSError, ValueError, RuntimeError) as error:
            reason = str(error).partition("\n")[0]
            if "No space left" in str(error):
                reason = "no space left on the disk"
            raise CheckpointError(
                f"the run could not save its state in {self._folder}: {reason}. What was saved "
                "before is whole; make room there, then resume (--resume)."
            ) from error


@jax.jit
def checksum(tree: Any) -> UInt32[Array, ""]:
    """A sum over the bits of all arrays; any single changed word changes it, and so does order."""
    total = jnp.zeros((), jnp.uint32)
    for number, leaf in enumerate(jax.tree.leaves(tree)):
        size = {1: jnp.uint8, 2: jnp.uint16, 4: jnp.uint32}[leaf.dtype.itemsize]
        bits = jax.lax.bitcast_convert_type(leaf, size).astype(jnp.uint32)
        # Odd factors are invertible, so one changed word always changes the sum.
        place = jnp.arange(leaf.size, dtype=jnp.uint32).reshape(leaf.shape)
        total += (bits * (2 * place + 1)).sum(dtype=jnp.uint32) * jnp.uint32(2 * number + 1)
    return total
