"""What users touch: ZO2's interface, hooks, saving and loading, messages for mistakes."""

from __future__ import annotations

import contextlib
import copy
import pickle
import subprocess
import sys

import pytest
import torch
import transformers

import zo2
from tests.test_engine import CPU, toy, toy_batch
from tests.tiny import batch, tiny
from zo2.engine.placement import Placement


def prepared(model=None, **settings):
    model = model or tiny("opt")
    placement = settings.pop("placement", None)
    return zo2.prepare(
        model, zo2.ZOConfig(**{**CPU, "weight_decay": 0.0, **settings}), placement=placement
    )


# -- published ZO2 code -----------------------------------------------------------------------


@pytest.fixture
def checkpoint(tmp_path):
    tiny("opt").save_pretrained(tmp_path)
    return str(tmp_path)


@pytest.mark.parametrize("streamed", [True, False])
def test_published_training_loop_runs_unchanged(checkpoint, streamed):
    from zo2 import ZOConfig, zo_hf_init
    from zo2.utils.utils import seed_everything

    seed_everything(42)
    zo_config = ZOConfig(
        method="mezo-sgd",
        zo2=streamed,
        lr=1e-5,
        weight_decay=1e-1,
        eps=1e-3,
        offloading_device="cpu",
        working_device="cpu",
        overlap=True,
    )
    with zo_hf_init(zo_config):
        from transformers import OPTForCausalLM

        model = OPTForCausalLM.from_pretrained(checkpoint)
        model.zo_init(zo_config)
    if not streamed:
        model = model.to("cpu")
    assert hasattr(model, "zo_training")
    ids = torch.randint(3, 90, (2, 12))
    for _ in range(3):
        model.zo_train()
        loss = model(input_ids=ids, labels=ids)
        assert isinstance(loss, torch.Tensor)
        assert loss.dim() == 0
        assert isinstance(model.opt.projected_grad, float)
        model.zo_eval()
        output = model(input_ids=ids, labels=ids)
        assert output["loss"].dim() == 0
    inputs = {"input_ids": ids}
    for _ in range(3):
        logits = model(**inputs, return_dict=True).logits[:, -1, :]
        inputs = {"input_ids": torch.cat([inputs["input_ids"], logits.argmax(-1, True)], -1)}
    assert inputs["input_ids"].shape == (2, 15)


def test_auto_classes_get_zo_init_and_everything_is_restored(checkpoint):
    init = transformers.PreTrainedModel.__init__
    with zo2.zo_hf_init(zo2.ZOConfig(**CPU)):
        model = transformers.AutoModelForCausalLM.from_pretrained(checkpoint)
    assert transformers.PreTrainedModel.__init__ is init
    assert type(model) is transformers.OPTForCausalLM
    plain = transformers.AutoModelForCausalLM.from_pretrained(checkpoint)
    assert not hasattr(plain, "zo_init")
    model.zo_init()  # with the context's settings
    assert model.zo_training
    with pytest.raises(RuntimeError, match="stop"), zo2.zo_hf_init():
        raise RuntimeError("stop")
    assert transformers.PreTrainedModel.__init__ is init


def test_config_is_also_found_where_zo2_has_it():
    from zo2.config.mezo_sgd import MeZOSGDConfig

    config = MeZOSGDConfig(lr=1e-4, weight_decay=0.0, eps=1e-3, working_device="cpu")
    config.zo2 = False
    assert config.zo_method == "mezo-sgd"
    assert isinstance(zo2.ZOConfig("mezo-sgd"), MeZOSGDConfig)
    model = zo2.prepare(toy(), config)
    assert torch.isfinite(model(**toy_batch()))


def test_a_missing_gpu_is_said_and_the_cpu_used():
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    with pytest.warns(UserWarning, match="torch sees no GPU; using the CPU"):
        model = zo2.prepare(toy(), zo2.ZOConfig(working_device="cuda:0"))
    assert torch.isfinite(model(**toy_batch()))


def test_seed_everything_repeats_a_run():
    from zo2.utils import seed_everything

    def run(seed):
        model = toy()
        seed_everything(seed)
        zo2.prepare(model, zo2.ZOConfig(working_device="cpu"))
        return [model(**toy_batch()).item() for _ in range(3)]

    assert run(5) == run(5)
    assert run(5) != run(6)


# -- optimizer --------------------------------------------------------------------------------


@contextlib.contextmanager
def default_dtype(dtype):
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


@pytest.mark.parametrize(
    "default",
    [
        lambda: default_dtype(torch.bfloat16),
        lambda: default_dtype(torch.float64),
        lambda: torch.device("meta"),
    ],
    ids=["bfloat16", "float64", "another device"],
)
@pytest.mark.parametrize("direction", ["gaussian", "rademacher", "rank1"])
@pytest.mark.parametrize("method", ["mezo-sgd", "fzoo"])
def test_the_defaults_for_new_tensors_change_nothing(method, direction, default):
    plain = tiny("llama", dtype=torch.bfloat16)
    one = batch(plain)
    found = []
    for context in (contextlib.nullcontext, default):
        model = copy.deepcopy(plain)
        with context():
            settings = {**CPU, "direction": direction, "lr": 1e-2}
            zo2.prepare(model, zo2.ZOConfig(method, **settings))
            found.append([model(**one).item() for _ in range(3)])
            found.append(model.state_dict())
    assert found[0] == found[2]
    assert all(torch.equal(found[1][name], found[3][name]) for name in found[1])


def test_projected_grad_zero_drops_the_pending_update():
    model = prepared(toy(), lr=1e-2)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    model(**toy_batch())
    assert model.opt.projected_grad != 0
    model.opt.projected_grad = 0
    assert model.opt.projected_grad == 0
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())
    model(**toy_batch())
    model.state_dict()  # applies it
    model.opt.projected_grad = 0  # too late, and harmless
    assert not all(torch.equal(before[k], v) for k, v in model.state_dict().items())
    with pytest.raises(zo2.ZO2Error, match="has been applied"):
        model.opt.projected_grad = 1.0


def test_torch_schedulers_set_the_learning_rate():
    model = prepared(toy(), lr=1e-2)
    scheduler = torch.optim.lr_scheduler.LambdaLR(model.opt, lambda step: 0.5**step)
    rates, terms = [], []
    for _ in range(3):
        model(**toy_batch())
        rates.append(model.opt.lr)
        ((_, coefficient),) = model._zo.engine.pending.open[-1].terms
        terms.append(coefficient / model.opt.projected_grad)
        model.opt.step()
        scheduler.step()
    assert rates == [1e-2, 5e-3, 2.5e-3]
    assert terms == pytest.approx([-r for r in rates])


def test_a_run_goes_on_from_its_state_dicts():
    one = toy_batch()
    straight = prepared(toy(), lr=1e-2, seed=3)
    for _ in range(6):
        straight(**one)
    first = prepared(toy(), lr=1e-2, seed=3)
    for _ in range(3):
        first(**one)
    weights = {k: v.clone() for k, v in first.state_dict().items()}
    progress = copy.deepcopy(first.opt.state_dict())
    second = prepared(toy(seed=9), lr=1.0, seed=8)
    second.load_state_dict(weights)
    second.opt.load_state_dict(progress)
    for _ in range(3):
        second(**one)
    for name, value in straight.state_dict().items():
        assert torch.equal(value, second.state_dict()[name]), name


# -- hooks and losses -------------------------------------------------------------------------


def test_hooks_see_and_change_what_the_loss_is_made_of():
    model, seen = prepared(lr=0.0), []
    plain = copy.deepcopy(model)
    one = batch(model)

    def pre(m, input_ids, logits, labels):
        seen.append(("pre", input_ids.shape, logits.shape, labels.shape))
        return input_ids, logits * 1.0, labels

    def post(m, loss, input_ids, logits, labels):
        seen.append(("post", m is model))
        return loss * 2, input_ids, logits, labels

    model.register_zo_train_loss_fn_pre_hook(pre)
    model.register_zo_train_loss_fn_post_hook(post)
    twin = prepared(plain, lr=0.0)
    assert model(**one).item() == pytest.approx(2 * twin(**one).item(), rel=1e-6)
    assert [entry[0] for entry in seen] == ["pre", "post"] * 2
    assert seen[1] == ("post", True)
    assert model.opt.projected_grad == pytest.approx(2 * twin.opt.projected_grad, rel=1e-2)
    model.zo_eval()
    seen.clear()
    model(**one)
    assert not seen
    model.register_zo_eval_loss_fn_post_hook(post)
    twin.zo_eval()
    doubled, single = model(**one).loss.item(), twin(**one).loss.item()
    assert doubled == pytest.approx(2 * single, rel=1e-4)


def test_a_loss_that_nothing_can_be_differentiated_through():
    model = prepared(tiny("llama"), eps=0.3)
    one = batch(model)
    losses = []

    def error_rate(m, input_ids, logits, labels, **kwargs):
        assert set(kwargs) <= {"attention_mask", "use_cache"}
        wrong = (logits[:, :-1].argmax(-1) != labels[:, 1:]).float().mean().item()
        losses.append(wrong)
        return wrong

    model.zo_custom_train_loss_fn = error_rate
    loss = model(**one)
    assert loss.item() == losses[0]
    assert len(losses) == 2
    assert model.opt.projected_grad == pytest.approx((losses[0] - losses[1]) / 0.6)
    model.zo_eval()
    model.zo_custom_eval_loss_fn = lambda m, ids, logits, labels, **kwargs: torch.tensor(0.25)
    assert model(**one).loss.item() == 0.25
    assert "loss" not in model(input_ids=one["input_ids"])


@pytest.mark.parametrize("head", ["sequence", "question"])
def test_hooks_before_the_loss_for_every_head(head):
    model = prepared(tiny("opt", head))
    twin = copy.deepcopy(model)
    one = batch(model)
    count = {"sequence": 3, "question": 5}[head]

    def pre(m, *values):
        assert len(values) == count
        return values

    model.register_zo_train_loss_fn_pre_hook(pre)
    prepared(twin)
    assert model(**one).item() == pytest.approx(twin(**one).item(), rel=1e-5)


def test_labels_of_a_custom_loss_are_not_shown_to_the_model():
    model = prepared(tiny("llama"))
    ids = batch(model)["input_ids"]
    model.zo_custom_train_loss_fn = lambda m, i, logits, labels, **kw: (
        logits.mean() * labels[0, 0, 0]
    )
    assert torch.isfinite(model(input_ids=ids, labels=torch.ones(3, 2, 5)))


def test_no_labels_is_said():
    model = prepared()
    with pytest.raises(zo2.DataError, match="pass labels"):
        model(input_ids=batch(model)["input_ids"])


# -- weights between steps --------------------------------------------------------------------


@pytest.mark.parametrize("slots", [None, 1, 3])
def test_every_way_of_reading_weights_sees_the_last_update(slots, tmp_path):
    placement = slots and Placement(slots=slots, copies=True)
    settings = {"lr": 1e-1, "placement": placement}
    reference = prepared(tiny("llama"), **settings)
    one = batch(reference)
    reference(**one)
    reference._zo.engine.settle()
    expected = {k: v.clone() for k, v in reference.state_dict().items()}
    name = "model.layers.1.mlp.up_proj.weight"
    start = tiny("llama").state_dict()[name]
    assert not torch.equal(start, expected[name])

    def saved(model):
        model.save_pretrained(tmp_path, safe_serialization=True)
        return transformers.AutoModelForCausalLM.from_pretrained(tmp_path).state_dict()[name]

    readers = {
        "state_dict": lambda m: m.state_dict()[name],
        "attribute": lambda m: m.model.layers[1].mlp.up_proj.weight + 0,
        "named_parameters": lambda m: dict(m.named_parameters())[name].clone(),
        "data": lambda m: m.get_parameter(name).data,
        "numpy": lambda m: torch.from_numpy(m.get_parameter(name).detach().numpy()),
        "save_pretrained": saved,
        "deepcopy": lambda m: copy.deepcopy(m).get_parameter(name),
        "release": lambda m: zo2.release(m).get_parameter(name),
        "to": lambda m: m.to(torch.float64).get_parameter(name).float(),
        "inference mode": lambda m: _in_inference_mode(m.get_parameter(name)),
    }
    for way, read in readers.items():
        model = prepared(tiny("llama"), **settings)
        model(**one)
        assert torch.equal(read(model), expected[name]), way


def _in_inference_mode(parameter):
    with torch.inference_mode():
        return parameter * 1.0


def test_asking_for_a_device_or_shape_does_not_apply_anything():
    model = prepared(tiny("llama"))
    model(**batch(model))
    assert model.device == torch.device("cpu")
    assert model.dtype == torch.float32
    assert model.num_parameters() > 0
    assert sum(p.numel() for p in model.parameters() if p.requires_grad) > 0
    assert {p.shape for p in model.parameters()}
    assert len(model._zo.engine.pending) == 1


def test_writing_weights_between_steps_is_seen_by_the_next():
    model, twin = prepared(toy()), prepared(toy(seed=1))
    one = toy_batch()
    model(**one)
    weights = {k: v.clone() for k, v in model.state_dict().items()}
    twin.load_state_dict(weights)
    twin.opt.steps = model.opt.steps
    assert twin(**one).item() == model(**one).item()
    with torch.no_grad():
        for m in (model, twin):
            m.head.weight.mul_(0.5)
            m.layers[0].linear.weight.data.add_(0.1)
    assert twin(**one).item() == model(**one).item()


@pytest.mark.parametrize("placement", [None, Placement(slots=2, copies=True)])
def test_data_that_a_weight_is_given_between_steps_are_its_weights(placement):
    models = [prepared(toy(), placement=placement) for _ in range(2)]
    one, new = toy_batch(), torch.randn(toy().head.weight.shape)
    for model in models:
        model(**one)
        model(**one)
    models[0].head.weight.data = new.clone()
    with torch.no_grad():
        models[1].head.weight.copy_(new)
    assert models[0](**one).item() == models[1](**one).item()
    first, second = (model.state_dict() for model in models)
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_moving_and_converting_a_prepared_model():
    model = prepared(toy())
    one = toy_batch()
    model(**one)
    model.double().float()
    a = model(**one)
    model.to(torch.bfloat16)
    b = model(**one)
    assert model.head.weight.dtype == torch.bfloat16
    assert b.item() == pytest.approx(a.item(), rel=0.05)


@pytest.mark.parametrize("family", ["opt", "llama"])
def test_saved_model_gives_the_same_logits(family, tmp_path):
    model = prepared(tiny(family), lr=1e-2, placement=Placement(slots=2, copies=True))
    one = batch(model)
    for _ in range(3):
        model(**one)
    model.save_pretrained(tmp_path)
    model.zo_eval()
    logits = model(**one).logits
    plain = transformers.AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    with torch.no_grad():
        assert torch.equal(plain(**one).logits, logits)
    assert plain.config.architectures == [type(model).__name__]


@pytest.mark.parametrize("family", ["opt", "llama", "mixtral"])
def test_generate_on_a_streamed_model(family):
    model = tiny(family)
    ids = batch(model, padded=False)["input_ids"][:, :5]
    settings = {"max_new_tokens": 6, "do_sample": False, "min_new_tokens": 6, "pad_token_id": 0}
    expected = model.generate(ids, **settings)
    prepared(model, placement=Placement(slots=2, copies=True))
    model.zo_eval()
    assert torch.equal(model.generate(ids, **settings), expected)
    assert torch.equal(model.generate(ids, num_beams=1, **settings), expected)
    static = getattr(model, "_supports_static_cache", True)  # which older releases ask
    for mode in (torch.no_grad, torch.inference_mode) if static else ():
        with mode():  # a cache that is made in it is written to in place
            found = model.generate(ids, cache_implementation="static", **settings)
        assert torch.equal(found, expected)
    logits = [model(ids).logits]
    with torch.inference_mode():
        logits.append(model(ids).logits)
    assert [one.is_inference() for one in logits] == [False, True]
    assert torch.equal(*logits)
    float(model.zo_step([{"input_ids": ids, "labels": ids}]))  # which finds nothing of that mode


@pytest.mark.parametrize("mode", [contextlib.nullcontext, torch.no_grad, torch.inference_mode])
def test_evaluations_keep_no_activations_for_gradients(mode):
    model = prepared(tiny("llama"), placement=Placement(slots=2, copies=True))
    one = batch(model)
    model.zo_eval()
    asked = []

    def reduce(number, output):
        asked.append(torch.is_grad_enabled())
        return output.logits

    with mode():
        found = [model(**one).logits, *model.zo_forward([one], reduce)]
    assert asked == [False]
    assert not any(one.requires_grad for one in found)


def test_many_batches_are_evaluated_in_one_sweep():
    model = tiny("llama", num_hidden_layers=5)
    batches = [batch(model, seed=s) for s in range(5)]
    with torch.no_grad():
        expected = [model(**one).logits for one in batches]
    prepared(model, placement=Placement(slots=1, copies=True))
    uploads = []
    lanes = model._zo.engine._workspace.stream._lanes
    upload = lanes.upload
    lanes.upload = lambda *args: uploads.append(1) or upload(*args)
    outputs = model.zo_forward(batches)
    assert all(torch.equal(o.logits, e) for o, e in zip(outputs, expected, strict=True))
    count = len(uploads)
    model.zo_forward(batches)
    assert len(uploads) - count == model.config.num_hidden_layers
    assert model.zo_forward([]) == []


@pytest.mark.parametrize("parts", [1, 4])
@pytest.mark.parametrize("method", ["mezo-sgd", "fzoo"])
def test_a_step_uploads_the_weights_once_however_many_passes_it_has(parts, method):
    model = tiny("llama", num_hidden_layers=5)
    one = batch(model)
    batches = [{name: value.chunk(parts)[i] for name, value in one.items()} for i in range(parts)]
    config = zo2.ZOConfig(method, **CPU)
    zo2.prepare(model, config, placement=Placement(slots=2, copies=True))
    model.zo_step(batches)  # the first is preceded by a recorded pass
    lanes = model._zo.engine._workspace.stream._lanes
    uploads, upload = [], lanes.upload
    lanes.upload = lambda *args: uploads.append(1) or upload(*args)
    model.zo_step(batches)
    assert len(uploads) == model.config.num_hidden_layers


def test_release_gives_back_an_ordinary_model():
    model = tiny("llama")
    attributes = set(model.__dict__)
    one = batch(model)
    prepared(model, lr=1e-2)
    model(**one)
    zo2.release(model)
    assert set(model.__dict__) == attributes
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    model(**one).loss.backward()
    assert model.lm_head.weight.grad is not None
    with pytest.raises(zo2.ModelError, match="not prepared"):
        zo2.release(model)
    prepared(model)
    assert torch.isfinite(model(**one))


def test_deepcopy_is_ordinary_and_independent():
    model = prepared(tiny("llama"), lr=1e-2)
    one = batch(model)
    model(**one)
    other = copy.deepcopy(model)
    assert not hasattr(other, "zo_training")
    kept = {k: v.clone() for k, v in other.state_dict().items()}
    model(**one)
    model(**one)
    assert all(torch.equal(kept[k], v) for k, v in other.state_dict().items())
    assert torch.isfinite(other(**one).loss)


def test_copies_of_parts_are_ordinary():
    model = prepared(tiny("llama"), lr=1e-2)
    one = batch(model)
    model(**one)
    layer = copy.deepcopy(model.model.layers[0])
    assert {type(weight) for weight in layer.parameters()} == {torch.nn.Parameter}
    kept = layer.mlp.up_proj.weight.clone()
    assert torch.equal(model.model.layers[0].mlp.up_proj.weight, kept)
    model(**one)
    assert torch.equal(layer.mlp.up_proj.weight, kept)
    assert not torch.equal(model.model.layers[0].mlp.up_proj.weight, kept)


def test_weights_of_two_models_that_lack_updates_are_compared_as_they_are():
    models = [prepared(tiny("llama"), lr=1e-2) for _ in range(2)]
    for model in models:
        model(**batch(model))
    one, other = (model.lm_head.weight for model in models)
    assert torch.equal(one, other)


# -- mistakes ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"lr": float("nan")}, "lr must be a finite number"),
        ({"eps": 0}, "eps must be greater than 0"),
        ({"eps": -1.0}, "eps must be a finite number >= 0"),
        ({"unit": "layer"}, "unit must be one of block, leaf"),
        ({"slots": 0}, "slots must be an integer of at least 1"),
        ({"offloading_device": "nvme"}, "weights are streamed from host memory"),
        ({"amp": True}, "load the model in the precision"),
        ({"learning_rate": 1e-3}, "no setting 'learning_rate'"),
        ({"weigth_decay": 0.1}, "Did you mean 'weight_decay'"),
        ({"seed": -1}, "seed must be an integer in"),
        ({"seed": 1.5}, "seed must be an integer in"),
        ({"seed": "1"}, "seed must be an integer in"),
        ({"offloading_blocks": 1}, "must be a list of block numbers"),
        ({"offloading_blocks": "all"}, "must be a list of block numbers"),
        ({"method": "adam"}, "choose one of mezo-sgd, fzoo"),
        ({"method": "fzoo", "directions": 1}, "at least 2"),
        ({"working_device": "tpu7"}, "is not a device"),
        ({"working_device": "meta"}, "must be a CUDA device or the CPU"),
        ({"direction": "gausian"}, "did you mean 'gaussian'"),
    ],
)
def test_settings_that_cannot_work(settings, message):
    with pytest.raises(zo2.ConfigError, match=message):
        zo2.prepare(toy(), zo2.ZOConfig(**settings))


def test_models_that_cannot_be_prepared_name_the_parameter():
    model = toy()
    model.layers[1].linear.weight = torch.nn.Parameter(
        torch.zeros(8, 8, dtype=torch.int8), requires_grad=False
    )
    with pytest.raises(zo2.ModelError, match=r"layers\.1\.linear\.weight is quantised"):
        zo2.prepare(model)
    with pytest.raises(zo2.ModelError, match=r"embed\.weight is torch\.float64"):
        zo2.prepare(toy().double())
    with torch.device("meta"):
        model = toy()
    with pytest.raises(zo2.ModelError, match=r"embed\.weight has no data"):
        zo2.prepare(model)
    model = toy()
    model.requires_grad_(False)
    with pytest.raises(zo2.ModelError, match="Every parameter is frozen"):
        zo2.prepare(model)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    model = toy()
    model.hf_device_map = {"embed": "cpu", "layers": "disk"}
    with pytest.raises(zo2.ModelError, match="without device_map"):
        zo2.prepare(model)
    with pytest.raises(zo2.ModelError, match="within DataParallel"):
        zo2.prepare(torch.nn.DataParallel(toy()))
    with pytest.raises(zo2.ModelError, match=r"prepared already.*zo2\.release\(model\) first"):
        zo2.prepare(zo2.prepare(toy(), zo2.ZOConfig(**CPU)))
    model = tiny("opt")
    zo2.prepare(model.model, zo2.ZOConfig(**CPU))
    with pytest.raises(zo2.ModelError, match=r"part model is prepared already; call zo2\.release"):
        zo2.prepare(model)
    model = toy()
    model.embed.max_norm = 1.0
    with pytest.raises(zo2.ModelError, match="embedding embed rescales its weights"):
        zo2.prepare(model)
    with pytest.raises(zo2.ConfigError, match="config must be a ZOConfig"):
        zo2.prepare(toy(), {"lr": 1e-3})


def test_a_prepared_model_is_not_pickled():
    model = prepared()
    with pytest.raises(zo2.ModelError, match=r"cannot be pickled.*zo2\.release"):
        pickle.dumps(model)
    assert isinstance(pickle.loads(pickle.dumps(zo2.release(model))), type(model))


def test_numbers_of_numpy_are_numbers():
    numpy = pytest.importorskip("numpy")
    one = batch(tiny("opt"))
    losses = [
        prepared(lr=lr, seed=seed)(**one).item()
        for lr, seed in [(numpy.float32(0.5), numpy.int64(7)), (0.5, 7)]
    ]
    assert losses[0] == losses[1]


def test_accelerate_hooks_are_refused():
    accelerate = pytest.importorskip("accelerate")
    model = toy()
    accelerate.hooks.add_hook_to_module(model.layers[0], accelerate.hooks.ModelHook())
    with pytest.raises(zo2.ModelError, match="accelerate hooks"):
        zo2.prepare(model)


# -- import -----------------------------------------------------------------------------------


def test_import_does_not_load_torch():
    code = (
        "import sys, zo2; from zo2 import ZOConfig; c = ZOConfig(lr=1e-5); "
        "import zo2.config.mezo_sgd; "
        "print(sorted({'torch', 'transformers', 'numpy', 'numba'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_public_names():
    for name in zo2.__all__:
        assert getattr(zo2, name) is not None
    assert set(zo2.__all__) <= set(dir(zo2))
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = zo2.nothing
