"""Tasks as data: how published records read, prompts, answers, metrics, samples."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zo2.errors import ConfigError, DataError
from zo2.prompts import Prompt
from zo2.tasks import Classification, Example, get_task, metrics, sources, task_names
from zo2.tasks.base import label_number
from zo2.tasks.sampling import demonstrations, draw_split

SHARED = Path(__file__).parent.parent.parent / "shared" / "data"
PAPER = (
    "SST2", "RTE", "CB", "BoolQ", "WSC", "WIC", "MultiRC", "COPA", "ReCoRD", "SQuAD", "DROP",
)  # fmt: skip

# A record of each task in its published form, what the hub's form of it is, and the prompt,
# endings and right ones, written by hand from table 14 of arXiv 2305.17333 and what
# docs/tasks.md says of the published experiments.
SUPERBOWL = "The Broncos won the game in Santa Clara."
RECORDS = {
    "SST2": (
        {"sentence": "a fine film", "label": 1},
        {"sentence": "a fine film ", "label": 1, "idx": 0},
        "a fine film It was", [" terrible", " great"], [1],
    ),
    "RTE": (
        {"premise": "It rains.", "hypothesis": "It is wet.", "label": "not_entailment", "idx": 3},
        {"premise": "It rains.", "hypothesis": "It is wet.", "label": 1, "idx": 3},
        'It rains.\nDoes this mean that "It is wet." is true? Yes or No?', ["\nYes", "\nNo"], [1],
    ),
    "CB": (
        {"premise": "It rains.", "hypothesis": "it is wet", "label": "neutral", "idx": 3},
        {"premise": "It rains.", "hypothesis": "it is wet", "label": 2, "idx": 3},
        'Suppose It rains. Can we infer that "it is wet"? Yes, No, or Maybe?',
        ["\nYes", "\nNo", "\nMaybe"], [2],
    ),
    "BoolQ": (
        {"question": "is rain wet", "passage": "Rain -- Rain is wet.", "idx": 1, "label": True},
        {"question": "is rain wet", "passage": "Rain is wet.", "answer": True},
        "Rain is wet. Is rain wet?", ["\nNo", "\nYes"], [1],
    ),
    "WSC": (
        {
            "text": "Tina fell. She ran.", "label": False, "idx": 4,
            "target": {
                "span1_text": "Tina", "span1_index": 0, "span2_text": "She", "span2_index": 2,
            },
        },
        {
            "text": "Tina fell. She ran.", "label": 0, "idx": 4, "span1_text": "Tina",
            "span1_index": 0, "span2_text": "She", "span2_index": 2,
        },
        'Tina fell. She ran.\nIn the previous sentence, does the pronoun "she" refer to '
        "Tina? Yes or No?", ["\nNo", "\nYes"], [0],
    ),
    "WIC": (
        {"word": "bank", "sentence1": "A bank.", "sentence2": "The bank.", "label": True},
        {"word": "bank", "sentence1": "A bank.", "sentence2": "The bank.", "label": 1},
        'Does the word "bank" have the same meaning in these two sentences? Yes, No?\nA bank.\n'
        "The bank.", ["\nNo", "\nYes"], [1],
    ),
    "MultiRC": (
        {
            "idx": 6, "version": 1.1,
            "passage": {
                "text": "It rains.",
                "questions": [
                    {"question": "What?", "idx": 1,
                     "answers": [{"text": "Rain", "idx": 2, "label": 1}]},
                ],
            },
        },
        {"paragraph": "It rains.", "question": "What?", "answer": "Rain", "label": 1, "idx": {}},
        'It rains.\nQuestion: What?\nI found this answer "Rain". Is that correct? Yes or No?',
        ["\nNo", "\nYes"], [1],
    ),
    "COPA": (
        {"premise": "He fell.", "choice1": "He ran.", "choice2": "It rained.", "question": "cause",
         "label": 1, "idx": 0},
        {"premise": "He fell.", "choice1": "He ran.", "choice2": "It rained.", "question": "cause",
         "label": 1, "idx": 0},
        "He fell because", [" he ran.", " it rained."], [1],
    ),
    "ReCoRD": (
        {
            "source": "news", "idx": 0,
            "passage": {
                "text": "Ann met Bob.\n@highlight\nBob won", "entities": [
                    {"start": 0, "end": 2}, {"start": 8, "end": 10}, {"start": 24, "end": 26},
                ],
            },
            "qas": [{"query": "@placeholder met Bob.", "idx": 1,
                     "answers": [{"start": 0, "end": 2, "text": "Ann"}]}],
        },
        {"passage": "Ann met Bob.\n@highlight\nBob won", "query": "@placeholder met Bob.",
         "entities": ["Ann", "Bob"], "answers": ["Ann"], "idx": {}},
        "Ann met Bob.\n- Bob won\n-", [" Ann met Bob.", " Bob met Bob."], [0],
    ),
    "SQuAD": (
        {"title": "Super_Bowl", "context": SUPERBOWL, "id": "1", "question": "Where?",
         "answers": [{"text": "Santa Clara", "answer_start": 28},
                     {"text": "in Santa Clara", "answer_start": 25},
                     {"text": "Santa Clara", "answer_start": 28}]},
        {"title": "Super_Bowl", "context": SUPERBOWL, "id": "1", "question": "Where?",
         "answers": {"text": ["Santa Clara", "in Santa Clara"], "answer_start": [28, 25]}},
        f"Title: Super_Bowl\nContext: {SUPERBOWL}\nQuestion: Where?\nAnswer:",
        [" Santa Clara\n", " in Santa Clara\n"], [0, 1],
    ),
    "DROP": (
        {
            "passage": "In 1990 he ran 5 miles.", "query_id": "q", "question": "How far?",
            "answer": {"number": "5", "date": {"day": "", "month": "", "year": ""}, "spans": []},
            "validated_answers": [
                {"number": "", "date": {"day": "1", "month": "May", "year": "1990"}, "spans": []},
                {"number": "", "date": {"day": "", "month": "", "year": ""},
                 "spans": ["5 miles", "miles"]},
            ],
        },
        {"passage": "In 1990 he ran 5 miles.", "query_id": "q", "question": "How far?",
         "answers_spans": {"spans": ["1 May 1990", "5 miles", "miles"],
                           "types": ["date", "span", "span"]}},
        "Passage: In 1990 he ran 5 miles.\nQuestion: How far?\nAnswer:",
        [" 1 May 1990\n", " 5 miles\n", " miles\n"], [0, 1, 2],
    ),
}  # fmt: skip


def examples(task, record):
    return [task.example(row) for row in task.rows(record)]


@pytest.mark.parametrize("name", PAPER)
def test_the_published_form_and_the_hubs_make_the_papers_prompt(name):
    published, hub, body, endings, right = RECORDS[name]
    for record in (published, hub):
        (example,) = examples(get_task(name), record)
        assert example.prompt.body == body
        assert list(example.prompt.endings) == endings
        assert list(example.right) == right
        assert example.answer == endings[right[0]]


@pytest.mark.parametrize(
    ("name", "changed", "text"),
    [
        ("SST2", {"sentence": " fine , just fine "}, "fine , just fine It was great"),
        ("BoolQ", {"question": "is rain wet?"}, "Rain is wet. Is rain wet?\nYes"),
        ("BoolQ", {"passage": "Rain is -- so they say -- wet.", "answer": False},
         "Rain is -- so they say -- wet. Is rain wet?\nNo"),
        ("MultiRC", {"paragraph": " It rains. "},
         'It rains. \nQuestion: What?\nI found this answer "Rain". Is that correct? Yes or No?\n'
         "Yes"),
        ("COPA", {"choice2": "I ran, I fell."}, "He fell because I ran, I fell."),
        ("COPA", {"choice2": "TV made him."}, "He fell because tv made him."),
        ("COPA", {"premise": "Who fell? ", "question": "effect", "label": 0},
         "Who fell? so he ran."),
        ("ReCoRD", {"query": "It is @placeholder's, says @placeholder"},
         "Ann met Bob.\n- Bob won\n- It is Ann's, says Ann"),
        ("SQuAD", {"question": " Where? "},
         f"Title: Super_Bowl\nContext: {SUPERBOWL}\nQuestion: Where?\nAnswer: Santa Clara\n"),
        ("DROP", {"question": "How far? "},
         "Passage: In 1990 he ran 5 miles.\nQuestion: How far?\nAnswer: 1 May 1990\n"),
    ],
)  # fmt: skip
def test_what_the_published_experiments_do_to_their_texts(name, changed, text):
    (example,) = examples(get_task(name), {**RECORDS[name][1], **changed})
    assert example.prompt.body + example.answer == text


def test_without_validators_drops_first_annotator_counts():
    record = RECORDS["DROP"][0]
    (example,) = examples(get_task("DROP"), {**record, "validated_answers": []})
    assert example.prompt.endings == (" 5\n",)


def test_the_tasks_are_the_papers_in_its_order():
    assert tuple(task_names()) == PAPER


@pytest.mark.parametrize("name", [one for one in PAPER if one not in ("SST2", "SQuAD", "DROP")])
def test_real_samples_read(name):
    task = get_task(name)
    path = SHARED / "fewglue" / f"{task.files.folder}.jsonl"
    if not path.exists():
        pytest.skip(f"no real samples here: {path.name}")
    found = [one for _, record in task.files.read(path) for one in examples(task, record)]
    assert len(found) >= 32
    for one in found:
        assert one.prompt.text
        assert not one.prompt.body[0].isspace()
        assert "{" not in one.prompt.before + one.prompt.after
        assert "@placeholder" not in "".join(one.prompt.endings)
        assert one.right
        assert len(set(one.prompt.endings)) == len(one.prompt.endings) >= 2
    if isinstance(task, Classification) and name != "WSC":  # its 32 examples are all true
        assert {number for one in found for number in one.right} == set(range(len(task.words)))


def test_real_sentences_of_sst2_read():
    if not (SHARED / "sst2").is_dir():
        pytest.skip("no real samples here: sst2")
    task = get_task("SST2")
    read = dict.fromkeys(("train", "test"))
    for part in read:
        read[part] = list(sources.from_folder(task.files, SHARED / "sst2", part))
    assert (len(read["train"]), len(read["test"])) == (6920, 872)
    one = task.example(read["test"][0][1])
    assert (one.prompt.body, one.answer) == ("one long string of cliches It was", " terrible")


def test_labels_may_be_numbers_truth_values_or_names():
    names = ["false", "true"]
    assert [label_number(one, names) for one in (0, 1, False, True, "true")] == [0, 1, 0, 1, 1]
    for wrong in (-1, 2, "maybe", None, 0.5):
        with pytest.raises(DataError, match="unknown label"):
            label_number(wrong, names)


# -- names and words


def test_an_unknown_task_gets_the_nearest_names():
    assert get_task("sst-2") is get_task("SST2")
    with pytest.raises(ConfigError, match=r"no task 'multi-rte'. Did you mean .*MultiRC"):
        get_task("multi-rte")
    with pytest.raises(ConfigError, match="Tasks: SST2, RTE, CB"):
        get_task("nothing like it")


def test_other_label_words_leave_the_task_itself_alone():
    task = get_task("CB")
    other = task.with_words(["true", "false", "open"])
    (example,) = examples(other, RECORDS["CB"][0])
    assert example.prompt.endings == ("\ntrue", "\nfalse", "\nopen")
    assert list(task.words.values()) == ["Yes", "No", "Maybe"]
    named = {"neutral": "n", "entailment": "e", "contradiction": "c"}
    assert list(task.with_words(named).words.values()) == ["e", "c", "n"]
    with pytest.raises(DataError, match=r"2 label words .* for the 3 labels of CB"):
        task.with_words(["a", "b"])
    with pytest.raises(DataError, match="No label word is given for label 'neutral'"):
        task.with_words({"entailment": "e", "contradiction": "c"})


# -- metrics, against cases worked out by hand


@pytest.mark.parametrize(
    ("text", "plain"),
    [
        ("The Eiffel Tower!", "eiffel tower"),
        ("  a  dog,\tan  owl ", "dog owl"),
        ("Theatre", "theatre"),
        ("1,000", "1000"),
        ("U.S.", "us"),
        ("the", ""),
    ],
)
def test_answers_are_normalised_as_squad_does(text, plain):
    assert metrics.normalise(text) == plain


@pytest.mark.parametrize(
    ("predicted", "answer", "wanted"),
    [
        ("in Santa Clara", "Santa Clara", 0.8),  # precision 2/3, recall 1
        ("the cat the cat", "cat", 2 / 3),  # articles go; precision 1/2, recall 1
        ("dog", "cat", 0.0),
        ("a", "the", 1.0),  # both are nothing but an article
        ("", "cat", 0.0),
    ],
)
def test_f1_of_words(predicted, answer, wanted):
    assert metrics.word_f1(predicted, answer) == pytest.approx(wanted)


def test_the_best_accepted_answer_counts():
    predicted = ["Santa Clara", "blue"]
    answers = [["San Jose", "in Santa Clara"], ["red"]]
    assert metrics.f1(predicted, answers) == pytest.approx((0.8 + 0) / 2)
    assert metrics.exact_match(predicted, answers) == 0
    assert metrics.exact_match(["The Red!", "x"], [["red"], ["y"]]) == 0.5


def test_accuracy_takes_any_right_choice():
    assert metrics.accuracy([0, 2, 1], [(0,), (1, 2), (0,)]) == pytest.approx(2 / 3)


def test_a_task_measures_its_own_examples():
    (example,) = examples(get_task("SQuAD"), RECORDS["SQuAD"][0])
    measured = get_task("SQuAD").measure(["Santa Clara, California"], [example])
    assert measured == {"f1": pytest.approx(0.8), "em": 0.0}
    (example,) = examples(get_task("RTE"), RECORDS["RTE"][0])
    assert get_task("RTE").measure([1], [example]) == {"accuracy": 1.0}


@given(st.text(), st.text())
def test_f1_is_symmetric_between_0_and_1_and_1_for_itself(one, other):
    assert metrics.word_f1(one, other) == pytest.approx(metrics.word_f1(other, one))
    assert 0 <= metrics.word_f1(one, other) <= 1
    assert metrics.word_f1(one, one) == 1


# -- sources


def write(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def test_published_files_are_found_in_the_folder_or_in_the_archives(tmp_path):
    task = get_task("RTE")
    line = json.dumps(RECORDS["RTE"][0])
    write(tmp_path / "one" / "train.jsonl", line)
    write(tmp_path / "two" / "RTE" / "train.jsonl", f"{line}\n\n{line}\n")
    assert len(list(sources.from_folder(task.files, tmp_path / "one", "train"))) == 1
    assert len(list(sources.from_folder(task.files, tmp_path / "two", "train"))) == 2
    with pytest.raises(DataError, match=r"no val.jsonl in .*needed are train.jsonl and val"):
        sources.from_folder(task.files, tmp_path / "one", "test")
    with pytest.raises(DataError, match=r"train.jsonl is a file; give the folder that holds it"):
        sources.from_folder(task.files, tmp_path / "one" / "train.jsonl", "train")
    with pytest.raises(DataError, match=r"no directory .*twp. Did you mean .*two"):
        sources.from_folder(task.files, tmp_path / "twp", "train")


def test_squad_and_drop_read_as_published(tmp_path):
    squad = RECORDS["SQuAD"][0]
    question = {key: squad[key] for key in ("id", "question", "answers")}
    article = {
        "title": squad["title"],
        "paragraphs": [{"context": squad["context"], "qas": [question]}],
    }
    path = write(tmp_path / "train-v1.1.json", {"version": "1.1", "data": [article]})
    task = get_task("SQuAD")
    ((where, record),) = sources.from_folder(task.files, tmp_path, "train")
    assert where == f"{path}, question 1"
    assert examples(task, record) == examples(task, squad)

    drop = RECORDS["DROP"][0]
    pair = {key: drop[key] for key in ("query_id", "question", "answer", "validated_answers")}
    nothing = {"number": "", "date": {"day": "", "month": "", "year": ""}, "spans": []}
    unanswered = {"query_id": "u", "question": "?", "answer": nothing}
    content = {
        "nfl_1": {"passage": drop["passage"], "wiki_url": "", "qa_pairs": [pair, unanswered]}
    }
    write(tmp_path / "drop_dataset" / "drop_dataset_dev.json", content)
    task = get_task("DROP")
    records = [record for _, record in sources.from_folder(task.files, tmp_path, "test")]
    assert [len(examples(task, one)) for one in records] == [1, 0]
    assert examples(task, records[0]) == examples(task, drop)


@pytest.mark.parametrize(
    ("name", "file", "content", "message"),
    [
        ("SST2", "train.tsv", "fine\t1\nbad\n", "train.tsv, line 2: expected text<TAB>label"),
        ("SST2", "train.tsv", "fine\t2\n", "train.tsv, line 1: unknown label '2'"),
        ("RTE", "train.jsonl", '{"premise": "a"}\n{oops\n', "train.jsonl, line 2: not JSON"),
        ("RTE", "train.jsonl", "[1]\n", "train.jsonl, line 1: expected a JSON object, not list"),
        ("RTE", "train.jsonl", '{"sentence1": "a"}\n', "line 1 is not in RTE's published format: "
         "there is no field 'premise'; its fields are sentence1"),
        ("RTE", "train.jsonl", '{"premise": null, "hypothesis": "b", "label": 0}\n',
         "line 1: field 'premise' must be a text, not None"),
        ("RTE", "train.jsonl", "", "train.jsonl holds no examples"),
        ("RTE", "train.jsonl", '{"premise": "a", "hypothesis": "b", "label": "yes"}\n',
         "line 1: unknown label 'yes'; the labels are entailment, not_entailment"),
        ("MultiRC", "train.jsonl", '{"passage": {"text": "a"}}\n', "no field 'questions'"),
        ("COPA", "train.jsonl", '{"premise": "a", "question": "why"}\n', "no field 'why'"),
        ("SQuAD", "train-v1.1.json", '{"data": [{"title": "a"}]}', "no 'paragraphs'"),
        ("SQuAD", "train-v1.1.json", '{"data":\n[', "train-v1.1.json, line 2: not JSON"),
        ("SQuAD", "train-v1.1.json", '{"data": [{"title": "a", "paragraphs": [{"context": "b", '
         '"qas": [{"id": "7", "question": "c", "answers": []}]}]}]}',
         "question 7: there is no right answer"),
        ("DROP", "drop_dataset_train.json", "{}", "drop_dataset_train.json holds no examples"),
        ("DROP", "drop_dataset_train.json", '{"a": {"passage": "b"}}', "no 'qa_pairs'"),
    ],
)  # fmt: skip
def test_another_format_is_refused_with_file_and_line(tmp_path, name, file, content, message):
    task = get_task(name)
    write(tmp_path / file, content)
    good = RECORDS[name][0] if name not in ("SST2", "SQuAD", "DROP") else None
    write(tmp_path / task.files.test, json.dumps(good) if good else "fine\t1\n")
    with pytest.raises(DataError, match=message) as error:
        draw(task, tmp_path)
    assert str(tmp_path / file) in str(error.value)


def draw(task, folder, train=10, dev=0, test=10, seed=0):
    def records(part):
        return sources.from_folder(task.files, folder, part)

    return draw_split(task, records, train, dev, test, seed)


def test_the_hubs_rows_read_like_the_files(tmp_path):
    datasets = pytest.importorskip("datasets")
    (tmp_path / "hub" / "rte").mkdir(parents=True)
    rows = [{**RECORDS["RTE"][1], "premise": f"It rains {n}."} for n in range(3)]
    files = ""
    for part in ("train", "validation"):
        datasets.Dataset.from_list(rows).to_parquet(str(tmp_path / f"hub/rte/{part}.parquet"))
        files += f"  - split: {part}\n    path: rte/{part}.parquet\n"
    card = f"---\nconfigs:\n- config_name: rte\n  data_files:\n{files}---\n"
    (tmp_path / "hub" / "README.md").write_text(card)
    task = get_task("RTE")
    hub = replace(task.hub, dataset=str(tmp_path / "hub"))
    split = draw_split(task, lambda part: sources.from_hub(hub, part), 2, 1, 9, seed=0)
    assert (len(split.train), len(split.dev), len(split.test)) == (2, 1, 3)
    wanted = {f"It rains {n}." for n in range(3)}
    assert {one.prompt.text for one in split.train + split.dev} == wanted
    assert all(one.right == (1,) for one in split.test)
    with pytest.raises(DataError, match=r"could not be loaded from the hub.*--data-dir"):
        sources.from_hub(replace(hub, config="rtf"), "train")


def test_without_datasets_the_line_that_installs_it_is_given(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "datasets", None)
    with pytest.raises(DataError, match="pip install datasets"):
        sources.from_hub(get_task("RTE").hub, "train")


# -- samples


def test_samples_repeat_by_seed_and_do_not_overlap(tmp_path):
    task = get_task("SST2")
    write(tmp_path / "train.tsv", "".join(f"sentence {n}\t{n % 2}\n" for n in range(50)))
    write(tmp_path / "dev.tsv", "".join(f"held out {n}\t{n % 2}\n" for n in range(20)))

    def texts(**sizes):
        split = draw(task, tmp_path, **sizes)
        return [[one.prompt.text for one in part] for part in (split.train, split.dev, split.test)]

    train, dev, test = texts(train=20, dev=10, test=5)
    assert (len(train), len(dev), len(test)) == (20, 10, 5)
    assert not set(train) & set(dev)
    assert all(one.startswith("held out") for one in test)
    assert texts(train=20, dev=10, test=5) == [train, dev, test]
    assert texts(train=20, dev=10, test=5, seed=1)[1] != dev
    assert [len(part) for part in texts(train=1000, dev=10, test=1000)] == [40, 10, 20]
    assert [len(part) for part in texts(train=1000, dev=60, test=1000)] == [0, 50, 20]
    assert [len(part) for part in texts(train=20, dev=0, test=0)] == [20, 0, 0]


def test_samples_are_those_of_the_published_experiments(tmp_path):
    """numpy.random.seed(0) and permutation(10), as numpy's users know it: 2 8 4 9 1 6 7 3 0 5."""
    for name in ("train", "dev"):
        write(tmp_path / f"{name}.tsv", "".join(f"{n}\t0\n" for n in range(10)))
    split = draw(get_task("SST2"), tmp_path, train=4, dev=3, test=5)
    drawn = ["".join(one.prompt.text for one in part) for part in split_parts(split)]
    assert drawn == ["2849", "167", "28491"]
    small = draw(get_task("SST2"), tmp_path, train=1000, dev=8, test=1000)
    drawn = ["".join(one.prompt.text for one in part) for part in split_parts(small)]
    assert drawn == ["28", "49167305", "2849167305"]


def split_parts(split):
    return split.train, split.dev, split.test


def test_every_question_has_demonstrations_of_its_own():
    pool = [Example(Prompt("", f"{n}", "", (" a",)), (0,)) for n in range(20)]
    shown = demonstrations(pool, 5, seed=3)
    drawn = [tuple(one.prompt.text for one in shown(question)) for question in pool]
    assert all(len(set(one)) == 5 for one in drawn)
    assert len(set(drawn)) == 20
    again = demonstrations(pool, 5, seed=3)
    assert [one.prompt.text for one in again(pool[7])] == list(drawn[7])
    other = demonstrations(pool, 5, seed=4)
    assert [one.prompt.text for one in other(pool[7])] != list(drawn[7])
    assert len(demonstrations(pool, 32, seed=0)(pool[0])) == 20


def test_a_new_task_is_one_small_class():
    from zo2.tasks import base

    before = dict(base._TASKS)
    try:

        @base.register
        class Weather(Classification):
            name = "Weather"
            files = sources.Files("weather", "train.jsonl", "val.jsonl", sources.superglue_jsonl)
            hub = sources.Hub("nobody/weather")
            template = "{report} Tomorrow will be"
            cut = "report"
            words = {"rain": "wet", "sun": "dry"}
            gap = " "

        task = get_task("weather")
        (example,) = examples(task, {"report": "Clouds.", "label": "sun"})
        assert example.prompt.body + example.answer == "Clouds. Tomorrow will be dry"
        assert task.measure([0], [example]) == {"accuracy": 0.0}
    finally:
        base._TASKS.clear()
        base._TASKS.update(before)
