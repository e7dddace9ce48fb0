"""Numbers for Prometheus: what the engine counts, and how long clients waited, by adapter.

Labels come from what this server has: its adapters, its paths, its own codes. What a client writes is never one.
"""

import contextlib
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import psutil
from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    disable_created_metrics,
    generate_latest,
)
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, InfoMetricFamily, Metric
from prometheus_client.registry import Collector

from ..answer.stream import Answer
from ..openai.faults import LateError
from ..scheduler.stats import Stats
from ..scheduler.ticket import Ticket

CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"
_P: Final = "slm_edge_"
_THROTTLED: Final = Path("/sys/devices/platform/soc/soc:firmware/get_throttled")
_FIRST_S: Final = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 20, 40, 80, 120)
_TOKEN_S: Final = (0.005, 0.01, 0.02, 0.04, 0.08, 0.15, 0.3, 0.6, 1, 2)
_REQUEST_S: Final = (0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)
_QUEUE_S: Final = (0.005, 0.025, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)


@dataclass
class _Times:
    """When something last happened to a request, in seconds of `time.monotonic`."""

    admitted_s: float
    last_s: float | None = None


class Metrics:
    """Counts; an `openai.service.Observer`.

    Args:
        facts: see there.
        as_vllm: the names that pools of vLLM servers go by are there too, see `metrics_vllm.py`.

    Attributes:
        facts: what serves, for `build_info`.
        base_name: of what is served; "" until it is open.
        silent_s: how long the engine has been at one unit of work.
    """

    def __init__(self, facts: Mapping[str, str], *, as_vllm: bool = False) -> None:
        # When a series began says nothing that is asked here, and doubles the text.
        disable_created_metrics()  # type: ignore[no-untyped-call]
        self.registry = CollectorRegistry()
        self.stats: Stats | None = None
        self.base_name = ""
        self.silent_s = 0.0
        self.facts = {name: str(value) for name, value in facts.items()}
        self._open: dict[int, _Times] = {}
        registry: Any = {"registry": self.registry}
        self._requests = Counter(f"{_P}requests", "Requests that were answered.", ["endpoint", "code"], **registry)
        self._rejected = Counter(f"{_P}rejected", "Requests that were refused.", ["reason"], **registry)
        self._ended = Counter(f"{_P}answers", "Answers that ended, by how.", ["adapter", "end"], **registry)
        self._cancelled = Counter(
            f"{_P}cancelled",
            "Answers that were given up, and how far they were.",
            ["cause", "phase"],
            **registry,
        )
        self._seconds = Histogram(
            f"{_P}request_seconds", "From handing in to the end.", ["adapter"], buckets=_REQUEST_S, **registry
        )
        self._queue = Histogram(
            f"{_P}queue_seconds", "From handing in to the first work.", ["adapter"], buckets=_QUEUE_S, **registry
        )
        self._first = Histogram(
            f"{_P}time_to_first_token_seconds",
            "From handing in to the first token.",
            ["adapter"],
            buckets=_FIRST_S,
            **registry,
        )
        self._between = Histogram(
            f"{_P}inter_token_seconds", "Between two tokens of an answer.", ["adapter"], buckets=_TOKEN_S, **registry
        )
        self._routed = Counter(f"{_P}router_decisions", "What the router chose.", ["adapter"], **registry)
        self._confidence = Histogram(
            f"{_P}router_confidence",
            "How sure the router was.",
            buckets=[i / 10 for i in range(1, 11)],
            **registry,
        )
        self.unread = Counter(f"{_P}unread", "Connections that were closed as nobody read from them.", **registry)
        self.connections = Gauge(f"{_P}connections", "Connections that are open.", **registry)
        self.registry.register(_OfEngine(self))
        if as_vllm:
            from .metrics_vllm import AsVllm

            self.registry.register(AsVllm(self, (self._first, self._between, self._seconds)))

    # As an observer

    def admitted(self, ticket: Ticket) -> None:
        """A request was handed to the engine."""
        self._open[id(ticket)] = _Times(time.monotonic())
        if ticket.decision is not None:
            self._routed.labels(label_of(ticket.decision.adapter)).inc()
            self._confidence.observe(ticket.decision.confidence)

    def piece(self, ticket: Ticket) -> None:
        """A token of it came."""
        times = self._open.get(id(ticket))
        if times is None:
            return
        now_s = time.monotonic()
        label = label_of(ticket.adapter)
        if times.last_s is None:
            self._first.labels(label).observe(now_s - times.admitted_s)
        else:
            self._between.labels(label).observe(now_s - times.last_s)
        times.last_s = now_s

    def ended(self, ticket: Ticket, outcome: Answer | BaseException) -> None:
        """It is whole, has failed, or was cancelled."""
        times = self._open.pop(id(ticket), None)
        if times is None:
            return
        label = label_of(ticket.adapter)
        self._queue.labels(label).observe(ticket.queue_s)
        self._seconds.labels(label).observe(time.monotonic() - times.admitted_s)
        end = outcome.stop_reason if isinstance(outcome, Answer) else "cut"
        self._ended.labels(label, end).inc()
        if end == "cut":
            late = isinstance(outcome, LateError)
            cause = "deadline" if late else "client" if ticket.given_up else "engine"
            self._cancelled.labels(cause, "prompt" if times.last_s is None else "decode").inc()

    def answered(self, endpoint: str, status: int, code: str | None) -> None:
        """A request got its answer.

        Args:
            endpoint: a path of the application, or "other".
            code: of the error; None for none.
        """
        self._requests.labels(endpoint, str(status)).inc()
        if code is not None and status in (401, 403, 408, 413, 429, 503):
            self._rejected.labels(code).inc()

    def text(self, stats: Stats | None) -> bytes:
        """All of it, in Prometheus's text format.

        Args:
            stats: of the engine; None where it did not answer in time.
        """
        self.stats = stats
        return generate_latest(self.registry)


class _OfEngine(Collector):
    """What the engine counts itself, and what the system says of this process."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics

    def describe(self) -> list[Metric]:
        return []

    def collect(self) -> Iterator[Metric]:
        info = InfoMetricFamily(f"{_P}build", "What serves.")
        info.add_metric([], self._metrics.facts)
        yield info
        for name, value in own_bytes().items():
            yield GaugeMetricFamily(f"{_P}process_{name}_bytes", "Memory of this process.", value)
        celsius = temperature()
        # Without a sensor there is the name alone.
        yield GaugeMetricFamily(f"{_P}temperature_celsius", "The hottest sensor.", celsius)
        yield GaugeMetricFamily(f"{_P}throttled", "Whether voltage or heat hold the CPU down now.", throttled())
        yield GaugeMetricFamily(
            f"{_P}engine_heartbeat_age_seconds", "Since the engine's last unit of work.", self._metrics.silent_s
        )
        stats = self._metrics.stats
        if stats is None:
            return
        yield from _of_stats(stats)


def _of_stats(stats: Stats) -> Iterator[Metric]:
    for name, rows, text in (
        ("requests_running", stats.running, "Requests that are computed."),
        ("requests_waiting", stats.waiting, "Requests that wait."),
        ("adapter_loaded_bytes", stats.loaded_bytes, "Adapters in memory."),
    ):
        gauge = GaugeMetricFamily(f"{_P}{name}", text, labels=["adapter"])
        for adapter, value in _by_label(rows).items():
            gauge.add_metric([adapter], value)
        yield gauge
    tokens = CounterMetricFamily(f"{_P}prompt_tokens", "Tokens of prompts.", labels=["adapter", "source"])
    for source, rows in (("computed", stats.prompt_tokens), ("kept", stats.kept_tokens)):
        for adapter, value in _by_label(rows).items():
            tokens.add_metric([adapter, source], value)
    yield tokens
    made = CounterMetricFamily(f"{_P}generated_tokens", "Tokens of answers.", labels=["adapter"])
    for adapter, value in _by_label(stats.answer_tokens).items():
        made.add_metric([adapter], value)
    yield made
    work = CounterMetricFamily(f"{_P}engine_seconds", "What the engine computed.", labels=["adapter", "work"])
    by_work: dict[tuple[str, str], float] = {}
    for (kind, adapter), seconds in stats.work_s.items():
        place = (label_of(adapter), kind)
        by_work[place] = by_work.get(place, 0) + seconds
    for place, seconds in by_work.items():
        work.add_metric(list(place), seconds)
    yield work
    yield CounterMetricFamily(f"{_P}swaps", "Changes of the adapters that compute.", stats.n_swaps)
    yield GaugeMetricFamily(f"{_P}swap_seconds", "What one of them takes, as measured of late.", stats.swap_s)
    yield CounterMetricFamily(f"{_P}parked", "Answers that were laid aside for others.", stats.n_parked)
    yield CounterMetricFamily(f"{_P}prefix_hits", "Requests with a part of their prompt kept.", stats.n_prefix_hits)
    evicted = "Kept beginnings of prompts that went for want of room."
    yield CounterMetricFamily(f"{_P}prefix_evictions", evicted, stats.n_prefix_evictions)
    loads = CounterMetricFamily(
        f"{_P}adapter_loads",
        "Adapters taken into memory, and files refused.",
        labels=["adapter", "result"],
    )
    for place, n in stats.adapter_loads.items():
        loads.add_metric(list(place), n)
    yield loads
    yield GaugeMetricFamily(f"{_P}prefix_bytes", "Kept beginnings of prompts.", stats.prefix_bytes)
    yield GaugeMetricFamily(f"{_P}slot_tokens", "Tokens whose keys and values are held.", stats.held_tokens)
    yield GaugeMetricFamily(f"{_P}slot_tokens_limit", "Tokens whose keys and values have room.", stats.room_tokens)
    yield GaugeMetricFamily(f"{_P}slots_parked", "Answers that are laid aside now.", stats.n_aside)
    yield GaugeMetricFamily(f"{_P}parked_bytes", "What answers that are laid aside hold.", stats.parked_bytes)
    yield GaugeMetricFamily(f"{_P}slots", "Answers that can be computed side by side.", stats.n_rows)


def _by_label(rows: Mapping[str, float]) -> dict[str, float]:
    found: dict[str, float] = {}
    for adapter, value in rows.items():
        found[label_of(adapter)] = found.get(label_of(adapter), 0) + value
    return found


def label_of(adapter: str | None) -> str:
    """One adapter's name; "base" for none, "mix" for several: their scales have no end."""
    return "base" if adapter is None else "mix" if "+" in adapter or ":" in adapter else adapter


def own_bytes() -> dict[str, int]:
    """Private memory, in RAM and swapped out: together they show what grows."""
    found = {}
    with contextlib.suppress(OSError, ValueError):
        for line in Path("/proc/self/status").read_text(encoding="utf-8").splitlines():
            name, _, value = line.partition(":")
            if name in ("RssAnon", "VmSwap", "VmRSS"):
                found[{"RssAnon": "anon", "VmSwap": "swap", "VmRSS": "resident"}[name]] = int(value.split()[0]) << 10
    return found


def temperature() -> float | None:
    """Of the hottest sensor in degrees Celsius; None where there is none."""
    with contextlib.suppress(AttributeError, OSError, ValueError):
        return max((one.current for rows in psutil.sensors_temperatures().values() for one in rows), default=None)
    return None


def throttled(flags: Path = _THROTTLED) -> bool | None:
    """Whether a Raspberry Pi says that voltage or heat hold it down now; None where nothing says so.

    Args:
        flags: the firmware's, in hexadecimal: the lowest four bits are of now (raspberrypi/documentation, vcgencmd).
    """
    with contextlib.suppress(OSError, ValueError):
        return bool(int(flags.read_text(encoding="ascii").strip(), 16) & 0xF)
    return None
