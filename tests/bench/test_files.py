"""Records, pictures and videos as they are published. Oracle: what was written, by the writers of each format."""

import base64
import csv
import json
import sys
from io import BytesIO

import pytest
from PIL import Image

from vtprune.bench.files import VIDEO_ENDINGS, find_one, need, picture, read_lines, read_records, video


def png(color="red"):
    file = BytesIO()
    Image.new("RGB", (16, 16), color).save(file, "PNG")
    return file.getvalue()


def jpeg():
    file = BytesIO()
    Image.new("RGB", (64, 64), "red").save(file, "JPEG")
    return file.getvalue()


def test_parquet_is_read_in_order_and_a_little_at_a_time(tmp_path):
    pa, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    rows = [{"id": i, "image": {"bytes": png(), "path": f"{i}.png"}, "answers": ["a", "b"]} for i in range(150)]
    rows.append({"id": 150, "image": {"bytes": None, "path": "x.png"}, "answers": None})
    path = tmp_path / "val-00000-of-00001.parquet"
    parquet.write_table(pa.Table.from_pylist(rows), path, row_group_size=40)
    reader = read_records(path)
    assert next(reader) == rows[0]
    assert [rows[0], *reader] == rows
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(ValueError, match=r"val-00000-of-00001\.parquet is no parquet file"):
        list(read_records(path))


def test_parquet_without_pyarrow_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(ImportError, match=r"pip install 'vtprune\[bench\]'"):
        next(read_records(tmp_path / "x.parquet"))


def test_json_in_all_its_forms(tmp_path):
    rows = [{"q": "wörd\u2028", "a": 1}, {"q": "", "a": None}]
    path = tmp_path / "x.jsonl"
    path.write_text("\ufeff" + "\n\n".join(json.dumps(row, ensure_ascii=False) for row in rows) + "\n", "utf-8")
    assert list(read_records(path)) == rows
    assert [number for number, _ in read_lines(path)] == [1, 3]
    path = tmp_path / "x.json"
    for value in (rows, {"version": 1, "info": {}, "data": rows}):
        path.write_text(json.dumps(value, indent=1), "utf-8")
        assert list(read_records(path)) == rows
    path.write_text("\n" + json.dumps([]))
    assert list(read_records(path)) == []


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("x.jsonl", b'{"a": 1}\n{"a": }\n', r"x\.jsonl, line 2, column 7: no JSON"),
        ("x.jsonl", b'{"a": 1}\n\n[1]\n', r"x\.jsonl, line 3: a list; an object is read"),
        ("x.jsonl", b'{"a": 1}\n"\xff"\n', r"x\.jsonl, line 2: no UTF-8"),
        ("x.jsonl", b'{"a": 1} {"a": 2}\n', r"x\.jsonl, line 1, column 10: no JSON"),
        ("x.json", b'[{"a": 1},\n {"a": 2},\n {"a" 3}]', r"x\.json, line 3, column 7: no JSON"),
        ("x.json", b'[{"a": 1},\n\n "\xff"]', r"x\.json, line 3: no UTF-8"),
        ("x.json", b'[{"a": 1}, 5]', r"x\.json, record 2: a number"),
        ("x.json", b'{"a": [], "b": []}', r"exactly one of its values may be a list, and 'a', 'b' is"),
        ("x.json", b'{"a": 1}', r"may be a list, and none is"),
        ("x.json", b'"a"', r"x\.json holds a text; a list of objects is read"),
        ("x.json", b"[" * 100_000, r"x\.json, line 1: its brackets are nested too deeply"),
        ("x.tsv", b"a\tb\n1\t2\n1\t2\t3\n", r"x\.tsv, line 3: 3 cells, and the header has 2: a, b"),
        ("x.tsv", b'a\tb\n1\t"2\n', r"x\.tsv, line 2: no table: unexpected end of data"),
        ("x.csv", b"a,b\n1,\xff\n", r"x\.csv, after line 0: no UTF-8"),
        ("x.xlsx", b"", r"none of the endings that are read: \.parquet, \.jsonl, \.json, \.tsv, \.csv"),
    ],
)
def test_errors_name_the_file_and_the_line(tmp_path, name, text, message):
    path = tmp_path / name
    path.write_bytes(text)
    with pytest.raises(ValueError, match=message):
        list(read_records(path))


@pytest.mark.parametrize(("name", "delimiter"), [("x.tsv", "\t"), ("x.csv", ",")])
def test_tables_hold_pictures_quotes_and_lines(tmp_path, name, delimiter):
    before = csv.field_size_limit(100_000)
    try:
        check_table(tmp_path / name, delimiter)
    finally:
        csv.field_size_limit(before)


def check_table(path, delimiter):
    big = base64.b64encode(bytes(3_000_000)).decode()
    rows = [
        {"index": "0", "image": big, "question": 'He said "a,\tb"\nand left'},
        {"index": "1", "image": "", "question": "ü"},
    ]
    with path.open("w", encoding="utf-8-sig", newline="") as file:
        writer = csv.DictWriter(file, rows[0], delimiter=delimiter)
        writer.writeheader()
        writer.writerows(rows)
    reader = read_records(path)
    first = next(reader)
    # the limit is the process's: it is as it was even between two rows
    assert csv.field_size_limit() == 100_000
    assert [first, *reader] == rows
    path.write_text("")
    assert list(read_records(path)) == []


def test_files_are_found_by_the_first_pattern_that_fits(tmp_path):
    for name in ("b.parquet", "a.parquet", "sub/c.json"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "folder.tsv").mkdir()
    assert find_one(tmp_path, ["*.tsv", "*.parquet", "*.json"]) == [tmp_path / "a.parquet", tmp_path / "b.parquet"]
    assert find_one(tmp_path, ["*.json", "**/*.json"]) == [tmp_path / "sub/c.json"]
    with pytest.raises(ValueError, match=r"has no \*\.tsv and no x/\*\.csv; is it the folder"):
        find_one(tmp_path, ["*.tsv", "x/*.csv"])
    with pytest.raises(ValueError, match="there is no folder .*nowhere"):
        find_one(tmp_path / "nowhere", ["*"])


def test_needed_fields():
    record = {"a": 0, "b": "", "c": None}
    assert need(record, "a", where="x") == (0,) and need(record, "b", "a", where="x") == ("", 0)
    with pytest.raises(ValueError, match=r"^x\.jsonl, line 3 has no 'c', 'd'; it has a, b$"):
        need(record, "a", "c", "d", where="x.jsonl, line 3")
    with pytest.raises(ValueError, match="it has nothing"):
        need({}, "a", where="x")


@pytest.mark.parametrize("content", [png(), jpeg()], ids=["png", "jpeg"])
def test_a_picture_from_every_kind_of_cell(tmp_path, content):
    text = base64.b64encode(content).decode()
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub/x.img").write_bytes(content)
    cells = [
        {"bytes": content, "path": "nowhere.png"},
        {"bytes": content},
        content,
        text,
        f"data:image/png;base64,{text}",
    ]
    cells += ["\n".join(text[i : i + 76] for i in range(0, len(text), 76))]
    cells += [{"bytes": None, "path": "sub/x.img"}, {"path": "sub/x.img"}, "sub/x.img", str(tmp_path / "sub/x.img")]
    for cell in cells:
        visual = picture(cell, tmp_path, "test.parquet, row 3")
        red = visual.load().getpixel((8, 8))
        assert visual.kind == "image" and red[0] > 250 and red[1] < 5
        assert visual.name == "test.parquet, row 3"


@pytest.mark.parametrize("cell", [None, 5, "", " ", {"bytes": None, "path": None}, {}, [png()], "x" * 5000])
def test_what_is_no_picture_is_refused_by_name(tmp_path, cell):
    with pytest.raises(ValueError, match="row 3: "):
        picture(cell, tmp_path, "row 3")


def test_a_damaged_or_missing_picture_is_named(tmp_path):
    text = base64.b64encode(png()).decode()
    with pytest.raises(ValueError, match="row 3: damaged base64"):
        picture(text[:80] + "!" + text[80:], tmp_path, "row 3")
    # nothing is looked at before it is loaded: what is missing is then one question's failure
    with pytest.raises(ValueError, match=r"there is no file .*gone\.png"):
        picture("gone.png", tmp_path, "row 3").load()


def test_videos_are_found_by_their_published_names(tmp_path):
    names = [
        "data/a.mp4",
        "data/b.MP4",
        "videos/c.webm",
        "videos/d.x.mkv",
        "deep/star/e.gif",
        "data/both.avi",
        "videos/both.mp4",
    ]
    for name in names:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "videos/frames").mkdir()
    places = ["data", "videos", "."]
    wanted = {
        "a": 0,
        "a.mp4": 0,
        "b": 1,
        "b.mp4": 1,
        "c": 2,
        "c.mp4": 2,
        "d.x": 3,
        "d.x.mp4": 3,
        "deep/star/e.mp4": 4,
        "both": 5,
    }
    for name, row in wanted.items():
        assert video(tmp_path, name, places) == tmp_path / names[row], name
    assert video(tmp_path, "both", ["videos", "data"]) == tmp_path / names[6]
    assert video(tmp_path, "frames", places) == video(tmp_path, "frames.mp4", places) == tmp_path / "videos/frames"
    for gone in ("x", "d", ".mp4"):
        with pytest.raises(ValueError) as caught:
            video(tmp_path, gone, places)
        assert all(part in str(caught.value) for part in (repr(gone), "data", "videos", *VIDEO_ENDINGS))
