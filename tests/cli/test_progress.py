"""Progress lines: few, and with the time left."""

import pytest

from assay.cli.progress import PlainLines, shown
from assay.runs.progress import Progress


def progress(done: int, elapsed: float, total: int = 1000) -> Progress:
    eta = elapsed / done * (total - done) if done else None
    return Progress(done, total, float(done), float(total), elapsed, eta, f"unit-{done}" if done else "")


def lines(capsys: pytest.CaptureFixture[str]) -> list[str]:
    out, err = capsys.readouterr()
    assert out == ""
    return err.splitlines()


def test_a_long_run_says_at_most_a_line_for_each_tenth(capsys: pytest.CaptureFixture[str]) -> None:
    report = PlainLines("trace")
    for done in range(1001):
        report(progress(done, elapsed=3.0 * done))
    said = lines(capsys)
    assert len(said) == 11
    assert said[0] == "trace: 0%, 0 of 1000 units"
    assert said[1] == "trace: 10%, 100 of 1000 units, about 45 min 00 s left"
    assert said[-1] == "trace: 100%, 1000 of 1000 units"


def test_a_short_run_says_at_most_a_line_a_second(capsys: pytest.CaptureFixture[str]) -> None:
    report = PlainLines("trace")
    for done in range(1001):
        report(progress(done, elapsed=0.0025 * done))
    said = lines(capsys)
    assert [line.split()[1] for line in said] == ["0%,", "40%,", "80%,", "100%,"]


def test_quiet_says_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    with shown("trace", quiet=True) as report:
        report(progress(1000, elapsed=9.0))
    assert lines(capsys) == []


def test_a_terminal_gets_a_bar_that_is_cleared(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm")
    with shown("trace", quiet=False) as report:
        report(progress(500, elapsed=10.0))
    said = capsys.readouterr().err
    assert "trace" in said
    assert "50%, 500 of 1000 units, about 10 s left" in said
    assert said.endswith("\x1b[2K")
