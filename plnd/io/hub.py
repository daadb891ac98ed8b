"""Artifacts on the Hugging Face hub, named `hf://user/repo/zh.safetensors@revision` wherever a file may be named."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from plnd.errors import ArtifactError, PLNDError

SCHEME = "hf://"
MAX_BYTES = 2**32
"""Of a file that is downloaded; scores of the largest models have less than a tenth of that."""
_NAME = re.compile(r"hf://([\w.-]+/[\w.-]+)/([^@\\]+?)(?:@([^@\s]+))?", re.ASCII)


def is_hub_file(name: str | Path) -> bool:
    """Whether a name is one of the hub's."""
    return str(name).startswith(SCHEME)


def parts_of(name: str) -> tuple[str, str, str | None]:
    """Repository, file in it and revision (a branch, tag or commit; None: the main branch).

    Raises:
        ArtifactError: if it is no such name.
    """
    found = _NAME.fullmatch(name)
    if found is None or any(part in ("", ".", "..") for part in found[2].split("/")):
        raise ArtifactError(f"{name:.200}: expected hf://user/repo/FILE or hf://user/repo/FILE@revision")
    return found[1], found[2], found[3]


def local_file(name: str | Path) -> Path:
    """Where a file is on this machine: the hub's in the hub's cache, downloaded if it is not there; others as named.

    Without a network what is in the cache is taken.

    Raises:
        ArtifactError: if the hub does not have it, cannot be reached, or it is larger than any artifact.
    """
    if not is_hub_file(name):
        return Path(name)
    from huggingface_hub import hf_hub_download

    name = str(name)
    repository, file, revision = parts_of(name)
    with hub_errors(name):
        _check_size(name, repository, file, revision)
        return Path(hf_hub_download(repository, file, revision=revision, library_name="plnd"))


def _check_size(name: str, repository: str, file: str, revision: str | None) -> None:
    from huggingface_hub import get_hf_file_metadata, hf_hub_url
    from huggingface_hub.errors import HfHubHTTPError

    try:
        size = get_hf_file_metadata(hf_hub_url(repository, file, revision=revision), library_name="plnd").size
    except HfHubHTTPError:
        raise
    except Exception:  # no network, or told to be offline: the cache may have it
        return
    if size is not None and size > MAX_BYTES:
        raise ArtifactError(f"{name}: {size:,} bytes, expected an artifact, of at most {MAX_BYTES:,}")


@contextmanager
def hub_errors(name: str) -> Iterator[None]:
    """What the hub's client raises, in one line.

    Raises:
        ArtifactError: saying what is wrong, and what to do.
    """
    from huggingface_hub import errors

    try:
        yield
    except (errors.LocalEntryNotFoundError, errors.OfflineModeIsEnabled):
        problem = "is not in the cache, and the hub cannot be reached: go online once, or name a file of this machine"
    except errors.GatedRepoError:
        problem = "is in a gated repository: ask for access on its page, and log in (hf auth login)"
    except errors.RepositoryNotFoundError:
        problem = "no such repository on the hub, or no right to it: check the name, or log in (hf auth login)"
    except errors.RevisionNotFoundError:
        problem = "the repository has no such revision: check what stands behind @"
    except errors.EntryNotFoundError:
        problem = "the repository has no such file: check the name, or the revision behind @"
    except PLNDError:
        raise
    except Exception as error:  # of the client, and of the library that it speaks HTTP with
        problem = f"the hub's client failed ({' '.join(str(error).split())[:160]}); try again later"
    else:
        return
    raise ArtifactError(f"{name}: {problem}") from None
