"""What a process tells Prometheus of itself: its memory, its interpreter, and the messages that its
workers process.

Each process has an endpoint and a registry of its own, in memory: one that was killed leaves
nothing behind that another would go on telling.
"""

from __future__ import annotations

import os
from typing import Any

import dramatiq
from dramatiq.middleware.prometheus import Prometheus
from prometheus_client import (
    CollectorRegistry,
    GCCollector,
    PlatformCollector,
    ProcessCollector,
)
from prometheus_client.metrics import MetricWrapperBase

_SHARED_DIRECTORY = ("PROMETHEUS_MULTIPROC_DIR", "prometheus_multiproc_dir")


def process_registry() -> CollectorRegistry:
    """A registry with prometheus_client's own metrics of the process."""
    registry = CollectorRegistry()
    ProcessCollector(registry=registry)
    PlatformCollector(registry=registry)
    GCCollector(registry=registry)
    return registry


class MessageMetrics(Prometheus):
    """Dramatiq's own metrics, in a registry of the process instead of files for all processes."""

    def __init__(self, registry: CollectorRegistry) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        before = {name: os.environ.get(name) for name in _SHARED_DIRECTORY}
        # Makes the metrics, and wants them in files.
        super().after_process_boot(None)  # type: ignore[no-untyped-call]
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
        for metric in vars(self).values():
            if isinstance(metric, MetricWrapperBase):
                registry.register(metric)

    def after_process_boot(self, broker: dramatiq.Broker) -> None:
        """Only Dramatiq's command calls this; everything is made by then."""

    def after_worker_shutdown(self, broker: dramatiq.Broker, worker: Any) -> None:
        """There are no files to mark as those of a dead process."""
