"""scripts/follow_readme.py: its hub serves the hub's own client, and it types what a README has, as it stands there."""

from __future__ import annotations

import json
import re
import subprocess

import pytest
from huggingface_hub import HfApi, HfFileSystem, hf_hub_download
from huggingface_hub.errors import RepositoryNotFoundError

from lm_eval_plnd.rows.sources import last_texts
from programs import script

module = script("follow_readme")
BLOCKS = """
```sh
for x in a b; do echo $x >> typed; done
```

```python
numbers = [1, 2]
```

```
not typed
```

```python
open("typed", "a").write(f"{numbers}\\n")
```

```sh
[ -n "$HF_ENDPOINT" ] && echo last >> typed
```
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A model's folder, and one of corpora."""
    made = tmp_path_factory.mktemp("readme")
    (made / "model").mkdir()
    (made / "model" / "config.json").write_text("{}")
    (made / "corpora").mkdir()
    for language in ("zh", "en"):
        lines = (json.dumps({"text": f"{language} {number}"}) + "\n" for number in range(9))
        (made / "corpora" / f"{language}.jsonl").write_text("".join(lines))
    return made


def test_the_hub(folder, tmp_path, monkeypatch):
    """The hub's own client lists, downloads, reads the end of a file, and hears which names are not there."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    with module.hub(folder / "model", folder / "corpora", 5, tmp_path / "corpus") as address:
        api = HfApi(address, token=False)
        assert [found.path for found in api.list_repo_tree(module.MODEL)] == ["config.json"]
        file = hf_hub_download(module.MODEL, "config.json", endpoint=address, cache_dir=tmp_path, token=False)
        assert open(file).read() == "{}"
        with pytest.raises(RepositoryNotFoundError):
            api.model_info("google/other")
        assert api.dataset_info(module.CORPUS).sha == module.COMMIT
        card = hf_hub_download(
            module.CORPUS, "README.md", repo_type="dataset", endpoint=address, cache_dir=tmp_path, token=False
        )
        assert "20231101.zh/*.parquet" in open(card).read()
        files = HfFileSystem(endpoint=address, token=False, skip_instance_cache=True)
        monkeypatch.setattr("fsspec.core.url_to_fs", lambda source: (files, source))
        assert last_texts(f"datasets/{module.CORPUS}/20231101.zh", 2) == ["zh 3", "zh 4"]


def repository(folder, blocks: str):
    """A repository of git with nothing but a README."""
    folder.mkdir()
    (folder / "README.md").write_text(blocks)
    own = ["-c", "user.name=x", "-c", "user.email=x@x"]
    for command in (["init", "-q"], ["add", "README.md"], [*own, "commit", "-q", "-m", "x"]):
        subprocess.run(["git", *command], cwd=folder, check=True)
    return folder


def test_blocks_are_typed_in_order(tmp_path):
    """Shell as it stands, all Python as one program where its first block is, nothing else; each has its minutes."""
    (tmp_path / "new").mkdir()
    reader = module.Reader(tmp_path / "new", "http://localhost:1", repository(tmp_path / "source", BLOCKS))
    done = list(module.follow(reader))
    assert (reader.clone / "typed").read_text() == "a\nb\n[1, 2]\nlast\n"
    assert [name.partition(" ")[0] for name, _ in done] == ["for", "Python,", "["]
    assert all(re.fullmatch(r" +0\.\d minutes \(\d\.\d of processors\)", took) for _, took in done)


def test_a_block_that_fails_ends_it(tmp_path):
    """In a pipe, too."""
    (tmp_path / "new").mkdir()
    source = repository(tmp_path / "source", "```sh\nfalse | true\ntouch after\n```\n")
    reader = module.Reader(tmp_path / "new", "http://localhost:1", source)
    with pytest.raises(subprocess.CalledProcessError):
        list(module.follow(reader))
    assert not (reader.clone / "after").exists()
