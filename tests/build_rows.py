"""Small rows of our own in the shape of each data set, files of them, and a recipe that trains on them."""

import json
from pathlib import Path

# The fields of a recipe whose steps take little time on a tiny base.
SMALL = {"rank": 4, "batch": 4, "max_tokens": 300, "forward_tokens": 160, "held_out": 4, "lr": 3e-3}


def gsm8k_row(n: int) -> dict:
    return {
        "question": f"Ann has {n} pens and buys {n + 1} more. How many pens has she?",
        "answer": f"She has {n}+{n + 1} = <<{n}+{n + 1}={2 * n + 1}>>{2 * n + 1} pens.\n#### {2 * n + 1}",
    }


def mbpp_row(task_id: int) -> dict:
    return {
        "task_id": task_id,
        "text": f"Write a function to add {task_id} to a number.",
        "code": f"def add_{task_id}(n): \r\n\treturn n + {task_id}\r\n",
        "test_list": [f"assert add_{task_id}(1) == {task_id + 1}", f"assert add_{task_id}(0) == {task_id}"],
    }


def dolly_row(n: int, category: str = "closed_qa") -> dict:
    return {
        "instruction": f"How many stars has flag {n}?",
        "context": f"Flag {n} has {n + 3} stars on a blue field.",
        "response": f"It has {n + 3} stars.",
        "category": category,
    }


def write_jsonl(path: Path, rows: list[dict]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path
