"""The trace of chosen steps."""

import gzip
import json

import jax
import pytest

from pipeline.schema import UserError
from trainer import profiling
from trainer import train as train_module
from trainer.configs.base import override
from trainer.profiling import Profile, parse_profile_steps
from trainer.train import train


@pytest.fixture(scope="module")
def small(tiny):
    """An experiment that compiles quickly."""
    changes = ["loss.contrastive_weight=0", "loss.classification_weight=1", "optimizer.kind=adamw", "steps=5"]
    return override(tiny, [*changes, "image.scale_init_by_data=false"])


def losses(workdir):
    return [json.loads(line)["loss"] for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def steps_in(folder):
    """The steps that the one trace below `folder` has events of, in their order, as TensorBoard's plugin reads them."""
    (path,) = folder.glob("plugins/profile/*/*.xplane.pb")
    events = [
        event
        for plane in jax.profiler.ProfileData.from_file(str(path)).planes
        for line in plane.lines
        for event in line.events
    ]
    of_steps = [(event.start_ns, dict(event.stats)["step_num"]) for event in events if event.name == "train"]
    return [step for _, step in sorted(of_steps)]


def test_both_ends_of_the_range_are_profiled():
    assert parse_profile_steps("10-15", 15) == range(10, 16)
    assert parse_profile_steps("1-1", 15) == range(1, 2)


@pytest.mark.parametrize("text", ["15-10", "abc", "0-3", "10", "-5", "3-", "1.5-2", "3-4-5", ""])
def test_a_range_that_is_none_is_refused_before_anything_is_read(text, small, tmp_path):
    with pytest.raises(UserError, match=rf"^--profile-steps {text} is not of the form A-B with 1 <= A <= B \(both st"):
        train(small, data="none", workdir=str(tmp_path), mesh="1x1", profile_steps=text)


def test_steps_that_the_run_does_not_have_are_refused(small, tmp_path):
    with pytest.raises(
        UserError, match="^--profile-steps 4-6 names steps after the last one of this run, which is 5; "
    ):
        train(small, data="none", workdir=str(tmp_path), mesh="1x1", profile_steps="4-6")


def test_a_run_writes_a_trace_that_can_be_read_and_goes_on_as_without(finished, small, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(train_module, "write_encoder", lambda *_: "")
    train(small, data=finished[0], workdir=str(tmp_path), mesh="1x1", profile_steps="2-3")
    (folder,) = (tmp_path / "plugins" / "profile").iterdir()
    assert f"profiled steps 2 to 3: {folder}\n" in capsys.readouterr().out
    assert steps_in(tmp_path) == [2, 3]
    (shown,) = folder.glob("*.trace.json.gz")
    names = {event.get("name") for event in json.loads(gzip.decompress(shown.read_bytes()))["traceEvents"]}
    assert "train" in names
    assert losses(tmp_path) == losses(finished[1])

    # The last checkpoint is that of step 5, and the run is extended.
    longer = override(small, ["steps=7"])
    train(longer, data=finished[0], workdir=str(tmp_path), mesh="1x1", profile_steps="4-5")
    said = capsys.readouterr().out
    assert "nothing is profiled: --profile-steps 4-5 lies before step 6, where this run goes on\n" in said
    assert "profiled steps" not in said and steps_in(tmp_path) == [2, 3]


class Recorder:
    """Stands in for JAX's profiler."""

    def __init__(self, monkeypatch, tmp_path):
        self.calls = []

        def stop():
            (tmp_path / "plugins" / "profile" / "now").mkdir(parents=True)
            self.calls.append("stop")

        monkeypatch.setattr(profiling.jax.profiler, "start_trace", lambda path, **_: self.calls.append(path))
        monkeypatch.setattr(profiling.jax.profiler, "stop_trace", stop)


def run(profile, steps):
    with profile:
        for step in steps:
            profile.begin(step, {})
            profile.end(step, {})


def test_of_a_run_that_goes_on_within_the_range_the_rest_is_profiled(tmp_path, monkeypatch, capsys):
    recorder = Recorder(monkeypatch, tmp_path)
    run(Profile(str(tmp_path), range(10, 16), first_step=12), range(13, 20))
    assert recorder.calls == [str(tmp_path), "stop"]
    assert capsys.readouterr().out == f"profiled steps 13 to 15: {tmp_path}/plugins/profile/now\n"


def test_a_run_that_ends_within_the_range_writes_what_there_is(tmp_path, monkeypatch, capsys):
    recorder = Recorder(monkeypatch, tmp_path)
    run(Profile(str(tmp_path), range(10, 16), first_step=0), range(1, 12))
    assert recorder.calls == [str(tmp_path), "stop"]
    assert capsys.readouterr().out == f"profiled steps 10 to 11: {tmp_path}/plugins/profile/now\n"


def test_without_the_option_and_in_other_processes_nothing_is_profiled(tmp_path, monkeypatch, capsys):
    recorder = Recorder(monkeypatch, tmp_path)
    run(Profile(str(tmp_path), range(0), first_step=3), range(4, 9))
    monkeypatch.setattr(profiling.jax, "process_index", lambda: 1)
    run(Profile(str(tmp_path), range(1, 3), first_step=0), range(1, 9))
    assert (recorder.calls, capsys.readouterr().out) == ([], "")
