"""The token cache among several processes, and in folders that are shared or may not be written."""

import json
import os
import stat
import threading
import warnings
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from madclip.errors import DataError, MadCLIPWarning
from madclip.training.cache import TokenCache, default_folder

NOBODY = 65534
TOKENS = torch.arange(1024.0)


@pytest.fixture
def cache(tmp_path):
    cache = TokenCache(tmp_path / "tokens")
    cache.store("a", TOKENS)
    return cache


@pytest.fixture
def as_nobody(tmp_path):
    """A block in which this process may only do what modes allow; root may do everything."""
    if not hasattr(os, "geteuid"):
        pytest.skip("permissions of POSIX")

    @contextmanager
    def nobody():
        root = os.geteuid() == 0
        if root:
            own = 3 if "PYTEST_XDIST_WORKER" in os.environ else 2  # workers have a folder each
            for folder in (tmp_path, *tmp_path.parents[:own]):
                folder.chmod(0o755)
            os.seteuid(NOBODY)
        try:
            yield
        finally:
            if root:
                os.seteuid(0)

    return nobody()


def mode(path):
    return stat.S_IMODE(path.stat().st_mode)


def test_files_that_another_process_removes_meanwhile_are_no_error(cache, monkeypatch):
    cache.store("b", TOKENS)
    listed = sorted(cache.folder.glob("*.safetensors"))
    listed[0].unlink()
    monkeypatch.setattr(Path, "iterdir", lambda *_: iter(listed))
    assert cache.entries() == [listed[1]]
    assert cache.size() == listed[1].stat().st_size
    assert cache.load("a") is None
    assert cache.clear() > 0


def test_tokens_outlive_their_file(cache):
    found = cache.load("a")
    cache.clear()
    assert torch.equal(found, TOKENS)


def test_many_at_once(tmp_path):
    """Eviction and clearing beside reading and writing: whatever is read is whole."""
    size = 4096 * 4 + 1000
    TokenCache(tmp_path).limit = 4 * size
    errors = []

    def work(number):
        own = TokenCache(tmp_path)
        try:
            for turn in range(60):
                key = (number + turn) % 8
                own.store(str(key), torch.full((4096,), float(key)))
                found = own.load(str((key + 3) % 8))
                assert found is None or bool((found == (key + 3) % 8).all())
                if number == 0 and turn % 7 == 0:
                    own.clear()
                own.size()
        except BaseException as error:  # noqa: BLE001  (a thread's own errors are lost)
            errors.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert TokenCache(tmp_path).size() <= 4 * size
    assert {path.suffix for path in tmp_path.iterdir()} <= {".safetensors", ".json"}


def test_a_folder_that_may_not_be_written_is_read_with_one_warning(cache, as_nobody):
    cache.folder.chmod(0o555)
    next(cache.folder.glob("a.*")).chmod(0o444)
    reading = TokenCache(cache.folder)
    with as_nobody, warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        assert torch.equal(reading.load("a"), TOKENS)
        reading.store("b", TOKENS)
        reading.store("c", TOKENS)
        with pytest.raises(DataError, match="MADCLIP_CACHE"):
            reading.clear()
        with pytest.raises(DataError, match="MADCLIP_CACHE"):
            reading.limit = 5
    (warning,) = said
    assert warning.category is MadCLIPWarning
    assert "\n" not in str(warning.message)
    assert "read but not kept" in str(warning.message)
    assert "MADCLIP_CACHE" in str(warning.message)
    assert [path.name for path in cache.folder.iterdir()] == ["a.safetensors"]
    assert mode(cache.folder) == 0o555


def test_a_folder_of_somebody_else_holds_nothing_for_us(cache, as_nobody):
    with as_nobody:
        other = TokenCache(cache.folder)
        assert other.load("a") is None
        for ask in (other.entries, other.size, other.clear):
            with pytest.raises(
                DataError, match=r"the token cache cannot be \w+ \(Permission denied\); set MADCLIP_CACHE"
            ):
                ask()
        with pytest.warns(MadCLIPWarning, match="Permission denied"):
            other.store("b", TOKENS)
    assert cache.load("a") is not None


def test_a_home_that_cannot_be_written_stops_no_fit(monkeypatch, as_nobody):
    for name in ("MADCLIP_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", "/")
    with as_nobody:
        cache = TokenCache()
        assert cache.folder == default_folder()
        assert cache.folder.is_relative_to("/.cache") or not cache.folder.is_relative_to("/root")
        assert cache.load("a") is None
        with pytest.warns(MadCLIPWarning, match="MADCLIP_CACHE"):
            cache.store("a", TOKENS)


@pytest.mark.parametrize(("folder", "after", "file"), [(0o755, 0o700, 0o600), (0o775, 0o775, 0o640)])
def test_tokens_are_private_unless_the_folder_is_shared(tmp_path, folder, after, file):
    made = tmp_path / "tokens"
    made.mkdir()
    made.chmod(folder)
    cache = TokenCache(made)
    cache.store("a", TOKENS)
    assert mode(made) == after
    assert [mode(path) for path in cache.entries()] == [file]


def test_a_full_disk_is_told_with_what_to_do(cache, monkeypatch):
    def fail(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("safetensors.torch.save_file", fail)
    with pytest.raises(DataError, match=r"No space left on device.*free some space"):
        cache.store("b", TOKENS)
    assert [path.name for path in cache.folder.iterdir()] == ["a.safetensors"]


def test_what_a_killed_process_left_is_cleared(cache):
    left = cache.folder / ".b.safetensors.0123456789abcdef.partial"
    left.write_bytes(b"half")
    assert cache.entries() == [cache.folder / "a.safetensors"]
    cache.clear()
    assert not left.exists()


def test_a_limit_that_is_not_ours_to_read_or_damaged(cache):
    from madclip.errors import CheckpointError

    cache.limit = 10**6
    assert json.loads((cache.folder / "limit.json").read_text()) == {"bytes": 10**6}
    (cache.folder / "limit.json").write_text("{")
    with pytest.raises(CheckpointError, match="delete the file"):
        _ = cache.limit
