import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests import checkpoint
from zo2 import batches, data, prompts
from zo2.data import Example
from zo2.errors import DataError
from zo2.prompts import Choice, Prompter, Template


def write(path, content):
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


# -- files


def test_tsv_with_header_blank_lines_windows_ends_and_a_byte_order_mark(tmp_path):
    content = "\ufeffsentence\tlabel\r\na fine film\t1\r\n\r\n  dull \t0"
    assert data.read_examples(write(tmp_path / "a.tsv", content)) == [
        Example("a fine film", "1"),
        Example("dull", "0"),
    ]


def test_a_separator_that_only_unicode_knows_does_not_end_a_line(tmp_path):
    path = write(tmp_path / "a.tsv", "one\u2028two\x0bthree\t1\n")
    assert data.read_examples(path) == [Example("one\u2028two\x0bthree", "1")]


def test_jsonl_takes_text_or_sentence_and_any_simple_label(tmp_path):
    records = [
        {"text": "a", "label": 1},
        {"sentence": "b\tc", "label": "good"},
        {"text": "d", "label": True, "idx": 3},
    ]
    path = write(tmp_path / "a.jsonl", "\n".join(map(json.dumps, records)))
    assert [one.label for one in data.read_examples(path)] == ["1", "good", "True"]


def test_jsonl_fields_can_be_named(tmp_path):
    path = write(tmp_path / "a.jsonl", '{"body": "a", "text": "no", "stars": 5}\n')
    assert data.read_examples(path, "body", "stars") == [Example("a", "5")]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.tsv", "good\t1\nno label here\n", "line 2: expected text<TAB>label.*found 1"),
        ("a.tsv", "a\tb\t1\n", "line 1: .*found 3"),
        ("a.tsv", "good\t1\n\n\t0\n", "line 3: the text is empty"),
        ("a.tsv", "good\t \n", "line 1: the label is empty"),
        ("a.tsv", "", "holds no examples"),
        ("a.tsv", "sentence\tlabel\n", "holds no examples"),
        ("a.tsv", b"good\t1\ncaf\xe9\t0\n", "line 2: not UTF-8"),
        ("a.tsv", "good\t1\nbad\t7\n", "line 2: unknown label '7'; known labels are 0, 1"),
        ("a.jsonl", '{"text": "a", "label": 1}\n{oops\n', "line 2: not JSON"),
        ("a.jsonl", '["a", 1]\n', "line 1: expected a JSON object, not list"),
        ("a.jsonl", '{"txt": "a", "label": 1}\n', "no field 'text or sentence'.*txt, label"),
        ("a.jsonl", '{"text": "a", "gold": 1}\n', "no field 'label'"),
        ("a.jsonl", '{"text": 3, "label": 1}\n', "'text' must be a string"),
        ("a.jsonl", '{"text": "a", "label": 0.5}\n', "'label' must be a string or an integer"),
    ],
)
def test_a_bad_file_is_refused_with_file_and_line(tmp_path, name, content, message):
    path = write(tmp_path / name, content)
    with pytest.raises(DataError, match=message) as error:
        data.read_examples(path, labels={"0", "1"})
    assert str(path) in str(error.value)


def test_a_missing_file_is_refused_with_the_nearest_one(tmp_path):
    write(tmp_path / "reviews.tsv", "a\t1")
    with pytest.raises(DataError, match=r"Did you mean .*reviews\.tsv"):
        data.read_examples(tmp_path / "reveiws.tsv")
    with pytest.raises(DataError, match="no directory"):
        data.read_examples(tmp_path / "none" / "reviews.tsv")
    with pytest.raises(DataError, match="is a directory"):
        data.read_examples(tmp_path)


# -- labels and words


def test_labels_sort_by_value_where_they_are_integers():
    assert data.sort_labels(["10", "9", "-1", "9"]) == ["-1", "9", "10"]
    assert data.sort_labels(["10", "9", "x"]) == ["10", "9", "x"]


def test_label_words_in_both_forms():
    assert data.parse_label_words("terrible, great") == ["terrible", "great"]
    assert data.parse_label_words("1=great,0=not good") == {"1": "great", "0": "not good"}


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("great", "at least two"),
        ("", "empty"),
        ("a,,b", "empty"),
        ("0=,1=b", "empty"),
        ("a,a", "'a' is given twice"),
        ("0=a,0=b", "'0' is given twice"),
        ("0=a,b", "for every word, or for none"),
    ],
)
def test_bad_label_words_are_refused(spec, message):
    with pytest.raises(DataError, match=message):
        data.parse_label_words(spec)


def test_words_are_matched_to_sorted_labels():
    assert data.choose_words(["1", "0"], ["bad", "good"]) == {"0": "bad", "1": "good"}
    assert data.choose_words(["1", "0"], None) == {"0": "terrible", "1": "great"}
    assert data.choose_words(["pos", "neg"], None) == {"neg": "neg", "pos": "pos"}
    assert data.choose_words(["1"], {"0": "bad", "1": "good"}) == {"0": "bad", "1": "good"}
    chosen = data.choose_words(["1", "0"], {"1": "up", "2": "flat", "0": "down"})
    assert list(chosen.items()) == [("0", "down"), ("1", "up"), ("2", "flat")]


@pytest.mark.parametrize(
    ("labels", "given_words", "message"),
    [
        (["0", "1", "2"], None, "give a word for each, such as --label-words 0=WORD,1=WORD"),
        (["0", "1"], ["a", "b", "c"], "3 label words .* for 2 labels"),
        (["0", "1"], {"0": "a", "2": "b"}, "No label word is given for label '1'"),
        (["0"], None, "single label"),
    ],
)
def test_words_that_do_not_fit_are_refused(labels, given_words, message):
    with pytest.raises(DataError, match=message):
        data.choose_words(labels, given_words)


# -- prompts


def test_templates():
    form = Template.parse("{text} It was {label}")
    assert (form.prompt("Fine {label}."), form.gap) == ("Fine {label}. It was", " ")
    form = Template.parse("Review: {text}\nAnswer:\n{label}")
    assert (form.prompt("x"), form.gap) == ("Review: x\nAnswer:", "\n")
    form = Template.parse("{text} =>")
    assert (form.prompt("x"), form.gap) == ("x =>", " ")


@pytest.mark.parametrize(
    "bad", ["It was {label}", "{text} {text}", "{text} {label}!", "{label} {text}"]
)
def test_bad_templates_are_refused(bad):
    with pytest.raises(DataError, match="Template"):
        Template.parse(bad)


def prompter(max_length=64, words=None, bos=False):
    encode = prompts.encoder(checkpoint.tokenizer(bos))
    words = words or {"0": "terrible", "1": "great"}
    return Prompter(Template.parse(prompts.DEFAULT_TEMPLATE), words, encode, max_length)


def test_a_tokenizer_of_another_model_is_noticed():
    tokens = prompts.encoder(checkpoint.tokenizer(), known=304)("a fine film")
    assert max(tokens) < 304
    with pytest.raises(DataError, match="do not belong together"):
        prompts.encoder(checkpoint.tokenizer(), known=max(tokens))("a fine film")


@pytest.mark.parametrize("bos", [False, True])
def test_the_loss_is_on_the_label_word_alone(bos):
    tokenizer = checkpoint.tokenizer(bos)
    words = {"0": "perfectly awful", "1": "great"}  # the first is several tokens
    questions = prompter(words=words, bos=bos).questions(
        [Example("a fine film", "0"), Example("the soup", "1")]
    )
    batch = batches.word_batch(questions, pad=0)
    assert batch["input_ids"].shape == batch["labels"].shape == batch["attention_mask"].shape
    for row, text in enumerate([" perfectly awful", " great"]):
        labelled = batch["labels"][row] != batches.IGNORED
        assert tokenizer.decode(batch["input_ids"][row][labelled]) == text
        assert (batch["labels"][row] == batch["input_ids"][row])[labelled].all()
        assert batch["attention_mask"][row][labelled].all()
        seen = batch["input_ids"][row][batch["attention_mask"][row].bool()].tolist()
        assert tokenizer.decode(seen).endswith(f"It was{text}")
        assert (seen[0] == 1) is bos
    assert labelled.sum() < (batch["labels"][0] != batches.IGNORED).sum()


@settings(max_examples=25, deadline=None)
@given(st.text("abc é中 ", min_size=1, max_size=120), st.integers(30, 60))
def test_a_long_text_loses_its_beginning_and_never_the_label_word(text, limit):
    one = prompter(limit, {"0": "terrible", "1": "not good at all"})
    whole = prompter(10_000, one.words)
    example = Example(text, "0")
    kept = one.prompt(example).text
    assert text.endswith(kept)
    for choice, full in zip(*(p.questions([example])[0] for p in (one, whole)), strict=True):
        assert len(choice.tokens) <= limit
        assert choice.tokens[choice.start :] == full.tokens[full.start :]
    if kept != text:  # no more would have fitted
        longer = Example(text[len(text) - len(kept) - 1 :], "0")
        assert any(len(choice.tokens) > limit for choice in whole.questions([longer])[0])


def test_a_limit_below_the_template_is_refused():
    with pytest.raises(DataError, match="leave no room for text within 4 tokens"):
        prompter(4).questions([Example("a fine film", "0")])


# -- order and batches


def test_draws_visit_every_example_once_per_epoch_and_repeat_by_seed():
    def take(seed, n):
        order = batches.draw(10, 4, seed)
        return [next(order) for _ in range(n)]

    flat = [index for batch in take(3, 5) for index in batch]
    assert sorted(flat[:10]) == sorted(flat[10:]) == list(range(10))
    assert flat[:10] != flat[10:]
    assert take(3, 5) == take(3, 5) != take(4, 5)
    assert [len(one) for one in take(0, 20)] == [4] * 20
    assert len(next(batches.draw(2, 7, 0))) == 7


def test_holding_out_keeps_the_labels_shares_and_loses_nothing():
    examples = [Example(f"t{i}", "0" if i < 40 else "1") for i in range(60)]
    stay, held = data.hold_out(examples, 0.2, seed=1)
    assert sorted(stay + held, key=repr) == sorted(examples, key=repr)
    assert [one.label for one in held].count("0") == 8
    assert len(held) == 12
    assert data.hold_out(examples, 0.2, seed=1) == (stay, held)
    with pytest.raises(DataError, match="single example"):
        data.hold_out(examples[:41], 0.2, seed=1)


def test_sampling():
    examples = [Example(str(i), "0") for i in range(50)]
    some = data.sample(examples, 7, seed=0)
    assert len(some) == 7
    assert some == sorted(some, key=lambda one: int(one.text))
    assert some != examples[:7]
    assert data.sample(examples, None, 0) == data.sample(examples, 99, 0) == examples


def question(length, word=1):
    tokens = tuple(range(1, length + 1))
    return (Choice(tokens, length - word), Choice((*tokens[:-1], 99), length - word))


def test_parts_hold_each_question_once_those_of_like_length_together():
    questions = [question(n) for n in (9, 3, 8, 4, 7)]
    made = batches.parts(questions, 2)
    assert [[len(one[0].tokens) for one in part] for part in made] == [[3, 4], [7, 8, 9]]
    assert len(batches.parts(questions, 1)) == 1
    assert len(batches.parts(questions, 9)) == 5


def test_word_batches_are_padded_on_the_right():
    batch = batches.word_batch([question(3), question(4, word=2)], pad=7)
    assert batch["input_ids"].tolist() == [[1, 2, 3, 7], [1, 2, 3, 4]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1, 0], [1, 1, 1, 1]]
    assert batch["labels"].tolist() == [[-100, -100, 3, -100], [-100, -100, 3, 4]]


def test_words_of_one_token_share_a_row_of_a_choice_batch():
    batch = batches.choice_batch([question(3), question(4)], pad=0)
    assert batch["input_ids"].tolist() == [[1, 2, 0], [1, 2, 3]]
    assert batch["labels"].tolist() == [[[[0, 1, 3]], [[0, 1, 99]]], [[[1, 2, 4]], [[1, 2, 99]]]]


def test_longer_words_have_rows_of_their_own():
    one = (Choice((5, 6, 7, 8), 2), Choice((5, 6, 9), 2))
    batch = batches.choice_batch([one], pad=0)
    assert batch["input_ids"].tolist() == [[5, 6, 7], [5, 6, 0]]
    none = [batches.IGNORED] * 3
    assert batch["labels"].tolist() == [[[[0, 1, 7], [0, 2, 8]], [[1, 1, 9], none]]]


def test_questions_may_have_unequal_numbers_of_choices():
    import torch

    from zo2.evaluation import scores

    one, other = (Choice((5, 6), 1), Choice((5, 7), 1), Choice((5, 8), 1)), (Choice((4, 9), 1),)
    batch = batches.choice_batch([one, other], pad=0)
    found = scores(torch.randn(2, 1, 10), batch["labels"])
    assert found.isfinite().tolist() == [[True] * 3, [True, False, False]]
    assert found[1, 1:].tolist() == [-torch.inf] * 2


def test_scores_are_the_words_log_likelihoods():
    import torch

    from zo2.evaluation import choice_loss, scores

    one = (Choice((5, 6, 7, 8), 2), Choice((5, 6, 9), 2))
    other = (Choice((4, 9), 1), Choice((4, 7, 8), 1))
    batch = batches.choice_batch([one, other], pad=0)
    logits = torch.randn(4, 3, 10, generator=torch.Generator().manual_seed(0))
    logs = logits.log_softmax(-1)
    wanted = torch.stack(
        [
            torch.stack([logs[0, 1, 7] + logs[0, 2, 8], logs[1, 1, 9]]),
            torch.stack([logs[2, 0, 9], logs[3, 0, 7] + logs[3, 1, 8]]),
        ]
    )
    torch.testing.assert_close(scores(logits, batch["labels"]), wanted)
    loss = -wanted.log_softmax(-1)[:, 0].mean()
    torch.testing.assert_close(choice_loss(logits, batch["labels"]), loss)
