"""`slm-edge bench`: scores of a pack or an endpoint, and the measurements that have a command of their own.

`slm-edge bench gsm8k ...` is `slm-edge bench scores gsm8k ...`: what is not one of the commands is a task.
"""

import click

from ...edge.cli.lazy import Entry, LazyGroup

COMMANDS: dict[str, Entry] = {
    "scores": Entry("benchmarks.cli.scores:scores", "Score adapters on public test sets (the default).", "bench"),
    "samples": Entry("benchmarks.cli.samples:samples", "Judge a HumanEval samples.jsonl.", "bench"),
    "perplexity": Entry("benchmarks.cli.perplexity:perplexity", "Perplexity and KL divergence on a text.", "bench"),
    "loss": Entry("benchmarks.cli.loss:loss", "Likelihood of a task's reference answers.", "bench"),
    "pack-answers": Entry("benchmarks.cli.answers:pack_answers", "Compress the answers of a run.", "bench"),
    "join-answers": Entry("benchmarks.cli.answers:join_answers", "Put the answers of several runs together.", "bench"),
    "reproduce": Entry("benchmarks.cli.reproduce:reproduce", "Train, export, pack and score, base by base.", "bench"),
}


class DefaultGroup(LazyGroup):
    """A group that takes what is none of its commands for arguments of `scores`."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        is_help = bool(args) and args[0] in ctx.help_option_names
        if not is_help and (not args or args[0] not in self.entries):
            args = ["scores", *args]
        return super().parse_args(ctx, args)


@click.group(cls=DefaultGroup, entries=COMMANDS, subcommand_metavar="[TASK]... [OPTIONS] | COMMAND ...")
def bench() -> None:
    """Score a pack's adapters, its base and its router by the official rules; without a command, as `bench scores`.

    \b
    Examples:
      slm-edge bench --data DATA --out bench
      slm-edge bench humaneval --adapter code --adapter none --data DATA
      slm-edge bench scores --help
    """
