"""Sends a policy to a hub: what goes, and the one commit that it is."""

import json
from dataclasses import dataclass
from pathlib import Path

from stages.errors import RecipeError
from stages.model_files import adapter_at, adapter_config


@dataclass(frozen=True)
class Parcel:
    """What goes into a repository: names there -> files here, or what is to stand in them."""

    repo: str
    files: dict[str, Path | bytes]

    @property
    def sizes(self) -> dict[str, int]:
        return {
            name: len(file) if isinstance(file, bytes) else file.stat().st_size for name, file in self.files.items()
        }


def pack(repo: str, policy: Path, beside: list[Path], figures: dict[str, bytes], card: str, base: str | None) -> Parcel:
    """The folder of a policy, files that lie beside it, figures, and the card, which takes the place of one that is
    there.

    `base`: the name on a hub of an adapter's model; left out, it keeps the one it has, which may be a folder here.
    """
    if repo.count("/") != 1 or not all(repo.split("/")):
        raise RecipeError(f"{repo} is no name of a repository. Give it as org/name")
    found = [path for path in sorted(policy.rglob("*")) if path.is_file()]
    files: dict[str, Path | bytes] = {path.relative_to(policy).as_posix(): path for path in found}
    files |= {path.name: path for path in beside if path.is_file()}
    files |= figures
    if base is not None and adapter_at(str(policy)):
        named = adapter_config(policy) | {"base_model_name_or_path": base}
        files["adapter_config.json"] = json.dumps(named, indent=2).encode()
    files.pop("README.md", None)
    return Parcel(repo, {"README.md": card.encode(), **files})


def send(parcel: Parcel, public: bool, message: str) -> str:
    """Make the repository if it is not there, and commit all files at once; the address of the commit.

    Raises RecipeError with what the hub said where it does not take them.
    """
    from huggingface_hub import CommitOperationAdd, HfApi, constants  # slow to import
    from huggingface_hub.errors import HfHubHTTPError, LocalTokenNotFoundError, OfflineModeIsEnabled

    operations = [
        CommitOperationAdd(name, file if isinstance(file, bytes) else str(file)) for name, file in parcel.files.items()
    ]
    api = HfApi()
    try:
        api.create_repo(parcel.repo, private=not public, exist_ok=True)
        return str(api.create_commit(parcel.repo, operations, commit_message=message).commit_url)
    except (HfHubHTTPError, LocalTokenNotFoundError, OfflineModeIsEnabled, OSError) as error:
        told = str(error).strip().splitlines()[0]
        raise RecipeError(
            f"{constants.ENDPOINT} did not take {parcel.repo}: {type(error).__name__}: {told}. Log in (hf auth login, "
            "or HF_TOKEN), look at your rights in the organisation, and whether HF_HUB_OFFLINE is set"
        ) from error
