"""The same cells on a Dask cluster.

Its workers import ``experiments`` and ``certbound`` from their own environment, and compute; the numbers come home to
the process that called, which alone writes.
"""

from __future__ import annotations

import hashlib
import logging
import socket
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

from certbound.errors import InputError, MissingDependencyError
from experiments.environment import check_device, versions
from experiments.runner import CellFunction, Outcome, work
from experiments.study import Cell

if TYPE_CHECKING:
    from distributed import Client

log = logging.getLogger(__name__)

TIMEOUT: Final = 15.0
"""Seconds until a scheduler must have answered, and until a worker must be there."""

RETRIES: Final = 3
"""How often a cell is sent again whose worker could not take it. (A worker that is lost is Dask's own affair: it gives
the cell to another, and gives it up when three have died of it.)"""

COMPARED: Final = ("certbound", "torch", "revision")


def outcomes_of_cluster(
    cells: Sequence[Cell],
    function: CellFunction,
    *,
    address: str,
    device: str,
    root: str | None,
) -> Iterator[Outcome]:
    """Compute cells with distinct keys on the workers of a scheduler, each once, in any order.

    Raises
    ------
    InputError : no scheduler, no worker, a worker that cannot import the code or has no such device.
    """
    try:
        from distributed import Client, as_completed
    except ImportError as error:
        raise MissingDependencyError(
            "distributed", purpose="a run on a Dask cluster", command="pip install 'certbound[cluster]'"
        ) from error
    if not cells:
        return
    client = _connect(Client, address)
    try:
        _check_workers(client, address, device)
        futures: dict[Any, Cell] = {
            client.submit(
                work, cell, function, device, root, key=task_name(cell, function, device, root), retries=RETRIES
            ): cell
            for cell in cells
        }
        for future in as_completed(list(futures), loop=client.loop):
            cell = futures.pop(future)
            error = future.exception()
            yield future.result() if error is None else Outcome(key=cell.key, error=f"{type(error).__name__}: {error}")
            future.release()  # the scheduler need not keep it
    finally:
        client.close()


def task_name(cell: Cell, function: CellFunction, device: str, root: str | None) -> str:
    """The scheduler's name for a cell: sent twice, it is still one task; on another device it is another one."""
    how = hashlib.sha256(repr((function.__module__, function.__qualname__, device, root)).encode()).hexdigest()[:8]
    return f"{cell.study}-{cell.key}-{how}"


def _connect(kind: type[Client], address: str) -> Client:
    try:
        _wait_for_port(address)
        return kind(address, timeout=TIMEOUT, set_as_default=False)
    except (OSError, ValueError) as error:  # OSError: TimeoutError too; ValueError: an address that is none
        raise InputError(
            "dask", got=f"{address!r} ({_first_line(error)})", needed=f"a scheduler that answers within {TIMEOUT:g} s",
            fix="start one by `dask scheduler` and pass the address that it prints (tcp://HOST:8786)",
        ) from error  # fmt: skip


def _wait_for_port(address: str) -> None:
    """Something listens there.

    A Client that fails to connect closes itself when it is collected, in whatever thread that happens, and can block
    the next one for seconds: so none is made before this.
    """
    from distributed.comm.addressing import get_address_host_port

    host, port = get_address_host_port(address)
    end = time.monotonic() + TIMEOUT
    while True:
        try:
            socket.create_connection((host, port), timeout=TIMEOUT).close()
            return
        except OSError:
            if time.monotonic() > end:
                raise
            time.sleep(0.1)  # it may be starting


def _check_workers(client: Client, address: str, device: str) -> None:
    """There are workers, they have the code and the device; warn where their versions are not those of this process."""
    try:
        client.wait_for_workers(1, timeout=TIMEOUT)
    except TimeoutError as error:
        raise InputError(
            "dask", got=f"{address!r}, a scheduler without workers", needed=f"a worker within {TIMEOUT:g} s",
            fix=f"start workers by `dask worker {address} --nthreads 1`",
        ) from error  # fmt: skip
    for worker, found in _asked(client, versions).items():
        if isinstance(found, BaseException):
            raise InputError(
                "dask", got=f"worker {worker}, where: {_first_line(found)}",
                needed="workers that import experiments and certbound from their own environment",
                fix="start them from a checkout in an environment where `import experiments` works",
            ) from found  # fmt: skip
        for name in COMPARED:
            if found[name] != versions()[name]:
                log.warning("worker %s has %s %s, this process %s", worker, name, found[name], versions()[name])
    for worker, found in _asked(client, check_device, device).items():
        if isinstance(found, BaseException):
            raise InputError(
                "device", got=f"worker {worker}, where: {_first_line(found)}", needed="the device on every worker",
                fix="start workers where it is, or pass another --device",
            ) from found  # fmt: skip
    counted: Any = client.nthreads()  # its type allows for an asynchronous client
    for worker, threads in counted.items():
        if threads > 1:
            log.warning("worker %s runs %d cells at once in one process: start it with --nthreads 1", worker, threads)


def _asked(client: Client, function: Any, *arguments: Any) -> Mapping[str, Any]:
    """What the function gives on each worker, or its exception there."""
    answers: Any = client.run(function, *arguments, on_error="return")  # typed as by nthreads
    return answers


def _first_line(error: BaseException) -> str:
    said = str(error)
    return f"{type(error).__name__}: {said.splitlines()[0]}" if said else type(error).__name__


__all__ = ["outcomes_of_cluster", "task_name"]
