"""The lines of `qmp-agent explain`."""

from agent.cli.explain import explanation_lines

HEAD = {"name": "db-1", "uuid": "u", "state": "up"}


def test_causes_are_numbered_and_a_healthy_vm_has_one_sentence() -> None:
    causes = [{"cause": "a", "sentence": "One."}, {"cause": "b", "sentence": "Two."}]
    lines = [*explanation_lines({**HEAD, "summary": "One.", "causes": causes})]
    assert lines == ["db-1 (u), monitor up", "1. One.  [a]", "2. Two.  [b]"]
    assert [*explanation_lines({**HEAD, "summary": "Nothing.", "causes": []})] == ["db-1 (u), monitor up", "Nothing."]


def test_a_name_cannot_control_the_terminal() -> None:
    hostile = {**HEAD, "name": "db\x1b[31m", "summary": "x\ny", "causes": []}
    assert [*explanation_lines(hostile)] == ["db\ufffd[31m (u), monitor up", "x\ufffdy"]
