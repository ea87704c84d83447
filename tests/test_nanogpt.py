import copy

import pytest
import torch
from torch.nn import functional

import zo2
from zo2.errors import ConfigError, DataError
from zo2.model.nanogpt import GPT, GPTConfig, GPTConfigs
from zo2.model.nanogpt.mezo_sgd import get_nanogpt_mezo_sgd

SMALL = GPTConfig(block_size=16, vocab_size=40, n_layer=2, n_head=2, n_embd=16)


def made(config=SMALL, seed=0):
    torch.manual_seed(seed)
    return GPT(config).eval()


def tokens(rows=2, length=10, seed=1):
    return torch.randint(40, (rows, length), generator=torch.Generator().manual_seed(seed))


def test_shapes_and_default_positions():
    ids = tokens()
    logits, loss = made()(ids)
    assert logits.shape == (2, 10, 40)
    assert loss is None
    assert torch.equal(made()(ids, torch.arange(10))[0], logits)
    assert not torch.allclose(made()(ids, torch.arange(10).flip(0))[0], logits)


def test_the_loss_compares_with_the_following_target():
    ids = tokens()
    targets = ids.clone()
    targets[0, 3:6] = -100
    logits, loss = made()(ids, targets=targets)
    wanted = [
        functional.cross_entropy(logits[row, place], ids[row, place + 1])
        for row in range(2)
        for place in range(9)
        if targets[row, place + 1] != -100
    ]
    assert len(wanted) == 15
    torch.testing.assert_close(loss, torch.stack(wanted).mean())


def test_no_token_sees_a_later_one():
    ids = tokens()
    changed = ids.clone()
    changed[:, 6:] = (changed[:, 6:] + 1) % 40
    before, after = made()(ids)[0], made()(changed)[0]
    torch.testing.assert_close(before[:, :6], after[:, :6])
    assert not torch.allclose(before[:, 6:], after[:, 6:])


@pytest.mark.parametrize("bias", [True, False])
def test_bias_can_be_left_out_everywhere(bias):
    model = made(GPTConfig(16, 40, 1, 2, 16, bias=bias))
    assert any(name.endswith("bias") for name, _ in model.named_parameters()) is bias


def test_dropout_only_acts_in_training_mode():
    model = made(GPTConfig(16, 40, 1, 2, 16, dropout=0.5))
    assert torch.equal(model(tokens())[0], model(tokens())[0])
    model.train()
    assert not torch.equal(model(tokens())[0], model(tokens())[0])


def test_the_head_has_weights_of_its_own():
    model = made()
    assert model.head.weight is not model.tokens.weight
    with torch.device("meta"):
        count = sum(p.numel() for p in GPT(GPTConfigs.gpt2).parameters())
    # GPT-2 has 124,439,808; here are 47 tokens more, and a second table of tokens as head
    assert count == 124_439_808 + 47 * 768 + 50_304 * 768


def test_what_cannot_work_is_refused():
    with pytest.raises(ConfigError, match="n_head = 3 must divide n_embd = 16"):
        GPT(GPTConfig(n_head=3, n_embd=16))
    with pytest.raises(DataError, match="17 tokens is longer than block_size = 16"):
        made()(tokens(length=17))


def test_a_step_is_mezo_worked_out_by_hand():
    """Published ZO2 code's way to call it, against two plain forwards with z = 1 everywhere."""
    zo = zo2.MeZOSGDConfig(lr=1e-2, eps=1e-3, weight_decay=0.0, debug_mode=True, seed=0)
    ids, pos = tokens(), torch.arange(10)[None]
    plain = made()

    def loss_at(shift):
        moved = copy.deepcopy(plain)
        with torch.no_grad():
            for weight in moved.parameters():
                weight += shift
            return moved(ids, pos, ids)[1]

    plus, minus = loss_at(zo.eps), loss_at(-zo.eps)
    torch.manual_seed(0)
    model = get_nanogpt_mezo_sgd(zo)(SMALL, zo)
    model.zo_train()
    loss = model(ids, pos, ids)
    torch.testing.assert_close(loss, plus)
    gradient = float(plus - minus) / (2 * zo.eps)
    assert model.opt.projected_grad == pytest.approx(gradient, abs=2e-4)
    step = zo.lr * model.opt.projected_grad
    for name, weight in model.named_parameters():
        wanted = dict(plain.named_parameters())[name] - step
        torch.testing.assert_close(weight, wanted, rtol=0, atol=1e-7)
    model.zo_eval()
    logits, loss = model(ids, pos, ids)
    assert logits.shape == (2, 10, 40)
    assert loss.dim() == 0


def test_it_learns():
    zo = zo2.FZOOConfig(lr=2e-2, eps=1e-3, weight_decay=0.0, seed=0)
    torch.manual_seed(0)
    model = get_nanogpt_mezo_sgd(zo)(SMALL)
    ids = torch.arange(12).repeat(4, 1)
    losses = [float(model(ids, None, ids)) for _ in range(60)]
    assert losses[0] == pytest.approx(3.7, abs=0.2)  # ln 40
    assert losses[-1] < losses[0] - 0.5
