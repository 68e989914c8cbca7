"""The same work for many items: in several threads, or in several processes, each with its own model."""

from __future__ import annotations

import logging
import os
import queue
import signal
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
_ending = False


def available_cores() -> int:
    """Processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def in_threads(work: Callable[[Item], Result], items: Iterable[Item], threads: int) -> Iterator[Result]:
    """The results of ``work`` for the items, in their order; ``threads`` items after the awaited one are begun."""
    if threads == 1:
        yield from map(work, items)
        return
    from concurrent.futures import Future, ThreadPoolExecutor

    pool, ahead = ThreadPoolExecutor(threads), deque[Future[Result]]()
    try:
        for item in items:
            ahead.append(pool.submit(work, item))
            if len(ahead) > threads:
                yield ahead.popleft().result()
        while ahead:
            yield ahead.popleft().result()
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
    with _without_interrupts():  # for the process that tracks semaphores; once it has started, ctrl-C is unblocked
        pool = ProcessPoolExecutor(workers, context, _set_up_worker, (work,))
    with pool:
        try:
            with _without_interrupts():
                futures = [pool.submit(_work_and_collect_logs, item) for item in items]
            yield (_log_and_unpack(future.result()) for future in futures)
        except BaseException as error:
            children = multiprocessing.active_children()
            for child in children:
                child.terminate()
            for child in children:
                child.join(20)  # until it is between two steps of its work
                child.kill()
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

    global _work, _records
    _work, _records = work, queue.SimpleQueue()
    logger = logging.getLogger("codec")
    logger.addHandler(QueueHandler(_records))
    logger.setLevel(logging.INFO)
    signal.signal(signal.SIGTERM, _exit_once)
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


def _exit_once(number: int, frame: FrameType | None) -> None:
    """End by SystemExit, which removes temporary files; a second signal, of the pool, changes nothing."""
    global _ending
    if not _ending and not is_postponed(number, frame):
        _ending = True
        raise SystemExit


def _end_with_parent() -> None:
    from multiprocessing import parent_process

    parent = parent_process()
    assert parent is not None
    parent.join()
    os.kill(os.getpid(), signal.SIGTERM)
