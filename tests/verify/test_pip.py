"""What pip is told installs what is meant: by a real parser of requirements, and to the letter."""

from __future__ import annotations

import shlex

import pytest
from packaging.requirements import Requirement

from verify.pip import again, anew, distribution_of, requirement

INDEX = "https://download.pytorch.org/whl"


@pytest.mark.parametrize(
    ("installed", "told"),
    [
        ({"tqdm": "4.67.1"}, "tqdm==4.67.1"),
        ({"torch": "2.13.0"}, "torch==2.13.0"),
        ({"torch": "2.13.0+cpu"}, f"torch==2.13.0+cpu --index-url {INDEX}/cpu"),
        ({"torch": "2.4.0+cu121"}, f"torch==2.4.0+cu121 --index-url {INDEX}/cu121"),
        ({"torch": "2.4.0+rocm6.1"}, f"torch==2.4.0+rocm6.1 --index-url {INDEX}/rocm6.1"),
        ({"torch": "2.4.0+git12ab"}, "torch==2.4.0+git12ab"),
        ({"torch": "2.4.0+cpu", "torchvision": "0.19.0+cpu"},
         f"torch==2.4.0+cpu torchvision==0.19.0+cpu --index-url {INDEX}/cpu"),
        ({"tqdm": "4.67.1", "torch": "2.13.0+cpu"},
         f"tqdm==4.67.1 torch==2.13.0+cpu --extra-index-url {INDEX}/cpu"),
        ({"other": "1.0+cpu"}, "other==1.0+cpu"),  # such a version means nothing elsewhere
    ],
)  # fmt: skip
def test_packages_are_put_back_as_they_are(installed, told):
    assert again([*installed], {"installed": installed}) == told


def test_what_came_from_an_address_is_fetched_from_it():
    installed = {"transformers": "5.0.0.dev0", "zo2": "0.1.0"}
    origins = {"transformers": "git+https://example.org/t.git@12ab", "zo2": "/a place/zo2"}
    packages = {"installed": installed, "origins": origins}
    assert again(["transformers"], packages) == (
        "'transformers @ git+https://example.org/t.git@12ab'"
    )
    assert again(["zo2"], packages) == "-e '/a place/zo2'"


def test_what_is_not_installed_is_installed_with_what_it_needs():
    assert anew("torch", {}) == "torch"
    assert anew("tqdm", {"installed": {"tqdm": "1.0"}}) == ("--force-reinstall --no-deps tqdm==1.0")


@pytest.mark.parametrize(
    ("name", "specifier", "url"),
    [("foo", "<2,>=1", ""), ("foo", "", ""), ("foo", "", "git+https://example.org/foo.git@a;b")],
)
def test_a_requirement_survives_the_shell(name, specifier, url):
    (word,) = shlex.split(requirement(name, specifier, url))
    read = Requirement(word)
    assert (read.name, str(read.specifier), read.url or "") == (name, specifier, url)


@pytest.mark.parametrize(
    ("module", "distribution"),
    [("yaml", "pyyaml"), ("numpy.linalg", "numpy"), ("PIL.Image", "pillow"), ("nobody_knows", "")],
)
def test_a_module_s_distribution_is_not_guessed(module, distribution):
    assert distribution_of(module) == distribution
