"""What is measured: every metric's name, kind, labels and meaning.  docs/metrics.md is made of this table."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from orlop.values import dataclass

__all__ = ["AMOUNTS", "METRICS", "Metric"]

Kind = Literal["counter", "gauge", "histogram"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Metric:
    """One metric, as Prometheus shows it."""

    name: str
    kind: Kind
    labels: tuple[str, ...]
    help: str


def _metric(name: str, kind: Kind, help: str, *labels: str) -> Metric:  # noqa: A002 - Prometheus' word
    return Metric(name=name, kind=kind, labels=labels, help=help)


METRICS = {
    metric.name: metric
    for metric in (
        _metric("orlop_info", "gauge", "Always 1; the label is the version of orlop.", "version"),
        _metric(
            "orlop_calls_total", "counter", "Calls that ended, by method and gRPC status.", "method", "code"
        ),
        _metric("orlop_call_seconds", "histogram", "How long calls took.", "method"),
        _metric("orlop_calls_running", "gauge", "Calls that have begun and not ended, by method.", "method"),
        _metric(
            "orlop_pool_calls",
            "gauge",
            "Calls of each kind that run or wait for a thread.",
            "pool",
            "state",
        ),
        _metric(
            "orlop_step_seconds",
            "histogram",
            "How long steps of the work took: pull, fetch, index, chain, activate, commit and so on.",
            "step",
        ),
        _metric("orlop_steps_failed_total", "counter", "Steps that ended with an error.", "step"),
        _metric("orlop_fetched_bytes_total", "counter", "Bytes of blobs that came from registries."),
        _metric("orlop_pushed_bytes_total", "counter", "Bytes of blobs that went to registries."),
        _metric("orlop_layers_fetched_total", "counter", "Layers that a pull had to fetch."),
        _metric("orlop_layers_reused_total", "counter", "Layers that a pull found here."),
        _metric("orlop_blobs_pushed_total", "counter", "Blobs that a push sent."),
        _metric(
            "orlop_blobs_mounted_total", "counter", "Blobs that a registry took from another repository."
        ),
        _metric("orlop_collections_total", "counter", "Collections that were run by this process."),
        _metric("orlop_collected_bytes_total", "counter", "Bytes that this process has deleted."),
        _metric("orlop_store_images", "gauge", "Names of images."),
        _metric("orlop_store_items", "gauge", "Layers, blobs, chains, folders, as rows count them.", "kind"),
        _metric("orlop_store_bytes", "gauge", "Their bytes, as rows say; 'orlop df' measures.", "kind"),
        _metric("orlop_store_roots", "gauge", "Prepared roots.", "driver"),
        _metric("orlop_store_roots_mounted", "gauge", "Prepared roots that orlop has mounted itself."),
        _metric("orlop_store_leases", "gauge", "Leases of running operations, those of the dead included."),
        _metric("orlop_store_trash_items", "gauge", "Things that are forgotten and still to be deleted."),
        _metric("orlop_store_free_bytes", "gauge", "Bytes that are free on the store's disk."),
        _metric("orlop_events_last", "gauge", "The number of the last event."),
        _metric("orlop_scrape_failures_total", "counter", "Scrapes that could not read the store's rows."),
    )
}

AMOUNTS: Mapping[str, str] = {
    name: f"orlop_{name}_total"
    for name in (
        *("fetched_bytes", "pushed_bytes", "layers_fetched", "layers_reused", "blobs_pushed"),
        *("blobs_mounted", "collections", "collected_bytes"),
    )
}
"""What `orlop.observe.count` is given, and the counter that it moves."""
