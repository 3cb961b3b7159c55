"""The closing table: a few figures of what was made."""

from pipeline.view.tables import key_figures


def test_named_held_out_sets_have_a_line_each() -> None:
    moved = {
        "loss": [0.693, 0.6],
        "eval/loss": [0.6931, 0.65],
        "eval/rewards/accuracies": [0.0, 0.75],
        "eval/rewards/margins": [0.0, 0.2],
        "eval/helpful/loss": [0.6931, 0.61],
        "eval/helpful/rewards/accuracies": [0.0, 0.8125],
        "eval/helpful/rewards/margins": [0.0, 0.3],
        "eval/org/set/loss": [0.6931, 0.7],
    }
    facts = {"steps": 6, "before and after": moved, "best": {"step": 4, "eval/helpful/loss": 0.61}, "without_margin": 3}
    assert list(key_figures(facts)) == [
        "without margin 3",
        "loss 0.693 -> 0.6",
        "eval loss 0.693 -> 0.65",
        "accuracy 0 -> 0.75",
        "margin 0 -> 0.2",
        "best: step 4 eval/helpful/loss 0.61",
        "helpful: loss 0.693 -> 0.61, accuracy 0 -> 0.812",
        "org/set: loss 0.693 -> 0.7",
    ]
