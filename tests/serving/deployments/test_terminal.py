"""Lines of replicas in the terminal."""

from ray_dit.serving.deployments.terminal import show


def test_lines_of_json_are_shown_as_they_are_and_all_of_them(capsys):
    others = []
    line = '{"request_id": "a", "path": "/"}'
    lines = ["model m: ready", line, line, "{no json", "[1]", ""]
    show({"lines": lines, "pid": 7, "is_err": True}, others.append)
    assert capsys.readouterr().err == f"{line}\n{line}\n"
    assert others == [{"lines": ["model m: ready", "{no json", "[1]", ""], "pid": 7, "is_err": True}]


def test_ray_is_told_nothing_where_all_is_json(capsys):
    others = []
    show({"lines": ["{}"], "pid": 7, "is_err": True}, others.append)
    assert (capsys.readouterr().err, others) == ("{}\n", [])
