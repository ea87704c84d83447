"""Tasks and models: losses, choices and answers against plain transformers, and truncation."""

import functools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import zo2
from tests import checkpoint
from tests.test_tasks import RECORDS
from tests.tiny import tiny
from zo2 import evaluation
from zo2.errors import DataError
from zo2.evaluation import choice_scores
from zo2.loading import Loaded
from zo2.prompts import Prompt, encoder
from zo2.tasks import Example, get_task, modes
from zo2.tasks.encoding import Encoder, check_words
from zo2.tasks.prediction import Exam
from zo2.training import Plan, train

FAMILIES = {
    "llama": {"max_position_embeddings": 512},
    "opt": {"max_position_embeddings": 512},
    "gpt2": {"n_positions": 512},
}
PAD = 0


@functools.cache
def tokenizer():
    return checkpoint.tokenizer()


@functools.cache
def encode():
    return encoder(tokenizer())


def model(family, prepared=True, **settings):
    made = tiny(family, vocab_size=304, **FAMILIES[family])
    if prepared:
        zo2.prepare(made, zo2.ZOConfig(working_device="cpu", seed=0, **settings))
    return made


def examples(name):
    """Two examples of unlike lengths."""
    task = get_task(name)
    one, other = (
        task.example(row) for record in RECORDS[name][:1] * 2 for row in task.rows(record)
    )
    prompt = other.prompt
    longer = Prompt(prompt.before, "Long ago. " + prompt.text, prompt.after, prompt.endings)
    return task, [one, Example(longer, other.right)]


def log_likelihood(plain, body, ending):
    """Of the ending's tokens, by one forward of plain transformers: (sum, number of tokens)."""
    whole = tokenizer()(body + ending, return_tensors="pt", add_special_tokens=False)["input_ids"]
    alone = tokenizer()(body, add_special_tokens=False)["input_ids"]
    start = len(alone)
    assert whole[0, :start].tolist() == alone  # nothing merges across the border here
    with torch.no_grad():
        logs = plain(input_ids=whole).logits[0].log_softmax(-1)
    places = range(start, whole.shape[1])
    return sum(float(logs[place - 1, whole[0, place]]) for place in places), len(places)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("name", ["SST2", "CB", "COPA", "ReCoRD"])
def test_choices_score_as_plain_transformers_says(family, name):
    task, found = examples(name)
    plain = model(family, prepared=False)
    direct = [
        [log_likelihood(plain, one.prompt.body, ending) for ending in one.prompt.endings]
        for one in found
    ]
    exam = Exam.prepare(task, found, Encoder(encode(), 512))
    loaded = Loaded(model(family), tokenizer())
    scored = choice_scores(loaded.model, exam.inputs, PAD)
    for mine, theirs in zip(scored, direct, strict=True):
        assert mine.tolist() == pytest.approx([total for total, _ in theirs], abs=1e-3)
    by_token = name in ("COPA", "ReCoRD")
    wanted = [
        max(range(len(row)), key=lambda i: row[i][0] / (row[i][1] if by_token else 1))
        for row in direct
    ]
    assert exam.answers(loaded, PAD) == wanted
    assert loaded.model.zo_training


def test_scores_do_not_depend_on_batches_and_many_batches_share_a_sweep(monkeypatch):
    _, found = examples("ReCoRD")
    questions = [Encoder(encode(), 512).compared(one) for one in found * 3]
    made = model("llama")
    sweeps = []
    forward = made.zo_forward
    made.zo_forward = lambda batches, *rest: sweeps.append(len(batches)) or forward(batches, *rest)
    whole = choice_scores(made, questions, PAD)
    assert sweeps == [1]
    monkeypatch.setattr(evaluation, "LOGITS_BYTES", 4 * 304 * 300)  # 300 tokens a batch
    small = choice_scores(made, questions, PAD)
    assert len(sweeps) == 2
    assert sweeps[1] > 1
    monkeypatch.setattr(evaluation, "SWEEP_TOKENS", 1)
    alone = choice_scores(made, questions, PAD)
    assert sweeps[2:] == [1] * sweeps[1]
    for other in (small, alone):
        for one, two in zip(whole, other, strict=True):
            torch.testing.assert_close(one, two)


@pytest.mark.parametrize("name", ["SST2", "CB", "COPA", "ReCoRD", "SQuAD"])
def test_the_loss_is_over_the_answer_alone(name):
    task, found = examples(name)
    plain = model("llama", prepared=False)
    sums, losses, tokens = [], [], 0
    for one in found:
        row = [log_likelihood(plain, one.prompt.body, ending) for ending in one.prompt.endings]
        total, count = row[one.right[0]]
        sums.append(-total)
        tokens += count
        scores = torch.tensor([total for total, _ in row])
        losses.append(-float(scores.log_softmax(-1)[one.right[0]]))
    wanted = sum(losses) / 2 if task.loss == "choice" else sum(sums) / tokens
    assert task.loss == ("choice" if name in ("SST2", "CB") else "word")
    # so small an eps that the perturbed weights are the weights
    made = model("llama", eps=1e-12, lr=0.0)
    questions = [Encoder(encode(), 512).learnt(one, task.loss) for one in found]
    plan = Plan(1, 2, 1, 0.0, task.loss, "constant", 0, seed=0)
    (step,) = train(made, questions, PAD, plan, stop=lambda: False)
    assert step.loss == pytest.approx(wanted, abs=1e-4)


def continued(plain, ids, mode):
    """A prompt and 50 tokens, or fewer where one of them ends the text."""
    if mode != "prefix":
        return plain.generate(input_ids=ids, max_new_tokens=50, do_sample=False, pad_token_id=PAD)
    # peft 0.21 hands generation its prefix under a name that transformers 5.24 passes over
    end = plain.generation_config.eos_token_id
    for _ in range(50):
        with torch.no_grad():
            logits = plain(input_ids=ids, attention_mask=torch.ones_like(ids)).logits
        ids = torch.cat([ids, logits[:, -1:].argmax(-1)], dim=1)
        if ids[0, -1] == end:
            break
    return ids


@pytest.mark.parametrize(
    ("family", "mode"), [*((family, "ft") for family in FAMILIES), ("llama", "lora"),
                         ("llama", "prefix")],
)  # fmt: skip
def test_answers_are_those_of_greedy_decoding_one_by_one(family, mode):
    if mode != "ft":
        pytest.importorskip("peft")

    def adapted():
        torch.manual_seed(0)
        made = modes.adapt(model(family, prepared=False), mode, seed=0)
        with torch.no_grad():
            for name, parameter in made.named_parameters():
                if "lora_B" in name:  # begins as zero, which would hide the adapter
                    parameter.normal_()
        return made

    task, found = examples("SQuAD")
    encoded = Encoder(encode(), 512)
    plain = adapted()
    wanted = []
    for one in found:
        ids = torch.tensor([encode()(one.prompt.body)])
        out = continued(plain, ids, mode)
        text = tokenizer().decode(out[0, ids.shape[1] :], skip_special_tokens=True)
        wanted.append(text.split("\n")[0].strip())
    made = adapted()
    zo2.prepare(made, zo2.ZOConfig(working_device="cpu", seed=0))
    answers = Exam.prepare(task, found, encoded).answers(Loaded(made, tokenizer()), PAD)
    assert answers == wanted
    assert any(wanted)


def test_an_answer_ends_with_its_line():
    made = model("gpt2", prepared=False)
    (line_break,) = tokenizer()("\n")["input_ids"]
    with torch.no_grad():  # whatever it reads, it writes a line break
        head = made.lm_head.weight
        head[line_break] *= 5
        made.transformer.ln_f.weight.zero_()
        made.transformer.ln_f.bias.copy_(head[line_break])
    zo2.prepare(made, zo2.ZOConfig(working_device="cpu"))
    forward, calls = made.forward, []

    @functools.wraps(forward)
    def counted(*args, **kwargs):
        calls.append(kwargs)
        return forward(*args, **kwargs)

    made.forward = counted
    task, found = examples("SQuAD")
    exam = Exam.prepare(task, found, Encoder(encode(), 512))
    assert exam.answers(Loaded(made, tokenizer()), PAD) == ["", ""]
    assert len(calls) == 1


@pytest.mark.parametrize("family", FAMILIES)
def test_a_prefix_begins_as_words_in_front_of_the_prompt(family):
    pytest.importorskip("peft")
    made = model(family, prepared=False)
    seen = []
    hook = made.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(kwargs["input_ids"]), with_kwargs=True
    )
    adapted = modes.adapt(made, "prefix", seed=3)
    hook.remove()
    (words,) = seen
    assert words.shape == (1, 5)
    prompt = torch.tensor([[5, 6, 7]])
    with torch.no_grad():
        adapted_logits = adapted(input_ids=prompt).logits
        with adapted.disable_adapter():
            plain = adapted.get_base_model()(input_ids=torch.cat([words, prompt], 1)).logits
    torch.testing.assert_close(adapted_logits, plain[:, 5:], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("mode", ["lora", "prefix"])
def test_adapters_begin_by_the_seed_and_leave_torchs_own_alone(mode):
    pytest.importorskip("peft")

    def weights(seed):
        adapted = modes.adapt(model("llama", prepared=False), mode, seed)
        return torch.cat([one.flatten() for one in adapted.parameters() if one.requires_grad])

    torch.manual_seed(1)
    one = weights(3)
    after = torch.rand(3)
    torch.manual_seed(1)
    model("llama", prepared=False)
    assert torch.equal(after, torch.rand(3))
    assert torch.equal(weights(3), one)
    assert not torch.equal(weights(4), one)


# -- length


@settings(max_examples=30, deadline=None)
@given(
    text=st.text("abc é中\n", max_size=150),
    shown=st.integers(0, 3),
    limit=st.integers(70, 200),
    name=st.sampled_from(["CB", "SQuAD", "COPA"]),
)
def test_truncation_keeps_question_and_answer(text, shown, limit, name):
    task = get_task(name)
    (example,) = (task.example(row) for row in task.rows(RECORDS[name][0]))
    demonstration = example
    before, after = example.prompt.before, example.prompt.after
    example = Example(Prompt(before, text, after, example.prompt.endings), example.right)
    encoded = Encoder(encode(), limit, lambda _: (demonstration,) * shown)
    whole = Encoder(encode(), 10_000, lambda _: (demonstration,) * shown)
    question, uncut = encoded.compared(example), whole.compared(example)
    fits = all(len(full.tokens) <= limit for full in uncut)
    for choice, full, ending in zip(question, uncut, example.prompt.endings, strict=True):
        assert len(choice.tokens) <= limit
        assert choice.tokens[choice.start :] == full.tokens[full.start :]
        written = tokenizer().decode(choice.tokens)
        assert written.endswith(after + ending)
        assert before in written
        everything = tokenizer().decode(full.tokens)
        if fits:
            assert written == everything
        else:  # demonstrations go before any of the text does
            assert everything.endswith(written.removeprefix(before))
            kept = written.count(after) - 1
            assert kept == 0 or written.endswith(before + text + after + ending)


def test_the_oldest_demonstrations_go_first_and_as_few_as_must():
    _, (example, _) = examples("CB")
    others = [Example(Prompt("", f"number {n}", " is", (" good",)), (0,)) for n in range(4)]
    shown = [f"number {n} is good\n\n" for n in range(4)]
    own = example.prompt.body + example.prompt.endings[2]
    for left in range(5):
        text = "".join(shown[left:]) + own
        for limit in (len(encode()(text)), len(encode()("".join(shown[left - 1 :]) + own)) - 1):
            if left == 0 and limit != len(encode()(text)):
                continue
            encoded = Encoder(encode(), limit, lambda _: others)
            assert tokenizer().decode(encoded.compared(example)[2].tokens) == text


def test_an_answer_that_does_not_fit_is_refused():
    _, (example, _) = examples("CB")
    with pytest.raises(DataError, match=r"stay whole, have more than 10 tokens .*--max-length"):
        Encoder(encode(), 10).compared(example)


def test_label_words_of_several_tokens_are_named_with_their_tokens():
    def check(*words):
        task = get_task("SST2").with_words(list(words))
        example = task.example(RECORDS["SST2"][0])
        check_words(task, Encoder(encode(), 512).compared(example), tokenizer())

    check("dull", "great")
    with pytest.raises(DataError, match=r"'terrible' is 2 tokens .* \(' ter', 'rible'\)"):
        check("great", "terrible")
