"""Where something takes long, a line says so on stderr, and nothing is said where it does not."""

from kdrun.core import counting


def test_items_that_take_long_are_counted_now_and_again(monkeypatch, capsys):
    def lines(seconds: float) -> list[str]:
        passed = 0.0
        monkeypatch.setattr(counting.time, "monotonic", lambda: passed)
        for item in counting.counted(range(10), "composing"):
            assert item == round(passed / seconds)
            passed += seconds
        return capsys.readouterr().err.splitlines()

    assert lines(0.3) == []
    assert lines(5.0) == [f"composing, {done} of 10, about {left} s left" for done, left in [(2, 40), (5, 25), (8, 10)]]
