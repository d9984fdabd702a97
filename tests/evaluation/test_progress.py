import re

from evaluation import progress


def test_a_log_gets_lines_with_the_time_left(monkeypatch, capsys):
    monkeypatch.setattr(progress, "_LINE_EVERY_SEC", 0.0)
    with progress.progress(3, "embed set", "img", initial=1) as bar:
        for _ in range(2):
            bar.update()
    lines = capsys.readouterr().err.splitlines()
    assert re.search(r"embed set: +67%.* 2/3 \[00:00<00:00, .*img/s\]$", lines[1])
    assert re.search(r"100%.* 3/3 ", lines[-1]) and all("\r" not in line for line in lines)


def test_what_is_quick_leaves_no_line(capsys):
    with progress.progress(3, "embed set", "img") as bar:
        bar.update(3)
    assert capsys.readouterr().err == ""
