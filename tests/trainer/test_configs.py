import dataclasses

import jax
import jax.numpy as jnp
import pytest

from pipeline.schema import UserError
from trainer.configs.base import check, fields_of, override
from trainer.configs.experiments import EXPERIMENTS, get_experiment
from trainer.state import make_models
from trainer.tokenizer import train_tokenizer


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_every_experiment_is_sound_and_carries_its_name(name):
    experiment = get_experiment(name)
    check(experiment)
    assert experiment.name == name


def test_a_field_is_overridden_by_its_dotted_name():
    changed = override(
        get_experiment("multitask_demo"), ["optimizer.learning_rate=1e-3", "steps=7", "scan_layers=true"]
    )
    assert (changed.optimizer.learning_rate, changed.steps, changed.scan_layers) == (1e-3, 7, True)
    assert changed.loss == get_experiment("multitask_demo").loss


@pytest.mark.parametrize(
    ("assignment", "message"),
    [
        ("optimiser.learning_rate=1", "there is no field 'optimiser'; the nearest is 'optimizer'"),
        ("optimizer.learning_rte=1", "there is no field 'learning_rte'; the nearest is 'learning_rate'"),
        ("learning_rate=1", "there is no field 'learning_rate'; the nearest is 'optimizer.learning_rate'"),
        ("step=1", "there is no field 'step'; the nearest is 'steps'"),
        ("optimizer=1", "names a group; set one of its fields, e.g. optimizer.kind"),
        ("steps=ten", "steps=ten: this field takes a value of type int"),
        ("scan_layers=1", "scan_layers=1: write true or false"),
        ("remat=true", "remat=true: choose one of none, light, dots, full"),
        ("data.weight_mapping=log", "choose one of value, exponential"),
        ("image.pool=max", "choose one of class_token, mean, flatten"),
        ("steps", "has no '='; write it as FIELD=VALUE"),
        ("steps.more=1", "'steps' has no fields of its own"),
    ],
)
def test_a_bad_assignment_says_what_is_wrong(assignment, message):
    with pytest.raises(UserError, match=message.replace("(", r"\(").replace("'", ".")):
        override(get_experiment("multitask_demo"), [assignment])


@pytest.mark.parametrize(
    ("assignments", "message"),
    [
        (["image.patch_px=7"], "image_size_px 48 is not a multiple of image.patch_px 7"),
        (["image.image_size_px=50"], "image_size_px 50 is not a multiple of image.patch_px 8"),
        (["image.width=130"], "image.width 130 is not a multiple of image.num_heads"),
        (["loss.classification_weight=0", "loss.contrastive_weight=0"], "both loss weights are 0"),
        (["steps=0"], "steps is 0, but must be at least 1; set it with --set steps=1"),
        (["loss.tile_classes=-1"], "loss.tile_classes is -1, but must be at least 0"),
        (["loss.contrastive_temperature=0"], "contrastive_temperature is 0.0, but must be at least 0.01"),
        (["loss.class_scale=101"], "loss.class_scale is 101.0, but must be at most 100"),
        (["loss.class_scale=nan"], "loss.class_scale is nan, but must be at least 0.001"),
        (["loss.contrastive_weight=-1"], "loss.contrastive_weight is -1.0, but must be at least 0"),
        (["text.context_length=1"], "text.context_length is 1, but must be at least 3"),
        (["text.vocabulary_size=258"], "but must be at least 259; set it with --set text.vocabulary_size=259"),
        (["seed=-1"], "seed is -1, but must be at least 0"),
        (["seed=4294967296"], "seed is 4294967296, but must be at most 4294967295"),
        (["data.threads=-1"], "data.threads is -1, but must be at least 1"),
        (["image.depth=-1"], "image.depth is -1, but must be at least 1"),
        (["image.stem_channels=0"], "image.stem_fold_px 4 needs image.stem_channels of at least 1"),
        (["optimizer.clip_norm=-1"], "optimizer.clip_norm is -1.0, but must be at least 0"),
        (
            ["data.alt_text_probability=0.5"],
            r"data.name_probability 0.2, data.description_probability 0.8 and data.alt_text_probability 0.5 add up to "
            "1.5, but must add up to 1; set all three",
        ),
        (["data.name_probability=-0.2", "data.description_probability=1.2"], "name_probability is -0.2, but must be"),
        (["data.weight_mapping=exponential", "data.weight_temperature=0"], "data.weight_temperature is 0.0, but must"),
        (["checkpoints_kept=0"], "checkpoints_kept is 0, but must be at least 1"),
    ],
)
def test_fields_that_do_not_fit_each_other_are_refused(assignments, message):
    with pytest.raises(UserError, match=message):
        check(override(get_experiment("multitask_demo"), assignments))


def test_shares_of_texts_that_add_up_to_one_but_for_rounding_are_accepted():
    shares = ["data.name_probability=0.1", "data.description_probability=0.2", "data.alt_text_probability=0.7"]
    check(override(get_experiment("multitask_demo"), shares))  # 0.1 + 0.2 is 0.30000000000000004


def test_an_unknown_config_is_refused_with_the_nearest():
    with pytest.raises(UserError, match="--config multitask_b61 is unknown; the nearest is multitask_b16, and all are"):
        get_experiment("multitask_b61")


# In millions, as the authors of MOFI state them for the released models; the projections do not count.
@pytest.mark.parametrize(("size", "image", "text"), [("b16", 86, 64), ("l14", 303, 124), ("h14", 631, 354)])
@pytest.mark.parametrize("scan", [True, False])
def test_the_towers_have_the_sizes_of_the_released_models(mixed_dtypes, size, image, text, scan):
    experiment = get_experiment(f"multitask_{size}")
    models = make_models(dataclasses.replace(experiment, scan_layers=scan))

    def millions(model, inputs):
        shapes = jax.eval_shape(lambda: model.init(jax.random.key(0), inputs))["params"]
        assert set(shapes["head"]) == {"kernel"}
        return round(
            sum(leaf.size for name, part in shapes.items() if name != "head" for leaf in jax.tree.leaves(part)) / 1e6
        )

    assert millions(models.image, jnp.zeros((1, 224, 224, 3))) == image
    assert millions(models.text, jnp.zeros((1, 77), jnp.int32)) == text


def test_every_field_has_a_dotted_name_and_a_meaning():
    names = [name for name, _, _ in fields_of(get_experiment("multitask_demo"))]
    assert {"steps", "optimizer.learning_rate", "image.width", "loss.tile_classes"} <= set(names)
    assert len(names) == len(set(names))
    assert all(meaning.text for _, _, meaning in fields_of(get_experiment("multitask_demo")))


def test_the_smallest_vocabulary_is_what_bytes_and_marks_need():
    assert train_tokenizer([], 0, 8).get_vocab_size() == 259


def test_a_tokenizer_folds_case_and_accents_and_fills_the_context():
    tokenizer = train_tokenizer(["red panda"] * 4, 300, 8)
    assert tokenizer.encode("Réd PANDA").ids == tokenizer.encode("red panda").ids
    ids = tokenizer.encode("red").ids
    assert len(ids) == 8
    assert ids[0] == 1 and 2 in ids and ids[-1] == 0
    long = tokenizer.encode("red panda " * 20).ids
    assert len(long) == 8 and long[-1] == 2


@pytest.mark.parametrize(("written", "steps"), [("1e5", 100_000), ("2.5e3", 2500), ("1E+2", 100), ("70", 70)])
def test_a_whole_number_may_be_written_in_scientific_notation(written, steps):
    assert override(get_experiment("multitask_demo"), [f"steps={written}"]).steps == steps


@pytest.mark.parametrize("written", ["1.5", "2.55e1", "1e-1", "1e", "e5", "inf", "nan", "1e999"])
def test_what_is_no_whole_number_is_refused_for_a_count(written):
    with pytest.raises(UserError, match=rf"^--set steps={written}: this field takes a value of type int$"):
        override(get_experiment("multitask_demo"), [f"steps={written}"])
