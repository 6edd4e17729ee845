"""Folders of runs: which one a run gets, what it continues there, and that no two work in one at once."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import re
import shutil
import time
import uuid
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import filelock

from wsgraph.files import new_folder, prepare_folder, write_json

__all__ = ["OtherRunError", "RunFolder", "RunningError", "claimed", "is_first_process"]

_RECORD, _RESULT, _LAST = "config.json", "result.json", "last.ckpt"
_CHECKPOINTS = (_LAST, "best.ckpt")
_LOCK, _LAUNCH = ".lock", ".launch"
# What a run writes; where one of them lies without a record, the folder is somebody else's.
_WRITTEN = (_RESULT, *_CHECKPOINTS, "metrics.csv", "model")
_ZOO = "zoo.json"
_TEMPORARY = re.compile(r"\.(.+)\.[0-9a-f]{32}\.tmp|\.write-test-\d+")
_CONTINUED = "continued_from"
_MOMENT = 0.05  # between two looks at a folder in which another process is at work
_PATIENCE = 10.0  # until a process that has a folder has recorded what it runs there
_LAUNCHING = 300.0  # until the first process of a distributed run has a folder

_launched = itertools.count()


class OtherRunError(ValueError):
    """A folder holds another run than the one to be made."""


class RunningError(ValueError):
    """Another process trains in a folder."""


@dataclass(frozen=True)
class RunFolder:
    """The folder that a run has.

    Attributes:
        folder: Its path.
        config: What the run depends on, as recorded.
        finished: Whether it holds the result of this run.
        continues: Whether it holds a checkpoint of this run to continue from.
    """

    folder: Path
    config: dict[str, Any]
    finished: bool
    continues: bool


def is_first_process() -> bool:
    """Whether this process writes and reports: the only one, or the first of a distributed run."""
    return int(os.environ.get("RANK", os.environ.get("LOCAL_RANK", 0))) == 0


@contextlib.contextmanager
def claimed(
    base: Path, config: Mapping[str, Any], *, numbered: bool, resume: bool, overwrite: bool, distributed: bool
) -> Iterator[RunFolder]:
    """Have a folder for a run, alone, while the block runs.

    A folder that holds the run of this configuration is taken, whether finished or not. One that holds another run is left as it is.

    Args:
        base: The folder wanted.
        config: Everything that the run depends on.
        numbered: Whether ``BASE-2``, ``BASE-3``, ... will do where ``BASE`` holds another run.
        resume: Whether a run that differs in nothing but fewer epochs is continued, and any other refused.
        overwrite: Whether to start over, removing the run that ``BASE`` holds or, where numbered ones will do, that of this configuration.
        distributed: Whether several processes make the run; the first takes a folder, the others follow.

    Yields:
        The folder. In a distributed run the first process holds it, the others use the same.

    Raises:
        OtherRunError: If the folder holds another run, a model or a zoo.
        RunningError: If another process is at work there.
        ValueError: If the record of the run is damaged.
        OSError: If the folder cannot be written.
    """
    wanted = json.loads(json.dumps(config))
    launch = f"{_launch_name()}-{next(_launched)}" if distributed else ""
    if not is_first_process():
        yield _followed(base, numbered, launch)
        return
    folder, lock = _locked(base, wanted, numbered=numbered, resume=resume, overwrite=overwrite)
    try:
        _remove_temporary(folder)
        if overwrite:
            _clear(folder)
        recorded = None if overwrite else _record_of(folder)
        if recorded is not None and resume and _is_shorter(recorded, wanted):
            recorded = _lengthened(folder, recorded, wanted["epochs"])
        if recorded is None:
            write_json(folder / _RECORD, wanted)
        claim = RunFolder(folder, recorded or wanted, (folder / _RESULT).exists(), (folder / _LAST).exists())
        if launch:
            write_json(
                folder / _LAUNCH, {"launch": launch, "config": claim.config, "finished": claim.finished, "continues": claim.continues}
            )
        yield claim
    finally:
        lock.release()


# == Which folder ==


def _candidates(base: Path, numbered: bool) -> Iterator[Path]:
    yield base
    if numbered:
        yield from (base.with_name(f"{base.name}-{number}") for number in itertools.count(2))


def _existing(base: Path, numbered: bool) -> list[Path]:
    return list(itertools.takewhile(lambda path: path.exists(), _candidates(base, numbered)))


def _locked(base: Path, wanted: dict[str, Any], *, numbered: bool, resume: bool, overwrite: bool) -> tuple[Path, filelock.BaseFileLock]:
    """The folder of a run, locked: that of the same run, else that of one to be lengthened, else one that is free."""
    deadline = time.monotonic() + _PATIENCE
    while True:
        known = {folder: _settled_record(folder, numbered, overwrite) for folder in _existing(base, numbered)}
        runs = {folder: record for folder, record in known.items() if record is not None}
        same = [folder for folder, record in runs.items() if not _differing(record, wanted, resume)]
        shorter = [folder for folder, record in runs.items() if resume and _is_shorter(record, wanted)]
        chosen = [*same, *sorted(shorter, key=lambda folder: -runs[folder]["epochs"])]
        if not chosen and runs and not numbered and overwrite:
            chosen = [base]
        if not chosen and runs and (resume or not numbered):
            raise OtherRunError(_refusal(next(iter(runs)), next(iter(runs.values())), wanted, resume))
        folder = chosen[0] if chosen else next(path for path in _candidates(base, numbered) if path not in runs)
        if not chosen:
            _refuse_what_is_no_run(folder)
        prepare_folder(folder)
        try:
            lock = _lock(folder)
        except RunningError:
            if chosen or not numbered or time.monotonic() > deadline:
                raise
            continue  # another process has just taken it, and will record for what
        # Since it was looked at, another process may have had it.
        if _known_record(folder, numbered, overwrite) == runs.get(folder):
            return folder, lock
        lock.release()


def _lock(folder: Path) -> filelock.BaseFileLock:
    lock = filelock.FileLock(folder / _LOCK)
    try:
        lock.acquire(timeout=5 * _MOMENT, poll_interval=_MOMENT)  # others hold it for a moment to see whether it is held
    except filelock.Timeout:
        raise RunningError(
            f"Another process trains in {str(folder)!r}: wait until it has finished, or choose another 'output' (--output)."
        ) from None
    return lock


def _record_of(folder: Path) -> dict[str, Any] | None:
    """What is recorded of the run in a folder, ``None`` where there is none."""
    try:
        record = json.loads((folder / _RECORD).read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(
            f"{str(folder / _RECORD)!r} is damaged ({error}). Choose another 'output', or give overwrite=True (--overwrite) to remove "
            "the run in this folder."
        ) from None
    if not isinstance(record, dict) or "library" in record or not isinstance(record.get("model"), str):
        raise OtherRunError(
            f"{str(folder)!r} holds a saved model or files of another kind, and no run: choose another 'output' (--output)."
        )
    return record


def _known_record(folder: Path, numbered: bool, overwrite: bool) -> dict[str, Any] | None:
    """The record of a run; empty if it is damaged, or that of something else, and there is another folder to go to.

    Raises:
        ValueError: If there is none.
    """
    try:
        return _record_of(folder)
    except OtherRunError:
        if not numbered:
            raise
    except ValueError:
        if not numbered and not overwrite:
            raise
    return {}


def _settled_record(folder: Path, numbered: bool, overwrite: bool) -> dict[str, Any] | None:
    """The same, waited for while another process has the folder and has not written it yet."""
    deadline = time.monotonic() + _PATIENCE
    while (record := _known_record(folder, numbered, overwrite)) is None and numbered and _is_locked(folder):
        if time.monotonic() > deadline:
            break
        time.sleep(_MOMENT)
    return record


def _is_locked(folder: Path) -> bool:
    lock = filelock.FileLock(folder / _LOCK)
    if not (folder / _LOCK).exists():
        return False
    try:
        lock.acquire(blocking=False)
    except filelock.Timeout:
        return True
    lock.release()
    return False


def _refuse_what_is_no_run(folder: Path) -> None:
    """Leave alone what is somebody else's: a zoo, or files by the names that a run would write."""
    if (folder / _ZOO).exists():
        raise OtherRunError(f"{str(folder)!r} is a zoo: choose another 'output' (--output).")
    if own := [name for name in _WRITTEN if (folder / name).exists()]:
        raise OtherRunError(
            f"{str(folder)!r} holds {own[0]!r}, and no record of the run that wrote it: choose another 'output' (--output)."
        )


# == What differs ==


def _differing(recorded: Mapping[str, Any], wanted: Mapping[str, Any], resume: bool) -> list[str]:
    ignored = {_CONTINUED} if resume else set()
    return [key for key in {**recorded, **wanted} if key not in ignored and recorded.get(key) != wanted.get(key)]


def _is_shorter(recorded: Mapping[str, Any], wanted: Mapping[str, Any]) -> bool:
    return _differing(recorded, wanted, resume=True) == ["epochs"] and recorded["epochs"] < wanted["epochs"]


def _refusal(folder: Path, recorded: Mapping[str, Any], wanted: Mapping[str, Any], resume: bool) -> str:
    differences = "; ".join(f"{key}: {recorded.get(key)!r} there, {wanted.get(key)!r} now" for key in _differing(recorded, wanted, resume))
    continued = not resume and (_is_shorter(recorded, wanted) or not _differing(recorded, wanted, resume=True))
    longer = "give resume=True (--resume) to continue it, " if continued else ""
    return (
        f"There exists another run in {str(folder)!r}, which is kept ({differences}). Choose another 'output' (--output), {longer}or give "
        "overwrite=True (--overwrite) to remove it."
    )


# == Changing a folder ==


def _remove_temporary(folder: Path) -> None:
    """Remove what a process that was killed has left unfinished."""
    for place in (folder, folder / "model"):
        for path in place.glob(".*"):
            if _TEMPORARY.fullmatch(path.name):
                shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)


def _clear(folder: Path) -> None:
    """Remove a run. Whenever this is interrupted, what is left is a run that is not finished."""
    (folder / _RESULT).unlink(missing_ok=True)
    shutil.rmtree(folder / "model", ignore_errors=True)
    for path in (*(folder / name for name in _CHECKPOINTS), *folder.glob("metrics*.csv")):
        path.unlink(missing_ok=True)
    for earlier in folder.glob("epochs-*"):
        if (earlier / _RECORD).exists():
            shutil.rmtree(earlier)
    (folder / _RECORD).unlink(missing_ok=True)


def _lengthened(folder: Path, recorded: dict[str, Any], epochs: int) -> dict[str, Any]:
    """Make a run one of more epochs; the result that it has is kept in a folder within."""
    if (folder / _RESULT).exists():
        if not (folder / _LAST).exists():
            raise OtherRunError(
                f"The run in {str(folder)!r} cannot be continued: its {_LAST!r} is missing. Choose another 'output' (--output) to train "
                "anew."
            )
        kept = folder / f"epochs-{recorded['epochs']}"
        if not kept.exists():
            with new_folder(kept) as copy:
                for path in (folder / _RECORD, folder / _RESULT, folder / "best.ckpt", *folder.glob("metrics*.csv")):
                    if path.exists():
                        shutil.copy2(path, copy)
                shutil.copytree(folder / "model", copy / "model")
        (folder / _RESULT).unlink()
        shutil.rmtree(folder / "model")
    lengthened = {**recorded, "epochs": epochs, _CONTINUED: [*(recorded.get(_CONTINUED) or ()), recorded["epochs"]]}
    write_json(folder / _RECORD, lengthened)
    return lengthened


# == Several processes ==


def _launch_name() -> str:
    """What all processes of a distributed run, and no others, know it by."""
    if "TORCHELASTIC_RUN_ID" in os.environ:
        names = ("TORCHELASTIC_RUN_ID", "MASTER_ADDR", "MASTER_PORT", "TORCHELASTIC_RESTART_COUNT")
        return "-".join(os.environ.get(name, "") for name in names)
    # Processes that the first one starts inherit its environment.
    return os.environ.setdefault("WSGRAPH_LAUNCH", uuid.uuid4().hex)


def _followed(base: Path, numbered: bool, launch: str) -> RunFolder:
    """The folder that the first process of this run has taken."""
    deadline = time.monotonic() + _LAUNCHING
    while time.monotonic() < deadline:
        for folder, document in _launches(_existing(base, numbered)):
            if document.get("launch") == launch:
                return RunFolder(folder, document["config"], document["finished"], document["continues"])
        time.sleep(_MOMENT)
    raise RunningError(f"The first process of the run has taken no folder such as {str(base)!r} in {_LAUNCHING:g} s.")


def _launches(folders: Iterable[Path]) -> Iterator[tuple[Path, dict[str, Any]]]:
    for folder in folders:
        with contextlib.suppress(FileNotFoundError):
            yield folder, json.loads((folder / _LAUNCH).read_text(encoding="utf-8"))
