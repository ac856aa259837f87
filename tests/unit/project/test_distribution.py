"""How the test files are given to several processes."""

import pytest

from tests.lab.distribution import LONGEST_FIRST, ROOT


@pytest.mark.parametrize("path", [path for group in LONGEST_FIRST for path in group])
def test_each_file_and_directory_of_a_group_exists(path: str) -> None:
    assert (ROOT / path).is_dir() if path.endswith("/") else (ROOT / path).is_file()
