"""A plugin for pytest, by which llama-server's own tests ask our server: paths have /v1 before them, and name a model.

Their tests stay as they are; what their helper sends is changed here. Run by `llama_tests.py`, in their folder.
"""

import sys
import types
from typing import Any, Final

# Their helper imports it to fetch models; none is fetched.
sys.modules.setdefault("wget", types.ModuleType("wget"))

OURS: Final = ("/chat/completions", "/completions", "/completion", "/responses", "/models")


def pytest_configure(config: Any) -> None:
    """Changes where their helper asks, and starts and downloads nothing."""
    import utils  # type: ignore[import-not-found]

    process = utils.ServerProcess
    utils.ServerPreset.load_all = staticmethod(lambda: None)

    def changed(ask: Any) -> Any:
        def asking(self: Any, method: str, path: str, data: Any = None, headers: Any = None, **more: Any) -> Any:
            if path in OURS:
                path = "/v1" + ("/completions" if path == "/completion" else path)
            if isinstance(data, dict) and path.startswith("/v1/"):
                data = {**data, "model": "base"}
                data |= {"max_tokens": data.pop("n_predict")} if "n_predict" in data else {}
            headers = None if headers is None else {name: value for name, value in headers.items() if value is not None}
            return ask(self, method, path, data, headers, **more)

        return asking

    for name in ("make_request", "make_stream_request"):
        setattr(process, name, changed(getattr(process, name)))
