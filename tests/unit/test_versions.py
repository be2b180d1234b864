from __future__ import annotations

import pytest

from outstation.errors import InvalidNameError
from outstation.models.versions import checked_version, is_prerelease, is_version, newest_first


def test_versions_sort_as_the_specification_orders_them():
    ordered = [
        *("1.0.0-alpha", "1.0.0-alpha.1", "1.0.0-alpha.beta", "1.0.0-beta", "1.0.0-beta.2", "1.0.0-beta.11"),
        *("1.0.0-rc.1", "1.0.0", "1.0.1", "1.2.0", "1.10.0", "2.0.0"),
    ]
    assert newest_first(sorted(ordered)) == tuple(reversed(ordered))


@pytest.mark.parametrize(
    "text",
    [
        *("", "1", "1.2", "v1.2.3", "1.2.3.4", "01.2.3", "1.2.3+7", "1.2.3-", "1.2.3-01", "1.2.3-a..b", "1.2.-3"),
        *("1.2.3\n", "1.2.3-a/b", "1.2.3-" + "a" * 80, "\uff11.2.3"),
    ],
)
def test_what_is_no_version_is_refused_with_an_example(text):
    assert not is_version(text)
    with pytest.raises(InvalidNameError) as caught:
        checked_version(text)
    assert "1.2.0" in caught.value.hint


def test_a_prerelease_is_known_by_its_dash():
    assert is_prerelease("2.0.0-rc.1")
    assert not is_prerelease("2.0.0")
