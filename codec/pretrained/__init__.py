"""Where models come from: those inside the package, folders, and the hub."""

from __future__ import annotations

from pathlib import Path

from codec.errors import CodecError, install

DEFAULT_MODEL = "speech-24khz"
ALIAS = "default"  # for DEFAULT_MODEL, whatever it is
FILES = ("config.json", "model.safetensors")
DISCRIMINATORS = "discriminator.safetensors"  # what training may go on with; no part of a model


class ModelError(CodecError):
    """A model that cannot be found or loaded; the message says what to do."""


def shipped_models() -> list[str]:
    """Names of the models inside the package."""
    here = Path(__file__).parent
    return sorted(folder.name for folder in here.iterdir() if (folder / "config.json").is_file())


def find_model(model: str | Path) -> Path:
    """The folder of a model given by shipped name (or "default"), folder path, or hub id ``owner/name[@revision]``.

    Raises:
        ModelError: none of these, or files are missing in the folder.
    """
    shipped = DEFAULT_MODEL if str(model) == ALIAS else str(model)
    if shipped in shipped_models():
        return Path(__file__).parent / shipped
    folder = Path(model)
    if folder.is_dir():
        missing = [name for name in FILES if not (folder / name).is_file()]
        if missing:
            raise ModelError(f"{folder} is not a model folder: it lacks {' and '.join(missing)}")
        return folder
    name = str(model)
    if name.count("/") == 1 and not name.startswith(("/", ".", "~")) and all(name.split("/")):
        return _download(name)
    raise ModelError(
        f"no model {name!r}: give a shipped name ({', '.join(shipped_models())}), a model folder, or a hub id owner/name"
    )


def _download(name: str) -> Path:
    try:
        from huggingface_hub import snapshot_download
    except ImportError:
        raise ModelError(f"{name!r} is no folder; to fetch it from the hub: {install('hub')}") from None
    repo, _, revision = name.partition("@")
    try:
        return Path(snapshot_download(repo, revision=revision or None, allow_patterns=list(FILES)))
    except Exception as error:  # network, HTTP and validation errors share no base class
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ModelError(f"cannot fetch {name!r} from the hub: {reason}") from None
