"""``longformer export``. What is slow to import is imported where it is run."""

from __future__ import annotations

import click


@click.command()
@click.argument("model", metavar="MODEL")
@click.argument("output", metavar="OUT.onnx")
@click.option(
    "--dtype",
    type=click.Choice(["float32", "float16", "bfloat16"]),
    default="float32",
    show_default=True,
    help="Precision in which the weights are stored; the arithmetic is float32.",
)
@click.option("--int8", is_flag=True, help="Linear layers in int8, by ONNX Runtime's quantiser. Some answers change.")
@click.option("--trace", is_flag=True, help="Give the inner values too, for longformer parity compare.")
@click.option(
    "--opset", type=int, default=20, show_default=True, metavar="N", help="Version of ONNX's operators, 18 to 23."
)
@click.option("--check/--no-check", default=True, help="Run the file and compare it with the model, at many lengths.")
@click.option("--revision", metavar="REV", help="Branch, tag or commit of MODEL on the hub.")
def export(
    model: str, output: str, dtype: str, int8: bool, trace: bool, opset: int, check: bool, revision: str | None
) -> None:
    """Write MODEL (folder or name on the hub), of any head, as an ONNX file, and its tokenizer beside that.

    \b
    longformer export longformer/pretrained exported/model.onnx --dtype float16
    longformer answer --model exported "How old must a President be?" constitution.txt
    """
    import torch

    from longformer.exporting.graph import export_checkpoint

    path = export_checkpoint(
        model,
        output,
        dtype=getattr(torch, dtype),
        int8=int8,
        inner_values=trace,
        opset=opset,
        check=check,
        revision=revision,
    )
    click.echo(f"wrote {path}", err=True)
