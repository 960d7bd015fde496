"""Damaged files of every kind end in a result or in one line, within the time and memory that the docs state."""

import pytest

from tests.fuzz import campaign


def assert_no_failures(report: campaign.Report) -> None:
    failed = [f"--repeat {f.target} {f.seed} ({f.reader}): {f.outcome}\n{f.message}" for f in report.failures]
    assert not failed, "\n".join(failed)


def test_a_sample_of_damaged_files():
    report = campaign.run(
        180, readers=("torch", "safetensors", "keras", "tflite", "tensorflow", "archives", "annotations", "exports")
    )
    assert_no_failures(report)
    assert report.total("read") > 5  # otherwise the damage is so large that only the first check is tested
    assert report.total("refused") > 75


@pytest.mark.slow
def test_many_damaged_files_of_every_kind():
    report = campaign.run(10_000, seed=1)
    assert_no_failures(report)
    assert {reader for reader, _ in report.counts} == set(campaign.WEIGHTS)
