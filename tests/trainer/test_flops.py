import pytest

from trainer.configs.base import Data, Experiment, ImageTower, Loss, TextTower
from trainer.flops import image_flops, step_flops, text_flops

# 4 patches of 2 x 2 pixels and a class token.
IMAGE = ImageTower(image_size_px=4, patch_px=2, width=8, depth=3, num_heads=2, mlp_ratio=2)
TEXT = TextTower(context_length=6, width=4, depth=2, num_heads=2, mlp_ratio=4)


def test_the_image_tower_counts_patches_blocks_and_projection():
    # 4 patches of 12 numbers to 8: 2 * 4 * 12 * 8 = 768. 5 tokens in each of 3 blocks: 4 matrices 8 x 8 and two 8 x 16,
    # 2 * 512 = 1024, and 2 * 2 * 5 * 8 = 160 for the attention: 3 * 5 * 1184 = 17,760. To 10: 2 * 8 * 10 = 160.
    assert image_flops(IMAGE, 10) == 768 + 17_760 + 160


def test_a_folded_stem_and_a_flat_head_count():
    folded = ImageTower(
        image_size_px=4, patch_px=2, stem_fold_px=1, stem_channels=5, width=8, depth=1, num_heads=2, pool="flatten"
    )
    # 16 pixels of 3 numbers to 5: 2 * 16 * 15 = 480. 4 patches of 4 * 5 to 8: 2 * 4 * 20 * 8 = 1280. 4 tokens of a
    # block with 12 * 64 parameters: 4 * (2 * 768 + 2 * 2 * 4 * 8) = 6656. All tokens to 10: 2 * 4 * 8 * 10 = 640.
    assert image_flops(folded, 10) == 480 + 1280 + 6656 + 640


def test_the_text_tower_counts_all_tokens_of_the_context():
    # 6 tokens in each of 2 blocks: 2 * 12 * 16 = 384 and 2 * 2 * 6 * 4 = 96; the projection 2 * 4 * 10 = 80.
    assert text_flops(TEXT, 10) == 2 * 6 * (384 + 96) + 80


@pytest.mark.parametrize(("classifies", "contrasts"), [(1, 0), (0, 1), (1, 1)])
def test_a_step_counts_forward_once_and_backward_twice(classifies, contrasts):
    experiment = Experiment(
        name="x",
        steps=1,
        embedding_dim=10,
        image=IMAGE,
        text=TEXT,
        data=Data(batch_size=7),
        loss=Loss(classification_weight=classifies, contrastive_weight=contrasts),
    )
    of_an_image = 768 + 17_760 + 160
    of_an_image += classifies * 2 * 1000 * 10
    of_an_image += contrasts * (5760 + 80 + 2 * 7 * 10)
    assert step_flops(experiment, 1000) == 3 * 7 * of_an_image
