"""What the server is doing now, as one JSON document: for the page, and for people's own scripts."""

import time
from typing import Any

from ..openai.reply import Call
from ..openai.service import Service
from ..scheduler.engine import Engine
from .metrics import own_bytes, temperature


async def show_state(service: Service, call: Call, state: str, began_s: float) -> None:
    """Answers with the state; adapters that the key may not ask are left out.

    Args:
        state: "ready" or the like.
        began_s: when the server began, in seconds of `time.monotonic`.
    """
    data = await service.run(lambda: _state_of(service.engine))
    data["adapters"] = [one for one in data["adapters"] if call.may_ask(one["name"])]
    await call.answer({"state": state, "uptime_s": round(time.monotonic() - began_s, 3), **data})


def _state_of(engine: Engine) -> dict[str, Any]:
    stats, facts = engine.stats(), engine.facts()
    seconds: dict[str, float] = {}
    for (work, _), work_s in stats.work_s.items():
        seconds[work] = seconds.get(work, 0.0) + work_s
    return {
        "engine": facts.engine,
        "base": facts.base_name,
        "context_tokens": facts.n_ctx_tokens,
        "places": stats.n_rows,
        "running": sum(stats.running.values()),
        "waiting": sum(stats.waiting.values()),
        "answered": stats.n_answered,
        "cancelled": stats.n_cancelled,
        "failed": stats.n_failed,
        "prompt_tokens": sum(stats.prompt_tokens.values()),
        "kept_tokens": sum(stats.kept_tokens.values()),
        "answer_tokens": sum(stats.answer_tokens.values()),
        "swaps": stats.n_swaps,
        "work_s": {work: round(work_s, 3) for work, work_s in sorted(seconds.items())},
        "adapters": [
            {
                "name": one.name,
                "digest": f"sha256:{one.digest}",
                "loaded": one.loaded,
                "bytes": one.size_bytes,
                "running": stats.running.get(one.name, 0),
                "waiting": stats.waiting.get(one.name, 0),
            }
            for one in facts.adapters
        ],
        "memory": {
            **{f"{name}_bytes": value for name, value in sorted(own_bytes().items())},
            "planned_bytes": None if stats.plan is None else stats.plan.total_bytes,
        },
        "temperature_celsius": temperature(),
    }
