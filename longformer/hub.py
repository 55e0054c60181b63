"""Find files by a model's name on the hub or by a folder, with one clear error for each way in which that fails."""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import huggingface_hub
from huggingface_hub import constants
from huggingface_hub import errors as hub

from longformer.errors import CheckpointError, in_one_line
from longformer.files import check_path

PathOrName = str | Path
CONFIG = "config.json"
PRETRAINED = Path(__file__).parent / "pretrained"  # the small checkpoint that comes with the package


def find_files(
    name_or_path: PathOrName,
    wanted: Sequence[str],
    *,
    revision: str | None = None,
    local_files_only: bool = False,
    cache_dir: PathOrName | None = None,
    token: str | bool | None = None,
    first: bool = False,
) -> dict[str, Path]:
    """Those of the wanted files that a model has, by name; from the hub they are fetched into its cache.

    The hub's own settings hold: ``HF_HOME``, ``HF_HUB_OFFLINE``, ``HF_ENDPOINT``, and the token from ``HF_TOKEN`` or
    from ``hf auth login``. Without network, what the cache has is used.

    Args:
        name_or_path: a folder, or a name on the hub such as ``"allenai/longformer-base-4096"``.
        wanted: file names; those that do not exist are left out of the result.
        revision: branch, tag or commit on the hub.
        local_files_only: look only in the hub's local cache.
        cache_dir: where that cache is; None is the hub's own setting.
        token: to log in with; None is the hub's own setting, False is none.
        first: stop at the first file that exists; ``wanted`` is then an order of preference.

    Raises:
        CheckpointError: no such folder or model, no access to it, or no network and nothing wanted in the cache.
    """
    folder = _folder(name_or_path)
    if folder is None:
        cache = None if cache_dir is None else os.path.expanduser(cache_dir)
        hub_options = {"revision": revision, "cache_dir": cache, "token": token}
        return _from_hub(str(name_or_path), wanted, hub_options, local_files_only, first)
    if revision is not None:
        raise CheckpointError(f"revision {revision!r} is of the hub, but {folder} is a folder here; leave it out")
    found = {name: folder / name for name in wanted if os.path.isfile(folder / name)}
    return dict(list(found.items())[:1]) if first else found


def find_config(name_or_path: PathOrName, **where: Any) -> Path:
    """Path of a checkpoint's ``config.json``. ``where``: as for :func:`find_files`.

    Raises:
        CheckpointError: there is none.
    """
    found = find_files(name_or_path, [CONFIG], **where)
    if CONFIG not in found:
        raise CheckpointError(
            f"{name_or_path} has no {CONFIG}; a checkpoint is a folder with that and model.safetensors, and weights "
            "alone are loaded with config=LongformerConfig(...)"
        )
    return found[CONFIG]


def has_file(
    name_or_path: PathOrName,
    file: str,
    *,
    revision: str | None = None,
    local_files_only: bool = False,
    token: str | bool | None = None,
    **_: Any,
) -> bool:
    """Whether a model is known to have ``file``, which is not fetched. Never raises: it serves error messages."""
    try:
        folder = _folder(name_or_path)
        if folder is not None:
            return (folder / file).is_file()
        return not local_files_only and huggingface_hub.file_exists(
            str(name_or_path), file, revision=revision, token=token
        )
    except Exception:  # the network's layers raise many kinds
        return False


def cached_files(name: str) -> list[Path]:
    """The files of a model on the hub, of any revision, that were downloaded into the hub's cache."""
    if not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", name):
        return []
    folder = f"models--{name.replace('/', '--')}"
    return [path for path in Path(constants.HF_HUB_CACHE, folder).glob("snapshots/*/**/*") if path.is_file()]


def _folder(name_or_path: PathOrName) -> Path | None:
    """The folder that is meant, None where it is a name for the hub, and an error where it can be neither."""
    text = str(name_or_path)
    check_path(text, error=CheckpointError)
    path = Path(os.path.expanduser(text))
    if text and os.path.isdir(path):
        return path
    if text and os.path.exists(path):
        raise CheckpointError(f"{text} is a file; give the folder that holds it, or a model's name on the hub")
    if path.parts[-2:] == PRETRAINED.parts[-2:]:  # the checkout's folder, typed elsewhere: the hub need not be asked
        raise CheckpointError(
            f"there is no folder {text!r} here; the checkpoint that the package ships is {PRETRAINED}"
        )
    if not isinstance(name_or_path, str) or path.is_absolute() or text.startswith((".", "~")) or text.count("/") > 1:
        raise CheckpointError(f"no folder at {text!r}")
    return None


def _from_hub(
    name: str, wanted: Sequence[str], options: dict[str, Any], local_files_only: bool, first: bool
) -> dict[str, Path]:
    """``options``: revision, cache_dir and token, as the hub's library takes them."""
    revision = options["revision"]
    found: dict[str, Path] = {}
    why_silent = "it was not asked (local_files_only)" if local_files_only else _why_silent(name, wanted[0], options)
    unknown = []
    for file in wanted:
        try:
            path = huggingface_hub.hf_hub_download(name, file, local_files_only=why_silent is not None, **options)
            found[file] = Path(path)
        except hub.LocalEntryNotFoundError as error:
            why_silent = why_silent or in_one_line(error.__cause__ or error)
            if not _known_absent(name, file, options):
                unknown.append(file)
        except hub.EntryNotFoundError:
            continue
        except Exception as error:  # the network's layers raise many kinds
            raise CheckpointError(_explain(error, name, file, revision)) from None
        if first and found:
            break
    if unknown and not found:
        cache = options["cache_dir"] or constants.HF_HUB_CACHE
        raise CheckpointError(
            f"there is no folder {name!r} here, and the local cache {cache} has no "
            f"{_either(unknown)} of a model of that name{_at(revision)}; the hub did not help: {why_silent}. "
            f"Fetch the model once with network, or give a folder; the package ships a small one, {PRETRAINED}"
            f"{_near(name)}"
        )
    return found


def _near(name: str) -> str:
    """A question after the folder here whose name is much like ``name``, if there is one."""
    try:
        here = [entry.name for entry in Path().iterdir() if entry.is_dir()]
    except OSError:  # a folder that we may not look into
        return ""
    found = difflib.get_close_matches(name, here, n=1, cutoff=0.8)
    return f"; did you mean the folder {found[0]!r}?" if found else ""


def _either(files: Sequence[str]) -> str:
    """The first of the files that were looked for, and that there were others."""
    return files[0] if len(files) == 1 else f"{files[0]} or the like"


def _why_silent(name: str, file: str, options: dict[str, Any]) -> str | None:
    """Why the hub does not answer, None if it does. Asked once, where a download would retry for half a minute."""
    try:
        url = huggingface_hub.hf_hub_url(name, file, revision=options["revision"])
        huggingface_hub.get_hf_file_metadata(url, token=options["token"])
    except hub.OfflineModeIsEnabled:
        return "it was not asked (HF_HUB_OFFLINE)"
    except (hub.HfHubHTTPError, hub.HFValidationError):
        return None  # an answer, or a name that the download will refuse
    except Exception as error:  # the network's layers raise many kinds
        return in_one_line(error)
    return None


def _known_absent(name: str, file: str, options: dict[str, Any]) -> bool:
    """Whether the hub said, when it was last asked, that the model has no such file."""
    known = huggingface_hub.try_to_load_from_cache(
        name, file, revision=options["revision"], cache_dir=options["cache_dir"]
    )
    return known is not None and not isinstance(known, str)


def _explain(error: Exception, name: str, file: str, revision: str | None) -> str:
    log_in = "log in with `hf auth login` or set HF_TOKEN"
    match error:
        case hub.HFValidationError():
            return f"{name!r} is neither a folder here nor a name on the hub, such as 'allenai/longformer-base-4096'"
        case hub.GatedRepoError():
            return f"{name} is gated: accept its terms at {_url(name)}, then {log_in}"
        case hub.RepositoryNotFoundError():
            return (
                f"there is no folder {name!r} here and no model of that name on the hub that you may read; "
                f"check the spelling, or, if it is private, {log_in}"
            )
        case hub.RevisionNotFoundError():
            return f"{name} has no revision {revision!r}; {_url(name)}/tree/main shows those that it has"
        case _:
            return f"cannot fetch {file} of {name}{_at(revision)}: {in_one_line(error)}"


def _at(revision: str | None) -> str:
    return f" at revision {revision!r}" if revision is not None else ""


def _url(name: str) -> str:
    return f"{constants.ENDPOINT}/{name}"
