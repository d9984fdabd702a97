import dataclasses
import subprocess
import sys

import jax
import pytest

from pipeline.schema import UserError
from trainer.configs.base import override
from trainer.memory_plan import Memory, planned_collectives, planned_memory, planned_state
from trainer.mesh import abstract_mesh, make_mesh
from trainer.optimizer import make_optimizer
from trainer.placement import device_bytes
from trainer.plan import parse_bytes, plan
from trainer.state import abstract_state, make_models


@pytest.fixture(scope="module")
def scanned(tiny):
    return override(tiny, ["scan_layers=true", "optimizer.kind=adamw", "image.depth=3", "text.depth=2", "remat=full"])


def test_a_mesh_of_no_devices_gives_the_shards_of_one_of_devices(scanned):
    optimizer = make_optimizer(scanned.optimizer, scanned.steps)
    real = abstract_state(scanned, make_models(scanned), optimizer, make_mesh(2, 4), 5)
    planned = planned_state(scanned, abstract_mesh(2, 4), 5)
    shards = [
        jax.tree.map(lambda leaf: (leaf.dtype, leaf.sharding.shard_shape(leaf.shape)), state)
        for state in (real, planned)
    ]
    assert shards[0] == shards[1]


def test_memory_that_does_not_grow_with_the_batch_is_the_state_twice_over_and_what_is_gathered(scanned):
    mesh = abstract_mesh(2, 4)
    state = planned_state(scanned, mesh, 5)
    fixed = planned_memory(scanned, state, mesh).fixed
    # One of 8 rows of 8 numbers, and as much for each of its two moments.
    assert (fixed["class vectors"], fixed["optimiser of the class vectors"]) == (32, 64)
    of_state = [
        "parameters of the towers",
        "optimiser of the towers",
        "class vectors",
        "optimiser of the class vectors",
    ]
    assert sum(fixed[name] for name in of_state) == device_bytes(state)
    assert fixed["gradients"] == device_bytes(state.params)
    # Whole at once, in numbers: one block, 4 * 16 * 16 + 2 * 16 * 32; of the image tower the stem (12 x 8 and 32 x 16),
    # positions (4 x 16) and the head (64 x 8); of the text tower the table (300 x 16), positions and the head.
    numbers = 2048 + (96 + 512 + 64 + 512) + (4800 + 12 * 16 + 128)
    assert fixed["parameters gathered for use, and their gradients"] == 2 * 4 * numbers


def test_on_one_device_along_model_nothing_is_gathered(scanned):
    mesh = abstract_mesh(8, 1)
    state = planned_state(scanned, mesh, 5)
    assert planned_memory(scanned, state, mesh).fixed["parameters gathered for use, and their gradients"] == 0
    names = list(planned_collectives(scanned, state, mesh))
    assert [name.split(":")[0] for name in names] == [
        "all-reduce",
        "all-gather over all",
        "reduce-scatter over all",
    ]
    assert planned_collectives(scanned, planned_state(scanned, abstract_mesh(1, 1), 5), abstract_mesh(1, 1)) == {}


def test_the_less_is_kept_the_larger_is_the_batch_that_fits(scanned):
    mesh = abstract_mesh(2, 4)
    state = planned_state(scanned, mesh, 5)
    memory = {
        remat: planned_memory(dataclasses.replace(scanned, remat=remat), state, mesh)
        for remat in ("none", "light", "dots", "full")
    }
    most = [memory[remat].most_images(2**26) for remat in ("none", "light", "dots", "full")]
    assert 0 < most[0] < most[1] < most[2] < most[3]
    for planned, images in zip(memory.values(), most, strict=True):
        assert planned.total(images) <= 2**26 < planned.total(images + 1)
    # Full keeps what a block reads, and no more: of one more block, 4 tokens of 16 numbers.
    deeper = planned_memory(override(scanned, ["image.depth=4"]), state, mesh)
    kept = [planned.per_image["activations kept (remat=full)"] for planned in (memory["full"], deeper)]
    assert kept[1] - kept[0] == 4 * 4 * 16
    # In two micro-batches, half of it at once.
    halved = planned_memory(override(scanned, ["micro_batches=2"]), state, mesh).per_image
    assert halved["activations kept (remat=full)"] == kept[0] / 2
    assert halved["activations of one block"] == memory["full"].per_image["activations of one block"] / 2


def test_the_largest_batch_is_what_room_is_left_for():
    memory = Memory(fixed={"state": 100, "gradients": 50}, per_image={"batch": 4.0, "activations": 6.0})
    assert memory.total(3) == 180
    assert [memory.most_images(room) for room in (149, 150, 159, 160, 180)] == [0, 0, 0, 1, 3]


def test_collectives_are_counted_from_the_shards(scanned):
    mesh = abstract_mesh(2, 4)
    found = planned_collectives(scanned, planned_state(scanned, mesh, 5), mesh)
    blocks = 3 * 2048 + 2 * 2048
    others = (96 + 512 + 64 + 512) + (4800 + 12 * 16 + 128)
    # Scanned blocks are gathered for the forward and for the backward pass.
    assert found["all-gather over model: parameters, before use"] == 4 * (2 * blocks + others)
    table = 4800  # 300 tokens x 16, split over its rows
    assert found["reduce-scatter over model: gradients"] == 4 * (blocks + others - table) // 4
    # Of 8 texts of 12 tokens, those of the four devices that share the parameters: an id, and 16 numbers.
    assert found["exchanged over model: gradients by token"] == 4 * 8 * 12 * (1 + 16)
    # Two micro-batches: each is embedded, and later goes forward and backward.
    halved = planned_collectives(override(scanned, ["micro_batches=2"]), planned_state(scanned, mesh, 5), mesh)
    gathered = halved["all-gather over model: parameters, before use"]
    assert gathered == 2 * 4 * (3 * blocks + 2 * others)
    assert halved["reduce-scatter over model: gradients"] == 2 * 4 * (blocks + others - table) // 4
    assert halved["exchanged over model: gradients by token"] == 4 * 8 * 12 * (1 + 16)
    # The batch's 16 images and texts, 8 numbers each.
    assert found["all-gather over all: embeddings"] == 2 * 16 * 8 * 4
    assert found["reduce-scatter over all: gradients of the embeddings"] == 2 * 16 * 8 * 4 // 8


def test_a_plan_states_memory_collectives_and_the_largest_batch(scanned):
    text = plan(scanned, mesh="2x4", device_memory="64MiB", num_classes=5)
    assert text.startswith("tiny on 8 device(s) of 64MiB, mesh 2x4: 2 of 16 images each, 5 classes\n")
    assert "no backend was read" in text
    assert "class_vectors" in text
    for remat in ("none", "light", "dots", "full"):
        planned = planned_memory(
            dataclasses.replace(scanned, remat=remat),
            planned_state(scanned, abstract_mesh(2, 4), 5),
            abstract_mesh(2, 4),
        )
        assert f"fits; the largest batch that fits is {8 * planned.most_images(2**26):,}\n" in text
    assert "too much for any batch" in plan(scanned, mesh="2x4", device_memory="1MB", num_classes=5)
    # Without a batch it fits, with this one it does not.
    memory = planned_memory(scanned, planned_state(scanned, abstract_mesh(1, 1), 5), abstract_mesh(1, 1))
    room = (memory.total(16) - 1) / 1e6
    assert "does not fit; the largest batch that fits is 15\n" in plan(
        scanned, mesh="1x1", device_memory=f"{room}MB", num_classes=5
    )


@pytest.mark.parametrize(
    ("text", "count"), [("80GB", 80 * 10**9), ("80 GiB", 80 * 2**30), ("1.5MB", 1_500_000), ("2MiB", 2 * 2**20)]
)
def test_sizes_of_memory_are_read_with_their_unit(text, count):
    assert parse_bytes(text) == count


@pytest.mark.parametrize("text", ["80", "GB", "0GB", "-1GB", "80kB", "80GBs", "1e3GB"])
def test_a_size_that_is_none_is_refused(text):
    with pytest.raises(UserError, match=f"--device-memory {text} is not a size in MB, GB, MiB, GiB, e.g. "):
        parse_bytes(text)


@pytest.mark.parametrize(
    ("mesh", "num_classes", "message"),
    [
        ("2x", 5, "--mesh 2x is not of the form AxB"),
        ("3x1", 5, "data.batch_size 16 does not divide over the 3 devices of --mesh 3x1; set a multiple"),
        ("2x4", 1, "--classes is 1, but a classifier needs at least 2"),
    ],
)
def test_a_plan_of_what_cannot_be_trained_is_refused(scanned, mesh, num_classes, message):
    with pytest.raises(UserError, match=message):
        plan(scanned, mesh=mesh, device_memory="80GB", num_classes=num_classes)


def test_the_commands_print_a_table_or_one_line():
    def run(module, *arguments):
        command = [sys.executable, "-m", module, *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=False)

    done = run("trainer.params", "--config", "multitask_b16", "--classes", "1000", "--set", "image.depth=2")
    assert done.returncode == 0, done.stderr
    kernel = next(line for line in done.stdout.splitlines() if "image/blocks/layers/up/kernel" in line)
    assert [cell.strip() for cell in kernel.split("|")[2:5]] == ["(2, 768, 3072)", "float32", f"{2 * 768 * 3072:,}"]
    done = run("trainer.plan", "--config", "multitask_demo", "--mesh", "2x", "--classes", "9")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.splitlines()[-1].startswith("error: --mesh 2x is not of the form AxB")
