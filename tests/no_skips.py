"""Every test runs: one that skips, or is expected to fail, fails."""

import pytest


def _failed_if_left_out(report):
    if report.skipped or hasattr(report, "wasxfail"):
        report.outcome = "failed"
        report.longrepr = f"Every test must run, and pass. {report.nodeid} was to be left out:\n{report.longrepr}"
        report.__dict__.pop("wasxfail", None)
    return report


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_makereport():
    return _failed_if_left_out((yield))


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_make_collect_report():
    return _failed_if_left_out((yield))
