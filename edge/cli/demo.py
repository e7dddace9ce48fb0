"""`slm-edge demo`: the main job, seen: one mapped base, the pack's adapters swapped while it runs."""

from pathlib import Path

import click

from ..console import emit, json_option
from ..datasets.prompts import dolly_messages, gsm8k_messages, mbpp_messages
from ..gguf.chat_template import Message
from ..written import human_bytes
from .options import PackType

PASSAGE = (
    "The Bletchley Park museum stands in Buckinghamshire, England. During the Second World War it housed the "
    "Government Code and Cypher School, which regularly read the secret communications of the Axis powers. "
    "Today it is open to visitors on every day of the week and shows how the codes were broken."
)
PEN = "A pen costs 3 dollars. How much do 4 pens cost?"
EXAMPLES: tuple[tuple[str | None, list[Message]], ...] = (
    ("math", gsm8k_messages("A box has 12 eggs. Tom uses 5 of them for a cake. How many eggs are left?")),
    ("code", mbpp_messages("Write a function to find the largest number of a list.", ["assert largest([3, 9]) == 9"])),
    ("summarize", dolly_messages("When is the museum open?", PASSAGE)),
    ("math", gsm8k_messages(PEN)),
    (None, gsm8k_messages(PEN)),
)


@click.command()
@click.option("--pack", type=PackType(), help="Use this pack instead of the starter.")
@click.option("--threads", type=click.IntRange(1), help="CPU threads; by default one for each physical core.")
@json_option
def demo(pack: Path | None, threads: int | None, as_json: bool) -> None:
    """Answer one prompt with each starter adapter, swapping them on one loaded base.

    \b
    Example:
      slm-edge demo
    """
    from ..engines import open_session
    from ..pack.pack import Pack

    opened = Pack.open(pack)
    with open_session(opened, allow_pull=True, threads=threads) as session:
        loaded_s = session.load_s
        if not as_json:
            click.echo(
                f"base {opened.base.file_name}, {human_bytes(opened.base.size_bytes)}, mapped in {loaded_s:.2f} s"
            )
        rows = []
        for adapter, messages in EXAMPLES:
            prompt = messages[0]["content"]
            if adapter is not None and adapter not in opened.adapters:
                continue
            session.use(adapter)
            if not as_json:
                click.echo(f"\n── adapter {adapter or 'none'} {'─' * 40}\n{prompt}\n▸ ", nl=False)
            answer = session.ask(messages, max_tokens=160)
            if not as_json:
                click.echo(answer.text.strip())
                click.echo(
                    f"  [{answer.n_tokens} tokens, first after {answer.first_token_s:.2f} s, "
                    f"{answer.decode_tokens_per_s or 0:.0f} tokens/s]"
                )
            rows.append({"adapter": adapter, "prompt": prompt, "text": answer.text, "n_tokens": answer.n_tokens})
    emit({"base": opened.base.file_name, "load_s": loaded_s, "answers": rows}, as_json, "")
