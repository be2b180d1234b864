"""A model that comes from the hub over a link that breaks."""

from __future__ import annotations

import hashlib

from cutting_link import CuttingLink
from hub_parts import hub_provider, hub_settings
from outstation.errors import LinkError
from outstation.models.bundle import describe_file
from outstation.models.fetch import Download, Expected
from outstation.models.sources import open_source
from outstation_hub import Hub

MB = 1_000_000


def test_a_link_cut_every_three_megabytes_costs_little(tmp_path):
    """A piece of 256 KiB is lost with each cut. The link is slower than the reader, as links are that break."""
    data = hashlib.sha512(b"seed").digest() * (14 * MB // 64)
    repository = tmp_path / "repository"
    repository.mkdir()
    (repository / "f").write_bytes(data)
    entry = describe_file(repository, "f")
    expected = Expected("f", entry.sha256, entry.size_bytes, entry.chunk_bytes, entry.chunks)
    with Hub(hub_settings(tmp_path, repository=str(repository))) as hub:
        link = CuttingLink(int(hub.address.rpartition(":")[2]))
        link.cut, link.bytes_per_second = 3 * MB, 10 * MB
        provider = hub_provider(f"127.0.0.1:{link.port}", tmp_path)
        download = Download(open_source("hub:", provider.artifacts), "f", tmp_path / "part", expected)
        tries = 0
        while True:
            tries += 1
            try:
                download.run(5.0)
                break
            except LinkError:
                assert tries < 40
        provider.close()
        link.close()
    assert (tmp_path / "part").read_bytes() == data
    assert link.bytes_down <= 1.05 * len(data)
