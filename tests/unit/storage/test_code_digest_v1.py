"""The digest of format 1 never changes, or results that were stored under it are not found any more."""

from __future__ import annotations

from pathlib import Path

import pytest

from swamp_ray.storage.code_digest_v1 import digest_sources_v1

PROJECT = {
    "v1_mine/__init__.py": "",
    "v1_mine/models/__init__.py": "from .net import Net\n",
    "v1_mine/models/net.py": "import math\nimport numpy\n# a comment\nfrom ..util import helper as h\n",
    "v1_mine/util.py": "helper = 1\r\n",
    "v1_script.py": "import v1_beside\nimport v1_mine.util\ndef make(): ...\n",
    "v1_beside.py": "",
}
DIGESTS = {
    "v1_mine.models.net:Net": "0fc2b9e4860fe7d2bcd1aa3f9879f55285c1fefddaed58bbecffa9a525905bf6",
    "v1_mine.models:Net": "0fc2b9e4860fe7d2bcd1aa3f9879f55285c1fefddaed58bbecffa9a525905bf6",
    "v1_script:make": "745702808f2aba991076760cc5b752ff06342d9b38a6230da7d8b185879d63e0",
    "v1_mine.util:helper": "2a79ecb201775aa519137acf8653e9c7169c7ea68a4ed49abbe1c439dfbde22a",
}


@pytest.mark.parametrize("path", DIGESTS)
def test_the_digests_of_format_1_stay_as_they_were(path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, text in PROJECT.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(text.encode())
    monkeypatch.syspath_prepend(str(tmp_path))
    assert digest_sources_v1(path) == {"source": DIGESTS[path]}
