"""Redaction: no name gets out, and no name, however common, ruins the report."""

from __future__ import annotations

import json
import os
import platform
import re
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.verify.environments import run
from verify.catalogue import page
from verify.report.redact import Redactor, ordinary_words

ORDINARY = ordinary_words()
PAGE = page()
ROOT = os.path.expanduser("~root")  # a home of one name, which is an ordinary word
FIXED = Redactor(
    {
        "HF_TOKEN": "abcdefgh", "MY_API_KEY": "k-123456", "PATH": "/usr/bin", "SHORT_TOKEN": "1",
        "TOKENIZERS_PARALLELISM": "false", "DB_PASSWORD": "hunt", "A_SECRET": "torch",
    },
    users=("alice", "root", "torch"),
    hosts=("gpu-node-7.cluster.example", "gpu-node-7", "node"),
    homes=("/data/people/alice", ROOT),
    environments=("/data/people/alice/venvs/zo2", "/usr"),
    ordinary=ORDINARY,
)  # fmt: skip


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("/data/people/alice/venvs/zo2/lib/x.so", "ENV/lib/x.so"),
        ("/data/people/alice/models", "~/models"),
        ("/data/people/alice-2/x", "/data/people/[user]-2/x"),
        (f"{ROOT}fs and {ROOT}/x and {ROOT}.", f"{ROOT}fs and ~/x and ~."),
        ("/usr/lib/libcuda.so.1", "/usr/lib/libcuda.so.1"),
        ("/home/home/x and /nfs/home/bob/x", "/home/[user]/x and /nfs/home/[user]/x"),
        ("/home/bob/x and /Users/carol/y", "/home/[user]/x and /Users/[user]/y"),
        ("by alice on gpu-node-7", "by [user] on [host]"),
        ("Alice_env, pytest-of-alice", "[user]_env, pytest-of-[user]"),
        ("gpu-node-7.cluster.example:29500", "[host]:29500"),
        ("malice is not alice", "malice is not [user]"),
        ("hf_AbCdEfGhIjKlMnOp", "[token]"),
        ("abcdefgh and k-123456", "[token] and [token]"),
        ("a hunter may hunt", "a hunter may [token]"),
        ("parallelism=false", "parallelism=false"),
        ("https://me:secret@index.example/simple", "https://[login]@index.example/simple"),
        ("Authorization: Bearer eyJhbGciOi12", "Authorization: Bearer [token]"),
        # names that are words as well
        ("run as root in /usr/bin, 1 GPU", "run as root in /usr/bin, 1 GPU"),
        ("pip install torch, on one node", "pip install torch, on one node"),
        ("torch@node: node:29500", "[user]@[host]: [host]:29500"),
        ("USER=torch ~torch/x", "USER=[user] ~[user]/x"),
        ("/scratch/torch/torch/x.py", "/scratch/[user]/torch/x.py"),
        ("file:///scratch/torch/x.whl", "file:///scratch/[user]/x.whl"),
        ("/dev/shm/torch", "/dev/shm/[user]"),
        ("/opt/lib/python3.11/site-packages/torch/a.py",
         "/opt/lib/python3.11/site-packages/torch/a.py"),
        ("https://index.example/simple/torch/", "https://index.example/simple/torch/"),
    ],
)  # fmt: skip
def test_redaction(text, expected):
    assert FIXED.text(text) == expected


def test_redaction_reaches_everything():
    found = FIXED.all({"alice": ["/home/alice/x", {"a": ("hf_AbCdEfGhIjKlMnOp", 3, None)}]})
    assert found == {"[user]": ["/home/[user]/x", {"a": ["[token]", 3, None]}]}


names = st.from_regex(r"[a-z][a-z0-9_-]{1,11}[a-z0-9]", fullmatch=True)
secrets = st.from_regex(r"[A-Za-z0-9_+/=-]{12,40}", fullmatch=True)
words = st.sampled_from(sorted(ORDINARY))


OTHERS = {"home", "scratch", "lib", "example", "file", "user", "host"}  # words of the text below


@given(names.filter(lambda name: not (ORDINARY | OTHERS) & {*re.split("[-_]", name), name}))
def test_a_name_of_somebody_is_nowhere(name):
    text = f"""{name} {name}@{name}: /home/{name}/x /scratch/{name}/{name}/lib/{name} ~{name}
        '{name}' ({name}) {name}.example:80 {name.upper()}_x -{name}- file:///d/{name}"""
    for redactor in (Redactor({}, users={name}), Redactor({}, hosts={name}, homes={f"/d/{name}"})):
        redacted = redactor.text(text.replace("/home/", "/d/")).lower()
        assert not re.search(f"(?<![a-z0-9]){name}(?![a-z0-9])", redacted), redacted


@given(words)
def test_a_name_that_is_a_word_leaves_texts_as_they_are(word):
    redactor = Redactor({}, {word}, {word}, {f"/home/{word}"}, ordinary=ORDINARY)
    assert redactor.text(PAGE) == PAGE


@pytest.mark.parametrize("word", sorted(ORDINARY - {"home", "python3", "share"}))  # directories
def test_a_name_that_is_a_word_is_not_where_people_are_named(word):
    redactor = Redactor(
        {}, {word}, {f"node-{word}.example"}, {f"/people/{word}"}, ordinary=ORDINARY
    )
    text = f"/people/{word}/x /home/{word}/x /scratch/{word}/x {word}@h node-{word}.example ~{word}"
    assert redactor.text(text) == "~/x /home/[user]/x /scratch/[user]/x [user]@h [host] ~[user]"


@given(secrets.filter(lambda text: not text.startswith("/")), st.text(max_size=9))
def test_a_secret_is_nowhere(secret, around):
    redactor = Redactor({"A_TOKEN": secret})
    assert secret not in redactor.text(f"{around}{secret}{around} {secret}")


@given(st.text(alphabet="/abc@:~ -_.[]\\", max_size=40), names, words)
def test_twice_is_as_once(text, name, word):
    redactor = Redactor(
        {"A_TOKEN": "abcabc"}, {name, word, "ab"}, {"c"}, {"/a"}, {"/b/c"}, ORDINARY
    )
    once = redactor.text(text)
    assert redactor.text(once) == once


@pytest.mark.parametrize("user", ["zebediah", "zo2", "torch", "root"])
def test_real_reports_name_nobody_and_stay_readable(tmp_path, user):
    home = tmp_path / "home" / user
    home.mkdir(parents=True)
    token = "hf_" + "Ab1c" * 8
    variables = {"HOME": str(home), "USER": user, "LOGNAME": user, "HF_TOKEN": token}
    outputs = {kind: tmp_path / f"report.{kind}" for kind in ("html", "junit")}
    said = run(
        "--quick", *(f"--{kind}={file}" for kind, file in outputs.items()), variables=variables
    )
    texts = [said.output, json.dumps(said.report), *(f.read_text() for f in outputs.values())]
    for text in texts:
        assert str(home) not in text
        assert token not in text
        assert f"home/{user}" not in text
        assert "packages.python" in text
        host = platform.node()
        if len(host) > 3 and host.lower() not in ORDINARY:
            assert host not in text
        if user == "zebediah":
            assert user not in text
            assert sys.prefix not in text
    assert said.report["tool"] == "zo2 verify"
    assert "zo2" in said.result("packages.row")["facts"]["installed"]
    assert "torch" in said.result("packages.row")["facts"]["installed"]
