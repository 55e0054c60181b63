"""``longformer pattern``. What is slow to import is imported where it is run."""

from __future__ import annotations

import click

from longformer.bench.options import Names
from longformer.files import check_outputs
from longformer.options import COUNT, Whole, show_result

LONGEST = 2**17  # tokens; pairs of a union are counted one by one
SIZE = Whole(1, 2**10)


@click.command()
@click.argument("spec", metavar="SPEC")
@click.option(
    "--length", "seq_len", type=Whole(1, LONGEST), default=4096, show_default=True, metavar="S", help="Tokens."
)
@click.option("--globals", "global_tokens", type=Whole(0), default=0, metavar="G", help="First tokens global.")
@click.option("--layers", type=SIZE, metavar="N", help="Of a text; by default as many as it names.")
@click.option("--heads", type=SIZE, default=12, show_default=True, metavar="H", help="Of a text.")
@click.option("--head-dim", type=SIZE, default=64, show_default=True, metavar="D", help="Of a text.")
@click.option("--draw", "picture", metavar="FILE.png", help="Draw the pattern; needs matplotlib.")
@click.option("--measure/--no-measure", default=True, show_default=True, help="Time each kernel that can run it.")
@click.option("--kernels", type=Names(), help="The kernels to time.  [default: all that can run the pattern]")
@click.option("--dtype", default="float32", show_default=True, help="Precision of what is timed.")
@click.option("--device", type=click.Choice(["cpu", "cuda"]), default="cpu", show_default=True, help="Where to time.")
@click.option("--rounds", type=COUNT, default=5, show_default=True, metavar="N", help="Runs of each kernel.")
@click.option("--json", "json_file", metavar="FILE.json", help="Write all numbers to this file.")
def pattern(
    spec: str,
    seq_len: int,
    global_tokens: int,
    layers: int | None,
    heads: int,
    head_dim: int,
    picture: str | None,
    measure: bool,
    kernels: tuple[str, ...] | None,
    dtype: str,
    device: str,
    rounds: int,
    json_file: str | None,
) -> None:
    """Print what the attention pattern SPEC takes: pairs, operations, bytes, receptive field, and time.

    SPEC is a short text, a config.json, or a checkpoint. In a text, layers stand between "/", from the lowest on.

    \b
    longformer pattern "window=256,causal" --length 4096 --draw out.png
    longformer pattern "window=128/full" --layers 12 --no-measure
    longformer pattern "window=64+window=16,dilation=8,global=0:1:2"
    """
    check_outputs(filter(None, (picture, json_file)), [spec])

    from longformer.bench import pattern as found
    from longformer.bench.options import known_dtype
    from longformer.bench.report import write_json

    patterns, heads, head_dim = found.read_spec(spec, layers, heads, head_dim)
    shape = found.Shape(seq_len, heads, head_dim, global_tokens)
    chosen = found.check_kernels(kernels, device)
    exact = found.torch_dtype(known_dtype(dtype))
    if kernels is not None and measure:
        found.check_asked(chosen, patterns, shape, exact, device)
    if picture is not None:
        found.draw(picture, patterns, shape)
    costs = found.costs(patterns, shape)
    outputs = (picture, json_file)
    show_result(f"{seq_len:,} tokens, {heads} heads of {head_dim} dimensions, one layer of each kind\n", outputs)
    show_result(found.cost_table(costs, shape), outputs)
    timed = {}
    for each in {each.pattern: each for each in costs}.values() if measure else ():
        name = found.described(each.pattern)
        timed[name] = found.times(each.pattern, shape, dtype=exact, device=device, rounds=rounds, kernels=chosen)
        show_result(f"\n{name}, local rows, {dtype}:\n{found.time_table(timed[name])}", outputs)
    if json_file is not None:
        write_json(found.as_json(shape, costs, timed), json_file)
