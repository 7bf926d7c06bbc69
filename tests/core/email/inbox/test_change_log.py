"""The names of changed messages reach every reader of the folder, or it is told to compare all of them."""

import secrets
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from openviper.core.email.inbox.change_log import ChangeLog

A, B, C = ("a" * 16, "b" * 16, "c" * 16)


def test_each_reader_gets_what_was_added_since_its_last_call(tmp_path: Path) -> None:
    path = tmp_path / "changes"
    log, early, late = ChangeLog(path), ChangeLog(path), ChangeLog(path)
    assert early.read() is None  # there is no file yet
    log.append([A])
    assert early.read() is None  # it may have had other names before
    assert early.read() == set()
    early.append([B])
    log.append([C, A])
    assert early.read() == {A, B, C}
    assert late.read() is None
    log.append([A])
    assert (late.read(), early.read()) == ({A}, {A})
    path.unlink()
    assert (late.read(), late.read()) == (None, None)
    log.append([A])
    assert (late.read(), late.read()) == (None, set())


def test_a_line_that_is_being_written_is_read_when_it_is_complete(tmp_path: Path) -> None:
    path = tmp_path / "changes"
    log = ChangeLog(path)
    log.append([A])
    log.read()
    with path.open("ab") as file:
        file.write(B.encode()[:9])
        file.flush()
        assert log.read() == set()
        file.write(B.encode()[9:] + b"\n")
    assert log.read() == {B}


def test_a_long_log_is_replaced_and_no_name_is_lost_meanwhile(tmp_path: Path) -> None:
    path = tmp_path / "changes"

    def use(_thread: int) -> int:
        log, reader, restarts = ChangeLog(path), ChangeLog(path), 0
        for _ in range(20):
            names = {secrets.token_hex(8) for _ in range(3000)}
            log.append(names)
            found = reader.read()
            assert found is None or names <= found
            restarts += found is None
        return restarts

    with ThreadPoolExecutor(4) as threads:
        restarts = [*threads.map(use, range(4))]
    assert 4 < sum(restarts) < 60
    assert path.stat().st_size < 1.3 * 2**20
