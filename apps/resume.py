"""What a checkpoint of a run holds, a run's state from it, and who writes it while the run goes on."""

import socket
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path
from typing import Any, Final

import torch
from about import check_about
from disk import size_of
from order import name_positions
from patience import MARGIN_S
from preflight import ask_what_is_left
from redact import without_secrets
from request import Config
from room import free_memory
from torch import nn
from watch import say, what_error_left, what_stands

from omni_ckpt import (
    At,
    Saving,
    Staging,
    as_place,
    begin_save_dcp,
    claim,
    clear_leftovers,
    is_local,
    load_dcp,
    make_group,
    make_staging,
    newest_whole_together,
    nothing,
    prune,
    read_plain,
    refuse_none_whole,
    save_dcp,
    set_aside,
    staging_bytes,
    step_dir,
)
from omni_data import Cursor, cursor_from_json, cursor_to_json, merge_cursors
from omni_mesh import World
from omni_parallel import TrainState, gather_objects, restore_state, state_tree
from omni_parallel.local import local

Order = Mapping[str, Any]
"""What fixes the rows of a step, beside the cursor."""
Patience = Callable[[float], AbstractContextManager[None]]
SAVE_S: Final = 1800.0
"""How long a rank waits for the others in a save, before it asks which of them does not come on."""


def choose_checkpoint(out: Path, world: World) -> Path | None:
    """The newest checkpoint of `out` of which every file is what was written; None if there is none at all.

    Effect: collective; every rank reads its share. Those that are damaged are told, and renamed, so that their steps
    can be saved again.

    Raises:
        ValueError: if there are checkpoints, and none is whole.
    """
    choice = newest_whole_together(out)
    if not choice.damaged:
        return choice.path
    refuse_none_whole(out, choice)
    for path, aside in set_aside(choice).items():
        if world.rank == 0:
            why = "; ".join(problem.removesuffix(".") for problem in choice.damaged[path][:3])
            say(without_secrets(f"DAMAGED: {why}. It is kept as {aside}."))
    if world.rank == 0:
        told = f"DAMAGED: the run goes on from {choice.path}, the newest that is whole."
        say(without_secrets(told))
    return choice.path


def load_run(state: TrainState, found: Path, frozen: bool = True) -> tuple[TrainState, Cursor, Mapping[str, Any]]:
    """The state and the place in the data that checkpoint `found` has, whatever mesh wrote it, and what it says of its
    run. Moments become as wide as they are to be now. If not `frozen`, it has only what is trained.

    Donates `state`. Effect: collective; reads. Its files were compared by `choose_checkpoint`.
    """
    plain = read_plain(found)
    about = plain.get("about", {})
    check_about(about, found)
    tree = {"state": state_tree(state, frozen=frozen), **{name: plain[name] for name in plain if name != "state"}}
    loaded = load_dcp(tree, found, check=False, casts=("state.optimizer",))["state"]
    state = restore_state(state, loaded, frozen=frozen)
    cursor = name_positions(cursor_from_json(plain["cursor"]), plain["order"])
    return state, cursor, about


class Keeper:
    """Holds the directory of a run, writes its checkpoints and deletes those that are not kept. One is under way at a
    time."""

    def __init__(self, config: Config, order: Order, world: World, allowing: Patience, *, at: At = nothing) -> None:
        """`allowing` is told how long it may take; `at` is called at each point of a save: see `omni_ckpt.Fault`."""
        self.config, self.order, self.world, self.allowing, self.at = config, order, world, allowing, at
        self.held = ExitStack()
        self.checks: list[Callable[[], None]] = []
        self.staging: Staging | None = None
        self.saving: Saving | None = None

    def __enter__(self) -> "Keeper":
        """Effect: collective; ranks talk of checkpoints in a group of their own. The first rank claims the directory,
        and the place of the checkpoints.

        Raises:
            ValueError: if another run has one of them.
        """
        self.group = make_group(SAVE_S + MARGIN_S)
        told = gather_objects(self._claim() if self.world.rank == 0 else "")[0]
        if told:
            self.held.close()
            raise ValueError(told)
        return self

    def __exit__(self, kind: type[BaseException] | None, *raised: Any) -> None:
        try:
            self._end_save(failing=kind is not None)
        finally:
            self.held.close()

    @contextmanager
    def telling(self) -> Iterator[None]:
        """While open, an error that ends the run tells what there is to go on from. Those of numbers do so by
        themselves."""
        try:
            yield
        except ValueError as problem:
            self._end_save(failing=True)
            raise ValueError(f"{problem}\n{ask_what_is_left(what_error_left, self.config)}") from problem
        except (OSError, RuntimeError, MemoryError) as problem:
            self._end_save(failing=True)
            problem.add_note(ask_what_is_left(what_error_left, self.config))
            raise

    def make_room(self, state: TrainState, cursor: Cursor) -> str:
        """Make room in host memory for checkpoints of such a state, if they are to be written in the background; how
        they are, in words.

        Effect: collective; allocates.

        Raises:
            ValueError: if there is no such room on some rank.
        """
        tree = self._tree(state, cursor)
        host, size, free = socket.gethostname(), staging_bytes(tree), free_memory()
        taken = Counter[str]()
        everyone = gather_objects((host, size, free))
        for machine, needed, _ in everyone:
            taken[machine] += needed
        fits = all(taken[machine] <= room / 2 for machine, _, room in everyone)
        if not (fits if self.config.save_in_background is None else self.config.save_in_background):
            return "each by the step"
        self.staging, lost = try_staging(tree)
        if lost := [told for told in gather_objects(lost) if told]:
            raise ValueError(f"host memory for checkpoints: {lost[0]}. Set --no-save-in-background.")
        return f"in the background, from {size_of(size)} of host memory on each rank"

    def save(self, state: TrainState, cursor: Cursor, about: Mapping[str, Any]) -> None:
        """Write the checkpoint of `state`, or begin to. Effect: collective; waits for the one under way.

        Args:
            state: of all ranks.
            cursor: of this rank.
            about: what a reader of the checkpoint should know; plain values.

        Raises:
            ValueError: if another run has taken the place of the checkpoints since.
            FloatingPointError: if parameters are not finite.
        """
        self.wait()
        lost, strange = zip(*gather_objects((self._lost(), find_strange(state.model))), strict=True)
        if lost[0]:
            raise ValueError(lost[0])
        if names := [name for name in strange if name]:
            raise FloatingPointError(
                f"after step {state.step} the values of {names[0]} are not finite, or so large that their squares are "
                f"not. Nothing of it is saved: {what_stands(self.config)}. Go on from there with a lower --optim.lr."
            )
        everyone = merge_cursors(gather_objects(cursor))
        tree = self._tree(state, everyone) | {"about": about}
        path = step_dir(self.config.checkpoints(), state.step)
        if self.staging is None:
            with self.allowing(SAVE_S):
                save_dcp(tree, path, group=self.group, then=self._prune, at=self.at)
        else:
            how = {"group": self.group, "then": self._prune, "at": self.at}
            self.saving = begin_save_dcp(tree, path, staging=self.staging, **how)

    def poll(self) -> None:
        """Raise the error of a save that failed; nothing if none did."""
        if self.saving is not None and self.saving.done:
            self.wait()

    def wait(self) -> None:
        """Until no save is under way. Raises the error of one that failed."""
        saving, self.saving = self.saving, None
        if saving is not None:
            with self.allowing(SAVE_S):
                saving()

    def _end_save(self, *, failing: bool) -> None:
        """As `wait`; that it failed is told if something else did before."""
        try:
            self.wait()
        except (ValueError, OSError, RuntimeError) as error:
            if not failing:
                raise
            tell_on_stderr(f"A checkpoint that was being written is lost, too: {error}")

    def _tree(self, state: TrainState, cursor: Cursor) -> dict[str, Any]:
        held = state_tree(state, frozen=self.config.keeps_frozen())
        return {"state": held, "cursor": cursor_to_json(cursor), "order": self.order}

    def _prune(self, path: Path) -> None:
        """Delete what is not kept. A failure is told, and no end of the run: `path` is saved."""
        try:
            prune(self.config.checkpoints(), self.config.retention(), at=self.at)
        except (ValueError, OSError) as error:
            told = f"NOT PRUNED: {path} is saved, and the run goes on, but older checkpoints take room: {error}"
            tell_on_stderr(told)

    def _claim(self) -> str:
        """Claim what this run writes; if that fails, why."""
        places = {"--out": as_place(self.config.out), "--save-to": self.config.checkpoints()}
        if is_same(*places.values()):
            del places["--save-to"]
        for flag, place in places.items():
            try:
                self.checks.append(self.held.enter_context(claim(place)))
            except ValueError as problem:
                return f"{flag} {problem}"
            except OSError as problem:
                why = problem.strerror or problem
                return f"{flag} {place} cannot be locked ({why}): choose one on another file system or storage."
        try:
            clear_leftovers(self.config.checkpoints())
        except (ValueError, OSError) as problem:
            tell_on_stderr(f"what killed saves left in {self.config.checkpoints()} takes room: {problem}")
        return ""

    def _lost(self) -> str:
        """Why what was claimed is no longer this run's; nothing if it is."""
        try:
            for check in self.checks:
                check()
        except ValueError as problem:
            return f"--save-to {problem}"
        return ""


def tell_on_stderr(text: str) -> None:
    """Effect: prints, without secrets."""
    print(without_secrets(text), file=sys.stderr, flush=True)


@torch.no_grad()
def find_strange(model: nn.Module) -> str:
    """The first parameter whose values on this rank have no finite norm; nothing if all have. Effect: waits for the
    device."""
    names, params = zip(*model.named_parameters(), strict=True)
    norms = torch.stack([local(param).float().norm() for param in params])
    return next((name for name, fine in zip(names, norms.isfinite().tolist(), strict=True) if not fine), "")


def is_same(place: Path, other: Path) -> bool:
    """Whether two places are one. Effect: follows links."""
    return place == other or (is_local(place) and is_local(other) and place.resolve() == other.resolve())


def try_staging(tree: Mapping[str, Any]) -> tuple[Staging | None, str]:
    """Room for `tree`, or why there is none. Effect: allocates."""
    try:
        return make_staging(tree), ""
    except (RuntimeError, MemoryError) as error:
        return None, str(error)
