"""The same work for many items: in several threads, or in several processes, each with its own model."""

from __future__ import annotations

import logging
import os
import queue
import signal
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from types import FrameType
from typing import Any, TypeVar

from codec.errors import EXIT_INTERRUPTED, CodecError, is_postponed

Item = TypeVar("Item")
Result = TypeVar("Result")
Records = list[logging.LogRecord]

_work: Callable[..., Any]  # in a worker process: its work, and what that has logged since the last item
_records: queue.SimpleQueue[logging.LogRecord]


def available_cores() -> int:
    """Processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def in_threads(work: Callable[[Item], Result], items: Iterable[Item], threads: int) -> Iterator[Result]:
    """The results of ``work`` for the items, in their order; ``threads`` items after the awaited one are begun."""
    if threads == 1:
        yield from map(work, items)
        return
    from concurrent.futures import Future, ThreadPoolExecutor

    pool, ahead, source = ThreadPoolExecutor(threads), deque[Future[Result]](), iter(items)
    failure: Exception | None = None
    try:
        while failure is None:
            try:
                ahead.append(pool.submit(work, next(source)))
            except StopIteration:
                break
            except Exception as error:  # of the iterable: raised after the results of the items before
                failure = error
            if len(ahead) > threads:
                yield ahead.popleft().result()
        while ahead:
            yield ahead.popleft().result()
        if failure is not None:
            raise failure
    finally:
        pool.shutdown(cancel_futures=True)


@contextmanager
def spread(work: Callable[[Item], Result], items: Sequence[Item], workers: int) -> Iterator[Iterator[Result]]:
    """The results of ``work``, which is pickled, for the items, in their order; its log records are handled here.

    The processes end when this one does, however it ends, and remove their temporary files before.

    Raises:
        CodecError: a process was killed.
    """
    if workers == 1:
        yield map(work, items)
        return
    import multiprocessing  # here: commands with one file do not wait for these imports
    from concurrent.futures import ProcessPoolExecutor
    from concurrent.futures.process import BrokenProcessPool

    context = multiprocessing.get_context("spawn")  # a forked process inherits torch's locks
    most = 61 if sys.platform == "win32" else workers  # Windows cannot wait for more
    with _without_interrupts():  # also for the process that tracks semaphores, which starts with the pool
        pool = ProcessPoolExecutor(min(workers, most), context, _set_up_worker, (work,))
    with pool:
        try:
            with _without_interrupts():
                futures = [pool.submit(_work_and_collect_logs, item) for item in items]
            yield (_log_and_unpack(future.result()) for future in futures)
        except BaseException as error:
            with _without_interrupts():  # or a second ctrl-C would cut this short
                for process in multiprocessing.active_children():
                    process.terminate()
            if isinstance(error, BrokenProcessPool):
                raise CodecError("a worker process died (out of memory, or killed); take fewer --workers") from None
            raise


@contextmanager
def _without_interrupts() -> Iterator[None]:
    """Processes started in here ignore ctrl-C and a closed terminal, which reach the whole group: the parent decides."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGINT, signal.SIGHUP))
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _set_up_worker(work: Callable[..., Any]) -> None:
    from logging.handlers import QueueHandler

    from tqdm import tqdm

    global _work, _records
    _work, _records = work, queue.SimpleQueue()
    logger = logging.getLogger("codec")
    logger.addHandler(QueueHandler(_records))
    logger.setLevel(logging.INFO)
    tqdm.set_lock(threading.RLock())  # tqdm's own is a semaphore, and Python warns of it when a process is ended
    signal.signal(signal.SIGTERM, _exit_on_sigterm)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _work_and_collect_logs(item: Any) -> tuple[Any, Records]:
    try:
        result = _work(item)
    except SystemExit:
        os._exit(EXIT_INTERRUPTED)  # the pool catches SystemExit and would go on
    return result, [_records.get() for _ in range(_records.qsize())]


def _log_and_unpack(done: tuple[Any, Records]) -> Any:
    result, records = done
    for record in records:
        logging.getLogger(record.name).handle(record)
    return result


def _exit_on_sigterm(number: int, frame: FrameType | None) -> None:
    """End by SystemExit, which removes temporary files."""
    if signal.getsignal(signal.SIGTERM) == signal.SIG_IGN or is_postponed(number, frame):
        return  # a second SIGTERM, of the pool, that was pending: an exception during the cleanup would leave the files
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # a traceback of the exception would be shown where Python loses it
    if hasattr(signal, "alarm"):
        signal.alarm(5)  # ends this process if the exception is lost, as in a callback of the garbage collector
    raise SystemExit


def _end_with_parent() -> None:
    from multiprocessing import parent_process

    parent = parent_process()
    assert parent is not None
    parent.join()
    os.kill(os.getpid(), signal.SIGTERM)
