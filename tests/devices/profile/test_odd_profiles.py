"""Profiles that someone changed or cut: one message that names the file."""

import json

import pytest

KIND = {"kind": "slm-edge-profile"}


@pytest.mark.parametrize(
    "profile",
    [
        *({}, [], 3, "x", KIND, {**KIND, "model": 3}, {**KIND, "model": {"work": {}}, "setup": {}, "cases": []}),
        *({**KIND, "model": {"work": None}, "setup": None}, {**KIND, "cases": [None]}, {"kind": ["slm-edge-profile"]}),
    ],
)
def test_calibrate(tmp_path, slm_edge, profile):
    file = tmp_path / "profile.json"
    file.write_text(json.dumps(profile))
    code, _, err = slm_edge("devices", "calibrate", file, "--device", "raspberry-pi-5-4gb")
    assert code == 2
    assert err.startswith("slm-edge: ")
