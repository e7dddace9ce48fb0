"""The numbers that pools of vLLM servers go by, under vLLM's names: `slm-edge serve --metrics-names vllm`.

What routes to such a pool (llm-d, the Gateway API's inference extension) reads how many requests run and wait, how full
the KV cache is, and which adapters are at work. Names and labels are as in vLLM's documentation of its metrics.
"""

import time
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Final

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from ..options import MOST_LOADED
from .metrics import label_of

if TYPE_CHECKING:
    from prometheus_client import Histogram

    from .metrics import Metrics

_HISTOGRAMS: Final = ("time_to_first_token_seconds", "inter_token_latency_seconds", "e2e_request_latency_seconds")


class AsVllm(Collector):
    """What `metrics` counts, once more.

    Args:
        histograms: seconds to the first token, between two tokens, and from handing in to the end.
    """

    def __init__(self, metrics: "Metrics", histograms: "Sequence[Histogram]") -> None:
        self._metrics = metrics
        self._histograms = histograms

    def describe(self) -> list[Metric]:
        return []

    def collect(self) -> Iterator[Metric]:
        for histogram, name in zip(self._histograms, _HISTOGRAMS, strict=True):
            yield from _renamed(histogram, name)
        stats = self._metrics.stats
        if stats is None:
            return
        # One engine has one base; adapters are told by `lora_requests_info` there.
        model = {"model_name": self._metrics.base_name, "engine": "0"}
        for name, text, value in (
            ("num_requests_running", "Requests that are computed.", sum(stats.running.values())),
            ("num_requests_waiting", "Requests that wait.", sum(stats.waiting.values())),
            ("kv_cache_usage_perc", "Of the KV cache, 1 is all.", stats.held_tokens / max(1, stats.room_tokens)),
        ):
            gauge = GaugeMetricFamily(f"vllm:{name}", text, labels=list(model))
            gauge.add_metric(list(model.values()), value)
            yield gauge
        for name, text, value in (
            ("prompt_tokens", "Tokens of prompts, kept ones too.", _total(stats.prompt_tokens, stats.kept_tokens)),
            ("generation_tokens", "Tokens of answers.", _total(stats.answer_tokens)),
        ):
            counter = CounterMetricFamily(f"vllm:{name}", text, labels=list(model))
            counter.add_metric(list(model.values()), value)
            yield counter
        names = {
            "running_lora_adapters": ",".join(sorted({*map(label_of, stats.running)} - {"base"})),
            "waiting_lora_adapters": ",".join(sorted({*map(label_of, stats.waiting)} - {"base"})),
            "max_lora": str(MOST_LOADED),
        }
        info = GaugeMetricFamily("vllm:lora_requests_info", "Adapters at work; the value is now.", labels=list(names))
        info.add_metric(list(names.values()), time.time())
        yield info


def _renamed(histogram: "Histogram", name: str) -> Iterator[Metric]:
    """The same numbers under another name; what answers is `model_name` there."""
    for found in histogram.collect():
        made = Metric(f"vllm:{name}", found.documentation, "histogram")
        for sample in found.samples:
            labels = {("model_name" if key == "adapter" else key): value for key, value in sample.labels.items()}
            made.add_sample(f"vllm:{name}{sample.name.removeprefix(found.name)}", labels, sample.value)
        yield made


def _total(*counts: Mapping[str, int]) -> int:
    return sum(sum(one.values()) for one in counts)
