"""Checkpoints of a state of a few numbers; test_faults.py has those of whole runs."""

import shutil
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pipeline.schema import UserError
from trainer import checkpoints as checkpoints_module
from trainer.checkpoints import (
    Checkpoints,
    NotFiniteError,
    check_architecture,
    check_finite,
    read_params,
    stored_params,
)
from trainer.mesh import make_mesh, state_shardings
from trainer.state import State


def state_of(number, rows=6):
    """A state of 20 + 8 x rows bytes whose numbers tell it from others."""
    kernel = jnp.full((2, 2), number, jnp.float32)
    params = {"image": {"kernel": kernel}, "class_vectors": number + jnp.arange(rows, dtype=jnp.float32)[:, None]}
    return State(params=params, opt_state={"mu": {"class_vectors": -params["class_vectors"]}, "count": jnp.int32(7)})


def abstract(mesh=(1, 1), rows=6):
    """The shapes of a state, sharded over a mesh."""
    state = jax.eval_shape(lambda: state_of(0, rows))
    return jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        state,
        state_shardings(make_mesh(*mesh), state),
    )


def assert_equal(state, expected):
    jax.tree.map(np.testing.assert_array_equal, state, expected)


@pytest.fixture
def kept(tmp_path):
    """The checkpoints of a run that keeps two; it has saved the steps 3 and 5."""
    checkpoints = Checkpoints(str(tmp_path), 2)
    for step in (3, 5):
        checkpoints.save(step, state_of(step))
    checkpoints.wait()
    yield checkpoints
    checkpoints.close()


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_the_last_checkpoints_are_kept_and_the_latest_is_restored(kept, tmp_path):
    kept.save(8, state_of(8))
    kept.wait()
    assert names(tmp_path / "checkpoints") == ["5", "8"] and kept.latest_step() == 8
    step, state = kept.restore_latest(abstract())
    assert step == 8
    assert_equal(state, state_of(8))


def test_without_checkpoints_nothing_is_restored(tmp_path):
    checkpoints = Checkpoints(str(tmp_path), 2)
    assert checkpoints.restore_latest(abstract()) is None and checkpoints.latest_step() is None
    checkpoints.close()


@pytest.mark.parametrize(("mesh", "rows"), [((2, 4), 8), ((1, 5), 5)])
def test_another_mesh_gets_its_shards_and_its_rows_of_padding(kept, mesh, rows):
    _, state = kept.restore_latest(abstract(mesh, rows))
    vectors = state.params["class_vectors"]
    expected = np.zeros((8, 1))
    expected[:6, 0] = 5 + np.arange(6)
    np.testing.assert_array_equal(vectors, expected[:rows])
    np.testing.assert_array_equal(state.opt_state["mu"]["class_vectors"], -expected[:rows])
    assert {shard.data.shape for shard in vectors.addressable_shards} == {(1, 1)}


def test_a_disk_without_room_for_a_checkpoint_is_named_before_it_is_written(kept, tmp_path, monkeypatch):
    state = abstract(rows=10**9)  # a kernel of 16 bytes, a count of 4, and vectors and moments of 4 GB each
    looked_at = []

    def with_free(count):
        def disk_usage(path):
            looked_at.append(path)
            return SimpleNamespace(free=count)

        monkeypatch.setattr(checkpoints_module.shutil, "disk_usage", disk_usage)

    with_free(8 * 10**9 + 20)
    kept.check_room(state)
    with_free(8 * 10**9 + 19)
    message = f"--workdir {tmp_path} has 8.00 GB free, but a checkpoint needs 8.00 GB; free some space, or choose "
    with pytest.raises(UserError) as refused:
        kept.check_room(state)
    assert str(refused.value) == message + "another --workdir"
    assert set(looked_at) == {str(tmp_path)}
    with_free(67)  # one byte less than the small state has
    with pytest.raises(UserError, match="has 0.00 GB free"):
        kept.save(8, state_of(8))
    kept.wait()
    assert names(tmp_path / "checkpoints") == ["3", "5"]


def with_infinity(state):
    return state.replace(params={**state.params, "image": {"kernel": jnp.asarray([[1.0, 2.0], [jnp.inf, 4.0]])}})


def test_a_state_that_is_not_finite_is_not_saved(kept, tmp_path):
    with pytest.raises(NotFiniteError, match="^params/image/kernel is not finite$") as refused:
        kept.save(8, with_infinity(state_of(8)))
    assert refused.value.path == "params/image/kernel"
    kept.wait()
    assert names(tmp_path / "checkpoints") == ["3", "5"]
    check_finite(state_of(8))


def damage(checkpoint):
    for path in checkpoint.rglob("_METADATA"):
        path.write_bytes(path.read_bytes()[:10])


def test_a_damaged_checkpoint_is_moved_away_and_the_one_before_it_restored(kept, tmp_path, capsys):
    damage(tmp_path / "checkpoints" / "5")
    (tmp_path / "damaged_checkpoints" / "5").mkdir(parents=True)
    (tmp_path / "damaged_checkpoints" / "5" / "of_before").write_text("")
    step, state = kept.restore_latest(abstract())
    assert step == 3
    assert_equal(state, state_of(3))
    said = capsys.readouterr().out
    assert said.startswith(f"warning: checkpoint {tmp_path}/checkpoints/5 is not good (")
    assert said.endswith(f"); it is moved to {tmp_path}/damaged_checkpoints, and the one before it is used\n")
    assert names(tmp_path / "checkpoints") == ["3"] and kept.latest_step() == 3
    assert names(tmp_path / "damaged_checkpoints") == ["5"]
    assert not (tmp_path / "damaged_checkpoints" / "5" / "of_before").exists()


def test_the_fault_of_a_checkpoint_is_said_in_a_line_of_at_most_200_characters(kept, monkeypatch, capsys):
    def fail(*_, **__):
        raise RuntimeError("x\n" + "y" * 300)

    monkeypatch.setattr(kept._manager, "restore", fail)
    with pytest.raises(UserError):
        kept.restore_latest(abstract())
    assert f"checkpoints/5 is not good (RuntimeError: x {'y' * 198}); it is moved" in capsys.readouterr().out


def test_only_the_first_process_moves_a_checkpoint_and_all_wait_for_it(kept, tmp_path, monkeypatch):
    waited = []
    monkeypatch.setattr(checkpoints_module, "wait_for_all", waited.append)
    monkeypatch.setattr(checkpoints_module.jax, "process_index", lambda: 1)
    kept._move_away(5)
    assert names(tmp_path / "checkpoints") == ["3", "5"] and waited == ["damaged_5", "moved_5"]
    monkeypatch.setattr(checkpoints_module.jax, "process_index", lambda: 0)
    kept._move_away(5)
    assert names(tmp_path / "checkpoints") == ["3"] and kept.latest_step() == 3


def test_where_no_checkpoint_is_good_the_run_ends(kept, tmp_path):
    for step in (3, 5):
        damage(tmp_path / "checkpoints" / str(step))
    with pytest.raises(UserError) as refused:
        kept.restore_latest(abstract())
    assert str(refused.value) == (
        f"{tmp_path}/checkpoints holds no good checkpoint; 2 are in {tmp_path}/damaged_checkpoints; choose another "
        "--workdir, or give the same command again to start from the beginning"
    )
    assert names(tmp_path / "damaged_checkpoints") == ["3", "5"]


def test_a_checkpoint_of_another_architecture_stays_and_names_what_differs(kept, tmp_path):
    other = abstract()
    other = other.replace(params={**other.params, "image": {"kernel": jnp.zeros((2, 3)), "bias": jnp.zeros(3)}})
    with pytest.raises(UserError) as refused:
        kept.restore_latest(other)
    assert str(refused.value) == (
        f"checkpoint {tmp_path}/checkpoints/5 is of another architecture (image/bias: absent there, (3,) here; "
        "image/kernel: (2, 2) there, (2, 3) here); use the version of the code that wrote it, or choose another "
        "--workdir"
    )
    assert names(tmp_path / "checkpoints") == ["3", "5"]


def test_a_checkpoint_of_another_optimiser_stays_and_names_what_differs(kept, tmp_path):
    other = abstract()
    count = other.opt_state["count"]
    with pytest.raises(UserError) as refused:
        kept.restore_latest(other.replace(opt_state={**other.opt_state, "rate": count}))
    assert str(refused.value) == (
        f"checkpoint {tmp_path}/checkpoints/5 is of another optimiser, or of another version of it (of its state, rate "
        "is only here); use the version of the code that wrote it, or choose another --workdir: --set init_from= "
        "begins there with its parameters"
    )
    with pytest.raises(UserError, match="of its state, count is only there"):
        kept.restore_latest(other.replace(opt_state={"mu": other.opt_state["mu"]}))
    assert names(tmp_path / "checkpoints") == ["3", "5"]


def test_the_architecture_is_that_of_the_parameters_without_the_class_vectors(kept, tmp_path):
    path = str(tmp_path / "checkpoints" / "5")
    check_architecture(path, state_of(0, rows=8).params)
    check_architecture(path, {"image": {"kernel": jnp.zeros((2, 2))}})
    damage(tmp_path / "checkpoints" / "5")
    check_architecture(path, {"another": jnp.zeros(1)})  # to read it fails later


def test_a_run_without_classifier_has_checkpoints_too(tmp_path):
    checkpoints = Checkpoints(str(tmp_path), 1)
    state = State(params={"image": {"kernel": jnp.ones((2, 2))}}, opt_state={"count": jnp.int32(1)})
    checkpoints.save(1, state)
    checkpoints.wait()
    step, restored = checkpoints.restore_latest(state)
    assert step == 1
    assert_equal(restored, state)
    checkpoints.close()


def test_the_parameters_alone_are_read_as_arrays_of_numpy(kept, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    stored = stored_params("checkpoints/5")
    assert stored["class_vectors"].shape == (6, 1) and stored["image"]["kernel"].dtype == np.float32
    params = read_params("checkpoints/5")
    assert_equal(params, state_of(5).params)
    assert all(type(leaf) is np.ndarray for leaf in jax.tree.leaves(params))


def test_parameters_are_read_by_this_process_alone(kept, tmp_path, monkeypatch):
    made, given = [], []
    ocp = checkpoints_module.ocp
    options, checkpointer = ocp.options.MultiprocessingOptions, ocp.Checkpointer
    monkeypatch.setattr(ocp.options, "MultiprocessingOptions", lambda **named: made.append(named) or options(**named))
    monkeypatch.setattr(ocp, "Checkpointer", lambda *them, **named: given.append(named) or checkpointer(*them, **named))
    read_params(str(tmp_path / "checkpoints" / "5"))
    alone = {"primary_host": 0, "active_processes": {0}, "barrier_sync_key_prefix": "read_params"}
    assert made[0] == alone  # Orbax makes others
    assert given == [{"multiprocessing_options": options(**alone)}]


def test_parameters_that_cannot_be_read_or_are_not_finite_are_named(kept, tmp_path, monkeypatch):
    shutil.rmtree(tmp_path / "checkpoints" / "3" / "default")
    path = str(tmp_path / "checkpoints" / "3")
    with pytest.raises(UserError) as refused:
        read_params(path)
    assert str(refused.value).startswith(f"checkpoint {path} cannot be read (FileNotFoundError: ")
    assert str(refused.value).endswith("); if the run goes on, it was perhaps deleted for a later one: choose that one")
    monkeypatch.setattr(checkpoints_module, "check_finite", lambda state: None)
    kept.save(8, with_infinity(state_of(8)))
    kept.wait()
    path = str(tmp_path / "checkpoints" / "8")
    with pytest.raises(UserError) as refused:
        read_params(path)
    assert str(refused.value) == f"image/kernel of checkpoint {path} is not finite; choose an earlier one"


def test_the_fault_of_parameters_is_said_in_a_line_of_at_most_200_characters(monkeypatch):
    def fail(path):
        raise RuntimeError("x\n" + "y" * 300)

    monkeypatch.setattr(checkpoints_module, "stored_params", fail)
    with pytest.raises(UserError, match=f"^checkpoint there cannot be read .RuntimeError: x {'y' * 198}.; if the run"):
        read_params("there")
