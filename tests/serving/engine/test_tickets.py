"""What a ticket says of its work."""

from ray_dit.serving.engine.tickets import preview_steps


def test_preview_steps_are_spread_and_never_the_last():
    assert preview_steps(12, 3) == {3, 6, 9}
    assert preview_steps(2, 10) <= {1}
    assert preview_steps(1, 3) == frozenset()
    assert preview_steps(50, 0) == frozenset()
