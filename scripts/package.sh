#!/usr/bin/env bash
# Build the wheel and the source archive into dist/, and try the wheel where nothing else of the repository is.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

PYTHON=${PYTHON:-python3}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

"$PYTHON" -m venv "$work/venv"
python="$work/venv/bin/python"
"$python" -m pip install --quiet --disable-pip-version-check build twine
"$python" -m build --outdir dist .
"$python" -m twine check --strict dist/*

version=$("$python" -c 'import re; print(re.search(r"__version__ = \"(.+)\"", open("longformer/__init__.py").read())[1])')
tag=${GITHUB_REF_NAME:-v$version}
case $tag in
  v*) [ "$tag" = "v$version" ] || { echo "the tag is $tag, and longformer.__version__ is $version" >&2; exit 1; } ;;
esac

"$python" scripts/install_torch.py
"$python" -m pip install --quiet --disable-pip-version-check --constraint constraints.txt dist/*.whl
cd "$work"
"$work/venv/bin/longformer" answer "Who fell?" --text "Dan fell. Ann did not."
