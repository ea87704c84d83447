"""Where the examples of a task come from: published files in a folder, or the hub.

Both give records, plain dictionaries as the data set's authors published them; what they mean is
the task's business.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from zo2.data import nearest_file, read_examples, read_text
from zo2.errors import DataError, first_line

Record = Mapping[str, Any]
Records = Iterator[tuple[str, Record]]  # where a record is, for people, and the record


@dataclass(frozen=True)
class Files:
    """The files that a data set is published in.

    Attributes:
        folder: what its archive unpacks to.
        train: name of the file of the training split.
        test: name of the file of the validation split, which papers test on: the labels of the
            test splits are not public.
        read: from a file to its records.
    """

    folder: str
    train: str
    test: str
    read: Callable[[Path], Records]


@dataclass(frozen=True)
class Hub:
    """A data set on the hub: its id there, and its configuration."""

    dataset: str
    config: str = "default"


def from_folder(files: Files, folder: Path, split: str) -> Records:
    """Records of ``"train"`` or ``"test"`` from a folder that holds the files or their archive's.

    Raises:
        DataError: the folder or file is missing, empty, or not in the published format.
    """
    if folder.is_file():
        raise DataError(f"--data-dir: {folder} is a file; give the folder that holds it.")
    if not folder.is_dir():
        raise DataError(f"--data-dir: there is no directory {folder}.{nearest_file(folder)}")
    name = files.train if split == "train" else files.test
    places = [folder / name, folder / files.folder / name]
    path = next((one for one in places if one.is_file()), None)
    if path is None:
        raise DataError(
            f"--data-dir: there is no {name} in {folder} nor in {folder / files.folder}; needed "
            f"are {files.train} and {files.test}, as published.{nearest_file(places[0])}"
        )
    return _some(files.read(path), path)


def _some(records: Records, path: Path) -> Records:
    first = next(records, None)
    if first is None:
        raise DataError(f"{path} holds no examples.")
    yield first
    yield from records


def from_hub(hub: Hub, split: str) -> Records:
    """Records of ``"train"`` or ``"test"`` from the hub or its local cache.

    Code that comes with a data set is never run.

    Raises:
        DataError: the package datasets is missing, or the data set cannot be had.
    """
    try:
        import datasets
    except ImportError:
        raise DataError(
            "Data sets of the hub need a package: pip install datasets. Or give a folder "
            "with the published files: --data-dir DIR"
        ) from None
    part = "train" if split == "train" else "validation"
    try:
        rows = datasets.load_dataset(hub.dataset, hub.config, split=part)
    except Exception as error:  # no connection, no such data set, a broken cache, ...
        raise DataError(
            f"The data set {hub.dataset} could not be loaded from the hub ({first_line(error)}). "
            "Without a connection, give a folder with the published files: --data-dir DIR"
        ) from error
    return ((f"{hub.dataset}, {part} row {number}", row) for number, row in enumerate(rows))


# -- published formats ------------------------------------------------------------------------


def glue_tsv(path: Path) -> Records:
    """``sentence<TAB>label`` lines, as GLUE publishes SST-2; a line with the names may be first."""
    for example in read_examples(path, labels=("0", "1")):
        yield str(path), {"sentence": example.text, "label": int(example.label)}


def superglue_jsonl(path: Path) -> Records:
    """One JSON object per line, as SuperGLUE publishes its tasks."""
    for number, line in enumerate(read_text(path).split("\n"), start=1):
        if not line.strip():
            continue
        where = f"{path}, line {number}"
        record = _parsed(line, where)
        yield where, record


def squad_json(path: Path) -> Records:
    """One JSON object of articles, paragraphs and questions, as SQuAD 1.1 is published."""
    content = _parsed(read_text(path), str(path))
    with _format_of("SQuAD", path):
        for article in content["data"]:
            for paragraph in article["paragraphs"]:
                for question in paragraph["qas"]:
                    record = {"title": article["title"], "context": paragraph["context"]}
                    yield f"{path}, question {question['id']}", {**record, **question}


def drop_json(path: Path) -> Records:
    """One JSON object from passage ids to passages with their questions, as DROP is published."""
    content = _parsed(read_text(path), str(path))
    with _format_of("DROP", path):
        for passage in content.values():
            for question in passage["qa_pairs"]:
                where = f"{path}, question {question['query_id']}"
                yield where, {"passage": passage["passage"], **question}


def _parsed(text: str, where: str) -> Any:
    try:
        content = json.loads(text)
    except json.JSONDecodeError as error:
        line = f", line {error.lineno}" if error.lineno > 1 else ""
        raise DataError(f"{where}{line}: not JSON ({error.msg}).") from None
    if not isinstance(content, dict):
        raise DataError(f"{where}: expected a JSON object, not {type(content).__name__}.")
    return content


@contextlib.contextmanager
def _format_of(name: str, path: Path) -> Iterator[None]:
    """A field that is not where the published format has it is the file's fault."""
    try:
        yield
    except (KeyError, TypeError, AttributeError) as error:
        missing = f"no {error}" if isinstance(error, KeyError) else str(error)
        raise DataError(f"{path} is not in {name}'s published format: {missing}.") from None
