"""The mean of several checkpoints' weights ("model soup", Wortsman et al. 2022, arXiv 2203.05482)."""

from __future__ import annotations

import filecmp
import json
import shutil
from pathlib import Path

import click
import torch
from safetensors.torch import load_file, save_file

WEIGHTS, CONFIG = "model.safetensors", "config.json"


@click.command()
@click.argument("output")
@click.argument("models", nargs=-1, required=True)
def main(output: str, models: tuple[str, ...]) -> None:
    """Write to the folder OUTPUT the mean, tensor by tensor, of MODELS, folders of one architecture.

    They should have been trained from the same weights: others are too far apart for their mean to be of use. The first
    one's precision, config and tokenizer are kept.
    """
    first = Path(models[0])
    if (Path(output) / "training.toml").exists():
        raise click.ClickException(f"{output} is a training run's folder; name another, before the models")
    configs = [json.loads((Path(model) / CONFIG).read_text(encoding="utf-8")) for model in models]
    like = load_file(first / WEIGHTS)
    mean = {name: tensor.double() for name, tensor in like.items()}
    for model, config in zip(models[1:], configs[1:], strict=True):
        tensors = load_file(Path(model) / WEIGHTS)
        if config != configs[0] or _shapes(tensors) != _shapes(like):
            raise click.ClickException(f"{model} is of another architecture than {first}; average models of one")
        for name, tensor in tensors.items():
            mean[name] += tensor
    tensors = {name: (tensor / len(models)).to(like[name].dtype) for name, tensor in mean.items()}
    if not all(bool(torch.isfinite(tensor).all()) for tensor in tensors.values()):
        raise click.ClickException(f"a weight of {', '.join(models)} is not finite; train that model again")
    folder = Path(output)
    folder.mkdir(parents=True, exist_ok=True)
    for path in first.iterdir():
        if path.name == CONFIG or path.name.startswith(("tokenizer", "vocab", "merges", "special_tokens")):
            shutil.copy(path, folder)
    part = folder / f"{WEIGHTS}.part"
    save_file(tensors, part, metadata={"format": "pt"})
    if (folder / WEIGHTS).exists() and filecmp.cmp(part, folder / WEIGHTS, shallow=False):
        part.unlink()  # so that answers which are there are still its own
    else:
        part.replace(folder / WEIGHTS)
    click.echo(f"wrote {output}, the mean of {len(models)}", err=True)


def _shapes(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Size]:
    return {name: tensor.shape for name, tensor in tensors.items()}


if __name__ == "__main__":
    main()
