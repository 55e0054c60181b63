"""Options that commands of every kind share, and the types of their values. Imports nothing slow."""

import click

MOST = 2**31 - 1  # more than any memory holds; torch says of larger numbers what nobody understands
COUNT = click.IntRange(1, MOST)

tokenizer_option = click.option(
    "--tokenizer",
    metavar="NAME",
    help="Folder, or name on the hub, of the tokenizer, where it is not the model's own.",
)
