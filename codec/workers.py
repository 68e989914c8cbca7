"""The same work for many items: on several threads, or on several processes, each with a model of its own."""

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

_work: Callable[..., Any]  # of a process of its own, with what it says on the way
_records: queue.SimpleQueue[logging.LogRecord]


def available_cores() -> int:
    """Processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def in_threads(work: Callable[[Item], Result], items: Iterable[Item], threads: int) -> Iterator[Result]:
    """The results of ``work`` for each of the items in their order; so many threads, and one item more, are ahead of them."""
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
            except Exception as error:  # told after the results of what came before
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
    """The results of ``work``, which is pickled, for each of the items in their order; what it logs is logged here.

    The processes end with this one, however it ends, and remove their temporary files on the way out.

    Raises:
        CodecError: a process was killed.
    """
    if workers == 1:
        yield map(work, items)
        return
    import multiprocessing  # here: one file waits for none of them
    from concurrent.futures import ProcessPoolExecutor
    from concurrent.futures.process import BrokenProcessPool

    context = multiprocessing.get_context("spawn")  # a forked process inherits torch's locks
    most = 61 if sys.platform == "win32" else workers  # that Windows waits for
    with _without_interrupts():  # a process that tracks semaphores starts with the pool
        pool = ProcessPoolExecutor(min(workers, most), context, _set_up_worker, (work,))
    with pool:
        try:
            with _without_interrupts():
                futures = [pool.submit(_work_and_collect_logs, item) for item in items]
            yield (_log_and_unpack(future.result()) for future in futures)
        except BaseException as error:
            with _without_interrupts():  # nor is this one's word cut short
                for process in multiprocessing.active_children():
                    process.terminate()
            if isinstance(error, BrokenProcessPool):
                raise CodecError("a worker process died (out of memory, or killed); take fewer --workers") from None
            raise


@contextmanager
def _without_interrupts() -> Iterator[None]:
    """Processes started here never see ctrl-C or a closed terminal, which reach the whole group: the first one decides."""
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
    tqdm.set_lock(threading.RLock())  # its own is a semaphore, of which Python warns where a process ends at once
    signal.signal(signal.SIGTERM, _exit_on_sigterm)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _work_and_collect_logs(item: Any) -> tuple[Any, Records]:
    try:
        result = _work(item)
    except SystemExit:
        os._exit(EXIT_INTERRUPTED)  # the pool would go on
    return result, [_records.get() for _ in range(_records.qsize())]


def _log_and_unpack(done: tuple[Any, Records]) -> Any:
    result, records = done
    for record in records:
        logging.getLogger(record.name).handle(record)
    return result


def _exit_on_sigterm(number: int, frame: FrameType | None) -> None:
    """Leave by the way on which temporary files are removed."""
    if signal.getsignal(signal.SIGTERM) == signal.SIG_IGN or is_postponed(number, frame):
        return  # the pool sends another, which came before it was ignored: raised on that way it would leave the files
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # where the exception is lost it would be shown with its traceback
    if hasattr(signal, "alarm"):
        signal.alarm(5)  # ends this process where the exception is lost, as inside a callback of the garbage collector
    raise SystemExit


def _end_with_parent() -> None:
    from multiprocessing import parent_process

    parent = parent_process()
    assert parent is not None
    parent.join()
    os.kill(os.getpid(), signal.SIGTERM)
