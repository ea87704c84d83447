"""Kinds of models beside language models with one decoder: the same steps, to the last bit."""

from __future__ import annotations

import pytest
import torch
import transformers

from tests.oracle import naive_mezo
from tests.test_models import EPS, SEED, SLOTS, prepared
from tests.tiny import SIZES, STACKS, VOCABULARY

PATCHES = {"image_size": 32, "patch_size": 8}


def tokens(length, most=90):
    generator = torch.Generator().manual_seed(length)
    return torch.randint(3, most, (2, length), generator=generator)


def noise(*shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


def translates():
    config = transformers.T5Config(
        vocab_size=VOCABULARY, d_model=32, d_kv=8, d_ff=48, num_layers=2, num_heads=4,
        decoder_start_token_id=0,
    )  # fmt: skip
    model = transformers.T5ForConditionalGeneration(config)
    return model, {"input_ids": tokens(10), "labels": tokens(7)}


def fills_masks():
    model = transformers.BertForMaskedLM(transformers.BertConfig(vocab_size=VOCABULARY, **SIZES))
    return model, {"input_ids": tokens(10), "labels": tokens(10)}


def sees():
    model = transformers.ViTForImageClassification(transformers.ViTConfig(**SIZES, **PATCHES))
    return model, {"pixel_values": noise(2, 3, 32, 32), "labels": torch.tensor([0, 1])}


def compares_images_with_texts():
    config = transformers.CLIPConfig(
        text_config={"vocab_size": VOCABULARY, **SIZES},
        vision_config={**SIZES, **PATCHES},
        projection_dim=16,
    )
    inputs = {"input_ids": tokens(10), "pixel_values": noise(2, 3, 32, 32), "return_loss": True}
    return transformers.CLIPModel(config), inputs


def talks_about_images():
    text = transformers.LlamaConfig(vocab_size=VOCABULARY, num_key_value_heads=2, **SIZES)
    config = transformers.LlavaConfig(
        vision_config=transformers.CLIPVisionConfig(**SIZES, **PATCHES, projection_dim=32),
        text_config=text,
        image_token_index=95,
    )
    config.vision_feature_select_strategy, config.image_seq_length = "default", 16
    ids = tokens(24)
    ids[:, 1:17] = 95  # an image of 4 x 4 patches
    inputs = {"pixel_values": noise(2, 3, 32, 32), "labels": ids.masked_fill(ids == 95, -100)}
    return transformers.LlavaForConditionalGeneration(config), {"input_ids": ids, **inputs}


def writes_down_speech():
    config = transformers.WhisperConfig(
        vocab_size=VOCABULARY, **STACKS, num_mel_bins=8, max_source_positions=20,
        max_target_positions=20, pad_token_id=0, bos_token_id=1, eos_token_id=2,
        decoder_start_token_id=1, suppress_tokens=None, begin_suppress_tokens=None,
    )  # fmt: skip
    inputs = {"input_features": noise(2, 8, 40), "labels": tokens(6)}
    return transformers.WhisperForConditionalGeneration(config), inputs


def hears():
    config = transformers.Wav2Vec2Config(
        vocab_size=20, **SIZES, conv_dim=(16, 16), conv_stride=(5, 2), conv_kernel=(10, 3),
        num_feat_extract_layers=2, num_conv_pos_embeddings=16, num_conv_pos_embedding_groups=4,
        mask_time_prob=0.0, mask_feature_prob=0.0,
    )  # fmt: skip
    inputs = {"input_values": noise(2, 800), "labels": tokens(5, 18)}
    return transformers.Wav2Vec2ForCTC(config), inputs


KINDS = [
    translates, fills_masks, sees, compares_images_with_texts, talks_about_images,
    writes_down_speech, hears,
]  # fmt: skip


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
@pytest.mark.parametrize("unit", ["block", "leaf"])
def test_steps_are_those_of_mezo(unit, kind):
    torch.manual_seed(0)
    model, one = kind()
    model = model.float().eval()
    settings = {"lr": 1e-3, "weight_decay": 0.1}
    losses, weights = naive_mezo(model, [one], eps=EPS, seed=SEED, steps=3, **settings)
    for placement in (None, SLOTS):
        trained, seen = prepared(model, placement, unit=unit, **settings)
        for _ in range(3):
            trained(**one)
        assert seen == losses
        state = dict(trained.named_parameters())
        assert all(torch.equal(state[name], weights[name]) for name in weights)
