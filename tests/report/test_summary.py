from dataclasses import replace

from report.results import conversion, dear, layer, plan
from report.test_terminal import joined, shown

from spdexport.planning import FormChoice, Gain, Objective, PlanOptions, Weighed
from spdexport.report import summary

AUTO = PlanOptions(form=FormChoice.AUTO)


def automatic(*layers, **options):
    """A plan whose forms were weighed."""
    return replace(plan(*layers), options=replace(AUTO, **options), cost="MACs in lanes of 16", unit="MACs")


def dense(name, *, gain):
    weighed = (Weighed(form="dense", components=None, cost=1.0), Weighed(form="factorized", components=4, cost=2.0))
    return layer(name, form="dense", kept=None, macs_after=295_000, params_after=4640, weighed=weighed, gain=gain,
                 reason="dense is cheapest")  # fmt: skip


NOTHING = Gain(rank=30, macs=295_000, paying_rank=None, paying_error=None)
SOMETHING = Gain(rank=10, macs=100_000, paying_rank=20, paying_error=0.0125)


def test_that_exact_forms_gain_nothing_is_said_with_the_numbers():
    said = summary.gains(automatic(dense("a", gain=NOTHING), dense("b", gain=NOTHING)))
    assert said == [
        (
            "Exact pruning gains nothing here: every layer is cheapest dense "
            "(a 4 live, break-even 6, b 4 live, break-even 6)."
        ),
        "--energy 0.999 would gain nothing either.",
    ]


def test_what_an_approximation_would_gain():
    said = summary.gains(automatic(dense("a", gain=NOTHING), dense("b", gain=SOMETHING)))
    assert said[1] == "--energy 0.999 would come to 395 k MACs: an approximation, which you have to allow."
    assert said[2] == "--max-error begins to make layers cheaper at b 0.0125 (rank 20)."


def test_nothing_is_said_where_nothing_was_weighed():
    assert summary.gains(plan(layer("a"))) == []
    assert summary.reasons(plan(layer("a")), [layer("a")]) == []
    assert summary.how_chosen(plan(layer("a"))) == ""


def test_what_was_measured_may_have_more_macs():
    assert summary.dearer(plan(dear("a")), verbose=False).startswith("This costs more than the dense model.")
    assert summary.dearer(automatic(dear("a"), optimize_for=Objective.LATENCY), verbose=False) == ""


def test_each_layer_has_its_reason(tmp_path):
    (tmp_path / "m.onnx").write_bytes(bytes(1000))
    made = layer("b", form="recompressed", kept=12, reason="rank 12 of 32")
    result = replace(conversion(outputs=[tmp_path / "m.onnx"]), plan=automatic(dense("a", gain=NOTHING), made))
    text = joined(shown(result))
    assert (
        "forms: the cheapest form of each layer, counted in MACs in lanes of 16 a: dense is cheapest b: rank 12" in text
    )
    assert " rank 12 " in text
    assert "Exact pruning gains nothing" not in text


def test_a_file_that_auto_makes_larger_is_told_with_what_chooses_by_size(tmp_path):
    file = tmp_path / "m.onnx"
    file.write_bytes(bytes(5_700))

    def said(**options):
        larger = conversion(layer(params_after=5_700), outputs=[file])
        return joined(shown(replace(larger, plan=replace(larger.plan, options=PlanOptions(**options)))))

    told = "It is larger than with dense layers: forms were chosen by MACs. --optimize-for params chooses by size."
    assert told in said(form=FormChoice.AUTO)
    assert told not in said(form=FormChoice.AUTO, optimize_for=Objective.PARAMS)
    assert told not in said()
