"""Runs `mmnar` in children of one process that has everything imported already: a run costs a second, not ten.

python command_server.py, then a JSON line on stdin for each group of processes to run together:
[{"arguments": [...], "out": FILE, "trace": FILE, "environment": {...}, "end": {...} | null, "strict": true}, ...].
The answer is a JSON line: the exit statuses, negative for a signal.

`end` is how a process is ended: {"seconds": s} kills it after s seconds; {"moment": m, "count": n, "how": h} ends it
when the moment comes for the n-th time, by "kill" (SIGKILL), "raise" (an error) or "interrupt" (Ctrl-C). `trace` gets
a JSON line for each training step and validation, with floats in hexadecimal, written at once.
"""

from __future__ import annotations

import functools
import json
import logging
import os
import signal
import sys
import threading
import time
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from jsonargparse import _deprecated

import mmnar_lightning.cli
from mmnar_lightning.__main__ import main
from mmnar_lightning.commands import _config
from mmnar_lightning.module import MultimodalOutcomeModule

HOOKS = {
    "step": "training_step",
    "step_end": "on_train_batch_end",
    "validation_start": "on_validation_start",
    "validation_step": "validation_step",
    "validation_end": "on_validation_end",
    "epoch_end": "on_train_epoch_end",
    "epoch_start": "on_train_epoch_start",
}


class EndedError(RuntimeError):
    """What a process is ended by."""


def around(owner: Any, name: str, before: Callable[[Any], None], after: Callable[[Any, Any], None]) -> None:
    """Call something before and after a method, of its first argument (and its result)."""
    original = getattr(owner, name)

    @functools.wraps(original)
    def replaced(first: Any, *args: Any, **kwargs: Any) -> Any:
        before(first)
        result = original(first, *args, **kwargs)
        after(first, result)
        return result

    setattr(owner, name, replaced)


def arrange_trace(path: str) -> None:
    """Write down each step's loss and each validation's metrics."""
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)

    def write(**record: Any) -> None:
        os.write(handle, (json.dumps(record) + "\n").encode())

    def step(module: Any, loss: Any) -> None:
        rate = module.trainer.optimizers[0].param_groups[0]["lr"]
        at = {"step": module.global_step, "epoch": module.current_epoch, "pretraining": module.pretraining}
        write(**at, loss=float(loss.detach()).hex(), rate=float(rate).hex())

    def validation(module: Any, _: Any) -> None:
        if module.finishing:
            return
        found = {k: float(v).hex() for k, v in module.trainer.callback_metrics.items() if k.startswith("val/")}
        write(validation=module.current_epoch, metrics=found)

    around(MultimodalOutcomeModule, "training_step", lambda _: None, step)
    around(MultimodalOutcomeModule, "on_validation_end", lambda _: None, validation)


def arrange_end(end: dict[str, Any]) -> None:
    """End this process when its moment comes."""
    left = end["count"]

    def strike(*_: Any) -> None:
        nonlocal left
        left -= 1
        if left:
            return
        if end["how"] == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        raise KeyboardInterrupt if end["how"] == "interrupt" else EndedError("ended by the test")

    if end["moment"] in HOOKS:
        around(MultimodalOutcomeModule, HOOKS[end["moment"]], strike, lambda *_: None)
        return
    if end["moment"] == "write":  # half of a checkpoint is written
        save = torch.save

        def half(checkpoint: Any, file: Any) -> None:
            if left == 1:
                file.write(b"half a checkpoint")
                file.flush()
            strike()
            save(checkpoint, file)

        torch.save = half  # type: ignore[assignment]
        return
    if end["moment"] in ("rename", "renamed"):  # before or after a file takes its final place
        nothing: Callable[..., None] = lambda *_: None  # noqa: E731
        around(Path, "replace", *((strike, nothing) if end["moment"] == "rename" else (nothing, strike)))
        return
    raise ValueError(f"no moment {end['moment']!r}")


def child(process: dict[str, Any]) -> int:
    """Be the process that is asked for; returns its exit status."""
    signal.alarm(150)  # whoever hangs does so no longer than a test may take
    out = os.open(process["out"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for stream in (1, 2):
        os.dup2(out, stream)
    os.environ.update(process.get("environment") or {})
    if process.get("strict", True):
        warnings.simplefilter("error")
        warnings.simplefilter("ignore", _deprecated.JsonargparseDeprecationWarning)
    if process.get("trace"):
        arrange_trace(process["trace"])
    end = process.get("end")
    if end and "moment" in end:
        arrange_end(end)
    try:
        return main(process["arguments"])
    except SystemExit as ended:
        return ended.code if isinstance(ended.code, int) else 1
    finally:
        logging.shutdown()
        sys.stdout.flush()
        sys.stderr.flush()


def start(process: dict[str, Any]) -> int:
    """Fork a child and return its process id."""
    identity = os.fork()
    if identity:
        return identity
    status = 70
    try:
        status = child(process)
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(status)


def kill_later(identity: int, seconds: float) -> None:
    """Kill a child after some time. It is not waited for before, so that its id can't be another's by then."""
    time.sleep(seconds)
    os.kill(identity, signal.SIGKILL)


def serve() -> None:
    """Run what is asked for until stdin ends."""
    torch.set_num_threads(1)
    _config.load_plugins()
    assert mmnar_lightning.cli is not None
    print(json.dumps(["ready"]), flush=True)
    for line in sys.stdin:
        group = json.loads(line)
        children = [start(process) for process in group]
        for process, identity in zip(group, children, strict=True):
            if (process.get("end") or {}).get("seconds") is not None:
                assert threading.active_count() == 1
                kill_later(identity, process["end"]["seconds"])
        print(json.dumps([os.waitstatus_to_exitcode(os.waitpid(one, 0)[1]) for one in children]), flush=True)


if __name__ == "__main__":
    serve()
