"""Prometheus metrics of a daemon: what calls and steps took and, at each scrape, sums of the store's rows.

Satisfies `orlop.observe.Recorder` and `orlop.service.watching.CallWatcher` by shape.  Nothing here walks the
store: a scrape reads a few sums of meta.db.  Labels are few and none is a client's choice: methods are those
that are served, codes gRPC's, steps our own.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Protocol, runtime_checkable

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    disable_created_metrics,
    generate_latest,
)
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from prometheus_client.registry import Collector

from orlop.errors import Error
from orlop.images.api import Store
from orlop.images.watching.sizes import StoreSizes
from orlop.observe import recording
from orlop.telemetry.names import AMOUNTS, METRICS
from orlop.version import __version__

__all__ = ["CONTENT_TYPE", "Metrics", "PoolState", "Pools"]

_log = logging.getLogger(__name__)

CONTENT_TYPE: str = CONTENT_TYPE_LATEST
_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300, 1800)


class PoolState(Protocol):
    """A pool of the daemon's (`orlop.service.pools.CallPool`)."""

    @property
    def name(self) -> str:
        """The kind of its calls."""

    @property
    def calls(self) -> int:
        """Those that run or wait."""

    @property
    def waiting(self) -> int:
        """Those among them that wait."""


class Pools(Protocol):
    """All of them."""

    def each(self) -> Iterable[PoolState]:
        """One after the other."""
        ...


class _Call(Protocol):
    @property
    def method(self) -> str: ...


@runtime_checkable
class _HasSizes(Protocol):
    def sizes(self) -> StoreSizes:
        """See `orlop.images.watching.sizes`."""
        ...


class Metrics:
    """The metrics of one daemon.  Thread-safe."""

    def __init__(self) -> None:
        disable_created_metrics()  # type: ignore[no-untyped-call]  # when a series began is asked by nobody
        self.registry = CollectorRegistry()
        self._counters = {name: self._made(Counter, name) for name in AMOUNTS.values()}
        self._calls = self._made(Counter, "orlop_calls_total")
        self._seconds = self._made(Histogram, "orlop_call_seconds", buckets=_BUCKETS)
        self._running = self._made(Gauge, "orlop_calls_running")
        self._steps = self._made(Histogram, "orlop_step_seconds", buckets=_BUCKETS)
        self._failed = self._made(Counter, "orlop_steps_failed_total")
        self._blind = self._made(Counter, "orlop_scrape_failures_total")
        self._made(Gauge, "orlop_info").labels(version=__version__).set(1)
        self._by_method: dict[str, tuple[Any, Any]] = {}

    def _made(self, kind: Callable[..., Any], name: str, **options: object) -> Any:  # noqa: ANN401
        metric = METRICS[name]
        return kind(name, metric.help, metric.labels, registry=self.registry, **options)

    def text(self) -> bytes:
        """All of it, as Prometheus' text format has it."""
        return generate_latest(self.registry)

    # -- calls ----------------------------------------------------------------------------------

    @contextmanager
    def attached(self, store: Store, pools: Pools) -> Iterator[None]:
        """Show a store and its daemon's pools for the length of a ``with`` block."""
        rows = _Rows(store, pools, self._blind.inc)
        self.registry.register(rows)
        try:
            with recording(self):
                yield
        finally:
            self.registry.unregister(rows)

    def began(self, call: _Call) -> _Seen:
        """A call begins."""
        known = self._by_method.get(call.method)
        if known is None:
            known = self._running.labels(call.method), self._seconds.labels(call.method)
            self._by_method[call.method] = known
        known[0].inc()
        return _Seen(self, call.method, *known)

    def ended(self, method: str, code: str) -> None:
        """A call has ended."""
        self._calls.labels(method, code).inc()

    # -- steps ----------------------------------------------------------------------------------

    def origin(self) -> None:
        """Nothing: steps are measured by themselves."""

    @contextmanager
    def step(self, name: str, origin: object, about: Mapping[str, str | int]) -> Iterator[None]:
        """Measure a step."""
        started = time.monotonic()
        try:
            yield
        except BaseException:
            self._failed.labels(name).inc()
            raise
        finally:
            self._steps.labels(name).observe(time.monotonic() - started)

    def count(self, name: str, amount: int) -> None:
        """So much more; names that are not in `AMOUNTS` are for other recorders."""
        counter = self._counters.get(AMOUNTS.get(name, ""))
        if counter is not None:
            counter.inc(amount)


class _Seen:
    __slots__ = ("_method", "_metrics", "_running", "_seconds")

    def __init__(self, metrics: Metrics, method: str, running: Any, seconds: Any) -> None:  # noqa: ANN401
        self._metrics, self._method = metrics, method
        self._running, self._seconds = running, seconds

    def ended(self, code: str, seconds: float) -> None:
        """Count it."""
        self._running.dec()
        self._seconds.observe(seconds)
        self._metrics.ended(self._method, code)


class _Rows(Collector):
    """What is looked up at each scrape."""

    def __init__(self, store: Store, pools: Pools, failed: Callable[[], object]) -> None:
        self._store = store
        self._pools = pools
        self._failed = failed
        self._root = store.info().root

    def describe(self) -> Iterable[GaugeMetricFamily]:
        """Nothing: else the store would be read to be registered."""
        return ()

    def collect(self) -> Iterator[GaugeMetricFamily]:
        """The gauges of now."""
        pools = _gauge("orlop_pool_calls")
        for pool in self._pools.each():
            waiting = pool.waiting
            pools.add_metric([pool.name, "waiting"], waiting)
            pools.add_metric([pool.name, "running"], max(0, pool.calls - waiting))
        yield pools
        if not isinstance(self._store, _HasSizes):
            return
        try:
            sizes = self._store.sizes()
            free = os.statvfs(self._root)
        except (Error, OSError) as exc:
            self._failed()
            _log.warning("the store's sizes are not shown: %s", exc)
            return
        for name, values in (
            ("orlop_store_items", sizes.counts),
            ("orlop_store_bytes", sizes.sizes),
            ("orlop_store_roots", sizes.roots),
        ):
            gauge = _gauge(name)
            for label, value in sorted(values.items()):
                gauge.add_metric([label], value)
            yield gauge
        for name, value in (
            ("orlop_store_images", sizes.images),
            ("orlop_store_roots_mounted", sizes.mounted),
            ("orlop_store_leases", sizes.leases),
            ("orlop_store_trash_items", sizes.trash),
            ("orlop_store_free_bytes", free.f_bavail * free.f_frsize),
            ("orlop_events_last", sizes.last_event),
        ):
            gauge = _gauge(name)
            gauge.add_metric([], value)
            yield gauge


def _gauge(name: str) -> GaugeMetricFamily:
    metric = METRICS[name]
    return GaugeMetricFamily(name, metric.help, labels=metric.labels)
