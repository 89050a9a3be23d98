"""What few bits cost: the bundles that are compared, and the table."""

from star_export.evaluation.few_bits import WeightsReport, few_bits, few_bits_section
from star_export.evaluation.statistics import Estimate, Score


def test_whole_weights_come_first_and_each_is_pruned_too() -> None:
    found = few_bits("float16", ("int8", "int4"), 576)
    assert [weights.name for weights in found] == [
        "float16, unpruned", "int8, unpruned", "int4, unpruned",
        "float16, 64 tokens", "int8, 64 tokens", "int4, 64 tokens",
    ]  # fmt: skip
    assert [weights.quantize for weights in found[:3]] == [None, "int8", "int4"]
    assert few_bits("float32", (), 576) == []


def test_the_table() -> None:
    whole, few, *_ = few_bits("float32", ("int4",), 576)
    right, kept = Estimate(0.979, 0.961, 0.993), Estimate(0.996, 0.985, 1.011)

    def score(retention: Estimate | None) -> Score:
        return Score(accuracy=right, retention=retention, kinds={}, prefill_ms=1.0)

    reports = [
        WeightsReport(weights=whole, bytes=11_700_000, block=None, score=score(None)),
        WeightsReport(weights=few, bytes=2_500_000, block=128, score=score(kept)),
    ]
    section = "\n".join(few_bits_section(reports)).splitlines()
    assert section[0] == "## Few bits"
    assert section[-4:] == [
        "| weights | visual tokens | MB | accuracy % | of float32, unpruned, % |",
        "| --- | --- | --- | --- | --- |",
        "| float32 | all | 11.7 | 97.9 (96.1 to 99.3) |  |",
        "| int4 | all | 2.5 | 97.9 (96.1 to 99.3) | 99.6 (98.5 to 101.1) |",
    ]
    assert list(few_bits_section(())) == []
