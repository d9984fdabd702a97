import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from evaluation.models import fine_tune as module
from evaluation.models.fine_tune import Diverged, FineTuneConfig, fine_tune, predictions
from evaluation.sets.images import ImageSet, LabelledImages, UnreadableImage
from pipeline.schema import UserError
from tests.evaluation.builders import png
from tests.trainer.importing import published
from trainer.encoder import Encoder, Preprocessing
from trainer.encoder.write import save_encoder
from trainer.import_encoder import Options, import_encoder

SIZE_PX, DIM, CLASSES, COUNT = 6, 8, 3, 60
QUICK = FineTuneConfig(learning_rate=0.1, num_steps=40, batch_size=24, warmup_steps=4, chunk_rows=12)


def image_function(params, images):
    hidden = jnp.tanh(images.reshape(images.shape[0], -1) @ params["stem"]["kernel"])
    return hidden @ params["out"]["kernel"] + params["table"][params["positions"]].sum(axis=0)


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    path = tmp_path_factory.mktemp("encoder")
    random = np.random.default_rng(0)
    params = {
        "stem": {"kernel": (random.normal(size=(SIZE_PX * SIZE_PX * 3, 16)) * 0.1).astype(np.float32)},
        "out": {"kernel": (random.normal(size=(16, DIM)) * 0.3).astype(np.float32)},
        "table": (random.normal(size=(2, DIM)) * 0.01).astype(np.float32),
        "positions": np.array([1, 0], np.int32),
    }
    save_encoder(
        path,
        image_function=image_function,
        image_params=params,
        preprocessing=Preprocessing(image_size_px=SIZE_PX, mean=(0.5,) * 3, std=(0.25,) * 3),
    )
    return Encoder.load(path, batch_size=8)


def noise(count=COUNT, name="noise"):
    """Pictures of noise: with as few as this, any labels can be told apart, but not by the encoder as it is."""
    return ImageSet(
        name=name, ids=np.array([str(n) for n in range(count)]), read=lambda n: png(n, SIZE_PX), fingerprint="noise"
    )


LABELS = np.random.default_rng(5).integers(0, CLASSES, COUNT)


def test_the_loss_falls_from_that_of_a_guess_and_every_picture_is_learnt(encoder):
    tuned = fine_tune(encoder, noise(), LABELS, CLASSES, dataclasses.replace(QUICK, num_steps=150))
    assert tuned.losses[0] == pytest.approx(np.log(CLASSES), abs=1e-6)
    assert tuned.losses[-10:].mean() < 0.1
    assert (tuned.predict(noise()) == LABELS).all()


def test_the_encoder_itself_is_trained_and_the_given_one_stays_as_it_is(encoder):
    before = jax.tree.map(np.array, encoder.image_params)
    tuned = fine_tune(encoder, noise(), LABELS, CLASSES, QUICK)
    for name, value in before.items():
        np.testing.assert_array_equal(encoder.image_params[name], value)
        assert np.array_equal(tuned.params[name], value) == (name == "positions")


def test_half_precision_is_trained_in_float32(tmp_path):
    # At 1e-4 most steps are smaller than half a unit in the last place of a float16.
    config = dataclasses.replace(QUICK, learning_rate=1e-4)
    random = np.random.default_rng(0)
    kernel = (random.normal(size=(SIZE_PX * SIZE_PX * 3, DIM)) * 0.1).astype(np.float16)
    tuned = []
    for dtype in (np.float16, np.float32):
        save_encoder(
            tmp_path / dtype.__name__,
            image_function=lambda params, x: x.reshape(x.shape[0], -1) @ params["kernel"].astype(jnp.float32),
            image_params={"kernel": kernel.astype(dtype)},
            preprocessing=Preprocessing(image_size_px=SIZE_PX, mean=(0.5,) * 3, std=(0.25,) * 3),
        )
        loaded = Encoder.load(tmp_path / dtype.__name__, batch_size=8)
        tuned.append(fine_tune(loaded, noise(), LABELS, CLASSES, config))
    half, whole = tuned
    np.testing.assert_allclose(half.losses, whole.losses, rtol=1e-5)
    assert half.params["kernel"].dtype == np.float16
    np.testing.assert_array_equal(half.params["kernel"], np.asarray(whole.params["kernel"]).astype(np.float16))


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_an_imported_encoder_is_fine_tuned(dtype, tmp_path):
    import torch

    folder = published.clip(tmp_path / "model", dtype=getattr(torch, dtype))
    import_encoder(Options(model=str(folder), output=str(tmp_path / "encoder")))
    imported = Encoder.load(tmp_path / "encoder", batch_size=8)
    config = dataclasses.replace(QUICK, learning_rate=0.03, num_steps=60)
    tuned = fine_tune(imported, noise(30), LABELS[:30], CLASSES, config)
    assert tuned.losses[0] == pytest.approx(np.log(CLASSES), abs=1e-6) and tuned.losses[-5:].mean() < 0.5
    assert (tuned.predict(noise(30)) == LABELS[:30]).mean() > 0.8
    kept = [name for name, value in imported.image_params.items() if np.array_equal(value, tuned.params[name])]
    assert all(name.endswith("k_proj.bias") for name in kept)  # which attention does not depend on
    assert {str(value.dtype) for value in tuned.params.values()} == {dtype}


def test_two_runs_agree_to_the_last_bit_and_another_seed_does_not(encoder):
    first = fine_tune(encoder, noise(), LABELS, CLASSES, QUICK)
    again = fine_tune(encoder, noise(), LABELS, CLASSES, dataclasses.replace(QUICK, cache_bytes=0))
    other = fine_tune(encoder, noise(), LABELS, CLASSES, dataclasses.replace(QUICK, seed=1))
    np.testing.assert_array_equal(first.losses, again.losses)
    np.testing.assert_array_equal(first.kernel, again.kernel)
    assert not np.array_equal(first.losses, other.losses)


def test_the_size_of_chunks_changes_rounding_only(encoder):
    whole = fine_tune(encoder, noise(), LABELS, CLASSES, dataclasses.replace(QUICK, num_steps=5, chunk_rows=24))
    parts = fine_tune(encoder, noise(), LABELS, CLASSES, dataclasses.replace(QUICK, num_steps=5, chunk_rows=7))
    np.testing.assert_allclose(whole.losses, parts.losses, rtol=1e-5)
    np.testing.assert_allclose(whole.kernel, parts.kernel, atol=1e-5)


def test_steps_are_those_of_sgd_with_momentum_written_out(encoder):
    config = FineTuneConfig(
        learning_rate=0.05, num_steps=3, batch_size=COUNT, warmup_steps=2, momentum=0.9, max_gradient_norm=0.5
    )
    tuned = fine_tune(encoder, noise(), LABELS, CLASSES, config)
    pixels = np.stack([encoder.preprocess(noise().open(n)[0]) for n in range(COUNT)])
    fixed = {"positions": encoder.image_params["positions"]}
    values = {name: value for name, value in encoder.image_params.items() if name != "positions"}
    values |= {"kernel": jnp.zeros((DIM, CLASSES)), "bias": jnp.zeros(CLASSES)}

    def loss(values):
        image = {name: value for name, value in values.items() if name not in ("kernel", "bias")}
        logits = encoder.image_function(fixed | image, pixels) * DIM**0.5 @ values["kernel"] + values["bias"]
        return -jax.nn.log_softmax(logits)[np.arange(COUNT), LABELS].mean()

    gradient_of = jax.jit(jax.grad(loss))
    speed = {name: np.zeros(value.shape) for name, value in values.items()}
    for step, warm in enumerate((0.5, 1.0, 1.0)):
        rate = 0.05 * warm * (1 + np.cos(np.pi * step / 3)) / 2
        gradient = {name: np.asarray(value, np.float64) for name, value in gradient_of(values).items()}
        norm = np.sqrt(sum((value**2).sum() for value in gradient.values()))
        for name in values:
            speed[name] = 0.9 * speed[name] + gradient[name] * min(1.0, 0.5 / norm)
            values[name] = jnp.asarray(np.asarray(values[name]) - rate * speed[name], jnp.float32)
    np.testing.assert_allclose(tuned.kernel, values["kernel"], atol=1e-5)
    np.testing.assert_allclose(tuned.bias, values["bias"], atol=1e-5)
    np.testing.assert_allclose(tuned.params["stem/kernel"], values["stem/kernel"], atol=1e-5)


def test_a_prediction_does_not_depend_on_its_company(encoder):
    tuned = fine_tune(encoder, noise(), LABELS, CLASSES, QUICK)
    assert tuned.predict(noise(13)).tolist() == tuned.predict(noise())[:13].tolist()


def test_a_picture_that_cannot_be_read_is_named(encoder):
    broken = ImageSet(name="broken", ids=np.array(["a", "b"]), read=lambda n: b"no picture", fingerprint="")
    with pytest.raises(UnreadableImage, match=r"picture [ab] \(10 bytes\) cannot be read"):
        fine_tune(encoder, broken, np.array([0, 1]), 2, QUICK)


def test_a_loss_that_is_not_finite_is_an_error(encoder):
    config = dataclasses.replace(QUICK, learning_rate=1e38, max_gradient_norm=1e38, warmup_steps=0)
    with pytest.raises(Diverged, match=r"the loss of noise is (nan|inf) at step \d+ with learning rate 1e\+38"):
        fine_tune(encoder, noise(), LABELS, CLASSES, config)


@pytest.mark.parametrize(
    ("count", "labels", "words"),
    [
        (0, [], "has 0 pictures and labels"),
        (3, [0, 1], r"has 3 pictures and labels \(2,\); give one label per picture"),
        (2, [0, 3], "are 0 to 3; they must be from 0 to 2"),
        (2, [-1, 1], "are -1 to 1; they must be from 0 to 2"),
    ],
)
def test_labels_that_do_not_fit_are_an_error(encoder, count, labels, words):
    with pytest.raises(UserError, match=words):
        fine_tune(encoder, noise(count), np.array(labels, int), CLASSES, QUICK)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("learning_rate", 0.0),
        ("learning_rate", float("inf")),
        ("num_steps", 0),
        ("batch_size", -1),
        ("chunk_rows", 0),
        ("momentum", 1.0),
    ]
    + [("warmup_steps", -1), ("max_gradient_norm", float("nan"))],
)
def test_a_setting_out_of_range_is_an_error(name, value):
    with pytest.raises(UserError, match=f"{name} is {value}; it must be"):
        FineTuneConfig(**{name: value})


class Runs:
    """Stands for fine-tuning: counts runs, and predicts the label of the last picture for all."""

    def __init__(self, monkeypatch, diverges=False):
        self.count, self.diverges = 0, diverges
        monkeypatch.setattr(module, "fine_tune", self)

    def __call__(self, encoder, images, labels, num_classes, config):
        self.count += 1
        if self.diverges:
            raise Diverged("the loss is nan")
        return self

    def predict(self, images):
        return np.full(len(images), 7)


def labelled(fingerprint="f", labels=LABELS, ids=None):
    images = dataclasses.replace(noise(), fingerprint=fingerprint)
    images = images if ids is None else dataclasses.replace(images, ids=np.array(ids))
    return LabelledImages(images=images, labels=labels, class_names=("a", "b", "c"))


def test_a_kept_run_is_known_by_all_that_it_depends_on(encoder, tmp_path, monkeypatch):
    runs = Runs(monkeypatch)

    class Other:
        hash = "another"
        preprocessing = encoder.preprocessing

    usual = {"encoder": encoder, "train": labelled(), "scored": noise(9), "num_classes": CLASSES, "config": QUICK}

    def run(**changes):
        return predictions(**usual | changes, cache_dir=tmp_path)

    assert run().tolist() == [7] * 9 and run().tolist() == [7] * 9 and runs.count == 1
    run(config=dataclasses.replace(QUICK, chunk_rows=6))  # changes rounding only
    assert runs.count == 1
    other_ids = [f"other {number}" for number in range(COUNT)]
    changes = [
        {"encoder": Other()},
        {"train": labelled(fingerprint="g")},
        {"train": labelled(labels=LABELS[::-1])},
        {"train": labelled(ids=other_ids)},
        {"scored": noise(8)},
        {"scored": dataclasses.replace(noise(9), fingerprint="g")},
        {"num_classes": CLASSES + 1},
        {"config": dataclasses.replace(QUICK, learning_rate=0.2)},
    ]
    for number, change in enumerate(changes, 2):
        run(**change)
        assert runs.count == number, change
    monkeypatch.setattr(module, "_VERSION", module._VERSION + 1)
    run()
    assert runs.count == len(changes) + 2


def test_a_damaged_kept_run_is_done_again_and_a_diverged_one_is_not(encoder, tmp_path, monkeypatch, capsys):
    runs = Runs(monkeypatch)

    def run():
        return predictions(encoder, labelled(), noise(9), CLASSES, QUICK, cache_dir=tmp_path)

    run()
    (path,) = tmp_path.iterdir()
    for damage in (path.read_bytes()[:100], b""):
        path.write_bytes(damage)
        assert run().tolist() == [7] * 9 and "training again" in capsys.readouterr().err
    assert runs.count == 3
    path.unlink()
    runs.diverges = True
    for _ in range(2):
        with pytest.raises(Diverged):
            run()
    assert runs.count == 4


def test_predictions_that_cannot_be_kept_are_not_lost(encoder, tmp_path, monkeypatch, capsys):
    Runs(monkeypatch)
    (tmp_path / "file").touch()
    found = predictions(encoder, labelled(), noise(9), CLASSES, QUICK, cache_dir=tmp_path / "file")
    assert found.tolist() == [7] * 9 and "a rerun will train again" in capsys.readouterr().err
