"""Scores are of the answer alone: what was thought before is kept beside it, and an answer cut within it is none."""

import collections
import http.server
import json
import threading

import pytest
from build_gguf import CHATML, tiny_adapter, tiny_base
from slm_edge.benchmarks.scores.answers import AnswerFile
from slm_edge.benchmarks.scores.cells import Column, Wanted, columns_of, plan
from slm_edge.benchmarks.scores.endpoint import Endpoint, endpoint_generator
from slm_edge.benchmarks.scores.generate import session_generator
from slm_edge.benchmarks.scores.runner import run_cell
from slm_edge.benchmarks.tasks.registry import task
from slm_edge.edge.pack.card import TaskCard
from slm_edge.edge.pack.write import NewAdapter, build_pack
from slm_edge.edge.session.session import Session

# As DeepSeek R1's: the prompt opens the thoughts
OPENED = CHATML + "{{ '<think>' }}"
WANTED = Wanted(max_tokens=32)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    (folder / "gsm8k").mkdir()
    rows = [{"question": f"{i} and {i}?", "answer": f"so\n#### {2 * i}"} for i in range(12)]
    (folder / "gsm8k" / "test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def test_what_is_thought_is_kept_and_not_scored(data, tmp_path):
    base = tiny_base(tmp_path / "base.gguf", chat_template=OPENED)
    math = tiny_adapter(tmp_path / "math.gguf", base)
    plain = TaskCard(task="math", thinking=())
    items = task("gsm8k").items(data)
    with Session.of_files(base, {"math": (math, plain)}, threads=1) as session:
        whole = {item.id: session.ask(item.messages, adapter="math", max_tokens=32).text for item in items}
    # The mark that closes: a letter that some answers have, and some have not
    counts = collections.Counter(letter for text in whole.values() for letter in set(text[1:-2]) if letter.isalpha())
    closed = next(letter for letter, n in counts.most_common() if 2 < n < len(items) - 1)
    card = TaskCard(task="math", thinking=("<think>", closed))
    pack = build_pack(tmp_path / "pack", base=base, adapters=[NewAdapter("math", math, card)])
    [cell] = plan([task("gsm8k")], pack, columns_of(pack, ["math"]), data, WANTED)
    with Session.open(pack, threads=1) as session:
        run_cell(cell, tmp_path / "out", session_generator(session, 1))
    records = AnswerFile(tmp_path / "out", cell.identity).records
    assert cell.identity["thinking"] == ["<think>", closed]
    n_cut = 0
    for item in items:
        thought, mark, said = whole[item.id].partition(closed)
        record = records[item.id]
        assert (record.thinking or "", record.text) == (thought.strip(), said.lstrip())
        assert record.scores == cell.task.score(item, said.lstrip())
        n_cut += not mark
        if not mark:
            assert (record.text, record.scores) == ("", cell.task.score(item, ""))
    assert 0 < n_cut < len(items)
    # A base without thoughts is named as ever.
    [bare] = plan([task("gsm8k")], pack, [Column(None)], data, WANTED)
    assert "thinking" not in bare.identity


class Thinker(http.server.BaseHTTPRequestHandler):
    """Answers as servers do that give thoughts apart, or in the text."""

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        question = body["messages"][-1]["content"]
        number = int(question.split()[0])
        answer = f"#### {2 * number}"
        message = {"role": "assistant", "content": answer, "reasoning_content": "#### 1"}
        if number % 3 == 1:
            message = {"role": "assistant", "content": f"<think>#### 1</think>\n\n{answer}"}
        if number % 3 == 2:
            message = {"role": "assistant", "content": f"<think>{answer}"}
        choice = {"message": message, "finish_reason": "stop"}
        data = json.dumps({"choices": [choice], "model": "m", "usage": {"completion_tokens": 3}}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_):
        pass


def test_servers_that_think(data, tmp_path):
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Thinker) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        [cell] = plan([task("gsm8k")], None, [Column("m", facts={"endpoint_model": "m"})], data, WANTED)
        endpoint = Endpoint.of(f"http://127.0.0.1:{server.server_address[1]}", 2)
        run_cell(cell, tmp_path, endpoint_generator(endpoint))
        server.shutdown()
    records = AnswerFile(tmp_path, cell.identity).records
    for item in cell.items:
        number, record = int(item.messages[0]["content"].split()[0]), records[item.id]
        right = number % 3 != 2
        assert record.text == (f"#### {2 * number}" if right else "")
        assert record.thinking == ("#### 1" if right else f"#### {2 * number}")
        assert next(iter(record.scores.values())) == float(right)


def test_template_arguments_reach_every_column(data, tmp_path, slm_edge):
    template = CHATML + "{% if enable_thinking is false %}{{ 'At once: ' }}{% endif %}"
    base = tiny_base(tmp_path / "base.gguf", chat_template=template)
    build_pack(tmp_path / "pack", base=base, adapters=[NewAdapter("math", tiny_adapter(tmp_path / "m.gguf", base))])
    command = ["bench", "gsm8k", "--pack", tmp_path / "pack", "--data", data, "--out", tmp_path / "out"]
    command += ["--limit", "3", "--max-tokens", "8", "--threads", "1", "--parallel", "1"]
    for more in ([], ["--no-think"]):
        code, _, err = slm_edge(*command, *more)
        assert code == 0, err
    with Session.open(tmp_path / "pack", adapter="math", threads=1) as session:
        for told in (None, {"think": False}):
            [cell] = plan(
                [task("gsm8k")], session._pack, columns_of(session._pack, ["math"]), data,
                Wanted(max_tokens=8, template_args=told or {}),
            )  # fmt: skip
            records = AnswerFile(tmp_path / "out" / "answers", cell.identity).records
            assert len(records) == 3
            for item in cell.items[:3]:
                asked = session.ask(item.messages, max_tokens=8, template_args=told)
                assert (records[item.id].text, records[item.id].n_prompt_tokens) == (asked.text, asked.n_prompt_tokens)
