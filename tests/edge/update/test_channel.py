"""The list of a channel: what is read of it, which release a machine takes, and who is in a rollout."""

import json

import pytest
from slm_edge.edge.errors import DamagedError, UnsupportedError
from slm_edge.edge.update.channel import Channel, Release
from slm_edge.edge.update.machine import bucket_percent, machine_id


def release(number, **values):
    return Release(number, f"{number:0>64}".replace(".", "a"), "0" * 64, **values)


def test_choices():
    rows = (
        release("1.0"),
        release("1.1", min_runtime="9.0"),
        release("1.2", percent=0),
        release("1.3", withdrawn=True),
    )
    channel = Channel("tiny", 1, rows)

    def choice(digest, version, refused=None):
        chosen, why = channel.choice(digest, version, "machine", "0.1.0", refused)
        return chosen and chosen.version, why

    assert choice(None, None) == ("1.0", "")
    assert choice("f" * 64, "0.9") == ("1.0", "")
    assert choice("f" * 64, "1.0.1") == (None, "it is the newest for this machine (1.1 needs slm-edge 9.0)")
    # What runs is not in the list, and nobody knows its version: the list has a say.
    assert choice("f" * 64, None) == ("1.0", "")
    assert choice(rows[0].pack, "1.0")[0] is None
    assert choice(rows[3].pack, "1.3") == ("1.0", "version 1.3 was withdrawn")
    assert choice(None, None, {rows[0].pack: "why"})[0] is None


def test_rollouts_grow_and_are_even():
    machines = [f"machine {n}" for n in range(4000)]
    has = {
        percent: {one for one in machines if release("1.0", percent=percent, seed="s").is_for(one)}
        for percent in (0, 25, 50, 100)
    }
    assert not has[0] and has[25] < has[50] < has[100] and len(has[100]) == len(machines)
    assert abs(len(has[25]) / len(machines) - 0.25) < 0.03
    # Another release begins with others.
    other = {one for one in machines if bucket_percent("t", one) < 25}
    assert abs(len(other & has[25]) / len(machines) - 0.0625) < 0.02


def test_a_machine_keeps_its_id():
    assert machine_id() == machine_id() and len(machine_id()) == 64


@pytest.mark.parametrize(
    "change",
    [
        lambda data: data.pop("name"),
        lambda data: data.update(more=1),
        lambda data: data.update(sequence=-1),
        lambda data: data.update(sequence=True),
        lambda data: data.update(releases={}),
        lambda data: data["releases"].append(3),
        lambda data: data["releases"][0].update(version="1.0-rc"),
        lambda data: data["releases"][0].update(pack="../x"),
        lambda data: data["releases"][0].update(percent=101),
        lambda data: data["releases"][0].update(percent=float("nan")),
        lambda data: data["releases"][0].update(sizes_bytes={"../x": 1}),
        lambda data: data["releases"][0].update(withdrawn="no"),
        lambda data: data.update(releases=data["releases"] * 2000),
    ],
)
def test_what_is_no_channel(change):
    data = json.loads(Channel("tiny", 1, (release("1.0"),)).text())
    assert Channel.parse(json.dumps(data).encode()).find("1.0")
    change(data)
    with pytest.raises(DamagedError):
        Channel.parse(json.dumps(data).encode())


def test_channels_of_the_future_and_noise():
    with pytest.raises(UnsupportedError):
        Channel.parse(b'{"schema": 2}')
    for data in (b"", b"\xff", b"[]", b"{}", b"[" * 9999):
        with pytest.raises(DamagedError):
            Channel.parse(data)
