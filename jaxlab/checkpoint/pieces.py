"""Arrays of a checkpoint written one item after another, with a pause before each piece of work.

It imports orbax, which takes a second: import it where a folder of checkpoints is opened.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import orbax.checkpoint as ocp
from etils import epath
from orbax.checkpoint.args import StandardRestore, StandardSave
from orbax.checkpoint.checkpoint_args import register_with_handler


class ItemHandler(ocp.AsyncCheckpointHandler):
    """One item of arrays, in the files of `ocp.StandardCheckpointHandler`.

    Orbax writes all items at once, as soon as it can. With a pause each is written as a whole after
    a pause, and completed after another, so that the work is spread over time. All of it is done
    by orbax's thread, after `async_save` has returned: only arrays that nothing changes or donates
    can be saved so.

    Args:
      pause: returns when the next piece may begin; None: everything at once.
    """

    def __init__(self, pause: Callable[[], object] | None = None):
        self._pause, self._files = pause, ocp.StandardCheckpointHandler()
        # What a checkpoint names as its reader: orbax alone can read it then.
        self.typestr = self._files.typestr

    async def async_save(self, directory: epath.Path, args: ItemSave) -> list[Any] | None:
        """Begins to save; returns futures, which are waited for in their order."""
        if self._pause is None:
            return await self._files.async_save(directory, args=args)
        return [_Later(lambda: self._after_pause(self._files.save, directory, args=args))]

    def finalize(self, directory: epath.Path) -> None:
        """Completes the files."""
        self._after_pause(self._files.finalize, directory)

    def save(self, directory: epath.Path, args: ItemSave) -> None:
        """Saves at once."""
        self._files.save(directory, args=args)

    def restore(self, directory: epath.Path, args: ItemRestore) -> Any:
        """Reads."""
        return self._files.restore(directory, args=args)

    def metadata(self, directory: epath.Path) -> Any:
        """What is there."""
        return self._files.metadata(directory)

    def close(self) -> None:
        """Lets go of what it holds."""
        self._files.close()

    def _after_pause(self, function: Callable[..., None], *args: Any, **kwargs: Any) -> None:
        if self._pause is not None:
            self._pause()
        function(*args, **kwargs)


@register_with_handler(ItemHandler, for_save=True)
@dataclasses.dataclass
class ItemSave(StandardSave):
    """What to save: `item`, a tree of arrays."""


@register_with_handler(ItemHandler, for_restore=True)
@dataclasses.dataclass
class ItemRestore(StandardRestore):
    """What to read: `item`, a tree of arrays or shapes."""


class _Later(ocp.future.Future):
    """Work that is done when its result is asked for, once, and then let go of with its arrays."""

    def __init__(self, work: Callable[[], None]):
        self._work: Callable[[], None] | None = work

    def result(self, timeout: float | None = None) -> None:
        """Does it."""
        del timeout  # the save as a whole has one
        if self._work is not None:
            self._work()
            self._work = None  # not before: what failed is not done when it is asked for again
