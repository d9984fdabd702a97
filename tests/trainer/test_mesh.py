import importlib.machinery

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pipeline.schema import UserError
from trainer import mesh as mesh_module
from trainer.configs.base import override
from trainer.mesh import (
    abstract_mesh,
    batch_sharding,
    check_batch,
    check_blocks,
    check_mesh,
    check_widths,
    described,
    gathered,
    is_class_vectors,
    make_mesh,
    parse_mesh,
    prepare_devices,
    replicated,
    state_shardings,
)
from trainer.models.layers import STACKED
from trainer.optimizer import make_optimizer
from trainer.plan import plan
from trainer.state import init_state, make_models
from trainer.train import train


@pytest.mark.parametrize("text", ["4", "4x", "0x2", "2x0", "x2", "2x2x2", "axb", "-1x2", "2X2", "2x2 ", ""])
def test_a_mesh_that_is_not_axb_is_refused(text):
    with pytest.raises(UserError) as refused:
        parse_mesh(text)
    assert str(refused.value) == f"--mesh {text} is not of the form AxB with A, B >= 1 (data x model), e.g. --mesh 4x8"


def test_a_mesh_is_data_by_model():
    assert parse_mesh("4x8") == (4, 8)
    assert parse_mesh("10x128") == (10, 128)


@pytest.mark.parametrize(
    ("accelerator", "before", "after"),
    [
        (False, None, "--xla_force_host_platform_device_count=4"),
        (False, "", "--xla_force_host_platform_device_count=4"),
        (False, "--xla_force_host_platform_device_count=8", "--xla_force_host_platform_device_count=8"),
        (True, "--xla_a=1", "--xla_a=1 --xla_gpu_deterministic_ops=true"),
        (True, "--xla_gpu_deterministic_ops=false", "--xla_gpu_deterministic_ops=false"),
    ],
)
def test_devices_are_simulated_or_asked_to_repeat_exactly(monkeypatch, accelerator, before, after):
    monkeypatch.setattr(mesh_module, "_has_accelerator", lambda: accelerator)
    if before is None:
        monkeypatch.delenv("XLA_FLAGS", raising=False)
    else:
        monkeypatch.setenv("XLA_FLAGS", before)
    asked = []
    monkeypatch.setattr(mesh_module.jax.config, "update", lambda *words: asked.append(words))
    monkeypatch.delenv("JAX_PLATFORMS", raising=False)
    prepare_devices(4)
    assert mesh_module.os.environ["XLA_FLAGS"] == after
    assert asked == ([] if accelerator else [("jax_platforms", "cpu")])
    monkeypatch.setenv("JAX_PLATFORMS", "cuda")  # the user knows better
    prepare_devices(4)
    assert len(asked) <= 1


def test_exact_repetition_may_be_given_up_for_speed(monkeypatch):
    monkeypatch.setattr(mesh_module, "_has_accelerator", lambda: True)
    monkeypatch.delenv("XLA_FLAGS", raising=False)
    prepare_devices(4, deterministic=False)
    assert mesh_module.os.environ["XLA_FLAGS"] == "--xla_gpu_deterministic_ops=false"


@pytest.mark.parametrize(
    ("platforms", "package", "file", "simulated"),
    [
        (None, "jax_plugins", "/dev/nvidia[0-9]*", False),
        ("", "libtpu", "/dev/accel[0-9]*", False),
        ("cuda", "libtpu", "/dev/vfio/[0-9]*", False),
        (None, "jax_plugins", "/dev/kfd", False),
        (None, "jax_plugins", None, True),  # JAX for GPUs on a machine that has none
        (None, None, "/dev/nvidia[0-9]*", True),  # a GPU, but JAX for the CPU
        ("cpu", "jax_plugins", "/dev/nvidia[0-9]*", True),  # the user asks for the CPU
    ],
)
def test_an_accelerator_counts_when_jax_can_use_it(monkeypatch, platforms, package, file, simulated):
    def find_spec(name):
        return importlib.machinery.ModuleSpec(name, None) if name == package else None

    monkeypatch.setattr(mesh_module.importlib.util, "find_spec", find_spec)
    monkeypatch.setattr(mesh_module.glob, "glob", lambda pattern: ["/dev/found"] if pattern == file else [])
    monkeypatch.delenv("XLA_FLAGS", raising=False)
    if platforms is None:
        monkeypatch.delenv("JAX_PLATFORMS", raising=False)
    else:
        monkeypatch.setenv("JAX_PLATFORMS", platforms)
    prepare_devices(2)
    assert ("device_count=2" in mesh_module.os.environ["XLA_FLAGS"]) == simulated


@pytest.mark.parametrize(("data", "model"), [(1, 1), (2, 2), (2, 4), (8, 1), (1, 8)])
def test_a_mesh_has_the_first_devices_along_two_named_axes(data, model):
    mesh = make_mesh(data, model)
    assert mesh.axis_names == ("data", "model")
    assert mesh.devices.shape == (data, model)
    assert mesh.axis_types == (jax.sharding.AxisType.Auto,) * 2
    assert set(mesh.devices.flat) == set(jax.devices()[: data * model])


def test_a_mesh_larger_than_the_machine_is_refused():
    count = len(jax.devices())
    with pytest.raises(UserError) as refused:
        make_mesh(4, 4)
    assert str(refused.value) == (
        f"--mesh 4x4 needs 16 devices, but there are {count} (cpu); use a smaller mesh, e.g. --mesh {count}x1"
    )


def test_several_processes_need_a_mesh_of_all_devices(monkeypatch):
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    count = len(jax.devices())
    with pytest.raises(UserError) as refused:
        make_mesh(2, 2)
    assert str(refused.value) == (
        f"--mesh 2x2 has 4 devices, but the 2 processes together have {count}; use all of them, e.g. --mesh {count}x1"
    )
    assert np.prod(make_mesh(count, 1).devices.shape) == count


def test_a_mesh_is_described_by_its_devices(monkeypatch):
    assert described(make_mesh(1, 1)) == "no accelerator: mesh 1x1 on 1 simulated CPU device(s)"
    assert described(make_mesh(4, 2)) == "no accelerator: mesh 4x2 on 8 simulated CPU device(s)"
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    assert described(make_mesh(4, 2)) == "no accelerator: mesh 4x2 on 8 simulated CPU device(s) of 2 processes"


def test_a_mesh_of_accelerators_is_described_by_their_kind(monkeypatch):
    class Device:
        platform, device_kind = "gpu", "NVIDIA H100"

    class OfGpus:
        devices = np.full((2, 3), Device())

    assert described(OfGpus()) == "mesh 2x3 on 6 NVIDIA H100 device(s)"
    monkeypatch.setattr(jax, "process_count", lambda: 3)
    assert described(OfGpus()) == "mesh 2x3 on 6 NVIDIA H100 device(s) of 3 processes"


def test_a_batch_divides_over_all_devices():
    check_batch(16, 2, 4)
    check_batch(6, 2, 3)
    # 17 / 8 = 2.125, so the nearest multiple is 2 * 8; 21 / 8 = 2.6, so 3 * 8; below one per device it is 8.
    for batch, nearest in ((17, 16), (21, 24), (3, 8)):
        with pytest.raises(UserError) as refused:
            check_batch(batch, 2, 4)
        assert str(refused.value) == (
            f"data.batch_size {batch} does not divide over the 8 devices of --mesh 2x4; "
            f"set a multiple, e.g. --set data.batch_size={nearest}"
        )


def test_blocks_divide_over_the_devices():
    check_blocks(64, 8)
    with pytest.raises(UserError) as refused:
        check_blocks(64, 6)
    assert str(refused.value) == (
        "loss.sample_blocks 64 does not divide over the 6 devices of the mesh; set a multiple, "
        "e.g. --set loss.sample_blocks=66"
    )
    with pytest.raises(UserError, match=r"loss.sample_blocks=6$"):
        check_blocks(2, 6)


def test_the_towers_divide_over_the_devices_along_model():
    check_widths({"image.width": 768, "text.width": 512}, 3, 4)
    with pytest.raises(UserError) as refused:
        check_widths({"image.width": 768, "text.width": 512}, 2, 3)
    assert str(refused.value) == (
        "text.width 512 does not divide over the 3 devices that split parameters in --mesh 2x3; "
        "use a mesh whose second number divides it, e.g. --mesh 6x1"
    )


@pytest.mark.parametrize(
    ("changes", "mesh", "message"),
    [
        (["data.batch_size=4"], "8x1", "data.batch_size 4 does not divide over the 8 devices of --mesh 8x1; set a mul"),
        (["data.batch_size=15"], "1x5", "image.width 16 does not divide over the 5 devices that split parameters in -"),
        (["data.batch_size=12", "image.width=18"], "2x3", "text.width 16 does not divide over the 3 devices"),
        (["loss.sample_rate=0.5", "loss.sample_blocks=6"], "2x2", "loss.sample_blocks 6 does not divide over the 4"),
        ([], "2", "--mesh 2 is not of the form AxB"),
    ],
)
def test_what_does_not_divide_over_a_mesh_is_refused_by_training_and_plan_alike(tiny, changes, mesh, message):
    experiment = override(tiny, changes)
    with pytest.raises(UserError, match=f"^{message}"):
        train(experiment, data="none", workdir="none", mesh=mesh)
    with pytest.raises(UserError, match=f"^{message}"):
        plan(experiment, mesh=mesh, device_memory="80GB", num_classes=5)


def test_a_tower_and_blocks_that_are_not_used_need_not_divide(tiny):
    supervised = override(tiny, ["loss.contrastive_weight=0", "image.width=18", "data.batch_size=12"])
    assert check_mesh(override(supervised, ["loss.sample_blocks=7"]), "2x3") == (2, 3)


def test_the_micro_batches_of_an_experiment_count(tiny):
    with pytest.raises(UserError, match="16 does not divide over the 4 devices of --mesh 1x4 and 3 micro_batches; set"):
        check_mesh(override(tiny, ["data.batch_size=16", "micro_batches=3"]), "1x4")


def test_each_micro_batch_divides_over_all_devices():
    check_batch(32, 2, 4, micro_batches=4)
    with pytest.raises(UserError) as refused:
        check_batch(40, 2, 4, micro_batches=4)
    assert str(refused.value) == (
        "data.batch_size 40 does not divide over the 8 devices of --mesh 2x4 and 4 micro_batches; "
        "set a multiple, e.g. --set data.batch_size=32"
    )
    with pytest.raises(UserError, match="devices of --mesh 1x1 and 2 micro_batches; set"):
        check_batch(3, 1, 1, micro_batches=2)


def shard_shapes(array):
    return {shard.data.shape for shard in array.addressable_shards}


def test_rows_of_a_batch_are_split_over_all_devices_and_a_replicated_array_is_whole_on_each():
    mesh = make_mesh(2, 4)
    rows = np.arange(32).reshape(16, 2)
    split = jax.device_put(rows, batch_sharding(mesh))
    assert shard_shapes(split) == {(2, 2)}
    # Rows in order of `data`, then of `model`: each of the 8 devices has two of its own.
    starts = {int(shard.data[0, 0]) for shard in split.addressable_shards}
    assert starts == {0, 4, 8, 12, 16, 20, 24, 28}
    assert shard_shapes(jax.device_put(rows, replicated(mesh))) == {(16, 2)}


@pytest.mark.parametrize(
    ("name", "shape", "shard"),
    [
        ("kernel", (8, 12), (2, 12)),  # the first axis of two
        ("kernel", (10, 4), (10, 1)),  # 4 does not divide 10, so the other
        ("kernel", (10, 6), (10, 6)),  # nor 6: whole on each device
        ("kernel", (4, 8, 12), (4, 2, 12)),  # 4 layers, of which each device holds its part
        ("kernel", (4, 10, 6), (4, 10, 6)),
        ("embedding", (300, 16), (75, 16)),
        ("embedding", (301, 16), (301, 4)),
        ("position", (1, 16, 8), (1, 16, 2)),
        ("class_vectors", (8, 64), (1, 64)),  # over all 8 devices
        ("bias", (8,), (8,)),
        ("bias", (4, 8), (4, 8)),  # of 4 layers
        ("log_scale", (), ()),
    ],
)
def test_an_array_is_split_by_its_name_along_the_first_axis_that_divides(name, shape, shard):
    state = {"params": {name: jnp.zeros(shape)}}
    placed = jax.device_put(state, state_shardings(make_mesh(2, 4), state))
    assert shard_shapes(placed["params"][name]) == {shard}


def test_parameters_are_made_whole_for_a_step_and_their_gradients_are_split_again():
    mesh = make_mesh(2, 4)
    of_layers = {"kernel": jnp.ones((2, 8, 4))}
    params = {"stem": {"kernel": jnp.ones((8, 4))}, "blocks": {STACKED: of_layers}, "class_vectors": jnp.ones((8, 2))}
    shardings = state_shardings(mesh, params)
    placed = jax.device_put(params, shardings)
    whole = jax.jit(lambda params: gathered(mesh, params))(placed)
    assert shard_shapes(whole["stem"]["kernel"]) == {(8, 4)}
    assert shard_shapes(whole["blocks"][STACKED]["kernel"]) == {(2, 2, 4)}  # gathered when they run
    assert shard_shapes(whole["class_vectors"]) == {(1, 2)}

    def loss(params):
        return sum((value**3).sum() for value in jax.tree.leaves(gathered(mesh, params)))

    gradients = jax.jit(jax.grad(loss))(placed)
    assert jax.tree.map(shard_shapes, gradients) == jax.tree.map(shard_shapes, placed)
    jax.tree.map(lambda gradient: np.testing.assert_array_equal(gradient, np.full(gradient.shape, 3)), gradients)


def test_an_array_of_no_known_name_is_refused():
    with pytest.raises(ValueError, match=r"\['image'\]\['gain'\] has no sharding; add 'gain' to _SPLIT or _WHOLE"):
        state_shardings(make_mesh(2, 4), {"image": {"gain": jnp.zeros(8)}})


def test_class_vectors_and_their_moments_are_known_by_their_path():
    state = {"params": {"class_vectors": 0, "kernel": 0}, "opt_state": [{"mu": {"class_vectors": 0, "bias": 0}}]}
    paths = [path for path, _ in jax.tree_util.tree_leaves_with_path(state)]
    names = [jax.tree_util.keystr(path, simple=True, separator="/") for path in paths if is_class_vectors(path)]
    assert names == ["opt_state/0/mu/class_vectors", "params/class_vectors"]


def test_a_mesh_of_no_devices_gives_the_shardings_of_one_that_has_them():
    abstract = abstract_mesh(32, 8)
    assert dict(abstract.shape) == {"data": 32, "model": 8} and abstract.axis_types == (jax.sharding.AxisType.Auto,) * 2
    kernel = {"kernel": jnp.zeros((8, 12))}
    assert state_shardings(abstract, kernel)["kernel"].shard_shape((8, 12)) == (1, 12)


# Of each group of parameters: the end of the path, the whole shape, and a device's shard on meshes 2x4 and 1x8.
# The 5 classes are padded to 8 rows. 8 divides neither 12 nor 300, so there the other axis is split.
GROUPS = [
    ("class_vectors", (8, 8), (1, 8), (1, 8)),
    ("image/stem_mix/kernel", (12, 8), (3, 8), (12, 1)),
    ("image/stem/kernel", (32, 16), (8, 16), (4, 16)),
    ("image/blocks/block_0/attention/query/kernel", (16, 16), (4, 16), (2, 16)),
    ("image/blocks/block_0/up/kernel", (16, 32), (4, 32), (2, 32)),
    ("image/position", (1, 4, 16), (1, 4, 4), (1, 4, 2)),
    ("image/stem/bias", (16,), (16,), (16,)),
    ("text/blocks/block_0/down/kernel", (32, 16), (8, 16), (4, 16)),
    ("text/table/embedding", (300, 16), (75, 16), (300, 2)),
    ("log_scale", (), (), ()),
]


@pytest.mark.parametrize(("mesh", "column"), [((2, 4), 2), ((1, 8), 3)])
def test_parameters_and_their_moments_are_held_in_the_shards_of_the_rule(tiny, mesh, column):
    devices, optimizer = make_mesh(*mesh), make_optimizer(tiny.optimizer, 10)
    images = np.random.default_rng(0).normal(size=(4, 8, 8, 3)).astype(np.float32)
    state = init_state(tiny, make_models(tiny), optimizer, devices, 5, images)
    leaves = {
        jax.tree_util.keystr(path, simple=True, separator="/"): leaf
        for path, leaf in jax.tree_util.tree_leaves_with_path(state)
    }
    for group in GROUPS:
        of_group = {name: leaf for name, leaf in leaves.items() if name.endswith("/" + group[0])}
        # The parameter, its mean, and with Adam its mean square.
        moments = 1 if "kernel" in group[0] else 2
        assert len(of_group) == 1 + moments, (group[0], list(of_group))
        for name, leaf in of_group.items():
            assert leaf.shape == group[1], name
            assert shard_shapes(leaf) == {group[column]}, name
            assert len(leaf.addressable_shards) == 8
