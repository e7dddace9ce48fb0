"""Streams over real sockets: what the engine's thread writes itself, and readers who do not read."""

import asyncio
import json
import socket
import threading
import time
from types import SimpleNamespace

import pytest
from slm_edge.edge.answer.stream import Answer
from slm_edge.edge.openai.direct import Direct
from slm_edge.edge.openai.reply import Call
from slm_edge.edge.openai.service import Asked, Nobody
from slm_edge.edge.openai.streaming import MARK, stream
from slm_edge.edge.scheduler.ticket import Piece, Ticket, wake
from slm_edge.edge.serve.listen import Listener, Wire, tcp_sockets

N = 600
WORDS = [f'"{i} \u00e9\n' if i % 7 else "" for i in range(N)]


def new_ticket():
    return Ticket(1, "", None, None, None, 3, lambda ticket: None)


def say(ticket, words):
    """What the engine's thread does."""
    for i, word in enumerate(words):
        ticket.add(Piece(word, i, thinking="hm" if i == 50 else ""))
        wake([ticket])
    ticket.end(Answer("".join(words), 3, len(words), 0.0, None, "max_tokens", None))
    wake([ticket])


class Shape:
    """Events of a text alone."""

    ends_with_done = True

    def opening(self):
        return [(None, {"role": "assistant"})]

    async def piece(self, i, piece):
        return [(None, {"t": text}) for text in (piece.thinking, piece.text) if text]

    def frame(self):
        return None, {"t": MARK}

    def ended(self, i, answer):
        return [(None, {"end": answer.stop_reason})]

    def last(self, answers):
        return []


async def pair(send_bytes):
    """A transport, and the other end of its socket."""
    ours, theirs = socket.socketpair()
    ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, send_bytes)
    theirs.settimeout(30)
    transport, _ = await asyncio.get_running_loop().create_connection(asyncio.Protocol, sock=ours)
    return transport, theirs


async def one_stream():
    """A transport, the other end of its socket, and a ticket whose pieces go there directly."""
    transport, theirs = await pair(1 << 20)
    ticket = new_ticket()
    direct = Direct(Wire(transport), ticket, (b'{"t":', b"}"), Nobody())
    direct.resume(0)
    return transport, theirs, ticket, direct


def test_pieces_go_out_while_the_event_loop_stands_still():
    async def run():
        transport, theirs, ticket, direct = await one_stream()
        engine = threading.Thread(target=say, args=(ticket, ["one", "", "two"]))
        engine.start()
        # Nothing is awaited here: it is the other thread that writes.
        found = b""
        while b"two" not in found:
            found += theirs.recv(1000)
        engine.join()
        assert found == b'b\r\n{"t":"one"}\r\nb\r\n{"t":"two"}\r\n'
        assert [direct.takes(i) for i in range(3)] == [False, False, False]
        transport.close()
        theirs.close()

    asyncio.run(run())


def test_pieces_without_text_are_no_sign_of_life():
    """Where nothing was sent for a while, the loop has to send something: proxies cut silent connections."""

    async def run():
        transport, theirs, ticket, direct = await one_stream()
        for word, has_written in (("", False), ("one", True), ("", False)):
            ticket.add(Piece(word, 1))
            wake([ticket])
            assert direct.stop() is has_written
            direct.resume(ticket.n_pieces)
        transport.close()
        theirs.close()

    asyncio.run(run())


def test_a_closed_connection_takes_nothing():
    async def run():
        transport, theirs = await pair(1 << 20)
        wire = Wire(transport)
        assert wire.write(b"abc") == 3
        theirs.close()
        assert wire.write(b"abc") == 0
        wire.close()
        transport.close()
        await asyncio.sleep(0)
        # Its number may be another file's by now.
        assert wire.write(b"abc") == 0 and not wire.is_empty

    asyncio.run(run())


@pytest.mark.parametrize("reads_late", [False, True])
@pytest.mark.parametrize("send_bytes", [4096, 1 << 20])
def test_every_piece_comes_once_and_in_order(send_bytes, reads_late):
    """Whoever sends it: the engine's thread, or the loop what the socket did not take and what is more than text."""

    async def run():
        transport, theirs = await pair(send_bytes)
        ticket, found, said = new_ticket(), [], threading.Event()

        def engine():
            say(ticket, WORDS)
            said.set()

        def read():
            if reads_late:
                said.wait(30)
            while part := theirs.recv(1 << 16):
                found.append(part)

        async def send(event):
            body = event.get("body", b"")
            if body:
                transport.write(b"%x\r\n%b\r\n" % (len(body), body))
            while transport.get_write_buffer_size():
                await asyncio.sleep(0.001)

        async def receive():
            await asyncio.Event().wait()

        call = Call(b"", "", lambda model: True, receive, send, wire=Wire(transport))
        threads = [threading.Thread(target=one) for one in (engine, read)]
        for one in threads:
            one.start()
        await stream(SimpleNamespace(observer=Nobody()), call, Asked([ticket], "m", "fp"), Shape())
        transport.close()
        await asyncio.to_thread(lambda: [one.join() for one in threads])
        return b"".join(found)

    data, bodies = asyncio.run(run()), []
    while data:
        size, _, data = data.partition(b"\r\n")
        bodies.append(data[: int(size, 16)].decode())
        assert data[int(size, 16) :][:2] == b"\r\n"
        data = data[int(size, 16) + 2 :]
    events = [body.removeprefix("data: ").removesuffix("\n\n") for body in bodies if not body.startswith(":")]
    texts = [one for i, word in enumerate(WORDS) for one in (("hm", word) if i == 50 else (word,)) if one]
    assert events[-1] == "[DONE]" and json.loads(events[0]) == {"role": "assistant"}
    assert [json.loads(one) for one in events[1:-2]] == [{"t": text} for text in texts]
    assert json.loads(events[-2]) == {"end": "max_tokens"}


PART = b"x" * 65536
N_PARTS = 400


async def asked(unread_s, client):
    """How many parts an application could send to a client, and how many connections were given up and are left."""
    n_sent, n_unread = [], []
    gone = asyncio.Event()

    async def app(scope, receive, send):
        await send({"type": "http.response.start", "status": 200, "headers": []})
        for _ in range(N_PARTS):
            await send({"type": "http.response.body", "body": PART, "more_body": True})
            n_sent.append(1)
        await send({"type": "http.response.body", "body": b""})
        gone.set()

    sockets = tcp_sockets("127.0.0.1", 0)
    port = sockets[0].getsockname()[1]
    listener = Listener(app, sockets, unread_s=unread_s, on_unread=lambda: n_unread.append(len(n_sent)))
    await listener.start()
    try:
        one = socket.create_connection(("127.0.0.1", port), timeout=30)
        one.sendall(b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        found = await asyncio.to_thread(client, one, n_unread)
        await asyncio.wait_for(gone.wait(), 30)
        for _ in range(200):
            if not listener.n_connections:
                break
            await asyncio.sleep(0.05)
        one.close()
        return found, n_unread, listener.n_connections
    finally:
        await listener.stop(0.1)


def test_whoever_does_not_read_is_given_up_and_nothing_waits_for_it():
    def client(one, n_unread):
        deadline_s = time.monotonic() + 30
        while not n_unread and time.monotonic() < deadline_s:
            time.sleep(0.05)

    _, n_unread, n_left = asyncio.run(asked(0.3, client))
    # The application was held back: 400 parts are far more than the system's own buffers take.
    assert len(n_unread) == 1 and n_unread[0] < N_PARTS // 2
    assert n_left == 0


def test_whoever_reads_slowly_gets_all():
    def client(one, n_unread):
        n_bytes = 0
        for i in range(10**6):
            part = one.recv(1 << 20)
            if not part:
                break
            n_bytes += len(part)
            if i < 4:
                time.sleep(0.2)
        return n_bytes

    n_bytes, n_unread, n_left = asyncio.run(asked(0.5, client))
    assert n_bytes > N_PARTS * len(PART) and not n_unread and n_left == 0


def test_only_chunked_answers_are_written_past_the_loop():
    """HTTP/1.0 has no chunks."""
    found = []

    async def app(scope, receive, send):
        found.append((scope["http_version"], "slm_edge.wire" in scope.get("extensions", {})))
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    async def run():
        sockets = tcp_sockets("127.0.0.1", 0)
        listener = Listener(app, sockets)
        await listener.start()
        for version in (b"1.0", b"1.1"):
            reader, writer = await asyncio.open_connection(*sockets[0].getsockname())
            writer.write(b"GET / HTTP/%b\r\nHost: x\r\nConnection: close\r\n\r\n" % version)
            await reader.read()
            writer.close()
        await listener.stop(0.1)

    asyncio.run(run())
    assert found == [("1.0", False), ("1.1", True)]
