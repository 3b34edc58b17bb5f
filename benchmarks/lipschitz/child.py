"""One cell in a process of its own: ``python -m benchmarks.lipschitz.child REQUEST.json ANSWER.json``.

Time is CPU time of the whole process (and wall-clock time beside it) from when everything is imported; memory is the
peak resident size while the method runs, less what the process held before. The clock kills: a method past the limit
that does not stop itself dies by SIGALRM. If the parent dies, so does this (its end of stdin closes).
"""

from __future__ import annotations

import contextlib
import json
import os
import resource
import signal
import sys
import threading
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.lipschitz import methods, nets
from certbound.errors import CertificateError, InputError, MissingDependencyError, UnsupportedLayerError

OVERRUN = 1.25
"""A method that keeps a time limit itself may overrun it by this factor (and ``grace``): a last step, a proof."""


def _status_kib(field: str) -> int:
    """A line of /proc/self/status; 0 where there is none."""
    try:
        lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) for line in lines if line.startswith(f"{field}:")), 0)


class Memory:
    """Peak resident size from here on, less what is held now, in bytes."""

    def __init__(self) -> None:
        # resets VmHWM; where that fails, the peak so far, that of the imports, is the baseline
        with contextlib.suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
        self._before = self._peak()

    @staticmethod
    def _peak() -> int:
        # ru_maxrss of a child begins at its parent's peak, so it is the second choice
        return 1024 * (_status_kib("VmHWM") or resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)

    def grown(self) -> int:
        """How far the peak is above the beginning."""
        return self._peak() - self._before


def _limit_memory(gib: float) -> None:
    """So that a solver that wants more fails instead of the machine."""
    held = 1024 * _status_kib("VmSize")
    if held:
        resource.setrlimit(resource.RLIMIT_AS, (held + int(gib * 2**30), resource.RLIM_INFINITY))


def _die_with_parent() -> None:
    def watch() -> None:
        os.read(0, 1)  # nothing is ever written: it returns at the end of the stream
        os._exit(3)

    threading.Thread(target=watch, daemon=True).start()


def _case(request: dict[str, Any]) -> methods.Case:
    net: nets.Net | nets.Trap
    if request["trap"]:
        net = nets.TRAPS[request["net"]]
    else:
        net = nets.stored(request["net"], request["seed"], Path(request["nets"]))
    outputs = request["outputs"]
    return methods.Case(
        net, float(request["norm"]), tuple(outputs) if isinstance(outputs, list) else outputs, request["limit"]
    )


def _short(error: BaseException) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"[:300]


def _warm_up(name: str, case: methods.Case) -> None:
    """The method once on two neurons a layer: what it imports and builds at its first call is not timed."""
    if name not in methods.METHODS:
        return
    eye = np.array([[1.0, 0.5], [0.0, 1.0]])
    tiny = nets.Net("tiny", (eye,) * 3, (np.zeros(2),) * 3)
    outputs = case.outputs if case.outputs is None else (0, 1)
    # what goes wrong here goes wrong in the cell as well, where it is reported
    with contextlib.suppress(Exception):
        methods.METHODS[name].prepare(methods.Case(tiny, case.norm, outputs, case.limit)).run()


def measure(request: dict[str, Any]) -> dict[str, Any]:
    """Run the cell; what went wrong is a status, never an exception."""
    cpu = wall = 0.0
    try:
        case = _case(request)
        job = methods.find(request["method"]).prepare(case)
        _warm_up(request["method"], case)
        _limit_memory(request["memory"])
        memory = Memory()
        signal.setitimer(signal.ITIMER_REAL, OVERRUN * request["limit"] + request["grace"])
        wall, cpu = time.perf_counter(), time.process_time()
        raw = job.run()
        cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
        signal.setitimer(signal.ITIMER_REAL, 0.0)
        peak = memory.grown()
        resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        return asdict(job.read(raw)) | {"cpu_seconds": cpu, "wall_seconds": wall, "peak_bytes": peak}
    except methods.NotApplicableError as error:
        status, note = "not applicable", str(error)
    except MissingDependencyError as error:
        status, note = "not installed", error.command
    except ImportError as error:
        status, note = "not installed", _short(error)
    except UnsupportedLayerError as error:
        status, note = "refused", _short(error)
    except CertificateError as error:
        status, note = "CERTIFICATE FAILED", _short(error)
    except InputError as error:
        # an older certbound does not know the method
        status, note = ("not available" if error.argument == "method" else "failed"), _short(error)
    except MemoryError:
        status, note = "out of memory", f"more than {request['memory']:g} GiB"
    except Exception as error:  # noqa: BLE001 - a peer may raise anything, and that is a result
        status, note = "failed", _short(error)
    return asdict(methods.Answer(None, status, notes=(note,)))


def main() -> None:
    """Read the request, write the answer, leave."""
    _die_with_parent()
    request = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    Path(sys.argv[2]).write_text(json.dumps(measure(request)), encoding="utf-8")
    os._exit(0)  # without the shutdown of libraries that may hang


if __name__ == "__main__":
    main()
