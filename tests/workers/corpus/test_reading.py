import json
import os
import time

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from workers.corpus.reading import MAX_LINE_BYTES, UnreadableFile, inspect_file, read_rows

ZH = ["这条河发源于高山，流过平原，最后注入大海，沿岸有许多村庄和城市。", "心脏每天跳动大约十万次，把血液送到全身各处的器官。"]
GOOD = b'{"text": "a good row"}\n'


@pytest.fixture
def written(tmp_path):
    def write(name: str, content: bytes):
        path = tmp_path / name
        path.write_bytes(content)
        return path

    return write


def fields(path) -> list[dict | None]:
    return [row.fields for row in read_rows(path)]


@pytest.mark.parametrize(
    ("name", "content", "kind", "first"),
    [
        ("a.jsonl", GOOD, "document", {"text": "a good row"}),
        ("a.txt", b"First line of a text.\nsecond line\n\nAnother paragraph.", "document", {"text": "First line of a text.\nsecond line"}),
        ("a.csv", b'question,answer\n"Why, ""then""?",Because.\n', "question", {"question": 'Why, "then"?', "answer": "Because."}),
        ("a.tsv", b"claim\tlabel\nSnow is white.\ttrue\n", "claim", {"claim": "Snow is white.", "label": "true"}),
        ("a.csv", b"Title;Text\nGold;A metal; or so.\nIron;A metal.\n", "entry", None),
        ("upload", b"text,domain\nhello,law\n", "document", {"text": "hello", "domain": "law"}),
        ("bom.csv", b"\xef\xbb\xbftext\nhello\n", "document", {"text": "hello"}),
    ],
)
def test_each_format_is_told_by_its_content(written, name, content, kind, first):
    path = written(name, content)

    assert inspect_file(path).kind == kind
    assert fields(path)[0] == first


def test_parquet_gives_the_known_columns_whatever_their_case_and_type(tmp_path):
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"Text": pa.array(["one", None]).dictionary_encode(), "other": [1, 2]}), path)

    assert fields(path) == [{"text": "one"}, {}]


@pytest.mark.parametrize("encoding", ["gbk", "gb18030", "utf-8"])
@pytest.mark.parametrize("form", ["txt", "jsonl", "csv"])
def test_chinese_in_any_usual_encoding_comes_out_the_same(written, encoding, form):
    lines = {"txt": ZH, "jsonl": [json.dumps({"text": t}, ensure_ascii=False) for t in ZH], "csv": ["text", *ZH]}[form]

    assert [row["text"] for row in fields(written(f"zh.{form}", "\n".join(lines).encode(encoding)))] == ZH


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.jsonl", b"", "is empty"),
        ("a.txt", b"\n \n\t\n", "blank lines"),
        ("a.pdf", b"%PDF-1.7 ...", "PDF"),
        ("a.docx", b"PK\x03\x04....", "ZIP"),
        ("a.bin", os.urandom(4096) + b"\0", "binary"),
        ("a.txt", b"hello\0world", "binary"),
        ("a.json", b'[{"text": "x"}]', "JSON array"),
        ("a.xml", b"<?xml version='1.0'?><a/>", "not known"),
        ("a.csv", b"text,text,domain\na,b,c\n", "more than one column named text"),
        ("a.csv", b"foo,bar\n1,2\n", "foo, bar"),
        ("a.csv", b"question,answer\n", "no record"),
        ("a.jsonl", b'{"foo": 1}\n', "no record"),
        ("a.parquet", b"PAR1abcdef", "damaged Parquet"),
        ("a.txt", "hello there".encode("utf-16"), "UTF-16"),
        ("a.jsonl", b'{"text": "\xff\xfe\xfd"}\n', "neither valid UTF-8"),
        ("a.jsonl", GOOD + b'{"text": "' + b"a" * MAX_LINE_BYTES + b'"}\n', "Line 2"),
    ],
)
def test_what_cannot_be_read_is_refused_at_once_with_the_reason(written, name, content, said):
    path = written(name, content)
    began = time.process_time()

    with pytest.raises(UnreadableFile, match=said):
        inspect_file(path)

    assert time.process_time() - began < 2  # of a processor; milliseconds, where the rest of the machine may be at other things


@pytest.mark.parametrize(
    "bad", [b"{broken", b"[1, 2]", b'{"text": ' + b"[" * 5000 + b"]" * 5000 + b"}", b'{"text": "caf\xe9"}', b'{"text": "\\ud800"}', b"null"]
)
def test_a_damaged_line_costs_only_itself(written, bad):
    rows = list(read_rows(written("a.jsonl", GOOD + GOOD + bad + b"\n" + GOOD)))

    assert [row.error for row in rows] == [None, None, "unreadable", None]


def test_a_csv_row_with_too_many_cells_or_broken_bytes_costs_only_itself(written):
    rows = list(read_rows(written("a.csv", b"text,domain\none,law\ntwo,law,extra\nthr\xe9e,law\nfour,law\n")))

    assert [row.error for row in rows] == [None, "unreadable", "unreadable", None]


def test_a_large_file_is_read_row_by_row(written):
    path = written("a.jsonl", b'{"text": "' + b"word " * 2000 + b'"}\n')
    with path.open("ab") as file:
        for _ in range(2000):
            file.write(b'{"text": "' + b"word " * 2000 + b'"}\n')
    import tracemalloc

    tracemalloc.start()
    count = sum(1 for _ in read_rows(path))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()

    assert count == 2001
    assert peak < 6 * 1024**2 < path.stat().st_size


@settings(max_examples=120, deadline=None)
@given(st.binary(max_size=300), st.sampled_from(["a.jsonl", "a.csv", "a.txt", "a.parquet", "a"]))
def test_no_bytes_break_the_reader(tmp_path_factory, content, name):
    path = tmp_path_factory.mktemp("bytes") / name
    path.write_bytes(content)
    try:
        rows = list(read_rows(path))
    except UnreadableFile:
        return
    assert all((row.fields is None) == (row.error is not None) for row in rows)
